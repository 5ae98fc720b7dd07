use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use serde_json::{Value, json};
use troth_verifier::{ca::CaDirectory, config::VerifierConfig};

use crate::stage::{Agent, Listening, NO_LIST, Verifier, enrolment};

/// Signed by Keylime's tools.
fn vectors() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/vectors/dsse.json"
    );
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn encoded(text: &Value) -> Value {
    json!(STANDARD.encode(text.as_str().unwrap()))
}

/// What is sent, and what is to come of it: status and text.
fn cases(vectors: &Value, required: bool, configured: bool) -> Vec<(Value, u16, &'static str)> {
    let (ecdsa, x509) = (&vectors["ecdsa"], &vectors["x509"]);
    let with = |policy: &Value, key: &Value| json!({ "runtime_policy": encoded(policy), "runtime_policy_key": key });
    const NO_KEY: &str = "Runtime policy signature verification required but no key was given!";
    const WRONG: &str = "Runtime policy failed DSSE signature verification!";
    const UNSIGNED: &str = "Runtime policy is not signed!";
    let mut cases = vec![
        (
            with(&ecdsa["envelope"], &encoded(&ecdsa["key"])),
            201,
            "Created",
        ),
        (
            with(&x509["envelope"], &encoded(&x509["key"])),
            201,
            "Created",
        ),
        (with(&ecdsa["envelope"], &encoded(&x509["key"])), 401, WRONG),
        (
            with(&json!("{"), &encoded(&x509["key"])),
            400,
            "Runtime policy is not valid JSON!",
        ),
        // Who names a key expects it to be looked at, wanted or not.
        (
            with(&vectors["policy"], &encoded(&x509["key"])),
            400,
            UNSIGNED,
        ),
        (
            with(&ecdsa["envelope"], &json!("AAAA")),
            400,
            "runtime_policy_key: ",
        ),
    ];
    let none = json!("");
    cases.extend(match (required, configured) {
        (false, false) => [
            (with(&ecdsa["envelope"], &none), 201, "Created"),
            (with(&x509["envelope"], &none), 201, "Created"),
            (with(&vectors["policy"], &none), 201, "Created"),
        ],
        (true, false) => [
            (with(&ecdsa["envelope"], &none), 401, NO_KEY),
            (with(&x509["envelope"], &none), 401, NO_KEY),
            (with(&vectors["policy"], &none), 401, NO_KEY),
        ],
        // The key of `ecdsa` is configured.
        (required, true) => [
            (with(&ecdsa["envelope"], &none), 201, "Created"),
            (with(&x509["envelope"], &none), 401, WRONG),
            match required {
                true => (with(&vectors["policy"], &none), 400, UNSIGNED),
                false => (with(&vectors["policy"], &none), 201, "Created"),
            },
        ],
    });
    cases
}

#[tokio::test]
async fn signed_policies_are_verified_wherever_they_come_in() {
    let root = tempfile::tempdir().unwrap();
    let vectors = vectors();
    let key = root.path().join("policy-key.pem");
    std::fs::write(&key, vectors["ecdsa"]["key"].as_str().unwrap()).unwrap();
    for (required, configured) in [(false, false), (true, false), (false, true), (true, true)] {
        let config = VerifierConfig {
            state_dir: root.path().join(format!("{required}-{configured}")),
            require_allow_list_signatures: required,
            runtime_policy_key: configured.then(|| key.clone()),
            ..VerifierConfig::default()
        };
        let ca_dir = config.ca_dir();
        CaDirectory::ensure(&ca_dir, &[]).unwrap();
        let verifier = Verifier::with(config).await;
        let agent = Agent::new();
        let listening = Listening::start(&agent, &ca_dir).await;
        for (n, (body, expected, text)) in cases(&vectors, required, configured)
            .into_iter()
            .enumerate()
        {
            let context = format!("case {n}, required {required}, configured {configured}");
            let path = format!("/v2.6/allowlists/{n}");
            for method in [Method::POST, Method::PUT] {
                let (code, answer) = verifier.call(method, &path, Some(body.clone())).await;
                let status = answer["status"].as_str().unwrap();
                assert_eq!(code, expected, "{context}: {status}");
                assert!(status.starts_with(text), "{context}: {status}");
            }
            let mut enrolling = enrolment(&agent, &listening);
            enrolling["tpm_policy"] = json!("{\"mask\": \"0x400\"}");
            for member in ["runtime_policy", "runtime_policy_key"] {
                enrolling[member] = body[member].clone();
            }
            let (code, answer) = verifier.enrol(&format!("node-{n}"), enrolling).await;
            let expected = if expected == 201 { 200 } else { expected };
            assert_eq!(code, expected, "{context}: {answer}");
        }
        verifier.stop().await;
    }
}

