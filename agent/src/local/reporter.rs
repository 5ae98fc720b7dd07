use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::{broadcast, watch};
use troth_core::identity::AgentId;
use troth_daemon::notify;
use troth_ipc::agent::{Event, Mode, PayloadState, State, Status};

use crate::{config::Config, evidence::ima::Reader, messages, tpm::Description};

/// Events that a listener may be behind before it loses some.
const EVENTS: usize = 64;

/// Keeps the agent's status, and tells it: to local callers, and as `STATUS=` to the service
/// manager. Clones are the same.
#[derive(Clone, Debug)]
pub struct Reporter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    status: watch::Sender<Status>,
    events: broadcast::Sender<Event>,
    doing: Mutex<Doing>,
}

/// What the agent does, and whether its TPM lets it.
#[derive(Debug)]
struct Doing {
    state: State,
    detail: String,
    /// Why the TPM does not answer.
    tpm_trouble: Option<String>,
}

impl Doing {
    fn shown(&self) -> (State, String) {
        match &self.tpm_trouble {
            None => (self.state, self.detail.clone()),
            Some(trouble) => (
                State::TpmUnavailable,
                format!("No quotes, the TPM does not answer: {trouble}"),
            ),
        }
    }
}

impl Reporter {
    /// Of an agent that starts.
    pub fn new(config: &Config, secure_mount: Option<PathBuf>) -> Self {
        let doing = Doing {
            state: State::Starting,
            detail: "Waiting for the TPM".into(),
            tpm_trouble: None,
        };
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            agent_id: None,
            state: doing.state,
            detail: doing.detail.clone(),
            mode: Mode::Pull,
            registrar: config.registrar(),
            tcti: config.tcti.clone().unwrap_or_default(),
            tpm_vendor: String::new(),
            tpm_firmware: String::new(),
            hash_algorithms: Vec::new(),
            last_quote_usec: 0,
            quote_count: 0,
            ima_entries: 0,
            payload_state: PayloadState::None,
            secure_mount,
        };
        Self(Arc::new(Shared {
            status: watch::Sender::new(status),
            events: broadcast::Sender::new(EVENTS),
            doing: Mutex::new(doing),
        }))
    }

    /// The status, now and from now on.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.0.status.subscribe()
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// The agent does something else from now on; `detail` says what, in one line.
    pub fn enter(&self, state: State, detail: String) {
        self.update(
            |doing| (doing.state, doing.detail) = (state, detail),
            notify::status,
        );
    }

    /// The same, and the start is over.
    pub fn ready(&self, state: State, detail: String) {
        self.update(
            |doing| (doing.state, doing.detail) = (state, detail),
            notify::ready,
        );
    }

    /// The TPM answers, or why it does not.
    pub fn tpm(&self, trouble: Option<String>) {
        let before = {
            let doing = self.0.doing.lock().unwrap_or_else(PoisonError::into_inner);
            doing.tpm_trouble.clone()
        };
        if before == trouble {
            return;
        }
        match (&before, &trouble) {
            (None, Some(error)) => tracing::error!(
                message_id = messages::TPM_LOST,
                error,
                "the TPM does not answer"
            ),
            (Some(_), None) => {
                tracing::info!(message_id = messages::TPM_BACK, "the TPM answers again");
            }
            _ => {}
        }
        self.update(|doing| doing.tpm_trouble = trouble, notify::status);
    }

    /// The TPM has said what it is.
    pub fn tpm_is(&self, about: Description) {
        self.0.status.send_modify(|status| {
            status.tpm_vendor = about.vendor;
            status.tpm_firmware = about.firmware;
            status.hash_algorithms = about.banks;
        });
    }

    /// The agent knows its id.
    pub fn identified(&self, id: &AgentId) {
        let id = id.as_str().to_owned();
        let changed = |status: &mut Status| status.agent_id = Some(id);
        self.0.status.send_modify(changed);
    }

    /// The verifier's payload key has come.
    pub fn payload_key_is_complete(&self) {
        let changed = |status: &mut Status| status.payload_state = PayloadState::KeyReceived;
        self.0.status.send_modify(changed);
    }

    /// A quote was made.
    pub fn quote_was_made(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
        self.0.status.send_modify(|status| {
            status.quote_count += 1;
            status.last_quote_usec = now;
        });
    }

    /// For a quote that `client` is about to get.
    pub fn receipt(&self, client: String) -> Receipt {
        Receipt {
            reporter: self.clone(),
            client,
        }
    }

    fn update(&self, change: impl FnOnce(&mut Doing), tell: impl FnOnce(&str)) {
        let mut doing = self.0.doing.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut doing);
        let (state, detail) = doing.shown();
        tell(&detail);
        self.0.status.send_modify(|status| {
            status.state = state;
            status.detail = detail;
        });
    }
}

/// Of one quote, to be handed in when it was sent.
#[derive(Debug)]
pub struct Receipt {
    reporter: Reporter,
    client: String,
}

impl Receipt {
    /// All of it was sent; with the list that `ima` has read.
    pub fn sent(self, ima: Option<&Reader>) {
        let sent = ima.map_or(0, |ima| ima.entries() - ima.first_entry());
        let Shared { status, events, .. } = &*self.reporter.0;
        if let Some(ima) = ima {
            status.send_if_modified(|status| {
                let before = std::mem::replace(&mut status.ima_entries, ima.entries());
                before != status.ima_entries
            });
        }
        // An error: nobody listens.
        let _ = events.send(Event::QuoteServed {
            client: self.client,
            ima_entries: sent,
        });
    }
}
