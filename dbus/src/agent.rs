use std::{fmt, os::fd::OwnedFd, path::PathBuf};

use serde::Serialize;
use tokio::sync::{broadcast, watch};

/// An agent, as its own host sees it. Whether a caller may do something is the front door's question
/// (polkit), not the agent's.
pub trait Agent: Send + Sync + 'static {
    /// The status now, and from now on. Never waits for the TPM.
    fn status(&self) -> watch::Receiver<Status>;

    /// What happens from now on.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// A quote over a nonce of the caller's.
    fn quote(
        &self,
        request: QuoteRequest,
    ) -> impl Future<Output = Result<Quote, OperationError>> + Send;

    /// An evidence bundle of this instant, as `trothctl appraise` reads it: a sealed memfd, at its
    /// beginning. Its nonce is text, as that of verifiers is: at most 64 printable characters of
    /// ASCII, or a random one where it is empty.
    fn collect_evidence(
        &self,
        nonce: String,
    ) -> impl Future<Output = Result<OwnedFd, OperationError>> + Send;

    /// Registers again, at once.
    fn register(&self) -> impl Future<Output = Result<Registered, OperationError>> + Send;

    /// The actions that this host knows.
    fn list_actions(&self) -> impl Future<Output = Result<Vec<Action>, OperationError>> + Send;

    /// Starts an action.
    fn run_action(&self, name: String) -> impl Future<Output = Result<(), OperationError>> + Send;
}

/// What an agent tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Of the program.
    pub version: &'static str,
    /// `None` as long as the TPM has not said what it is made from.
    pub agent_id: Option<String>,
    /// What it does.
    pub state: State,
    /// The same in a sentence, with the reason where something is wrong.
    pub detail: String,
    /// Who opens the conversation with the verifier.
    pub mode: Mode,
    /// `host:port`.
    pub registrar: String,
    /// The way to the TPM, as tpm2-tss writes it.
    pub tcti: String,
    /// Manufacturer and vendor string, such as `IFX SLB9670`; empty until the TPM has answered.
    pub tpm_vendor: String,
    /// TPM2_PT_FIRMWARE_VERSION_1, empty until the TPM has answered.
    pub tpm_firmware: String,
    /// The PCR banks, empty until the TPM has answered.
    pub hash_algorithms: Vec<String>,
    /// When the last quote was made: CLOCK_REALTIME in microseconds, 0 if never.
    pub last_quote_usec: u64,
    /// Quotes since the start.
    pub quote_count: u64,
    /// Entries of the IMA list, as it was read last.
    pub ima_entries: u64,
    /// What became of the verifier's payload.
    pub payload_state: PayloadState,
    /// Where secrets may be kept: a tmpfs that is never swapped. `None`: there is no such mount.
    pub secure_mount: Option<PathBuf>,
}

/// What an agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It waits for its TPM.
    Starting,
    /// It makes itself known to the registrar.
    Registering,
    /// The registrar has not taken it; it tries again.
    Unregistered,
    /// It is registered, and answers verifiers.
    Attesting,
    /// Its TPM does not answer any more.
    TpmUnavailable,
}

/// Who opens the conversation with the verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The verifier asks.
    Pull,
}

/// What became of the verifier's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadState {
    /// None has come.
    None,
    /// Its key is complete.
    KeyReceived,
}

/// What a quote is asked over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuoteRequest {
    /// 1 to 64 bytes.
    pub nonce: Vec<u8>,
    /// Bit n is PCR n, 0 to 23.
    pub pcr_mask: u32,
}

/// A quote, in TPM structures (TPM 2.0 Library, part 2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// TPMS_ATTEST.
    pub message: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
    /// The bank, such as `sha256`.
    pub hash_algorithm: String,
    /// PCR and value, by PCR.
    pub pcrs: Vec<(u32, Vec<u8>)>,
    /// TPM2B_PUBLIC of the AK that signed.
    pub ak: Vec<u8>,
}

/// What a registration came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The agent's id.
    pub agent_id: String,
    /// The version of the registrar's API.
    pub api_version: String,
}

/// An action that this host knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Its name, that of its file.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The sandbox that it runs in: `strict`, `system` or `host`.
    pub sandbox: String,
}

/// Longest name of an action, in characters: it becomes part of a unit's.
pub const ACTION_NAME_MAX: usize = 64;

/// Whether an action can have this name: 1 to [`ACTION_NAME_MAX`] of a-z, A-Z, 0-9, - and _.
pub fn is_action_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=ACTION_NAME_MAX).contains(&name.len()) && name.chars().all(allowed)
}

/// `name`, if there may be an action of this name: others are put before nobody.
pub(crate) fn checked_name(name: &str) -> Result<&str, OperationError> {
    if is_action_name(name) {
        Ok(name)
    } else {
        Err(OperationError::NoSuchAction(name.to_owned()))
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A quote was made.
    QuoteServed {
        /// Who asked: the address of a verifier, or `local`.
        client: String,
        /// Entries of the IMA list that went with it, 0 without the list.
        ima_entries: u64,
    },
}

/// Why an operation did not come to a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError {
    /// It is not registered, or has no keys yet.
    #[error("the agent is not ready: {0}")]
    NotReady(String),
    /// The TPM does not answer, or PCRs changed faster than they could be quoted.
    #[error("the TPM is busy: {0}")]
    TpmBusy(String),
    /// The TPM refused.
    #[error("the TPM refused: {0}")]
    TpmFailed(String),
    /// An argument cannot be used.
    #[error("{argument}: {reason}")]
    InvalidArgument {
        /// Its name as D-Bus has it, `pcr_mask`; varlink's is `pcrMask`.
        argument: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The registrar did not take the registration.
    #[error("not registered: {0}")]
    RegistrationFailed(String),
    /// There is no action of this name.
    #[error("there is no action {0}")]
    NoSuchAction(String),
    /// troth-actiond does not answer, or not as expected.
    #[error("troth-actiond: {0}")]
    ActionsUnavailable(String),
    /// The host's files or memory.
    #[error("{0}")]
    Host(String),
}

macro_rules! displayed {
    ($type:ty { $($variant:ident => $text:literal,)* }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)* })
            }
        }
    };
}

displayed!(State {
    Starting => "starting",
    Registering => "registering",
    Unregistered => "unregistered",
    Attesting => "attesting",
    TpmUnavailable => "tpm-unavailable",
});
displayed!(Mode {
    Pull => "pull",
});
displayed!(PayloadState {
    None => "none",
    KeyReceived => "key-received",
});
