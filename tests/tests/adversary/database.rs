use std::fs;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;
use troth_tests::fleet::{DaemonOptions, Extra};
use troth_tests::namespace::MountNamespace;
use troth_tests::postgres::PostgreSql;
use troth_tests::process::{Process, cannot_run};

use crate::forge::Liar;
use crate::registrar::{Registrar, Tpm};
use crate::{Operator, Stage, operator_tls, raw, reason};

const ID: &str = "stored";

/// Kills in one run of the case; `cargo xtask soak` may want more.
const KILLS: usize = 100;
/// Environment variable with another number of kills.
const KILLS_VARIABLE: &str = "TROTH_TEST_KILLS";

fn database(stage: &Stage, file: &str) -> PathBuf {
    stage.path().join("fleet/state").join(file)
}

fn count(node: &Value) -> u64 {
    node["attestation_count"].as_u64().unwrap()
}

/// Daemons to which a full disk is an error, as it is without a file size limit: the limit's
/// signal is ignored.
fn with_limits() -> Extra {
    let wrapper = ["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""];
    Extra {
        daemon: DaemonOptions {
            wrapper: wrapper.map(str::to_owned).into(),
            ..DaemonOptions::default()
        },
        ..Extra::default()
    }
}

/// From now on the process can write nothing, as on a full disk; `None`: it can again.
fn limit_files(process: &Process, bytes: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap());
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, limit).unwrap();
}

/// No space for verdicts: what cannot be stored is not shown, and no enrolment is half done.
///
/// Check: `verifier/src/poll/state.rs`: `State::Trusted if self.out_of_date(now, timing) => STALE`
#[test]
fn the_verifiers_disk_is_full() {
    let mut stage = Stage::with(&with_limits());
    let liar = stage.trusted(ID);
    limit_files(stage.fleet.verifier(), Some(0));
    let node = stage.operator.wait_for(ID, "is stale", |node| {
        assert_ne!(node["troth"]["state"], "failed", "{node:#}");
        node["troth"]["state"] == "stale"
    });
    assert!(reason(&node).contains("no verdict"), "{node:#}");
    let mut late = liar.enrolment();
    late["runtime_policy_name"] = json!("late");
    let reply = stage.operator.enrol("late", &late);
    assert_eq!(reply.status, 500, "{reply:?}");
    let log = stage.fleet.verifier().log();
    // The log is on the same disk: what it says was written before.
    assert!(!log.contains("panicked"), "{log}");

    limit_files(stage.fleet.verifier(), None);
    stage.operator.wait_for_state(ID, "trusted");
    let reply = stage.operator.enrol("late", &late);
    assert_eq!(reply.status, 200, "{reply:?}");
    stage.operator.wait_for_state("late", "trusted");
    // What was answered is in the file, not only in what the verifier sees of it.
    stage.fleet.verifier().kill().unwrap();
    stage.fleet.start_verifier().unwrap();
    stage.operator.wait_for_state("late", "trusted");
}

/// A file system of its own, of 8 MiB, that only who enters its mount namespace sees at `/mnt`.
struct SmallDisk {
    mounts: MountNamespace,
    _log: TempDir,
}

impl SmallDisk {
    /// `None` where nothing may be mounted, which is an error in CI.
    fn mount() -> Option<Self> {
        let log = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=8m,mode=700 troth /mnt";
        match MountNamespace::start(log.path(), script) {
            Ok(mounts) => Some(Self { mounts, _log: log }),
            Err(error) => {
                cannot_run(&format_args!("{error:#}"));
                None
            }
        }
    }

    /// Daemons whose databases are on this disk.
    fn daemons(&self) -> Extra {
        let url = |file| format!("database_url = \"sqlite:///mnt/{file}\"\n");
        Extra {
            daemon: DaemonOptions {
                wrapper: self.mounts.wrapper(),
                ..DaemonOptions::default()
            },
            verifier: url("cv_data.sqlite"),
            registrar: url("reg_data.sqlite"),
        }
    }

    fn filler(&self) -> PathBuf {
        self.mounts.path("/mnt/filler")
    }

