use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use hyper::{Request, Response, StatusCode, body::Incoming};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use troth_daemon::{
    server::{self, Body, Handler, Limits},
    shutdown::{Shutdown, Trigger},
    tls::{self, ClientAuth, Identity},
};

/// Answers by `METHOD path`, one after the other, the last for ever; what is not there is 404.
type Answers = HashMap<String, VecDeque<(u16, Vec<u8>)>>;
/// `METHOD path` and body, in the order of asking.
type Requests = Vec<(String, Vec<u8>)>;

/// A CA, the operator's files, and one server that plays every part.
pub(crate) struct Site {
    pub(crate) directory: TempDir,
    pub(crate) port: u16,
    /// PEM of the server's certificate.
    pub(crate) certificate: String,
    answers: Arc<Mutex<Answers>>,
    pub(crate) requests: Arc<Mutex<Requests>>,
    stop: Option<Trigger>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Script {
    answers: Arc<Mutex<Answers>>,
    requests: Arc<Mutex<Requests>>,
}

impl Handler for Script {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let asked = format!("{} {}", request.method(), request.uri().path());
        let body = server::read_body(request.into_body(), 1 << 20).await;
        let entry = (asked.clone(), body.unwrap().to_vec());
        self.requests.lock().unwrap().push(entry);
        let answer = self
            .answers
            .lock()
            .unwrap()
            .get_mut(&asked)
            .and_then(|answers| match answers.len() {
                1 => answers.front().cloned(),
                _ => answers.pop_front(),
            });
        let (status, body) = answer.unwrap_or_else(|| {
            let body = json!({"code": 404, "status": "agent id not found", "results": {}});
            (404, body.to_string().into_bytes())
        });
        let mut response = Response::new(server::full(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    }
}

impl Site {
    pub(crate) fn start() -> Self {
        Self::start_as(&["localhost", "127.0.0.1"])
    }

    /// The certificates have these names; the server is asked at 127.0.0.1.
    pub(crate) fn start_as(names: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let named = |name: &str| {
            let names = names.iter().map(ToString::to_string);
            let mut parameters = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
            parameters.distinguished_name.push(DnType::CommonName, name);
            parameters
        };
        let mut parameters = named("CA");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca = parameters.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(parameters, &ca_key);
        let key = KeyPair::generate().unwrap();
        let client = named("client").signed_by(&key, &issuer).unwrap();
        let certificate = named("server").signed_by(&key, &issuer).unwrap();
        for (file, text) in [
            ("cacert.crt", ca.pem()),
            ("client-cert.crt", client.pem()),
            ("client-private.pem", key.serialize_pem()),
        ] {
            std::fs::write(directory.path().join(file), text).unwrap();
        }
        let identity =
            Identity::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes());
        // As Keylime's servers; and a web server asks nobody for a certificate.
        let clients = ClientAuth::Optional(vec![ca.der().clone()]);
        let config = tls::server_config(&identity.unwrap(), clients).unwrap();

        let script = Script {
            answers: Arc::default(),
            requests: Arc::default(),
        };
        let (answers, requests) = (Arc::clone(&script.answers), Arc::clone(&script.requests));
        let (stop, shutdown) = Shutdown::new();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                server::serve(listener, Some(config), Limits::default(), script, shutdown).await;
            });
        });
        Self {
            directory,
            port,
            certificate: certificate.pem(),
            answers,
            requests,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn answer(&self, request: &str, status: u16, body: impl Into<Vec<u8>>) {
        self.answers
            .lock()
            .unwrap()
            .insert(request.to_owned(), VecDeque::from([(status, body.into())]));
    }

    /// Answers with these statuses one after the other, then as before.
    pub(crate) fn first(&self, request: &str, statuses: &[u16]) {
        let mut answers = self.answers.lock().unwrap();
        let answers = answers.entry(request.to_owned()).or_default();
        for status in statuses.iter().rev() {
            answers.push_front((*status, Vec::new()));
        }
    }

    /// Answers with Keylime's envelope.
    pub(crate) fn success(&self, request: &str, results: &Value) {
        let body = json!({"code": 200, "status": "Success", "results": results});
        self.answer(request, 200, body.to_string());
    }

    pub(crate) fn trothctl(&self, arguments: &[&str]) -> Output {
        self.trothctl_with(&[], arguments)
    }

    /// With further environment.
    pub(crate) fn trothctl_with(&self, more: &[(&str, &str)], arguments: &[&str]) -> Output {
        let url = format!("https://127.0.0.1:{}", self.port);
        Command::new(env!("CARGO_BIN_EXE_trothctl"))
            .args(arguments)
            .env("TROTH_CTL_RETRY_INTERVAL", "0.01")
            .env("TROTH_CTL_REQUIRE_EK_CERT", "false")
            .env("TROTH_VERIFIER", &url)
            .env("TROTH_REGISTRAR", &url)
            .env("TROTH_CA_DIR", self.directory.path())
            .envs(more.iter().copied())
            .output()
            .unwrap()
    }

    pub(crate) fn asked(&self, request: &str) -> bool {
        self.times(request) > 0
    }

    pub(crate) fn times(&self, request: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter(|(asked, _)| asked == request)
            .count()
    }

    /// The JSON that was sent with the last such request.
    pub(crate) fn sent(&self, request: &str) -> Value {
        let requests = self.requests.lock().unwrap();
        let (_, body) = requests
            .iter()
            .rfind(|(asked, _)| asked == request)
            .unwrap();
        serde_json::from_slice(body).unwrap()
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A node as Troth's verifier shows it.
pub(crate) fn node(state: &str, number: u8) -> Value {
    json!({
        "operational_state": number, "v": null, "ip": "192.0.2.7", "port": 9002,
        "tpm_policy": "{\"mask\": \"0x400\"}", "meta_data": "{}",
        "has_mb_refstate": 0, "has_runtime_policy": 1, "accept_tpm_hash_algs": ["sha256"],
        "accept_tpm_encryption_algs": ["rsa"], "accept_tpm_signing_algs": ["rsassa"],
        "hash_alg": "sha256", "enc_alg": "rsa2048", "sign_alg": "rsassa",
        "verifier_id": "default", "verifier_ip": "127.0.0.1", "verifier_port": 8881,
        "severity_level": null, "last_event_id": null, "attestation_count": 1,
        "last_received_quote": 1_795_456_568, "last_successful_attestation": 1_795_456_568,
        "attestation_status": "PASS", "attestation_period": "2s",
        "maximum_attestation_interval": "10s",
        "troth": {
            "state": state, "reason": format!("it is {state}"), "judged_at_ms": 1,
            "due_at_ms": 0, "ima_entries": 3, "findings": [], "findings_total": 0
        }
    })
}
