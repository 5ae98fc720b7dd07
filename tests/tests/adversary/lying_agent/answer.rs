use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::{ID, failed};
use crate::forge::{Asked, Evidence, Liar, Reply, response};
use crate::{Stage, peak_memory, reason};

/// Lines of `verifier.toml` for cases about time.
const SHORT_TIMEOUT: &str = "request_timeout = 1.0\nmax_retries = 2";

/// Neither trusted nor failed for as long as it does not answer, and trusted when it does; another
/// node is not held up meanwhile.
fn unreachable_while(
    stage: &Stage,
    words: &str,
    lie: impl Fn(&Asked, Box<Evidence>) -> Reply + Send + Sync + 'static,
) {
    let other = stage.trusted("other");
    let liar = stage.trusted(ID);
    liar.lie(lie);
    let node = stage.operator.wait_for(ID, "is given up", |node| {
        assert_ne!(node["troth"]["state"], "failed", "{node:#}");
        node["operational_state"] == 7
    });
    assert_eq!(node["troth"]["state"], "unreachable", "{node:#}");
    assert!(reason(&node).contains(words), "{node:#}");
    stage.operator.wait_for_attestations("other", 3);
    liar.repent();
    stage.operator.wait_for_state(ID, "trusted");
    drop(other);
}

/// Half an answer, then the end.
///
/// Check: `daemon/src/client.rs`: `Some(Err(error)) => {`
#[test]
fn half_an_answer() {
    unreachable_while(&Stage::with_verifier(SHORT_TIMEOUT), "", |_, evidence| {
        let mut bytes = response(200, &evidence.body().to_string()).into_bytes();
        bytes.truncate(bytes.len() / 2);
        Reply::Raw(bytes)
    });
}

/// One byte at a time, for ever.
///
/// Check: `daemon/src/client.rs`: `too_slow.unwrap_or(deadline)`
#[test]
fn an_answer_byte_by_byte() {
    unreachable_while(
        &Stage::with_verifier(SHORT_TIMEOUT),
        "no answer within",
        |_, _| Reply::Endless {
            start: "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".to_owned(),
            again: b" ".to_vec(),
            pause: Duration::from_millis(100),
        },
    );
}

/// A status line, and then headers that come too slowly to be many.
///
/// Check: `daemon/src/client.rs`: `timeout_at(sent_by, requests.try_send_request(request))`
#[test]
fn headers_that_trickle() {
    unreachable_while(
        &Stage::with_verifier(SHORT_TIMEOUT),
        "no answer within",
        |_, _| Reply::Endless {
            start: "HTTP/1.1 200 OK\r\n".to_owned(),
            again: b"x-more: y\r\n".to_vec(),
            pause: Duration::from_millis(100),
        },
    );
}

/// A status line, and then headers without end: too many for hyper, which has its limits unless it
/// is told otherwise.
///
/// Check: `daemon/src/client.rs`: `http1::handshake(TokioIo::new(stream))`
#[test]
fn headers_without_end() {
    let mut stage = Stage::with_verifier(SHORT_TIMEOUT);
    unreachable_while(&stage, "", |_, _| Reply::Endless {
        start: "HTTP/1.1 200 OK\r\n".to_owned(),
        again: format!("x-more: {}\r\n", "y".repeat(1_000))
            .repeat(100)
            .into_bytes(),
        pause: Duration::ZERO,
    });
    let memory = peak_memory(stage.fleet.verifier());
    assert!(memory < 100, "{memory} MiB");
}

/// The answer is announced with 1 GB.
///
/// Check: `daemon/src/client.rs`: `body.size_hint().lower() > limit`
#[test]
fn an_announced_gigabyte() {
    let mut stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.lie(|_, _| Reply::Endless {
        start: "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n".to_owned(),
        again: vec![b' '; 64 << 10],
        pause: Duration::ZERO,
    });
    failed(&stage, "larger than");
    let memory = peak_memory(stage.fleet.verifier());
    assert!(memory < 100, "{memory} MiB");
}

/// 1 GB in chunks, without saying so before.
///
/// Check: `daemon/src/client.rs`: `length > self.body_limit`
#[test]
fn an_unannounced_gigabyte() {
    let mut stage = Stage::with_verifier("max_answer_size = 8388608");
    let liar = stage.trusted(ID);
    let mut chunk = b"10000\r\n".to_vec();
    chunk.extend(vec![b' '; 64 << 10]);
    chunk.extend(b"\r\n");
    liar.lie(move |_, _| Reply::Endless {
        start: "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
        again: chunk.clone(),
        pause: Duration::ZERO,
    });
    failed(&stage, "larger than");
    let memory = peak_memory(stage.fleet.verifier());
    assert!(memory < 100, "{memory} MiB");
}

/// As many hosts as there are turns for large answers send theirs at a trickle: a host with an
/// honest large answer gets its turn all the same.
///
/// Check: `daemon/src/client.rs`: `LARGE_ANSWER_RATE`
#[test]
fn trickles_that_hold_all_turns_for_large_answers() {
    let stage = Stage::with_verifier("max_large_answers = 2\nrequest_timeout = 600.0");
    let honest = Liar::start(&stage.fleet.ca_dir());
    honest.run_all((0..5_000).map(|number| format!("/usr/bin/{number}")));
    let tricklers: Vec<_> = ["one", "two", "three"]
        .map(|id| {
            let liar = Liar::start(&stage.fleet.ca_dir());
            liar.lie(|_, _| Reply::Endless {
                start: format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n{}",
                    " ".repeat(300 << 10)
                ),
                again: vec![b' '; 64],
                pause: Duration::from_millis(50),
            });
            stage.enrol(id, &liar);
            liar
        })
        .into();
    for liar in &tricklers {
        while liar.asked().is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    stage.enrol(ID, &honest);
    stage.operator.wait_for_state(ID, "trusted");
    for id in ["one", "two", "three"] {
        let node = stage.operator.status(id);
        assert_ne!(node["troth"]["state"], "trusted", "{node:#}");
    }
}

