//! The registrar over real HTTP and TLS, with a TPM in software on the agent's side.
#![allow(clippy::unwrap_used, reason = "a test helper's error is a failed test")]

/// Every route's answers, and the captured registrations of Keylime's agents.
mod bodies;
/// Certificates of TPMs and devices.
mod certificates;
#[path = "../common/mod.rs"]
mod common;

use std::{path::Path, time::Duration};

use bytes::Bytes;
use common::{SoftTpm, call, operator};
use hyper::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use troth_daemon::{
    client::Client,
    shutdown::{Shutdown, Trigger},
    tls::{Identity, ServerTrust, client_config},
};
use troth_verifier::{ca::CaDirectory, config::RegistrarConfig, server::RegistrarServer};

struct Running {
    plain: Client,
    admin: Client,
    tls_port: u16,
    trigger: Trigger,
    task: JoinHandle<()>,
}

async fn start(state_dir: &Path) -> Running {
    start_with(RegistrarConfig {
        state_dir: state_dir.into(),
        ..RegistrarConfig::default()
    })
    .await
}

async fn start_with(config: RegistrarConfig) -> Running {
    let config = RegistrarConfig {
        port: 0,
        tls_port: 0,
        ..config
    };
    let server = RegistrarServer::start(&config).await.unwrap();
    let port = server.address().unwrap().port();
    let tls_port = server.tls_address().unwrap().port();
    let (trigger, shutdown) = Shutdown::new();
    let task = tokio::spawn(server.run(shutdown));
    Running {
        plain: Client::new("127.0.0.1", port, None, Duration::from_secs(10)),
        admin: operator(tls_port, &config.ca_dir(), true),
        tls_port,
        trigger,
        task,
    }
}

impl Running {
    async fn stop(self) {
        self.trigger.fire();
        self.task.await.unwrap();
    }

    async fn register(&self, id: &str, body: Value) -> (u16, Value) {
        call(
            &self.plain,
            Method::POST,
            &format!("/v2.6/agents/{id}"),
            Some(body),
        )
        .await
    }

    async fn activate(&self, id: &str, tag: &str) -> (u16, Value) {
        let body = json!({ "auth_tag": tag });
        call(
            &self.plain,
            Method::PUT,
            &format!("/v2.6/agents/{id}"),
            Some(body),
        )
        .await
    }

    async fn show(&self, id: &str) -> (u16, Value) {
        call(
            &self.admin,
            Method::GET,
            &format!("/v2.6/agents/{id}"),
            None,
        )
        .await
    }

    async fn enrol(&self, id: &str, tpm: &SoftTpm, body: Value) {
        let (status, answer) = self.register(id, body).await;
        assert_eq!(status, 200, "{answer}");
        let tag = tpm.auth_tag(id, answer["results"]["blob"].as_str().unwrap());
        let (status, answer) = self.activate(id, &tag).await;
        assert_eq!((status, &answer["results"]), (200, &json!({})), "{answer}");
    }
}

#[tokio::test]
async fn activated_agent_is_shown_with_keylimes_members_and_survives_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let tpm = SoftTpm::new();
    let server = start(root.path()).await;
    server.enrol("node-1", &tpm, tpm.registration()).await;
    server.stop().await;
    let server = start(root.path()).await;
    server.enrol("node-1", &tpm, tpm.registration()).await;
    let (status, answer) = server.show("node-1").await;
    let expected = json!({
        "agent_id": "node-1", "ek_tpm": tpm.ek_tpm(), "ekcert": null, "aik_tpm": tpm.ak_tpm(),
        "ip": "127.0.0.1", "port": 9002, "mtls_cert": "disabled", "regcount": 2,
    });
    assert_eq!((status, &answer["results"]), (200, &expected));
    let (_, list) = call(&server.admin, Method::GET, "/v2/agents/", None).await;
    assert_eq!(list["results"], json!({ "uuids": ["node-1"] }));
    let (status, _) = call(&server.admin, Method::DELETE, "/v2.1/agents/node-1", None).await;
    assert_eq!(status, 200);
    assert_eq!(server.show("node-1").await.0, 404);
    server.stop().await;
}

#[tokio::test]
async fn both_ports_and_every_alias_register_and_activate() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let anonymous = operator(server.tls_port, &root.path().join("cv_ca"), false);
    let tpm = SoftTpm::new();
    let mut body = tpm.registration();
    body["agent_id"] = json!("a");
    for (client, register, method, activate) in [
        (
            &server.plain,
            "/v2.6/agents",
            Method::POST,
            "/v2.6/agents/a/activate",
        ),
        (
            &anonymous,
            "/v2/agents/a/",
            Method::PUT,
            "/v2.0/agents/a/activate/",
        ),
        (&anonymous, "/v2.3/agents/a", Method::PUT, "/v2.3/agents/a"),
        (
            &anonymous,
            "/v3.0/agents",
            Method::POST,
            "/v3.0/agents/a/activate",
        ),
        (
            &server.plain,
            "/v3/agents/",
            Method::POST,
            "/v3/agents/a/activate",
        ),
    ] {
        let (status, answer) = call(client, Method::POST, register, Some(body.clone())).await;
        assert_eq!(status, 200, "{register}: {answer}");
        let tag = tpm.auth_tag("a", answer["results"]["blob"].as_str().unwrap());
        let tag = json!({ "auth_tag": tag });
        let (status, answer) = call(client, method, activate, Some(tag)).await;
        assert_eq!(status, 200, "{activate}: {answer}");
    }
    assert_eq!(server.show("a").await.1["results"]["regcount"], 5);
    let (status, version) = call(&server.plain, Method::GET, "/version", None).await;
    assert_eq!(
        (status, &version["results"]["current_version"]),
        (200, &json!("2.6"))
    );
    server.stop().await;
}

