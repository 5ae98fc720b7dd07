use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use troth_core::{
    appraise::{Finding, NodeState},
    ima::ImaPosition,
    wire::TrothStatus,
};

use crate::config::VerifierConfig;

/// Keylime's operational states, as far as a pull-mode verifier uses them.
pub(crate) mod operational {
    /// Enrolled, restarted or reactivated; no verdict since.
    pub(crate) const START: u8 = 1;
    /// Attested periodically.
    pub(crate) const GET_QUOTE: u8 = 3;
    /// Does not answer.
    pub(crate) const FAILED: u8 = 7;
    /// Attestation failed.
    pub(crate) const INVALID_QUOTE: u8 = 9;
    /// Stopped by an operator.
    pub(crate) const STOPPED: u8 = 10;
}

/// Keylime's highest severity, `emergency`: the one that stops polling.
const EMERGENCY: u8 = 6;
/// Keylime's event of a node that does not answer.
const NOT_REACHABLE: &str = "internal.verifier.not_reachable";
/// Findings kept of one verdict; the rest is counted.
const MAX_FINDINGS: usize = 100;
/// Bytes of all but the first of them as JSON: names come from the node, and can be long.
const MAX_FINDINGS_SIZE: usize = 256 * 1024;
/// A verdict older than this many intervals says nothing about now.
const STALE_INTERVALS: u32 = 5;
/// What a verdict becomes with time.
const STALE: &str = "stale";
/// Reboots in a row after which a node has to wait for its next turn.
const MAX_REBOOTS: u32 = 3;

/// When nodes are asked.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From the start of one attestation to the start of the next.
    pub interval: Duration,
    /// First wait after silence; the base of the power with `exponential`.
    pub retry: Duration,
    /// Wait `retry` to the power of the attempt.
    pub exponential: bool,
    /// Attempts after which a silent node is in state 7.
    pub max_retries: u32,
    /// Longest wait between two attempts.
    pub max_retry: Duration,
}

impl Timing {
    /// As configured.
    pub fn new(config: &VerifierConfig) -> Self {
        Self {
            interval: config.quote_interval.0,
            retry: config.retry_interval.0,
            exponential: config.exponential_backoff,
            max_retries: config.max_retries,
            max_retry: config.max_retry_interval.0,
        }
    }

    /// Age from which a verdict is stale.
    pub fn stale_after(&self) -> Duration {
        self.interval
            .saturating_mul(STALE_INTERVALS)
            .max(Duration::from_secs(1))
    }

    /// The wait before attempt `attempt` (from 1), without jitter.
    fn backoff(&self, attempt: u32) -> Duration {
        let base = self.retry.as_secs_f64();
        let seconds = if self.exponential && base > 1.0 {
            base.powi(i32::try_from(attempt).unwrap_or(i32::MAX))
        } else {
            base
        };
        // `min` first: the power may be too large for a Duration.
        Duration::from_secs_f64(seconds.min(self.max_retry.as_secs_f64()))
    }
}

/// Troth's view of a node. `stale` is not among them: it is what a `Trusted` becomes with time.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No verdict since enrolment, reactivation, a restart of the verifier or a boot of the host.
    Pending,
    /// The last evidence passed every check.
    Trusted,
    /// The last evidence did not pass; polling has stopped.
    Failed,
    /// It does not answer: neither good nor bad is known. It is asked again and again.
    Unreachable,
    /// An operator stopped the polling.
    Stopped,
}

/// What operators were told last, so that each change is told once, over restarts too.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    #[default]
    Nothing,
    Trusted,
    Failed,
    Unreachable,
}

/// Algorithms of the last quote, as the agent named them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Algorithms {
    pub(crate) hash: String,
    pub(crate) encryption: String,
    pub(crate) signing: String,
}

/// Everything the verifier knows about a node beyond its enrolment; kept over restarts.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeRecord {
    pub(crate) state: State,
    /// Keylime's number for it.
    pub(crate) operational: u8,
    /// One sentence: why this state, without times.
    pub(crate) reason: String,
    /// What the next appraisal continues from.
    pub(crate) node: NodeState,
    /// Agent API version to speak.
    pub(crate) version: String,
    pub(crate) algorithms: Algorithms,
    pub(crate) attestation_count: u64,
    /// Unix seconds, 0: never.
    pub(crate) last_received_quote: u64,
    /// Unix seconds, 0: never.
    pub(crate) last_successful_attestation: u64,
    /// Unix milliseconds of the last verdict, 0: never.
    pub(crate) judged_at_ms: u64,
    /// Unix milliseconds of the next question, 0: none.
    pub(crate) due_at_ms: u64,
    pub(crate) ima_entries: u64,
    pub(crate) severity_level: Option<u8>,
    pub(crate) last_event_id: Option<String>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) findings_total: u64,
    /// Attempts since the last answer.
    pub(crate) retries: u32,
    #[serde(default)]
    told: Told,
    /// Reboots in a row.
    #[serde(skip)]
    reboots: u32,
}

