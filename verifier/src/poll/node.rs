use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::ClientConfig;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use troth_core::{
    appraise::AcceptedAlgorithms,
    identity::{AgentId, IdentityError, check_ak},
    ima::IMA_PCR,
    policy::{BootPolicy, PolicyError, RuntimePolicy, TpmPolicy},
    tpm::{AttestationKey, KeyError, PcrMask, Public, StructureError},
    wire::Enrolment,
};
use troth_daemon::{
    client::{Client, LargeAnswers},
    tls::{Identity, ServerTrust, TlsError, certificates_from_pem, client_config},
};

use super::{
    ask::{Question, ask},
    judge::Workers,
    state::{Event, NodeRecord, Timing, milliseconds, now},
    writer::Writer,
};
use crate::{messages, store::RecordUpdate};

/// A node as the operator described it.
#[derive(Debug)]
pub(super) struct Enrolled {
    pub(super) id: AgentId,
    pub(super) generation: u64,
    /// As the operator sent it, without the runtime policy's text.
    pub(super) enrolment: Enrolment,
}

/// An enrolment, checked and compiled: everything a judgement needs beyond the evidence.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    address: (String, u16),
    pub(super) ak: Arc<AttestationKey>,
    pub(super) tpm: TpmPolicy,
    pub(super) runtime: Option<Arc<RuntimePolicy>>,
    pub(super) boot: BootPolicy,
    pub(super) accept: AcceptedAlgorithms,
    /// Pinned to the key of the node's registered certificate; `None`: plain HTTP.
    tls: Option<Arc<ClientConfig>>,
}

/// What all nodes share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) timing: Timing,
    pub(super) workers: Workers,
    pub(super) writer: Writer,
    pub(super) request_timeout: Duration,
    pub(super) max_answer_size: usize,
    pub(super) large_answers: LargeAnswers,
}

/// Checks and compiles an enrolment. `identity` is the verifier's towards agents; `mtls_only`
/// refuses nodes without a certificate.
pub(super) fn rules(
    enrolment: &Enrolment,
    runtime: Option<Arc<RuntimePolicy>>,
    identity: &Identity,
    mtls_only: bool,
) -> Result<Rules, NodeError> {
    let host = enrolment.cloudagent_ip.clone().unwrap_or_default();
    if !crate::registrar::is_host(&host) {
        return Err(NodeError::Address("cloudagent_ip"));
    }
    let port = enrolment.cloudagent_port.filter(|port| *port != 0);
    let port = port.ok_or(NodeError::Address("cloudagent_port"))?;

    let ak = STANDARD
        .decode(&enrolment.ak_tpm)
        .map_err(|_| NodeError::AkEncoding)?;
    let ak = Public::from_tpm2b(&ak).map_err(NodeError::AkStructure)?;
    check_ak(&ak).map_err(NodeError::AkUnsafe)?;
    let ak = Arc::new(AttestationKey::new(&ak).map_err(NodeError::AkUnusable)?);

    let tpm = TpmPolicy::parse(&enrolment.tpm_policy).map_err(|source| NodeError::Policy {
        member: "tpm_policy",
        source,
    })?;
    let boot =
        BootPolicy::parse(enrolment.mb_policy.as_deref()).map_err(|source| NodeError::Policy {
            member: "mb_policy",
            source,
        })?;
    let missing = PcrMask::from_bits(boot.mask().bits() & !tpm.mask().bits()).unwrap_or_default();
    if !missing.is_empty() {
        return Err(NodeError::Mask {
            policy: "mb_policy",
            missing,
        });
    }
    check_mask(runtime.as_deref(), &tpm)?;
    if !is_blank(enrolment.ima_sign_verification_keys.as_deref()) {
        return Err(NodeError::Unsupported("ima_sign_verification_keys"));
    }
    if !is_blank(enrolment.mb_policy_name.as_deref()) {
        return Err(NodeError::Unsupported("mb_policy_name"));
    }
    let accept = AcceptedAlgorithms {
        hash: enrolment.accept_tpm_hash_algs.clone(),
        encryption: enrolment.accept_tpm_encryption_algs.clone(),
        signing: enrolment.accept_tpm_signing_algs.clone(),
    };
    let tls = match enrolment.mtls_cert.as_deref() {
        None | Some("" | "disabled") if mtls_only => return Err(NodeError::MtlsRequired),
        None | Some("" | "disabled") => None,
        Some(pem) => {
            let certificate = certificates_from_pem(pem.as_bytes())
                .map_err(NodeError::Certificate)?
                .into_iter()
                .next()
                .ok_or(NodeError::Certificate(TlsError::NoCertificate))?;
            let trust = ServerTrust::Pinned(certificate);
            Some(client_config(trust, Some(identity)).map_err(NodeError::Certificate)?)
        }
    };
    Ok(Rules {
        address: (host, port),
        ak,
        tpm,
        runtime,
        boot,
        accept,
        tls,
    })
}