/// JSON that is nested 100,000 deep.
///
/// Check: `core/src/appraise/answer.rs`: `serde_json::from_slice::<Envelope<QuoteResponse>>`
#[test]
fn an_answer_nested_without_end() {
    garbage(&"[".repeat(100_000), "not the expected JSON");
}

/// Nested where nobody looks.
///
/// Check: `core/src/appraise/answer.rs`: `serde_json::from_slice::<Envelope<QuoteResponse>>`
#[test]
fn an_unknown_member_nested_without_end() {
    let body = format!(
        "{{\"code\": 200, \"unknown\": {}",
        "{\"a\":".repeat(100_000)
    );
    garbage(&body, "not the expected JSON");
}

/// Two quotes under one name: which of them is judged must not be a matter of the parser.
///
/// Check: `core/src/appraise/answer.rs`: `from_slice::<Envelope<QuoteResponse>>(body)`
#[test]
fn an_answer_with_a_member_twice() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.lie(|_, evidence| {
        let body = evidence.body().to_string();
        Reply::Body(
            200,
            body.replacen("\"results\":{", "\"results\":{\"quote\":\"r::\",", 1),
        )
    });
    failed(&stage, "duplicate field");
}

/// Success without results.
///
/// Check: `core/src/appraise/answer.rs`: `the answer has no`
#[test]
fn success_without_evidence() {
    garbage(
        "{\"code\": 200, \"status\": \"Success\", \"results\": null}",
        "results",
    );
}

/// Bytes that are no text.
///
/// Check: `core/src/appraise/answer.rs`: `the answer is not the expected JSON`
#[test]
fn an_answer_that_is_no_text() {
    garbage("<html>\u{1}", "not the expected JSON");
}

fn garbage(body: &str, words: &str) {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    let body = body.to_owned();
    liar.lie(move |_, _| Reply::Body(200, body.clone()));
    failed(&stage, words);
}

/// A redirect to a host that would be trusted.
///
/// Check: `verifier/src/poll/ask.rs`: `answer.status != 200`
#[test]
fn a_redirect_to_a_good_host() {
    let stage = Stage::with_verifier(SHORT_TIMEOUT);
    let good = stage.trusted("good");
    let location = format!("https://127.0.0.1:{}", good.port());
    unreachable_while(&stage, "302", move |asked, _| {
        let target = &asked.target;
        Reply::Raw(
            format!(
                "HTTP/1.1 302 Found\r\nlocation: {location}{target}\r\ncontent-length: 0\r\n\r\n"
            )
            .into_bytes(),
        )
    });
}

/// A second answer, which nobody asked for, behind the first one on the kept connection: it must
/// not be taken for the answer to the next question.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Nonce`
#[test]
fn an_answer_before_its_question() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    let told = AtomicBool::new(false);
    liar.lie(move |_, evidence| {
        if told.swap(true, Ordering::Relaxed) {
            return Reply::Evidence(evidence);
        }
        let mut later = evidence.clone();
        later.clock.milliseconds += 5;
        let two = [evidence, later].map(|evidence| response(200, &evidence.body().to_string()));
        Reply::Raw(two.concat().into_bytes())
    });
    // A client that throws the second answer away goes on; one that took it would fail the node.
    stage.operator.wait_for_attestations(ID, 5);
}

/// The agent says that it speaks only versions from before the last attestation.
///
/// Check: `verifier/src/poll/ask.rs`: `rank(common) > rank(&question.version)`
#[test]
fn a_version_that_was_talked_down() {
    let stage = Stage::with_verifier(SHORT_TIMEOUT);
    unreachable_while(&stage, "no longer serves", |asked, _| {
        if asked.target == "/version" {
            let results = json!({"supported_version": "2.1", "supported_versions": ["2.1"]});
            let body = json!({"code": 200, "status": "Success", "results": results});
            return Reply::Body(200, body.to_string());
        }
        let body = json!({"code": 400, "status": "API version not supported", "results": {}});
        Reply::Body(400, body.to_string())
    });
}

/// An error text that would control the operator's terminal.
///
/// Check: `verifier/src/poll/ask.rs`: `c.is_control()`
#[test]
fn an_error_that_controls_the_terminal() {
    let stage = Stage::with_verifier(SHORT_TIMEOUT);
    let liar = stage.trusted(ID);
    liar.lie(|_, _| {
        let status = format!("no evidence\u{1b}[2J\n{}", "z".repeat(100_000));
        let body = json!({"code": 500, "status": status, "results": {}});
        Reply::Body(500, body.to_string())
    });
    let node = stage.operator.wait_for_state(ID, "unreachable");
    let reason = reason(&node);
    assert!(reason.contains("500"), "{reason}");
    assert!(
        !reason.contains(char::is_control) && reason.len() < 1_000,
        "{reason}"
    );
}
