use hyper::Method;
use serde_json::json;

use crate::stage::{Listening, Mode, enrolment, stage};

#[tokio::test]
async fn silent_node_is_unreachable_and_comes_back_by_itself() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, mut listening) = stage(root.path()).await;
    verifier.enrol("a", enrolment(&agent, &listening)).await;
    let count = verifier.until_state("a", "trusted").await["attestation_count"].clone();
    listening.stop().await;
    let status = verifier.until("a", |s| s["operational_state"] == 7).await;
    assert_eq!(status["troth"]["state"], "unreachable");
    assert_eq!(status["last_event_id"], "internal.verifier.not_reachable");
    assert_eq!(status["attestation_status"], "FAIL");
    let reason = status["troth"]["reason"].as_str().unwrap();
    assert!(reason.contains("cannot connect"), "{reason}");
    let Listening {
        address,
        certificate,
        identity,
        ..
    } = listening;
    let ca_dir = root.path().join("cv_ca");
    let _back = Listening::with(&agent, &ca_dir, certificate, identity, address).await;
    let status = verifier.until_state("a", "trusted").await;
    assert!(status["attestation_count"].as_u64() > count.as_u64());
    verifier.stop().await;
}

#[tokio::test]
async fn node_without_evidence_is_neither_trusted_nor_failed() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    for (id, mode, reason) in [
        ("busy", Mode::Status(503), "answered 503: no evidence today"),
        ("forbidden", Mode::Status(403), "answered 403"),
        ("mute", Mode::Hang, "no answer within 1 s"),
    ] {
        agent.set(mode);
        verifier.enrol(id, enrolment(&agent, &listening)).await;
        let status = verifier.until_state(id, "unreachable").await;
        let text = status["troth"]["reason"].as_str().unwrap();
        assert!(text.contains(reason), "{text}");
        assert_eq!(status["attestation_count"], 0);
        let (code, _) = verifier
            .call(Method::DELETE, &format!("/v2.6/agents/{id}"), None)
            .await;
        assert_eq!(code, 200);
    }
    let (code, answer) = verifier.call(Method::GET, "/v2.6/agents/mute", None).await;
    assert_eq!(
        (code, &answer["status"]),
        (404, &json!("agent id not found"))
    );
    verifier.stop().await;
}

#[tokio::test]
async fn nonsense_instead_of_evidence_fails_with_a_finding() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    for (id, body) in [
        ("text", "hello"),
        ("no-results", "{\"code\": 200, \"status\": \"Success\"}"),
        (
            "no-quote",
            "{\"code\": 200, \"status\": \"Success\", \"results\": {\"quote\": \"r::\"}}",
        ),
    ] {
        agent.set(Mode::Body(body));
        verifier.enrol(id, enrolment(&agent, &listening)).await;
        let status = verifier.until_state(id, "failed").await;
        let event = status["last_event_id"].as_str().unwrap();
        assert!(event.starts_with("qoute_validation."), "{event}");
    }
    verifier.stop().await;
}

#[tokio::test]
async fn host_with_another_certificate_is_not_believed() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let impostor = Listening::start(&agent, &root.path().join("cv_ca")).await;
    let mut body = enrolment(&agent, &listening);
    body["cloudagent_port"] = json!(impostor.address.port());
    verifier.enrol("a", body).await;
    let status = verifier.until("a", |s| s["operational_state"] == 7).await;
    let reason = status["troth"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("if the agent has a new TLS key"),
        "{reason}"
    );
    assert!(agent.queries().is_empty());
    verifier.stop().await;
}

#[tokio::test]
async fn api_version_is_negotiated_again_but_never_down_after_an_attestation() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    agent.set(Mode::Only("2.3"));
    verifier.enrol("a", enrolment(&agent, &listening)).await;
    verifier.until_state("a", "trusted").await;
    let queries = agent.queries();
    assert!(
        queries[0].starts_with("/v2.6/") && queries[2].starts_with("/v2.3/"),
        "{queries:?}"
    );
    assert_eq!(queries[1], "/version");
    // An upgraded agent that dropped the old version.
    agent.set(Mode::Only("2.5"));
    verifier
        .until("a", |_| {
            agent.queries().last().unwrap().starts_with("/v2.5/")
        })
        .await;
    verifier.until_state("a", "trusted").await;
    agent.set(Mode::Only("2.1"));
    let status = verifier.until_state("a", "unreachable").await;
    let reason = status["troth"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("no longer serves API version 2.5"),
        "{reason}"
    );
    verifier.stop().await;
}
