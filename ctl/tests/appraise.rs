//! `trothctl appraise` on bundles whose maker wrote other rules into them than it was judged by:
//! what a verdict rests on is what the operator says.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use troth_core::{
    appraise::{AcceptedAlgorithms, NodeState, Tomtou},
    bundle::{Bundle, Criteria, Head},
    identity::AgentId,
    ima,
    policy::BootEngine,
    tpm::HashAlgorithm,
    wire::{Envelope, QuoteResponse},
};

use self::tpm::{Tpm, mask, pcrread};

/// A TPM whose AK signs in software.
#[expect(dead_code, reason = "core's tests use more of it")]
#[path = "../../core/tests/appraisal/tpm.rs"]
mod tpm;

const NK: &str = "-----BEGIN PUBLIC KEY-----\nthe agent's\n-----END PUBLIC KEY-----\n";
const NOTHING_ALLOWED: &str = r#"{
    "meta": {"version": 1, "generator": 0}, "release": 0, "digests": {}, "excludes": [],
    "keyrings": {}, "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1"}, "ima-buf": {},
    "verification-keys": ""
}"#;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

fn text_fixture(name: &str) -> String {
    String::from_utf8(fixture(name)).unwrap()
}

fn vectors() -> Value {
    serde_json::from_slice(&fixture("vectors/ima-signatures.json")).unwrap()
}

/// A file that was changed while it was measured.
fn violation() -> String {
    let (hash, digest) = ("0".repeat(40), "0".repeat(64));
    format!("10 {hash} ima-ng sha256:{digest} /var/log/open\n")
}

/// A file that nobody allowed, with a signature of a key of the vectors.
fn signed() -> String {
    let vectors = vectors();
    let all = vectors["signatures"].as_array().unwrap();
    let of = |one: &&Value| one["key"] == "rsa2048" && one["hash"] == "sha256";
    let vector = all.iter().find(of).unwrap();
    let text = |name: &str| vector[name].as_str().unwrap();
    let bytes = |name: &str| hex::decode(text(name)).unwrap();
    let mut data = Vec::new();
    for field in [
        [&b"sha256:\0"[..], &bytes("digest")].concat(),
        b"/signed\0".to_vec(),
        bytes("signature"),
    ] {
        data.extend(u32::try_from(field.len()).unwrap().to_le_bytes());
        data.extend(field);
    }
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &data);
    format!(
        "10 {} ima-sig sha256:{} /signed {}\n",
        hex::encode(hash),
        text("digest"),
        text("signature")
    )
}

/// Keylime's JSON of the key that signed.
fn keys() -> String {
    json!({"keyids": [], "pubkeys": [vectors()["keys"]["rsa2048"]]}).to_string()
}

/// Another key.
fn other_keys() -> String {
    json!({"keyids": [], "pubkeys": [vectors()["keys"]["rsa3072"]]}).to_string()
}

/// The bundle of a node that booted as a captured one did, with this list, by these criteria, and a policy that allows no file.
fn bundle(list: &str, criteria: &Criteria) -> Vec<u8> {
    let bank = HashAlgorithm::Sha256;
    let mut tpm = Tpm::new(bank);
    let booted = pcrread("uki", bank);
    for (pcr, value) in booted.iter().filter(|(pcr, _)| *pcr < 16) {
        tpm.pcrs.set(pcr, *value);
    }
    tpm.bind(NK);
    let (value, _) = ima::unverified_replay(list, HashAlgorithm::Sha1, bank);
    tpm.pcrs.set(10, value);
    let nonce = "nonce-00000000000001";
    let evidence = QuoteResponse {
        quote: tpm.quote_string(nonce, mask(0..17)),
        hash_alg: "sha256".to_owned(),
        enc_alg: "ecc256".to_owned(),
        sign_alg: "ecdsa".to_owned(),
        pubkey: Some(NK.to_owned()),
        ima_measurement_list: Some(list.to_owned()),
        ima_measurement_list_entry: Some(0),
        mb_measurement_list: Some(
            BASE64_STANDARD.encode(fixture("boots/uki/binary_bios_measurements")),
        ),
        boottime: Some(u64::from(tpm.reset_count)),
        ..QuoteResponse::default()
    };
    let answer = Envelope {
        code: 200,
        status: "Success".to_owned(),
        results: Some(evidence),
    };
    let answer = serde_json::to_vec(&answer).unwrap();
    let bundle = Bundle {
        head: Head {
            maker: "test".to_owned(),
            node: AgentId::new("node").unwrap(),
            time_ms: 1,
            sequence: Some(1),
            nonce: nonce.to_owned(),
            mask: mask(0..16),
            ima_entry: 0,
            ak: tpm.ak_public().to_tpm2b(),
            state: NodeState::default(),
            criteria: Some(criteria.clone()),
        },
        answer: &answer,
        outcome: None,
        runtime_policy: Some(NOTHING_ALLOWED.as_bytes()),
        boot_policy: None,
    };
    bundle.to_bytes().unwrap()
}