    /// To the last byte.
    fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        let error = loop {
            if let Err(error) = filler.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

/// As [`the_verifiers_disk_is_full`], on a disk that is.
///
/// Check: `verifier/src/poll/state.rs`: `State::Trusted if self.out_of_date(now, timing) => STALE`
#[test]
fn no_space_is_left_on_the_verifiers_disk() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let mut stage = Stage::with(&disk.daemons());
    let liar = stage.trusted(ID);
    disk.fill();
    let node = stage.operator.wait_for(ID, "is stale", |node| {
        assert_ne!(node["troth"]["state"], "failed", "{node:#}");
        node["troth"]["state"] == "stale"
    });
    assert!(reason(&node).contains("no verdict"), "{node:#}");
    let reply = stage.operator.enrol("late", &liar.enrolment());
    assert_eq!(reply.status, 500, "{reply:?}");
    let log = stage.fleet.verifier().log();
    assert!(log.contains("database or disk is full"), "{log}");
    assert!(!log.contains("panicked"), "{log}");

    disk.make_room();
    stage.operator.wait_for_state(ID, "trusted");
    stage.enrol("late", &liar);
    stage.operator.wait_for_state("late", "trusted");
    stage.fleet.verifier().kill().unwrap();
    stage.fleet.start_verifier().unwrap();
    stage.operator.wait_for_state("late", "trusted");
}

/// As [`the_registrars_disk_is_full`], on a disk that is.
///
/// Check: `verifier/src/store/mod.rs`: `.after_release(`
#[test]
fn no_space_is_left_on_the_registrars_disk() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let mut registrar = Registrar::of(Stage::with(&disk.daemons()));
    let (first, second) = (Tpm::new(), Tpm::new());
    registrar.take_in("first", &first);
    let before = registrar.record("first");
    disk.fill();
    for (id, tpm) in [("first", &first), ("second", &second)] {
        let reply = registrar.register(id, &tpm.registration());
        assert_eq!(reply.status, 500, "{reply:?}");
    }
    assert_eq!(registrar.record("first"), before);
    disk.make_room();
    assert_eq!(registrar.record("second"), Value::Null);
    registrar.take_in("second", &second);
    let after = registrar.record("second");
    registrar.stage.fleet.registrar().kill().unwrap();
    registrar.stage.fleet.start_registrar().unwrap();
    assert_eq!(registrar.record("second"), after);
    assert_eq!(registrar.record("first"), before);
}

/// No space for registrations: agents are told to come later, and what is active stays.
///
/// Check: `verifier/src/store/mod.rs`: `.after_release(`
#[test]
fn the_registrars_disk_is_full() {
    let mut registrar = Registrar::of(Stage::with(&with_limits()));
    let (first, second) = (Tpm::new(), Tpm::new());
    registrar.take_in("first", &first);
    let before = registrar.record("first");
    limit_files(registrar.stage.fleet.registrar(), Some(0));
    for (id, tpm) in [("first", &first), ("second", &second)] {
        let reply = registrar.register(id, &tpm.registration());
        assert_eq!(reply.status, 500, "{reply:?}");
    }
    assert_eq!(registrar.record("first"), before);
    limit_files(registrar.stage.fleet.registrar(), None);
    assert_eq!(registrar.record("second"), Value::Null);
    registrar.take_in("second", &second);
    registrar.take_in("first", &first);
    // What was answered is in the file, not only in what the registrar sees of it.
    let [first, second] = ["first", "second"].map(|id| registrar.record(id));
    registrar.stage.fleet.registrar().kill().unwrap();
    registrar.stage.fleet.start_registrar().unwrap();
    assert_eq!(
        ["first", "second"].map(|id| registrar.record(id)),
        [first, second]
    );
}

/// A database that may be read but not written.
///
/// Check: `verifier/src/poll/node.rs`: `writer.write(update).await`
#[test]
fn a_database_that_is_read_only() {
    let mut stage = Stage::new();
    let _liar = stage.trusted(ID);
    stage.fleet.verifier().terminate().unwrap();
    let url = format!(
        "sqlite://{}?mode=ro",
        database(&stage, "cv_data.sqlite").display()
    );
    let configuration = stage.path().join("fleet/verifier.toml");
    let text = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, format!("{text}database_url = {url:?}\n")).unwrap();
    // Whether it refuses to start or cannot store a verdict: nothing is shown as trusted.
    if let Err(error) = stage.fleet.start_verifier() {
        assert!(error.to_string().contains("readonly"), "{error:#}");
    } else {
        thread::sleep(Duration::from_secs(2));
        assert_ne!(stage.operator.status(ID)["troth"]["state"], "trusted");
    }
    fs::write(&configuration, text).unwrap();
    let _ = stage.fleet.verifier().kill();
    stage.fleet.start_verifier().unwrap();
    stage.operator.wait_for_state(ID, "trusted");
}

