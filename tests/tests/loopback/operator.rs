/// The same operator at Keylime's registrar and verifier.
mod keylime;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use troth_tests::fleet::{AgentOptions, Answer};
use troth_tests::process::output_of;
use troth_tests::tpm::Swtpm;

use crate::Stage;

/// NV index of an RSA 2048 EK's certificate (TCG EK Credential Profile, 2.2.1.4).
const EK_CERTIFICATE: &str = "0x01c00002";

/// `trothctl --json agent add ID ARGUMENTS`.
fn add(stage: &Stage, id: &str, arguments: &[&str]) -> Answer {
    let command = [&["--json", "agent", "add", id], arguments].concat();
    stage.fleet.trothctl(&command).unwrap()
}

/// Refused with this exit status, a text that says why, and nothing enrolled.
fn refused(stage: &Stage, id: &str, arguments: &[&str], status: i32, why: &str) {
    let answer = add(stage, id, arguments);
    assert_eq!(answer.status.code(), Some(status), "{}", answer.stderr);
    let error: Value = serde_json::from_str(&answer.stderr).unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains(why), "{message}");
    assert!(error["error"]["advice"].is_string(), "{error:#}");
    let node = stage.fleet.trothctl(&["agent", "status", id]).unwrap();
    assert_eq!(node.status.code(), Some(5), "{}", node.stdout);
}

#[test]
fn an_ek_is_believed_when_a_known_vendor_certified_it() {
    let stage = Stage::new();
    let id = "vendor";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    let store = stage.fleet.tpm_cert_store();
    let required = ["--require-ek-cert", "true"];
    refused(&stage, id, &required, 1, "tpm_cert_store");

    // Another vendor's CA of the same name, which only the signature tells apart.
    let other = Swtpm::manufacture(&stage.path().join("other")).unwrap();
    stage.fleet.trust_tpm_vendor(&other.ek_issuer()).unwrap();
    refused(&stage, id, &[], 3, "is not certified by a CA in");

    let issuer = stage.machine.tpm().ek_issuer();
    stage.fleet.trust_tpm_vendor(&issuer).unwrap();
    let added = add(&stage, id, &[]).success().unwrap().json().unwrap();
    assert_eq!(added["ek_certificate"], "certified");
    let path = added["ek_path"].as_array().unwrap();
    assert_eq!(path.len(), 2, "{path:?}");
    assert!(
        path[1].as_str().unwrap().contains("swtpm-localca"),
        "{path:?}"
    );
    assert_eq!(added["warnings"], json!([]));
    assert!(store.is_dir());
}

#[test]
fn a_host_without_an_ek_certificate_needs_somebody_else_to_vouch_for_it() {
    let stage = Stage::new();
    let id = "unvouched";
    // As on hosts whose vendor publishes certificates elsewhere than in the TPM.
    output_of(
        Command::new("tpm2")
            .args(["nvundefine", "-C", "p", EK_CERTIFICATE, "-T"])
            .arg(stage.machine.tpm().tcti()),
    )
    .unwrap();
    let _agent = stage.agent(&AgentOptions::with_id(id));
    stage
        .fleet
        .trust_tpm_vendor(&stage.machine.tpm().ek_issuer())
        .unwrap();
    refused(&stage, id, &[], 3, "there is no EK certificate");
    let script = script(&stage, "yes", "exit 0");
    let script = script.to_str().unwrap();
    let vouched = ["--require-ek-cert", "false", "--ek-check-script", script];
    let added = add(&stage, id, &vouched).success().unwrap().json().unwrap();
    assert_eq!(added["ek_certificate"], "absent");
    assert_eq!(added["ek_check_script"], script);
}

