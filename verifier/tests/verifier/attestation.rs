use std::time::Duration;

use hyper::Method;
use serde_json::json;

use troth_core::finding::severity::SeverityRule;
use troth_verifier::{ca::CaDirectory, config::VerifierConfig};

use crate::stage::{
    Agent, Listening, Mode, Verifier, ZERO, enrolment, ima_enrolment, policy_body, stage,
};

#[tokio::test]
async fn good_node_becomes_trusted_and_stays_so() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let (code, answer) = verifier.enrol("a", enrolment(&agent, &listening)).await;
    assert_eq!((code, &answer["results"]), (200, &json!({})), "{answer}");
    let status = verifier
        .until("a", |s| s["attestation_count"].as_u64() >= Some(3))
        .await;
    assert_eq!(status["operational_state"], 3);
    assert_eq!(status["attestation_status"], "PASS");
    assert_eq!(
        (&status["hash_alg"], &status["enc_alg"]),
        (&json!("sha256"), &json!("ecc256"))
    );
    assert_eq!(status["verifier_port"], verifier.port);
    let troth = &status["troth"];
    assert_eq!(
        (&troth["state"], &troth["findings"]),
        (&json!("trusted"), &json!([]))
    );
    let reason = troth["reason"].as_str().unwrap();
    assert!(
        reason.contains("attested 0 s ago, due every 0.1 s"),
        "{reason}"
    );
    // Keylime's agents insist on these parameters, in this order.
    let queries = agent.queries();
    for (n, query) in queries.iter().enumerate() {
        let (path, query) = query.split_once('?').unwrap();
        assert_eq!(path, "/v2.6/quotes/integrity");
        let (nonce, rest) = query.split_once('&').unwrap();
        assert_eq!(nonce.len(), "nonce=".len() + 20);
        let partial = u8::from(n > 0);
        assert_eq!(rest, format!("mask=0x1&partial={partial}&ima_ml_entry=0"));
    }
    let mut nonces: Vec<_> = queries
        .iter()
        .map(|q| q.split('&').next().unwrap())
        .collect();
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces.len(), queries.len(), "a nonce was used twice");
    let (_, list) = verifier.call(Method::GET, "/v2.6/agents/", None).await;
    assert_eq!(list["results"], json!({ "uuids": [["a"]] }));
    let (_, list) = verifier
        .call(Method::GET, "/v2.6/agents?bulk=True&verifier=", None)
        .await;
    assert_eq!(list["results"]["a"]["ip"], "127.0.0.1");
    let (_, list) = verifier
        .call(Method::GET, "/v2.6/agents?verifier=other", None)
        .await;
    assert_eq!(list["results"], json!({ "uuids": [] }));
    let (code, _) = verifier.enrol("a", enrolment(&agent, &listening)).await;
    assert_eq!(code, 409);
    verifier.stop().await;
}

#[tokio::test]
async fn failed_node_is_left_alone_until_it_is_reactivated() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    verifier.enrol("a", enrolment(&agent, &listening)).await;
    verifier.until_state("a", "trusted").await;
    agent.set(Mode::WrongPcr);
    let status = verifier.until_state("a", "failed").await;
    assert_eq!(
        (&status["operational_state"], &status["attestation_status"]),
        (&json!(9), &json!("FAIL"))
    );
    assert_eq!(status["last_event_id"], "pcr_validation.invalid_pcr_0");
    let finding = &status["troth"]["findings"][0];
    assert_eq!(
        (&finding["place"], &finding["expected"]),
        (&json!({"pcr": 0}), &json!([ZERO]))
    );
    assert_eq!(finding["got"], "f".repeat(64));
    // The evidence is good again, but nobody looks: a failed node does not heal in silence.
    agent.set(Mode::Good);
    let asked = agent.queries().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(agent.queries().len(), asked);
    assert_eq!(verifier.status("a").await["troth"]["state"], "failed");
    // Not even when the verifier restarts.
    verifier.stop().await;
    let verifier = Verifier::start(root.path()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = verifier.status("a").await;
    assert_eq!(
        (agent.queries().len(), &status["troth"]["state"]),
        (asked, &json!("failed"))
    );
    assert_eq!(status["troth"]["findings_total"], 1);
    let (code, _) = verifier
        .call(Method::PUT, "/v2.6/agents/a/reactivate", None)
        .await;
    assert_eq!(code, 200);
    verifier.until_state("a", "trusted").await;
    assert!(agent.queries()[asked].ends_with("partial=0&ima_ml_entry=0"));
    verifier.stop().await;
}