#[tokio::test]
async fn signed_policy_judges_by_its_payload_and_is_shown_as_it_came() {
    let root = tempfile::tempdir().unwrap();
    let vectors = vectors();
    let (verifier, agent, listening) = crate::stage::stage(root.path()).await;
    let envelope = &vectors["x509"]["envelope"];
    let fleet = "/v2.6/allowlists/fleet";
    let body = json!({ "runtime_policy": encoded(envelope) });
    let (code, _) = verifier.call(Method::POST, fleet, Some(body)).await;
    assert_eq!(code, 201);
    let (_, shown) = verifier.call(Method::GET, fleet, None).await;
    assert_eq!(&shown["results"]["runtime_policy"], envelope);
    agent.measure("/tmp/intruder");
    let mut body = enrolment(&agent, &listening);
    body["tpm_policy"] = json!("{\"mask\": \"0x400\"}");
    body["runtime_policy_name"] = json!("fleet");
    assert_eq!(verifier.enrol("a", body.clone()).await.0, 200);
    let status = verifier.until_state("a", "failed").await;
    let event = "ima.validation.ima-ng.not_in_allowlist";
    assert_eq!(status["last_event_id"], event);
    verifier.stop().await;
    // It is read again as it was stored.
    let verifier = Verifier::start(root.path()).await;
    let (code, _) = verifier
        .call(Method::PUT, "/v2.6/agents/a/reactivate", None)
        .await;
    assert_eq!(code, 200);
    verifier.until_state("a", "failed").await;
    // A key says nothing about a policy that is stored already.
    body["runtime_policy_key"] = encoded(&vectors["x509"]["key"]);
    let (code, answer) = verifier.enrol("b", body).await;
    assert!(
        code == 400 && answer.to_string().contains("runtime_policy_key"),
        "{answer}"
    );
    let unsigned = json!({ "runtime_policy": STANDARD.encode(NO_LIST) });
    assert_eq!(
        verifier.call(Method::PUT, fleet, Some(unsigned)).await.0,
        201
    );
    verifier.stop().await;
}

#[tokio::test]
async fn a_site_may_say_itself_whose_signatures_count() {
    use troth_core::policy::{Envelope, PolicySigner};
    use troth_verifier::config::PolicySigners;
    let root = tempfile::tempdir().unwrap();
    let vectors = vectors();
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/vectors/policy-signer.json"
    );
    let signer: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let file = |name: &str, text: &Value| {
        let path = root.path().join(name);
        std::fs::write(&path, text.as_str().unwrap()).unwrap();
        path
    };
    let certified = |certificate: &str| {
        let key = PolicySigner::parse(signer["sec1"].as_str().unwrap().as_bytes()).unwrap();
        let certificate = signer[certificate].as_str().unwrap().as_bytes();
        let policy = vectors["policy"].as_str().unwrap().as_bytes().to_vec();
        let mut envelope = Envelope::new(policy).unwrap();
        envelope
            .sign(&key.with_certificate(certificate).unwrap())
            .unwrap();
        json!(envelope.to_json())
    };
    let mut config = VerifierConfig {
        state_dir: root.path().join("verifier"),
        require_allow_list_signatures: true,
        runtime_policy_signers: PolicySigners::Configured,
        ..VerifierConfig::default()
    };
    CaDirectory::ensure(&config.ca_dir(), &[]).unwrap();
    let refused = troth_verifier::server::VerifierServer::start(&config).await;
    assert!(refused.is_err(), "nobody's signature would count");
    config.runtime_policy_key = Some(file("key.pem", &vectors["ecdsa"]["key"]));
    config.runtime_policy_ca = vec![file("ca.pem", &signer["ca"])];
    let verifier = Verifier::with(config).await;
    let (ecdsa, x509) = (&vectors["ecdsa"], &vectors["x509"]);
    let none = json!("");
    let key = |of: &Value| encoded(&of["key"]);
    for (n, (envelope, key, expected)) in [
        (&ecdsa["envelope"], none.clone(), 201),
        (&ecdsa["envelope"], key(ecdsa), 201),
        // The key of the request did sign it, but it is not one that the site named.
        (&x509["envelope"], key(x509), 401),
        (&x509["envelope"], none.clone(), 401),
        // The site's did, but not the one that was asked for.
        (&ecdsa["envelope"], key(x509), 401),
        (&certified("signer"), none.clone(), 201),
        (&certified("server"), none.clone(), 401),
        (&vectors["policy"], none, 400),
    ]
    .into_iter()
    .enumerate()
    {
        let body = json!({"runtime_policy": encoded(envelope), "runtime_policy_key": key});
        let path = format!("/v2.6/allowlists/{n}");
        let (code, answer) = verifier.call(Method::POST, &path, Some(body)).await;
        assert_eq!(code, expected, "case {n}: {answer}");
    }
    verifier.stop().await;
}
