use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use serde_json::json;
use troth_core::policy::RuntimePolicy;
use troth_verifier::config::VerifierConfig;

use crate::{
    common::{call, operator},
    stage::{NO_LIST, Verifier, enrolment, ima_enrolment, measurement, policy_body, stage},
};

#[tokio::test]
async fn policy_is_stored_once_and_shared_by_name() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    agent.measure("/usr/bin/a");
    let mut named = ima_enrolment(&agent, &listening);
    named["runtime_policy_name"] = json!("fleet");
    assert_eq!(verifier.enrol("a", named.clone()).await.0, 200);
    assert_eq!(
        verifier.enrol("b", named.clone()).await.0,
        409,
        "a name is not overwritten"
    );
    named["runtime_policy"] = json!("");
    assert_eq!(verifier.enrol("b", named.clone()).await.0, 200);
    verifier.until_state("b", "trusted").await;
    // The policy outlives the node that brought it.
    assert_eq!(
        verifier
            .call(Method::DELETE, "/v2.6/agents/a", None)
            .await
            .0,
        200
    );
    assert_eq!(verifier.enrol("c", named).await.0, 200);
    verifier.until_state("c", "trusted").await;
    // Without PCR 10 in the mask the policy would never be looked at.
    let mut blind = ima_enrolment(&agent, &listening);
    blind["tpm_policy"] = json!("{\"mask\": \"0x0\"}");
    let (code, answer) = verifier.enrol("d", blind).await;
    assert!(
        code == 400
            && answer["status"]
                .as_str()
                .unwrap()
                .contains("runtime_policy needs")
    );
    verifier.stop().await;
}

#[tokio::test]
async fn runtime_policies_are_kept_by_name() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    agent.measure("/usr/bin/a");
    let fleet = "/v2.6/allowlists/fleet%201";
    let policy = policy_body(&agent);
    let (_, list) = verifier.call(Method::GET, "/v2.6/allowlists/", None).await;
    assert_eq!(list["results"]["runtimepolicy names"], json!([]));
    let (code, answer) = verifier.call(Method::GET, fleet, None).await;
    assert_eq!(
        (code, &answer["status"]),
        (404, &json!("Runtime policy fleet 1 not found"))
    );
    let (code, answer) = verifier
        .call(Method::PUT, fleet, Some(policy.clone()))
        .await;
    assert_eq!(
        (code, &answer["status"]),
        (
            404,
            &json!("Runtime policy with name fleet 1 does not already exist, use POST to create")
        )
    );
    assert_eq!(verifier.call(Method::DELETE, fleet, None).await.0, 404);
    let (code, answer) = verifier
        .call(Method::POST, fleet, Some(policy.clone()))
        .await;
    assert_eq!((code, &answer["status"]), (201, &json!("Created")));
    let (code, _) = verifier
        .call(Method::POST, fleet, Some(policy.clone()))
        .await;
    assert_eq!(code, 409, "a name is not overwritten");
    let (_, list) = verifier.call(Method::GET, "/v2/allowlists", None).await;
    let sent = STANDARD
        .decode(policy["runtime_policy"].as_str().unwrap())
        .unwrap();
    let about = |nodes: u64| {
        let sha256 = hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &sent));
        json!({
            "runtimepolicy names": ["fleet 1"],
            "policies": [
                {"name": "fleet 1", "sha256": sha256, "bytes": sent.len(), "nodes": nodes},
            ],
        })
    };
    assert_eq!(list["results"], about(0));
    let (_, shown) = verifier.call(Method::GET, fleet, None).await;
    assert_eq!(
        shown["results"],
        json!({
            "name": "fleet 1", "tmp_policy": null,
            "runtime_policy": String::from_utf8(sent.clone()).unwrap(),
        })
    );
    // A policy in use stays.
    let mut body = enrolment(&agent, &listening);
    body["tpm_policy"] = json!("{\"mask\": \"0x400\"}");
    body["runtime_policy_name"] = json!("fleet 1");
    assert_eq!(verifier.enrol("a", body).await.0, 200);
    verifier.until_state("a", "trusted").await;
    let (_, list) = verifier.call(Method::GET, "/v2/allowlists", None).await;
    assert_eq!(list["results"], about(1));
    let (code, answer) = verifier.call(Method::DELETE, fleet, None).await;
    assert_eq!(
        (code, &answer["status"]),
        (
            409,
            &json!("Can't delete allowlist as it's currently in use by agent a")
        )
    );
    verifier.call(Method::DELETE, "/v2.6/agents/a", None).await;
    let answer = verifier
        .admin
        .send(Method::DELETE, fleet, None)
        .await
        .unwrap();
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    let (_, list) = verifier.call(Method::GET, "/v2.6/allowlists", None).await;
    assert_eq!(list["results"]["runtimepolicy names"], json!([]));
    verifier.stop().await;
}

