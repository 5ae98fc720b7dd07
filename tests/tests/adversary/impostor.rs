use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose};
use serde_json::json;
use tokio::net::TcpListener;
use troth_daemon::server::{Body, Handler, Limits, json, serve};
use troth_daemon::shutdown::{Shutdown, Trigger};
use troth_daemon::tls::{ClientAuth, server_config};

use crate::Stage;
use crate::client::issued;
use crate::host::Host;

/// A server with the valid certificate of a node of the stage's CA.
struct Impostor {
    port: u16,
    requests: Arc<AtomicUsize>,
    _stop: Trigger,
}

impl Impostor {
    /// The certificate has this common name, and these alternative names.
    fn start(stage: &Stage, common_name: &str, names: &[&str]) -> Self {
        let identity = issued(&stage.fleet.ca_dir(), |certificate| {
            certificate
                .distinguished_name
                .push(DnType::CommonName, common_name);
            certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            certificate.subject_alt_names =
                CertificateParams::new(names).unwrap().subject_alt_names;
        });
        let tls = server_config(&identity, ClientAuth::None).unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener
            .local_addr()
            .as_ref()
            .map(SocketAddr::port)
            .unwrap();
        let (stop, shutdown) = Shutdown::new();
        let requests = Arc::new(AtomicUsize::new(0));
        let handler = Welcome(Arc::clone(&requests));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                serve(listener, Some(tls), Limits::default(), handler, shutdown).await;
            });
        });
        Self {
            port,
            requests,
            _stop: stop,
        }
    }

    fn assert_never_asked(&self) {
        assert_eq!(self.requests.load(Ordering::Relaxed), 0, "it got a request");
    }
}

/// Says yes to everything.
#[derive(Clone)]
struct Welcome(Arc<AtomicUsize>);

impl Handler for Welcome {
    async fn handle(&self, _: Request<Incoming>) -> Response<Body> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let results = json!({"uuids": [], "current_version": "2.6", "supported_versions": ["2.6"]});
        let answer = json!({"code": 200, "status": "Success", "results": results});
        json(StatusCode::OK, &answer)
    }
}

/// What trothctl says when it asks the impostor.
fn told(stage: &Stage, impostor: &Impostor, option: &str, command: &[&str]) -> String {
    let url = format!("https://127.0.0.1:{}", impostor.port);
    let command = [command, &[option, &url]].concat();
    let answer = stage.fleet.trothctl(&command).unwrap();
    assert_eq!(answer.status.code(), Some(7), "{answer:?}");
    impostor.assert_never_asked();
    answer.stderr
}

/// The operator's program asks the verifier, and the registrar, where a node sits that has a
/// certificate of their CA, with the address that is asked for as common name.
///
/// Check: `daemon/src/tls/named.rs`: `if !matches!(extension, Ok(None))`
#[test]
fn the_certificate_of_another_node_as_a_servers() {
    let stage = Stage::new();
    let impostor = Impostor::start(&stage, "127.0.0.1", &["node.example", "192.0.2.9"]);
    for (option, command) in [
        ("--verifier", ["agent", "list"]),
        ("--registrar", ["registrar", "list"]),
    ] {
        let told = told(&stage, &impostor, option, &command);
        let reason = "is for node.example, 192.0.2.9, not for 127.0.0.1";
        assert!(told.contains(reason), "{told}");
        let advice = format!("{}_tls_name", &option[2..]);
        assert!(told.contains(&advice), "{told}");
    }
}

/// The same with a certificate that has the node's name as an old CA would write it.
///
/// Check: `daemon/src/tls/named.rs`: `name.eq_ignore_ascii_case(&expected.to_str())`
#[test]
fn a_nodes_certificate_without_alternative_names_as_the_verifiers() {
    let stage = Stage::new();
    let impostor = Impostor::start(&stage, "node.example", &[]);
    let told = told(&stage, &impostor, "--verifier", &["agent", "list"]);
    assert!(
        told.contains("is for node.example, not for 127.0.0.1"),
        "{told}"
    );
}

/// An agent registers over TLS: it would tell the impostor who it is, and believe him.
///
/// Check: `daemon/src/tls/named.rs`: `if !matches!(extension, Ok(None))`
#[test]
fn the_certificate_of_another_node_as_the_registrars() {
    let stage = Stage::new();
    let mut host = Host::start(&stage, "registering");
    let impostor = Impostor::start(&stage, "127.0.0.1", &["node.example"]);
    let ca = stage.fleet.ca_dir().join("cacert.crt");
    let agent = &mut host.agent;
    agent.process().terminate().unwrap();
    // It listens when it is registered, and ends when it may not try again.
    agent.reconfigure(&over_tls(impostor.port, &ca)).unwrap();
    let ended = agent.start_again().unwrap_err().to_string();
    let refused = "certificate is for node.example, not for 127.0.0.1";
    assert!(ended.contains(refused), "{ended}");
    assert!(ended.contains("registrar_tls_name"), "{ended}");
    impostor.assert_never_asked();
    // The registrar itself is believed.
    let registrar = stage.fleet.registrar_tls_port();
    agent.reconfigure(&over_tls(registrar, &ca)).unwrap();
    agent.start_again().unwrap();
}

fn over_tls(port: u16, ca: &Path) -> String {
    format!(
        "registrar_tls = true\nregistrar_port = {port}\nregistrar_tls_ca = {ca:?}\n\
         exponential_backoff_max_retries = 1\n"
    )
}
