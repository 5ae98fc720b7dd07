/// `trothctl node check`: what there is on this host.
mod check;
/// `trothctl node quote`.
mod quote;
/// `trothctl node watch`.
mod watch;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Serialize;
use troth_ipc::{
    client::{AgentClient, ClientError},
    varlink::wire,
};

use crate::{
    cli::{NodeArgs, NodeCommand, NodeEvidenceArgs},
    error::{Error, Exit},
    output::{Output, Tone, clean, utc},
    policy,
};

/// Longest bundle that is taken from the agent, in bytes: an IMA list may have 100 MB.
const BUNDLE_MAX: u64 = 1 << 30;

/// Runs a command about this host that asks its agent.
pub(crate) async fn run(args: &NodeArgs, out: &Output) -> Result<Exit, Error> {
    // Without any agent.
    if let NodeCommand::Check { root } = &args.command {
        return check::run(root, out);
    }
    let mut agent = AgentClient::connect(&args.address).await?;
    match &args.command {
        NodeCommand::Status => status(&mut agent, out).await,
        NodeCommand::Watch => watch::run(&mut agent, out).await,
        NodeCommand::Quote(quote) => quote::run(&mut agent, &args.address, quote, out).await,
        NodeCommand::Evidence(evidence) => save(&mut agent, evidence, out).await,
        NodeCommand::Register => register(&mut agent, out).await,
        NodeCommand::Actions => actions(&mut agent, out).await,
        NodeCommand::Check { .. } => Ok(Exit::Success),
    }
}

impl From<ClientError> for Error {
    fn from(source: ClientError) -> Self {
        Self::LocalAgent { source }
    }
}

/// `node status --json`.
#[derive(Debug, PartialEq, Serialize)]
struct Status {
    state: String,
    detail: String,
    agent_id: Option<String>,
    version: String,
    mode: Option<String>,
    registrar: Option<String>,
    tcti: Option<String>,
    tpm_vendor: Option<String>,
    tpm_firmware: Option<String>,
    hash_algorithms: Vec<String>,
    /// Unix milliseconds; 0: never.
    last_quote_ms: u64,
    quote_count: u64,
    ima_entries: u64,
    payload_state: String,
    secure_mount: Option<String>,
}

impl Status {
    fn new(context: wire::Context, runtime: wire::Runtime) -> Self {
        Self {
            state: runtime.state,
            detail: runtime.detail,
            agent_id: runtime.agent_id,
            version: runtime.version,
            mode: context.mode,
            registrar: context.registrar,
            tcti: context.tcti,
            tpm_vendor: runtime.tpm_vendor,
            tpm_firmware: runtime.tpm_firmware,
            hash_algorithms: runtime.hash_algorithms,
            last_quote_ms: runtime.last_quote_usec.unwrap_or_default() / 1000,
            quote_count: runtime.quote_count,
            ima_entries: runtime.ima_entries,
            payload_state: runtime.payload_state,
            secure_mount: runtime.secure_mount,
        }
    }

    fn tone(&self) -> Tone {
        match self.state.as_str() {
            "attesting" => Tone::Good,
            "tpm_unavailable" => Tone::Bad,
            _ => Tone::Warn,
        }
    }

    fn exit(&self) -> Exit {
        match self.state.as_str() {
            "attesting" => Exit::Success,
            "tpm_unavailable" => Exit::NodeUnreachable,
            _ => Exit::Pending,
        }
    }

    fn describe(&self, out: &Output) -> String {
        let known = |text: &Option<String>| clean(text.as_deref().unwrap_or("not known yet"));
        let quotes = match self.last_quote_ms {
            0 => "none since the agent was started".to_owned(),
            last => format!("{}, the last {}", self.quote_count, utc(last / 1000)),
        };
        let tpm = [&self.tpm_vendor, &self.tpm_firmware];
        let tpm: Vec<_> = tpm.iter().filter_map(|part| part.as_deref()).collect();
        out.fields(&[
            ("State", out.paint(self.tone(), &words(&self.state))),
            ("Agent says", clean(&self.detail)),
            ("Agent id", known(&self.agent_id)),
            ("Version", clean(&self.version)),
            ("Registrar", known(&self.registrar)),
            ("TPM", clean(&or(tpm.join(", firmware "), "not known yet"))),
            ("Way to it", known(&self.tcti)),
            (
                "PCR banks",
                clean(&or(self.hash_algorithms.join(", "), "not known yet")),
            ),
            ("Quotes", quotes),
            ("IMA entries", self.ima_entries.to_string()),
            ("Payload", words(&self.payload_state)),
            (
                "Secrets",
                self.secure_mount.as_ref().map_or_else(
                    || "no tmpfs without swap: none can be unpacked".to_owned(),
                    |path| clean(path),
                ),
            ),
        ])
    }
}

