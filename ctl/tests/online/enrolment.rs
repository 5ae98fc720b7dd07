use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::site::{Site, stderr};

/// A registrar's record with a real EK and the AK of a recorded quote; the agent is `site`.
fn record(site: &Site, vectors: &Value) -> Value {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let read = |name: &str| BASE64_STANDARD.encode(std::fs::read(fixtures.join(name)).unwrap());
    json!({
        "agent_id": "n", "ek_tpm": read("boots/grub/ek.pub"),
        "ekcert": read("boots/grub/ek-cert.der"), "aik_tpm": vectors["quotes"][0]["ak_tpm"],
        "ip": "127.0.0.1", "port": site.port, "mtls_cert": site.certificate, "regcount": 1
    })
}

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/vectors/quotes.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_agent_that_replays_an_old_quote_is_not_enrolled() {
    let (site, vectors) = (Site::start(), vectors());
    site.success("GET /v2.5/agents/n", &record(&site, &vectors));
    site.success("GET /version", &json!({"supported_version": "2.5"}));
    let quote = json!({
        "quote": vectors["quotes"][0]["quote"], "hash_alg": "sha256", "enc_alg": "ecc256",
        "sign_alg": "ecdsa", "pubkey": vectors["pubkey"]
    });
    site.success("GET /v2.5/quotes/identity", &quote);
    site.success("POST /v2.5/agents/n", &json!({}));
    let output = site.trothctl(&["agent", "add", "n"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("identity quote is not valid"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("nonce"), "{}", stderr(&output));
    assert!(
        site.asked("GET /v2.5/quotes/identity"),
        "the version that both speak"
    );
    assert!(!site.asked("POST /v2.5/agents/n"), "nothing is enrolled");
}

#[test]
fn a_record_that_cannot_be_trusted_is_not_enrolled() {
    let (site, vectors) = (Site::start(), vectors());
    let good = record(&site, &vectors);
    for (member, value, status, wanted) in [
        ("aik_tpm", good["ek_tpm"].clone(), 3, "AK"),
        ("ek_tpm", good["aik_tpm"].clone(), 3, "EK"),
        ("aik_tpm", json!("AAA"), 1, "AK"),
        ("mtls_cert", Value::Null, 1, "registered no certificate"),
        ("mtls_cert", json!("nonsense"), 1, "mTLS certificate"),
    ] {
        let mut bad = good.clone();
        bad[member] = value;
        site.success("GET /v2.6/agents/n", &bad);
        let output = site.trothctl(&["agent", "add", "n"]);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{member}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(wanted),
            "{member}: {}",
            stderr(&output)
        );
    }
    // The EK certificate is of another machine than the EK.
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let other = std::fs::read(fixtures.join("boots/uki/ek.pub")).unwrap();
    let mut foreign = good;
    foreign["ek_tpm"] = json!(BASE64_STANDARD.encode(other));
    site.success("GET /v2.6/agents/n", &foreign);
    let output = site.trothctl(&["agent", "add", "n"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("EK certificate is for another key"),
        "{}",
        stderr(&output)
    );
    assert!(
        !site.asked("GET /v2.6/quotes/identity"),
        "the agent is not even contacted"
    );
}

#[test]
fn an_ek_may_be_certified_over_the_chain_that_its_agent_sent() {
    let (site, vectors) = (Site::start(), vectors());
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/boots/uki");
    let read = |name: &str| std::fs::read(fixtures.join(name)).unwrap();
    let store = site.directory.path().join("vendors");
    std::fs::create_dir(&store).unwrap();
    let root = read("swtpm-localca-rootca-cert.pem");
    std::fs::write(store.join("root.pem"), root).unwrap();
    let mut record = record(&site, &vectors);
    record["ek_tpm"] = json!(BASE64_STANDARD.encode(read("ek.pub")));
    record["ekcert"] = json!(BASE64_STANDARD.encode(read("ek-cert.der")));
    let add = |record: &Value| {
        site.success("GET /v2.6/agents/n", record);
        let store = ["--tpm-cert-store", store.to_str().unwrap()];
        let require = ["--require-ek-cert", "true"];
        let output = site.trothctl(&[&["agent", "add", "n"][..], &store, &require].concat());
        stderr(&output).to_owned()
    };
    let refused = add(&record);
    assert!(
        refused.contains("its issuer (CN=swtpm-localca)"),
        "{refused}"
    );
    let pem = String::from_utf8(read("issuercert.pem")).unwrap();
    let lines = pem.lines().filter(|line| !line.starts_with('-'));
    record["ekcert_chain"] = json!([lines.collect::<String>()]);
    let taken = add(&record);
    assert!(!taken.contains("its issuer"), "{taken}");
    // The agent itself is asked next.
    assert!(taken.starts_with("error: agent at"), "{taken}");
}

#[test]
fn an_agent_that_is_busy_is_asked_again() {
    let (site, vectors) = (Site::start(), vectors());
    site.success("GET /v2.5/agents/n", &record(&site, &vectors));
    site.success("GET /version", &json!({"supported_version": "2.5"}));
    let quote = "GET /v2.5/quotes/identity";
    site.answer(quote, 400, "");
    site.first(quote, &[503, 504, 408]);
    let output = site.trothctl(&["agent", "add", "n"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(site.times(quote), 4, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("trying again"),
        "{}",
        stderr(&output)
    );

    // So is one that does not listen yet.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let output = site.trothctl(&["agent", "add", "n", "--port", &port]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert_eq!(stderr(&output).matches("trying again").count(), 5);

    // max_retries bounds it.
    site.answer(quote, 503, "");
    let output = site.trothctl(&["agent", "add", "n"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(site.times(quote), 4 + 6);
}

#[test]
fn a_policy_that_cannot_be_used_is_found_before_anything_is_sent() {
    let site = Site::start();
    let bad = site.file("policy.json", "{}");
    for arguments in [
        &["--runtime-policy", bad.to_str().unwrap()][..],
        &["--tpm-policy", r#"{"16": "ab"}"#],
        &["--tpm-policy", "[]"],
        &["--boot-policy", r#"{"a": 1}"#],
    ] {
        let output = site.trothctl(&[&["agent", "add", "n"], arguments].concat());
        assert_eq!(
            output.status.code(),
            Some(1),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(stderr(&output).contains("policy"), "{}", stderr(&output));
    }
    // There is no default where none is configured.
    let output = site.trothctl(&["agent", "add", "n", "--boot-policy", "default"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("mb_refstate is not configured"));
    assert!(site.requests.lock().unwrap().is_empty());
}
