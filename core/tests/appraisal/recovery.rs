use troth_core::appraise::{Appraisal, Place, Tomtou};
use troth_core::ima::ImaPosition;
use troth_core::wire::QuoteResponse;

use super::judged::{NOT_LISTED, Node, findings, ids, policy, trusted};

const KNOWN: [(&str, [u8; 32]); 3] = [
    ("/bin/a", [1; 32]),
    ("/bin/b", [2; 32]),
    ("/bin/c", [3; 32]),
];

/// A node on which a file ran that no policy lists: entry 2 of 4.
fn intruded() -> Node {
    let mut node = Node::new(Some(policy(&KNOWN)));
    node.measure("/bin/a", &[1; 32]);
    node.measure("/bin/b", &[2; 32]);
    node.measure("/tmp/evil", &[9; 32]);
    node.measure("/bin/c", &[3; 32]);
    node
}

fn entries(appraisal: &Appraisal) -> Vec<u64> {
    let places = findings(appraisal).iter().map(|finding| &finding.place);
    places
        .filter_map(|place| match place {
            Place::ImaEntry { entry, .. } => Some(*entry),
            _ => None,
        })
        .collect()
}

#[test]
fn the_check_resumes_at_the_first_entry_with_a_finding() {
    let mut node = intruded();
    let appraisal = node.attest();
    assert_eq!(
        (ids(&appraisal), entries(&appraisal)),
        (vec![NOT_LISTED], vec![2])
    );
    assert_eq!(node.state.ima.next_entry, 2);
    // As often as it is asked, and with what came meanwhile.
    node.measure("/bin/a", &[1; 32]);
    for _ in 0..3 {
        let (_, asked, evidence) = node.ask();
        let sent = evidence.ima_measurement_list.unwrap().lines().count();
        assert_eq!((asked, sent), (2, 3));
        let appraisal = node.attest();
        assert_eq!(entries(&appraisal), [2]);
    }
    // A policy that lists it is all that is needed; what was good before is not sent again.
    let listed = [KNOWN.as_slice(), &[("/tmp/evil", [9; 32])]].concat();
    node.runtime = Some(policy(&listed));
    assert_eq!(trusted(&node.attest()), 5);
    assert_eq!(node.state.ima.next_entry, 5);
}

#[test]
fn no_answer_gets_past_an_entry_with_a_finding() {
    type Lie = fn(&mut QuoteResponse);
    let lies: [(Lie, &str); 7] = [
        (|e| without(e, "evil"), "ima.pcr_mismatch"),
        (
            |e| changed(e, "/tmp/evil", "/bin/aevil"),
            "ima.validation.ima_hash",
        ),
        (
            |e| e.ima_measurement_list = Some(String::new()),
            "ima.pcr_mismatch",
        ),
        (
            |e| e.ima_measurement_list = None,
            "pcr_validation.unused_pcr_10",
        ),
        (
            |e| e.ima_measurement_list_entry = Some(3),
            "qoute_validation.invalid_ima_entry_nb",
        ),
        (
            |e| {
                without(e, "evil");
                e.ima_measurement_list_entry = Some(3);
            },
            "qoute_validation.invalid_ima_entry_nb",
        ),
        (
            |e| e.ima_measurement_list_entry = Some(0),
            "ima.pcr_mismatch",
        ),
    ];
    for (lie, finding) in lies {
        let mut node = intruded();
        node.attest();
        let appraisal = node.attest_with(lie);
        assert!(
            ids(&appraisal).contains(&finding),
            "{finding}: {:?}",
            ids(&appraisal)
        );
        assert_eq!(node.state.ima, ImaPosition::default(), "{finding}");
        // Then from the start, and found again.
        assert_eq!(entries(&node.attest()), [2], "{finding}");
        assert_eq!(entries(&node.attest()), [2], "{finding}");
    }
}

fn without(evidence: &mut QuoteResponse, name: &str) {
    let list = evidence.ima_measurement_list.take().unwrap();
    let lines = list
        .split_inclusive('\n')
        .filter(|line| !line.contains(name));
    evidence.ima_measurement_list = Some(lines.collect());
}

fn changed(evidence: &mut QuoteResponse, from: &str, to: &str) {
    let list = evidence.ima_measurement_list.take().unwrap();
    evidence.ima_measurement_list = Some(list.replacen(from, to, 1));
}

#[test]
fn a_whole_list_is_judged_whole_after_a_failure_too() {
    let mut node = intruded();
    node.attest();
    let list = node.list.concat();
    let whole = |evidence: &mut QuoteResponse| {
        evidence.ima_measurement_list = Some(list);
        evidence.ima_measurement_list_entry = Some(0);
    };
    assert_eq!(entries(&node.attest_with(whole)), [2]);
}

#[test]
fn a_reboot_after_a_failure_starts_anew() {
    let mut node = intruded();
    node.attest();
    node.restart();
    for (path, digest) in KNOWN {
        node.measure(path, &digest);
    }
    node.attest();
    assert_eq!(node.state.ima, ImaPosition::default());
    assert_eq!(trusted(&node.attest()), 3);
}

#[test]
fn what_was_shown_with_a_finding_must_be_covered_next_time() {
    let mut node = intruded();
    let shown = node.entry("/bin/a", &[5; 32]).0;
    let show = |evidence: &mut QuoteResponse| {
        evidence
            .ima_measurement_list
            .as_mut()
            .unwrap()
            .push_str(&shown);
    };
    node.attest_with(show);
    assert_eq!((node.state.ima.next_entry, node.state.ima.lag), (2, 3));
    let listed = [KNOWN.as_slice(), &[("/tmp/evil", [9; 32])]].concat();
    node.runtime = Some(policy(&listed));
    assert_eq!(ids(&node.attest_with(show)), ["ima.quote_progress"]);
}

#[test]
fn an_entry_of_another_pcr_is_where_the_check_resumes() {
    let mut node = Node::of_vector(|_| {});
    node.list[3] = node.list[3].replacen("10", " 9", 1);
    let appraisal = node.attest();
    assert_eq!(ids(&appraisal), ["ima.validation.ima_pcr"]);
    assert_eq!(node.state.ima.next_entry, 3);
    assert_eq!(ids(&node.attest()), ["ima.validation.ima_pcr"]);
}

#[test]
fn violations_are_findings_where_the_verifier_says_so() {
    let mut node = Node::of_vector(|_| {});
    node.tomtou = Tomtou::Fail;
    let appraisal = node.attest();
    let [finding] = findings(&appraisal) else {
        panic!("{appraisal:?}")
    };
    assert_eq!(finding.id, "ima.validation.tomtou");
    assert!(finding.recoverable && finding.explanation.contains("/var/log/open-writer"));
    assert_eq!(node.state.ima.next_entry, 8);
    node.tomtou = Tomtou::Ignore;
    assert_eq!(trusted(&node.attest()), 9);
}
