use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::PathBuf,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http_body_util::BodyExt;
use serde_json::Value;
use troth_core::tpm::{
    AttestationKey, Digest, Expected, HashAlgorithm, Public, Quote, SignatureScheme,
};
use troth_daemon::config::Secret;

use super::*;
use crate::{
    config::Config,
    evidence::{bootlog::BootLog, ima::ImaList, userspace::UserspaceLog},
    identity::{ak, transport::TransportKey},
    local::Reporter,
    tpm::{
        Actor, AkTemplate, KeyKind,
        sim::{Chip, Faults},
    },
};

const BANK: HashAlgorithm = HashAlgorithm::Sha256;

/// An agent on a simulated TPM, with logs in a directory.
struct Agent {
    api: Api,
    ak: Public,
    chip: Chip,
    ima: PathBuf,
    directory: tempfile::TempDir,
    _actor: Actor,
}

async fn agent() -> Agent {
    let directory = tempfile::tempdir().unwrap();
    let chip = Chip::manufacture().unwrap();
    let opened = chip.clone();
    let actor = Actor::start(Box::new(move || Ok(Box::new(opened.open()?)))).unwrap();
    let template = AkTemplate {
        kind: KeyKind::EccP256,
        hash: BANK,
        scheme: SignatureScheme::Ecdsa,
    };
    let file = directory.path().join(ak::FILE);
    let keys = actor
        .handle()
        .call("AK", std::time::Duration::from_secs(5), move |tpm| {
            Ok(ak::load_or_create(tpm, &template, &file, &[]).unwrap())
        })
        .await
        .unwrap();
    let transport =
        TransportKey::load_or_create(&directory.path().join("nk"), &Secret::default()).unwrap();
    let ima = directory.path().join("ima");
    let collector = Collector::new(
        actor.handle(),
        template,
        Arc::new(transport),
        ImaList::new(ima.clone()),
        BootLog::new(directory.path().join("boot")),
        UserspaceLog::new(directory.path().join("userspace")),
        Reporter::new(&Config::default(), None),
    );
    let id = AgentId::new("d432fbb3-d2f1-4a97-9ef7-75bd81c00000").unwrap();
    let api = Api::new(id, ApiVersion::ALL.to_vec(), Arc::new(collector));
    Agent {
        api,
        ak: keys.ak,
        chip,
        ima,
        directory,
        _actor: actor,
    }
}

impl Agent {
    async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, None, "").await
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, Some("application/json"), &body.to_string())
            .await
    }

    async fn send(&self, method: &str, path: &str, kind: Option<&str>, body: &str) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let answer = self.api.answer(&head, async { Ok(body) }).await;
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&text).unwrap())
    }

    fn verify(&self, results: &Value, nonce: &[u8], mask: u32) {
        let quote = Quote::parse(results["quote"].as_str().unwrap()).unwrap();
        let expected = Expected {
            nonce,
            hash: BANK,
            mask: PcrMask::from_bits(mask).unwrap(),
        };
        let verified = quote.verify(&AttestationKey::new(&self.ak).unwrap(), &expected);
        let verified = verified.unwrap();
        let pem = self.api.0.collector.transport().public_pem();
        let bound = Digest::zero(BANK).extend(BANK, BANK.digest(&[pem.as_bytes()]).as_bytes());
        assert_eq!(verified.pcrs().get(16), Some(&bound));
    }
}

fn entries(range: std::ops::Range<usize>) -> String {
    range
        .map(|n| format!("10 {n:040x} ima-ng sha256:{n:064x} /usr/bin/\"tool\" {n}\n"))
        .collect()
}

