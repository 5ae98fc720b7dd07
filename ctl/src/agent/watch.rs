use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, sleep};
use troth_core::wire::RatedFinding;

use super::{
    fetch, fetch_all,
    node::{Node, State},
};
use crate::{
    api::{Credentials, Service},
    cli::{Until, WatchArgs},
    config::Config,
    error::{Error, Exit},
    output::{Output, clean, now_ms, place},
};

/// Findings that a line of text names; JSON has all.
const FINDINGS_SHOWN: usize = 3;

/// One line of `agent watch --json`.
#[derive(Debug, PartialEq, Serialize)]
struct Change<'a> {
    /// Since the command started.
    elapsed_ms: u64,
    /// Unix milliseconds.
    time_ms: u64,
    id: &'a str,
    /// The state before; null: the first that was seen.
    previous: Option<State>,
    state: State,
    reason: &'a str,
    findings: &'a [RatedFinding],
    findings_total: u64,
}

/// How a watch with `--until` stands.
#[derive(Debug, Eq, PartialEq)]
enum Progress {
    Waiting,
    Reached,
    /// Failed where `trusted` was waited for.
    Missed,
}

/// Runs `trothctl agent watch`.
pub(super) async fn run(config: &Config, args: &WatchArgs, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
    let started = Instant::now();
    let mut states = BTreeMap::<String, State>::new();
    let mut silent = false;
    loop {
        match look(&verifier, args, &states).await {
            Ok(nodes) => {
                if silent {
                    out.note("the verifier answers again");
                }
                silent = false;
                report(&nodes, &mut states, started.elapsed(), out)?;
            }
            // A verifier that restarts must not end a watch; one that was never there must.
            Err(error @ Error::Unreachable { .. }) if !states.is_empty() => {
                if !silent {
                    out.note(&format!("{error}; trying again"));
                }
                silent = true;
            }
            Err(error) => return Err(error),
        }
        match args.until.map(|until| progress(until, args, &states)) {
            Some(Progress::Reached) => return Ok(Exit::Success),
            Some(Progress::Missed) => return Ok(Exit::Untrusted),
            Some(Progress::Waiting) | None => {}
        }
        let pause = match args
            .timeout
            .map(|limit| limit.saturating_sub(started.elapsed()))
        {
            Some(Duration::ZERO) => return timed_out(args, &states),
            Some(left) => left.min(args.interval),
            None => args.interval,
        };
        sleep(pause).await;
    }
}

/// The watched nodes now. A node that was seen before and is gone now is `Removed`.
async fn look(
    verifier: &Service,
    args: &WatchArgs,
    seen: &BTreeMap<String, State>,
) -> Result<Vec<(String, Option<Node>)>, Error> {
    if args.id.is_empty() {
        let mut nodes: BTreeMap<_, _> = seen.keys().map(|id| (id.clone(), None)).collect();
        for node in fetch_all(verifier).await? {
            nodes.insert(node.id.clone(), Some(node));
        }
        return Ok(nodes.into_iter().collect());
    }
    let mut nodes = Vec::with_capacity(args.id.len());
    for id in &args.id {
        let node = fetch(verifier, id.as_str()).await?;
        if node.is_none() && !seen.contains_key(id.as_str()) {
            return Err(verifier.unknown(id));
        }
        nodes.push((id.to_string(), node));
    }
    Ok(nodes)
}

fn report(
    nodes: &[(String, Option<Node>)],
    states: &mut BTreeMap<String, State>,
    elapsed: Duration,
    out: &Output,
) -> Result<(), Error> {
    for (id, node) in nodes {
        let state = node.as_ref().map_or(State::Removed, |node| node.state);
        let previous = states.insert(id.clone(), state);
        if previous == Some(state) {
            continue;
        }
        let change = Change {
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            time_ms: now_ms(),
            id,
            previous,
            state,
            reason: node
                .as_ref()
                .map_or("no longer enrolled", |node| node.reason.as_str()),
            findings: node.as_ref().map_or(&[], |node| &node.findings),
            findings_total: node.as_ref().map_or(0, |node| node.findings_total),
        };
        if out.is_json() {
            out.json_line(&change)?;
        } else {
            out.text(&change.line(out))?;
        }
    }
    Ok(())
}