#[tokio::test]
async fn node_below_the_highest_severity_is_asked_on_and_recovers_by_itself() {
    let root = tempfile::tempdir().unwrap();
    let ca_dir = root.path().join("cv_ca");
    CaDirectory::ensure(&ca_dir, &[]).unwrap();
    let agent = Agent::new();
    let listening = Listening::start(&agent, &ca_dir).await;
    let rule = SeverityRule {
        event_id: r"ima\..*".to_owned(),
        severity_label: "warning".to_owned(),
    };
    let verifier = Verifier::with(VerifierConfig {
        state_dir: root.path().into(),
        severity_policy: vec![rule],
        ..VerifierConfig::default()
    })
    .await;
    agent.measure("/usr/bin/a");
    let (code, answer) = verifier.enrol("a", ima_enrolment(&agent, &listening)).await;
    assert_eq!(code, 200, "{answer}");
    verifier.until_state("a", "trusted").await;

    // An unlisted file: the finding stays as long as its entry is in the list.
    agent.measure("/usr/bin/b");
    let unlisted = "ima.validation.ima-ng.not_in_allowlist";
    verifier.until_state("a", "failed").await;
    let asked = agent.queries().len();
    while agent.queries().len() < asked + 5 {
        let status = verifier.status("a").await;
        assert_eq!(status["troth"]["state"], "failed");
        assert_eq!(
            (&status["operational_state"], &status["attestation_status"]),
            (&json!(9), &json!("FAIL"))
        );
        assert_eq!(
            (&status["severity_level"], &status["last_event_id"]),
            (&json!(2), &json!(unlisted))
        );
        assert_eq!(status["troth"]["severity"], "warning");
        let finding = &status["troth"]["findings"][0];
        assert_eq!(
            (&finding["id"], &finding["severity"]),
            (&json!(unlisted), &json!("warning"))
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // The policy allows the file: nobody has to reactivate the node.
    let body = policy_body(&agent);
    let (code, answer) = verifier
        .call(Method::PUT, "/v2.6/allowlists/a", Some(body))
        .await;
    assert_eq!(code, 201, "{answer}");
    let status = verifier.until_state("a", "trusted").await;
    assert_eq!(
        (
            &status["operational_state"],
            &status["troth"]["ima_entries"]
        ),
        (&json!(3), &json!(2))
    );

    // Another finding, of the highest severity: the node is left alone.
    agent.set(Mode::StolenKey);
    verifier
        .until("a", |status| {
            status["troth"]["severity"] == "emergency" && status["troth"]["due_at_ms"] == 0
        })
        .await;
    verifier.stop().await;
}

#[tokio::test]
async fn list_is_read_once_over_a_killed_verifier_and_again_after_a_reboot() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let files = ["/usr/bin/a", "/usr/bin/b", "/usr/bin/c"];
    for file in files {
        agent.measure(file);
    }
    let (code, answer) = verifier.enrol("a", ima_enrolment(&agent, &listening)).await;
    assert_eq!(code, 200, "{answer}");
    let status = verifier
        .until("a", |s| s["attestation_count"].as_u64() >= Some(2))
        .await;
    assert_eq!(status["has_runtime_policy"], 1);
    assert_eq!(status["troth"]["ima_entries"], 3);
    // `kill -9`: everything but the database is gone; a batch takes 50 ms.
    tokio::time::sleep(Duration::from_millis(300)).await;
    verifier.task.abort();
    let asked = agent.queries().len();
    let verifier = Verifier::start(root.path()).await;
    verifier.until_state("a", "trusted").await;
    let resumed = agent
        .queries()
        .into_iter()
        .skip(asked)
        .find(|q| q.contains("partial=0"));
    let resumed = resumed.expect("the restarted verifier did not ask for the key");
    assert!(resumed.ends_with("ima_ml_entry=3"), "{resumed}");
    // The host reboots, and its new list is as long as the old one: no failure, and the whole
    // list is judged again.
    agent.reboot(&["/usr/bin/c", "/usr/bin/b", "/usr/bin/a"]);
    let before = agent.queries().len();
    let from_start = |query: &String| query.ends_with("ima_ml_entry=0");
    verifier
        .until("a", |_| agent.queries()[before..].iter().any(from_start))
        .await;
    let status = verifier.until_state("a", "trusted").await;
    assert_eq!(status["troth"]["ima_entries"], 3);
    agent.measure("/tmp/intruder");
    let status = verifier.until_state("a", "failed").await;
    let place = &status["troth"]["findings"][0]["place"]["ima_entry"];
    assert_eq!(place, &json!({"entry": 3, "path": "/tmp/intruder"}));
    verifier.stop().await;
}

#[tokio::test]
async fn stop_lasts_until_reactivation_and_is_durable() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    verifier.enrol("a", enrolment(&agent, &listening)).await;
    verifier.until_state("a", "trusted").await;
    let (code, _) = verifier
        .call(Method::PUT, "/v2.6/agents/a/stop", None)
        .await;
    assert_eq!(code, 200);
    // As after `kill -9`: nothing is shut down in order, the answer above must be enough.
    verifier.task.abort();
    let verifier = Verifier::start(root.path()).await;
    let status = verifier.status("a").await;
    assert_eq!(
        (&status["operational_state"], &status["troth"]["state"]),
        (&json!(10), &json!("stopped"))
    );
    let (code, _) = verifier
        .call(Method::PUT, "/v2.6/agents/a/reactivate", None)
        .await;
    assert_eq!(code, 200);
    let status = verifier.until_state("a", "trusted").await;
    assert!(status["attestation_count"].as_u64() >= Some(2));
    for action in ["stop", "reactivate"] {
        let path = format!("/v2.6/agents/unknown/{action}");
        assert_eq!(verifier.call(Method::PUT, &path, None).await.0, 404);
    }
    verifier.stop().await;
}

