/// `agent add`: the tenant's steps, from the registrar's record to the enrolment.
mod add;
/// A node as this program shows it, whichever verifier it comes from.
mod node;
/// `agent watch`: state changes as they happen.
mod watch;

use std::{collections::BTreeMap, time::Duration};

use hyper::Method;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use troth_core::{identity::AgentId, wire::NodeStatus};

use self::node::{Node, State};
use crate::{
    api::{self, Credentials, Service},
    cli::{AgentCommand, Global, RemoveArgs},
    error::{Error, Exit},
    output::{Output, Tone, now_ms, span},
};

/// How long `agent remove --wait` waits: an attestation may take the agent's whole timeout.
const REMOVAL_WAIT: Duration = Duration::from_secs(120);

/// Runs `trothctl agent ...`.
pub(crate) async fn run(
    global: &Global,
    command: &AgentCommand,
    out: &Output,
) -> Result<Exit, Error> {
    match command {
        AgentCommand::Add(args) => add::run(global, args, out).await,
        AgentCommand::Remove(args) => remove(global, args, out).await,
        AgentCommand::Reactivate { id } => {
            let words = "will be attested again";
            put(global, id, ("reactivate", "reactivated", words), out).await
        }
        AgentCommand::Stop { id } => {
            put(
                global,
                id,
                ("stop", "stopped", "is no longer attested"),
                out,
            )
            .await
        }
        AgentCommand::Status { id } => status(global, id, out).await,
        AgentCommand::List => list(global, out).await,
        AgentCommand::Watch(args) => watch::run(global, args, out).await,
    }
}

async fn status(global: &Global, id: &AgentId, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(&global.ca_dir)?.verifier(global)?;
    let node = fetch(&verifier, id.as_str())
        .await?
        .ok_or_else(|| unknown(&verifier, id))?;
    out.result(&node, || node.describe(out, now_ms()))?;
    Ok(node.state.exit())
}

/// `agent list --json`.
#[derive(Serialize)]
struct List<'a> {
    agents: &'a [Node],
}

async fn list(global: &Global, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(&global.ca_dir)?.verifier(global)?;
    let nodes = fetch_all(&verifier).await?;
    let now = now_ms();
    out.result(&List { agents: &nodes }, || {
        if nodes.is_empty() {
            return "No agent is enrolled. Enrol one with `trothctl agent add`.\n".to_owned();
        }
        let rows = nodes.iter().map(|node| node.row(now)).collect();
        let mut text = out.table(
            &["AGENT", "STATE", "ATTESTED", "COUNT", "ADDRESS", "REASON"],
            rows,
        );
        text.push_str(&summary(out, &nodes));
        text
    })?;
    Ok(Exit::Success)
}

/// `3 agents: 2 trusted, 1 failed`.
fn summary(out: &Output, nodes: &[Node]) -> String {
    let mut counts = BTreeMap::<State, usize>::new();
    for node in nodes {
        *counts.entry(node.state).or_default() += 1;
    }
    let parts: Vec<_> = counts
        .iter()
        .map(|(state, count)| out.paint(state.tone(), &format!("{count} {state}")))
        .collect();
    let plural = if nodes.len() == 1 { "" } else { "s" };
    format!("\n{} agent{plural}: {}\n", nodes.len(), parts.join(", "))
}

/// `--json` of `agent remove`, `agent reactivate` and `agent stop`.
#[derive(Serialize)]
struct Done<'a> {
    id: &'a str,
    /// `removed`, or `accepted` while an attestation is still running; `reactivated`; `stopped`.
    result: &'static str,
}

async fn remove(global: &Global, args: &RemoveArgs, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(&global.ca_dir)?.verifier(global)?;
    let id = args.id.as_str();
    let path = api::agents_path(Some(id));
    let reply = verifier.send(Method::DELETE, &path, None::<&Value>).await?;
    let mut gone = match reply.status {
        200 | 204 => true,
        202 => false,
        404 => return Err(unknown(&verifier, &args.id)),
        _ => return Err(verifier.refused(&Method::DELETE, &path, &reply)),
    };
    let started = Instant::now();
    while args.wait && !gone {
        gone = verifier.find::<Value>(&path).await?.is_none();
        if !gone && started.elapsed() > REMOVAL_WAIT {
            return Err(Error::RemovalPending {
                id: id.to_owned(),
                seconds: REMOVAL_WAIT.as_secs(),
            });
        }
        if !gone {
            sleep(Duration::from_millis(100)).await;
        }
    }
    let result = if gone { "removed" } else { "accepted" };
    out.result(&Done { id, result }, || {
        if gone {
            format!("Agent {id} is removed from the verifier.\n")
        } else {
            format!(
                "Agent {id} will be removed when its running attestation ends (--wait waits).\n"
            )
        }
    })?;
    Ok(Exit::Success)
}

/// PUT of a word about a node: the word, the result in JSON, and the result in words.
async fn put(
    global: &Global,
    id: &AgentId,
    (word, result, words): (&str, &'static str, &str),
    out: &Output,
) -> Result<Exit, Error> {
    let verifier = Credentials::load(&global.ca_dir)?.verifier(global)?;
    let path = format!("{}/{word}", api::agents_path(Some(id.as_str())));
    let reply = verifier.send(Method::PUT, &path, None::<&Value>).await?;
    match reply.status {
        200..=299 => {}
        404 => return Err(unknown(&verifier, id)),
        _ => return Err(verifier.refused(&Method::PUT, &path, &reply)),
    }
    let done = Done {
        id: id.as_str(),
        result,
    };
    out.result(&done, || format!("Agent {id} {words}.\n"))?;
    Ok(Exit::Success)
}

/// One node; `None` when the verifier does not know it.
async fn fetch(verifier: &Service, id: &str) -> Result<Option<Node>, Error> {
    let status = verifier
        .find::<NodeStatus>(&api::agents_path(Some(id)))
        .await?;
    Ok(status.map(|status| Node::new(id, &status, now_ms())))
}

/// All nodes, by id.
async fn fetch_all(verifier: &Service) -> Result<Vec<Node>, Error> {
    let path = format!("{}?bulk=True", api::agents_path(None));
    let statuses = verifier.get::<BTreeMap<String, NodeStatus>>(&path).await?;
    let now = now_ms();
    Ok(statuses
        .iter()
        .map(|(id, status)| Node::new(id, status, now))
        .collect())
}

fn unknown(verifier: &Service, id: &AgentId) -> Error {
    Error::NotFound {
        id: id.to_string(),
        service: verifier.name,
        url: verifier.url.clone(),
    }
}

impl Node {
    fn row(&self, now: u64) -> Vec<(Tone, String)> {
        let attested = match self.last_trusted_ms {
            0 => "never".to_owned(),
            at => format!("{} ago", span(now.saturating_sub(at))),
        };
        vec![
            (Tone::Plain, self.id.clone()),
            (self.state.tone(), self.state.to_string()),
            (Tone::Plain, attested),
            (Tone::Plain, self.attestation_count.to_string()),
            (
                Tone::Plain,
                self.address.clone().unwrap_or_else(|| "-".to_owned()),
            ),
            (Tone::Dim, self.reason.clone()),
        ]
    }
}