#[tokio::test]
async fn version_and_info() {
    let agent = agent().await;
    let (status, body) = agent.get("/version").await;
    assert_eq!(
        (status, &body["code"], &body["status"]),
        (200, &json!(200), &json!("Success"))
    );
    assert_eq!(body["results"]["supported_version"], "2.6");
    assert_eq!(
        body["results"]["supported_versions"],
        json!(["2.1", "2.2", "2.3", "2.4", "2.5", "2.6"])
    );
    assert_eq!(body["results"]["extensions"], json!(["userspace_ml"]));
    let (_, body) = agent.get("/v2.6/agent/info").await;
    assert_eq!(
        body["results"]["agent_uuid"],
        "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
    );
    assert_eq!(body["results"]["tpm_enc_alg"], "ecc256");
    let (_, body) = agent.get("/v2.4/agent/info").await;
    assert_eq!(body["results"]["tpm_enc_alg"], "ecc");
}

#[tokio::test]
async fn an_identity_quote_binds_the_key_and_carries_no_logs() {
    let agent = agent().await;
    fs::write(&agent.ima, entries(0..3)).unwrap();
    let (status, body) = agent.get("/v2.1/quotes/identity?nonce=abc123").await;
    assert_eq!(status, 200);
    let results = body["results"].as_object().unwrap();
    agent.verify(&body["results"], b"abc123", 1 << 16);
    let names: Vec<&str> = results.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["enc_alg", "hash_alg", "pubkey", "quote", "sign_alg"]
    );
    let (_, key) = agent.get("/v2.1/keys/pubkey").await;
    assert_eq!(results["pubkey"], key["results"]["pubkey"]);
}

#[tokio::test]
async fn an_integrity_quote_carries_the_logs_that_were_asked_for() {
    let agent = agent().await;
    fs::write(&agent.ima, entries(0..3)).unwrap();
    fs::write(agent.directory.path().join("boot"), "log").unwrap();
    let (status, body) = agent
        .get("/v2.6/quotes/integrity?nonce=n&mask=0x401&partial=1&ima_ml_entry=1")
        .await;
    assert_eq!(status, 200);
    agent.verify(&body["results"], b"n", 0x1_0401);
    let results = &body["results"];
    assert_eq!(results["ima_measurement_list"], entries(1..3));
    assert_eq!(results["ima_measurement_list_entry"], 1);
    assert_eq!(results["mb_measurement_list"], STANDARD.encode("log"));
    assert!(results["boottime"].as_u64().unwrap() > 0);
    assert!(results.get("pubkey").is_none());

    let path = "/v2.6/quotes/integrity?nonce=n&mask=0x400&partial=0&ima_ml_entry=3";
    let (_, body) = agent.get(path).await;
    let results = &body["results"];
    assert_eq!(results["ima_measurement_list"], "");
    assert_eq!(results["ima_measurement_list_entry"], 3);
    assert!(
        results.get("mb_measurement_list").is_none(),
        "mask bit 0 is clear"
    );
    assert!(results["pubkey"].is_string());
}

#[tokio::test]
async fn a_host_without_logs_says_nothing_of_them() {
    let agent = agent().await;
    let (status, body) = agent
        .get("/v2.6/quotes/integrity?nonce=n&mask=1&partial=1")
        .await;
    assert_eq!(status, 200);
    for absent in [
        "ima_measurement_list",
        "ima_measurement_list_entry",
        "mb_measurement_list",
    ] {
        assert!(body["results"].get(absent).is_none(), "{absent}");
    }
}

#[tokio::test]
async fn systemds_log_comes_to_who_asks_for_it() {
    let agent = agent().await;
    let integrity = "/v2.6/quotes/integrity?nonce=n&mask=1&partial=1";
    let asked = format!("{integrity}&userspace_ml=1");
    let member = "userspace_measurement_list";
    let (_, body) = agent.get(&asked).await;
    assert!(body["results"].get(member).is_none(), "there is none");
    let log = "\u{1e}{}\n";
    fs::write(agent.directory.path().join("userspace"), log).unwrap();
    let (_, body) = agent.get(&asked).await;
    assert_eq!(body["results"][member], STANDARD.encode(log));
    for other in [integrity, &format!("{integrity}&userspace_ml=0")] {
        let (status, body) = agent.get(other).await;
        assert_eq!(status, 200);
        assert!(body["results"].get(member).is_none(), "{other}");
    }
}

