use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::{Stage, operator_tls, peak_memory, raw};

/// Addresses that the flood comes from.
const SOURCES: u8 = 24;

/// Statuses and whether all refusals say when to come again, of requests that each source sends
/// one after the other.
fn flood(stage: &Stage, request: Vec<u8>, each: usize) -> std::thread::JoinHandle<Vec<String>> {
    let port = stage.fleet.verifier_port();
    let tls = operator_tls(&stage.fleet.ca_dir());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut sources = JoinSet::new();
            for last in 1..=SOURCES {
                let (request, tls) = (request.clone(), tls.clone());
                sources.spawn(async move {
                    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 77, last));
                    let mut answers = Vec::new();
                    for _ in 0..each {
                        let tls = Some(tls.clone());
                        let answer = raw::exchange(source, port, tls, &request).await;
                        answers.push(String::from_utf8_lossy(&answer).to_lowercase());
                    }
                    answers
                });
            }
            sources.join_all().await.into_iter().flatten().collect()
        })
    })
}

/// What was answered is an answer of the route, or a refusal that says when to come again.
fn assert_orderly(answers: &[String]) {
    let mut refused = 0;
    // A connection that is closed under an upload may lose the answer.
    for answer in answers.iter().filter(|answer| !answer.is_empty()) {
        let status = answer.split(' ').nth(1).unwrap();
        match status {
            "429" | "503" => {
                refused += 1;
                assert!(answer.contains("\r\nretry-after: "), "{answer}");
            }
            _ => assert!(["200", "400", "404"].contains(&status), "{answer}"),
        }
    }
    assert!(refused > 0, "{} answers, none a refusal", answers.len());
}

/// Evidence of 15 MB each from many addresses: two are checked at a time, the others have to come
/// again, and hosts are attested meanwhile.
///
/// Check: `verifier/src/api/verify.rs`: `try_acquire_owned()`
#[test]
fn a_flood_of_evidence() {
    let mut stage = Stage::new();
    let _liar = stage.trusted("attested");
    let body = format!(
        "{{\"type\": \"tpm\", \"data\": {{\"quote\": \"{}\"}}}}",
        "x".repeat(15 << 20)
    );
    let request = raw::request("POST /v2.6/verify/evidence", "", &body);
    let answers = flood(&stage, request, 3);
    stage.operator.wait_for_attestations("attested", 5);
    assert_orderly(&answers.join().unwrap());
    stage.operator.wait_for_attestations("attested", 2);
    // 64 MiB of evidence at a time and what is made of half of it, and as much again that the
    // allocator keeps. What was sent is many times that.
    let memory = peak_memory(stage.fleet.verifier());
    assert!(memory < 256, "{memory} MiB");
}

/// Evidence that begins to come and then does not: whoever sends his is answered meanwhile.
///
/// Check: `verifier/src/api/verify.rs`: `read_shared_body(body, MAX_EVIDENCE, &self.room)`
#[test]
fn evidence_that_does_not_come() {
    let stage = Stage::with_verifier("max_evidence_checks = 1");
    let port = stage.fleet.verifier_port();
    let tls = operator_tls(&stage.fleet.ca_dir());
    let line = "POST /v2.6/verify/evidence";
    let mut begun = raw::request(line, "", &"x".repeat(1 << 20));
    begun.truncate(1 << 19);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let waiting: Vec<_> = (1..=4)
        .map(|last| {
            let (begun, tls) = (begun.clone(), Some(tls.clone()));
            runtime.spawn(async move {
                let source = IpAddr::V4(Ipv4Addr::new(127, 0, 77, last));
                raw::exchange(source, port, tls, &begun).await
            })
        })
        .collect();
    // They have begun, whatever the others' order is.
    std::thread::sleep(Duration::from_secs(1));
    let body = r#"{"type": "tpm", "data": {"quote": "r"}}"#;
    let status = raw::status(port, Some(tls), &raw::request(line, "", body));
    assert_eq!(status, Some(400));
    assert!(waiting.iter().all(|sender| !sender.is_finished()));
    runtime.shutdown_background();
}

/// Questions about a quote from few addresses, more than each may ask.
///
/// Check: `verifier/src/api/verify.rs`: `self.limit.take(source)?`
#[test]
fn a_flood_of_questions_about_quotes() {
    let mut stage = Stage::with_verifier("max_evidence_checks = 1000\nevidence_rate_limit = 1");
    let _liar = stage.trusted("attested");
    let line = format!(
        "GET /v2.6/verify/identity?agent_uuid=attested&nonce=a&hash_alg=sha256&quote=r{}",
        "x".repeat(8_000)
    );
    let answers = flood(&stage, raw::request(&line, "", ""), 20);
    stage.operator.wait_for_attestations("attested", 5);
    assert_orderly(&answers.join().unwrap());
    let memory = peak_memory(stage.fleet.verifier());
    assert!(memory < 100, "{memory} MiB");
}