/// A policy that needs the IMA list needs its PCR quoted.
fn check_mask(runtime: Option<&RuntimePolicy>, tpm: &TpmPolicy) -> Result<(), NodeError> {
    let requires_ima = runtime.is_some_and(RuntimePolicy::requires_ima);
    if requires_ima && !tpm.mask().contains(IMA_PCR) {
        return Err(NodeError::Mask {
            policy: "runtime_policy",
            missing: PcrMask::default().with(IMA_PCR),
        });
    }
    Ok(())
}

impl Rules {
    /// The same with another runtime policy.
    pub(super) fn with_runtime(&self, runtime: Arc<RuntimePolicy>) -> Result<Self, NodeError> {
        check_mask(Some(&runtime), &self.tpm)?;
        Ok(Self {
            runtime: Some(runtime),
            ..self.clone()
        })
    }

    fn connect(&self, shared: &Shared) -> Client {
        let (host, port) = &self.address;
        Client::new(host, *port, self.tls.clone(), shared.request_timeout)
            .body_limit(shared.max_answer_size)
            .share(&shared.large_answers)
    }
}

/// Absent, null, empty, or an empty JSON object: nothing is asked for.
pub(super) fn is_blank(text: Option<&str>) -> bool {
    matches!(text.map(str::trim), None | Some("" | "null" | "{}" | "[]"))
}

/// An enrolment that cannot be judged by, with the member to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// No usable address or port.
    #[error("{0} is missing or not usable")]
    Address(&'static str),
    /// Not base64.
    #[error("ak_tpm is not base64")]
    AkEncoding,
    /// Not a TPM2B_PUBLIC.
    #[error("ak_tpm: {0}")]
    AkStructure(StructureError),
    /// The host could forge quotes with it.
    #[error("ak_tpm: {0}")]
    AkUnsafe(IdentityError),
    /// No quotes can be checked with it.
    #[error("ak_tpm: {0}")]
    AkUnusable(KeyError),
    /// The registered certificate cannot be pinned.
    #[error("mtls_cert: {0}")]
    Certificate(TlsError),
    /// The policy needs PCRs that the quote would not have.
    #[error("tpm_policy: the mask lacks PCRs {missing}, which {policy} needs")]
    Mask {
        /// Which policy.
        policy: &'static str,
        /// The PCRs.
        missing: PcrMask,
    },
    /// Keylime's text for a node without a certificate.
    #[error("mTLS certificate for agent is required!")]
    MtlsRequired,
    /// A policy that no engine can read.
    #[error("{member}: {source}")]
    Policy {
        /// Which member.
        member: &'static str,
        /// The reason.
        source: PolicyError,
    },
    /// Something that would be ignored silently.
    #[error("{0} is not supported by this verifier; leave it out")]
    Unsupported(&'static str),
}

/// What a node's task is told.
#[derive(Debug)]
pub(super) enum Command {
    Stop(oneshot::Sender<()>),
    Reactivate(oneshot::Sender<()>),
}

/// A node under attestation. The task owns the schedule, readers share the shown record.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) enrolled: Enrolled,
    /// The reason when a stored enrolment cannot be judged by any more.
    rules: RwLock<Result<Arc<Rules>, String>>,
    record: Mutex<NodeRecord>,
    /// The record as it is in the database: what a reader was shown is never lost.
    shown: Mutex<Arc<NodeRecord>>,
}

impl Node {
    pub(super) fn new(enrolled: Enrolled, rules: Rules, record: NodeRecord) -> Self {
        Self {
            enrolled,
            rules: RwLock::new(Ok(Arc::new(rules))),
            shown: Mutex::new(Arc::new(record.clone())),
            record: Mutex::new(record),
        }
    }

    /// A stored node that stays visible, but cannot be judged: `reason` says why.
    pub(super) fn broken(enrolled: Enrolled, reason: String, mut record: NodeRecord) -> Self {
        record.broken(&reason);
        Self {
            enrolled,
            rules: RwLock::new(Err(reason)),
            shown: Mutex::new(Arc::new(record.clone())),
            record: Mutex::new(record),
        }
    }

