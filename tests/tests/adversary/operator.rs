use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::forge::{AK_ATTRIBUTES, Ak, Liar, sized};
use crate::{Stage, operator_tls, peak_memory, raw, reason};

const ID: &str = "enrolled";

/// An honest host's enrolment with these changes is refused with `words`, and nothing is kept.
fn refused(words: &str, change: impl FnOnce(&mut Value)) {
    let stage = Stage::new();
    let liar = Liar::start(&stage.fleet.ca_dir());
    let mut enrolment = liar.enrolment();
    change(&mut enrolment);
    let reply = stage.operator.enrol(ID, &enrolment);
    assert_eq!(reply.status, 400, "{reply:?}");
    let status = reply.body["status"].as_str().unwrap();
    assert!(status.contains(words), "{status}");
    // The id and the policy's name are free.
    stage.enrol(ID, &liar);
    stage.operator.wait_for_state(ID, "trusted");
}

/// Status of a POST of this text as an enrolment.
fn posted(stage: &Stage, body: &str) -> Option<u16> {
    let request = raw::request(&format!("POST /v2.6/agents/{ID}"), "", body);
    let tls = operator_tls(&stage.fleet.ca_dir());
    raw::status(stage.fleet.verifier_port(), Some(tls), &request)
}

/// The host could sign made-up quotes with it.
///
/// Check: `verifier/src/poll/rules.rs`: `check_ak(&ak)`
#[test]
fn an_ak_that_is_not_restricted() {
    refused("restricted", |enrolment| {
        let ak = Ak::generate().tpmt(AK_ATTRIBUTES & !(1 << 16));
        enrolment["ak_tpm"] = json!(BASE64_STANDARD.encode(sized(&ak)));
    });
}

/// A policy for files, and a mask without the PCR that vouches for their list.
///
/// Check: `verifier/src/poll/rules.rs`: `NodeError::Mask`
#[test]
fn a_mask_without_the_pcrs_of_the_policy() {
    refused("PCR", |enrolment| {
        enrolment["tpm_policy"] = json!("{\"mask\": \"0x1\"}")
    });
}

/// A pattern whose automaton would fill the memory.
///
/// Check: `core/src/policy/excludes.rs`: `const SIZE_LIMIT`
#[test]
fn an_exclude_that_grows_without_end() {
    refused("exclude", |enrolment| {
        with_excludes(enrolment, &["((a{1000}){1000}){1000}"])
    });
}

fn with_excludes(enrolment: &mut Value, excludes: &[&str]) {
    let policy = enrolment["runtime_policy"].as_str().unwrap();
    let mut policy: Value =
        serde_json::from_slice(&BASE64_STANDARD.decode(policy).unwrap()).unwrap();
    policy["excludes"] = json!(excludes);
    enrolment["runtime_policy"] = json!(BASE64_STANDARD.encode(policy.to_string()));
}

/// A pattern that takes for ever on the paths that a host chooses for it: the host is judged all the
/// same, as the path that it is slow on is not excluded.
///
/// Check: `core/src/policy/excludes.rs`: `.backtrack_limit(BACKTRACK_LIMIT)`
#[test]
fn an_exclude_that_takes_for_ever() {
    let stage = Stage::new();
    let liar = Liar::start(&stage.fleet.ca_dir());
    let mut enrolment = liar.enrolment();
    with_excludes(&mut enrolment, &[r"/tmp/(a|a)*\1y"]);
    assert_eq!(stage.operator.enrol(ID, &enrolment).status, 200);
    stage.operator.wait_for_state(ID, "trusted");
    let slow = "a".repeat(2_000);
    liar.run_all((0..500).map(|number| format!("/tmp/{slow}cy{number}")));
    let node = stage.operator.wait_for_state(ID, "failed");
    assert!(reason(&node).contains("/tmp/"), "{}", reason(&node));
}

/// More than an upload may have.
///
/// Check: `verifier/src/api/mod.rs`: `max_upload_size`
#[test]
fn an_enrolment_without_end() {
    let mut stage = Stage::with_verifier("max_upload_size = 1048576");
    let large = format!("{{\"metadata\": \"{}\"}}", "x".repeat(64 << 20));
    assert_eq!(posted(&stage, &large), Some(413));
    let memory = peak_memory(stage.fleet.verifier());
    assert!(memory < 100, "{memory} MiB");
}

/// JSON that is nested 100,000 deep, where it is read and where nobody looks.
///
/// Check: `verifier/src/api/mod.rs`: `Enrolment::from_json(body)`
#[test]
fn an_enrolment_nested_without_end() {
    let stage = Stage::new();
    assert_eq!(posted(&stage, &"[".repeat(100_000)), Some(400));
    let unknown = format!("{{\"unknown\": {}", "{\"a\":".repeat(100_000));
    assert_eq!(posted(&stage, &unknown), Some(400));
    stage.trusted("other");
}

/// Two AKs under one name: which of them is enrolled must not be a matter of the parser.
///
/// Check: `core/src/wire/enrolment.rs`: `.deserialize(&mut json)`
#[test]
fn an_enrolment_with_a_member_twice() {
    let stage = Stage::new();
    let liar = Liar::start(&stage.fleet.ca_dir());
    let once = liar.enrolment().to_string();
    let other = Ak::generate().public();
    let twice = once.replacen('{', &format!("{{\"ak_tpm\":\"{other}\","), 1);
    assert_eq!(posted(&stage, &twice), Some(400));
    let unknown = once.replacen('{', "{\"of_a_later_version\":[1],", 1);
    assert_eq!(posted(&stage, &unknown), Some(200));
}
