//! The agent's varlink interfaces, served as on a host, over an agent that only tells.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{broadcast, watch},
    task::LocalSet,
    time::timeout,
};
use troth_ipc::{
    agent::{
        Action, Agent, Event, Mode, OperationError, PayloadState, Quote, QuoteRequest, Registered,
        State, Status,
    },
    client::{AgentClient, ClientError},
    logs::LogLevel,
    polkit::{Decision, Guarded},
    varlink::{AgentService, Authority, Caller, Process, serve},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// An agent that knows nothing but what it is told.
struct Told {
    status: watch::Sender<Status>,
    events: broadcast::Sender<Event>,
    asked: Mutex<Vec<QuoteRequest>>,
}

impl Agent for Told {
    fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn quote(&self, request: QuoteRequest) -> Result<Quote, OperationError> {
        // The nonce of a TPM that hangs.
        if request.nonce == b"slow" {
            std::future::pending::<()>().await;
        }
        self.asked.lock().unwrap().push(request);
        Ok(Quote {
            message: vec![1],
            signature: vec![2],
            hash_algorithm: "sha256".to_owned(),
            pcrs: vec![(10, vec![0xab; 32])],
            ak: vec![3],
        })
    }

    async fn collect_evidence(&self, nonce: String) -> Result<OwnedFd, OperationError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(nonce.as_bytes()).unwrap();
        file.rewind().unwrap();
        Ok(file.into())
    }

    async fn register(&self) -> Result<Registered, OperationError> {
        Err(OperationError::RegistrationFailed("no route".to_owned()))
    }

    async fn list_actions(&self) -> Result<Vec<Action>, OperationError> {
        Ok(vec![Action {
            name: "isolate".to_owned(),
            description: "Cut it off".to_owned(),
            sandbox: "strict".to_owned(),
        }])
    }

    async fn run_action(&self, name: String) -> Result<(), OperationError> {
        Err(OperationError::NoSuchAction(name))
    }
}

#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<Vec<u8>>>);

impl Process for Recorded {
    fn reload(&self) {
        self.0.lock().unwrap().push(100);
    }

    fn set_log_level(&self, level: LogLevel) {
        self.0.lock().unwrap().push(level as u8);
    }
}

/// Never asked: whoever runs a test is the service's own user.
struct Nobody;

impl Authority for Nobody {
    async fn decide(&self, _: Guarded<'_>, _: &Caller, _: bool) -> Decision {
        Decision::Denied
    }
}

struct Site {
    agent: Arc<Told>,
    done: Recorded,
    socket: PathBuf,
    _directory: TempDir,
}

fn status() -> Status {
    Status {
        version: "1.2.3",
        agent_id: None,
        state: State::Starting,
        detail: "Waiting for the TPM".to_owned(),
        mode: Mode::Pull,
        registrar: "192.0.2.1:8890".to_owned(),
        tcti: "device:/dev/tpmrm0".to_owned(),
        tpm_vendor: String::new(),
        tpm_firmware: String::new(),
        hash_algorithms: Vec::new(),
        last_quote_usec: 0,
        quote_count: 0,
        ima_entries: 0,
        payload_state: PayloadState::None,
        secure_mount: None,
    }
}

/// Runs `test` beside a server.
fn served<T: Future<Output = ()>>(test: impl FnOnce(Arc<Site>) -> T) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let site = Arc::new(Site {
        agent: Arc::new(Told {
            status: watch::channel(status()).0,
            events: broadcast::channel(16).0,
            asked: Mutex::default(),
        }),
        done: Recorded::default(),
        socket,
        _directory: directory,
    });
    let service = AgentService::new(Arc::clone(&site.agent), Nobody, site.done.clone());
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(async {
        let serving = LocalSet::new();
        tokio::select! {
            ended = serve(listener.into(), service, None) => panic!("{ended:?}"),
            done = serving.run_until(timeout(PATIENCE, test(site))) => done.unwrap(),
        }
    });
}

/// A peer that sends what it likes.
struct Peer(UnixStream);

impl Peer {
    async fn connect(site: &Site) -> Self {
        Self(UnixStream::connect(&site.socket).await.unwrap())
    }

