use std::{
    cmp::Reverse,
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use troth_core::{
    appraise::{Finding, NodeState},
    eventlog::Trail,
    finding::severity::{Severities, Severity},
    ima::ImaPosition,
    wire::{BootQuirk, RatedFinding, TrothStatus},
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
    /// The last evidence did not pass. Whether it is asked again is up to the severity.
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
    /// Does the agent send systemd's log? `None`: it was not asked since the host's last boot, or
    /// since it may have become another agent.
    #[serde(default)]
    pub(crate) userspace_log: Option<bool>,
    pub(crate) algorithms: Algorithms,
    pub(crate) attestation_count: u64,
    /// Unix seconds, 0: never.
    pub(crate) last_received_quote: u64,
    /// Unix seconds, 0: never.
    pub(crate) last_successful_attestation: u64,
    /// Unix milliseconds since when it is in this state, 0: an earlier version did not record it.
    #[serde(default)]
    since_ms: u64,
    /// Unix milliseconds of the last verdict, 0: never.
    pub(crate) judged_at_ms: u64,
    /// Unix milliseconds of the next question, 0: none.
    pub(crate) due_at_ms: u64,
    pub(crate) ima_entries: u64,
    /// PCRs of the last judged boot log that only a quirk of the firmware explains.
    #[serde(default)]
    pub(crate) boot_quirks: Vec<BootQuirk>,
    /// Keylime's number of the worst finding since the node was last trusted or reactivated.
    pub(crate) severity_level: Option<u8>,
    /// The label of that number.
    #[serde(default)]
    pub(crate) severity: Option<String>,
    /// The first finding that had it.
    pub(crate) last_event_id: Option<String>,
    /// Of the last failed verdict, the most severe first.
    pub(crate) findings: Vec<RatedFinding>,
    pub(crate) findings_total: u64,
    /// Is a failed node asked on, as none of its findings has the highest severity?
    #[serde(default)]
    tolerated: bool,
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
        boot_quirks: Vec<BootQuirk>,
        /// What the log of a boot tells that is not kept yet.
        boot: Option<Box<Trail>>,
    },
    /// At least one finding.
    Failed {
        findings: Vec<Finding>,
        /// How many there are, with those that were only counted.
        total: u64,
        /// Those that were only counted and may be of any kind.
        unseen: u64,
        node: Option<NodeState>,
        algorithms: Option<Algorithms>,
        boot_quirks: Vec<BootQuirk>,
        /// The log of a boot that is not as it has to be.
        boot: Option<FailedBoot>,
    },
    /// The host has booted since the last answer: ask again from the start of its list.
    Rebooted { node: NodeState },
    /// No evidence: the reason for people.
    NoAnswer { reason: String },
}

/// The log of a boot that is not as it has to be.
#[derive(Debug)]
pub(crate) struct FailedBoot {
    /// A hash of the log.
    pub(crate) log: u64,
    /// What it tells; `None`: that is known of the log before, which was the same.
    pub(crate) trail: Option<Box<Trail>>,
}

