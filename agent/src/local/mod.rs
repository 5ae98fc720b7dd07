//! What the agent tells and does for its own host, whichever door a caller comes through.

/// What troth-actiond knows and does.
mod actions;
/// An evidence bundle in a sealed memfd.
mod evidence_file;
/// The log, as callers may turn it up.
mod logs;
/// The process itself.
mod process;
/// The status, and who is told of it.
mod reporter;

pub use logs::ProcessLogs;
pub use process::ThisProcess;
pub use reporter::{Receipt, Reporter};

use std::{
    os::fd::OwnedFd,
    sync::{Arc, OnceLock},
};

use tokio::sync::{Semaphore, broadcast, watch};
use troth_core::{
    identity::AgentId,
    tpm::{PcrMask, Public},
};
use troth_ipc::agent::{
    Action, Agent, Event, OperationError, Quote, QuoteRequest, Registered, Status,
};

use self::actions::Actions;
use crate::{
    evidence::{Collector, EvidenceError, Request},
    registration::RegistrarHandle,
    tpm::TpmError,
};

/// What local callers are called where a quote's asker is told of.
const LOCAL: &str = "local";

/// Longest nonce, bytes: TPM2B_DATA of a TPM with SHA-512.
const NONCE_LIMIT: usize = 64;

/// Bundles that are made at a time: each has the whole IMA list in memory.
const BUNDLES: usize = 2;

/// The agent for callers of its own host. Clones are the same agent.
#[derive(Clone, Debug)]
pub struct LocalAgent {
    reporter: Reporter,
    registrar: RegistrarHandle,
    /// Set once the TPM has said which host this is.
    host: Arc<OnceLock<Host>>,
    actions: Arc<Actions>,
    bundles: Arc<Semaphore>,
}

/// The host, and what makes its evidence.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: AgentId,
    pub(crate) ak: Public,
    pub(crate) collector: Arc<Collector>,
}

impl LocalAgent {
    /// An agent that starts.
    pub fn new(reporter: Reporter, registrar: RegistrarHandle) -> Self {
        Self {
            reporter,
            registrar,
            host: Arc::default(),
            actions: Arc::default(),
            bundles: Arc::new(Semaphore::new(BUNDLES)),
        }
    }

    /// Whom the agent tells what it does.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Whom registrations are asked of.
    pub fn registrar(&self) -> &RegistrarHandle {
        &self.registrar
    }

    /// From now on there are quotes.
    pub(crate) fn identified(&self, host: Host) {
        self.reporter.identified(&host.id);
        // Once in an agent's life.
        let _ = self.host.set(host);
    }

    fn ready(&self) -> Result<&Host, OperationError> {
        let detail = || OperationError::NotReady(self.reporter.status().borrow().detail.clone());
        self.host.get().ok_or_else(detail)
    }
}

impl Agent for LocalAgent {
    fn status(&self) -> watch::Receiver<Status> {
        self.reporter.status()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.reporter.events()
    }

    async fn quote(&self, request: QuoteRequest) -> Result<Quote, OperationError> {
        let QuoteRequest { nonce, pcr_mask } = request;
        if nonce.is_empty() || nonce.len() > NONCE_LIMIT {
            let reason = format!(
                "{} bytes, where a quote has 1 to {NONCE_LIMIT}",
                nonce.len()
            );
            return Err(invalid("nonce", reason));
        }
        let mask =
            PcrMask::from_bits(pcr_mask).map_err(|error| invalid("pcr_mask", error.to_string()))?;
        let Host { ak, collector, .. } = self.ready()?;
        let snapshot = collector
            .collect(Request {
                nonce,
                mask,
                with_key: false,
                logs_from: None,
                with_userspace_log: false,
            })
            .await
            .map_err(|error| no_evidence(&error))?;
        self.reporter.receipt(LOCAL.to_owned()).sent(None);
        let quote = snapshot.quote;
        let pcrs = quote.pcrs.iter();
        Ok(Quote {
            message: quote.attest,
            signature: quote.signature,
            hash_algorithm: quote.pcrs.bank().name().to_owned(),
            pcrs: pcrs
                .map(|(pcr, value)| (u32::from(pcr), value.as_bytes().to_vec()))
                .collect(),
            ak: ak.to_tpm2b(),
        })
    }

    async fn collect_evidence(&self, nonce: String) -> Result<OwnedFd, OperationError> {
        if nonce.len() > NONCE_LIMIT || !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = format!("at most {NONCE_LIMIT} printable characters of ASCII");
            return Err(invalid("nonce", reason));
        }
        let host = self.ready()?;
        let Ok(_place) = self.bundles.try_acquire() else {
            let reason = format!("{BUNDLES} bundles are being collected, ask again");
            return Err(OperationError::TpmBusy(reason));
        };
        evidence_file::collect(host, nonce).await
    }

    async fn register(&self) -> Result<Registered, OperationError> {
        let Host { id, .. } = self.ready()?;
        match self.registrar.register(None).await {
            None => Err(OperationError::NotReady("it stops".into())),
            Some(Ok(version)) => Ok(Registered {
                agent_id: id.as_str().to_owned(),
                api_version: version.to_string(),
            }),
            Some(Err(error)) => Err(OperationError::RegistrationFailed(error.to_string())),
        }
    }

    async fn list_actions(&self) -> Result<Vec<Action>, OperationError> {
        self.actions.list().await
    }

    async fn run_action(&self, name: String) -> Result<(), OperationError> {
        self.actions.run(&name).await
    }
}

fn invalid(argument: &'static str, reason: String) -> OperationError {
    OperationError::InvalidArgument { argument, reason }
}

fn no_evidence(error: &EvidenceError) -> OperationError {
    let reason = error.to_string();
    match error {
        EvidenceError::Tpm(
            TpmError::Busy { .. } | TpmError::Deadline { .. } | TpmError::Overloaded,
        ) => OperationError::TpmBusy(reason),
        EvidenceError::Tpm(TpmError::Stopped) => OperationError::NotReady("it stops".into()),
        EvidenceError::Tpm(_) => OperationError::TpmFailed(reason),
        _ => OperationError::Host(reason),
    }
}
