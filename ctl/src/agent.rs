/// `agent add`: a node that proved its identity is enrolled.
mod add;
/// Is the EK that of a genuine TPM?
mod ek;
/// `agent evidence`: bundles that the verifier keeps.
mod evidence;
/// `agent explain`: why a node is in its state, and what to do.
mod explain;
/// The tenant's steps before an enrolment: registrar's record, keys, identity quote.
mod identity;
/// A node as this program shows it, whichever verifier it comes from.
mod node;
/// The policies of an enrolment, from the options of the command line.
mod policies;
/// The site's own program that accepts or refuses an EK.
mod script;
/// `agent update`: other policies, algorithms or address for an enrolled node.
mod update;
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
    api::{Credentials, Service},
    cli::{AgentCommand, Global, RemoveArgs},
    config::Config,
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
    let config = &Config::load(global)?;
    match command {
        AgentCommand::Add(args) => add::run(config, args, out).await,
        AgentCommand::Update(args) => update::run(config, args, out).await,
        AgentCommand::Evidence(args) => evidence::run(config, args, out).await,
        AgentCommand::Remove(args) => remove(config, args, out).await,
        AgentCommand::Reactivate { id } => {
            let told = Told {
                word: "reactivate",
                result: "reactivated",
                meaning: "will be attested again",
            };
            tell(config, id, &told, out).await
        }
        AgentCommand::Stop { id } => {
            let told = Told {
                word: "stop",
                result: "stopped",
                meaning: "is no longer attested",
            };
            tell(config, id, &told, out).await
        }
        AgentCommand::Status { id } => status(config, id, out).await,
        AgentCommand::Explain(args) => explain::run(config, args, out).await,
        AgentCommand::List => list(config, out).await,
        AgentCommand::Watch(args) => watch::run(config, args, out).await,
    }
}

async fn status(config: &Config, id: &AgentId, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
    let node = fetch(&verifier, id.as_str())
        .await?
        .ok_or_else(|| verifier.unknown(id))?;
    out.result(&node, || node.describe(out, now_ms()))?;
    Ok(node.state.exit())
}

/// `agent list --json`.
#[derive(Serialize)]
struct List<'a> {
    agents: &'a [Node],
}

async fn list(config: &Config, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
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

async fn remove(config: &Config, args: &RemoveArgs, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
    let id = args.id.as_str();
    let mut gone = delete(&verifier, &args.id).await?;
    if args.wait && !gone {
        wait_until_gone(&verifier, id).await?;
        gone = true;
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

/// Has the verifier forget a node; `false` when it will do so after a running attestation.
async fn delete(verifier: &Service, id: &AgentId) -> Result<bool, Error> {
    let path = format!("agents/{id}");
    let reply = verifier.send(Method::DELETE, &path, None::<&Value>).await?;
    match reply.status {
        200 | 204 => Ok(true),
        202 => Ok(false),
        404 => Err(verifier.unknown(id)),
        _ => Err(verifier.refused(&Method::DELETE, &path, &reply)),
    }
}

async fn wait_until_gone(verifier: &Service, id: &str) -> Result<(), Error> {
    let started = Instant::now();
    while verifier
        .find::<Value>(&format!("agents/{id}"))
        .await?
        .is_some()
    {
        if started.elapsed() > REMOVAL_WAIT {
            return Err(Error::RemovalPending {
                id: id.to_owned(),
                seconds: REMOVAL_WAIT.as_secs(),
            });
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// What a verifier is told about a node.
struct Told {
    /// Last segment of the path.
    word: &'static str,
    /// `result` in JSON.
    result: &'static str,
    /// The rest of a sentence that begins with the agent.
    meaning: &'static str,
}

async fn tell(config: &Config, id: &AgentId, told: &Told, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
    put(&verifier, id, told.word).await?;
    let done = Done {
        id: id.as_str(),
        result: told.result,
    };
    out.result(&done, || format!("Agent {id} {}.\n", told.meaning))?;
    Ok(Exit::Success)
}

/// PUT of a word about a node.
async fn put(verifier: &Service, id: &AgentId, word: &str) -> Result<(), Error> {
    let path = format!("agents/{id}/{word}");
    let reply = verifier.send(Method::PUT, &path, None::<&Value>).await?;
    match reply.status {
        200..=299 => Ok(()),
        404 => Err(verifier.unknown(id)),
        // Keylime's verifier says 400 of a node that it does not know, with a database's words.
        400 if verifier
            .find::<Value>(&format!("agents/{id}"))
            .await?
            .is_none() =>
        {
            Err(verifier.unknown(id))
        }
        _ => Err(verifier.refused(&Method::PUT, &path, &reply)),
    }
}

/// One node; `None` when the verifier does not know it.
async fn fetch(verifier: &Service, id: &str) -> Result<Option<Node>, Error> {
    let status = verifier.find::<NodeStatus>(&format!("agents/{id}")).await?;
    Ok(status.map(|status| Node::new(id, &status, now_ms())))
}

/// All nodes, by id.
async fn fetch_all(verifier: &Service) -> Result<Vec<Node>, Error> {
    let statuses = verifier
        .get::<BTreeMap<String, NodeStatus>>("agents/?bulk=True")
        .await?;
    let now = now_ms();
    Ok(statuses
        .iter()
        .map(|(id, status)| Node::new(id, status, now))
        .collect())
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
