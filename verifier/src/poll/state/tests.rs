use troth_core::{
    appraise::Place,
    eventlog::Quirk,
    finding::severity::{LABELS, SeverityRule},
};

use super::*;

const T0: Duration = Duration::from_secs(1_700_000_000);

fn timing() -> Timing {
    Timing {
        interval: Duration::from_secs(10),
        retry: Duration::from_secs(2),
        exponential: true,
        max_retries: 5,
        max_retry: Duration::from_secs(60),
    }
}

fn trusted() -> Outcome {
    let node = NodeState {
        ima: ImaPosition {
            next_entry: 7,
            ..ImaPosition::default()
        },
        ..NodeState::default()
    };
    Outcome::Trusted {
        node,
        ima_entries: 7,
        algorithms: Algorithms::default(),
        boot_quirks: Vec::new(),
        boot: None,
    }
}

fn failed(count: usize) -> Outcome {
    let finding = Finding {
        id: "ima.pcr_mismatch".into(),
        recoverable: true,
        place: Place::Pcr(10),
        expected: Vec::new(),
        got: None,
        explanation: "the list does not lead to PCR 10".into(),
        action: "look at it".into(),
    };
    Outcome::Failed {
        findings: vec![finding; count],
        total: u64::try_from(count).unwrap(),
        unseen: 0,
        node: None,
        algorithms: None,
        boot_quirks: Vec::new(),
        boot: None,
    }
}

fn failed_with(ids: &[&str]) -> Outcome {
    let Outcome::Failed { findings, .. } = failed(1) else {
        unreachable!()
    };
    let found = |id: &&str| Finding {
        id: (*id).to_owned(),
        ..findings[0].clone()
    };
    Outcome::Failed {
        findings: ids.iter().map(found).collect(),
        total: u64::try_from(ids.len()).unwrap(),
        unseen: 0,
        node: None,
        algorithms: None,
        boot_quirks: Vec::new(),
        boot: None,
    }
}

/// IMA: warning; PCR values: error; all else: emergency.
fn lenient() -> Severities {
    let rule = |event_id: &str, severity_label: &str| SeverityRule {
        event_id: event_id.to_owned(),
        severity_label: severity_label.to_owned(),
    };
    let rules = [
        rule(r"ima\..*", "warning"),
        rule(r"pcr_validation\..*", "error"),
    ];
    Severities::compile(&LABELS.map(str::to_owned), &rules).unwrap()
}

fn silent() -> Outcome {
    Outcome::NoAnswer {
        reason: "connection refused".into(),
    }
}

fn record() -> NodeRecord {
    NodeRecord::new("2.6".into())
}

fn apply(record: &mut NodeRecord, outcome: Outcome) -> Step {
    let all = Severities::compile(&LABELS.map(str::to_owned), &SeverityRule::defaults()).unwrap();
    apply_rated(record, outcome, &all)
}

fn apply_rated(record: &mut NodeRecord, outcome: Outcome, severities: &Severities) -> Step {
    let now = T0 + Duration::from_secs(1);
    record.apply(outcome, T0, now, &timing(), severities)
}

#[test]
fn first_pass_is_told_once_and_the_next_question_is_one_interval_after_the_last() {
    let mut record = record();
    let step = apply(&mut record, trusted());
    let wait = Some(Duration::from_secs(9));
    assert_eq!(
        step,
        Step {
            wait,
            event: Some(Event::FirstTrusted)
        }
    );
    assert_eq!(apply(&mut record, trusted()), Step { wait, event: None });
    assert_eq!((record.operational, record.attestation_count), (3, 2));
    assert_eq!(record.due_at_ms, milliseconds(T0 + timing().interval));
}