#[tokio::test]
async fn only_our_operators_read_or_remove_registrations() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let ca_dir = root.path().join("cv_ca");
    let anonymous = operator(server.tls_port, &ca_dir, false);
    for (method, path) in [
        (Method::GET, "/v2.6/agents"),
        (Method::GET, "/v2.6/agents/a"),
        (Method::DELETE, "/v2.6/agents/a"),
    ] {
        let (status, answer) = call(&anonymous, method.clone(), path, None).await;
        assert_eq!(status, 403, "{method} {path}");
        let error = &answer["errors"][0];
        assert_eq!(
            (&error["status"], &error["title"]),
            (&json!("403"), &json!("Forbidden"))
        );
        assert!(
            error["detail"]
                .as_str()
                .unwrap()
                .contains("requires admin authentication")
        );
        let (status, _) = call(&server.plain, method.clone(), path, None).await;
        assert_eq!(status, 400, "{method} {path} over plain HTTP");
    }
    // A certificate of some other CA does not even get a connection.
    let other = tempfile::tempdir().unwrap();
    let other = CaDirectory::ensure(other.path(), &[])
        .map(|ca| ca.client())
        .unwrap();
    let stranger = Identity::load(&other.0, &other.1).unwrap();
    let ca = troth_daemon::tls::load_certificates(&ca_dir.join("cacert.crt")).unwrap();
    let tls = client_config(ServerTrust::Roots(ca), Some(&stranger)).unwrap();
    let timeout = Duration::from_secs(10);
    let stranger = Client::new("127.0.0.1", server.tls_port, Some(tls), timeout);
    stranger.get("/v2.6/agents").await.unwrap_err();
    server.stop().await;
}

#[tokio::test]
async fn nothing_anonymous_touches_an_active_registration() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let tpm = SoftTpm::new();
    server.enrol("a", &tpm, tpm.registration()).await;
    let before = server.show("a").await;
    // Somebody who knows the public keys redirects the verifier to himself, or tries to.
    let mut redirected = tpm.registration();
    redirected["ip"] = json!("203.0.113.9");
    redirected["port"] = json!(1);
    let (status, challenge) = server.register("a", redirected).await;
    assert_eq!(status, 200);
    assert_eq!(
        server.show("a").await,
        before,
        "a pending registration is visible"
    );
    let (status, answer) = server.activate("a", "00").await;
    assert_eq!((status, &answer["results"]), (400, &json!({})));
    assert_eq!(
        server.show("a").await,
        before,
        "a wrong tag changed the active record"
    );
    // The challenge is spent: even the right answer is late now.
    let tag = tpm.auth_tag("a", challenge["results"]["blob"].as_str().unwrap());
    assert_eq!(server.activate("a", &tag).await.0, 400);
    assert_eq!(server.show("a").await, before);
    // And the agent itself registers again without an operator.
    server.enrol("a", &tpm, tpm.registration()).await;
    server.stop().await;
}

#[tokio::test]
async fn another_tpm_cannot_take_an_id_over() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let (tpm, thief) = (SoftTpm::new(), SoftTpm::new());
    server.enrol("a", &tpm, tpm.registration()).await;
    let before = server.show("a").await;
    let mut other_ak = tpm.registration();
    other_ak["aik_tpm"] = json!(thief.ak_tpm());
    for body in [thief.registration(), other_ak] {
        let (status, answer) = server.register("a", body).await;
        assert_eq!(status, 403);
        let text = answer["status"].as_str().unwrap();
        assert!(text.contains("different TPM identity"), "{text}");
    }
    assert_eq!(server.show("a").await, before);
    // A new id stays invisible until its challenge is answered, and an unknown one is not found.
    assert_eq!(server.register("b", thief.registration()).await.0, 200);
    assert_eq!(server.show("b").await.0, 404);
    assert_eq!(server.activate("c", "00").await.0, 404);
    // Two TPMs race for a new id: the challenge of the first is gone.
    let (_, first) = server.register("d", thief.registration()).await;
    server.enrol("d", &tpm, tpm.registration()).await;
    let tag = thief.auth_tag("d", first["results"]["blob"].as_str().unwrap());
    assert_eq!(server.activate("d", &tag).await.0, 400);
    assert_eq!(server.show("d").await.1["results"]["ek_tpm"], tpm.ek_tpm());
    // An operator may free the id.
    call(&server.admin, Method::DELETE, "/v2.6/agents/a", None).await;
    server.enrol("a", &thief, thief.registration()).await;
    server.stop().await;
}

