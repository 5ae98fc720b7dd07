use troth_tests::node::{Container, TCTI};

use crate::{ID, MINER, Site};

/// "A node failed" (verifier/src/messages.rs).
const FAILED: &str = "MESSAGE_ID=a2175e97ab2b4b8792c2551e5b06e422";

#[test]
fn the_journal_has_a_verdict_in_fields_and_explains_it() {
    let site = Site::trusted(TCTI, &[]);
    site.run_a_miner();
    let os = site.server.os();
    let entries = |os: &Container| os.journal(&[FAILED]);
    let entries = os
        .wait_for("there is an entry", entries, |found| !found.is_empty())
        .unwrap();
    let entry = &entries[0];
    for (field, value) in [
        ("NODE_ID", ID),
        ("VERDICT", "failed"),
        ("FINDING", "ima.validation.ima-ng.not_in_allowlist"),
        ("SYSLOG_IDENTIFIER", "troth-verifier"),
        ("_SYSTEMD_UNIT", "troth-verifier.service"),
    ] {
        assert_eq!(entry[field], value, "{entry:#}");
    }
    assert!(
        entry["MESSAGE"].as_str().unwrap().contains(MINER),
        "{entry:#}"
    );

    let explain = ["journalctl", "--no-pager", "--catalog", FAILED];
    let explained = os.output(&explain).unwrap();
    for text in [
        "Subject: Node node-1 is not trusted any more",
        "trothctl agent explain node-1",
    ] {
        assert!(explained.contains(text), "{explained}");
    }
}