#[test]
fn failure_stops_polling_keeps_findings_and_recovers_after_reactivation() {
    let mut record = record();
    apply(&mut record, trusted());
    let step = apply(&mut record, failed(250));
    assert_eq!(
        step,
        Step {
            wait: None,
            event: Some(Event::Failed)
        }
    );
    assert!(!record.active());
    let status = record.status(T0, &timing());
    assert_eq!(status.state, "failed");
    assert_eq!((status.findings.len(), status.findings_total), (100, 250));
    assert_eq!((record.operational, record.severity_level), (9, Some(6)));
    assert_eq!(record.last_event_id.as_deref(), Some("ima.pcr_mismatch"));
    // A failed node stays failed over a restart of the verifier.
    record.resume();
    assert_eq!(record.state, State::Failed);
    record.reactivate();
    assert_eq!(
        record.node.ima.next_entry, 7,
        "what was good is not asked for again"
    );
    assert_eq!(record.status(T0, &timing()).state, "pending");
    assert_eq!(apply(&mut record, trusted()).event, Some(Event::Recovered));
}

#[test]
fn reactivation_of_a_node_that_has_not_failed_has_its_whole_list_judged() {
    for stop in [false, true] {
        let mut record = record();
        apply(&mut record, trusted());
        if stop {
            apply(&mut record, failed(1));
            record.stop();
        }
        record.reactivate();
        assert_eq!(record.node.ima.next_entry, 0);
    }
}

#[test]
fn long_names_do_not_fill_the_record() {
    let mut record = record();
    let Outcome::Failed {
        mut findings,
        total,
        ..
    } = failed(100)
    else {
        unreachable!()
    };
    for finding in &mut findings {
        finding.explanation = "x".repeat(20_000);
    }
    let outcome = Outcome::Failed {
        findings,
        total,
        unseen: 0,
        node: None,
        algorithms: None,
        boot_quirks: Vec::new(),
        boot: None,
    };
    apply(&mut record, outcome);
    let status = record.status(T0, &timing());
    assert_eq!((status.findings.len(), status.findings_total), (13, 100));
    assert!(serde_json::to_string(&record).unwrap().len() < 300_000);
}

#[test]
fn silence_is_never_trusted_backs_off_and_recovers_by_itself() {
    let mut record = record();
    apply(&mut record, trusted());
    let mut waits = Vec::new();
    let mut events = Vec::new();
    for attempt in 0..9 {
        let step = apply(&mut record, silent());
        waits.push(step.wait.unwrap().as_secs());
        events.extend(step.event.map(|event| (attempt, event)));
        assert_eq!(record.status(T0, &timing()).state, "unreachable");
        // Keylime's state 7 comes when the retries are used up.
        assert_eq!(record.operational == operational::FAILED, attempt >= 5);
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60, 60]);
    assert_eq!(events, [(5, Event::Unreachable)]);
    let position = record.node.ima.next_entry;
    assert_eq!(
        position, 7,
        "silence must not lose the position in the list"
    );
    assert_eq!(apply(&mut record, trusted()).event, Some(Event::Recovered));
    assert_eq!(record.status(T0, &timing()).state, "trusted");
}

/// It is asked for systemd's log from then on, and not only after the next boot of its host.
#[test]
fn an_agent_that_may_have_been_upgraded_is_asked_again_what_it_sends() {
    for sends in [false, true] {
        let mut record = record();
        apply(&mut record, trusted());
        record.userspace_log = Some(sends);
        apply(&mut record, trusted());
        assert_eq!(record.userspace_log, Some(sends), "nothing happened");
        apply(&mut record, silent());
        assert_eq!(record.userspace_log, Some(sends), "nobody to ask");
        apply(&mut record, trusted());
        assert_eq!(record.userspace_log, sends.then_some(true), "after silence");
        record.userspace_log = Some(sends);
        record.reactivate();
        assert_eq!(record.userspace_log, None, "after reactivation");
    }
}