#[tokio::test]
async fn agent_with_a_new_key_is_asked_again_before_it_is_called_failed() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    verifier.enrol("a", enrolment(&agent, &listening)).await;
    verifier
        .until("a", |s| s["attestation_count"].as_u64() >= Some(2))
        .await;
    agent.renew_key();
    let asked = agent.queries().len();
    let count = verifier.status("a").await["attestation_count"].as_u64();
    let status = verifier
        .until("a", |s| {
            assert_ne!(s["troth"]["state"], "failed", "{s:#}");
            s["attestation_count"].as_u64() >= count.map(|n| n + 3)
        })
        .await;
    assert_eq!(status["last_event_id"], json!(null));
    let queries = agent.queries();
    let again = queries[asked..]
        .iter()
        .position(|q| q.contains("partial=0"));
    let again = asked + again.expect("not asked for its key");
    assert_eq!(queries[again - 1], "/version", "{queries:?}");
    let nonce = |query: &str| query.split(['=', '&']).nth(1).unwrap().to_owned();
    assert_ne!(nonce(&queries[again - 2]), nonce(&queries[again]));

    // One that cannot prove its key to the second question either is not trusted.
    agent.set(Mode::StolenKey);
    let status = verifier.until_state("a", "failed").await;
    assert_eq!(status["last_event_id"], "pcr_validation.invalid_pcr_16");
    assert!(agent.queries().last().unwrap().contains("partial=0"));
    // What a change of the agent does not explain fails at once.
    agent.set(Mode::Good);
    verifier
        .call(Method::PUT, "/v2.6/agents/a/reactivate", None)
        .await;
    verifier.until_state("a", "trusted").await;
    agent.set(Mode::WrongPcr);
    verifier.until_state("a", "failed").await;
    assert!(agent.queries().last().unwrap().contains("partial=1"));
    verifier.stop().await;
}

#[tokio::test]
async fn node_of_which_nothing_is_measured_says_so() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let mut body = enrolment(&agent, &listening);
    body["tpm_policy"] = json!("{\"mask\": \"0x0\"}");
    assert_eq!(verifier.enrol("bare", body.clone()).await.0, 200);
    let status = verifier.until_state("bare", "trusted").await;
    let reason = status["troth"]["reason"].as_str().unwrap();
    assert!(reason.contains("warning: nothing is measured"), "{reason}");
    verifier.enrol("a", enrolment(&agent, &listening)).await;
    let status = verifier.until_state("a", "trusted").await;
    assert!(!status["troth"]["reason"].to_string().contains("warning"));
    verifier.stop().await;
}
