use troth_core::appraise::Place;

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
        node: None,
        algorithms: None,
    }
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
    record.apply(outcome, T0, T0 + Duration::from_secs(1), &timing())
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
    assert_eq!(record.node.ima.next_entry, 0);
    assert_eq!(record.status(T0, &timing()).state, "pending");
    assert_eq!(apply(&mut record, trusted()).event, Some(Event::Recovered));
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
        node: None,
        algorithms: None,
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