/// A change that operators are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    FirstTrusted,
    /// It failed, or a node that had failed has new findings.
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
            userspace_log: None,
            algorithms: Algorithms::default(),
            attestation_count: 0,
            last_received_quote: 0,
            last_successful_attestation: 0,
            since_ms: milliseconds(now()),
            judged_at_ms: 0,
            due_at_ms: 0,
            ima_entries: 0,
            boot_quirks: Vec::new(),
            severity_level: None,
            severity: None,
            last_event_id: None,
            findings: Vec::new(),
            findings_total: 0,
            tolerated: false,
            retries: 0,
            told: Told::Nothing,
            reboots: 0,
        }
    }

    /// Is the node asked on schedule?
    pub(crate) fn active(&self) -> bool {
        match self.state {
            State::Failed => self.tolerated,
            State::Stopped => false,
            State::Pending | State::Trusted | State::Unreachable => true,
        }
    }

    /// The verifier starts again: nothing is known of the time in between.
    pub(crate) fn resume(&mut self) {
        if self.state == State::Trusted {
            self.enter(State::Pending, now());
            self.operational = operational::START;
            self.reason = String::from("the verifier was restarted; waiting for new evidence");
        }
    }

    /// An operator wants the node judged anew: from the first entry of its list, or, after a
    /// failure, from the first entry with a finding.
    pub(crate) fn reactivate(&mut self) {
        if self.state != State::Failed {
            self.node.ima = ImaPosition::default();
        }
        self.enter(State::Pending, now());
        self.operational = operational::START;
        self.reason = String::from("reactivated; waiting for new evidence");
        self.userspace_log = None;
        self.findings = Vec::new();
        self.findings_total = 0;
        self.retries = 0;
        self.reboots = 0;
    }

    /// An operator stops the polling.
    pub(crate) fn stop(&mut self) {
        self.enter(State::Stopped, now());
        self.operational = operational::STOPPED;
        self.reason = String::from("stopped by an operator; reactivate to go on");
        self.due_at_ms = 0;
    }

    /// The stored enrolment cannot be judged by any more.
    pub(crate) fn broken(&mut self, reason: &str) {
        self.enter(State::Stopped, now());
        self.operational = operational::FAILED;
        self.reason = format!("cannot be attested: {reason}; remove the node and enrol it again");
        self.due_at_ms = 0;
    }

    fn enter(&mut self, state: State, now: Duration) {
        if self.state != state {
            self.state = state;
            self.since_ms = milliseconds(now);
        }
    }

    /// Takes an outcome in. `started` is when the question was asked, `now` when the outcome was
    /// known, both since the Unix epoch.
    pub(crate) fn apply(
        &mut self,
        outcome: Outcome,
        started: Duration,
        now: Duration,
        timing: &Timing,
        severities: &Severities,
    ) -> Step {
        // Not more than an interval, should the clock have been set back meanwhile.
        let regular = (started + timing.interval)
            .saturating_sub(now)
            .min(timing.interval);
        let before = self.state;
        let step = match outcome {
            Outcome::Trusted {
                node,
                ima_entries,
                algorithms,
                boot_quirks,
                boot: _,
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
                self.boot_quirks = boot_quirks;
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
                findings,
                total,
                unseen,
                node,
                algorithms,
                boot_quirks,
                boot: _,
            } => {
                let worst = if unseen > 0 {
                    severities.highest()
                } else {
                    Severity::default()
                };
                let event = self.failed(findings, total, worst, severities);
                self.node = node.unwrap_or_else(|| self.node.clone());
                self.algorithms = algorithms.unwrap_or_else(|| self.algorithms.clone());
                self.boot_quirks = boot_quirks;
                self.judged(now);
                Step {
                    wait: self.tolerated.then_some(regular),
                    event,
                }
            }
            Outcome::Rebooted { node } => {
                // What had failed stays so until its next verdict.
                if self.state != State::Failed {
                    self.state = State::Pending;
                    self.reason =
                        String::from("the host has booted again; asking for its whole list");
                }
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
            Outcome::NoAnswer { reason } => self.silent(&reason, timing, severities),
        };
        self.due_at_ms = step.wait.map_or(0, |wait| milliseconds(now + wait));
        if self.state != before {
            self.since_ms = milliseconds(now);
        }
        step
    }

    fn judged(&mut self, now: Duration) {
        if self.retries > 0 {
            // Who was away may have been upgraded.
            self.userspace_log = self.userspace_log.filter(|sends| *sends);
        }
        self.retries = 0;
        self.reboots = 0;
        self.last_received_quote = now.as_secs();
        self.judged_at_ms = milliseconds(now);
    }

    /// The evidence did not pass. `worst` is the least severity that counts for it.
    fn failed(
        &mut self,
        findings: Vec<Finding>,
        total: u64,
        worst: Severity,
        severities: &Severities,
    ) -> Option<Event> {
        let rated = findings.into_iter().map(|finding| {
            let severity = severities.rate(&finding.id, finding.recoverable);
            (severity, finding)
        });
        let rated = bounded(rated.collect());
        let worst = rated.first().map_or(worst, |(first, _)| worst.max(*first));
        let labelled = rated.into_iter().map(|(severity, finding)| RatedFinding {
            finding,
            severity: Some(severities.label(severity).to_owned()),
        });
        let findings: Vec<_> = labelled.collect();
        let again = self.state == State::Failed && self.told == Told::Failed;
        if !again
            || self
                .severity_level
                .is_none_or(|level| level < worst.level())
        {
            self.severity_level = Some(worst.level());
            self.severity = Some(severities.label(worst).to_owned());
            self.last_event_id = findings.first().map(|first| first.finding.id.clone());
        }
        let news = self.told != Told::Failed || findings.iter().any(|found| self.is_new(found));
        self.told = Told::Failed;
        self.state = State::Failed;
        self.operational = operational::INVALID_QUOTE;
        self.tolerated = worst < severities.highest();
        self.findings = findings;
        self.findings_total = total;
        self.reason = self.why_failed();
        news.then_some(Event::Failed)
    }

    /// Is there nothing like it among the findings of the last verdict?
    pub(crate) fn is_new(&self, found: &RatedFinding) -> bool {
        let like = |known: &RatedFinding| {
            (&known.finding.id, &known.finding.place) == (&found.finding.id, &found.finding.place)
        };
        !self.findings.iter().any(like)
    }

    /// The first finding in a sentence.
    fn why_failed(&self) -> String {
        match self.findings.first() {
            Some(first) if self.findings_total > 1 => format!(
                "{} (and {} more findings)",
                first.finding.explanation,
                self.findings_total - 1
            ),
            Some(first) => first.finding.explanation.clone(),
            None => String::from("the evidence did not pass"),
        }
    }

    fn silent(&mut self, reason: &str, timing: &Timing, severities: &Severities) -> Step {
        let exhausted = self.retries >= timing.max_retries;
        self.retries = self.retries.saturating_add(1);
        let reason = format!("{reason} (attempt {})", self.retries);
        let failed = self.state == State::Failed;
        if failed {
            // Silence takes nothing back.
            self.reason = format!("{}; since then: {reason}", self.why_failed());
        } else {
            self.state = State::Unreachable;
            self.reason = reason;
        }
        let mut event = None;
        if exhausted {
            if self.told != Told::Unreachable {
                self.told = Told::Unreachable;
                event = Some(Event::Unreachable);
            }
            // Nor does it hide what was found.
            if !failed {
                self.operational = operational::FAILED;
                self.severity_level = Some(severities.highest().level());
                self.severity = Some(severities.label(severities.highest()).to_owned());
                self.last_event_id = Some(NOT_REACHABLE.to_owned());
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

    /// Unix milliseconds since when the node is in the state that is shown.
    fn since(&self, shown: &str, timing: &Timing) -> u64 {
        if shown == STALE {
            self.judged_at_ms
                .saturating_add(milliseconds(timing.stale_after()))
        } else {
            self.since_ms
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
            State::Failed | State::Stopped if !self.active() => self.reason.clone(),
            _ if state == STALE => {
                format!("no verdict since the last one; {attested}, {every}")
            }
            _ => format!("{}; {attested}, {every}", self.reason),
        };
        TrothStatus {
            state: state.to_owned(),
            reason,
            since_ms: self.since(state, timing),
            judged_at_ms: self.judged_at_ms,
            due_at_ms: self.due_at_ms,
            ima_entries: self.ima_entries,
            runtime_policy: None,
            boot_policy: None,
            boot_quirks: self.boot_quirks.clone(),
            severity: self.severity.clone(),
            findings: self.findings.clone(),
            findings_total: self.findings_total,
        }
    }
}

/// What a record may hold: when there are more, the first of each id go before the others of their
/// severity.
fn bounded(mut rated: Vec<(Severity, Finding)>) -> Vec<(Severity, Finding)> {
    rated.sort_by_key(|(severity, _)| Reverse(*severity));
    if rated.len() > MAX_FINDINGS {
        let mut ids = BTreeSet::new();
        let mut keyed: Vec<_> = rated
            .into_iter()
            .map(|(severity, finding)| (!ids.insert(finding.id.clone()), severity, finding))
            .collect();
        keyed.sort_by_key(|(repeated, severity, _)| (Reverse(*severity), *repeated));
        keyed.truncate(MAX_FINDINGS);
        rated = keyed
            .into_iter()
            .map(|(_, severity, finding)| (severity, finding))
            .collect();
    }
    let mut size = 0_usize;
    let fitting = rated.iter().take_while(|(_, finding)| {
        size += serde_json::to_string(finding).map_or(MAX_FINDINGS_SIZE, |text| text.len());
        size <= MAX_FINDINGS_SIZE
    });
    let fitting = fitting.count();
    rated.truncate(fitting.max(1));
    rated
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