fn criteria() -> Criteria {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Criteria {
        accept: AcceptedAlgorithms {
            hash: words(&["sha256"]),
            encryption: words(&["ecc"]),
            signing: words(&["ecdsa"]),
        },
        tpm_policy: r#"{"mask": "0xffff"}"#.to_owned(),
        runtime_policy: None,
        boot_policy: None,
        boot_engine: BootEngine::Example,
        tomtou: Tomtou::Ignore,
        ima_keys: None,
    }
}

/// A refstate that no boot passes.
const NO_BOOT: &str = r#"{"has_secureboot": true, "scrtm_and_bios": [], "pk": [], "kek": [],
    "db": [], "dbx": [], "vendor_db": [], "kernels": [], "mokdig": [], "mokxdig": []}"#;

/// Rules that a node fails by, rules that it passes by, and what the operator says.
struct Case {
    list: String,
    /// Policies beside the runtime policy.
    policies: Vec<String>,
    honest: Criteria,
    forged: Criteria,
    options: Vec<String>,
    /// The rule in the report.
    rule: &'static str,
    /// Exit status by what the operator says without `--embedded-policies`.
    by_operator: i32,
    /// What is told then of the honest bundle and of the forged one.
    told: [&'static str; 2],
}

#[test]
fn forged_rules_of_a_bundle_change_the_verdict_only_where_they_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let file = directory.path().join(name);
        std::fs::write(&file, content).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let policy = write("policy.json", NOTHING_ALLOWED.as_bytes());
    let (keys_file, other) = (
        write("keys.json", keys().as_bytes()),
        write("other.json", other_keys().as_bytes()),
    );
    let option = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
    let refstate = write("refstate.json", NO_BOOT.as_bytes());
    let boot_engine = |options: Vec<String>, told: [&'static str; 2]| Case {
        list: violation(),
        policies: option("--boot-policy", &refstate),
        honest: criteria(),
        forged: Criteria {
            boot_engine: BootEngine::AcceptAll,
            ..criteria()
        },
        options,
        rule: "boot_engine",
        by_operator: 3,
        told,
    };
    let cases = [
        boot_engine(Vec::new(), ["", "boot engine accept-all"]),
        boot_engine(
            option("--boot-engine", "example"),
            ["", "boot engine accept-all"],
        ),
        Case {
            list: violation(),
            policies: Vec::new(),
            honest: Criteria {
                tomtou: Tomtou::Fail,
                ..criteria()
            },
            forged: criteria(),
            options: option("--tomtou", "fail"),
            rule: "tomtou",
            by_operator: 3,
            told: ["", "tomtou ignore"],
        },
        Case {
            list: violation(),
            policies: Vec::new(),
            honest: Criteria {
                tomtou: Tomtou::Fail,
                ..criteria()
            },
            forged: criteria(),
            options: Vec::new(),
            rule: "tomtou",
            by_operator: 0,
            told: ["tomtou fail", ""],
        },
        Case {
            list: signed(),
            policies: Vec::new(),
            honest: criteria(),
            forged: Criteria {
                ima_keys: Some(keys()),
                ..criteria()
            },
            options: Vec::new(),
            rule: "ima_keys",
            by_operator: 3,
            told: ["", "keys for the signatures of files"],
        },
        Case {
            list: signed(),
            policies: Vec::new(),
            honest: criteria(),
            forged: Criteria {
                ima_keys: Some(keys()),
                ..criteria()
            },
            options: option("--verification-key", &other),
            rule: "ima_keys",
            by_operator: 3,
            told: ["", "keys for the signatures of files"],
        },
        Case {
            list: signed(),
            policies: Vec::new(),
            honest: Criteria {
                ima_keys: Some(other_keys()),
                ..criteria()
            },
            forged: Criteria {
                ima_keys: Some(keys()),
                ..criteria()
            },
            options: option("--verification-key", &keys_file),
            rule: "ima_keys",
            by_operator: 0,
            told: ["keys for the signatures of files", ""],
        },
        Case {
            list: violation(),
            policies: Vec::new(),
            honest: Criteria {
                accept: AcceptedAlgorithms {
                    hash: vec!["sha384".to_owned()],
                    ..criteria().accept
                },
                ..criteria()
            },
            forged: criteria(),
            options: Vec::new(),
            rule: "accept",
            by_operator: 0,
            told: ["", ""],
        },
    ];
    for (number, case) in cases.iter().enumerate() {
        let run = |criteria: &Criteria, options: &[String]| {
            let file = write("evidence", &bundle(&case.list, criteria));
            let mut command = Command::new(env!("CARGO_BIN_EXE_trothctl"));
            command.args(["--json", "appraise", &file, "--policy", &policy]);
            let output = command.args(&case.policies).args(options).output().unwrap();
            let status = output.status.code().unwrap();
            assert!([0, 3].contains(&status), "{number}: {output:?}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            (status, report)
        };
        let embedded = ["--embedded-policies".to_owned()];
        let from = |report: &Value| report["bundles"][0]["rules"][case.rule]["from"].clone();
        let both = [&case.honest, &case.forged];
        for ((criteria, by_bundle), told) in both.into_iter().zip([3, 0]).zip(case.told) {
            let (status, report) = run(criteria, &embedded);
            assert_eq!(status, by_bundle, "{number}: {report}");
            assert_eq!(from(&report), "bundle");
            assert!(report["not_proved"].to_string().contains("chose itself"));
            let (status, report) = run(criteria, &case.options);
            assert_eq!(status, case.by_operator, "{number}: {report}");
            let notes = report["not_proved"].to_string();
            let ignored = notes.contains("Whether another verifier judged so");
            assert_eq!(ignored, !told.is_empty(), "{number}: {notes}");
            assert!(notes.contains(told), "{number}: {notes}");
            match case.options[..] {
                [] => assert_eq!(from(&report), "default"),
                _ => {
                    assert_eq!(from(&report), "given");
                    // What the operator says counts before what is taken over.
                    let (status, _) = run(criteria, &[&case.options[..], &embedded].concat());
                    assert_eq!(status, case.by_operator, "{number}");
                }
            }
        }
    }
}

#[test]
fn keys_are_taken_in_every_form_that_a_policy_takes() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let file = directory.path().join(name);
        std::fs::write(&file, content).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let policy = write("policy.json", NOTHING_ALLOWED.as_bytes());
    let evidence = write("evidence", &bundle(&signed(), &criteria()));
    let base64 = vectors()["keys"]["rsa2048"].as_str().unwrap().to_owned();
    let der = BASE64_STANDARD.decode(&base64).unwrap();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n");
    let other = write("other.json", other_keys().as_bytes());
    let run = |options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trothctl"));
        command.args(["appraise", &evidence, "--policy", &policy]);
        let output = command.args(options).output().unwrap();
        (output.status.code().unwrap(), output.stderr)
    };
    assert_eq!(run(&[]).0, 3);
    for form in [&der[..], pem.as_bytes(), keys().as_bytes()] {
        let key = write("key", form);
        let options = ["--verification-key", &other, "--verification-key", &key];
        assert_eq!(run(&options).0, 0);
    }
    let (status, told) = run(&["--verification-key", &policy]);
    assert_eq!(status, 1, "{}", String::from_utf8_lossy(&told));
}
