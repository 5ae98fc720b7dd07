use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use sqlx::{AnyConnection, Connection, Executor};
use troth_verifier::{
    ca::CaDirectory,
    config::VerifierConfig,
    store::{Enrolled, NewNode, PolicyChoices, Schema, Store},
};

use crate::{
    common::operator,
    stage::{Agent, Listening, Mode, Verifier, enrolment, stage},
};

#[tokio::test]
async fn unusable_enrolments_are_refused_with_the_member_to_change() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let policy = STANDARD.encode("{\"meta\": 1}");
    let cases = [
        ("ak_tpm", json!("*"), "ak_tpm"),
        (
            "ak_tpm",
            json!(agent.tpm.ak_with_attributes(0x0004_0072)),
            "restricted",
        ),
        ("ak_tpm", json!(agent.tpm.ek_tpm()), "ak_tpm"),
        ("tpm_policy", json!("{"), "tpm_policy"),
        (
            "tpm_policy",
            json!("{\"10\": [\"00\"], \"mask\": \"0x400\"}"),
            "tpm_policy",
        ),
        (
            "mb_policy",
            json!("{\"unknown\": 1}"),
            "Measured boot policy is malformatted",
        ),
        ("mb_policy", json!("{}"), "mask lacks PCRs"),
        ("runtime_policy", json!("*"), "runtime_policy"),
        (
            "runtime_policy",
            json!(policy),
            "Runtime policy is malformatted",
        ),
        ("runtime_policy_key", json!("AAAA"), "runtime_policy_key"),
        (
            "ima_sign_verification_keys",
            json!("{\"keys\": 1}"),
            "ima_sign_verification_keys: not JSON",
        ),
        (
            "mtls_cert",
            json!("disabled"),
            "mTLS certificate for agent is required!",
        ),
        ("mtls_cert", json!("nonsense"), "mtls_cert"),
        ("cloudagent_ip", json!(null), "cloudagent_ip"),
        ("cloudagent_ip", json!("host/path"), "cloudagent_ip"),
        ("cloudagent_port", json!(null), "cloudagent_port"),
        ("cloudagent_port", json!("x"), "body"),
        ("accept_tpm_hash_algs", json!(3), "body"),
    ];
    for (member, value, reason) in cases {
        let mut body = enrolment(&agent, &listening);
        body[member] = value;
        let (code, answer) = verifier.enrol("a", body).await;
        let text = answer["status"].as_str().unwrap();
        assert!(
            code == 400 && text.contains(reason),
            "{member}: {code} {text}"
        );
    }
    let mut body = enrolment(&agent, &listening);
    body["runtime_policy_name"] = json!("unknown");
    assert_eq!(verifier.enrol("a", body).await.0, 404);
    assert_eq!(
        verifier
            .enrol("a%2fb", enrolment(&agent, &listening))
            .await
            .0,
        400
    );
    let (code, answer) = verifier.call(Method::POST, "/v2.6/agents/a", None).await;
    assert_eq!(
        (code, &answer["status"]),
        (400, &json!("Expected non zero content length"))
    );
    let (_, list) = verifier.call(Method::GET, "/v2.6/agents", None).await;
    assert_eq!(
        list["results"],
        json!({ "uuids": [] }),
        "a refused enrolment left something"
    );
    verifier.stop().await;
}

#[tokio::test]
async fn stored_node_that_is_no_longer_acceptable_stays_visible_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let plain = VerifierConfig {
        state_dir: root.path().into(),
        enable_agent_mtls: false,
        ..VerifierConfig::default()
    };
    CaDirectory::ensure(&plain.ca_dir(), &[]).unwrap();
    let verifier = Verifier::with(plain).await;
    let agent = Agent::new();
    let listening = Listening::start(&agent, &root.path().join("cv_ca")).await;
    let mut body = enrolment(&agent, &listening);
    body["mtls_cert"] = json!("disabled");
    assert_eq!(verifier.enrol("a", body).await.0, 200);
    verifier.stop().await;
    let verifier = Verifier::start(root.path()).await;
    let status = verifier.status("a").await;
    assert_eq!(
        (&status["operational_state"], &status["troth"]["state"]),
        (&json!(7), &json!("stopped"))
    );
    let reason = status["troth"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("mTLS certificate for agent is required"),
        "{reason}"
    );
    let (code, answer) = verifier
        .call(Method::PUT, "/v2.6/agents/a/reactivate", None)
        .await;
    assert_eq!(code, 409, "{answer}");
    assert_eq!(
        verifier
            .call(Method::DELETE, "/v2.6/agents/a", None)
            .await
            .0,
        200
    );
    assert_eq!(
        verifier.enrol("a", enrolment(&agent, &listening)).await.0,
        200
    );
    verifier.until_state("a", "trusted").await;
    verifier.stop().await;
}

