use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use troth_core::appraise::Finding;
use troth_core::bundle::Outcome;
use troth_tests::api::Api;
use troth_tests::fleet::{AgentOptions, Extra, QUOTE_INTERVAL};

use crate::Stage;

/// A stage whose verifier keeps evidence, in a directory beside its database.
fn keeping(keep: &str) -> Stage {
    let extra = Extra {
        verifier: format!("evidence_dir = \"evidence\"\nevidence_keep = {keep:?}\n"),
        ..Extra::default()
    };
    Stage::with_extra(QUOTE_INTERVAL, &extra)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `agent evidence` that saves to `directory`, as JSON.
fn fetch(stage: &Stage, id: &str, directory: &Path, options: &[&str]) -> Vec<Value> {
    let command = ["--json", "agent", "evidence", id, "-o", text(directory)];
    let answer = stage
        .fleet
        .trothctl(&[&command, options].concat())
        .unwrap()
        .success()
        .unwrap();
    let list = answer.json().unwrap();
    list["evidence"].as_array().unwrap().clone()
}

/// The same, once the newest piece is of `verdict`: evidence is written beside the polling.
fn fetch_up_to(stage: &Stage, id: &str, directory: &Path, verdict: &str) -> Vec<Value> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let kept = fetch(stage, id, directory, &[]);
        if kept
            .last()
            .is_some_and(|newest| newest["verdict"] == verdict)
        {
            return kept;
        }
        assert!(
            Instant::now() < until,
            "no evidence of {verdict}: {kept:#?}"
        );
        sleep(Duration::from_millis(100));
    }
}