#[tokio::test]
async fn a_long_list_is_streamed_in_pieces_and_reads_back() {
    let agent = agent().await;
    fs::write(&agent.ima, entries(0..20_000)).unwrap();
    fs::write(agent.directory.path().join("boot"), "log").unwrap();
    let path = "/v2.6/quotes/integrity?nonce=n&mask=1&partial=1";
    let (head, ()) = Request::get(path).body(()).unwrap().into_parts();
    let answer = agent.api.answer(&head, async { Ok(Bytes::new()) }).await;
    let mut body = answer.into_body();
    let (mut text, mut largest, mut pieces) = (Vec::new(), 0, 0);
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        largest = largest.max(data.len());
        pieces += 1;
        text.extend_from_slice(&data);
        // Entries that come while the list is sent are sent too, or not, but always whole.
        if pieces == 3 {
            let mut list = OpenOptions::new().append(true).open(&agent.ima).unwrap();
            list.write_all(entries(20_000..20_010).as_bytes()).unwrap();
        }
    }
    assert!(
        pieces > 10 && largest < 128 * 1024,
        "{pieces} pieces of up to {largest} bytes"
    );
    let body: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(body["results"]["ima_measurement_list"], entries(0..20_010));
    assert_eq!(body["results"]["ima_measurement_list_entry"], 0);
    assert_eq!(
        body["results"]["mb_measurement_list"],
        STANDARD.encode("log")
    );
}

#[tokio::test]
async fn bytes_of_the_list_that_are_not_utf8_are_told_apart() {
    let agent = agent().await;
    fs::write(&agent.ima, b"10 a \xFF\xFE\x01\n").unwrap();
    let (_, body) = agent
        .get("/v2.6/quotes/integrity?nonce=n&mask=0&partial=1")
        .await;
    assert_eq!(
        body["results"]["ima_measurement_list"],
        "10 a \u{10FFff}\u{10FFfe}\u{1}\n"
    );
}

#[tokio::test]
async fn what_may_pass_is_500_and_what_is_wrong_is_400() {
    let agent = agent().await;
    agent.chip.set_faults(Faults {
        pcr_moves: 100,
        ..Faults::default()
    });
    let moving = "/v2.6/quotes/integrity?nonce=n&mask=0x400&partial=1";
    let (status, body) = agent.get(moving).await;
    assert_eq!(status, 500);
    assert_eq!(body["code"], 500);
    assert!(
        body["status"]
            .as_str()
            .unwrap()
            .starts_with("Unable to retrieve quote")
    );
    assert_eq!(body["results"], json!({}));
    fs::create_dir(&agent.ima).unwrap();
    agent.chip.set_faults(Faults::default());
    let integrity = "/v2.6/quotes/integrity?nonce=n&mask=0&partial=1";
    assert_eq!(agent.get(integrity).await.0, 500, "the list cannot be read");
    for path in [
        "/v2.6/quotes/identity",
        "/v2.6/quotes/identity?nonce=a.b",
        "/v2.6/quotes/integrity?nonce=a&mask=1",
        "/v2.6/quotes/integrity?nonce=a&mask=g&partial=1",
        "/v2.6/quotes/integrity?nonce=a&mask=1000000&partial=1",
        "/v2.0/quotes/identity?nonce=a",
        "/nowhere",
    ] {
        let (status, body) = agent.get(path).await;
        assert_eq!((status, &body["code"]), (400, &json!(400)), "{path}");
        assert_eq!(body["results"], json!({}));
    }
    for (path, text) in [
        (
            "/v2.0/quotes/identity?nonce=a",
            "API version not supported: v2.0",
        ),
        (
            "/v2.6/quotes/identity?nonce=a.b",
            "Parameters should be strictly alphanumeric: a.b",
        ),
        (
            "/v2.6/keys/verify?challenge=a.b",
            "Parameters should be strictly alphanumeric: a.b",
        ),
        (
            "/v2.6/quotes/integrity?nonce=a.b&mask=1&partial=1",
            "nonce should be strictly alphanumeric: a.b",
        ),
    ] {
        assert_eq!(agent.get(path).await.1["status"], text);
    }
}