#[test]
fn quirks_of_the_firmware_are_those_of_the_last_verdict() {
    let quirk = BootQuirk::new(0, Quirk::StartupLocalityMissing);
    let mut record = record();
    let mut outcome = trusted();
    if let Outcome::Trusted { boot_quirks, .. } = &mut outcome {
        boot_quirks.push(quirk.clone());
    }
    apply(&mut record, outcome);
    assert_eq!(
        record.status(T0, &timing()).boot_quirks,
        std::slice::from_ref(&quirk)
    );
    apply(&mut record, silent());
    assert_eq!(record.status(T0, &timing()).boot_quirks, [quirk]);
    apply(&mut record, trusted());
    assert_eq!(record.status(T0, &timing()).boot_quirks, []);
}

#[test]
fn one_lost_answer_is_no_event() {
    let mut record = record();
    apply(&mut record, trusted());
    assert_eq!(apply(&mut record, silent()).event, None);
    assert_eq!(apply(&mut record, trusted()).event, None);
}

#[test]
fn old_verdict_is_stale() {
    let mut record = record();
    apply(&mut record, trusted());
    let later = T0 + Duration::from_secs(1) + timing().stale_after();
    assert_eq!(record.status(later, &timing()).state, "trusted");
    let later = later + Duration::from_secs(1);
    let status = record.status(later, &timing());
    assert_eq!(status.state, "stale");
    assert!(
        status.reason.contains("attested 51 s ago, due every 10 s"),
        "{}",
        status.reason
    );
}

#[test]
fn reboot_is_asked_about_at_once_but_not_for_ever() {
    let mut record = record();
    apply(&mut record, trusted());
    let mut waits = Vec::new();
    for _ in 0..4 {
        let outcome = Outcome::Rebooted {
            node: NodeState::default(),
        };
        let step = apply(&mut record, outcome);
        assert_eq!(step.event, None);
        waits.push(step.wait.unwrap().as_secs());
        let status = record.status(T0, &timing());
        assert_eq!(status.state, "pending", "what was trusted is gone");
        assert!(status.reason.contains("booted"), "{}", status.reason);
    }
    assert_eq!(waits, [0, 0, 9, 9]);
    assert_eq!(record.node.ima.next_entry, 0);
    assert_eq!(record.attestation_count, 1);
    let step = apply(&mut record, trusted());
    assert_eq!(step.event, None, "trusted before and after");
    assert_eq!(record.status(T0, &timing()).state, "trusted");
}

#[test]
fn restart_forgets_trust_but_nothing_else() {
    let mut record = record();
    apply(&mut record, trusted());
    let text = serde_json::to_string(&record).unwrap();
    let mut record: NodeRecord = serde_json::from_str(&text).unwrap();
    record.resume();
    assert_eq!((record.state, record.operational), (State::Pending, 1));
    assert_eq!(
        (record.node.ima.next_entry, record.attestation_count),
        (7, 1)
    );
    // Trusted before and after: nobody needs to be told.
    assert_eq!(apply(&mut record, trusted()).event, None);
}

#[test]
fn linear_retries_and_huge_attempts_stay_in_bounds() {
    let linear = Timing {
        exponential: false,
        ..timing()
    };
    assert_eq!(linear.backoff(9), Duration::from_secs(2));
    assert_eq!(timing().backoff(u32::MAX), Duration::from_secs(60));
}

#[test]
fn keylimes_pass_ends_when_the_verdict_is_stale_or_the_node_is_silent() {
    let timing = timing();
    let judged = T0 + Duration::from_secs(1);
    let later = judged + timing.stale_after();
    let mut record = record();
    let word = |record: &NodeRecord, now| record.attestation_status(now, &timing);
    assert_eq!(word(&record, T0), "PENDING");
    apply(&mut record, trusted());
    assert_eq!(word(&record, later), "PASS");
    let too_late = later + Duration::from_millis(1);
    assert_eq!(word(&record, too_late), "TIMEOUT");
    apply(&mut record, silent());
    assert_eq!(word(&record, judged), "PENDING", "it may come back");
    for _ in 0..timing.max_retries {
        apply(&mut record, silent());
    }
    assert_eq!(word(&record, judged), "FAIL");
    apply(&mut record, trusted());
    apply(&mut record, failed(1));
    assert_eq!(word(&record, too_late), "FAIL");
    record.reactivate();
    assert_eq!(word(&record, judged), "PENDING");
    record.stop();
    assert_eq!(word(&record, judged), "FAIL");
}