#[tokio::test]
async fn boot_policy_of_an_enrolment_from_before_such_policies_had_names_still_judges() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let mut body = enrolment(&agent, &listening);
    body["tpm_policy"] = json!("{\"mask\": \"0xfbff\"}");
    assert_eq!(verifier.enrol("a", body).await.0, 200);
    verifier.until_state("a", "trusted").await;
    verifier.stop().await;

    let config = VerifierConfig {
        state_dir: root.path().into(),
        ..VerifierConfig::default()
    };
    let store = Store::open(&config.database_url(), Schema::Verifier).await;
    let store = store.unwrap();
    let row = store.nodes("default").await.unwrap().remove(0);
    let mut enrolment: Value = serde_json::from_str(row.enrolment.expose()).unwrap();
    enrolment["mb_policy"] = json!("{}");
    let node = NewNode {
        agent_id: row.agent_id,
        generation: row.generation,
        verifier_id: "default".into(),
        enrolment: enrolment.to_string().into(),
        operational_state: row.operational_state,
        record: row.record,
    };
    assert!(store.delete_node("a").await.unwrap());
    let policies = PolicyChoices::default();
    let stored = store.insert_node(&node, &policies).await.unwrap();
    assert_eq!(stored, Enrolled::Done);
    store.close().await;

    let verifier = Verifier::start(root.path()).await;
    let status = verifier.until_state("a", "failed").await;
    assert_eq!(status["has_mb_refstate"], 1);
    assert_eq!(status["last_event_id"], "measured_boot.missing_log");
    verifier.stop().await;
}

#[tokio::test]
async fn member_that_was_forgotten_is_named() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    for member in ["mb_policy", "runtime_policy", "revocation_key", "ak_tpm"] {
        let mut body = enrolment(&agent, &listening);
        body.as_object_mut().unwrap().remove(member);
        let (code, answer) = verifier.enrol("a", body).await;
        let text = answer["status"].as_str().unwrap();
        let begins = format!("Exception error: '{member}'");
        assert!(code == 400 && text.starts_with(&begins), "{code} {text}");
    }
    verifier.stop().await;
}

/// Members of a status and their types, as Keylime's API 2.x has them.
const STATUS: [(&str, &str); 26] = [
    ("operational_state", "number"),
    ("v", "string"),
    ("ip", "string"),
    ("port", "number"),
    ("tpm_policy", "string"),
    ("meta_data", "string"),
    ("has_mb_refstate", "number"),
    ("has_runtime_policy", "number"),
    ("accept_tpm_hash_algs", "array"),
    ("accept_tpm_encryption_algs", "array"),
    ("accept_tpm_signing_algs", "array"),
    ("hash_alg", "string"),
    ("enc_alg", "string"),
    ("sign_alg", "string"),
    ("verifier_id", "string"),
    ("verifier_ip", "string"),
    ("verifier_port", "number"),
    ("severity_level", "null"),
    ("last_event_id", "null"),
    ("attestation_count", "number"),
    ("last_received_quote", "number"),
    ("last_successful_attestation", "number"),
    ("attestation_status", "string"),
    ("attestation_period", "string"),
    ("maximum_attestation_interval", "string"),
    // Ours.
    ("troth", "object"),
];

