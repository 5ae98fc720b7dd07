//! The verifier over real mTLS against an agent that can misbehave on purpose. What honest agents
//! do on real TPMs is tested with processes elsewhere; here are the faults that those cannot make.
#![allow(clippy::unwrap_used, reason = "a test helper's error is a failed test")]

mod common;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{SoftTpm, call, operator, pcrs};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use troth_core::{
    policy::RuntimePolicy,
    tpm::{Digest, HashAlgorithm, PcrMask},
};
use troth_daemon::{
    client::Client,
    server::{self, Body, Handler, Limits},
    shutdown::{Shutdown, Trigger},
    tls::{ClientAuth, Identity, load_certificates, server_config},
};
use troth_verifier::{
    ca::CaDirectory,
    config::{Seconds, VerifierConfig},
    server::VerifierServer,
};

const PUBKEY: &str = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Keylime's empty policy: no list is asked for.
const NO_LIST: &str = concat!(
    r#"{"meta": {"version": 1, "generator": 1}, "release": 0, "digests": {}, "excludes": [], "#,
    r#""keyrings": {}, "ima-buf": {}, "verification-keys": "", "#,
    r#""ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null}}"#,
);

/// How the agent answers.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Good,
    /// PCR 0 has another value than the policy allows.
    WrongPcr,
    /// An HTTP status without evidence.
    Status(u16),
    /// Status 200 with this body.
    Body(&'static str),
    /// Serves this API version alone.
    Only(&'static str),
    /// Never answers.
    Hang,
}

struct Script {
    mode: Mode,
    /// Lines of the IMA list, each with its template data.
    list: Vec<(String, Vec<u8>)>,
    boottime: u64,
    resets: u32,
    clock: u64,
    queries: Vec<String>,
}

#[derive(Clone)]
struct Agent {
    tpm: Arc<SoftTpm>,
    script: Arc<Mutex<Script>>,
}

impl Handler for Agent {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let uri = request.uri().to_string();
        let mode = {
            let mut script = self.script.lock().unwrap();
            script.queries.push(uri.clone());
            script.mode
        };
        let refuse = |status: u16, text: &str| {
            let code = StatusCode::from_u16(status).unwrap();
            server::json(
                code,
                &json!({"code": status, "status": text, "results": {}}),
            )
        };
        match mode {
            Mode::Hang => std::future::pending().await,
            Mode::Status(status) => refuse(status, "no evidence today"),
            Mode::Body(text) => Response::new(server::full(text)),
            Mode::Only(version) if uri == "/version" => {
                let versions = json!({
                    "supported_version": version, "supported_versions": [version],
                });
                server::json(
                    StatusCode::OK,
                    &json!({"code": 200, "status": "Success", "results": versions}),
                )
            }
            Mode::Only(version) if !uri.starts_with(&format!("/v{version}/")) => {
                refuse(400, "API version not supported")
            }
            Mode::Only(_) | Mode::Good | Mode::WrongPcr => self.evidence(&uri, mode),
        }
    }
}

impl Agent {
    fn new() -> Self {
        let script = Script {
            mode: Mode::Good,
            list: Vec::new(),
            boottime: 1_700_000_000,
            resets: 1,
            clock: 1000,
            queries: Vec::new(),
        };
        Self {
            tpm: Arc::new(SoftTpm::new()),
            script: Arc::new(Mutex::new(script)),
        }
    }

    fn set(&self, mode: Mode) {
        self.script.lock().unwrap().mode = mode;
    }

    fn queries(&self) -> Vec<String> {
        self.script.lock().unwrap().queries.clone()
    }

    fn measure(&self, path: &str) {
        self.script.lock().unwrap().list.push(measurement(path));
    }

    /// The host boots again and measures `files`.
    fn reboot(&self, files: &[&str]) {
        let mut script = self.script.lock().unwrap();
        script.list = files.iter().map(|path| measurement(path)).collect();
        script.boottime += 1000;
        script.resets += 1;
        script.clock = 0;
    }

    fn list(&self) -> String {
        self.script
            .lock()
            .unwrap()
            .list
            .iter()
            .map(|(line, _)| line.as_str())
            .collect()
    }

