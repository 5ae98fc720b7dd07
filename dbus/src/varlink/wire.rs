//! Types of the interfaces, as JSON carries them.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::agent;

/// `Context` of `org.troth.Agent`: what the agent was told by its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// Who opens the conversation with the verifier.
    pub mode: Option<String>,
    /// `host:port`.
    pub registrar: Option<String>,
    /// The way to the TPM, as tpm2-tss writes it.
    pub tcti: Option<String>,
}

/// `Runtime` of `org.troth.Agent`: what the agent does and knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Of the program.
    pub version: String,
    /// The agent's id.
    pub agent_id: Option<String>,
    /// What it does, with underscores.
    pub state: String,
    /// The same in a sentence.
    pub detail: String,
    /// The TPM's maker.
    pub tpm_vendor: Option<String>,
    /// The TPM's firmware.
    pub tpm_firmware: Option<String>,
    /// The PCR banks.
    pub hash_algorithms: Vec<String>,
    /// CLOCK_REALTIME in microseconds.
    #[serde(rename = "lastQuoteUSec")]
    pub last_quote_usec: Option<u64>,
    /// Quotes since the start.
    pub quote_count: u64,
    /// Entries of the IMA list, as of the last quote.
    pub ima_entries: u64,
    /// What became of the verifier's payload, with underscores.
    pub payload_state: String,
    /// Where secrets may be kept.
    pub secure_mount: Option<String>,
}

/// Reply of `GetStatus`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The configuration.
    pub context: Context,
    /// The state.
    pub runtime: Runtime,
}

/// A reply of `Subscribe`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The configuration, in the first reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Context>,
    /// The state, where it has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// What happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Event>,
}

/// `Event` of `org.troth.Agent`: one member is set, or none that is known here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// A quote was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote_served: Option<QuoteServed>,
}

/// `QuoteServed` of `org.troth.Agent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuoteServed {
    /// Who asked.
    pub client: String,
    /// Entries of the IMA list that went with it.
    pub ima_entries: u64,
}

/// `Pcr` of `org.troth.Agent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pcr {
    /// 0 to 23.
    pub index: u32,
    /// Hexadecimal.
    pub value: String,
}

/// Reply of `Quote`; binary values are Base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quote {
    /// TPMS_ATTEST.
    pub message: String,
    /// TPMT_SIGNATURE.
    pub signature: String,
    /// The bank.
    pub hash_algorithm: String,
    /// The quoted PCRs.
    pub pcrs: Vec<Pcr>,
    /// TPM2B_PUBLIC.
    pub attestation_key: String,
}

/// Reply of `CollectEvidence`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// Index of the descriptor that comes along.
    pub bundle_file_descriptor: usize,
}

/// Reply of `Register`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// The agent's id.
    pub agent_id: String,
    /// The version of the registrar's API.
    pub api_version: String,
}

/// Reply of `ListActions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actions {
    /// By name.
    pub actions: Vec<Action>,
}

/// `Action` of `org.troth.Agent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// `strict`, `system` or `host`.
    pub sandbox: String,
}

/// Reply of `List` of `org.troth.Actions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionList {
    /// By name.
    pub actions: Vec<ActionFile>,
    /// Files that cannot be used.
    pub broken: Vec<BrokenAction>,
}

/// `Action` of `org.troth.Actions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActionFile {
    /// That of its file, without `.toml`.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The sandbox that it runs in.
    pub sandbox: Sandbox,
    /// Program and arguments.
    pub command: Vec<String>,
    /// How long it may run, in microseconds.
    #[serde(rename = "timeoutUSec")]
    pub timeout_usec: u64,
    /// The events that it is for.
    pub when: Vec<String>,
    /// Its file.
    pub path: String,
}

/// `Sandbox` of `org.troth.Actions`: how much of the host an action may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// Nothing but what it is given.
    Strict,
    /// The system, read-only.
    System,
    /// Everything that root may do.
    Host,
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::System => "system",
            Self::Host => "host",
        })
    }
}

/// `BrokenAction` of `org.troth.Actions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenAction {
    /// The file, or a directory on the way to it.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

/// A reply of `List` of `io.systemd.Metrics`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The family that it is of.
    pub name: String,
    /// Number or text.
    pub value: Value,
}

/// A reply of `Describe` of `io.systemd.Metrics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricFamily {
    /// Its name.
    pub name: String,
    /// What its values mean.
    pub description: String,
    /// `counter`, `gauge` or `string`.
    pub r#type: String,
}

impl From<&agent::Status> for Status {
    fn from(status: &agent::Status) -> Self {
        Self {
            context: status.into(),
            runtime: status.into(),
        }
    }
}

impl From<&agent::Status> for Context {
    fn from(status: &agent::Status) -> Self {
        Self {
            mode: Some(identifier(status.mode)),
            registrar: Some(status.registrar.clone()),
            tcti: Some(status.tcti.clone()),
        }
    }
}

impl From<&agent::Status> for Runtime {
    fn from(status: &agent::Status) -> Self {
        let known = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let mount = status.secure_mount.as_deref();
        Self {
            version: status.version.to_owned(),
            agent_id: status.agent_id.clone(),
            state: identifier(status.state),
            detail: status.detail.clone(),
            tpm_vendor: known(&status.tpm_vendor),
            tpm_firmware: known(&status.tpm_firmware),
            hash_algorithms: status.hash_algorithms.clone(),
            last_quote_usec: Some(status.last_quote_usec).filter(|usec| *usec > 0),
            quote_count: status.quote_count,
            ima_entries: status.ima_entries,
            payload_state: identifier(status.payload_state),
            secure_mount: mount.map(|path| path.display().to_string()),
        }
    }
}

impl From<agent::Action> for Action {
    fn from(action: agent::Action) -> Self {
        Self {
            name: action.name,
            description: action.description,
            sandbox: action.sandbox,
        }
    }
}

/// A value of an enumeration: varlink has no hyphens in names.
pub(super) fn identifier(value: impl ToString) -> String {
    value.to_string().replace('-', "_")
}