#[test]
fn below_the_highest_severity_a_node_fails_is_asked_on_and_recovers_by_itself() {
    let severities = lenient();
    let mut record = record();
    apply_rated(&mut record, trusted(), &severities);
    let wait = Some(Duration::from_secs(9));
    let step = |record: &mut NodeRecord, outcome| {
        let step = apply_rated(record, outcome, &severities);
        assert_eq!(step.wait, wait);
        step.event
    };
    let failed = || failed_with(&["ima.pcr_mismatch"]);
    assert_eq!(step(&mut record, failed()), Some(Event::Failed));
    for _ in 0..3 {
        assert!(record.active());
        let status = record.status(T0, &timing());
        assert_eq!(status.state, "failed");
        assert_eq!(status.severity.as_deref(), Some("warning"));
        assert_eq!(status.findings[0].severity.as_deref(), Some("warning"));
        assert!(
            status.reason.contains("due every 10 s"),
            "{}",
            status.reason
        );
        assert_eq!((record.operational, record.severity_level), (9, Some(2)));
        assert_eq!(record.attestation_status(T0, &timing()), "FAIL");
        assert_eq!(step(&mut record, failed()), None, "told once");
    }
    // Over a restart too.
    let text = serde_json::to_string(&record).unwrap();
    let mut record: NodeRecord = serde_json::from_str(&text).unwrap();
    record.resume();
    assert!(record.active() && record.state == State::Failed);
    assert_eq!(step(&mut record, failed()), None);
    assert_eq!(step(&mut record, trusted()), Some(Event::Recovered));
    assert_eq!(record.status(T0, &timing()).state, "trusted");
    assert_eq!((record.operational, record.findings.len()), (3, 0));
}

#[test]
fn the_worst_finding_names_the_event_and_only_a_worse_one_replaces_it() {
    let severities = lenient();
    let mut record = record();
    let event = |record: &mut NodeRecord, ids: &[&str]| {
        let step = apply_rated(record, failed_with(ids), &severities);
        let last = record.last_event_id.clone().unwrap();
        (step.event, last, record.severity_level.unwrap())
    };
    let told = Some(Event::Failed);
    let (ima, pcr) = ("ima.pcr_mismatch", "pcr_validation.invalid_pcr_7");
    assert_eq!(event(&mut record, &[ima]), (told, ima.into(), 2));
    assert_eq!(event(&mut record, &[ima, pcr]), (told, pcr.into(), 3));
    assert_eq!(
        record.findings[0].finding.id, pcr,
        "the worst is shown first"
    );
    assert_eq!(event(&mut record, &[ima]), (None, pcr.into(), 3));
    // After a good answer it begins anew.
    apply_rated(&mut record, trusted(), &severities);
    assert_eq!(event(&mut record, &[ima]), (told, ima.into(), 2));
    let boot = "measured_boot.missing_log";
    assert_eq!(event(&mut record, &[ima, boot]), (told, boot.into(), 6));
    assert!(!record.active(), "the highest severity ends the polling");
}