impl Change<'_> {
    fn line(&self, out: &Output) -> String {
        let state = out.paint(self.state.tone(), &self.state.to_string());
        let transition = match self.previous {
            Some(previous) => format!("{previous} -> {state}"),
            None => state,
        };
        let mut text = format!(
            "[{:>5}.{:03} s] {} {transition}: {}\n",
            self.elapsed_ms / 1000,
            self.elapsed_ms % 1000,
            clean(self.id),
            clean(self.reason)
        );
        for RatedFinding { finding, severity } in self.findings.iter().take(FINDINGS_SHOWN) {
            let severity = severity
                .as_ref()
                .map(|label| format!("[{}] ", clean(label)));
            text.push_str(&format!(
                "              {}{}: {}\n",
                severity.unwrap_or_default(),
                place(&finding.place),
                clean(&finding.explanation)
            ));
        }
        let shown = self.findings.len().min(FINDINGS_SHOWN) as u64;
        if self.findings_total > shown {
            text.push_str(&format!(
                "              and {} more; see `trothctl agent explain {}`\n",
                self.findings_total - shown,
                clean(self.id)
            ));
        }
        text
    }
}

fn progress(until: Until, args: &WatchArgs, states: &BTreeMap<String, State>) -> Progress {
    let watched = if args.id.is_empty() {
        states.len()
    } else {
        args.id.len()
    };
    let wanted = match until {
        Until::Trusted => State::Trusted,
        Until::Failed => State::Failed,
    };
    if until == Until::Trusted && states.values().any(|state| *state == State::Failed) {
        Progress::Missed
    } else if watched > 0
        && states.len() >= watched
        && states.values().all(|state| *state == wanted)
    {
        Progress::Reached
    } else {
        Progress::Waiting
    }
}

/// A watch without `--until` that ran its time is a success.
fn timed_out(args: &WatchArgs, states: &BTreeMap<String, State>) -> Result<Exit, Error> {
    let wanted = match args.until {
        None => return Ok(Exit::Success),
        Some(Until::Trusted) => "trusted",
        Some(Until::Failed) => "failed",
    };
    let nodes: Vec<_> = states
        .iter()
        .map(|(id, state)| format!("{id} is {state}"))
        .collect();
    Err(Error::WatchTimeout {
        wanted,
        seconds: args.timeout.unwrap_or_default().as_secs_f64(),
        nodes: if nodes.is_empty() {
            "no agent is enrolled".to_owned()
        } else {
            nodes.join(", ")
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{super::node, *};

    fn args(ids: &[&str]) -> WatchArgs {
        WatchArgs {
            id: ids
                .iter()
                .map(|id| troth_core::identity::AgentId::new(id).unwrap())
                .collect(),
            until: None,
            timeout: None,
            interval: Duration::from_millis(200),
        }
    }

    fn states(states: &[(&str, State)]) -> BTreeMap<String, State> {
        states
            .iter()
            .map(|(id, state)| ((*id).to_owned(), *state))
            .collect()
    }

    #[test]
    fn a_line_names_the_change_and_the_findings() {
        let failed = Node::new("node-1", &node::tests::failed(), 0);
        let change = Change {
            elapsed_ms: 2_034,
            time_ms: 0,
            id: "node-1",
            previous: Some(State::Trusted),
            state: failed.state,
            reason: &failed.reason,
            findings: &failed.findings,
            findings_total: 5,
        };
        assert_eq!(
            change.line(&Output::plain()),
            "[    2.034 s] node-1 trusted -> failed: 1 finding
              [emergency] /usr/bin/evil (IMA list entry 1640): Not in the policy.
              and 4 more; see `trothctl agent explain node-1`
"
        );
        let json = serde_json::to_value(&change).unwrap();
        assert_eq!(json["previous"], "trusted");
        assert_eq!(json["state"], "failed");
        assert_eq!(json["elapsed_ms"], 2034);
    }

    #[test]
    fn a_failed_node_ends_a_wait_for_trust() {
        let two = args(&["a", "b"]);
        let waiting = states(&[("a", State::Trusted), ("b", State::Pending)]);
        assert_eq!(progress(Until::Trusted, &two, &waiting), Progress::Waiting);
        let good = states(&[("a", State::Trusted), ("b", State::Trusted)]);
        assert_eq!(progress(Until::Trusted, &two, &good), Progress::Reached);
        let bad = states(&[("a", State::Trusted), ("b", State::Failed)]);
        assert_eq!(progress(Until::Trusted, &two, &bad), Progress::Missed);
        assert_eq!(
            progress(Until::Failed, &two, &bad),
            Progress::Waiting,
            "not all failed"
        );
        let partly = states(&[("a", State::Failed)]);
        assert_eq!(
            progress(Until::Failed, &two, &partly),
            Progress::Waiting,
            "b not seen yet"
        );
    }

    #[test]
    fn an_empty_fleet_is_never_trusted() {
        assert_eq!(
            progress(Until::Trusted, &args(&[]), &states(&[])),
            Progress::Waiting
        );
    }
}