/// The bytes behind the answer in a bundle: what the verifier recorded, as it wrote it.
fn recorded_bytes(file: &Path) -> Vec<u8> {
    let output = std::process::Command::new("zcat")
        .arg(file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let bundle = output.stdout;
    let end = bundle.iter().position(|byte| *byte == b'\n').unwrap();
    let head: Value = serde_json::from_slice(&bundle[..end]).unwrap();
    let size = |index: usize| {
        let bytes = head["sections"][index]["bytes"].as_u64().unwrap();
        usize::try_from(bytes).unwrap()
    };
    assert_eq!(head["sections"][1]["kind"], "outcome");
    let from = end + 1 + size(0) + 1;
    bundle[from..from + size(1)].to_vec()
}

/// Waits for so many more attestations than `node` had.
fn attested_again(stage: &Stage, id: &str, node: &Value, more: u64) -> Value {
    let count = |node: &Value| node["attestation_count"].as_u64().unwrap();
    let wanted = |now: &Value| now["state"] == "trusted" && count(now) >= count(node) + more;
    stage
        .fleet
        .wait_for(id, "was attested again", wanted)
        .unwrap()
}

#[test]
fn kept_evidence_gives_the_same_verdicts_byte_for_byte() {
    let mut stage = keeping("all");
    let id = "kept";
    let mut agent = stage.agent(&AgentOptions::with_id(id));
    let policy = {
        let mut policy = stage.machine.runtime_policy().unwrap();
        // SHA-256 of the content below.
        let digest = "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865";
        policy["digests"]["/usr/bin/later"] = serde_json::json!([digest]);
        let file = stage.path().join("policy.json");
        fs::write(&file, policy.to_string()).unwrap();
        file
    };
    let policies = ["--runtime-policy", text(&policy), "--boot-policy", "{}"];
    let key = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/packages/ima.pem");
    let key = ["--verification-key", text(&key)];
    stage
        .fleet
        .trothctl(&[&["agent", "add", id], &policies[..], &key].concat())
        .unwrap()
        .success()
        .unwrap();
    let node = stage.fleet.wait_for_state(id, "trusted").unwrap();
    // A boot, after which the list is as long as it was.
    agent.process().terminate().unwrap();
    stage.machine.boot().unwrap();
    agent.start_again().unwrap();
    let node = attested_again(&stage, id, &node, 2);
    // A new entry, and none.
    stage.machine.run_program("/usr/bin/later", b"1\n").unwrap();
    attested_again(&stage, id, &node, 3);
    stage
        .machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    let failed = stage.fleet.wait_for_state(id, "failed").unwrap();

    let saved = stage.path().join("saved");
    let kept = fetch_up_to(&stage, id, &saved, "failed");
    let words: BTreeSet<_> = kept
        .iter()
        .map(|bundle| bundle["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(words, BTreeSet::from(["failed", "rebooted", "trusted"]));

    // Nothing but the files, and no server to ask.
    drop(agent);
    stage.fleet.verifier().kill().unwrap();
    stage.fleet.registrar().kill().unwrap();
    let appraise = |what: &[&str]| {
        let policies = ["--policy", text(&policy), "--boot-policy", "{}"];
        let command = [&["--json", "appraise"], &policies[..], what].concat();
        stage.fleet.trothctl(&command).unwrap()
    };
    let all = appraise(&[text(&saved)]);
    assert_eq!(all.status.code(), Some(3), "{all:?}");
    let report = all.json().unwrap();
    assert_eq!(report["verdict"], "failed");
    assert_eq!(report["complete"], true, "{report:#}");
    let bundles = report["bundles"].as_array().unwrap();
    assert_eq!(bundles.len(), kept.len());
    let mut links = BTreeSet::new();
    for (bundle, kept) in bundles.iter().zip(&kept) {
        assert_eq!(bundle["same_as_recorded"], true, "{bundle:#}");
        assert_eq!(bundle["outcome"]["verdict"], kept["verdict"]);
        assert_eq!(bundle["runtime_policy"]["as_recorded"], true);
        assert_eq!(bundle["boot_policy"]["as_recorded"], true);
        let file = PathBuf::from(kept["file"].as_str().unwrap());
        let outcome: Outcome = serde_json::from_value(bundle["outcome"].clone()).unwrap();
        assert_eq!(
            String::from_utf8(outcome.canonical().unwrap()).unwrap(),
            String::from_utf8(recorded_bytes(&file)).unwrap()
        );
        links.insert(bundle["link"].as_str().unwrap());
    }
    assert_eq!(links, BTreeSet::from(["continued", "start"]));
    // And it is what the verifier showed, which has a severity beside each.
    let findings = |value: &Value| -> Vec<Finding> {
        let list = value["findings"].clone();
        serde_json::from_value(list).unwrap()
    };
    let last = &bundles[bundles.len() - 1]["outcome"];
    assert_eq!(findings(last), findings(&failed));

    // One alone continues from what it says itself.
    let incremental = bundles
        .iter()
        .find(|bundle| bundle["ima_entry"] != 0 && bundle["outcome"]["verdict"] == "trusted")
        .unwrap();
    let one = appraise(&[incremental["file"].as_str().unwrap()]);
    assert_eq!(one.status.code(), Some(0), "{one:?}");
    let report = one.json().unwrap();
    assert_eq!(report["bundles"][0]["link"], "claimed");
    assert_eq!(report["complete"], false);
    let notes = report["not_proved"].to_string();
    for what in ["Freshness", "Whose", "IMA entries 0 to"] {
        assert!(notes.contains(what), "{notes}");
    }

    // The key that was sent with the node is told, and taken where the bundle's rules are.
    let taken = appraise(&["--embedded-policies", incremental["file"].as_str().unwrap()]);
    let rule = taken.json().unwrap()["bundles"][0]["rules"]["ima_keys"].clone();
    assert_eq!(rule["from"], "bundle");
    let keys: Value = serde_json::from_str(rule["value"].as_str().unwrap()).unwrap();
    assert_eq!(keys["keyids"], serde_json::json!([0x8e01_ee36_u32]));

    // Another policy is used when it is named, and said not to be the one.
    let other = stage.path().join("other.json");
    let mut strict: Value = serde_json::from_slice(&fs::read(&policy).unwrap()).unwrap();
    strict["digests"] = serde_json::json!({});
    fs::write(&other, strict.to_string()).unwrap();
    let first = kept[0]["file"].as_str().unwrap();
    let command = [
        "appraise",
        first,
        "--policy",
        text(&other),
        "--boot-policy",
        "{}",
    ];
    let answer = stage.fleet.trothctl(&command).unwrap();
    assert_eq!(answer.status.code(), Some(3), "{answer:?}");
    assert!(answer.stdout.contains("is NOT the one"), "{answer:?}");
    let answer = stage.fleet.trothctl(&["appraise", first]).unwrap();
    assert_eq!(answer.status.code(), Some(1), "{answer:?}");
    assert!(answer.stderr.contains("--policy"), "{answer:?}");
}

#[test]
fn evidence_is_kept_of_changes_with_its_policies_and_over_kills() {
    let mut stage = keeping("changes");
    let id = "changes";
    let agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    let node = stage.fleet.wait_for_state(id, "trusted").unwrap();
    attested_again(&stage, id, &node, 2);
    let saved = stage.path().join("saved");
    let kept = fetch(&stage, id, &saved, &["--with-policies"]);
    assert_eq!(kept.len(), 1, "trusted, and trusted still: {kept:#?}");

    let file = kept[0]["file"].as_str().unwrap();
    let record = stage.fleet.wait_registered(id).unwrap();
    let ak = stage.path().join("ak");
    fs::write(&ak, record["ak"]["public"].as_str().unwrap()).unwrap();
    for ak in [text(&ak), record["ak"]["name"].as_str().unwrap()] {
        let command = [
            "--json",
            "appraise",
            file,
            "--embedded-policies",
            "--ak",
            ak,
        ];
        let answer = stage.fleet.trothctl(&command).unwrap();
        assert_eq!(answer.status.code(), Some(0), "{answer:?}");
        let report = answer.json().unwrap();
        assert_eq!(report["bundles"][0]["same_as_recorded"], true);
        assert!(!report["not_proved"].to_string().contains("Whose"));
    }
    // The verifier's text of the policy is the one that was judged by.
    let policy = stage.path().join("shown.json");
    let command = ["policy", "show", "runtime", id, "-o", text(&policy)];
    stage.fleet.trothctl(&command).unwrap().success().unwrap();
    let command = [
        "--json",
        "appraise",
        text(&saved),
        "--policy",
        text(&policy),
    ];
    let answer = stage.fleet.trothctl(&command).unwrap();
    let report = answer.success().unwrap().json().unwrap();
    assert_eq!(report["bundles"][0]["runtime_policy"]["as_recorded"], true);
    // Of another machine's AK it is no evidence.
    let stranger = troth_tests::boot::fixtures().join("boots/uki/ak.pub");
    let command = [
        "appraise",
        file,
        "--embedded-policies",
        "--ak",
        text(&stranger),
    ];
    let answer = stage.fleet.trothctl(&command).unwrap();
    assert_eq!(answer.status.code(), Some(3), "{answer:?}");
    // Nor is it the answer to a question of now.
    let command = [
        "appraise",
        file,
        "--embedded-policies",
        "--nonce",
        "AbCdEfGhIj0123456789",
    ];
    let answer = stage.fleet.trothctl(&command).unwrap();
    assert_eq!(answer.status.code(), Some(3), "{answer:?}");

    let directory = stage.path().join("fleet/state/evidence");
    fs::write(directory.join(".writing"), "cut off").unwrap();
    stage.fleet.verifier().kill().unwrap();
    stage.fleet.start_verifier().unwrap();
    stage.fleet.wait_for_state(id, "trusted").unwrap();
    stage
        .machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    stage.fleet.wait_for_state(id, "failed").unwrap();
    let kept = fetch_up_to(&stage, id, &saved, "failed");
    let words: Vec<_> = kept.iter().map(|bundle| &bundle["verdict"]).collect();
    assert_eq!(words, ["trusted", "trusted", "failed"]);
    assert!(!directory.join(".writing").exists());
    drop(agent);

    // Whoever is no administrator does not see it.
    let anonymous = Api::anonymous(stage.fleet.verifier_port(), &stage.fleet.ca_dir()).unwrap();
    let path = format!("/v2.6/agents/{id}/evidence");
    for path in [path.clone(), format!("{path}?sequence=1")] {
        assert_eq!(anonymous.get(&path).unwrap().status, 403, "{path}");
    }
}

#[test]
fn a_disk_that_takes_nothing_delays_and_fails_no_attestation() {
    let stage = keeping("all");
    let id = "unkept";
    // A file where the node's directory would be.
    let directory = stage.path().join("fleet/state/evidence");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(id), "").unwrap();
    let _agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    let node = stage.fleet.wait_for_state(id, "trusted").unwrap();
    attested_again(&stage, id, &node, 3);
    let log = fs::read_to_string(stage.path().join("fleet/troth-verifier.log")).unwrap();
    assert_eq!(log.matches("evidence is not kept").count(), 1, "{log}");
}
