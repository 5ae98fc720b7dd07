use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use troth_tests::fleet::{DaemonOptions, Extra};

use crate::forge::Reply;
use crate::registrar::{Registrar, Tpm};
use crate::{Stage, reason};

const ID: &str = "timed";
/// Seconds.
const DAY: i64 = 86_400;

/// The time of day as registrar and verifier see it.
struct Clock {
    directory: TempDir,
}

impl Clock {
    /// Compiles the shim: where Rust links, a C compiler is.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let this = Self { directory };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/adversary/clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", source, "-o"]);
        let compiled = compiler.arg(this.file("clock.so")).status().unwrap();
        assert!(compiled.success());
        this.jump(0);
        this
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// From now on it is `seconds` later than it is.
    fn jump(&self, seconds: i64) {
        let (new, file) = (self.file("new"), self.file("offset"));
        fs::write(&new, seconds.to_string()).unwrap();
        fs::rename(new, file).unwrap();
    }

    /// A fleet with this clock, and these lines in its configuration files.
    fn stage(&self, verifier: &str, registrar: &str) -> Stage {
        let variable = |name: &str, file| {
            let value = self.file(file).to_str().unwrap().to_owned();
            (name.to_owned(), value)
        };
        Stage::with(&Extra {
            verifier: verifier.to_owned(),
            registrar: registrar.to_owned(),
            daemon: DaemonOptions {
                environment: vec![
                    variable("LD_PRELOAD", "clock.so"),
                    variable("CLOCK_OFFSET_FILE", "offset"),
                ],
                ..DaemonOptions::default()
            },
        })
    }
}

/// The clock jumps by a day, both ways, while hosts are asked and enrolled: hosts are attested
/// on, a failed one stays failed, a host that turns bad is found, and certificates are good.
///
/// Check: `verifier/src/poll/state.rs`: `.min(timing.interval);`
#[test]
fn a_day_forward_and_back_under_load() {
    let clock = Arc::new(Clock::new());
    let stage = clock.stage("", "");
    let bad = stage.trusted("bad");
    bad.run("/usr/bin/miner");
    stage.operator.wait_for_state("bad", "failed");
    let hosts = ["one", "two", "three"].map(|id| (id, stage.trusted(id)));
    let judged_in = |id: &str| {
        let count = |node: &serde_json::Value| node["attestation_count"].as_u64().unwrap();
        let goal = count(&stage.operator.status(id)) + 3;
        stage.operator.wait_for(id, "was attested again", |node| {
            let state = &node["troth"]["state"];
            assert!(state == "trusted" || state == "stale", "{node:#}");
            count(node) >= goal
        });
    };
    for (round, offset) in [DAY, 0, -DAY, 0].into_iter().enumerate() {
        clock.jump(offset);
        hosts.iter().for_each(|(id, _)| judged_in(id));
        stage.trusted(&format!("fresh-{round}"));
        assert_eq!(stage.operator.status("bad")["troth"]["state"], "failed");
    }
    // In the middle of a question, back by a day each time.
    let (jumping, jumps) = (Arc::clone(&clock), AtomicUsize::new(0));
    hosts[0].1.lie(move |_, evidence| {
        let jump = jumps.fetch_add(1, Ordering::Relaxed) + 1;
        jumping.jump(-DAY * i64::try_from(jump).unwrap());
        Reply::Evidence(evidence)
    });
    hosts.iter().for_each(|(id, _)| judged_in(id));
    hosts[1].1.run("/usr/bin/miner");
    stage.operator.wait_for_state("two", "failed");
}

/// Nobody is asked for long after the clock was set back: a verdict that is in the future by now
/// must not be shown as one about now, for a day.
///
/// Check: `verifier/src/poll/state.rs`: `now.abs_diff(`
#[test]
fn a_verdict_from_the_future() {
    let clock = Clock::new();
    let stage = clock.stage("quote_interval = 3600", "");
    let _liar = stage.trusted(ID);
    clock.jump(-DAY);
    let node = stage.operator.status(ID);
    assert_eq!(node["troth"]["state"], "stale", "{node:#}");
    assert_ne!(node["attestation_status"], "PASS", "{node:#}");
    assert!(reason(&node).contains("set back"), "{node:#}");
    clock.jump(DAY);
    let node = stage.operator.status(ID);
    assert_eq!(node["troth"]["state"], "stale", "{node:#}");
    assert!(reason(&node).contains("attested 864"), "{node:#}");
    clock.jump(0);
    assert_eq!(stage.operator.status(ID)["troth"]["state"], "trusted");
}

/// Between challenge and answer the clock jumps: the challenge is none any more, and the next one
/// is.
///
/// Check: `verifier/src/registrar/exchange.rs`: `.abs_diff(pending.created_at)`
#[test]
fn a_challenge_of_another_time() {
    let clock = Clock::new();
    let registrar = Registrar::of(clock.stage("", ""));
    let tpm = Tpm::new();
    for offset in [-DAY, DAY] {
        let challenge = registrar.register(ID, &tpm.registration());
        clock.jump(offset);
        let reply = registrar.activate(ID, &tpm.tag(ID, &challenge));
        assert_eq!(reply.status, 400, "{reply:?}");
        let status = reply.body["status"].as_str().unwrap();
        assert!(status.contains("register again"), "{status}");
        registrar.take_in(ID, &tpm);
    }
}

/// Challenges that wait for a time to come keep no place from those of today.
///
/// Check: `verifier/src/store/registrar.rs`: `OR created_at > $2`
#[test]
fn challenges_of_tomorrow() {
    let clock = Clock::new();
    let registrar = Registrar::of(clock.stage("", "max_pending = 2"));
    let [first, second, third] = [Tpm::new(), Tpm::new(), Tpm::new()];
    clock.jump(DAY);
    for id in ["tomorrow", "tomorrow-too"] {
        let reply = registrar.register(id, &third.registration());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    clock.jump(0);
    let challenge = registrar.register("first", &first.registration());
    let other = registrar.register("second", &second.registration());
    assert_eq!(other.status, 200, "{other:?}");
    let activated = registrar.activate("first", &first.tag("first", &challenge));
    assert_eq!(activated.status, 200, "{activated:?}");
}
