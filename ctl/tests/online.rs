//! `trothctl` as a process against servers that answer as a test tells them to: exit statuses,
//! JSON shapes and messages for what a real fleet does only now and then.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{Request, Response, StatusCode, body::Incoming};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use troth_core::tpm::HashAlgorithm;
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
struct Site {
    directory: TempDir,
    port: u16,
    /// PEM of the server's certificate.
    certificate: String,
    answers: Arc<Mutex<Answers>>,
    requests: Arc<Mutex<Requests>>,
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
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let named = |name: &str| {
            let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
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

    fn answer(&self, request: &str, status: u16, body: impl Into<Vec<u8>>) {
        self.answers
            .lock()
            .unwrap()
            .insert(request.to_owned(), VecDeque::from([(status, body.into())]));
    }

    /// Answers with these statuses one after the other, then as before.
    fn first(&self, request: &str, statuses: &[u16]) {
        let mut answers = self.answers.lock().unwrap();
        let answers = answers.entry(request.to_owned()).or_default();
        for status in statuses.iter().rev() {
            answers.push_front((*status, Vec::new()));
        }
    }

    /// Answers with Keylime's envelope.
    fn success(&self, request: &str, results: &Value) {
        let body = json!({"code": 200, "status": "Success", "results": results});
        self.answer(request, 200, body.to_string());
    }

    fn trothctl(&self, arguments: &[&str]) -> Output {
        let url = format!("https://127.0.0.1:{}", self.port);
        Command::new(env!("CARGO_BIN_EXE_trothctl"))
            .args(arguments)
            .env("TROTH_CTL_RETRY_INTERVAL", "0.01")
            .env("TROTH_VERIFIER", &url)
            .env("TROTH_REGISTRAR", &url)
            .env("TROTH_CA_DIR", self.directory.path())
            .output()
            .unwrap()
    }

    fn asked(&self, request: &str) -> bool {
        self.times(request) > 0
    }

    fn times(&self, request: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter(|(asked, _)| asked == request)
            .count()
    }

    /// The JSON that was sent with the last such request.
    fn sent(&self, request: &str) -> Value {
        let requests = self.requests.lock().unwrap();
        let (_, body) = requests
            .iter()
            .rfind(|(asked, _)| asked == request)
            .unwrap();
        serde_json::from_slice(body).unwrap()
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
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

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A node as Troth's verifier shows it.
fn node(state: &str, number: u8) -> Value {
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

#[test]
fn the_exit_status_of_agent_status_is_the_verdict() {
    let site = Site::start();
    for (state, number, status) in [
        ("trusted", 3, 0),
        ("failed", 9, 3),
        ("unreachable", 7, 4),
        ("stale", 3, 4),
        ("pending", 1, 6),
        ("stopped", 10, 6),
        ("of the future", 3, 1),
    ] {
        site.success("GET /v2.6/agents/n", &node(state, number));
        let output = site.trothctl(&["agent", "status", "n"]);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{state}: {}",
            stderr(&output)
        );
        assert!(
            stdout(&output).contains(&format!("it is {state}")),
            "{}",
            stdout(&output)
        );
    }
    assert_eq!(
        site.trothctl(&["agent", "status", "other"]).status.code(),
        Some(5)
    );
}

#[test]
fn a_list_has_every_node_and_a_summary() {
    let site = Site::start();
    let nodes = json!({"a": node("trusted", 3), "b": node("failed", 9), "c": node("trusted", 3)});
    site.success("GET /v2.6/agents/", &nodes);
    let output = site.trothctl(&["agent", "list"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).starts_with("AGENT  STATE    ATTESTED"),
        "{}",
        stdout(&output)
    );
    assert!(
        stdout(&output).ends_with("\n3 agents: 2 trusted, 1 failed\n"),
        "{}",
        stdout(&output)
    );

    let output = site.trothctl(&["--json", "agent", "list"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["agents"][1]["id"], "b");
    assert_eq!(list["agents"][1]["state"], "failed");
    assert_eq!(list["agents"][1]["address"], "192.0.2.7:9002");
}

#[test]
fn hostile_text_of_a_node_does_not_reach_the_terminal() {
    let site = Site::start();
    let mut hostile = node("failed", 9);
    hostile["troth"]["reason"] = json!("\u{1b}]0;owned\u{7}");
    hostile["troth"]["findings"] = json!([{
        "id": "x", "recoverable": true,
        "place": {"ima_entry": {"entry": 1, "path": "/tmp/\u{1b}[2J"}},
        "expected": ["\r\u{9b}31m"], "got": "\u{202e}", "explanation": "a\nb", "action": "c"
    }]);
    site.success("GET /v2.6/agents/n", &hostile);
    let output = site.trothctl(&["agent", "status", "n"]);
    let text = stdout(&output);
    assert!(
        !text.chars().any(|c| c != '\n' && c.is_control()),
        "{text:?}"
    );
    assert!(!text.contains('\u{202e}'), "{text:?}");
    assert!(text.contains(r"/tmp/\u{1b}[2J"), "{text}");
}

#[test]
fn refusals_say_what_the_server_said() {
    let site = Site::start();
    let forbidden = json!({"errors": [{"status": "403", "title": "Forbidden",
        "detail": "Action read_agent requires authentication"}]});
    for (status, body, wanted) in [
        (403, forbidden.to_string(), "requires authentication"),
        (500, String::new(), "see its log"),
        (
            400,
            json!({"code": 400, "status": "no good", "results": {}}).to_string(),
            "no good",
        ),
        (200, "<html>".to_owned(), "unusable answer"),
        (
            200,
            json!({"code": 200, "status": "Success"}).to_string(),
            "results",
        ),
    ] {
        site.answer("GET /v2.6/agents/n", status, body);
        let output = site.trothctl(&["agent", "status", "n"]);
        assert_eq!(output.status.code(), Some(1), "{status}");
        assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
        assert!(
            stderr(&output).contains(&site.port.to_string()),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_dead_or_foreign_server_is_exit_status_7() {
    let site = Site::start();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("https://{free}");
    let output = site.trothctl(&["--verifier", &url, "agent", "list"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(stderr(&output).contains("refused"), "{}", stderr(&output));
    assert!(stderr(&output).contains(&url), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("--verifier"),
        "{}",
        stderr(&output)
    );

    let other = Site::start();
    let directory = other.directory.path().to_str().unwrap();
    let output = site.trothctl(&["--ca-dir", directory, "registrar", "list"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(stderr(&output).contains("TLS"), "{}", stderr(&output));
    assert!(stderr(&output).contains("--ca-dir"), "{}", stderr(&output));

    // The right CA, but a client certificate of another one.
    let ca = std::fs::read(site.directory.path().join("cacert.crt")).unwrap();
    other.file("cacert.crt", ca);
    let output = site.trothctl(&["--ca-dir", directory, "registrar", "list"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(
        stderr(&output).contains("operator's certificate is refused"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn removal_reactivation_and_stop_report_their_result() {
    let site = Site::start();
    let result = |arguments: &[&str]| {
        let output = site.trothctl(&[&["--json"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["result"].clone()
    };
    site.success("DELETE /v2.6/agents/n", &json!({}));
    assert_eq!(result(&["agent", "remove", "n"]), "removed");
    site.answer("DELETE /v2.6/agents/n", 202, "");
    assert_eq!(result(&["agent", "remove", "n"]), "accepted");
    assert_eq!(
        result(&["agent", "remove", "n", "--wait"]),
        "removed",
        "GET says 404"
    );
    site.success("DELETE /v2.6/agents/gone", &json!({}));
    assert_eq!(result(&["registrar", "remove", "gone"]), "removed");
    site.success("PUT /v2.6/agents/n/reactivate", &json!({}));
    assert_eq!(result(&["agent", "reactivate", "n"]), "reactivated");
    site.success("PUT /v2.6/agents/n/stop", &json!({}));
    assert_eq!(result(&["agent", "stop", "n"]), "stopped");
    assert_eq!(
        site.trothctl(&["agent", "remove", "other"]).status.code(),
        Some(5)
    );
    for command in [["agent", "stop", "other"], ["registrar", "remove", "other"]] {
        assert_eq!(site.trothctl(&command).status.code(), Some(5));
    }
}

#[test]
fn a_watch_ends_with_the_state_or_with_its_timeout() {
    let site = Site::start();
    let watch = |until: &str| {
        let wait = [
            "--json",
            "agent",
            "watch",
            "n",
            "--timeout",
            "0.3",
            "--until",
            until,
        ];
        site.trothctl(&wait)
    };
    site.success("GET /v2.6/agents/n", &node("trusted", 3));
    let output = watch("trusted");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 1);
    let line: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(
        (&line["state"], &line["previous"]),
        (&json!("trusted"), &Value::Null)
    );

    let output = watch("failed");
    assert_eq!(output.status.code(), Some(8));
    assert!(
        stderr(&output).contains("n is trusted"),
        "{}",
        stderr(&output)
    );

    site.success("GET /v2.6/agents/n", &node("failed", 9));
    assert_eq!(watch("failed").status.code(), Some(0));
    assert_eq!(watch("trusted").status.code(), Some(3));
    let output = site.trothctl(&["agent", "watch", "other"]);
    assert_eq!(output.status.code(), Some(5));
}

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
    assert!(site.requests.lock().unwrap().is_empty());
}

#[test]
fn the_version_is_the_highest_that_both_speak() {
    let versions = |list: &[&str]| json!({"current_version": "2.3", "supported_versions": list});
    for (status, results, path) in [
        (200, versions(&["1.0", "2.0", "2.3"]), "GET /v2.3/agents/n"),
        (200, versions(&["2.6", "2.7", "3.0"]), "GET /v2.6/agents/n"),
        // Keylime's verifier in push mode.
        (410, json!({}), "GET /v2.6/agents/n"),
        (200, json!("?"), "GET /v2.6/agents/n"),
    ] {
        let site = Site::start();
        let body = json!({"code": status, "status": "", "results": results});
        site.answer("GET /version", status, body.to_string());
        site.success(path, &node("trusted", 3));
        let output = site.trothctl(&["agent", "status", "n"]);
        assert_eq!(output.status.code(), Some(0), "{path}: {}", stderr(&output));
    }
    let site = Site::start();
    site.success("GET /version", &versions(&["1.0", "3.0"]));
    let output = site.trothctl(&["agent", "status", "n"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("2.0 to 2.6"),
        "{}",
        stderr(&output)
    );
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

    // max_retries bounds it.
    site.answer(quote, 503, "");
    let output = site.trothctl(&["agent", "add", "n"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(site.times(quote), 4 + 6);
}

#[test]
fn policies_are_stored_listed_shown_and_removed_by_name() {
    let site = Site::start();
    let run = |arguments: &[&str]| site.trothctl(arguments);
    let digest = "ab".repeat(32);
    let list = site.file("allowlist", format!("{digest}  /usr/bin/x\n"));
    let import = [
        "policy",
        "import",
        "runtime",
        "a b",
        "--allowlist",
        list.to_str().unwrap(),
    ];

    site.answer("POST /v2.6/allowlists/a%20b", 201, "{}");
    let output = run(&import);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "The runtime policy a b is imported.\n");
    let sent = site.sent("POST /v2.6/allowlists/a%20b");
    let policy = BASE64_STANDARD.decode(sent["runtime_policy"].as_str().unwrap());
    let policy: Value = serde_json::from_slice(&policy.unwrap()).unwrap();
    assert_eq!(policy["digests"]["/usr/bin/x"], json!([digest]));

    // A name that is taken needs --replace; --replace takes a name that is not.
    site.answer("POST /v2.6/allowlists/a%20b", 409, "");
    let output = run(&import);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--replace"), "{}", stderr(&output));
    site.answer("PUT /v2.6/allowlists/a%20b", 201, "{}");
    let output = run(&[&import[..], &["--replace"]].concat());
    assert!(
        stdout(&output).contains("is replaced"),
        "{}",
        stderr(&output)
    );
    site.answer("PUT /v2.6/mbpolicies/b", 409, "");
    site.answer("POST /v2.6/mbpolicies/b", 201, "{}");
    let output = run(&["policy", "import", "boot", "b", "{}", "--replace"]);
    assert!(
        stdout(&output).contains("is imported"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        site.sent("POST /v2.6/mbpolicies/b"),
        json!({"mb_policy": "{}"})
    );

    site.success(
        "GET /v2.6/allowlists/",
        &json!({"runtimepolicy names": ["a b"]}),
    );
    site.success("GET /v2.6/mbpolicies/", &json!({"mbpolicy names": ["b"]}));
    let output = run(&["policy", "list"]);
    assert_eq!(stdout(&output), "NAME  KIND\na b   runtime\nb     boot\n");
    let output = run(&["--json", "policy", "list", "boot"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list, json!({"policies": [{"kind": "boot", "name": "b"}]}));

    let text = policy.to_string();
    let stored = json!({"name": "a b", "tmp_policy": null, "runtime_policy": text});
    site.success("GET /v2.6/allowlists/a%20b", &stored);
    let output = run(&["policy", "show", "runtime", "a b"]);
    assert!(stdout(&output).contains("Files: 1"), "{}", stdout(&output));
    let output = run(&["--json", "policy", "show", "runtime", "a b"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["policy"], policy);
    let output = run(&["policy", "show", "runtime", "a b", "-o", "-"]);
    assert_eq!(stdout(&output), text, "as the verifier has it");

    site.answer("DELETE /v2.6/allowlists/a%20b", 204, "");
    let output = run(&["policy", "remove", "runtime", "a b"]);
    assert_eq!(stdout(&output), "The runtime policy a b is removed.\n");
    let in_use = json!({"code": 409, "status": "in use by agent n", "results": {}});
    site.answer("DELETE /v2.6/allowlists/a%20b", 409, in_use.to_string());
    let output = run(&["policy", "remove", "runtime", "a b"]);
    assert!(
        stderr(&output).contains("in use by agent n"),
        "{}",
        stderr(&output)
    );
    for command in ["show", "remove"] {
        assert_eq!(
            run(&["policy", command, "boot", "other"]).status.code(),
            Some(5)
        );
    }
}

#[test]
fn a_downloaded_policy_is_the_one_of_the_checksum() {
    let site = Site::start();
    let digests = json!({"/usr/bin/x": ["ab".repeat(32)]});
    let policy = json!({
        "meta": {"version": 1, "generator": 0, "timestamp": "2026-01-01 00:00:00"},
        "release": 0, "digests": digests, "excludes": [], "keyrings": {}, "ima-buf": {},
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null},
        "verification-keys": ""
    })
    .to_string();
    let checksum = HashAlgorithm::Sha256
        .digest(&[policy.as_bytes()])
        .to_string();
    site.answer("GET /p.json", 200, policy.clone());
    site.answer("GET /moved", 302, "");
    site.answer("POST /v2.6/allowlists/p", 201, "{}");
    let ca = site.directory.path().join("cacert.crt");
    let fetch = |path: &str, checksum: &str, bundle: &Path| {
        let server = format!("https://127.0.0.1:{}", site.port);
        Command::new(env!("CARGO_BIN_EXE_trothctl"))
            .args(["--verifier", &server, "policy", "import", "runtime", "p"])
            .args(["--url", &format!("https://localhost:{}{path}", site.port)])
            .args(["--checksum", checksum])
            .env("TROTH_CA_DIR", site.directory.path())
            .env("SSL_CERT_FILE", bundle)
            .output()
            .unwrap()
    };
    let output = fetch("/p.json", &checksum, &ca);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let sent = site.sent("POST /v2.6/allowlists/p");
    assert_eq!(
        sent["runtime_policy"],
        json!(BASE64_STANDARD.encode(policy))
    );

    for (path, checksum, wanted) in [
        ("/p.json", "0".repeat(64), "its SHA-256 is"),
        ("/moved", checksum.clone(), "redirects are not followed"),
        ("/absent", checksum.clone(), "status 404"),
    ] {
        let output = fetch(path, &checksum, &ca);
        assert_eq!(output.status.code(), Some(1), "{path}");
        assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
    }
    let stranger = Site::start();
    let output = fetch(
        "/p.json",
        &checksum,
        &stranger.directory.path().join("cacert.crt"),
    );
    assert_eq!(
        output.status.code(),
        Some(7),
        "a certificate of no known CA"
    );
    assert_eq!(site.times("POST /v2.6/allowlists/p"), 1);
}

/// [`node`] as its verifier has it by `runtime_policy` and `boot_policy`.
fn node_with(runtime: Option<&str>, boot: Option<&str>) -> Value {
    let mut node = node("failed", 9);
    node["has_runtime_policy"] = json!(u8::from(runtime.is_some()));
    node["has_mb_refstate"] = json!(u8::from(boot.is_some()));
    node["troth"]["runtime_policy"] = json!(runtime);
    node["troth"]["boot_policy"] = json!(boot);
    node
}

#[test]
fn a_new_text_of_a_nodes_own_policy_is_replaced_in_place() {
    let site = Site::start();
    let list = site.file("allowlist", format!("{}  /usr/bin/x\n", "ab".repeat(32)));
    let update = [
        "--json",
        "agent",
        "update",
        "n",
        "--allowlist",
        list.to_str().unwrap(),
    ];
    site.success("GET /v2.6/agents/n", &node_with(Some("n"), None));
    site.answer("PUT /v2.6/allowlists/n", 201, "{}");
    site.success("PUT /v2.6/agents/n/reactivate", &json!({}));
    let output = site.trothctl(&update);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let updated: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&updated["result"], &updated["how"]),
        (&json!("updated"), &json!("in_place"))
    );
    assert!(site.asked("PUT /v2.6/agents/n/reactivate"), "it had failed");
    assert!(!site.asked("DELETE /v2.6/agents/n"));

    // A policy that other nodes may use is never replaced by an update of one node.
    site.success("GET /v2.6/agents/n", &node_with(Some("base"), None));
    let output = site.trothctl(&update);
    assert_ne!(
        output.status.code(),
        Some(0),
        "the registrar has no keys here"
    );
    assert_eq!(site.times("PUT /v2.6/allowlists/n"), 1);
    assert!(!site.asked("PUT /v2.6/allowlists/base"));
}

#[test]
fn an_update_that_cannot_succeed_removes_nothing() {
    let site = Site::start();
    let update = |arguments: &[&str]| {
        let output = site.trothctl(&[&["agent", "update", "n"], arguments].concat());
        assert!(!site.asked("DELETE /v2.6/agents/n"), "{arguments:?}");
        assert_ne!(output.status.code(), Some(0), "{arguments:?}");
        stderr(&output).to_owned()
    };
    site.success("GET /v2.6/agents/n", &node_with(Some("base"), None));
    site.success(
        "GET /v2.6/allowlists/taken",
        &json!({"name": "taken", "runtime_policy": "{}"}),
    );
    let list = site.file("allowlist", format!("{}  /usr/bin/x\n", "ab".repeat(32)));
    let list = list.to_str().unwrap();
    let error = update(&["--runtime-policy-name", "absent"]);
    assert!(error.contains("no runtime policy \"absent\""), "{error}");
    let error = update(&["--runtime-policy-name", "taken", "--allowlist", list]);
    assert!(error.contains("\"taken\" already"), "{error}");

    // Keylime's verifier does not say which policy a node uses.
    let mut keylime = node_with(Some("base"), None);
    keylime.as_object_mut().unwrap().remove("troth");
    site.success("GET /v2.6/agents/n", &keylime);
    let error = update(&["--boot-policy", "{}"]);
    assert!(error.contains("--runtime-policy-name"), "{error}");
}

#[test]
fn stopping_a_node_that_keylimes_verifier_does_not_know_is_exit_status_5() {
    let site = Site::start();
    let words = "Exception error: No row was found when one was required";
    let body = json!({"code": 400, "status": words, "results": {}});
    site.answer("PUT /v2.6/agents/n/stop", 400, body.to_string());
    assert_eq!(
        site.trothctl(&["agent", "stop", "n"]).status.code(),
        Some(5)
    );
}