    fn evidence(&self, uri: &str, mode: Mode) -> Response<Body> {
        let parameter = |name: &str| {
            let query = uri.split_once('?').unwrap().1;
            query
                .split('&')
                .find_map(|p| p.strip_prefix(&format!("{name}=")))
                .unwrap()
                .to_owned()
        };
        let mut script = self.script.lock().unwrap();
        script.clock += 10;
        let mask = PcrMask::from_hex(&parameter("mask")).unwrap();
        let mut values = pcrs(mask, PUBKEY);
        if mode == Mode::WrongPcr {
            values.set(0, Digest::ones(HashAlgorithm::Sha256));
        }
        let first: usize = parameter("ima_ml_entry").parse().unwrap();
        // Keylime's agents fall back to the whole list when it has become shorter.
        let first = if first > script.list.len() { 0 } else { first };
        if mask.contains(10) {
            let zero = Digest::zero(HashAlgorithm::Sha256);
            let value = script.list.iter().fold(zero, |pcr, (_, data)| {
                let entry = HashAlgorithm::Sha256.digest(&[data]);
                pcr.extend(HashAlgorithm::Sha256, entry.as_bytes())
            });
            values.set(10, value);
        }
        let clock = (script.clock, script.resets);
        let quote = self.tpm.quote(&parameter("nonce"), clock, &values);
        let mut results = json!({
            "quote": quote, "hash_alg": "sha256", "enc_alg": "ecc256", "sign_alg": "ecdsa",
            "boottime": script.boottime,
        });
        if mask.contains(10) {
            let lines: String = script.list[first..]
                .iter()
                .map(|(l, _)| l.as_str())
                .collect();
            results["ima_measurement_list"] = json!(lines);
            results["ima_measurement_list_entry"] = json!(first);
        }
        if parameter("partial") == "0" {
            results["pubkey"] = json!(PUBKEY);
        }
        server::json(
            StatusCode::OK,
            &json!({"code": 200, "status": "Success", "results": results}),
        )
    }
}

/// An entry of template `ima-ng`: its line, and the template data that PCR 10 is extended with.
fn measurement(path: &str) -> (String, Vec<u8>) {
    let content = HashAlgorithm::Sha256.digest(&[path.as_bytes()]);
    let mut data = 40_u32.to_le_bytes().to_vec();
    data.extend(b"sha256:\0");
    data.extend(content.as_bytes());
    data.extend(u32::try_from(path.len() + 1).unwrap().to_le_bytes());
    data.extend(path.as_bytes());
    data.push(0);
    let template = HashAlgorithm::Sha1.digest(&[&data]);
    (
        format!("10 {template} ima-ng sha256:{content} {path}\n"),
        data,
    )
}

/// An agent that listens, with its certificate.
struct Listening {
    address: SocketAddr,
    certificate: String,
    identity: Identity,
    trigger: Option<Trigger>,
    task: JoinHandle<()>,
}

impl Listening {
    async fn start(agent: &Agent, ca_dir: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default()
            .self_signed(&key)
            .unwrap()
            .pem();
        let identity =
            Identity::from_pem(certificate.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::with(agent, ca_dir, certificate, identity, any).await
    }

    async fn with(
        agent: &Agent,
        ca_dir: &Path,
        certificate: String,
        identity: Identity,
        address: SocketAddr,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let roots = load_certificates(&ca_dir.join("cacert.crt")).unwrap();
        let tls = server_config(&identity, ClientAuth::Required(roots)).unwrap();
        let (trigger, shutdown) = Shutdown::new();
        let serve = server::serve(
            listener,
            Some(tls),
            Limits::default(),
            agent.clone(),
            shutdown,
        );
        let task = tokio::spawn(serve);
        Self {
            address,
            certificate,
            identity,
            trigger: Some(trigger),
            task,
        }
    }

    async fn stop(&mut self) {
        self.trigger.take().unwrap().fire();
        (&mut self.task).await.unwrap();
    }
}

struct Verifier {
    admin: Client,
    trigger: Trigger,
    task: JoinHandle<()>,
    port: u16,
}

fn seconds(seconds: f64) -> Seconds {
    Seconds(Duration::from_secs_f64(seconds))
}

impl Verifier {
    async fn start(state_dir: &Path) -> Self {
        Self::with(VerifierConfig {
            state_dir: state_dir.into(),
            ..VerifierConfig::default()
        })
        .await
    }

    async fn with(config: VerifierConfig) -> Self {
        let config = VerifierConfig {
            port: 0,
            quote_interval: seconds(0.1),
            retry_interval: seconds(0.1),
            max_retries: 2,
            request_timeout: seconds(1.0),
            ..config
        };
        let server = VerifierServer::start(&config).await.unwrap();
        let port = server.address().unwrap().port();
        let (trigger, shutdown) = Shutdown::new();
        let task = tokio::spawn(server.run(shutdown));
        Self {
            admin: operator(port, &config.ca_dir(), true),
            trigger,
            task,
            port,
        }
    }

    async fn stop(self) {
        self.trigger.fire();
        self.task.await.unwrap();
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        call(&self.admin, method, path, body).await
    }

    async fn enrol(&self, id: &str, body: Value) -> (u16, Value) {
        self.call(Method::POST, &format!("/v2.6/agents/{id}"), Some(body))
            .await
    }

    async fn status(&self, id: &str) -> Value {
        let (code, answer) = self
            .call(Method::GET, &format!("/v2.6/agents/{id}"), None)
            .await;
        assert_eq!(code, 200, "{answer}");
        answer["results"].clone()
    }

