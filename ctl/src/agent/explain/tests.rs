//! What trothctl says of every kind of finding, against ctl/tests/snapshots. The findings are those
//! that appraisal and verifier make (tests/fixtures/findings). `TROTH_REWRITE=1` writes the files.

use std::{collections::BTreeSet, path::Path};

use serde_json::{Value, json};
use troth_core::{finding::catalog::Component, wire::NodeStatus};

use super::{super::node::tests, *};

const FINDINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/findings");
const SNAPSHOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");
const NOW: u64 = 1_795_456_571_500;

/// Every kept finding, by its file's name.
fn findings() -> Vec<Finding> {
    let mut files: Vec<_> = std::fs::read_dir(FINDINGS)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let finding: Finding = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(name, format!("{}.json", finding.id));
        finding
    };
    files.iter().map(read).collect()
}

/// A failed node with these findings.
fn failed_with(findings: &[Finding], severity: &str) -> NodeStatus {
    let mut status = tests::failed();
    status.has_mb_refstate = 1;
    let troth = status.troth.as_mut().unwrap();
    troth.since_ms = 1_795_456_331_500;
    troth.reason = findings[0].explanation.clone();
    troth.severity = Some(severity.to_owned());
    troth.findings_total = findings.len() as u64;
    let rated = findings.iter().map(|finding| RatedFinding {
        finding: finding.clone(),
        severity: Some(severity.to_owned()),
    });
    troth.findings = rated.collect();
    status.last_event_id = Some(findings[0].id.clone());
    status
}

fn explained(status: &NodeStatus, all: bool) -> String {
    let node = Node::new("web1", status, NOW);
    Explanation::new(&node).text(&node, all, &Output::plain(), NOW)
}

fn assert_snapshot(name: &str, text: &str) {
    let path = Path::new(SNAPSHOTS).join(format!("{name}.txt"));
    if std::env::var_os("TROTH_REWRITE").is_some() {
        std::fs::create_dir_all(SNAPSHOTS).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "{} is not what is said now (TROTH_REWRITE=1 writes it):\n{text}",
        path.display()
    );
}

/// Findings in which nothing was found that could be shown: what they are about is missing, or what
/// is wrong is said in words. All others say what was found.
const NOTHING_GOT: [&str; 13] = [
    "ima.parser.entry",
    "ima.validation.dm.required_policy_not_in_use",
    "ima.validation.tomtou",
    "internal.verifier.exception",
    "measured_boot.missing_log",
    "measured_boot.parser.eventlog",
    "measured_boot.parser.log.base64decode",
    "measured_boot.parser.userspace_log",
    "measured_boot.policy_reject-all",
    "pcr_validation.unused_pcr_10",
    "qoute_validation.invalid_data",
    "qoute_validation.no_pubkey",
    "qoute_validation.quote_validation",
];
/// Findings of something that nothing could have been right in the place of.
const NOTHING_EXPECTED: [&str; 10] = [
    "ima.parser.entry",
    "ima.validation.dm.required_policy_not_in_use",
    "ima.validation.tomtou",
    "internal.verifier.exception",
    "measured_boot.parser.eventlog",
    "measured_boot.parser.userspace_log",
    "measured_boot.policy_reject-all",
    "qoute_validation.invalid_data",
    "qoute_validation.no_pubkey",
    "qoute_validation.quote_validation",
];

#[test]
fn every_finding_is_explained_with_component_expected_got_and_the_next_command() {
    for finding in findings() {
        let text = explained(
            &failed_with(std::slice::from_ref(&finding), "emergency"),
            false,
        );
        assert_snapshot(&finding.id, &text);
        let has = |label: &str| {
            text.lines()
                .any(|line| line.trim_start().starts_with(label))
        };
        for label in [
            "Component: ",
            "Where: ",
            "Why it matters: ",
            "What to do: ",
            "Run next: ",
        ] {
            assert!(has(label), "{}: no {label}", finding.id);
        }
        let id = finding.id.as_str();
        let shown = |label: &str, value: &str| {
            let first = clean(value);
            assert!(
                has(&format!("{label}: {first}")),
                "{id}: {label}: {first}: {text}"
            );
        };
        match &finding.got {
            Some(got) => shown("Got", got),
            None => assert!(!has("Got: "), "{id}"),
        }
        match &finding.expected[..] {
            [first, rest @ ..] => {
                shown("Expected", first);
                let next = rest.iter().take(EXPECTED_SHOWN - 1);
                next.for_each(|value| shown_below(&text, value));
            }
            [] if id.ends_with("not_in_allowlist") => shown("Expected", "a name that"),
            [] => assert!(!has("Expected: "), "{id}"),
        }
        assert_eq!(has("Got: "), !NOTHING_GOT.contains(&id), "{id}");
        assert_eq!(has("Expected: "), !NOTHING_EXPECTED.contains(&id), "{id}");
        assert!(text.contains("web1"), "{text}");
        assert!(
            !text.contains("NODE") || finding.id.starts_with("internal"),
            "{text}"
        );
    }
}

/// Has a field's further line this value?
fn shown_below(text: &str, value: &str) {
    let value = clean(value);
    assert!(
        text.lines().any(|line| line.trim_start() == value),
        "{value}: {text}"
    );
}

