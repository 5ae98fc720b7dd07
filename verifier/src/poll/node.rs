use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tracing::Level;
use troth_core::{
    appraise::{Finding, KnownBoot, Place},
    finding::severity::Severities,
    identity::AgentId,
    policy::BootEngine,
    wire::{Enrolment, RatedFinding, SecretText},
};
use troth_daemon::client::{Client, LargeAnswers};

use super::{
    ask::{Question, ask},
    judge::Workers,
    keep,
    last_boot::{self, LastBoot},
    rules::Rules,
    share::Share,
    state::{Event, NodeRecord, Timing, milliseconds, now},
    writer::Writer,
};
use crate::{
    evidence::Keeper,
    messages,
    store::{RecordUpdate, Store},
};

/// An event at a level that is known only when it happens, which tracing's macros do not take.
macro_rules! told {
    ($level:expr, $($fields:tt)+) => {
        match $level {
            Level::ERROR => tracing::error!($($fields)+),
            Level::WARN => tracing::warn!($($fields)+),
            _ => tracing::info!($($fields)+),
        }
    };
}

/// A node as the operator described it.
#[derive(Debug)]
pub(super) struct Enrolled {
    pub(super) id: AgentId,
    pub(super) generation: u64,
    /// As the operator sent it, without the runtime policy's text.
    pub(super) enrolment: Enrolment,
}

/// What all nodes share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) timing: Timing,
    pub(super) severities: Arc<Severities>,
    pub(super) workers: Workers,
    pub(super) writer: Writer,
    pub(super) store: Store,
    pub(super) request_timeout: Duration,
    pub(super) max_answer_size: usize,
    pub(super) large_answers: LargeAnswers,
    /// What a boot policy's text means here.
    pub(super) boot_engine: BootEngine,
    /// `None`: no evidence is kept.
    pub(super) keeper: Option<Keeper>,
    /// Boots that were judged good are judged again with every answer.
    pub(super) judge_again: bool,
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
        let mut share = Share::default();
        let mut boots = LastBoot::default();
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
                        // Boxed, so that a waiting node does not have the room for it.
                        Box::pin(async {
                            let turn = self.attest(&shared, &rules, client, full, &mut boots).await;
                            if turn.1 {
                                self.hand_over(&mut share, client).await;
                            }
                            turn
                        })
                        .await
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
                    due = None;
                    done
                }
                Some(Command::Reactivate(done)) if self.rules().is_err() => done,
                Some(Command::Reactivate(done)) => {
                    self.record().reactivate();
                    client = None;
                    full = true;
                    share = Share::default();
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
        boots: &mut LastBoot,
    ) -> (Option<Duration>, bool) {
        let started = now();
        let question = {
            let record = self.record();
            let mut state = record.node.clone();
            if shared.judge_again {
                state.known_boot = KnownBoot::default();
            }
            Question {
                rules: Arc::clone(rules),
                state,
                boots: boots.remembered(),
                version: record.version.clone(),
                attested: record.attestation_count > 0,
                full: full || record.node.pubkey.is_none(),
                userspace_log: record.userspace_log,
                keep: shared.keeper.as_ref().map(Keeper::keep),
            }
        };
        let mut reply = ask(client, &shared.workers, question).await;
        boots
            .explain(&shared.store, &self.enrolled, &mut reply.outcome)
            .await;
        let trusted_boot = last_boot::trusted(&mut reply.outcome);
        let passed = matches!(reply.outcome, super::state::Outcome::Trusted { .. });
        let finished = now();
        let (step, changed) = {
            let mut record = self.record();
            record.version = reply.version;
            record.userspace_log = reply.userspace_log;
            let before = record.state;
            let mut step = record.apply(
                reply.outcome,
                started,
                finished,
                &shared.timing,
                &shared.severities,
            );
            if record.retries > 0 {
                // A rack that lost its switch must not come back in one instant.
                step.wait = step
                    .wait
                    .map(|wait| wait.mul_f64(1.0 + rand::random::<f64>() / 10.0));
                record.due_at_ms = step.wait.map_or(0, |wait| milliseconds(finished + wait));
            }
            (step, record.state != before)
        };
        if let (Some(keeper), Some(exchange)) = (&shared.keeper, reply.exchange)
            && keeper.keep().wants(exchange.outcome.verdict, changed)
        {
            let job = keep::job(&self.enrolled, rules, shared.boot_engine, exchange);
            keeper.offer(job);
        }
        let took = finished.saturating_sub(started);
        self.tell(step.event, took, &shared.severities);
        self.save(&shared.writer).await;
        let mut wait = step.wait;
        if let Some(boot) = trusted_boot {
            let begun = Instant::now();
            boots.keep(&shared.store, &self.enrolled, boot).await;
            wait = wait.map(|wait| wait.saturating_sub(begun.elapsed()));
        }
        (wait, passed)
    }

    /// Gives a node that was just trusted its half of the payload key, if it has one.
    async fn hand_over(&self, share: &mut Share, client: &Client) {
        let v = self.enrolled.enrolment.v.as_ref().map(SecretText::expose);
        let Some(v) = v.filter(|v| !v.is_empty()) else {
            return;
        };
        let (nk, version) = {
            let record = self.record();
            (record.node.pubkey.clone(), record.version.clone())
        };
        if let Some(nk) = nk {
            let id = &self.enrolled.id;
            share.hand_over(v, id, &nk, &version, client).await;
        }
    }

    /// Journal entries: every change with its MESSAGE_ID, every outcome for debugging.
    fn tell(&self, event: Option<Event>, took: Duration, severities: &Severities) {
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
                let before = self.shown();
                let all_known = !record.findings.iter().any(|found| before.is_new(found));
                let told = record.findings.iter();
                let told = told.filter(|found| all_known || before.is_new(found));
                for RatedFinding { finding, severity } in told.take(10) {
                    let level = priority(severity.as_deref(), severities);
                    told!(
                        level,
                        message_id = messages::FAILED,
                        node_id = id,
                        verdict = "failed",
                        finding = finding.id,
                        severity,
                        place = ?finding.place,
                        pcr = pcr(finding),
                        expected = ?finding.expected,
                        got = finding.got,
                        action = finding.action,
                        findings_total = record.findings_total,
                        "node {id} is not trusted: {}",
                        finding.explanation
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

/// The journal's priority of a finding: that of its label where syslog knows it. A site's own labels
/// are errors if they end the attestation, else warnings. Nothing is above `err`: the journal shows
/// emergencies on the terminals of everybody who is logged in.
fn priority(label: Option<&str>, severities: &Severities) -> Level {
    match label {
        Some("debug" | "info" | "notice") => Level::INFO,
        Some("warning") => Level::WARN,
        Some("error" | "critical" | "alert" | "emergency") | None => Level::ERROR,
        Some(label) if label == severities.label(severities.highest()) => Level::ERROR,
        Some(_) => Level::WARN,
    }
}

/// The PCR that a finding is about, if it is about one.
fn pcr(finding: &Finding) -> Option<u8> {
    match finding.place {
        Place::Pcr(pcr) | Place::BootEvent { pcr, .. } => Some(pcr),
        _ => None,
    }
}