#[tokio::test]
async fn replaced_policy_holds_from_the_next_question_and_the_list_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let fleet = "/v2.6/allowlists/fleet";
    agent.measure("/usr/bin/a");
    let first = policy_body(&agent);
    let (code, _) = verifier
        .call(Method::POST, fleet, Some(first.clone()))
        .await;
    assert_eq!(code, 201);
    let mut body = enrolment(&agent, &listening);
    body["tpm_policy"] = json!("{\"mask\": \"0x400\"}");
    body["runtime_policy_name"] = json!("fleet");
    assert_eq!(verifier.enrol("a", body).await.0, 200);
    verifier.until_state("a", "trusted").await;
    let mut next = agent.list();
    next.push_str(&measurement("/usr/bin/b").0);
    let next = RuntimePolicy::json_from_ima_list(&next, 1_700_000_000).unwrap();
    let asked = agent.queries().len();
    let (code, _) = verifier
        .call(
            Method::PUT,
            fleet,
            Some(json!({ "runtime_policy": STANDARD.encode(next) })),
        )
        .await;
    assert_eq!(code, 201);
    // The question that was under way may still be judged by the old policy.
    let known = verifier.status("a").await["attestation_count"].as_u64();
    verifier
        .until("a", |s| {
            s["attestation_count"].as_u64() >= known.map(|n| n + 2)
        })
        .await;
    agent.measure("/usr/bin/b");
    let status = verifier
        .until("a", |s| s["troth"]["ima_entries"] != 1)
        .await;
    assert_eq!(
        (&status["troth"]["state"], &status["troth"]["ima_entries"]),
        (&json!("trusted"), &json!(2))
    );
    for query in &agent.queries()[asked..] {
        assert!(!query.ends_with("ima_ml_entry=0"), "{query}");
    }
    // The first policy again: what has passed stays passed, but the next new file fails.
    let (code, _) = verifier.call(Method::PUT, fleet, Some(first)).await;
    assert_eq!(code, 201);
    agent.measure("/usr/bin/c");
    let status = verifier.until_state("a", "failed").await;
    let place = &status["troth"]["findings"][0]["place"]["ima_entry"];
    assert_eq!(place, &json!({"entry": 2, "path": "/usr/bin/c"}));
    verifier.stop().await;
}

#[tokio::test]
async fn unusable_runtime_policies_are_refused_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let cases = [
        (json!({}), "runtime_policy is missing"),
        (json!({ "runtime_policy": "*" }), "base64"),
        (
            json!({ "runtime_policy": STANDARD.encode("{") }),
            "Runtime policy is not valid JSON!",
        ),
        (
            json!({ "runtime_policy": STANDARD.encode("{}") }),
            "Runtime policy is malformatted",
        ),
        (
            json!({ "runtime_policy": "e30=", "runtime_policy_key": "AAAA" }),
            "runtime_policy_key",
        ),
    ];
    for (body, reason) in cases {
        let (code, answer) = verifier
            .call(Method::POST, "/v2.6/allowlists/x", Some(body))
            .await;
        let status = answer["status"].as_str().unwrap();
        assert!(code == 400 && status.contains(reason), "{code} {status}");
    }
    let (code, answer) = verifier
        .call(Method::POST, "/v2.6/allowlists/x", None)
        .await;
    assert_eq!(
        (code, &answer["status"]),
        (400, &json!("Expected non zero content length"))
    );
    agent.measure("/usr/bin/a");
    let policy = policy_body(&agent);
    for name in ["%00", "%ff", &"x".repeat(256)] {
        let path = format!("/v2.6/allowlists/{name}");
        let (code, _) = verifier
            .call(Method::POST, &path, Some(policy.clone()))
            .await;
        assert_eq!(code, 400, "{name}");
    }
    let (code, _) = verifier
        .call(Method::POST, "/v2.6/allowlists", Some(policy.clone()))
        .await;
    assert_eq!(code, 405);
    // A node that reads no list cannot follow a policy about one; the old policy stays.
    let nothing = json!({ "runtime_policy": STANDARD.encode(NO_LIST) });
    let fleet = "/v2.6/allowlists/fleet";
    let (code, answer) = verifier.call(Method::POST, fleet, Some(nothing)).await;
    assert_eq!(code, 201, "{answer}");
    let mut body = enrolment(&agent, &listening);
    body["runtime_policy_name"] = json!("fleet");
    let (code, answer) = verifier.enrol("a", body).await;
    assert_eq!(code, 200, "{answer}");
    let (code, answer) = verifier.call(Method::PUT, fleet, Some(policy)).await;
    let status = answer["status"].as_str().unwrap();
    assert!(
        code == 400 && status.contains("agent a") && status.contains("the mask lacks PCRs"),
        "{code} {status}"
    );
    let (_, shown) = verifier.call(Method::GET, fleet, None).await;
    assert_eq!(shown["results"]["runtime_policy"], NO_LIST);
    let stranger = operator(verifier.port, &root.path().join("cv_ca"), false);
    for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
        let (code, answer) = call(&stranger, method, fleet, None).await;
        assert_eq!(code, 403);
        assert_eq!(answer["errors"][0]["title"], "Forbidden");
    }
    verifier.stop().await;
}

