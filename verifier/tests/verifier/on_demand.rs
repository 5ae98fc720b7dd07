use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use serde_json::{Value, json};
use troth_core::{policy::RuntimePolicy, tpm::PcrMask};
use troth_verifier::{ca::CaDirectory, config::VerifierConfig};

use crate::{
    common::{SoftTpm, call, operator, pcrs},
    stage::{Agent, PUBKEY, Verifier, ZERO, enrolment, stage},
};

/// A quote over PCRs 0 and 16.
fn quote(tpm: &SoftTpm, nonce: &str) -> String {
    let mask = PcrMask::from_hex("0x1").unwrap();
    tpm.quote(nonce, (7, 1), &pcrs(mask, PUBKEY))
}

fn evidence(tpm: &SoftTpm) -> Value {
    json!({
        "type": "tpm",
        "data": {
            "quote": quote(tpm, "nonce"), "nonce": "nonce", "hash_alg": "sha256",
            "tpm_ek": tpm.ek_tpm(), "tpm_ak": tpm.ak_tpm(),
            "tpm_policy": format!("{{\"0\": \"{ZERO}\"}}"),
        },
    })
}

#[tokio::test]
async fn anybody_may_ask_whether_a_quote_is_of_an_enrolled_agent() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    verifier.enrol("a", enrolment(&agent, &listening)).await;
    verifier.until_state("a", "trusted").await;
    let anybody = operator(verifier.port, &root.path().join("cv_ca"), false);
    let ask = async |query: &str| {
        let path = format!("/v2.6/verify/identity?{query}");
        call(&anybody, Method::GET, &path, None).await
    };
    let identity = |id: &str, quote: &str, nonce: &str, hash: &str| {
        // As urllib writes it.
        let quote = quote
            .replace('+', "%2B")
            .replace('/', "%2F")
            .replace('=', "%3D");
        format!("agent_uuid={id}&quote={quote}&nonce={nonce}&hash_alg={hash}")
    };
    let good = quote(&agent.tpm, "nonce");
    let (code, answer) = ask(&identity("a", &good, "nonce", "sha256")).await;
    assert_eq!((code, &answer["results"]), (200, &json!({ "valid": 1 })));
    let foreign = quote(&SoftTpm::new(), "nonce");
    for (query, reason) in [
        (identity("a", &good, "other", "sha256"), "nonce"),
        (identity("a", &foreign, "nonce", "sha256"), "signature"),
        (identity("a", &good, "nonce", "sha1"), "hash algorithm"),
        (identity("a", "r::", "nonce", "sha256"), "quote"),
    ] {
        let (code, answer) = ask(&query).await;
        let results = &answer["results"];
        let text = results["reason"].as_str().unwrap();
        assert!(
            code == 200 && results["valid"] == 0 && text.contains(reason),
            "{answer}"
        );
    }
    let (code, _) = ask(&identity("b", &good, "nonce", "sha256")).await;
    assert_eq!(code, 404);
    for (query, missing) in [
        ("", "agent_uuid"),
        ("agent_uuid=a", "quote"),
        ("agent_uuid=a&quote=r", "nonce"),
        ("agent_uuid=a&quote=r&nonce=n&hash_alg=", "hash_alg"),
    ] {
        let (code, answer) = ask(query).await;
        let text = format!("missing query parameter '{missing}'");
        assert_eq!((code, answer["status"].as_str()), (400, Some(&*text)));
    }
    // Nobody's question has an effect on the node.
    let after = verifier.until_state("a", "trusted").await;
    assert_eq!(after["last_event_id"], json!(null));
    verifier.stop().await;
}