fn or(text: String, otherwise: &str) -> String {
    if text.is_empty() {
        otherwise.to_owned()
    } else {
        text
    }
}

/// A value of an enumeration, for people.
fn words(value: &str) -> String {
    clean(&value.replace('_', " "))
}

async fn status(agent: &mut AgentClient, out: &Output) -> Result<Exit, Error> {
    let wire::Status { context, runtime } = agent.status().await?;
    let status = Status::new(context, runtime);
    out.result(&status, || status.describe(out))?;
    Ok(status.exit())
}

/// `node evidence --json`.
#[derive(Serialize)]
struct Saved<'a> {
    file: &'a Path,
    bytes: usize,
}

async fn save(
    agent: &mut AgentClient,
    args: &NodeEvidenceArgs,
    out: &Output,
) -> Result<Exit, Error> {
    let nonce = args.nonce.as_deref();
    let bundle = File::from(agent.evidence(nonce).await?);
    let bytes = read(bundle).map_err(|source| Error::ReadFile {
        path: PathBuf::from("the agent's bundle"),
        source,
    })?;
    policy::write_private(&args.output, &bytes)?;
    let saved = Saved {
        file: &args.output,
        bytes: bytes.len(),
    };
    out.result(&saved, || {
        let file = clean(&args.output.display().to_string());
        format!("{file}: {} bytes\n", bytes.len())
    })?;
    Ok(Exit::Success)
}

fn read(bundle: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bundle.take(BUNDLE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BUNDLE_MAX {
        return Err(io::Error::other("it is larger than 1 GiB"));
    }
    Ok(bytes)
}

/// `node register --json`.
#[derive(Serialize)]
struct Registered {
    agent_id: String,
    api_version: String,
}

async fn register(agent: &mut AgentClient, out: &Output) -> Result<Exit, Error> {
    let registered = agent.register().await?;
    let registered = Registered {
        agent_id: registered.agent_id,
        api_version: registered.api_version,
    };
    out.result(&registered, || {
        let (id, version) = (&registered.agent_id, &registered.api_version);
        format!("{}: registered (API {})\n", clean(id), clean(version))
    })?;
    Ok(Exit::Success)
}

async fn actions(agent: &mut AgentClient, out: &Output) -> Result<Exit, Error> {
    let actions = agent.actions().await?;
    out.result(&actions, || {
        let rows = actions.actions.iter().map(|action| {
            vec![
                (Tone::Strong, action.name.clone()),
                (Tone::Plain, action.sandbox.clone()),
                (Tone::Plain, action.description.clone()),
            ]
        });
        out.table(&["ACTION", "SANDBOX", "WHAT IT DOES"], rows.collect())
    })?;
    Ok(Exit::Success)
}

/// What to do about a local agent that gave no answer.
pub(crate) fn advice(error: &ClientError) -> Option<String> {
    let text = match error {
        ClientError::Connect { source, .. } => match source.kind() {
            io::ErrorKind::NotFound => {
                "`systemctl enable --now troth-agent` starts the agent and makes its socket, which \
                 is not there on a host without a TPM: `trothctl node check` says what there is"
            }
            io::ErrorKind::PermissionDenied => {
                "run it as a user who may open this socket: that of the unit is for everybody"
            }
            _ => {
                "nobody serves this socket: `systemctl restart troth-agent.socket troth-agent`, and \
                 `systemctl status troth-agent` says why it does not run"
            }
        },
        ClientError::Ended { .. } => {
            "see `journalctl -u troth-agent`; a user has 16 connections to the agent at most"
        }
        ClientError::Silent { .. } => {
            "the agent may be waiting to be started: `systemctl status troth-agent`"
        }
        ClientError::Unusable { .. } => "trothctl and the agent have to be of the same version",
        ClientError::Refused { fault, .. } => match fault.error.as_ref() {
            "org.varlink.service.PermissionDenied" => {
                "run it as root; to let others do this, an administrator writes a rule for the \
                 polkit action org.troth.agent1.* (polkit(8), /etc/polkit-1/rules.d)"
            }
            "io.systemd.InteractiveAuthenticationRequired" => {
                "run it as root, or where polkit can ask for a password: in a desktop session, or \
                 with `pkttyagent` on another terminal"
            }
            "org.troth.Agent.NotReady" => "see what the agent does with `trothctl node status`",
            "org.troth.Agent.TpmBusy" => "ask again",
            "org.troth.Agent.TpmFailed" => {
                "see `journalctl -u troth-agent`; `trothctl node check` says what TPM there is"
            }
            "org.troth.Agent.RegistrationFailed" => {
                "registrar_ip and registrar_port of agent.toml must name a registrar that this host \
                 can reach: `trothctl config show agent`"
            }
            "org.troth.Agent.ActionsUnavailable" => {
                "`systemctl start troth-actiond.socket`; see `journalctl -u troth-actiond`"
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(text.to_owned())
}