    async fn send(&mut self, text: &[u8]) {
        self.0.write_all(text).await.unwrap();
    }

    /// The next message; `None` at the end.
    async fn receive(&mut self) -> Option<Value> {
        let mut message = Vec::new();
        loop {
            match self.0.read_u8().await {
                Ok(0) => return Some(serde_json::from_slice(&message).unwrap()),
                Ok(byte) => message.push(byte),
                Err(_) => return None,
            }
        }
    }

    async fn call(&mut self, call: Value) -> Value {
        self.send(format!("{call}\0").as_bytes()).await;
        self.receive().await.unwrap()
    }

    async fn answers(&mut self) {
        let pinged = self
            .call(json!({ "method": "io.systemd.service.Ping" }))
            .await;
        assert_eq!(pinged, json!({ "parameters": {} }));
    }
}

#[test]
fn whoever_calls_wrongly_is_told_what_is_wrong_and_may_go_on() {
    let wrong = |error: &str, name: &str, value: &str| json!({ "error": format!("org.varlink.service.{error}"), "parameters": { name: value } });
    let parameter = |name: &str| wrong("InvalidParameter", "parameter", name);
    let of = |method: &str, parameters: Value| json!({ "method": format!("org.troth.Agent.{method}"), "parameters": parameters });
    let quote = |parameters| of("Quote", parameters);
    let long = "x".repeat(70_000);
    let cases = [
        (json!({}), parameter("method")),
        (json!({ "method": 7 }), parameter("method")),
        (
            json!({ "method": "Quote" }),
            wrong("InterfaceNotFound", "interface", ""),
        ),
        (
            json!({ "method": "a.b.Quote" }),
            wrong("InterfaceNotFound", "interface", "a.b"),
        ),
        (
            of("Dance", json!({})),
            wrong("MethodNotFound", "method", "org.troth.Agent.Dance"),
        ),
        (
            json!({ "method": "io.systemd.service.Dance" }),
            wrong("MethodNotFound", "method", "io.systemd.service.Dance"),
        ),
        (
            json!({ "method": "org.varlink.service.Dance" }),
            wrong("MethodNotFound", "method", "org.varlink.service.Dance"),
        ),
        (
            json!({
                "method": "org.varlink.service.GetInterfaceDescription",
                "parameters": { "interface": "a.b" },
            }),
            wrong("InterfaceNotFound", "interface", "a.b"),
        ),
        (of("GetStatus", json!([])), parameter("parameters")),
        (
            of("GetStatus", json!({ "verbose": true })),
            parameter("verbose"),
        ),
        (quote(json!({})), parameter("nonce")),
        (quote(json!({ "nonce": 7 })), parameter("nonce")),
        (quote(json!({ "nonce": "" })), parameter("nonce")),
        (quote(json!({ "nonce": "?" })), parameter("nonce")),
        (
            quote(json!({ "nonce": "AA==", "pcrs": [24] })),
            parameter("pcrs"),
        ),
        (
            quote(json!({ "nonce": "AA==", "pcrs": "1" })),
            parameter("pcrs"),
        ),
        (
            quote(json!({ "nonce": "AA==", "hash": "sha1" })),
            parameter("hash"),
        ),
        (
            quote(json!({ "nonce": "AA==", "allowInteractiveAuthentication": 1 })),
            parameter("allowInteractiveAuthentication"),
        ),
        (quote(json!({ "nonce": long })), parameter("parameters")),
        (json!({ "method": long }), parameter("parameters")),
        (
            json!({ "method": "org.troth.Agent.GetStatus", "upgrade": true }),
            parameter("upgrade"),
        ),
        (
            of("Subscribe", json!({})),
            json!({ "error": "org.varlink.service.ExpectedMore" }),
        ),
        (
            json!({ "method": "io.systemd.Metrics.List" }),
            json!({ "error": "org.varlink.service.ExpectedMore" }),
        ),
        (
            of("RunAction", json!({ "name": "dance" })),
            json!({ "error": "org.troth.Agent.NoSuchAction", "parameters": { "name": "dance" } }),
        ),
        (
            of("Register", json!({})),
            json!({
                "error": "org.troth.Agent.RegistrationFailed",
                "parameters": { "reason": "no route" },
            }),
        ),
        (
            json!({ "method": "io.systemd.service.SetLogLevel", "parameters": { "level": 8 } }),
            parameter("level"),
        ),
    ];
    served(|site| async move {
        let mut peer = Peer::connect(&site).await;
        for (call, answer) in cases {
            let told = peer.call(call.clone()).await;
            let call = call.to_string();
            assert_eq!(told, answer, "{}", call.get(..200).unwrap_or(&call));
            peer.answers().await;
        }
        assert!(site.agent.asked.lock().unwrap().is_empty());
        assert!(site.done.0.lock().unwrap().is_empty());
    });
}

