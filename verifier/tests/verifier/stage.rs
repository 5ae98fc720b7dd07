//! A verifier over real mTLS, and an agent that can misbehave on purpose.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
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

use crate::common::{SoftTpm, call, operator, pcrs};

pub(crate) const PUBKEY: &str = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
pub(crate) const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Keylime's empty policy: no list is asked for.
pub(crate) const NO_LIST: &str = concat!(
    r#"{"meta": {"version": 1, "generator": 1}, "release": 0, "digests": {}, "excludes": [], "#,
    r#""keyrings": {}, "ima-buf": {}, "verification-keys": "", "#,
    r#""ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null}}"#,
);

/// How the agent answers.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Mode {
    Good,
    /// PCR 0 has another value than the policy allows.
    WrongPcr,
    /// An HTTP status without evidence.
    Status(u16),
    /// Status 200 with this body.
    Body(&'static str),
    /// Proves another key than the one that it sends.
    StolenKey,
    /// Serves this API version alone.
    Only(&'static str),
    /// Never answers.
    Hang,
}

pub(crate) struct Script {
    pub(crate) mode: Mode,
    /// Lines of the IMA list, each with its template data.
    pub(crate) list: Vec<(String, Vec<u8>)>,
    pub(crate) boottime: u64,
    pub(crate) resets: u32,
    pub(crate) clock: u64,
    /// The NK that PCR 16 is bound to.
    pub(crate) pubkey: String,
    pub(crate) queries: Vec<String>,
}

impl Script {
    fn pcr_10(&self) -> Digest {
        let zero = Digest::zero(HashAlgorithm::Sha256);
        self.list.iter().fold(zero, |pcr, (_, data)| {
            let entry = HashAlgorithm::Sha256.digest(&[data]);
            pcr.extend(HashAlgorithm::Sha256, entry.as_bytes())
        })
    }
}

#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) tpm: Arc<SoftTpm>,
    pub(crate) script: Arc<Mutex<Script>>,
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
            _ if uri == "/version" => {
                let version = match mode {
                    Mode::Only(version) => version,
                    _ => "2.6",
                };
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
            Mode::Only(_) | Mode::Good | Mode::WrongPcr | Mode::StolenKey => {
                self.evidence(&uri, mode)
            }
        }
    }
}

