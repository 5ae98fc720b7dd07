use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use troth_tests::clock::Clock;
use troth_tests::fleet::{DaemonOptions, Extra};

use crate::forge::Reply;
use crate::registrar::{Registrar, Tpm};
use crate::{Stage, reason};

const ID: &str = "timed";
/// Seconds.
const DAY: i64 = 86_400;

/// A fleet with this clock, and these lines in its configuration files.
fn stage(clock: &Clock, verifier: &str, registrar: &str) -> Stage {
    Stage::with(&Extra {
        verifier: verifier.to_owned(),
        registrar: registrar.to_owned(),
        daemon: DaemonOptions {
            environment: clock.environment(),
            ..DaemonOptions::default()
        },
    })
}

/// The clock jumps by a day, both ways, while hosts are asked and enrolled: hosts are attested
/// on, a failed one stays failed, a host that turns bad is found, and certificates are good.
///
/// Check: `verifier/src/poll/state.rs`: `.min(timing.interval);`
#[test]
fn a_day_forward_and_back_under_load() {
    let clock = Arc::new(Clock::new().unwrap());
    let stage = stage(&clock, "", "");
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
        clock.jump(offset).unwrap();
        hosts.iter().for_each(|(id, _)| judged_in(id));
        stage.trusted(&format!("fresh-{round}"));
        assert_eq!(stage.operator.status("bad")["troth"]["state"], "failed");
    }
    // In the middle of a question, back by a day each time.
    let (jumping, jumps) = (Arc::clone(&clock), AtomicUsize::new(0));
    hosts[0].1.lie(move |_, evidence| {
        let jump = jumps.fetch_add(1, Ordering::Relaxed) + 1;
        jumping.jump(-DAY * i64::try_from(jump).unwrap()).unwrap();
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
    let clock = Clock::new().unwrap();
    let stage = stage(&clock, "quote_interval = 3600", "");
    let _liar = stage.trusted(ID);
    clock.jump(-DAY).unwrap();
    let node = stage.operator.status(ID);
    assert_eq!(node["troth"]["state"], "stale", "{node:#}");
    assert_ne!(node["attestation_status"], "PASS", "{node:#}");
    assert!(reason(&node).contains("set back"), "{node:#}");
    clock.jump(DAY).unwrap();
    let node = stage.operator.status(ID);
    assert_eq!(node["troth"]["state"], "stale", "{node:#}");
    assert!(reason(&node).contains("attested 864"), "{node:#}");
    clock.jump(0).unwrap();
    assert_eq!(stage.operator.status(ID)["troth"]["state"], "trusted");
}

/// Between challenge and answer the clock jumps: the challenge is none any more, and the next one
/// is.
///
/// Check: `verifier/src/registrar/exchange.rs`: `.abs_diff(pending.created_at)`
#[test]
fn a_challenge_of_another_time() {
    let clock = Clock::new().unwrap();
    let registrar = Registrar::of(stage(&clock, "", ""));
    let tpm = Tpm::new();
    for offset in [-DAY, DAY] {
        let challenge = registrar.register(ID, &tpm.registration());
        clock.jump(offset).unwrap();
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
    let clock = Clock::new().unwrap();
    let registrar = Registrar::of(stage(&clock, "", "max_pending = 2"));
    let [first, second, third] = [Tpm::new(), Tpm::new(), Tpm::new()];
    clock.jump(DAY).unwrap();
    for id in ["tomorrow", "tomorrow-too"] {
        let reply = registrar.register(id, &third.registration());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    clock.jump(0).unwrap();
    let challenge = registrar.register("first", &first.registration());
    let other = registrar.register("second", &second.registration());
    assert_eq!(other.status, 200, "{other:?}");
    let activated = registrar.activate("first", &first.tag("first", &challenge));
    assert_eq!(activated.status, 200, "{activated:?}");
}