#[test]
fn calls_that_are_sent_ahead_are_answered_in_their_order() {
    served(|site| async move {
        let mut peer = Peer::connect(&site).await;
        let long = format!("{{\"method\":\"{}\"}}\0", "x".repeat(1 << 20));
        let ping = b"{\"method\":\"io.systemd.service.Ping\"}\0";
        let silent = b"{\"method\":\"io.systemd.service.Ping\",\"oneway\":true}\0";
        let wrong = b"{\"method\":\"a.b\",\"oneway\":true}\0";
        peer.send(&[&ping[..], long.as_bytes(), silent, wrong, ping].concat())
            .await;
        assert_eq!(peer.receive().await.unwrap(), json!({ "parameters": {} }));
        let too_long = peer.receive().await.unwrap();
        assert_eq!(too_long["error"], "org.varlink.service.InvalidParameter");
        assert_eq!(peer.receive().await.unwrap(), json!({ "parameters": {} }));
        // A peer that will send no more gets what it asked for before.
        peer.send(ping).await;
        peer.0.shutdown().await.unwrap();
        assert_eq!(peer.receive().await.unwrap(), json!({ "parameters": {} }));
        assert_eq!(peer.receive().await, None);
    });
}

#[test]
fn who_speaks_no_varlink_is_left_alone() {
    served(|site| async move {
        for text in [
            "GET / HTTP/1.1\r\n\0",
            "[]\0",
            "7\0",
            "\0",
            "{\"method\":\"a\"\0",
        ] {
            let mut peer = Peer::connect(&site).await;
            peer.send(text.as_bytes()).await;
            assert_eq!(peer.receive().await, None, "{text}");
        }
        Peer::connect(&site).await.answers().await;
    });
}

