//! Server and client over loopback, with real handshakes.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use tokio::{net::TcpListener, task::JoinHandle};
use troth_daemon::{
    client::{Client, ClientError, LARGE_ANSWER, LargeAnswers},
    server::{self, Body, BodyError, Handler, Limits, Peer},
    shutdown::{Shutdown, Trigger},
    tls::{ClientAuth, Identity, ServerTrust, certificates_from_pem, client_config, server_config},
};

const BODY_LIMIT: usize = 1000;

/// Answers with who asked and what came; `/bytes/N` with so many.
#[derive(Clone)]
struct Echo;

impl Handler for Echo {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        if let Some(size) = request.uri().path().strip_prefix("/bytes/") {
            return Response::new(server::full(vec![b'x'; size.parse().unwrap()]));
        }
        let name = request
            .extensions()
            .get::<Peer>()
            .and_then(Peer::common_name);
        match server::read_body(request.into_body(), BODY_LIMIT).await {
            Ok(body) => server::json(StatusCode::OK, &(name, body.len())),
            Err(error @ BodyError::TooLarge { .. }) => {
                server::json(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string())
            }
            Err(error) => server::json(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    }
}

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["elsewhere.example".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    fn roots(&self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        certificates_from_pem(self.0.pem().as_bytes()).unwrap()
    }
}

async fn start(tls: Option<Arc<ServerConfig>>, port: u16) -> (u16, Trigger, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let (trigger, shutdown) = Shutdown::new();
    let task = tokio::spawn(server::serve(
        listener,
        tls,
        Limits::default(),
        Echo,
        shutdown,
    ));
    (port, trigger, task)
}

fn client(port: u16, trust: ServerTrust, identity: Option<&Identity>) -> Client {
    let tls = client_config(trust, identity).unwrap();
    Client::new("127.0.0.1", port, Some(tls), Duration::from_secs(5))
}

#[tokio::test]
async fn pinned_client_is_known_by_its_common_name() {
    let ca = Ca::new();
    let agent = ca.issue("agent");
    let tls = server_config(&agent, ClientAuth::Required(ca.roots())).unwrap();
    let (port, _trigger, _task) = start(Some(tls), 0).await;
    let pinned = ServerTrust::Pinned(agent.certificate().clone());
    let client = client(port, pinned, Some(&ca.issue("verifier")));
    let answer = client
        .send(Method::POST, "/x", Some(Bytes::from_static(b"12345")))
        .await
        .unwrap();
    let (name, length): (Option<String>, usize) = answer.json().unwrap();
    assert_eq!((name.as_deref(), length), (Some("verifier"), 5));
}

#[tokio::test]
async fn a_renewed_certificate_of_the_pinned_key_is_believed() {
    let key = KeyPair::generate().unwrap();
    let certificate = |name: &str| {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Identity::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    };
    let (registered, renewed) = (certificate("before.example"), certificate("after.example"));
    assert_ne!(registered.certificate(), renewed.certificate());
    let tls = server_config(&renewed, ClientAuth::None).unwrap();
    let (port, _trigger, _task) = start(Some(tls), 0).await;
    let pinned = ServerTrust::Pinned(registered.certificate().clone());
    let answer = client(port, pinned, None).get("/").await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_refused() {
    let ca = Ca::new();
    let tls = server_config(&ca.issue("impostor"), ClientAuth::None).unwrap();
    let (port, _trigger, _task) = start(Some(tls), 0).await;
    let pinned = ServerTrust::Pinned(ca.issue("agent").certificate().clone());
    let error = client(port, pinned, None).get("/").await.unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. }), "{error}");
}

#[tokio::test]
async fn server_of_another_ca_is_refused_and_names_do_not_matter() {
    let (ours, foreign) = (Ca::new(), Ca::new());
    let tls = server_config(&ours.issue("verifier"), ClientAuth::None).unwrap();
    let (port, _trigger, _task) = start(Some(tls), 0).await;
    let answer = client(port, ServerTrust::Roots(ours.roots()), None)
        .get("/")
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
    let error = client(port, ServerTrust::Roots(foreign.roots()), None)
        .get("/")
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. }), "{error}");
}