/// A file that is no database any more: the verifier does not begin anew in its place.
///
/// Check: `verifier/src/store/mod.rs`: `probe.execute("PRAGMA schema_version")`
#[test]
fn a_database_of_garbage() {
    let mut stage = Stage::new();
    let _liar = stage.trusted(ID);
    stage.fleet.verifier().terminate().unwrap();
    let file = database(&stage, "cv_data.sqlite");
    let good = fs::read(&file).unwrap();
    let garbage = vec![0x5a; good.len()];
    fs::write(&file, &garbage).unwrap();
    let error = stage.fleet.start_verifier().unwrap_err().to_string();
    assert!(
        error.contains("cv_data.sqlite") && error.contains("not a database"),
        "{error}"
    );
    assert_eq!(
        fs::read(&file).unwrap(),
        garbage,
        "what is there is left for the administrator"
    );
    fs::write(&file, &good).unwrap();
    stage.fleet.start_verifier().unwrap();
    stage.operator.wait_for_state(ID, "trusted");
}

/// Whoever writes to the database can take evidence away, but never make a verdict: a stored
/// `trusted` is none.
///
/// Check: `verifier/src/poll/state.rs`: `if self.state == State::Trusted`
#[test]
fn a_verdict_in_the_database_is_not_believed() {
    let mut stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.run("/usr/bin/miner");
    stage.operator.wait_for_state(ID, "failed");
    stage.fleet.verifier().terminate().unwrap();
    // As long as before, so that the file stays whole; the reason loses its first letter for that.
    let [failed, trusted] = [("failed", 9), ("trusted", 3)].map(|(state, number)| {
        format!("\"state\":\"{state}\",\"operational\":{number},\"reason\":\"").into_bytes()
    });
    let file = database(&stage, "cv_data.sqlite");
    let mut bytes = fs::read(&file).unwrap();
    let found = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(&failed));
    let found: Vec<_> = found.collect();
    assert!(!found.is_empty(), "the record is stored in another form");
    for at in found {
        bytes[at..at + trusted.len()].copy_from_slice(&trusted);
    }
    fs::write(&file, bytes).unwrap();
    // Time to look at it before the next question.
    let configuration = stage.path().join("fleet/verifier.toml");
    let text = fs::read_to_string(&configuration).unwrap();
    let slower = text.replace("quote_interval = 0.1", "quote_interval = 4");
    assert_ne!(slower, text);
    fs::write(&configuration, slower).unwrap();
    stage.fleet.start_verifier().unwrap();
    let node = stage.operator.wait_for(ID, "was judged", |node| {
        assert_ne!(node["troth"]["state"], "trusted", "{node:#}");
        node["troth"]["state"] == "failed"
    });
    assert!(reason(&node).contains("/usr/bin/miner"), "{node:#}");
}

/// Sends a request that the verifier may not live to answer: the status, if it does.
fn in_flight(stage: &Stage, line: &str, body: &Value) -> JoinHandle<Option<u16>> {
    let request = raw::request(line, "", &body.to_string());
    let tls = operator_tls(&stage.fleet.ca_dir());
    let port = stage.fleet.verifier_port();
    thread::spawn(move || raw::status(port, Some(tls), &request))
}

/// A policy of what the liar's host has run, and of a program that tells the policies apart.
fn numbered_policy(liar: &Liar, number: usize) -> Value {
    let mut policy: Value = serde_json::from_str(&liar.policy()).unwrap();
    policy["digests"]["/opt/number"] = json!([format!("{number:064x}")]);
    json!({
        "runtime_policy": BASE64_STANDARD.encode(policy.to_string()),
        "runtime_policy_key": "", "tpm_policy": "{}",
    })
}

/// The number of the policy `site` as the verifier has it.
fn stored_number(stage: &Stage) -> usize {
    let reply = stage.operator.verifier.get("/v2.6/allowlists/site");
    let reply = reply.unwrap();
    let text = reply.body["results"]["runtime_policy"].as_str().unwrap();
    let policy: Value = serde_json::from_str(text).unwrap();
    let digest = policy["digests"]["/opt/number"][0].as_str().unwrap();
    usize::from_str_radix(digest, 16).unwrap()
}