#[test]
fn a_service_describes_itself_with_the_installed_texts() {
    served(|site| async move {
        let mut peer = Peer::connect(&site).await;
        let about = peer
            .call(json!({ "method": "org.varlink.service.GetInfo" }))
            .await;
        let interfaces = about["parameters"]["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 4);
        for name in interfaces {
            let name = name.as_str().unwrap();
            let method = "org.varlink.service.GetInterfaceDescription";
            let asked = json!({ "method": method, "parameters": { "interface": name } });
            let told = peer.call(asked).await;
            let file = format!("{}/{name}.varlink", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(file).unwrap();
            assert_eq!(told["parameters"]["description"], text);
        }
    });
}

#[test]
fn an_agent_tells_what_it_does_at_once_and_as_it_changes() {
    served(|site| async move {
        let mut client = AgentClient::connect(&site.socket).await.unwrap();
        let told = client.status().await.unwrap();
        assert_eq!(told.runtime.state, "starting");
        assert_eq!(told.runtime.agent_id, None);
        assert_eq!(told.runtime.tpm_vendor, None);
        assert_eq!(told.context.registrar.unwrap(), "192.0.2.1:8890");

        client.watch().await.unwrap();
        let first = client.update().await.unwrap();
        assert_eq!(first.runtime.unwrap(), told.runtime);
        site.agent
            .status
            .send_modify(|status| status.state = State::TpmUnavailable);
        let changed = client.update().await.unwrap();
        assert_eq!(changed.runtime.unwrap().state, "tpm_unavailable");
        let quoted = Event::QuoteServed {
            client: "local".to_owned(),
            ima_entries: 7,
        };
        site.agent.events.send(quoted).unwrap();
        let event = client.update().await.unwrap().event.unwrap();
        assert_eq!(event.quote_served.unwrap().ima_entries, 7);
    });
}

#[test]
fn a_stream_that_nobody_reads_any_more_ends() {
    served(|site| async move {
        let told = || site.agent.status.receiver_count();
        let mut client = AgentClient::connect(&site.socket).await.unwrap();
        client.watch().await.unwrap();
        client.update().await.unwrap();
        assert_eq!(told(), 1);
        drop(client);
        while told() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_tpm_that_hangs_delays_nobody_else() {
    served(|site| async move {
        let mut slow = AgentClient::connect(&site.socket).await.unwrap();
        let hanging = slow.quote("c2xvdw==", None);
        let asking = async {
            let mut other = AgentClient::connect(&site.socket).await.unwrap();
            for _ in 0..100 {
                other.status().await.unwrap();
            }
            other.quote("AQID", Some(&[10, 0])).await.unwrap()
        };
        let quote = tokio::select! {
            answered = hanging => panic!("{answered:?}"),
            quote = asking => quote,
        };
        assert_eq!(quote.pcrs[0].value, "ab".repeat(32));
        let asked = QuoteRequest {
            nonce: vec![1, 2, 3],
            pcr_mask: 0x401,
        };
        assert_eq!(*site.agent.asked.lock().unwrap(), [asked]);
    });
}

/// As troth-actiond does it: the service manager starts it again.
#[test]
fn a_service_that_nobody_asks_ends_but_not_before_the_last_one_has_gone() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let agent = Arc::new(Told {
        status: watch::channel(status()).0,
        events: broadcast::channel(16).0,
        asked: Mutex::default(),
    });
    let service = AgentService::new(agent, Nobody, Recorded::default());
    let idle = Some(Duration::from_millis(1));
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(async {
        // Who has connected before it starts is served.
        let mut client = AgentClient::connect(&socket).await.unwrap();
        let asking = async {
            for _ in 0..100 {
                client.status().await.unwrap();
            }
            drop(client);
        };
        let (served, ()) = tokio::join!(serve(listener.into(), service, idle), asking);
        served.unwrap();
    });
}

#[test]
fn evidence_comes_as_a_file() {
    served(|site| async move {
        let mut client = AgentClient::connect(&site.socket).await.unwrap();
        let mut content = Vec::new();
        let bundle = client.evidence(Some("fresh")).await.unwrap();
        File::from(bundle).read_to_end(&mut content).unwrap();
        assert_eq!(content, b"fresh");
        let refused = client.register().await.unwrap_err();
        let ClientError::Refused { fault, .. } = refused else {
            panic!("{refused}");
        };
        assert_eq!(fault.parameter("reason"), Some("no route"));
    });
}

#[test]
fn the_process_is_reloaded_and_its_metrics_are_told() {
    served(|site| async move {
        let mut peer = Peer::connect(&site).await;
        peer.call(json!({ "method": "io.systemd.service.Reload" }))
            .await;
        let level = json!({ "level": 7 });
        peer.call(json!({ "method": "io.systemd.service.SetLogLevel", "parameters": level }))
            .await;
        assert_eq!(*site.done.0.lock().unwrap(), [100, 7]);
        let method = "io.systemd.service.GetEnvironment";
        let environment = peer.call(json!({ "method": method })).await;
        let variables = environment["parameters"]["environment"].as_array();
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        assert!(variables.unwrap().contains(&json!(path)));

        let mut names = Vec::new();
        for method in ["List", "Describe"] {
            let method = format!("io.systemd.Metrics.{method}");
            let mut reply = peer.call(json!({ "method": method, "more": true })).await;
            let mut found = Vec::new();
            loop {
                found.push(reply["parameters"]["name"].clone());
                if reply["continues"] != true {
                    break;
                }
                reply = peer.receive().await.unwrap();
            }
            names.push(found);
        }
        assert_eq!(names[0], names[1]);
        assert!(
            names[0].contains(&json!("org.troth.Agent.QuotesTotal")),
            "{names:?}"
        );
        peer.answers().await;
    });
}
