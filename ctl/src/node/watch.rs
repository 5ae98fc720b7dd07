use serde::Serialize;
use troth_ipc::{client::AgentClient, varlink::wire};

use super::{Status, words};
use crate::{
    error::{Error, Exit},
    output::{Output, clean, now_ms, utc},
};

/// One line of `node watch --json`.
#[derive(Serialize)]
struct Line<'a> {
    /// Unix milliseconds.
    time_ms: u64,
    /// Where it has changed.
    status: Option<&'a Status>,
    /// A quote that was made.
    quote: Option<Quoted>,
}

#[derive(Serialize)]
struct Quoted {
    client: String,
    ima_entries: u64,
}

/// Prints what the agent tells, until it is interrupted or the agent ends.
pub(super) async fn run(agent: &mut AgentClient, out: &Output) -> Result<Exit, Error> {
    agent.watch().await?;
    let mut context = wire::Context::default();
    let mut shown: Option<(String, String)> = None;
    loop {
        let update = agent.update().await?;
        context = update.context.unwrap_or(context);
        let status = update.runtime.map(|now| Status::new(context.clone(), now));
        let quote = update.event.and_then(|event| event.quote_served);
        let quote = quote.map(|quote| Quoted {
            client: quote.client,
            ima_entries: quote.ima_entries,
        });
        if out.is_json() {
            out.json_line(&Line {
                time_ms: now_ms(),
                status: status.as_ref(),
                quote,
            })?;
            continue;
        }
        let time = utc(now_ms() / 1000);
        if let Some(status) = status {
            // Counters change with each quote, which has a line of its own.
            let now = (status.state.clone(), status.detail.clone());
            if shown.as_ref() != Some(&now) {
                let state = out.paint(status.tone(), &words(&status.state));
                out.text(&format!("{time}  {state}  {}\n", clean(&status.detail)))?;
            }
            shown = Some(now);
        }
        if let Some(quote) = quote {
            let (client, entries) = (clean(&quote.client), quote.ima_entries);
            out.text(&format!(
                "{time}  quote for {client}, {entries} IMA entries\n"
            ))?;
        }
    }
}