/// What came of one question.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Every check passed.
    Trusted {
        node: NodeState,
        ima_entries: u64,
        algorithms: Algorithms,
    },
    /// At least one finding.
    Failed {
        findings: Vec<Finding>,
        /// How many there are, with those that were only counted.
        total: u64,
        node: Option<NodeState>,
        algorithms: Option<Algorithms>,
    },
    /// The host has booted since the last answer: ask again from the start of its list.
    Rebooted { node: NodeState },
    /// No evidence: the reason for people.
    NoAnswer { reason: String },
}

/// A change that operators are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    FirstTrusted,
    Failed,
    Recovered,
    Unreachable,
}

/// What follows from an outcome.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Step {
    /// When to ask again, counted from now; `None`: not before somebody says so.
    pub(crate) wait: Option<Duration>,
    /// Whom to tell what.
    pub(crate) event: Option<Event>,
}

impl NodeRecord {
    /// A node that was just enrolled.
    pub(crate) fn new(version: String) -> Self {
        Self {
            state: State::Pending,
            operational: operational::START,
            reason: String::from("enrolled; no evidence has been judged yet"),
            node: NodeState::default(),
            version,
            algorithms: Algorithms::default(),
            attestation_count: 0,
            last_received_quote: 0,
            last_successful_attestation: 0,
            judged_at_ms: 0,
            due_at_ms: 0,
            ima_entries: 0,
            severity_level: None,
            last_event_id: None,
            findings: Vec::new(),
            findings_total: 0,
            retries: 0,
            told: Told::Nothing,
            reboots: 0,
        }
    }

    /// Is the node asked on schedule?
    pub(crate) fn active(&self) -> bool {
        !matches!(self.state, State::Failed | State::Stopped)
    }

    /// The verifier starts again: nothing is known of the time in between.
    pub(crate) fn resume(&mut self) {
        if self.state == State::Trusted {
            self.state = State::Pending;
            self.operational = operational::START;
            self.reason = String::from("the verifier was restarted; waiting for new evidence");
        }
    }

    /// An operator wants the node judged anew, from the first entry of its list.
    pub(crate) fn reactivate(&mut self) {
        self.state = State::Pending;
        self.operational = operational::START;
        self.reason = String::from("reactivated; waiting for new evidence");
        self.node.ima = ImaPosition::default();
        self.findings = Vec::new();
        self.findings_total = 0;
        self.retries = 0;
        self.reboots = 0;
    }

    /// An operator stops the polling.
    pub(crate) fn stop(&mut self) {
        self.state = State::Stopped;
        self.operational = operational::STOPPED;
        self.reason = String::from("stopped by an operator; reactivate to go on");
        self.due_at_ms = 0;
    }

    /// The stored enrolment cannot be judged by any more.
    pub(crate) fn broken(&mut self, reason: &str) {
        self.state = State::Stopped;
        self.operational = operational::FAILED;
        self.reason = format!("cannot be attested: {reason}; remove the node and enrol it again");
        self.due_at_ms = 0;
    }

    /// Takes an outcome in. `started` is when the question was asked, `now` when the outcome was
    /// known, both since the Unix epoch.
    pub(crate) fn apply(
        &mut self,
        outcome: Outcome,
        started: Duration,
        now: Duration,
        timing: &Timing,
    ) -> Step {
        // Not more than an interval, should the clock have been set back meanwhile.
        let regular = (started + timing.interval)
            .saturating_sub(now)
            .min(timing.interval);
        let step = match outcome {
            Outcome::Trusted {
                node,
                ima_entries,
                algorithms,
            } => {
                let event = match self.told {
                    Told::Nothing => Some(Event::FirstTrusted),
                    Told::Trusted => None,
                    Told::Failed | Told::Unreachable => Some(Event::Recovered),
                };
                self.told = Told::Trusted;
                self.state = State::Trusted;
                self.operational = operational::GET_QUOTE;
                self.reason = String::from("the evidence passed every check");
                self.node = node;
                self.ima_entries = ima_entries;
                self.algorithms = algorithms;
                self.findings = Vec::new();
                self.findings_total = 0;
                self.attestation_count += 1;
                self.last_successful_attestation = now.as_secs();
                self.judged(now);
                Step {
                    wait: Some(regular),
                    event,
                }
            }
            Outcome::Failed {
                mut findings,
                total,
                node,
                algorithms,
            } => {
                self.told = Told::Failed;
                self.state = State::Failed;
                self.operational = operational::INVALID_QUOTE;
                self.findings_total = total;
                bound(&mut findings);
                self.reason = match findings.first() {
                    Some(finding) if self.findings_total > 1 => format!(
                        "{} (and {} more findings)",
                        finding.explanation,
                        self.findings_total - 1
                    ),
                    Some(finding) => finding.explanation.clone(),
                    None => String::from("the evidence did not pass"),
                };
                self.severity_level = Some(EMERGENCY);
                self.last_event_id = findings.first().map(|finding| finding.id.clone());
                self.findings = findings;
                self.node = node.unwrap_or_else(|| self.node.clone());
                self.algorithms = algorithms.unwrap_or_else(|| self.algorithms.clone());
                self.judged(now);
                Step {
                    wait: None,
                    event: Some(Event::Failed),
                }
            }
            Outcome::Rebooted { node } => {
                self.state = State::Pending;
                self.reason = String::from("the host has booted again; asking for its whole list");
                self.node = node;
                self.retries = 0;
                self.reboots += 1;
                let wait = if self.reboots < MAX_REBOOTS {
                    Duration::ZERO
                } else {
                    regular
                };
                Step {
                    wait: Some(wait),
                    event: None,
                }
            }
            Outcome::NoAnswer { reason } => self.silent(&reason, timing),
        };
        self.due_at_ms = step.wait.map_or(0, |wait| milliseconds(now + wait));
        step
    }