#[test]
fn what_stopped_the_check_or_was_not_seen_ends_the_polling() {
    let severities = lenient();
    let mut first = record();
    let Outcome::Failed { mut findings, .. } = failed(1) else {
        unreachable!()
    };
    findings[0].recoverable = false;
    let outcome = |findings: &[Finding], unseen| Outcome::Failed {
        findings: findings.to_vec(),
        total: 1 + unseen,
        unseen,
        node: None,
        algorithms: None,
        boot_quirks: Vec::new(),
        boot: None,
    };
    assert_eq!(
        apply_rated(&mut first, outcome(&findings, 0), &severities).wait,
        None
    );
    assert_eq!(first.severity_level, Some(6));
    findings[0].recoverable = true;
    let mut second = record();
    assert_eq!(
        apply_rated(&mut second, outcome(&findings, 1), &severities).wait,
        None
    );
    assert_eq!(second.severity.as_deref(), Some("emergency"));
    let mut third = record();
    assert!(
        apply_rated(&mut third, outcome(&findings, 0), &severities)
            .wait
            .is_some()
    );
}

#[test]
fn silence_and_a_reboot_do_not_make_a_failed_node_look_better() {
    let severities = lenient();
    let mut record = record();
    let failed = || failed_with(&["ima.pcr_mismatch"]);
    apply_rated(&mut record, failed(), &severities);
    let finding = |record: &NodeRecord| {
        let event = record.last_event_id.clone();
        let severity = record.severity.clone();
        (record.operational, event, record.severity_level, severity)
    };
    let found = finding(&record);
    assert_eq!(found.0, operational::INVALID_QUOTE);
    assert_eq!(found.1.as_deref(), Some("ima.pcr_mismatch"));
    let mut events = Vec::new();
    for _ in 0..=timing().max_retries {
        let step = apply_rated(&mut record, silent(), &severities);
        assert!(step.wait.is_some());
        events.extend(step.event);
        let status = record.status(T0, &timing());
        assert_eq!(
            (status.state.as_str(), status.findings.len()),
            ("failed", 1)
        );
        assert!(
            status
                .reason
                .contains("PCR 10; since then: connection refused")
        );
    }
    assert_eq!(events, [Event::Unreachable]);
    assert_eq!(finding(&record), found, "Keylime's API shows it on");
    let node = NodeState::default();
    let step = apply_rated(&mut record, Outcome::Rebooted { node }, &severities);
    assert_eq!(step.wait, Some(Duration::ZERO));
    assert_eq!(record.status(T0, &timing()).state, "failed");
    // It answers again, as badly as before: that is told, and is the event again.
    let step = apply_rated(&mut record, failed(), &severities);
    assert_eq!(step.event, Some(Event::Failed));
    assert_eq!(record.last_event_id.as_deref(), Some("ima.pcr_mismatch"));
    assert_eq!(
        apply_rated(&mut record, trusted(), &severities).event,
        Some(Event::Recovered)
    );
}

#[test]
fn a_record_of_an_earlier_version_is_read_and_stays_failed() {
    let mut record = record();
    apply(&mut record, failed(1));
    let mut value = serde_json::to_value(&record).unwrap();
    let members = value.as_object_mut().unwrap();
    members.remove("tolerated").unwrap();
    members.remove("severity").unwrap();
    members["findings"][0]
        .as_object_mut()
        .unwrap()
        .remove("severity")
        .unwrap();
    let record: NodeRecord = serde_json::from_value(value).unwrap();
    assert!(!record.active());
    assert_eq!(
        record.status(T0, &timing()).findings[0].finding.id,
        "ima.pcr_mismatch"
    );
}

#[test]
fn among_many_findings_every_id_is_kept() {
    let mut record = record();
    let mut ids = vec!["ima.pcr_mismatch"; 300];
    ids.push("ima.quote_progress");
    ids.push("pcr_validation.invalid_pcr_7");
    apply_rated(&mut record, failed_with(&ids), &lenient());
    let kept: Vec<_> = record
        .findings
        .iter()
        .map(|f| f.finding.id.as_str())
        .collect();
    assert_eq!(kept.len(), 100);
    assert_eq!(
        kept[..3],
        [
            "pcr_validation.invalid_pcr_7",
            "ima.pcr_mismatch",
            "ima.quote_progress"
        ]
    );
    assert_eq!(record.findings_total, 302);
}
