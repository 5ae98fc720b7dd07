use super::boot_refstate::Reason;
use super::{Finding, Place, boot_refstate, boot_rules};
use crate::eventlog::{Event, EventLog, Measurement, PcrMismatch, ReplayedLog};
use crate::finding::{Findings, hex_list, shown};
use crate::policy::BootPolicy;
use crate::tpm::{Digest, HashAlgorithm, PcrMask};

/// Longest text of an event in a finding, in characters.
const SHOWN: usize = 500;

/// Judges what a log shows by a policy about it. `log` is compared with the quote in `replayed`:
/// PCRs that it does not explain are findings of their own.
pub(super) fn check(
    policy: &BootPolicy,
    log: &EventLog<'_>,
    replayed: &ReplayedLog<'_>,
    findings: &mut Findings,
) {
    let bank = replayed.replayed().bank();
    let mut mismatches = replayed.mismatches().iter();
    let beyond = Beyond {
        explained: replayed.explained,
        no_action: replayed.no_action_extended(),
        measurements: replayed.measurements().collect(),
        phase: match policy {
            BootPolicy::Rules(rules) => {
                mismatches.find_map(|mismatch| boot_rules::phase(rules, mismatch, replayed))
            }
            _ => None,
        },
    };
    let Some((engine, wrong)) = wrong(policy, log, bank, &beyond) else {
        return;
    };
    for wrong in wrong {
        findings.push(|| wrong.finding(engine));
    }
}

/// How much a policy does not allow in a log that **nothing vouches for**.
pub(crate) fn unverified(policy: &BootPolicy, log: &EventLog<'_>, bank: HashAlgorithm) -> usize {
    let beyond = Beyond {
        explained: (0..24).fold(PcrMask::default(), PcrMask::with),
        no_action: PcrMask::default(),
        measurements: Vec::new(),
        phase: None,
    };
    wrong(policy, log, bank, &beyond).map_or(0, |(_, wrong)| wrong.len())
}

/// The name of what judges, and what it does not allow.
fn wrong(
    policy: &BootPolicy,
    log: &EventLog<'_>,
    bank: HashAlgorithm,
    beyond: &Beyond<'_>,
) -> Option<(&'static str, Vec<Wrong>)> {
    match policy {
        BootPolicy::None | BootPolicy::Replay | BootPolicy::AcceptAll | BootPolicy::RejectAll => {
            None
        }
        BootPolicy::Refstate(state) => {
            Some(("example", boot_refstate::judge(state, log, bank, beyond)))
        }
        BootPolicy::Rules(rules) => {
            let wrong = boot_rules::judge(rules, log, bank, beyond);
            Some(("troth", wrong))
        }
    }
}

/// Does the policy know what the log does not tell of: phases of the boot (PCR 11)?
pub(super) fn explains(policy: &BootPolicy, mismatch: &PcrMismatch, log: &ReplayedLog<'_>) -> bool {
    match policy {
        BootPolicy::Rules(rules) => boot_rules::phase(rules, mismatch, log).is_some(),
        _ => false,
    }
}

/// What is known of a boot beyond the firmware's log.
pub(super) struct Beyond<'a> {
    /// PCRs whose quoted values the logs explain.
    pub(super) explained: PcrMask,
    /// Those of them that hold EV_NO_ACTION events too.
    pub(super) no_action: PcrMask,
    /// What user space measured into them.
    pub(super) measurements: Vec<(u8, &'a Measurement)>,
    /// The phase that PCR 11 holds without a log of it.
    pub(super) phase: Option<&'a str>,
}

/// Something that a boot policy does not allow.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) place: Place,
    pub(super) component: String,
    pub(super) expected: Vec<String>,
    pub(super) got: Option<String>,
    /// What the component does, after its name.
    pub(super) explanation: String,
}

impl Wrong {
    /// About one event.
    pub(super) fn event(event: &Event<'_>, bank: HashAlgorithm, reason: Reason) -> Self {
        Self {
            place: place(event),
            component: reason.component,
            expected: reason.expected,
            got: Some(describe(event, bank)),
            explanation: reason.explanation,
        }
    }

    /// About something that is not there.
    pub(super) fn missing(pcr: u8, component: &str, explanation: &str) -> Self {
        Self {
            place: Place::Pcr(pcr),
            component: component.to_owned(),
            expected: Vec::new(),
            got: None,
            explanation: explanation.to_owned(),
        }
    }

    /// About what user space measured.
    pub(super) fn measurement(
        pcr: u8,
        measurement: &Measurement,
        bank: HashAlgorithm,
        explanation: &str,
    ) -> Self {
        let digest = measurement.digest(bank);
        let digest = digest.map_or_else(String::new, |digest| digest.to_string());
        let text = shown_text(measurement.text.as_deref().unwrap_or("no text"));
        let kind = shown_text(measurement.event_type.as_deref().unwrap_or("measurement"));
        Self {
            place: Place::Pcr(pcr),
            component: format!("{kind} by user space"),
            expected: Vec::new(),
            got: Some(format!("{digest} {text}")),
            explanation: explanation.to_owned(),
        }
    }

    fn finding(self, engine: &str) -> Finding {
        let component = &self.component;
        Finding {
            id: format!("measured_boot.policy_{engine}"),
            recoverable: true,
            explanation: format!("The boot policy fails: {component} {}.", self.explanation),
            action: format!(
                "If {component} was changed on purpose (an update, another configuration), make \
                 the policy anew with `trothctl policy create boot` on a node that you trust, or \
                 add what the log shows; else treat the node as compromised."
            ),
            place: self.place,
            expected: self.expected,
            got: self.got,
        }
    }
}

/// Where an event is.
fn place(event: &Event<'_>) -> Place {
    u8::try_from(event.pcr).map_or(Place::BootLog, |pcr| Place::BootEvent {
        event: event.index,
        pcr,
    })
}

/// Type, digest and content of an event, for people.
pub(super) fn describe(event: &Event<'_>, bank: HashAlgorithm) -> String {
    let digest = event.digests.get(bank);
    let digest = digest.map_or_else(|| format!("no {bank} digest"), |digest| digest.to_string());
    let content = shown_text(&event.content().to_string());
    format!("{} {digest} {content}", event.kind)
}

/// A text of a log or policy as a finding may show it.
pub(super) fn shown_text(text: &str) -> String {
    let text: String = text.chars().take(SHOWN).collect();
    shown(&text)
}

/// Allowed digests, at most 16.
pub(super) fn digests<'d>(digests: impl Iterator<Item = &'d Digest>) -> Vec<String> {
    hex_list(digests.map(Digest::as_bytes))
}

pub(super) fn rejected() -> Finding {
    Finding {
        id: "measured_boot.policy_reject-all".to_owned(),
        recoverable: true,
        place: Place::BootLog,
        expected: Vec::new(),
        got: None,
        explanation: "The verifier rejects every measured boot: its option \
                      measured_boot_policy_name is `reject-all`."
            .to_owned(),
        action: "Set measured_boot_policy_name to `example` to have refstates judged.".to_owned(),
    }
}