    fn judged(&mut self, now: Duration) {
        self.retries = 0;
        self.reboots = 0;
        self.last_received_quote = now.as_secs();
        self.judged_at_ms = milliseconds(now);
    }

    fn silent(&mut self, reason: &str, timing: &Timing) -> Step {
        let exhausted = self.retries >= timing.max_retries;
        self.retries = self.retries.saturating_add(1);
        self.state = State::Unreachable;
        self.reason = format!("{reason} (attempt {})", self.retries);
        let mut event = None;
        if exhausted {
            self.operational = operational::FAILED;
            if self.told != Told::Unreachable {
                self.told = Told::Unreachable;
                self.severity_level = Some(EMERGENCY);
                self.last_event_id = Some(NOT_REACHABLE.to_owned());
                event = Some(Event::Unreachable);
            }
        }
        Step {
            wait: Some(timing.backoff(self.retries)),
            event,
        }
    }

    /// The state's name at `now` (since the Unix epoch); an old `trusted` is `stale`.
    pub(crate) fn shown_state(&self, now: Duration, timing: &Timing) -> &'static str {
        match self.state {
            State::Pending => "pending",
            State::Trusted if self.out_of_date(now, timing) => STALE,
            State::Trusted => "trusted",
            State::Failed => "failed",
            State::Unreachable => "unreachable",
            State::Stopped => "stopped",
        }
    }

    /// Keylime's word for the state at `now`: its PASS must not outlive what Troth itself would say.
    pub(crate) fn attestation_status(&self, now: Duration, timing: &Timing) -> &'static str {
        use operational::{FAILED, GET_QUOTE, INVALID_QUOTE, STOPPED};
        match (self.operational, self.shown_state(now, timing)) {
            (GET_QUOTE, "trusted") => "PASS",
            (FAILED | INVALID_QUOTE | STOPPED, _) => "FAIL",
            (_, STALE) => "TIMEOUT",
            _ => "PENDING",
        }
    }

    /// Time since the last verdict.
    fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_millis(self.judged_at_ms))
    }

    /// Does the last verdict say nothing about `now`? One from the future neither: the clock was set
    /// back, and how old it is nobody knows.
    fn out_of_date(&self, now: Duration, timing: &Timing) -> bool {
        now.abs_diff(Duration::from_millis(self.judged_at_ms)) > timing.stale_after()
    }

    /// The status for operators at `now` (since the Unix epoch).
    pub(crate) fn status(&self, now: Duration, timing: &Timing) -> TrothStatus {
        let age = self.age(now);
        let attested = if self.judged_at_ms == 0 {
            String::from("never attested")
        } else if milliseconds(now + timing.stale_after()) < self.judged_at_ms {
            String::from("attested before the clock was set back")
        } else {
            format!("attested {} s ago", age.as_secs())
        };
        let every = format!("due every {} s", timing.interval.as_secs_f64());
        let state = self.shown_state(now, timing);
        let reason = match self.state {
            State::Failed | State::Stopped => self.reason.clone(),
            _ if state == STALE => {
                format!("no verdict since the last one; {attested}, {every}")
            }
            _ => format!("{}; {attested}, {every}", self.reason),
        };
        TrothStatus {
            state: state.to_owned(),
            reason,
            judged_at_ms: self.judged_at_ms,
            due_at_ms: self.due_at_ms,
            ima_entries: self.ima_entries,
            runtime_policy: None,
            boot_policy: None,
            findings: self.findings.clone(),
            findings_total: self.findings_total,
        }
    }
}

/// Keeps what a record may hold, from the first finding on.
fn bound(findings: &mut Vec<Finding>) {
    findings.truncate(MAX_FINDINGS);
    let mut size = 0_usize;
    let fitting = findings.iter().take_while(|finding| {
        size += serde_json::to_string(finding).map_or(MAX_FINDINGS_SIZE, |text| text.len());
        size <= MAX_FINDINGS_SIZE
    });
    let fitting = fitting.count();
    findings.truncate(fitting.max(1));
}

/// Time since the Unix epoch.
pub(crate) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