#[test]
fn no_kind_that_is_made_here_lacks_its_explanation() {
    let kept = findings();
    let mut explained: BTreeSet<_> = kept
        .iter()
        .map(|finding| catalog::find(&finding.id).unwrap().id)
        .collect();
    explained.insert(NOT_REACHABLE);
    for kind in catalog::all().filter(|kind| kind.is_made_here()) {
        // What is wrong with a request is told to who made it.
        if kind.component == Component::Request || kind.id == "qoute_validation.invalid_quote" {
            continue;
        }
        assert!(
            explained.contains(kind.id),
            "no finding of {} is kept",
            kind.id
        );
    }
}

#[test]
fn a_node_that_does_not_answer_is_explained() {
    let mut status = tests::failed();
    status.operational_state = Some(7);
    let troth = status.troth.as_mut().unwrap();
    troth.state = "unreachable".to_owned();
    troth.reason = "connection refused (attempt 6); attested 4 min ago, due every 2 s".to_owned();
    troth.since_ms = 1_795_456_331_500;
    troth.due_at_ms = 1_795_456_581_500;
    troth.findings.clear();
    troth.findings_total = 0;
    assert_snapshot(NOT_REACHABLE, &explained(&status, false));
}

#[test]
fn of_keylimes_verifier_the_event_is_explained() {
    let mut status = tests::failed();
    status.troth = None;
    status.last_event_id = Some("measured_boot.parser.tpm2_eventlog.error".to_owned());
    assert_snapshot("keylime", &explained(&status, false));
    status.last_event_id = Some("plugin.of.a.site".to_owned());
    assert_snapshot("keylime-unknown", &explained(&status, false));
}

#[test]
fn long_lists_are_summarised_and_the_worst_comes_first() {
    let kept = findings();
    let find = |id: &str| {
        kept.iter()
            .find(|finding| finding.id == id)
            .unwrap()
            .clone()
    };
    let mut several: Vec<_> = (0..12)
        .map(|entry| {
            let mut finding = find("ima.validation.ima-ng.not_in_allowlist");
            let path = format!("/opt/tool/{entry}");
            finding.explanation = finding.explanation.replace("/tmp/evil", &path);
            finding.action = finding.action.replace("/tmp/evil", &path);
            let path = Some(path);
            finding.place = Place::ImaEntry { entry, path };
            finding
        })
        .collect();
    let mut status = failed_with(&several, "warning");
    several.push(find("pcr_validation.invalid_pcr_7"));
    let worst = failed_with(&several[12..], "error").troth.unwrap().findings;
    let troth = status.troth.as_mut().unwrap();
    troth.findings.splice(0..0, worst);
    troth.findings_total = 140;
    troth.due_at_ms = 1_795_456_572_000;
    troth.runtime_policy = Some("base".to_owned());
    assert_snapshot("many", &explained(&status, false));
    let all = explained(&status, true);
    assert!(all.contains("/opt/tool/11 (IMA list entry 11)"), "{all}");
    assert!(!all.contains("--all"), "{all}");
}

#[test]
fn a_trusted_node_needs_no_explanation() {
    let mut status = tests::trusted();
    status.troth.as_mut().unwrap().since_ms = 1_795_456_331_500;
    assert_snapshot("trusted", &explained(&status, false));
}

#[test]
fn the_json_shape_is_the_documented_one() {
    let kept = findings();
    let finding = kept
        .iter()
        .find(|f| f.id == "pcr_validation.invalid_pcr_7")
        .unwrap();
    let status = failed_with(std::slice::from_ref(finding), "error");
    let node = Node::new("web1", &status, NOW);
    let value = serde_json::to_value(Explanation::new(&node)).unwrap();
    let keys = |value: &Value| {
        let keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        keys.join(" ")
    };
    assert_eq!(
        keys(&value),
        "due_at_ms findings_total groups id judged_at_ms last_event reason severity since_ms state"
    );
    let group = &value["groups"][0];
    assert_eq!(
        keys(group),
        "causes component findings id kind meaning next origin severity title"
    );
    assert_eq!(group["kind"], "pcr_validation.invalid_pcr_<n>");
    let explained = &group["findings"][0];
    assert_eq!(
        keys(explained),
        "action expected explanation got id next place recoverable where"
    );
    assert_eq!(explained["where"], "PCR 7 (secure-boot-policy)");
    assert_eq!(
        explained["next"][0],
        json!({"host": "node", "command": "systemd-analyze pcrs 7"})
    );
}

#[test]
fn the_documentation_shows_what_is_printed() {
    let document = include_str!("../../../../docs/findings.md");
    for id in [
        "ima.validation.ima-ng.not_in_allowlist",
        "measured_boot.policy_example",
    ] {
        let path = Path::new(SNAPSHOTS).join(format!("{id}.txt"));
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            document.contains(&format!("```\n{text}```\n")),
            "docs/findings.md lacks {id}"
        );
    }
}

#[test]
fn hostile_names_drive_neither_terminal_nor_shell() {
    let kept = findings();
    let find = |id: &str| {
        kept.iter()
            .find(|finding| finding.id == id)
            .unwrap()
            .clone()
    };
    let mut hostile = find("ima.validation.ima-ng.not_in_allowlist");
    hostile.place = Place::ImaEntry {
        entry: 1,
        path: Some("/tmp/\u{1b}[2J\u{202e}'; reboot #".to_owned()),
    };
    let text = explained(&failed_with(&[hostile], "emergency"), false);
    assert!(
        !text.chars().any(|c| c != '\n' && c.is_control()),
        "{text:?}"
    );
    assert!(!text.contains('\u{202e}'), "{text:?}");
    assert!(
        text.contains(r"sha256sum -- '/tmp/\u{1b}[2J\u{202e}'\''; reboot #'"),
        "{text}"
    );
}
