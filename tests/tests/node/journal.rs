use serde_json::Value;
use troth_tests::node::{Container, TCTI};

use crate::{ID, MINER, SERVER, Site};

/// "A node failed" (verifier/src/messages.rs).
const FAILED: &str = "MESSAGE_ID=a2175e97ab2b4b8792c2551e5b06e422";
/// "A node was enrolled".
const ENROLLED: &str = "MESSAGE_ID=96cb949d90754cccb8f73b1816cfd039";
/// "A policy was changed".
const POLICY_CHANGED: &str = "MESSAGE_ID=ef58755780d94048ab377de66c2b743a";
/// "This host is registered" (agent/src/messages.rs).
const HOST_REGISTERED: &str = "MESSAGE_ID=9ed740e588964076aaa743a452fec4c0";
/// "This host is not registered yet".
const NOT_REGISTERED: &str = "MESSAGE_ID=5de90972738c44ecaf1f5afb39299c69";
/// "Changed options wait for a restart" (daemon/src/reload.rs).
const RESTART_NEEDED: &str = "MESSAGE_ID=5379d0c18b304231936f4b31c13a8521";

/// Fields of systemd.journal-fields(7) that a program sets.
const STANDARD: [&str; 6] = [
    "CODE_FILE",
    "CODE_LINE",
    "MESSAGE",
    "MESSAGE_ID",
    "PRIORITY",
    "SYSLOG_IDENTIFIER",
];

fn wait_for_entry(os: &Container, id: &str) -> Value {
    let entries = |os: &Container| os.journal(&[id]);
    let entries = os.wait_for("there is an entry", entries, |found| !found.is_empty());
    entries.unwrap().remove(0)
}

#[test]
fn the_journal_has_a_verdict_in_fields_and_explains_it() {
    let site = Site::trusted(TCTI, &[]);
    site.run_a_miner();
    let os = site.server.os();
    let entry = wait_for_entry(os, FAILED);
    for (field, value) in [
        ("TROTH_NODE_ID", ID),
        ("TROTH_VERDICT", "failed"),
        ("TROTH_FINDING", "ima.validation.ima-ng.not_in_allowlist"),
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

#[test]
fn the_journal_of_an_agent_reads_as_what_happened_and_what_to_do() {
    let site = Site::new(TCTI, &[]);
    let (os, server) = (site.host.os(), site.server.os());
    server
        .output(&["systemctl", "stop", "troth-registrar"])
        .unwrap();
    os.output(&["systemctl", "start", "troth-agent"]).unwrap();
    let entry = wait_for_entry(os, NOT_REGISTERED);
    assert_eq!(entry["TROTH_REGISTRAR"], SERVER.to_string(), "{entry:#}");
    server
        .output(&["systemctl", "start", "troth-registrar"])
        .unwrap();
    let entry = wait_for_entry(os, HOST_REGISTERED);
    assert_eq!(entry["TROTH_NODE_ID"], ID, "{entry:#}");
    assert_eq!(entry["PRIORITY"], "5", "{entry:#}");

    os.write(
        "/etc/troth/agent.toml.d/20-new.toml",
        "contact_port = 9003\n",
    )
    .unwrap();
    os.output(&["systemctl", "reload", "troth-agent"]).unwrap();
    let entry = wait_for_entry(os, RESTART_NEEDED);
    assert_eq!(entry["TROTH_OPTIONS"], "contact_port", "{entry:#}");

    let explain = ["journalctl", "--no-pager", "-x", "-u", "troth-agent"];
    let explained = os.output(&explain).unwrap();
    for text in [
        "Subject: An attestation key was made for node-1",
        "Subject: This host is not registered yet",
        "Subject: This host is registered as node-1",
        "Subject: Changed options wait for a restart",
        "process cannot take: contact_port. Until",
    ] {
        assert!(explained.contains(text), "{text}: {explained}");
    }
    assert!(!explained.contains("@TROTH_"), "{explained}");

    let own = ["SYSLOG_IDENTIFIER=troth-agent", "_TRANSPORT=journal"];
    let entries = os.journal(&own).unwrap();
    assert!(entries.len() > 5, "{entries:#?}");
    for entry in entries {
        for field in entry.as_object().unwrap().keys() {
            let known = STANDARD.contains(&field.as_str())
                || field.starts_with("TROTH_")
                || field.starts_with('_');
            assert!(known, "{field}: {entry:#}");
        }
    }
}

#[test]
fn the_journal_says_which_operator_changed_what() {
    let site = Site::trusted(TCTI, &[]);
    let os = site.server.os();
    let entry = wait_for_entry(os, ENROLLED);
    assert_eq!(entry["TROTH_NODE_ID"], ID, "{entry:#}");
    let admin = entry["TROTH_ADMIN"].as_str().unwrap();
    assert!(
        entry["MESSAGE"].as_str().unwrap().ends_with(admin),
        "{entry:#}"
    );

    let import = ["policy", "import", "runtime", "base", "/root/policy.json"];
    site.trothctl(&import).success().unwrap();
    let entry = wait_for_entry(os, POLICY_CHANGED);
    assert_eq!(entry["TROTH_POLICY"], "base", "{entry:#}");
    assert_eq!(entry["TROTH_ADMIN"], admin, "{entry:#}");
}