#[tokio::test]
async fn anybody_may_have_evidence_judged() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, _) = stage(root.path()).await;
    let anybody = operator(verifier.port, &root.path().join("cv_ca"), false);
    let judge = async |body: Value| {
        let path = "/v2.6/verify/evidence";
        let (code, answer) = call(&anybody, Method::POST, path, Some(body)).await;
        (
            code,
            answer["results"].clone(),
            answer["status"].as_str().unwrap().to_owned(),
        )
    };
    let good = evidence(&agent.tpm);
    let (code, results, _) = judge(good.clone()).await;
    let valid = json!({ "valid": true, "claims": good["data"], "failures": [] });
    assert_eq!((code, results), (200, valid));

    let flipped = quote(&agent.tpm, "nonce").replacen("AQAA", "AQAB", 1);
    for (member, value, event) in [
        ("nonce", json!("other"), "qoute_validation.quote_validation"),
        ("quote", json!(flipped), "qoute_validation.quote_validation"),
        (
            "hash_alg",
            json!("sha1"),
            "qoute_validation.invalid_hash_alg",
        ),
        (
            "tpm_ak",
            json!(SoftTpm::new().ak_tpm()),
            "qoute_validation.quote_validation",
        ),
        (
            "tpm_ak",
            json!(agent.tpm.ak_with_attributes(0x0004_0072)),
            "qoute_validation.invalid_quote",
        ),
        (
            "tpm_policy",
            json!("{\"0\": \"aa\"}"),
            "pcr_validation.invalid_pcr_0",
        ),
        (
            "tpm_policy",
            json!("{\"1\": \"aa\", \"mask\": \"0x2\"}"),
            "pcr_validation.missing_pcrs",
        ),
        ("mb_policy", json!("{}"), "measured_boot.missing_pcrs"),
    ] {
        let mut body = good.clone();
        body["data"][member] = value;
        let (code, results, _) = judge(body).await;
        assert_eq!(
            (code, &results["valid"], &results["claims"]),
            (200, &json!(false), &json!({}))
        );
        let first = &results["failures"][0];
        assert_eq!(first["type"], event, "{results}");
        assert!(first["context"]["message"].is_string());
    }

    for (member, event) in [
        ("quote", "default.missing_param"),
        ("tpm_ek", "default.missing_param"),
        ("tpm_policy", "default.missing_policy"),
    ] {
        let mut body = good.clone();
        body["data"][member] = json!("");
        let (code, results, status) = judge(body).await;
        assert_eq!((code, status.as_str()), (400, "Bad Request"));
        assert_eq!(results["failures"][0]["type"], event);
    }
    for (body, reason) in [
        (json!({ "data": {} }), "missing parameter 'type'"),
        (json!({ "type": "tpm" }), "missing parameter 'data'"),
        (
            json!({ "type": "tpx", "data": {} }),
            "invalid evidence type",
        ),
        (
            json!({ "type": "tee", "data": {} }),
            "type tee is not supported",
        ),
        (json!("tpm"), "body: "),
        (json!({ "type": "tpm", "data": { "quote": 1 } }), "body: "),
    ] {
        let (code, _, status) = judge(body).await;
        assert!(code == 400 && status.contains(reason), "{code} {status}");
    }
    let mut body = good;
    body["data"]["runtime_policy"] = json!("{}");
    let (code, _, status) = judge(body).await;
    assert!(
        code == 400 && status.starts_with("runtime_policy: "),
        "{status}"
    );
    verifier.stop().await;
}

#[tokio::test]
async fn evidence_with_a_list_is_judged_by_its_runtime_policy() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    agent.measure("/usr/bin/a");
    let policy = RuntimePolicy::json_from_ima_list(&agent.list(), 1_700_000_000).unwrap();
    agent.measure("/tmp/intruder");
    // The agent's own answer is the evidence.
    let mut body = enrolment(&agent, &listening);
    body["tpm_policy"] = json!("{\"mask\": \"0x400\"}");
    body["runtime_policy"] = json!(STANDARD.encode(&policy));
    verifier.enrol("a", body).await;
    verifier.until_state("a", "failed").await;
    let (quote, nonce) = agent.quote();
    let data = json!({
        "quote": quote, "nonce": nonce, "hash_alg": "sha256", "tpm_ek": "AA==",
        "tpm_ak": agent.tpm.ak_tpm(), "runtime_policy": policy,
        "ima_measurement_list": agent.list(),
    });
    let path = "/v2.6/verify/evidence";
    let mut body = json!({ "type": "tpm", "data": data });
    let (code, answer) = verifier.call(Method::POST, path, Some(body.clone())).await;
    let failures = answer["results"]["failures"].as_array().unwrap();
    assert_eq!((code, failures.len()), (200, 1), "{answer}");
    assert_eq!(
        failures[0]["type"],
        "ima.validation.ima-ng.not_in_allowlist"
    );
    assert_eq!(
        failures[0]["context"]["place"]["ima_entry"],
        json!({ "entry": 1, "path": "/tmp/intruder" })
    );
    let both = RuntimePolicy::json_from_ima_list(&agent.list(), 1_700_000_000).unwrap();
    body["data"]["runtime_policy"] = json!(both);
    let (_, answer) = verifier.call(Method::POST, path, Some(body)).await;
    assert_eq!(answer["results"]["valid"], true, "{answer}");
    assert_eq!(verifier.status("a").await["troth"]["state"], "failed");
    verifier.stop().await;
}

#[tokio::test]
async fn checks_on_demand_are_bounded() {
    let root = tempfile::tempdir().unwrap();
    let config = |checks, rate| VerifierConfig {
        state_dir: root.path().into(),
        max_evidence_checks: checks,
        evidence_rate_limit: rate,
        ..VerifierConfig::default()
    };
    CaDirectory::ensure(&config(0, 0).ca_dir(), &[]).unwrap();
    let body = || Some(evidence(&Agent::new().tpm));
    let path = "/v2.6/verify/evidence";
    let verifier = Verifier::with(config(0, 0)).await;
    let full = verifier.admin.send(Method::POST, path, None).await.unwrap();
    assert_eq!((full.status, full.retry_after.is_some()), (503, true));
    verifier.stop().await;
    let verifier = Verifier::with(config(1, 1)).await;
    let mut codes = Vec::new();
    while codes.len() < 200 && codes.last() != Some(&429) {
        codes.push(verifier.call(Method::POST, path, body()).await.0);
    }
    assert_eq!(codes.last(), Some(&429), "{codes:?}");
    // Operators are not bounded by what anybody asks.
    let (code, _) = verifier.call(Method::GET, "/v2.6/agents", None).await;
    assert_eq!(code, 200);
    verifier.stop().await;
}
