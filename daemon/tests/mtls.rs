//! Server and client over loopback, with real handshakes.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList,
    CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, date_time_ymd,
};
use rustls::pki_types::UnixTime;
use tokio::{net::TcpListener, task::JoinHandle};
use troth_daemon::{
    client::{Client, ClientError, LARGE_ANSWER, LargeAnswers},
    server::{self, Body, BodyError, Handler, Limits, Peer},
    shutdown::{Shutdown, Trigger},
    tls::{
        ClientAuth, Identity, RevocationLists, ServerTls, ServerTrust, certificates_from_pem,
        client_config, server_config,
    },
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
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// With the names of a server on this host.
    fn issue(&self, name: &str) -> Identity {
        self.issue_for(name, &["localhost", "127.0.0.1"])
    }

    fn issue_for(&self, name: &str, names: &[&str]) -> Identity {
        let key = KeyPair::generate().unwrap();
        let (uris, names): (Vec<_>, Vec<_>) = names
            .iter()
            .map(ToString::to_string)
            .partition(|name| name.contains("://"));
        let mut params = CertificateParams::new(names).unwrap();
        let uris = uris.into_iter().map(|uri| uri.try_into().unwrap());
        params
            .subject_alt_names
            .extend(uris.map(rcgen::SanType::URI));
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    fn issue_numbered(&self, name: &str, serial: u64) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial.into());
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    /// A list made in `year`, which ends in the year after.
    fn list(&self, year: i32, revoked: &[u64]) -> CertificateRevocationList {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: date_time_ymd(year, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(year, 1, 1),
            next_update: date_time_ymd(year + 1, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap()
    }

    fn roots(&self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        certificates_from_pem(self.0.pem().as_bytes()).unwrap()
    }
}

async fn start(tls: Option<ServerTls>, port: u16) -> (u16, Trigger, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let (trigger, shutdown) = Shutdown::new();
    let limits = Limits::default();
    let task = tokio::spawn(server::serve(listener, tls, limits, Echo, shutdown));
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

/// Every node may have a certificate of the CA.
#[tokio::test]
async fn a_certificate_of_the_ca_is_good_for_the_names_in_it_and_no_others() {
    let ca = Ca::new();
    let as_named = |name: &str| ServerTrust::Named {
        authorities: ca.roots(),
        name: name.to_owned(),
    };
    let asked = || ServerTrust::Roots(ca.roots());
    for (common_name, names, trust, refused) in [
        ("registrar", &["127.0.0.1"][..], asked(), None),
        ("registrar", &["localhost"], as_named("localhost"), None),
        (
            "registrar",
            &["kl.example", "::1"],
            as_named("KL.example"),
            None,
        ),
        ("registrar", &["kl.example", "::1"], as_named("::1"), None),
        (
            "registrar",
            &["*.kl.example"],
            as_named("a.kl.example"),
            None,
        ),
        // An old CA's, without names but the subject's.
        ("127.0.0.1", &[], asked(), None),
        ("KL.example", &[], as_named("kl.example"), None),
        // Those of other nodes.
        (
            "node",
            &["node.example"],
            asked(),
            Some("is for node.example, not for 127.0.0.1"),
        ),
        (
            "127.0.0.1",
            &["node.example"],
            asked(),
            Some("is for node.example, not for 127.0.0.1"),
        ),
        (
            "127.0.0.1",
            &["spiffe://site.example/node"],
            asked(),
            Some("is for nobody, not for 127.0.0.1"),
        ),
        ("node", &[], asked(), Some("is for node, not for 127.0.0.1")),
        ("", &[], asked(), Some("not for 127.0.0.1")),
        (
            "node",
            &["127.0.0.1"],
            as_named("kl.example"),
            Some("is for 127.0.0.1, not for kl."),
        ),
    ] {
        let identity = ca.issue_for(common_name, names);
        let tls = server_config(&identity, ClientAuth::None).unwrap();
        let (port, _trigger, _task) = start(Some(tls), 0).await;
        let answer = client(port, trust, None).get("/").await;
        match (answer, refused) {
            (Ok(answer), None) => assert_eq!(answer.status, 200),
            (Err(error @ ClientError::WrongName { .. }), Some(reason)) => {
                let text = error.to_string();
                assert!(text.contains(reason), "{text}");
            }
            (answer, _) => panic!("{common_name} {names:?}: {answer:?}"),
        }
    }
    let odd = client_config(as_named("a b"), None)
        .unwrap_err()
        .to_string();
    assert!(odd.contains("\"a b\""), "{odd}");
}

#[tokio::test]
async fn server_of_another_ca_is_refused() {
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

/// All lists of one file.
fn loaded(bytes: &[u8], ca: &Ca) -> Result<RevocationLists, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let path = file.path().to_owned();
    RevocationLists::load(std::slice::from_ref(&path), &ca.roots()).map_err(|error| {
        let error = error.to_string();
        let place = format!("revocation list {}: ", path.display());
        error
            .strip_prefix(&place)
            .expect("the file is named")
            .into()
    })
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_its_open_connection_ends() {
    let ca = Ca::new();
    let tls = server_config(&ca.issue("verifier"), ClientAuth::Optional(ca.roots())).unwrap();
    let clients = Arc::clone(tls.clients().unwrap());
    let (port, _trigger, _task) = start(Some(tls), 0).await;
    let [lost, kept] = [7, 8].map(|serial| ca.issue_numbered("operator", serial));
    let connect = |identity| client(port, ServerTrust::Roots(ca.roots()), Some(identity));
    let (thief, honest) = (connect(&lost), connect(&kept));
    for client in [&thief, &honest] {
        assert_eq!(client.get("/").await.unwrap().status, 200);
    }
    // Connected, and waiting for nothing but the end.
    let tls = client_config(ServerTrust::Roots(ca.roots()), Some(&lost)).unwrap();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    let name = "localhost".try_into().unwrap();
    let connector = tokio_rustls::TlsConnector::from(tls);
    let mut open = connector.connect(name, stream.unwrap()).await.unwrap();

    // An out-of-date list names whom it names all the same.
    let list = loaded(ca.list(2020, &[7]).der(), &ca).unwrap();
    assert_eq!(list.overdue(UnixTime::now()).count(), 1);
    clients.revoke(list);
    let rest = tokio::io::AsyncReadExt::read(&mut open, &mut [0; 1]).await;
    assert!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
    for client in [&thief, &connect(&lost)] {
        let error = client.get("/").await.unwrap_err();
        let refused = matches!(error, ClientError::Tls { .. } | ClientError::Http { .. });
        assert!(refused, "{error}");
    }
    for client in [&honest, &connect(&kept)] {
        assert_eq!(client.get("/").await.unwrap().status, 200);
    }

    clients.revoke(RevocationLists::default());
    assert_eq!(connect(&lost).get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn of_two_lists_of_a_ca_the_newer_counts() {
    let ca = Ca::new();
    let tls = server_config(&ca.issue("verifier"), ClientAuth::Optional(ca.roots())).unwrap();
    let clients = Arc::clone(tls.clients().unwrap());
    let (port, _trigger, _task) = start(Some(tls), 0).await;
    let lost = ca.issue_numbered("operator", 7);
    let (old, new) = (ca.list(2020, &[]), ca.list(2021, &[6, 7]));
    for (first, second) in [(&old, &new), (&new, &old)] {
        let text = format!("{}{}", first.pem().unwrap(), second.pem().unwrap());
        clients.revoke(loaded(text.as_bytes(), &ca).unwrap());
        let asked = client(port, ServerTrust::Roots(ca.roots()), Some(&lost));
        asked.get("/").await.unwrap_err();
    }
}

#[test]
fn a_list_that_no_ca_of_ours_signed_is_refused() {
    let (ours, foreign) = (Ca::new(), Ca::new());
    let good = ours.list(2020, &[7]);
    assert_eq!(loaded(good.der(), &ours).unwrap().len(), 1);
    let text = format!("0 is the number\n{}", good.pem().unwrap());
    assert_eq!(loaded(text.as_bytes(), &ours).unwrap().len(), 1);
    let mut changed = good.der().to_vec();
    let serial = changed.len() / 2;
    changed[serial] ^= 1;
    for (bytes, reason) in [
        // Both CAs have the same name.
        (foreign.list(2020, &[7]).der().to_vec(), "did not sign it"),
        (b"".to_vec(), "not a list"),
        (
            b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n".to_vec(),
            "no list found",
        ),
        (good.der()[..40].to_vec(), "not a list"),
        (vec![0x30; 2 * 1024 * 1024 + 1], "larger than 2 MiB"),
    ] {
        let error = loaded(&bytes, &ours).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    loaded(&changed, &ours).unwrap_err();
}

#[tokio::test]
async fn whoever_comes_gets_in_when_others_only_stay() {
    let ca = Ca::new();
    let tls = server_config(&ca.issue("verifier"), ClientAuth::Optional(ca.roots())).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_trigger, shutdown) = Shutdown::new();
    let limits = Limits {
        anonymous: 2,
        authenticated: 1,
        handshake_timeout: Duration::from_secs(3600),
        idle_timeout: Duration::from_secs(3600),
    };
    tokio::spawn(server::serve(listener, Some(tls), limits, Echo, shutdown));
    let trust = || ServerTrust::Roots(ca.roots());
    let operator = client(port, trust(), Some(&ca.issue("operator")));
    assert_eq!(operator.get("/").await.unwrap().status, 200);
    let silent = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    let mut silent = silent.unwrap();
    for _ in 0..3 {
        let anybody = client(port, trust(), None);
        assert_eq!(anybody.get("/").await.unwrap().status, 200);
        std::mem::forget(anybody);
    }
    let end = tokio::io::AsyncReadExt::read(&mut silent, &mut [0; 1]).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    // The one place for operators is taken: another one is let in as anybody is.
    let another = client(port, trust(), Some(&ca.issue("operator")));
    assert_eq!(another.get("/").await.unwrap().status, 200);
    assert_eq!(operator.get("/").await.unwrap().status, 200);
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
