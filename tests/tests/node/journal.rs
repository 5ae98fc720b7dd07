use std::fs;

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
/// "The registrar refuses this host".
const HOST_REFUSED: &str = "MESSAGE_ID=822dc02b3fc64fb896239c4be9399c7e";
/// "A log that belongs to the evidence cannot be read".
const LOG_UNREADABLE: &str = "MESSAGE_ID=c2db5d9096c74d7998021d514ed43fe7";
/// "A registration was refused: another TPM" (verifier/src/messages.rs).
const IDENTITY_CONFLICT: &str = "MESSAGE_ID=100e372168f843d7991b3977492a2273";
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
        "systemctl restart troth-agent.service",
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

#[test]
fn a_log_that_cannot_be_read_is_told_of_once_until_it_can_be_read_again() {
    let log = "/srv/boot-log";
    let option = format!("measuredboot_ml_path = {log:?}\n");
    let site = Site::new(TCTI, &[("/etc/troth/agent.toml.d/10-log.toml", &option)]);
    let os = site.host.os();
    let machine = site.host.machine().unwrap();
    os.write(log, fs::read(machine.boot_log()).unwrap())
        .unwrap();
    os.output(&["systemctl", "start", "troth-agent"]).unwrap();
    site.wait_until_registered();
    site.trothctl(&["agent", "add", ID, "--boot-policy", "{}"])
        .success()
        .unwrap();
    let before = site.wait_for_state("trusted");

    os.output(&["chmod", "0600", log]).unwrap();
    let entry = wait_for_entry(os, LOG_UNREADABLE);
    assert_eq!(entry["TROTH_PATH"], log, "{entry:#}");
    assert_eq!(entry["PRIORITY"], "3", "{entry:#}");
    let no_quote = |os: &Container| os.journal(&["--unit=troth-agent", "--grep=no quote"]);
    os.wait_for("it is asked again", no_quote, |told| told.len() > 2)
        .unwrap();
    assert_eq!(os.journal(&[LOG_UNREADABLE]).unwrap().len(), 1);

    os.output(&["chmod", "0644", log]).unwrap();
    site.wait_for_trust_after(&before);
    os.output(&["chmod", "0600", log]).unwrap();
    let entries = |os: &Container| os.journal(&[LOG_UNREADABLE]);
    os.wait_for("it is told again", entries, |found| found.len() == 2)
        .unwrap();
}

#[test]
fn a_host_that_has_lost_its_attestation_key_is_told_why_it_is_refused() {
    let site = Site::trusted(TCTI, &[]);
    let (os, server) = (site.host.os(), site.server.os());
    os.output(&["systemctl", "stop", "troth-agent"]).unwrap();
    os.output(&["rm", "/var/lib/troth/ak.json"]).unwrap();
    let start = ["systemctl", "start", "--no-block", "troth-agent"];
    os.output(&start).unwrap();
    let entry = wait_for_entry(os, HOST_REFUSED);
    assert_eq!(entry["TROTH_NODE_ID"], ID, "{entry:#}");
    let entry = wait_for_entry(server, IDENTITY_CONFLICT);
    assert_eq!(entry["TROTH_NODE_ID"], ID, "{entry:#}");
    let status = |os: &Container| os.property("troth-agent", "ExecMainStatus");
    os.wait_for("it ends for good", status, |status| status == "77")
        .unwrap();

    let explain = ["journalctl", "--no-pager", "-x", "-u", "troth-agent"];
    let explained = os.output(&explain).unwrap();
    for text in [
        "Subject: An attestation key was made for node-1",
        "Subject: The registrar refuses this host",
        "trothctl registrar remove node-1",
    ] {
        assert!(explained.contains(text), "{text}: {explained}");
    }
    // As it says there.
    site.trothctl(&["registrar", "remove", ID])
        .success()
        .unwrap();
    os.output(&["systemctl", "start", "troth-agent"]).unwrap();
    site.wait_until_registered();
}