    /// What the node is judged by, or why it cannot be.
    pub(super) fn rules(&self) -> Result<Arc<Rules>, String> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        rules.clone()
    }

    /// Judges by `rules` from the next question on; what was checked before stays checked.
    pub(super) fn adopt(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Ok(Arc::new(rules));
    }

    /// The record to show.
    pub(super) fn shown(&self) -> Arc<NodeRecord> {
        Arc::clone(&self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The record; held for moments only, never over an await.
    fn record(&self) -> MutexGuard<'_, NodeRecord> {
        // Transitions do not panic half-way; a poisoned record is still the last whole one.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the record, and shows it when it is written.
    async fn save(&self, writer: &Writer) {
        let record = Arc::new(self.record().clone());
        match serde_json::to_string(&*record) {
            Ok(text) => {
                let update = RecordUpdate {
                    agent_id: self.enrolled.id.as_str().to_owned(),
                    generation: self.enrolled.generation,
                    operational_state: record.operational,
                    record: text,
                };
                writer.write(update).await;
                *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = record;
            }
            Err(error) => {
                tracing::error!(node_id = %self.enrolled.id, %error, "record cannot be written");
            }
        }
    }

    /// Runs the node until the sender of `commands` is gone.
    pub(super) async fn run(
        self: Arc<Self>,
        shared: Shared,
        mut commands: mpsc::Receiver<Command>,
        first_wait: Duration,
    ) {
        let mut due = self.record().active().then(|| Instant::now() + first_wait);
        // Made when needed, dropped when the node is not asked: a stopped node costs no socket.
        let mut client = None;
        // The agent may have restarted, or we have: ask for its key again.
        let mut full = true;
        loop {
            let command = match due {
                None => {
                    client = None;
                    commands.recv().await
                }
                Some(due_at) => {
                    let turn = async {
                        sleep_until(due_at).await;
                        // A node without rules is never due.
                        let Ok(rules) = self.rules() else {
                            return (None, false);
                        };
                        let client = client.get_or_insert_with(|| rules.connect(&shared));
                        self.attest(&shared, &rules, client, full).await
                    };
                    tokio::select! {
                        biased;
                        command = commands.recv() => command,
                        (wait, passed) = turn => {
                            due = wait.map(|wait| Instant::now() + wait);
                            full = !passed;
                            continue;
                        }
                    }
                }
            };
            let done = match command {
                None => return,
                Some(Command::Stop(done)) => {
                    self.record().stop();
                    tracing::info!(node_id = %self.enrolled.id, "stopped by an operator");
                    due = None;
                    done
                }
                Some(Command::Reactivate(done)) if self.rules().is_err() => done,
                Some(Command::Reactivate(done)) => {
                    self.record().reactivate();
                    tracing::info!(node_id = %self.enrolled.id, "reactivated by an operator");
                    client = None;
                    full = true;
                    due = Some(Instant::now());
                    done
                }
            };
            self.save(&shared.writer).await;
            let _ = done.send(());
        }
    }

    /// Asks once and records the outcome; the wait until the next turn, and whether it passed.
    async fn attest(
        &self,
        shared: &Shared,
        rules: &Arc<Rules>,
        client: &Client,
        full: bool,
    ) -> (Option<Duration>, bool) {
        let started = now();
        let question = {
            let record = self.record();
            Question {
                rules: Arc::clone(rules),
                state: record.node.clone(),
                version: record.version.clone(),
                attested: record.attestation_count > 0,
                full: full || record.node.pubkey.is_none(),
            }
        };
        let reply = ask(client, &shared.workers, question).await;
        let passed = matches!(reply.outcome, super::state::Outcome::Trusted { .. });
        let finished = now();
        let step = {
            let mut record = self.record();
            record.version = reply.version;
            let mut step = record.apply(reply.outcome, started, finished, &shared.timing);
            if record.retries > 0 {
                // A rack that lost its switch must not come back in one instant.
                step.wait = step
                    .wait
                    .map(|wait| wait.mul_f64(1.0 + rand::random::<f64>() / 10.0));
                record.due_at_ms = step.wait.map_or(0, |wait| milliseconds(finished + wait));
            }
            step
        };
        self.tell(step.event, finished.saturating_sub(started));
        self.save(&shared.writer).await;
        (step.wait, passed)
    }

    /// Journal entries: every change with its MESSAGE_ID, every outcome for debugging.
    fn tell(&self, event: Option<Event>, took: Duration) {
        let record = self.record();
        let id = self.enrolled.id.as_str();
        let verdict = record.state;
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match event {
            None => tracing::debug!(
                node_id = id, verdict = ?verdict, entries = record.ima_entries, took_us,
                "asked: {}", record.reason
            ),
            Some(Event::FirstTrusted) => tracing::info!(
                message_id = messages::FIRST_TRUSTED,
                node_id = id,
                verdict = "trusted",
                entries = record.ima_entries,
                took_us,
                "node {id} is trusted"
            ),
            Some(Event::Recovered) => tracing::info!(
                message_id = messages::RECOVERED,
                node_id = id,
                verdict = "trusted",
                entries = record.ima_entries,
                took_us,
                "node {id} is trusted again"
            ),
            Some(Event::Failed) => {
                for finding in record.findings.iter().take(10) {
                    tracing::error!(
                        message_id = messages::FAILED,
                        node_id = id,
                        verdict = "failed",
                        finding = finding.id,
                        place = ?finding.place,
                        expected = ?finding.expected,
                        got = finding.got,
                        action = finding.action,
                        findings_total = record.findings_total,
                        "node {id} is not trusted: {}", finding.explanation
                    );
                }
            }
            Some(Event::Unreachable) => tracing::warn!(
                message_id = messages::UNREACHABLE,
                node_id = id,
                verdict = "unreachable",
                finding = record.last_event_id,
                "node {id} does not answer: {}",
                record.reason
            ),
        }
    }
}