/// The verifier is killed at random moments while nodes are attested, and while an enrolment, a
/// removal and another text for a policy in use are on their way. What was answered is done, what
/// was not is done or not done; a failed node is never trusted, a good one never failed, and nothing
/// that was counted is forgotten.
///
/// Check: `verifier/src/store/nodes.rs`: `transaction.commit().await?`
#[test]
fn killed_at_random_moments() {
    let kills = std::env::var(KILLS_VARIABLE).map_or(KILLS, |text| text.parse().unwrap());
    let mut stage = Stage::new();
    let bad = stage.trusted("bad");
    bad.run("/usr/bin/miner");
    stage.operator.wait_for_state("bad", "failed");
    let mut good: Vec<_> = ["one", "two"].map(|id| (id, stage.trusted(id))).into();
    // The third has a policy by name, which changes all the time.
    let third = Liar::start(&stage.fleet.ca_dir());
    let policy = numbered_policy(&third, 0);
    let mut body = third.enrolment();
    body["runtime_policy"] = policy["runtime_policy"].clone();
    body["runtime_policy_name"] = json!("site");
    assert_eq!(stage.operator.enrol("three", &body).status, 200);
    stage.operator.wait_for_state("three", "trusted");
    good.push(("three", third));
    let fresh = Liar::start(&stage.fleet.ca_dir());
    let enrolment = fresh.enrolment();
    let mut counts = vec![0; good.len()];
    let mut enrolled: Vec<String> = Vec::new();
    let mut number = 0;
    // How often each of the three was answered before the kill, and how often it was not.
    let mut answers = [[0; 2]; 3];
    for round in 0..kills {
        if round > 0 && round % 100 == 0 {
            println!("{round} kills");
        }
        let id = format!("fresh-{round}");
        let leaving = enrolled.pop();
        let requests = [
            Some((format!("POST /v2.6/agents/{id}"), enrolment.clone())),
            leaving
                .as_ref()
                .map(|id| (format!("DELETE /v2.6/agents/{id}"), json!({}))),
            Some((
                "PUT /v2.6/allowlists/site".to_owned(),
                numbered_policy(&good[2].1, round + 1),
            )),
        ];
        let requests = requests.map(|r| r.map(|(line, body)| in_flight(&stage, &line, &body)));
        let mut random = [0];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        thread::sleep(Duration::from_micros(u64::from(random[0]) * 300));
        stage.fleet.verifier().kill().unwrap();
        let answered = requests.map(|request| {
            let status = request.and_then(|thread| thread.join().unwrap());
            assert!(
                status.is_none_or(|status| status < 300),
                "round {round}: {status:?}"
            );
            status.is_some()
        });
        for (answered, tally) in answered.iter().zip(&mut answers) {
            tally[usize::from(*answered)] += 1;
        }
        stage.fleet.start_verifier().unwrap();
        stage.operator = Operator::of(&stage.fleet);

        let list = stage.operator.verifier.get("/v2.6/agents/").unwrap();
        let known = list.body["results"]["uuids"].as_array().unwrap().clone();
        let known = |id: &str| known.iter().any(|row| row[0] == id);
        let [added, removed, updated] = answered;
        assert!(known(&id) || !added, "round {round}: an enrolment is lost");
        if let Some(id) = leaving {
            assert!(!known(&id) || !removed, "round {round}: a removal is lost");
            enrolled.extend(known(&id).then_some(id));
        }
        assert!(
            enrolled.iter().all(|id| known(id)),
            "round {round}: {enrolled:?}"
        );
        enrolled.extend(known(&id).then_some(id));
        let stored = stored_number(&stage);
        assert!(
            stored == round + 1 || (stored == number && !updated),
            "round {round}: policy {stored} after {number}, answered: {updated}"
        );
        number = stored;

        let state = stage.operator.status("bad")["troth"]["state"].clone();
        assert_eq!(state, "failed", "round {round}");
        for ((id, _), before) in good.iter().zip(&mut counts) {
            let node = stage.operator.status(id);
            assert_ne!(node["troth"]["state"], "failed", "round {round}: {node:#}");
            assert!(count(&node) >= *before, "round {round}: {node:#}");
            *before = count(&node);
        }
    }
    println!("not answered and answered: {answers:?}");
    // Where all are answered, or none is, nothing was on its way.
    assert!(
        answers.iter().flatten().all(|count| *count > 0),
        "{answers:?}"
    );
    for (id, _) in &good {
        stage.operator.wait_for_state(id, "trusted");
    }
    for id in &enrolled {
        stage.operator.wait_for(id, "is judged", |node| {
            assert_ne!(node["troth"]["state"], "failed", "{node:#}");
            node["troth"]["state"] == "trusted"
        });
    }
}

/// The database server goes away and comes back.
///
/// Check: `verifier/src/poll/writer.rs`: `sleep(RETRY)`
#[test]
fn postgresql_away_and_back() {
    let mut server = PostgreSql::start().unwrap();
    server.create_database("verifier").unwrap();
    let stage = Stage::with_verifier(&format!("database_url = {:?}", server.url("verifier")));
    let _liar = stage.trusted(ID);
    server.stop().unwrap();
    stage
        .operator
        .wait_for(ID, "is not shown as trusted", |node| {
            assert_ne!(node["troth"]["state"], "failed", "{node:#}");
            node["troth"]["state"] != "trusted"
        });
    server.start_again().unwrap();
    stage.operator.wait_for_state(ID, "trusted");
    stage.operator.wait_for_attestations(ID, 2);
}