/// A program of the operator's.
fn script(stage: &Stage, name: &str, text: &str) -> PathBuf {
    let path = stage.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn the_sites_own_program_ends_with_trothctl() {
    let stage = Stage::new();
    let id = "interrupted";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    // Somebody types Ctrl-C when it runs, and has started something.
    let text = "sleep 1000 & echo $! > \"$0.pid\"; kill -INT $PPID; wait";
    let interrupted = script(&stage, "pressed", text);
    let option = ["--ek-check-script", interrupted.to_str().unwrap()];
    let answer = add(&stage, id, &option);
    assert_eq!(answer.status.code(), Some(130), "{}", answer.stderr);
    let helper = fs::read_to_string(interrupted.with_extension("pid")).unwrap();
    let state = fs::read_to_string(format!("/proc/{}/stat", helper.trim()));
    assert!(
        !state.is_ok_and(|state| state.contains(" S ")),
        "its helper still sleeps"
    );
}

#[test]
fn the_sites_own_program_has_the_last_word_about_an_ek() {
    let stage = Stage::new();
    let id = "asked";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    let with = |path: &Path| -> [String; 2] {
        ["--ek-check-script".to_owned(), path.display().to_string()]
    };
    let no = with(&script(
        &stage,
        "no",
        "echo the inventory has no such TPM; exit 3",
    ));
    let no = no.each_ref().map(String::as_str);
    refused(
        &stage,
        id,
        &no,
        3,
        "exit status 3): the inventory has no such TPM",
    );

    // It is killed with what it started, although it does not mind being asked.
    let deaf = "trap '' TERM; echo waiting; sleep 1000 & echo $! > \"$0.pid\"; wait";
    let deaf = script(&stage, "deaf", deaf);
    let config = stage.path().join("trothctl.toml");
    fs::write(&config, "ek_check_timeout = 0.5\n").unwrap();
    let hanging = with(&deaf);
    let config = ["--config", config.to_str().unwrap()];
    let hanging = [&config[..], &hanging.each_ref().map(String::as_str)].concat();
    refused(
        &stage,
        id,
        &hanging,
        1,
        "did not end within 0.5 s and was killed: waiting",
    );
    let helper = fs::read_to_string(deaf.with_extension("pid")).unwrap();
    let state = fs::read_to_string(format!("/proc/{}/stat", helper.trim()));
    assert!(
        !state.is_ok_and(|state| state.contains(" S ")),
        "its helper still sleeps"
    );

    let missing = with(&stage.path().join("absent"));
    refused(
        &stage,
        id,
        &missing.each_ref().map(String::as_str),
        1,
        "cannot run it",
    );

    let told = script(
        &stage,
        "told",
        "env > \"$0.env\"; pwd >> \"$0.env\"; echo fine",
    );
    let told_arguments = with(&told);
    let told_arguments = told_arguments.each_ref().map(String::as_str);
    add(&stage, id, &told_arguments).success().unwrap();
    let told = fs::read_to_string(told.with_extension("env")).unwrap();
    let record = stage.fleet.wait_registered(id).unwrap();
    let ek_tpm = record["ek"]["public"].as_str().unwrap();
    assert!(told.contains(&format!("AGENT_UUID={id}\n")), "{told}");
    assert!(told.contains(&format!("EK_TPM={ek_tpm}\n")), "{told}");
    assert!(told.contains("EK=-----BEGIN PUBLIC KEY-----\n"), "{told}");
    assert!(told.contains("EK_CERT=MII"), "{told}");
    assert!(told.contains("PROVKEYS={}\n"), "{told}");
    assert!(
        !told.contains("TROTH_CA_DIR"),
        "the operator's environment: {told}"
    );
}

#[test]
fn the_log_names_the_administrator_of_every_change() {
    let mut stage = Stage::new();
    let id = "changed";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    for command in ["stop", "reactivate", "remove"] {
        let command = ["agent", command, id];
        stage.fleet.trothctl(&command).unwrap().success().unwrap();
    }
    for change in ["enrolled", "stopped", "reactivated", "removed"] {
        let logged = |log: &str| {
            let named = |line: &&str| line.contains(change) && line.contains("admin=client");
            log.lines().find(named).map(str::to_owned)
        };
        let line = stage.fleet.verifier().wait_for_log(0, logged).unwrap();
        assert!(line.contains(id), "{line}");
    }
}

#[test]
fn an_update_changes_what_it_names_and_keeps_the_rest() {
    let stage = Stage::new();
    let id = "updated";
    let agent = stage.agent(&AgentOptions::with_id(id));
    let policy = stage.policy();
    let policy = policy.to_str().unwrap();
    let with = ["--runtime-policy", policy, "--boot-policy", "{}"];
    add(&stage, id, &with).success().unwrap();
    let before = stage.fleet.wait_for_state(id, "trusted").unwrap();
    assert_eq!(before["runtime_policy"], id);

    // A program that the policy does not have, then a policy that has it.
    stage.machine.run_program("/usr/bin/new", b"new\n").unwrap();
    stage.fleet.wait_for_state(id, "failed").unwrap();
    let grown = stage.policy();
    let update = ["--json", "agent", "update", id];
    let run = |arguments: &[&str]| {
        let command = [&update[..], arguments].concat();
        stage
            .fleet
            .trothctl(&command)
            .unwrap()
            .success()
            .unwrap()
            .json()
            .unwrap()
    };
    let grown = grown.to_str().unwrap();
    let updated = run(&["--runtime-policy", grown]);
    assert_eq!(updated["how"], "in_place");
    let after = stage.fleet.wait_for_state(id, "trusted").unwrap();
    assert!(
        after["attestation_count"].as_u64() > before["attestation_count"].as_u64(),
        "counters go on: {after:#}"
    );

    // Named policies, by import; the boot policy is kept.
    let import = |arguments: &[&str]| {
        let command = [&["policy", "import"], arguments].concat();
        stage.fleet.trothctl(&command).unwrap().success().unwrap();
    };
    import(&["runtime", "base", grown]);
    let updated = run(&["--runtime-policy-name", "base"]);
    assert_eq!(updated["how"], "enrolled_anew");
    assert_eq!(updated["has_boot_policy"], true);
    let node = stage.fleet.wait_for_state(id, "trusted").unwrap();
    assert_eq!(node["runtime_policy"], "base");
    assert_eq!(node["tpm_policy"]["mask"], "0xffff");

    // A policy in use stays; one that is not goes.
    let remove = ["policy", "remove", "runtime", "base"];
    let in_use = stage.fleet.trothctl(&remove).unwrap();
    assert!(in_use.stderr.contains(id), "{}", in_use.stderr);
    let updated = run(&["--no-runtime-policy", "--accept-hash", "sha256"]);
    assert_eq!(updated["has_runtime_policy"], false);
    let node = stage.fleet.wait_for_state(id, "trusted").unwrap();
    assert_eq!(node["tpm_policy"]["mask"], "0xfbff");
    stage.fleet.trothctl(&remove).unwrap().success().unwrap();

    // The address that the verifier was given stays with the next change.
    run(&["--address-for-verifier", "localhost"]);
    run(&["--tpm-policy", "{}"]);
    let node = stage.fleet.wait_for_state(id, "trusted").unwrap();
    let port = agent.address().port();
    assert_eq!(node["address"], format!("localhost:{port}"));
}
