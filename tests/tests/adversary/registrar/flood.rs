use std::net::{IpAddr, Ipv4Addr};

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;

use super::{Registrar, Tpm, VICTIM};
use crate::{peak_memory, raw};

/// Ids that are paths, escapes, other alphabets, or too long.
///
/// Check: `core/src/identity/id.rs`: `id.bytes().all(safe)`
#[test]
fn odd_ids() {
    let registrar = Registrar::new();
    let port = registrar.stage.fleet.registrar_port();
    let body = Tpm::new().registration().to_string();
    let long = "x".repeat(81);
    for id in [
        "..", ".hidden", "a%2fb", "a%00", "a'--", "a;b", "ä", "a/../b", &long, "%",
    ] {
        let request = raw::request(&format!("POST /v2.6/agents/{id}"), "", &body);
        let status = raw::status(port, None, &request);
        assert!(
            [Some(400), Some(404), Some(405)].contains(&status),
            "{id:?}: {status:?}"
        );
        let mut with_id = Tpm::new().registration();
        with_id["agent_id"] = json!(id);
        let reply = registrar
            .anyone
            .send(Method::POST, "/v2.6/agents", Some(&with_id));
        assert_eq!(reply.unwrap().status, 400, "{id:?}");
    }
    let list = registrar
        .stage
        .operator
        .registrar
        .get("/v2.6/agents/")
        .unwrap();
    assert_eq!(list.body["results"]["uuids"], json!([]));
    registrar.take_in(VICTIM, &Tpm::new());
}

/// Bodies that are too long, with and without saying so before, and JSON without end.
///
/// Check: `verifier/src/registrar/mod.rs`: `BODY_LIMIT`
#[test]
fn oversize_and_endless_bodies() {
    let mut registrar = Registrar::new();
    let port = registrar.stage.fleet.registrar_port();
    let line = "POST /v2.6/agents/victim";
    let large = format!("{{\"ip\": \"{}\"}}", "x".repeat(1 << 20));
    assert_eq!(
        raw::status(port, None, &raw::request(line, "", &large)),
        Some(413)
    );
    let mut chunked = b"POST /v2.6/agents/victim HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
                        transfer-encoding: chunked\r\n\r\n"
        .to_vec();
    for _ in 0..1_000 {
        chunked.extend(b"8000\r\n");
        chunked.extend(vec![b' '; 0x8000]);
        chunked.extend(b"\r\n");
    }
    assert_eq!(raw::status(port, None, &chunked), Some(413));
    let nested = raw::request(line, "", &"[".repeat(60_000));
    assert_eq!(raw::status(port, None, &nested), Some(400));
    let nested = raw::request(
        line,
        "",
        &format!("{{\"unknown\": {}", "{\"a\":".repeat(10_000)),
    );
    assert_eq!(raw::status(port, None, &nested), Some(400));
    let memory = peak_memory(registrar.stage.fleet.registrar());
    assert!(memory < 60, "{memory} MiB");
    registrar.take_in(VICTIM, &Tpm::new());
}

/// 10,000 registrations that nobody activates, from 8 addresses that are not slowed down: what waits
/// is bounded, an honest agent gets in meanwhile and afterwards, and the operator is answered.
///
/// Check: `verifier/src/store/registrar.rs`: `ORDER BY created_at`
#[test]
fn ten_thousand_bogus_registrations() {
    const SOURCES: u8 = 8;
    const EACH: usize = 1_250;
    let mut registrar = Registrar::with("max_pending = 1000\nsource_rate_limit = 0");
    let port = registrar.stage.fleet.registrar_port();
    let body = Tpm::new().registration().to_string();
    let flood = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut sources = JoinSet::new();
            for last in 1..=SOURCES {
                let body = body.clone();
                sources.spawn(async move {
                    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 66, last));
                    let mut requests = Vec::new();
                    for number in 0..EACH {
                        let length = body.len();
                        let end = if number + 1 == EACH {
                            "connection: close\r\n"
                        } else {
                            ""
                        };
                        requests.extend(
                            format!(
                                "POST /v2.6/agents/bogus-{last}-{number} HTTP/1.1\r\nhost: a\r\n\
                                 {end}content-length: {length}\r\n\r\n{body}"
                            )
                            .into_bytes(),
                        );
                    }
                    let answers = raw::exchange(source, port, None, &requests).await;
                    let answers = String::from_utf8(answers).unwrap();
                    answers.matches("HTTP/1.1 200 OK").count()
                });
            }
            sources.join_all().await.into_iter().sum::<usize>()
        })
    });
    let (mut meanwhile, mut answered) = (0, 0);
    while !flood.is_finished() {
        let list = registrar.stage.operator.registrar.get("/v2.6/agents/");
        assert_eq!(list.unwrap().status, 200);
        answered += usize::from(!flood.is_finished());
        registrar.take_in(&format!("honest-{meanwhile}"), &Tpm::new());
        meanwhile += 1;
    }
    assert!(meanwhile > 0);
    assert!(answered > 0, "the operator waits until the flood is over");
    assert_eq!(flood.join().unwrap(), usize::from(SOURCES) * EACH);
    registrar.take_in("honest", &Tpm::new());
    let memory = peak_memory(registrar.stage.fleet.registrar());
    assert!(memory < 80, "{memory} MiB");
    let database = registrar.stage.path().join("fleet/state/reg_data.sqlite");
    let size = std::fs::metadata(database).unwrap().len();
    assert!(
        size < 4 << 20,
        "{size} bytes for 1,000 registrations that wait"
    );
}

/// Registrations of 60 KiB each, as large as a body may be: certificates that nobody looks at.
///
/// Check: `verifier/src/registrar/candidate.rs`: `let first = certificates.first();`
#[test]
fn bogus_registrations_as_large_as_they_may_be() {
    const COUNT: u32 = 400;
    let registrar = Registrar::with("source_rate_limit = 0");
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key);
    let certificate = certificate.unwrap().pem();
    let mut body = Tpm::new().registration();
    let copies = 60_000 / certificate.len();
    body["mtls_cert"] = json!(certificate.repeat(copies));
    for number in 0..COUNT {
        let path = format!("/v2.6/agents/bogus-{number}");
        let reply = registrar.anyone.send(Method::POST, &path, Some(&body));
        assert_eq!(reply.unwrap().status, 200);
    }
    // With the journal of what is not in it yet, of 4 MiB.
    let state = registrar.stage.path().join("fleet/state");
    let sizes = ["reg_data.sqlite", "reg_data.sqlite-wal"]
        .map(|name| std::fs::metadata(state.join(name)).map_or(0, |file| file.len()));
    let size: u64 = sizes.iter().sum();
    assert!(size < 10 << 20, "{size} bytes for {COUNT} registrations");
    registrar.take_in(VICTIM, &Tpm::new());
}
