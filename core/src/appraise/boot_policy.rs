use super::boot_refstate::Reason;
use super::{Finding, Place, boot_refstate, boot_rules};
use crate::eventlog::{Event, EventLog, MAX_EVENTS, Measurement, PcrMismatch, ReplayedLog};
use crate::finding::{Findings, MAX_FINDINGS, hex_list, shown};
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
    let more = wrong.total - wrong.kept.len();
    for wrong in wrong.kept {
        findings.push(|| wrong.finding(engine));
    }
    // All are of one id, and as many are kept as findings are.
    findings.count_known(u64::try_from(more).unwrap_or(u64::MAX));
}

/// How much a policy does not allow in a log that **nothing vouches for**.
pub(crate) fn unverified(policy: &BootPolicy, log: &EventLog<'_>, bank: HashAlgorithm) -> usize {
    let beyond = Beyond {
        explained: (0..24).fold(PcrMask::default(), PcrMask::with),
        no_action: PcrMask::default(),
        measurements: Vec::new(),
        phase: None,
    };
    wrong(policy, log, bank, &beyond).map_or(0, |(_, wrong)| wrong.total)
}

/// The name of what judges, and what it does not allow.
fn wrong(
    policy: &BootPolicy,
    log: &EventLog<'_>,
    bank: HashAlgorithm,
    beyond: &Beyond<'_>,
) -> Option<(&'static str, Wrongs)> {
    let events = log.len() + beyond.measurements.len();
    let too_many = (events > MAX_EVENTS).then(|| Wrongs::too_many(events));
    match policy {
        BootPolicy::None | BootPolicy::Replay | BootPolicy::AcceptAll | BootPolicy::RejectAll => {
            None
        }
        BootPolicy::Refstate(state) => {
            let judge = || boot_refstate::judge(state, log, bank, beyond);
            Some(("example", too_many.unwrap_or_else(judge)))
        }
        BootPolicy::Rules(rules) => {
            let judge = || boot_rules::judge(rules, log, bank, beyond);
            Some(("troth", too_many.unwrap_or_else(judge)))
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

/// What a boot policy does not allow: how much it is, and the first of it in words. A log can be
/// wrong in as many places as it has events, each of which takes some kilobytes to tell.
#[derive(Debug, Default)]
pub(super) struct Wrongs {
    kept: Vec<Wrong>,
    total: usize,
    /// Nothing is put into words.
    counts_only: bool,
}

impl Wrongs {
    /// For who wants to know how much it is.
    pub(super) fn counted() -> Self {
        Self {
            counts_only: true,
            ..Self::default()
        }
    }

    /// Instead of all else, where there is too much to judge.
    fn too_many(events: usize) -> Self {
        let mut wrongs = Self::default();
        wrongs.push(|| Wrong {
            place: Place::BootLog,
            component: "the boot log".to_owned(),
            expected: vec![format!("at most {MAX_EVENTS} events and measurements")],
            got: Some(events.to_string()),
            explanation: "has more events than are compared with a policy".to_owned(),
        });
        wrongs
    }

    /// One more, which is put into words if it is kept.
    pub(super) fn push(&mut self, wrong: impl FnOnce() -> Wrong) {
        self.total += 1;
        if self.has_room() {
            self.kept.push(wrong());
        }
    }

    /// One more, of which nothing is told.
    pub(super) fn count(&mut self) {
        self.total += 1;
    }

    /// Is the next one kept?
    pub(super) fn has_room(&self) -> bool {
        !self.counts_only && self.kept.len() < MAX_FINDINGS
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const BANK: HashAlgorithm = HashAlgorithm::Sha256;
    const EV_IPL: u32 = 0x0d;
    const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;

    /// A log of events of the type with a SHA-256 digest; without `measured` they have none, and
    /// cost whoever makes the log up no extension of a PCR.
    fn log(pcr: u32, kind: u32, measured: bool, events: &[Vec<u8>]) -> Vec<u8> {
        let mut log = [0_u32, 3].map(u32::to_le_bytes).concat();
        log.extend([0; 20]);
        let mut header = b"Spec ID Event03\0".to_vec();
        header.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
        log.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
        log.extend(header);
        for data in events {
            let numbers = [pcr, kind, u32::from(measured)];
            log.extend(numbers.map(u32::to_le_bytes).concat());
            if measured {
                log.extend([0x0b, 0]);
                log.extend(BANK.digest(&[data]).as_bytes());
            }
            log.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            log.extend(data);
        }
        log
    }

    fn judged(policy: &str, log: &[u8]) -> Wrongs {
        let policy = BootPolicy::parse(Some(policy)).unwrap();
        let log = EventLog::parse(log).unwrap();
        let beyond = Beyond {
            explained: (0..16).fold(PcrMask::default(), PcrMask::with),
            no_action: PcrMask::default(),
            measurements: Vec::new(),
            phase: None,
        };
        wrong(&policy, &log, BANK, &beyond).unwrap().1
    }

    /// As a refstate of as many alternatives says it.
    fn refstate(alternatives: usize) -> String {
        let digest = |n: usize| serde_json::json!({"sha256": format!("0x{n:064x}")});
        let firmware = |n| serde_json::json!({"scrtm": digest(n), "platform_firmware": []});
        let kernel = |n: usize| {
            let digest = format!("0x{n:064x}");
            serde_json::json!({
                "shim_authcode_sha256": digest, "grub_authcode_sha256": digest,
                "kernel_authcode_sha256": digest, "initrd_plain_sha256": digest,
                "kernel_cmdline": format!("root={n}"),
            })
        };
        let of = |one: &dyn Fn(usize) -> serde_json::Value| {
            (0..alternatives).map(one).collect::<Vec<_>>()
        };
        serde_json::json!({
            "has_secureboot": true, "scrtm_and_bios": of(&firmware), "kernels": of(&kernel),
            "pk": [], "kek": [], "db": [], "dbx": [], "mokdig": [], "mokxdig": [],
        })
        .to_string()
    }

    #[test]
    fn a_log_that_is_wrong_everywhere_is_told_of_in_bounded_memory() {
        let events = vec![b"x".to_vec(); 15_000];
        let rules = r#"{"version": 1}"#.to_owned();
        // 4: images, which each alternative of a refstate is compared with.
        for (policy, pcr, kind) in [
            (rules, 8, EV_IPL),
            (refstate(1), 8, EV_IPL),
            (refstate(500), 4, 0x8000_0003),
        ] {
            let wrong = judged(&policy, &log(pcr, kind, false, &events));
            assert!(wrong.total() >= 14_990, "{}", wrong.total());
            assert_eq!(wrong.kept.len(), MAX_FINDINGS);
        }
        let policy = BootPolicy::parse(Some(r#"{"version": 1}"#)).unwrap();
        let log = log(8, EV_IPL, false, &events);
        let log = EventLog::parse(&log).unwrap();
        assert_eq!(unverified(&policy, &log, BANK), 15_000);
    }

    #[test]
    fn a_log_of_more_events_than_are_judged_is_wrong_and_told_so() {
        for (events, told) in [(MAX_EVENTS - 1, false), (MAX_EVENTS, true)] {
            // The header is an event as well.
            let log = log(8, EV_IPL, true, &vec![b"x".to_vec(); events]);
            let any = r#"{"version": 1, "component":
                [{"name": "x", "pcr": 8, "any": true}]}"#;
            for (policy, wrong) in [(any, 0), (&*refstate(1), 1)] {
                let judged = judged(policy, &log);
                let is_told = judged.kept.iter().any(|wrong| {
                    wrong.explanation == "has more events than are compared with a policy"
                });
                assert_eq!(is_told, told);
                assert!(judged.total() >= wrong.max(usize::from(told)));
                assert!(!told || judged.total() == 1);
            }
        }
    }

    #[test]
    fn texts_that_are_too_many_for_the_patterns_are_wrong_and_told_so() {
        let patterns: Vec<_> = (0..250).map(|n| format!("{n}.*")).collect();
        let policy = serde_json::json!({"version": 1, "component": [
            {"name": "command", "pcr": 8, "text": patterns, "min": 0},
            {"name": "rest", "pcr": 8, "any": true},
        ]});
        for (events, told) in [(2, false), (10, true)] {
            let log = log(8, EV_IPL, true, &vec![vec![b'x'; 30_000]; events]);
            let judged = judged(&policy.to_string(), &log);
            assert_eq!(judged.total(), usize::from(told));
            let told: Vec<_> = judged.kept.iter().map(|wrong| &wrong.explanation).collect();
            assert!(
                told.iter().all(|text| text.contains("more text than")),
                "{told:?}"
            );
        }
    }

    /// Keys of a log are looked up among those of a policy: one by one with each, this would be
    /// two hundred million hashes.
    #[test]
    fn many_keys_in_a_log_are_compared_with_many_in_a_policy() {
        let data = |n: u64| [n.to_le_bytes(), [7; 8], [7; 8], [7; 8], [7; 8]].concat();
        let keys: Vec<_> = (0..4_000)
            .map(|n| format!("sha256:{}", BANK.digest(&[&data(n)])))
            .collect();
        let mut list = Vec::new();
        let signatures = 50_000_u64;
        // EFI_CERT_X509_GUID, sizes, and the last key of the policy again and again.
        list.extend(hex::decode("a159c0a5e494a74a87b5ab155c2bf072").unwrap());
        let size = u32::try_from(28 + signatures * 56).unwrap();
        list.extend([size, 0, 56].map(u32::to_le_bytes).concat());
        for _ in 0..signatures {
            list.extend([1; 16]);
            list.extend(data(3_999));
        }
        let mut variable = hex::decode("cbb219d73a3d9645a3bcdad00e67656f").unwrap();
        variable.extend(2_u64.to_le_bytes());
        variable.extend(u64::try_from(list.len()).unwrap().to_le_bytes());
        variable.extend(b"d\0b\0");
        variable.extend(list);
        let log = log(7, EV_EFI_VARIABLE_DRIVER_CONFIG, true, &[variable]);
        let policy = |last: &str| {
            let mut keys = keys.clone();
            *keys.last_mut().unwrap() = last.to_owned();
            let rules = serde_json::json!({"version": 1, "others": "allow",
                "secure_boot": {"enabled": true, "db": keys}});
            rules.to_string()
        };
        let wrong = |policy: &str| {
            let wrong = judged(policy, &log);
            let texts = wrong.kept.iter().map(|one| one.explanation.clone());
            texts
                .filter(|text| text.contains("key"))
                .collect::<Vec<_>>()
        };
        assert_eq!(wrong(&policy(keys.last().unwrap())), Vec::<String>::new());
        let stranger = wrong(&policy(&keys[0]));
        assert!(
            stranger[0].contains("has a key that is not allowed"),
            "{stranger:?}"
        );
    }
}