    /// Waits until `good` holds of the node's status.
    async fn until(&self, id: &str, good: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            let status = self.status(id).await;
            if good(&status) {
                return status;
            }
            assert!(Instant::now() < end, "still {status:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_state(&self, id: &str, state: &str) -> Value {
        self.until(id, |status| status["troth"]["state"] == state)
            .await
    }
}

fn enrolment(agent: &Agent, listening: &Listening) -> Value {
    json!({
        "v": null,
        "cloudagent_ip": "127.0.0.1",
        "cloudagent_port": listening.address.port().to_string(),
        "tpm_policy": format!("{{\"0\": [\"{ZERO}\"], \"mask\": \"0x1\"}}"),
        "metadata": "{}",
        "runtime_policy": "", "runtime_policy_name": "", "runtime_policy_key": "",
        "mb_policy": null, "mb_policy_name": "",
        "ima_sign_verification_keys": "", "revocation_key": "",
        "accept_tpm_hash_algs": ["sha256"],
        "accept_tpm_encryption_algs": ["ecc", "rsa"],
        "accept_tpm_signing_algs": ["ecdsa", "rsassa"],
        "ak_tpm": agent.tpm.ak_tpm(),
        "mtls_cert": listening.certificate,
        "supported_version": "2.6",
    })
}

/// A verifier, and an agent that it may ask.
async fn stage(root: &Path) -> (Verifier, Agent, Listening) {
    let ca_dir = root.join("cv_ca");
    CaDirectory::ensure(&ca_dir, &[]).unwrap();
    let agent = Agent::new();
    let listening = Listening::start(&agent, &ca_dir).await;
    (Verifier::start(root).await, agent, listening)
}

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

fn ima_enrolment(agent: &Agent, listening: &Listening) -> Value {
    let policy = RuntimePolicy::json_from_ima_list(&agent.list(), 1_700_000_000).unwrap();
    let mut body = enrolment(agent, listening);
    body["tpm_policy"] = json!("{\"mask\": \"0x400\"}");
    body["runtime_policy"] = json!(STANDARD.encode(policy));
    body
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

/// The policy that allows what `agent` has measured so far, as the API carries it.
fn policy_body(agent: &Agent) -> Value {
    let policy = RuntimePolicy::json_from_ima_list(&agent.list(), 1_700_000_000).unwrap();
    json!({
        "runtime_policy": STANDARD.encode(policy), "runtime_policy_key": "",
        "tpm_policy": "{\"mask\": \"0x400\"}",
    })
}

#[tokio::test]
async fn runtime_policies_are_kept_by_name() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    agent.measure("/usr/bin/a");
    let fleet = "/v2.6/allowlists/fleet%201";
    let policy = policy_body(&agent);
    let (_, list) = verifier.call(Method::GET, "/v2.6/allowlists/", None).await;
    assert_eq!(list["results"], json!({ "runtimepolicy names": [] }));
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
            &json!("Runtime policy fleet 1 does not already exist, use POST to create")
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
    assert_eq!(
        list["results"],
        json!({ "runtimepolicy names": ["fleet 1"] })
    );
    let (_, shown) = verifier.call(Method::GET, fleet, None).await;
    let sent = STANDARD
        .decode(policy["runtime_policy"].as_str().unwrap())
        .unwrap();
    assert_eq!(
        shown["results"],
        json!({
            "name": "fleet 1", "tmp_policy": null,
            "runtime_policy": String::from_utf8(sent).unwrap(),
        })
    );
    // A policy in use stays.
    let mut body = enrolment(&agent, &listening);
    body["tpm_policy"] = json!("{\"mask\": \"0x400\"}");
    body["runtime_policy_name"] = json!("fleet 1");
    assert_eq!(verifier.enrol("a", body).await.0, 200);
    verifier.until_state("a", "trusted").await;
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
    assert_eq!(list["results"], json!({ "runtimepolicy names": [] }));
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
    assert!(status["troth"]["reason"].as_str().unwrap().contains("TLS"));
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
        ("mb_policy", json!("{\"unknown\": 1}"), "mb_policy"),
        ("mb_policy", json!("{}"), "mask lacks PCRs"),
        ("mb_policy_name", json!("named"), "mb_policy_name"),
        ("runtime_policy", json!("*"), "runtime_policy"),
        ("runtime_policy", json!(policy), "runtime_policy"),
        ("runtime_policy_key", json!("AAAA"), "runtime_policy_key"),
        (
            "ima_sign_verification_keys",
            json!("{\"keys\": 1}"),
            "ima_sign",
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
async fn operators_need_a_certificate() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let anonymous = operator(verifier.port, &root.path().join("cv_ca"), false);
    for (method, path) in [
        (Method::GET, "/v2.6/agents"),
        (Method::GET, "/v2.6/agents/a"),
        (Method::POST, "/v2.6/agents/a"),
        (Method::DELETE, "/v2.6/agents/a"),
        (Method::PUT, "/v2.6/agents/a/stop"),
        (Method::PUT, "/v2.6/agents/a/reactivate"),
    ] {
        let body = Some(enrolment(&agent, &listening));
        let (code, answer) = call(&anonymous, method.clone(), path, body).await;
        assert_eq!(
            (code, &answer["errors"][0]["status"]),
            (403, &json!("403")),
            "{method} {path}"
        );
    }
    let (code, version) = call(&anonymous, Method::GET, "/version", None).await;
    assert_eq!(
        (code, &version["results"]["current_version"]),
        (200, &json!("2.6"))
    );
    verifier.stop().await;
}