#[tokio::test]
async fn client_without_or_with_a_foreign_certificate_is_refused() {
    let (ours, foreign) = (Ca::new(), Ca::new());
    let agent = ours.issue("agent");
    let tls = server_config(&agent, ClientAuth::Required(ours.roots())).unwrap();
    let (port, _trigger, _task) = start(Some(tls), 0).await;
    for identity in [None, Some(foreign.issue("verifier"))] {
        let pinned = ServerTrust::Pinned(agent.certificate().clone());
        let error = client(port, pinned, identity.as_ref())
            .get("/")
            .await
            .unwrap_err();
        // TLS 1.3 servers refuse after the client's side of the handshake is done.
        assert!(
            matches!(error, ClientError::Tls { .. } | ClientError::Http { .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn optional_client_certificate_is_absent_from_the_peer() {
    let ca = Ca::new();
    let tls = server_config(&ca.issue("verifier"), ClientAuth::Optional(ca.roots())).unwrap();
    let (port, _trigger, _task) = start(Some(tls), 0).await;
    let answer = client(port, ServerTrust::Roots(ca.roots()), None)
        .get("/")
        .await
        .unwrap();
    let (name, _): (Option<String>, usize) = answer.json().unwrap();
    assert_eq!(name, None);
}

#[tokio::test]
async fn a_kept_connection_survives_the_restart_of_its_server() {
    let (port, trigger, task) = start(None, 0).await;
    let client = Client::new("127.0.0.1", port, None, Duration::from_secs(5));
    assert_eq!(client.get("/").await.unwrap().status, 200);
    trigger.fire();
    task.await.unwrap();
    let error = client.get("/").await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    let (_, _trigger, _task) = start(None, port).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn oversize_bodies_are_refused_on_both_sides() {
    let (port, _trigger, _task) = start(None, 0).await;
    let client = Client::new("127.0.0.1", port, None, Duration::from_secs(5)).body_limit(10);
    let error = client
        .send(Method::POST, "/", Some(vec![b'x'; 2000].into()))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::BodyTooLarge { limit: 10, .. }),
        "{error}"
    );
    let client = Client::new("127.0.0.1", port, None, Duration::from_secs(5));
    let answer = client
        .send(Method::POST, "/", Some(vec![b'x'; 2000].into()))
        .await
        .unwrap();
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn large_answers_take_turns_and_small_ones_pass() {
    let (port, _trigger, _task) = start(None, 0).await;
    let large = LargeAnswers::new(1);
    let timeout = Duration::from_millis(500);
    let client = || {
        Client::new("127.0.0.1", port, None, timeout)
            .body_limit(1 << 22)
            .share(&large)
    };
    let path = format!("/bytes/{}", 4 * LARGE_ANSWER);
    let first = client().get(&path).await.unwrap();
    assert_eq!(first.body.len(), 4 * LARGE_ANSWER);

    let waiting = client();
    let waiting = tokio::spawn(async move { waiting.get(&path).await });
    tokio::time::sleep(timeout * 2).await;
    assert!(!waiting.is_finished(), "it waits, and that is no timeout");
    let small = client()
        .get(&format!("/bytes/{LARGE_ANSWER}"))
        .await
        .unwrap();
    assert_eq!(small.body.len(), LARGE_ANSWER);

    drop(first);
    let second = waiting.await.unwrap().unwrap();
    assert_eq!(second.body.len(), 4 * LARGE_ANSWER);
}

#[tokio::test]
async fn a_silent_server_is_a_timeout_that_names_it() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = Client::new("127.0.0.1", port, None, Duration::from_millis(50));
    let error = client.get("/").await.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("127.0.0.1:{port}: no answer within 0.05 s"))
    );
}