#[tokio::test]
async fn unsafe_or_broken_registrations_are_refused_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let tpm = SoftTpm::new();
    let with = |member: &str, value: Value| {
        let mut body = tpm.registration();
        body[member] = value;
        body
    };
    // fixedTPM fixedParent sensitiveDataOrigin userWithAuth sign, but not restricted.
    let unrestricted = tpm.ak_with_attributes(0x0004_0072);
    let wrong = [
        ("aik_tpm", json!(unrestricted), "restricted"),
        ("aik_tpm", json!(tpm.ek_tpm()), "aik_tpm"),
        ("aik_tpm", json!(null), "aik_tpm is missing"),
        ("aik_tpm", json!("AAEC"), "aik_tpm"),
        ("ek_tpm", json!("*"), "ek_tpm is neither"),
        ("ek_tpm", json!(tpm.ak_tpm()), "ek_tpm"),
        ("ekcert", json!("AAEC"), "ekcert"),
        ("mtls_cert", json!("-----BEGIN NONSENSE-----"), "mtls_cert"),
        ("ip", json!("a b"), "ip"),
        ("port", json!(0), "port"),
    ];
    for (member, value, reason) in wrong {
        let (status, answer) = server.register("a", with(member, value)).await;
        let text = answer["status"].as_str().unwrap();
        assert!(
            status == 400 && text.contains(reason),
            "{member}: {status} {text}"
        );
    }
    let (status, _) = server.register("a%20b", tpm.registration()).await;
    assert_eq!(status, 400);
    let answer = server.plain.send(
        Method::POST,
        "/v2.6/agents/a",
        Some(Bytes::from_static(b"{")),
    );
    assert_eq!(answer.await.unwrap().status, 400);
    for (method, path, expected) in [
        (Method::GET, "/v1.0/agents", 404),
        (Method::GET, "/v2.7/version", 404),
        (Method::PATCH, "/v2.6/agents/a", 405),
        (Method::POST, "/version", 405),
    ] {
        let (status, answer) = call(&server.plain, method, path, None).await;
        assert_eq!(status, expected, "{path}");
        assert_eq!(answer["code"], expected);
    }
    let large = with("mtls_cert", json!("x".repeat(70_000)));
    assert_eq!(server.register("a", large).await.0, 413);
    server.stop().await;
}

#[tokio::test]
async fn flood_of_registrations_is_bounded() {
    let root = tempfile::tempdir().unwrap();
    let config = RegistrarConfig {
        state_dir: root.path().into(),
        max_pending: 2,
        source_rate_limit: 1,
        ..RegistrarConfig::default()
    };
    let server = start_with(config).await;
    let tpm = SoftTpm::new();
    let mut statuses = Vec::new();
    for n in 0..12 {
        statuses.push(
            server
                .register(&format!("n{n}"), tpm.registration())
                .await
                .0,
        );
    }
    assert_eq!(statuses[..10], [200; 10]);
    assert!(statuses[10..].contains(&429), "{statuses:?}");
    server.stop().await;
}

/// Whoever can reach the registrar can have an id wait.
#[tokio::test]
async fn only_activated_agents_are_listed() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let tpm = SoftTpm::new();
    for id in ["known", "also-known"] {
        server.enrol(id, &tpm, tpm.registration()).await;
    }
    assert_eq!(
        server.register("call-0900", tpm.registration()).await.0,
        200
    );
    // One that registers anew is active all the while.
    assert_eq!(server.register("known", tpm.registration()).await.0, 200);
    let (status, list) = call(&server.admin, Method::GET, "/v2.6/agents", None).await;
    assert_eq!(status, 200);
    assert_eq!(list["results"], json!({ "uuids": ["also-known", "known"] }));
    server.stop().await;
}

#[tokio::test]
async fn errors_of_every_kind_have_a_body_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    for (method, path, body, expected) in [
        (Method::GET, "/nothing", None, 404),
        (Method::GET, "/v2.6/nothing", None, 404),
        (Method::GET, "/v1.0/agents", None, 404),
        (Method::PATCH, "/v2.6/agents/a", None, 405),
        (Method::POST, "/version", None, 405),
        (Method::GET, "/v2.6/agents", None, 400),
        (Method::POST, "/v2.6/agents/a", Some("{"), 400),
        (Method::POST, "/v2.6/agents/a", Some("[]"), 400),
        (Method::PUT, "/v2.6/agents/a", Some("no JSON"), 400),
        (Method::POST, "/v2.6/agents/.a", Some("{}"), 400),
    ] {
        let body = body.map(|text| Bytes::from_static(text.as_bytes()));
        let answer = server.plain.send(method.clone(), path, body).await.unwrap();
        assert_eq!(answer.status, expected, "{method} {path}");
        let text: Value = answer.json().unwrap();
        let reason = text["status"]
            .as_str()
            .or_else(|| text["errors"][0]["detail"].as_str());
        assert!(
            reason.is_some_and(|reason| !reason.is_empty()),
            "{method} {path}: {text}"
        );
    }
    server.stop().await;
}