#[tokio::test]
async fn status_has_keylimes_members_and_what_the_operator_said_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let mut body = enrolment(&agent, &listening);
    body["v"] = json!("AAAA");
    body["metadata"] = json!("{\"cert_serial\": 7}");
    body["verifier_ip"] = json!("verifier.example.org");
    body["verifier_port"] = json!("8882");
    assert_eq!(verifier.enrol("a", body).await.0, 200);
    let status = verifier.until_state("a", "trusted").await;
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let mut members: Vec<_> = status
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.as_str(), kind(value)))
        .collect();
    let mut expected = STATUS.to_vec();
    members.sort_unstable();
    expected.sort_unstable();
    assert_eq!(members, expected);
    assert_eq!(
        (&status["v"], &status["meta_data"]),
        (&json!("AAAA"), &json!("{\"cert_serial\": 7}"))
    );
    assert_eq!(
        (&status["verifier_ip"], &status["verifier_port"]),
        (&json!("verifier.example.org"), &json!(8882))
    );
    assert_eq!(
        (&status["attestation_period"], &status["verifier_id"]),
        (&json!("0s"), &json!("default"))
    );

    // After a failure the members that were null are not.
    agent.set(Mode::WrongPcr);
    let status = verifier.until_state("a", "failed").await;
    assert_eq!(
        (&status["severity_level"], kind(&status["last_event_id"])),
        (&json!(6), "string")
    );
    verifier.stop().await;
}

#[tokio::test]
async fn algorithms_that_the_enrolment_does_not_accept_fail_the_node() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    for (member, list, event) in [
        (
            "accept_tpm_hash_algs",
            json!(["sha384"]),
            "invalid_hash_alg",
        ),
        (
            "accept_tpm_encryption_algs",
            json!(["rsa", "ecc384"]),
            "invalid_enc_alg",
        ),
        (
            "accept_tpm_signing_algs",
            json!(["rsassa"]),
            "invalid_sign_alg",
        ),
    ] {
        let mut body = enrolment(&agent, &listening);
        body[member] = list;
        assert_eq!(verifier.enrol(event, body).await.0, 200);
        let status = verifier.until_state(event, "failed").await;
        assert_eq!(status["last_event_id"], format!("qoute_validation.{event}"));
    }
    verifier.stop().await;
}

#[tokio::test]
async fn node_of_another_verifier_is_not_removed_here() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    verifier.enrol("a", enrolment(&agent, &listening)).await;
    verifier.stop().await;
    let verifier = Verifier::with(VerifierConfig {
        state_dir: root.path().into(),
        uuid: "second".into(),
        ..VerifierConfig::default()
    })
    .await;
    let remove = async |id: &str| {
        let path = format!("/v2.6/agents/{id}");
        let (code, answer) = verifier.call(Method::DELETE, &path, None).await;
        (code, answer["status"].as_str().unwrap().to_owned())
    };
    let elsewhere = (404, "agent id associated to this verifier".to_owned());
    assert_eq!(remove("a").await, elsewhere);
    assert_eq!(remove("b").await, (404, "agent id not found".to_owned()));
    verifier.stop().await;
}

/// Does the verifier get at its database? A write that another process holds up keeps it busy.
async fn database_is_free(verifier: &Verifier) -> bool {
    let asked = verifier.call(Method::GET, "/v2.6/allowlists", None);
    tokio::time::timeout(Duration::from_secs(2), asked)
        .await
        .is_ok()
}

#[tokio::test]
async fn enrolment_ends_even_if_its_client_goes_away() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let config = VerifierConfig {
        state_dir: root.path().into(),
        ..VerifierConfig::default()
    };
    let mut other = AnyConnection::connect(&config.database_url())
        .await
        .unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let client = operator(verifier.port, &config.ca_dir(), true);
    let body = Bytes::from(enrolment(&agent, &listening).to_string());
    let asked = tokio::spawn(async move {
        client
            .send(Method::POST, "/v2.6/agents/a", Some(body))
            .await
    });
    while database_is_free(&verifier).await {}
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    other.execute("ROLLBACK").await.unwrap();

    let path = "/v2.6/agents/a";
    let end = Instant::now() + Duration::from_secs(15);
    while verifier.call(Method::GET, path, None).await.0 != 200 {
        assert!(Instant::now() < end, "the enrolment was dropped half-way");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    verifier.until_state("a", "trusted").await;
    verifier.stop().await;
}