#[tokio::test]
async fn the_payload_key_comes_of_two_shares() {
    use aws_lc_rs::{
        hmac,
        rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey},
    };

    let agent = agent().await;
    let der = crate::pem::decode("PUBLIC KEY", agent.api.0.collector.transport().public_pem());
    let key = PublicEncryptingKey::from_der(&der.unwrap()).unwrap();
    let key = OaepPublicEncryptingKey::new(key).unwrap();
    let seal = |share: &[u8]| {
        let mut sealed = vec![0; key.ciphertext_size()];
        key.encrypt(&OAEP_SHA1_MGF1SHA1, share, &mut sealed, None)
            .unwrap();
        STANDARD.encode(sealed)
    };
    let tag = |message: &[u8]| {
        hex::encode(hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA384, &[3; 32]),
            message,
        ))
    };
    let id = agent.api.0.id.as_str().to_owned();
    let (status, body) = agent.get("/v2.6/keys/verify?challenge=abc").await;
    assert_eq!(
        (status, &body["status"]),
        (400, &json!("Bootstrap key not yet available."))
    );

    let v = json!({ "encrypted_key": seal(&[1; 32]) });
    let (status, body) = agent.post("/v2.6/keys/vkey", &v).await;
    assert_eq!((status, &body["results"]), (200, &Value::Null));
    let u = json!({ "encrypted_key": seal(&[2; 32]), "auth_tag": tag(id.as_bytes()) });
    assert_eq!(agent.post("/v2.6/keys/ukey", &u).await.0, 200);
    let (status, body) = agent.get("/v2.6/keys/verify?challenge=abc").await;
    assert_eq!(
        (status, &body["results"]["hmac"]),
        (200, &json!(tag(b"abc")))
    );
    let (_, body) = agent.get("/v2.6/keys/verify?challenge=").await;
    assert_eq!(body["status"], "No challenge provided.");

    for (bad, text) in [
        (json!({}), "Json deserialize error: "),
        (
            json!({ "encrypted_key": "!" }),
            "Invalid base64 encoding in encrypted_key: ",
        ),
        (
            json!({ "encrypted_key": "AAAA" }),
            "Failed to decrypt encrypted_key: ",
        ),
        (
            json!({ "encrypted_key": seal(&[1; 31]) }),
            "Decrypted key is invalid: ",
        ),
    ] {
        let (status, body) = agent.post("/v2.6/keys/vkey", &bad).await;
        assert_eq!(status, 400);
        assert!(body["status"].as_str().unwrap().starts_with(text), "{body}");
    }
    let notice = json!({ "msg": "{\"type\":\"revocation\"}", "signature": "" });
    let revocation = "/v2.6/notifications/revocation";
    let (status, body) = agent.post(revocation, &notice).await;
    assert_eq!((status, &body["results"]), (200, &Value::Null));
    assert_eq!(agent.post(revocation, &json!({})).await.0, 400);

    let (status, body) = agent.send("POST", "/v2.6/keys/vkey", None, "{}").await;
    assert_eq!(
        (status, &body["status"]),
        (400, &json!("Content type error"))
    );
}

#[test]
fn request_ids_are_made_harmless() {
    let id = |text: &str| {
        request_id(&header::HeaderValue::from_str(text).unwrap())
            .map(|id| id.to_str().unwrap().to_owned())
    };
    assert_eq!(id("a1_b<2>").as_deref(), Some("a1_b2"));
    assert_eq!(id(&"x".repeat(100)).unwrap().len(), 36);
    assert_eq!(id("<>"), None);
}