#[tokio::test]
async fn boot_policies_are_kept_by_name_and_judge_the_nodes_that_name_them() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let fleet = "/v2.6/mbpolicies/fleet%201";
    let empty = json!({ "mb_policy": "{ }" });
    let (code, answer) = verifier.call(Method::PUT, fleet, Some(empty.clone())).await;
    assert_eq!(code, 409, "PUT replaces only: {answer}");
    let (code, answer) = verifier
        .call(Method::POST, fleet, Some(empty.clone()))
        .await;
    assert_eq!((code, &answer["status"]), (201, &json!("Created")));
    let (code, _) = verifier.call(Method::POST, fleet, Some(empty)).await;
    assert_eq!(code, 409, "a name is not overwritten");
    let (_, list) = verifier.call(Method::GET, "/v2/mbpolicies/", None).await;
    assert_eq!(list["results"]["mbpolicy names"], json!(["fleet 1"]));
    let (_, shown) = verifier.call(Method::GET, fleet, None).await;
    assert_eq!(
        shown["results"],
        json!({ "name": "fleet 1", "mb_policy": "{ }" })
    );
    let put = json!({ "mb_policy": "{}" });
    assert_eq!(verifier.call(Method::PUT, fleet, Some(put)).await.0, 201);

    let mut body = enrolment(&agent, &listening);
    body["mb_policy_name"] = json!("fleet 1");
    let (code, answer) = verifier.enrol("a", body.clone()).await;
    let text = answer["status"].as_str().unwrap();
    assert!(code == 400 && text.contains("mb_policy needs"), "{text}");
    body["tpm_policy"] = json!("{\"mask\": \"0xfbff\"}");
    assert_eq!(verifier.enrol("a", body).await.0, 200);
    // The scripted agent has no boot log.
    let status = verifier.until_state("a", "failed").await;
    assert_eq!(status["has_mb_refstate"], 1);
    assert_eq!(status["last_event_id"], "measured_boot.missing_log");
    verifier.stop().await;

    let verifier = Verifier::start(root.path()).await;
    assert_eq!(verifier.status("a").await["has_mb_refstate"], 1);
    let (code, answer) = verifier.call(Method::DELETE, fleet, None).await;
    assert_eq!(
        (code, &answer["status"]),
        (
            409,
            &json!("Can't delete mb_policy as it's currently in use by agent a")
        )
    );
    verifier.call(Method::DELETE, "/v2.6/agents/a", None).await;
    let answer = verifier.admin.send(Method::DELETE, fleet, None).await;
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    for method in [Method::GET, Method::DELETE] {
        let (code, answer) = verifier.call(method, fleet, None).await;
        assert_eq!(
            (code, &answer["status"]),
            (404, &json!("Measured boot policy fleet 1 not found"))
        );
    }
    verifier.stop().await;
}

#[tokio::test]
async fn unusable_boot_policies_are_refused_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, _, _) = stage(root.path()).await;
    for (body, reason) in [
        (json!({}), "mb_policy is missing"),
        (json!({ "mb_policy": "{" }), "is not JSON"),
        (json!({ "mb_policy": "null" }), "is no boot policy"),
        (json!({ "mb_policy": {} }), "body"),
        // Better no policy than one that looks like one.
        (
            json!({ "mb_policy": "{\"kernels\": []}" }),
            "missing field `scrtm_and_bios`",
        ),
        (
            json!({ "mb_policy": "{\"version\": 1, \"othrs\": \"deny\"}" }),
            "unknown key `othrs`; did you mean `others`? at line 1 column 22",
        ),
    ] {
        let path = "/v2.6/mbpolicies/x";
        let (code, answer) = verifier.call(Method::POST, path, Some(body)).await;
        let text = answer["status"].as_str().unwrap();
        assert!(code == 400 && text.contains(reason), "{code} {text}");
    }
    let stranger = operator(verifier.port, &root.path().join("cv_ca"), false);
    for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
        let (code, answer) = call(&stranger, method, "/v2.6/mbpolicies/x", None).await;
        assert_eq!(code, 403);
        assert_eq!(answer["errors"][0]["title"], "Forbidden");
    }
    verifier.stop().await;
}