impl Agent {
    pub(crate) fn new() -> Self {
        let script = Script {
            mode: Mode::Good,
            list: Vec::new(),
            boottime: 1_700_000_000,
            resets: 1,
            clock: 1000,
            pubkey: PUBKEY.into(),
            queries: Vec::new(),
        };
        Self {
            tpm: Arc::new(SoftTpm::new()),
            script: Arc::new(Mutex::new(script)),
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.script.lock().unwrap().mode = mode;
    }

    pub(crate) fn queries(&self) -> Vec<String> {
        self.script.lock().unwrap().queries.clone()
    }

    /// The agent is restarted, and has a new NK.
    pub(crate) fn renew_key(&self) {
        let mut script = self.script.lock().unwrap();
        script.pubkey = script.pubkey.replace("AAAA", "BBBB");
    }

    pub(crate) fn measure(&self, path: &str) {
        self.script.lock().unwrap().list.push(measurement(path));
    }

    /// The host boots again and measures `files`.
    pub(crate) fn reboot(&self, files: &[&str]) {
        let mut script = self.script.lock().unwrap();
        script.list = files.iter().map(|path| measurement(path)).collect();
        script.boottime += 1000;
        script.resets += 1;
        script.clock = 0;
    }

    /// A quote over PCR 10 and 16 as they are, and its nonce.
    pub(crate) fn quote(&self) -> (String, &'static str) {
        let script = self.script.lock().unwrap();
        let mut values = pcrs(PcrMask::default(), &script.pubkey);
        values.set(10, script.pcr_10());
        (self.tpm.quote("nonce", (1, 1), &values), "nonce")
    }

    pub(crate) fn list(&self) -> String {
        self.script
            .lock()
            .unwrap()
            .list
            .iter()
            .map(|(line, _)| line.as_str())
            .collect()
    }

    pub(crate) fn evidence(&self, uri: &str, mode: Mode) -> Response<Body> {
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
        let mut values = pcrs(mask, &script.pubkey);
        if mode == Mode::WrongPcr {
            values.set(0, Digest::ones(HashAlgorithm::Sha256));
        }
        if mode == Mode::StolenKey {
            values.set(16, Digest::ones(HashAlgorithm::Sha256));
        }
        let first: usize = parameter("ima_ml_entry").parse().unwrap();
        // Keylime's agents fall back to the whole list when it has become shorter.
        let first = if first > script.list.len() { 0 } else { first };
        if mask.contains(10) {
            values.set(10, script.pcr_10());
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
            results["pubkey"] = json!(script.pubkey);
        }
        server::json(
            StatusCode::OK,
            &json!({"code": 200, "status": "Success", "results": results}),
        )
    }
}

/// An entry of template `ima-ng`: its line, and the template data that PCR 10 is extended with.
pub(crate) fn measurement(path: &str) -> (String, Vec<u8>) {
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
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    pub(crate) certificate: String,
    pub(crate) identity: Identity,
    pub(crate) trigger: Option<Trigger>,
    pub(crate) task: JoinHandle<()>,
}

impl Listening {
    pub(crate) async fn start(agent: &Agent, ca_dir: &Path) -> Self {
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

    pub(crate) async fn with(
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

    pub(crate) async fn stop(&mut self) {
        self.trigger.take().unwrap().fire();
        (&mut self.task).await.unwrap();
    }
}

pub(crate) struct Verifier {
    pub(crate) admin: Client,
    pub(crate) trigger: Trigger,
    pub(crate) task: JoinHandle<()>,
    pub(crate) port: u16,
}

pub(crate) fn seconds(seconds: f64) -> Seconds {
    Seconds(Duration::from_secs_f64(seconds))
}

impl Verifier {
    pub(crate) async fn start(state_dir: &Path) -> Self {
        Self::with(VerifierConfig {
            state_dir: state_dir.into(),
            ..VerifierConfig::default()
        })
        .await
    }

    pub(crate) async fn with(config: VerifierConfig) -> Self {
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

    pub(crate) async fn stop(self) {
        self.trigger.fire();
        self.task.await.unwrap();
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        call(&self.admin, method, path, body).await
    }

    pub(crate) async fn enrol(&self, id: &str, body: Value) -> (u16, Value) {
        self.call(Method::POST, &format!("/v2.6/agents/{id}"), Some(body))
            .await
    }

    pub(crate) async fn status(&self, id: &str) -> Value {
        let (code, answer) = self
            .call(Method::GET, &format!("/v2.6/agents/{id}"), None)
            .await;
        assert_eq!(code, 200, "{answer}");
        answer["results"].clone()
    }

    /// Waits until `good` holds of the node's status.
    pub(crate) async fn until(&self, id: &str, good: impl Fn(&Value) -> bool) -> Value {
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

    pub(crate) async fn until_state(&self, id: &str, state: &str) -> Value {
        self.until(id, |status| status["troth"]["state"] == state)
            .await
    }
}

pub(crate) fn enrolment(agent: &Agent, listening: &Listening) -> Value {
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
pub(crate) async fn stage(root: &Path) -> (Verifier, Agent, Listening) {
    let ca_dir = root.join("cv_ca");
    CaDirectory::ensure(&ca_dir, &[]).unwrap();
    let agent = Agent::new();
    let listening = Listening::start(&agent, &ca_dir).await;
    (Verifier::start(root).await, agent, listening)
}

pub(crate) fn ima_enrolment(agent: &Agent, listening: &Listening) -> Value {
    let policy = RuntimePolicy::json_from_ima_list(&agent.list(), 1_700_000_000).unwrap();
    let mut body = enrolment(agent, listening);
    body["tpm_policy"] = json!("{\"mask\": \"0x400\"}");
    body["runtime_policy"] = json!(STANDARD.encode(policy));
    body
}

/// The policy that allows what `agent` has measured so far, as the API carries it.
pub(crate) fn policy_body(agent: &Agent) -> Value {
    let policy = RuntimePolicy::json_from_ima_list(&agent.list(), 1_700_000_000).unwrap();
    json!({
        "runtime_policy": STANDARD.encode(policy), "runtime_policy_key": "",
        "tpm_policy": "{\"mask\": \"0x400\"}",
    })
}