#[tokio::test]
async fn names_and_texts_of_an_enrolments_policies_are_resolved() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let base = || {
        let mut body = enrolment(&agent, &listening);
        body["tpm_policy"] = json!("{\"mask\": \"0xffff\"}");
        body
    };
    let names = async |route: &str| {
        let (_, list) = verifier.call(Method::GET, route, None).await;
        let kind = if route.ends_with("mbpolicies") {
            "mbpolicy names"
        } else {
            "runtimepolicy names"
        };
        list["results"][kind].clone()
    };
    let empty = STANDARD.encode(NO_LIST);
    for (route, name, text, value) in [
        ("/v2.6/mbpolicies", "mb_policy_name", "mb_policy", "{}"),
        (
            "/v2.6/allowlists",
            "runtime_policy_name",
            "runtime_policy",
            empty.as_str(),
        ),
    ] {
        // A name alone must be known.
        let mut body = base();
        body[name] = json!("shared");
        let (code, answer) = verifier.enrol("a", body.clone()).await;
        let status = answer["status"].as_str().unwrap();
        assert!(
            code == 404 && status.contains("with name shared!"),
            "{status}"
        );
        // With a text it is new, once.
        body[text] = json!(value);
        assert_eq!(verifier.enrol("a", body.clone()).await.0, 200);
        assert_eq!(verifier.enrol("b", body.clone()).await.0, 409);
        body[text] = json!(null);
        assert_eq!(verifier.enrol("b", body.clone()).await.0, 200);
        // A text alone goes under the agent's id, and goes away with the agent.
        let mut body = base();
        body[text] = json!(value);
        assert_eq!(verifier.enrol("c", body.clone()).await.0, 200);
        assert_eq!(names(route).await, json!(["c", "shared"]));
        verifier.call(Method::DELETE, "/v2.6/agents/c", None).await;
        assert_eq!(names(route).await, json!(["shared"]));
        // A text under the agent's id that is stored already is not replaced in silence, and
        // applies when the enrolment says nothing.
        let mut change = json!({});
        change[text] = json!(value);
        let own = format!("{route}/d");
        assert_eq!(verifier.call(Method::POST, &own, Some(change)).await.0, 201);
        assert_eq!(verifier.enrol("d", body).await.0, 409);
        assert_eq!(verifier.enrol("d", base()).await.0, 200);
        let (code, _) = verifier.call(Method::DELETE, &own, None).await;
        assert_eq!(code, 409, "in use");
        // Without anything there is no policy.
        assert_eq!(verifier.enrol("e", base()).await.0, 200);
        let status = verifier.status("e").await;
        assert_eq!(
            (&status["has_mb_refstate"], &status["has_runtime_policy"]),
            (&json!(0), &json!(0))
        );
        for bad in ["\n", &"x".repeat(256)] {
            let mut body = base();
            body[name] = json!(bad);
            assert_eq!(verifier.enrol("f", body).await.0, 400, "{bad:?}");
        }
        for id in ["a", "b", "d", "e"] {
            let path = format!("/v2.6/agents/{id}");
            assert_eq!(verifier.call(Method::DELETE, &path, None).await.0, 200);
        }
    }
    verifier.stop().await;
}

#[tokio::test]
async fn policy_that_another_verifier_replaced_holds_here_too() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let second = Verifier::with(VerifierConfig {
        state_dir: root.path().into(),
        uuid: "second".into(),
        ..VerifierConfig::default()
    })
    .await;
    let fleet = "/v2.6/allowlists/fleet";
    let nothing = json!({ "runtime_policy": STANDARD.encode(NO_LIST) });
    let (code, _) = verifier
        .call(Method::POST, fleet, Some(nothing.clone()))
        .await;
    assert_eq!(code, 201);
    let mut body = enrolment(&agent, &listening);
    body["runtime_policy_name"] = json!("fleet");
    assert_eq!(verifier.enrol("blind", body.clone()).await.0, 200);
    agent.measure("/usr/bin/a");
    let listed = policy_body(&agent);
    // A node of the other verifier that could not follow counts too.
    let put = |body| second.call(Method::PUT, fleet, Some(body));
    let (code, answer) = put(listed.clone()).await;
    let text = answer["status"].as_str().unwrap();
    assert!(code == 400 && text.contains("agent blind"), "{code} {text}");
    let path = "/v2.6/agents/blind";
    assert_eq!(verifier.call(Method::DELETE, path, None).await.0, 200);
    body["tpm_policy"] = json!("{\"mask\": \"0x400\"}");
    assert_eq!(verifier.enrol("a", body).await.0, 200);
    verifier.until_state("a", "failed").await;
    assert_eq!(put(listed).await.0, 201);
    verifier
        .until("a", |status| status["has_runtime_policy"] == 1)
        .await;
    let path = "/v2.6/agents/a/reactivate";
    assert_eq!(verifier.call(Method::PUT, path, None).await.0, 200);
    verifier.until_state("a", "trusted").await;
    second.stop().await;
    verifier.stop().await;
}
