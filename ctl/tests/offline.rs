//! `trothctl` as a process, without any server: files in, text and exit status out.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use troth_core::{
    bundle::{Bundle, Criteria},
    policy::BootEngine,
    tpm::HashAlgorithm,
};

fn trothctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trothctl"))
        .args(arguments)
        .env_remove("TROTH_VERIFIER")
        .env_remove("TROTH_REGISTRAR")
        .env_remove("TROTH_CA_DIR")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The quote string of a captured boot's TPM2_Quote, in a file.
fn captured_quote(directory: &Path, boot: &str) -> PathBuf {
    let part = |extension: &str| {
        let name = format!("boots/{boot}/quote-rsa.{extension}");
        BASE64_STANDARD.encode(std::fs::read(fixture(&name)).unwrap())
    };
    let path = directory.join("quote");
    std::fs::write(
        &path,
        format!("r{}:{}:{}\n", part("msg"), part("sig"), part("pcrs")),
    )
    .unwrap();
    path
}

#[test]
fn options_of_keylimes_file_without_a_meaning_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tenant.conf");
    std::fs::write(&file, "[tenant]\nmax_payload_size = 99\nnonsense = 1\n").unwrap();
    let ask = |json: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_trothctl"))
            .args([json, &["ca", "show"]].concat())
            .env("KEYLIME_TENANT_CONFIG", &file)
            .env_remove("TROTH_LOG")
            .output()
            .unwrap();
        stderr(&output).to_owned()
    };
    let told = ask(&[]);
    for option in ["max_payload_size", "nonsense"] {
        assert_eq!(told.matches(option).count(), 1, "{told}");
    }
    assert!(!ask(&["--json"]).contains("nonsense"), "machines read this");
}

#[test]
fn wrong_use_is_exit_status_2() {
    for arguments in [
        &["agent", "status"][..],
        &["agent", "status", "not/an/id"],
        &["--verifier", "http://127.0.0.1", "agent", "list"],
        &[
            "agent",
            "add",
            "node",
            "--allowlist",
            "a",
            "--ima-list",
            "b",
        ],
        &["agent", "watch", "--timeout", "soon"],
        &["nonsense"],
    ] {
        let output = trothctl(arguments);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn missing_credentials_are_explained() {
    let directory = tempfile::tempdir().unwrap();
    let output = trothctl(&["--ca-dir", text(directory.path()), "agent", "list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("client-cert.crt"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("--ca-dir"), "{}", stderr(&output));

    let output = trothctl(&[
        "--json",
        "--ca-dir",
        text(directory.path()),
        "agent",
        "list",
    ]);
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["exit_status"], 1);
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("client-cert.crt")
    );
}

#[test]
fn a_captured_quote_is_verified_with_its_ak_and_nonce() {
    for boot in ["grub", "uki"] {
        let nonce = std::fs::read_to_string(fixture(&format!("boots/{boot}/nonce.hex"))).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let quote = captured_quote(directory.path(), boot);
        let ak = fixture(&format!("boots/{boot}/ak.pub"));
        let check = [
            "--json",
            "inspect",
            "quote",
            text(&quote),
            "--ak",
            text(&ak),
            "--nonce-hex",
        ];
        let output = trothctl(&[&check[..], &[nonce.trim()]].concat());
        assert_eq!(output.status.code(), Some(0), "{boot}: {}", stderr(&output));
        let view = json(&output);
        assert_eq!(view["verified"], true, "{boot}");
        assert_eq!(view["nonce_checked"], true);
        assert_eq!(view["pcr_digest_matches"], true);
        assert_eq!(view["pcrs"]["10"].as_str().unwrap().len(), 64);

        let output = trothctl(&[&check[..], &["00"]].concat());
        assert_eq!(output.status.code(), Some(3), "{boot}: another nonce");
        assert_eq!(json(&output)["verified"], false);
    }
}

#[test]
fn a_quote_of_another_key_is_exit_status_3() {
    let directory = tempfile::tempdir().unwrap();
    let quote = captured_quote(directory.path(), "grub");
    let ak = fixture("boots/uki/ak.pub");
    let output = trothctl(&["inspect", "quote", text(&quote), "--ak", text(&ak)]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stdout(&output).contains("NOT VALID"), "{}", stdout(&output));
}

#[test]
fn without_an_ak_a_quote_is_said_to_be_unchecked() {
    let directory = tempfile::tempdir().unwrap();
    let quote = captured_quote(directory.path(), "uki");
    let output = trothctl(&["inspect", "quote", text(&quote)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("not checked"),
        "{}",
        stdout(&output)
    );
    assert!(
        stdout(&output).contains("rsassa with sha256"),
        "{}",
        stdout(&output)
    );
    assert!(!stdout(&output).contains('\x1b'), "no colour in a pipe");
}

#[test]
fn an_agents_answer_is_read_with_its_key_binding() {
    let vectors = std::fs::read_to_string(fixture("vectors/quotes.json")).unwrap();
    let vectors: Value = serde_json::from_str(&vectors).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (answer, ak) = (directory.path().join("answer"), directory.path().join("ak"));
    for quote in vectors["quotes"].as_array().unwrap() {
        let results = |pubkey: &str| {
            serde_json::json!({"code": 200, "status": "Success", "results": {
                "quote": quote["quote"], "hash_alg": "sha256", "enc_alg": "rsa2048",
                "sign_alg": "rsassa", "pubkey": pubkey}})
        };
        let pubkey = vectors["pubkey"].as_str().unwrap();
        std::fs::write(&ak, quote["ak_tpm"].as_str().unwrap()).unwrap();
        std::fs::write(&answer, results(pubkey).to_string()).unwrap();
        let nonce = vectors["nonce"].as_str().unwrap();
        let check = [
            "--json",
            "inspect",
            "quote",
            text(&answer),
            "--ak",
            text(&ak),
            "--nonce",
            nonce,
        ];
        let output = trothctl(&check);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(json(&output)["pubkey_bound"], true);
        assert_eq!(json(&output)["nonce"], nonce);
        assert_eq!(json(&output)["pcrs"]["16"], vectors["pcr16"]);

        std::fs::write(&answer, results(&format!("{pubkey} ")).to_string()).unwrap();
        let output = trothctl(&check);
        assert_eq!(
            output.status.code(),
            Some(3),
            "a key that PCR 16 does not bind"
        );
        assert_eq!(json(&output)["pubkey_bound"], false);
    }
}

/// A PCR of a captured boot, as the TPM had it: lower-case hex.
fn captured_pcr(boot: &str, bank: &str, pcr: u8) -> String {
    let text = std::fs::read_to_string(fixture(&format!("boots/{boot}/pcrread.txt"))).unwrap();
    let bank = format!("{bank}:");
    let line = text
        .lines()
        .skip_while(|line| line.trim() != bank)
        .find(|line| line.trim().split(':').next().map(str::trim) == Some(&pcr.to_string()))
        .unwrap();
    line.rsplit("0x").next().unwrap().to_lowercase()
}

#[test]
fn a_captured_boot_log_replays_to_the_pcrs_of_its_tpm() {
    let log = fixture("boots/grub/binary_bios_measurements");
    let output = trothctl(&["--json", "inspect", "eventlog", text(&log)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let view = json(&output);
    assert_eq!(view["format"], "crypto-agile");
    for bank in ["sha1", "sha256"] {
        for pcr in 0..=9 {
            let replayed = &view["pcrs"][bank][pcr.to_string()];
            assert_eq!(
                *replayed,
                captured_pcr("grub", bank, pcr),
                "{bank} PCR {pcr}"
            );
        }
    }
    assert_eq!(view["events"][0]["type"], "EV_NO_ACTION");
    assert_eq!(view["events"][0]["data"], "Spec ID Event03 2.0.0");
    assert_eq!(view["events"][0]["measured"], Value::Null);
    assert_eq!(view["model"]["version"], 2);
    let shown: Vec<_> = view["events"].as_array().unwrap().iter().collect();
    for (data, measured) in [
        ("SecureBoot: off", "all"),
        ("PciRoot(0x0)/Pci(0x5,0x0)/HD(1,GPT,", "none"),
        ("grub_cmd: linux /vmlinuz ", "part"),
    ] {
        let event = shown
            .iter()
            .find(|event| event["data"].as_str().unwrap().contains(data));
        assert_eq!(event.expect(data)["measured"], measured, "{data}");
    }

    // The same in base64, as an agent's answer has it.
    let directory = tempfile::tempdir().unwrap();
    let encoded = directory.path().join("log");
    std::fs::write(
        &encoded,
        BASE64_STANDARD.encode(std::fs::read(&log).unwrap()),
    )
    .unwrap();
    let output = trothctl(&["--json", "inspect", "eventlog", text(&encoded)]);
    assert_eq!(json(&output), view);

    let output = trothctl(&["inspect", "eventlog", text(&log)]);
    assert!(
        stdout(&output).contains("\\EFI\\BOOT\\BOOTX64.EFI"),
        "{}",
        stdout(&output)
    );
    assert!(stdout(&output).contains("39 events"), "{}", stdout(&output));
}

#[test]
fn a_boot_log_with_the_one_of_systemd_shows_the_phases_and_who_speaks_of_which_pcr() {
    let log = fixture("boots/uki/binary_bios_measurements");
    let measured = fixture("boots/uki/tpm2-measure.log");
    let line = [
        "inspect",
        "eventlog",
        text(&log),
        "--measure-log",
        text(&measured),
    ];
    let output = trothctl(&[&["--json"][..], &line].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let view = &json(&output)["user_space"];
    assert_eq!(view["phases"], serde_json::json!(["sysinit", "ready"]));
    assert_eq!(view["pcrs"], serde_json::json!([11, 15]));
    assert_eq!(view["torn"], false);
    let firmware = view["firmware_pcrs"].as_array().unwrap();
    assert!(firmware.contains(&11.into()) && !firmware.contains(&15.into()));
    let output = trothctl(&line);
    let shown = stdout(&output);
    assert!(shown.contains("(PCR 11): sysinit, ready\n"), "{shown}");
    let broken = trothctl(&[
        "inspect",
        "eventlog",
        text(&log),
        "--measure-log",
        text(&log),
    ]);
    assert_eq!(broken.status.code(), Some(1));
}

#[test]
fn a_boot_log_cut_short_says_where() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let log = std::fs::read(fixture("boots/uki/binary_bios_measurements")).unwrap();
    std::fs::write(&path, &log[..log.len() - 1]).unwrap();
    let output = trothctl(&["inspect", "eventlog", text(&path)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(text(&path)), "{}", stderr(&output));
    assert!(stderr(&output).contains("event"), "{}", stderr(&output));
}

#[test]
fn a_captured_ima_list_replays_to_pcr_10_of_its_tpm() {
    for list in [
        "ima-ascii_runtime_measurements",
        "ima-ascii_runtime_measurements_sha256",
    ] {
        let list = fixture(&format!("boots/grub/{list}"));
        let output = trothctl(&["--json", "inspect", "ima", text(&list)]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let view = json(&output);
        for bank in ["sha1", "sha256"] {
            assert_eq!(
                view["pcr10"][bank],
                captured_pcr("grub", bank, 10),
                "{bank}"
            );
        }
        assert_eq!(view["entries"], 1633);
        assert_eq!(view["violations"][0]["line"], 325);
        assert_eq!(view["problems_total"], 0);
        assert!(view.get("list").is_none(), "entries are for --entries");
    }
}

#[test]
fn the_binary_list_is_read_as_the_ascii_one() {
    let view = |form: &str| {
        let list = fixture(&format!("boots/uki/ima-{form}_runtime_measurements_sha256"));
        let output = trothctl(&["--json", "inspect", "ima", "--entries", text(&list)]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        json(&output)
    };
    assert_eq!(view("binary"), view("ascii"));
}

#[test]
fn a_binary_list_is_a_policy_as_the_ascii_one_is() {
    let lists = ["binary", "ascii"]
        .map(|form| fixture(&format!("boots/uki/ima-{form}_runtime_measurements_sha256")));
    let [binary, ascii] = lists.each_ref().map(|list| text(list));
    let output = trothctl(&["policy", "diff", binary, ascii]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = trothctl(&["--json", "policy", "convert", "--to", "allowlist", binary]);
    assert!(stdout(&output).lines().count() > 100, "{}", stdout(&output));
}

#[test]
fn signatures_in_an_ima_list_are_shown() {
    let vectors = fixture("vectors/ima-signatures.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(vectors).unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("list");
    let hash = "1".repeat(40);
    let line = |template: &str, prefix: &str, vector: &Value| {
        let digest = vector["digest"].as_str().unwrap();
        let signature = vector["signature"].as_str().unwrap();
        format!("10 {hash} {template} {prefix}:{digest} /signed {signature}\n")
    };
    let file = &vectors["signatures"][2];
    let mut unusable = file.clone();
    unusable["signature"] = "0302".into();
    let list = [
        line("ima-sig", "sha256", file),
        line("ima-sigv2", "verity:sha512", &vectors["verity"][3]),
        line("ima-sig", "sha256", &unusable),
        format!("10 {hash} ima-ng sha256:{} /unsigned\n", "2".repeat(64)),
    ];
    std::fs::write(&path, list.concat()).unwrap();
    let output = trothctl(&["--json", "inspect", "ima", "--entries", text(&path)]);
    let view = json(&output);
    assert_eq!(view["signed"], 3);
    let signature = |entry: usize| &view["list"][entry]["signature"];
    let of = |version: u8, id: &str, hash: &str| serde_json::json!({"version": version, "key_id": id, "hash": hash});
    assert_eq!(*signature(0), of(2, "9b99ec16", "sha256"));
    assert_eq!(*signature(1), of(3, "ab8e33e8", "sha512"));
    assert_eq!(signature(2)["fault"], "it is cut, or its header is wrong");
    assert_eq!(*signature(3), Value::Null);
    let output = trothctl(&["inspect", "ima", "--entries", text(&path)]);
    let shown = stdout(&output);
    for expected in [
        "v2 9b99ec16 sha256",
        "v3 ab8e33e8 sha512",
        "unusable",
        "3 entries",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
}

#[test]
fn events_of_the_device_mapper_are_shown_field_by_field() {
    let names = "name=root,uuid=CRYPT-VERITY-a\\,b";
    let table = format!(
        "dm_version=4.45.0;{names},major=253,minor=0,minor_count=1,num_targets=1;target_index=0,\
         target_begin=0,target_len=8,target_name=verity,target_version=1.8.0,root_digest=29cb87e6;"
    );
    let hash = HashAlgorithm::Sha256.digest(&[table.as_bytes()]);
    let resume = format!(
        "dm_version=4.45.0;{names},major=253,minor=0,minor_count=1,num_targets=1;\
         active_table_hash=sha256:{hash};current_device_capacity=8;"
    );
    let mut list = String::new();
    for (name, text) in [
        ("dm_table_load", table.as_str()),
        ("dm_device_resume", &resume),
        ("dm_device_remove", "dm_version=4.45.0;nonsense;"),
        ("kernel_info", "5.14.0"),
    ] {
        let digest = HashAlgorithm::Sha256.digest(&[text.as_bytes()]);
        let (hash, buffer) = ("1".repeat(40), hex::encode(text));
        list.push_str(&format!(
            "10 {hash} ima-buf sha256:{digest} {name} {buffer}\n"
        ));
    }
    let changed = hex::encode("dm_version=4.45.0;") + "00";
    list.push_str(&format!(
        "10 {} ima-buf sha256:{} dm_table_clear {changed}\n",
        "1".repeat(40),
        "2".repeat(64)
    ));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("list");
    std::fs::write(&path, list).unwrap();
    let view = json(&trothctl(&["--json", "inspect", "ima", text(&path)]));
    let events = view["device_mapper"].as_array().unwrap();
    assert_eq!(events.len(), 4, "{view}");
    assert_eq!(events[0]["event"], "dm_table_load");
    assert_eq!(events[0]["line"], 1);
    assert_eq!(events[0]["fields"]["uuid"], "CRYPT-VERITY-a,b");
    assert_eq!(events[0]["fields"]["major"], 253);
    assert_eq!(events[0]["targets"][0]["root_digest"], "29cb87e6");
    let active = format!("sha256:{hash}");
    assert_eq!(events[1]["fields"]["active_table_hash"], active);
    assert_eq!(events[1]["problem"], Value::Null);
    assert!(
        events[2]["problem"]
            .as_str()
            .unwrap()
            .contains("has no name"),
        "{view}"
    );
    assert!(
        events[3]["problem"].as_str().unwrap().contains("digest"),
        "{view}"
    );
    let output = trothctl(&["inspect", "ima", text(&path)]);
    let shown = stdout(&output);
    for part in [
        "root_digest: 29cb87e6",
        "name: root, uuid: CRYPT-VERITY-a,b, major: 253",
        &active,
        "dm_device_remove",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let others = shown.lines().filter(|line| line.starts_with("4 "));
    assert_eq!(others.count(), 0, "{shown}");
}

#[test]
fn a_changed_ima_list_names_the_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("list");
    let list =
        std::fs::read_to_string(fixture("boots/grub/ima-ascii_runtime_measurements")).unwrap();
    let mut lines: Vec<_> = list.lines().take(20).map(str::to_owned).collect();
    lines[7] = lines[7].replace("/usr/", "/tmp/");
    lines[9] = "10 nonsense".to_owned();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let output = trothctl(&["--json", "inspect", "ima", "--entries", text(&path)]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let view = json(&output);
    assert_eq!(view["problems_total"], 2);
    assert_eq!(view["problems"][0]["line"], 8);
    assert_eq!(view["problems"][1]["line"], 10);
    assert_eq!(view["list"].as_array().unwrap().len(), 19);

    std::fs::write(&path, "no list\n").unwrap();
    let output = trothctl(&["inspect", "ima", text(&path)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("not an IMA list"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_runtime_policy_is_made_from_a_list_and_from_an_allowlist() {
    let list = fixture("boots/grub/ima-ascii_runtime_measurements");
    let output = trothctl(&["policy", "create", "runtime", "--ima-list", text(&list)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let policy = json(&output);
    assert!(policy["digests"]["/usr/lib/systemd/systemd"][0].is_string());

    let directory = tempfile::tempdir().unwrap();
    let (allow, exclude) = (
        directory.path().join("allow"),
        directory.path().join("exclude"),
    );
    let made = directory.path().join("policy.json");
    std::fs::write(&allow, format!("{}  /usr/bin/true\n", "ab".repeat(32))).unwrap();
    std::fs::write(&exclude, "/tmp/.*\n").unwrap();
    let create = ["policy", "create", "runtime", "--allowlist", text(&allow)];
    let rest = ["--exclude", text(&exclude), "--output", text(&made)];
    let output = trothctl(&[&create[..], &rest[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
    let policy: Value = serde_json::from_slice(&std::fs::read(&made).unwrap()).unwrap();
    assert_eq!(policy["digests"]["/usr/bin/true"][0], "ab".repeat(32));
    assert_eq!(policy["excludes"][0], "/tmp/.*");

    std::fs::write(&exclude, "(\n").unwrap();
    let output = trothctl(&[&create[..], &rest[..]].concat());
    assert_eq!(
        output.status.code(),
        Some(1),
        "an exclude that is no regular expression"
    );
}

#[test]
fn what_is_no_quote_is_an_error_that_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad");
    for bad in [
        "",
        "r",
        "rAA:BB",
        "{}",
        "{\"results\":[]}",
        "rAAAA:AAAA:AAAA",
        "\u{1b}[31m",
    ] {
        std::fs::write(&path, bad).unwrap();
        let output = trothctl(&["inspect", "quote", text(&path)]);
        assert_eq!(output.status.code(), Some(1), "{bad:?}");
        assert!(stderr(&output).contains(text(&path)), "{}", stderr(&output));
        assert!(!stderr(&output).contains('\x1b'));
    }
    let output = trothctl(&["inspect", "quote", "/nonexistent"]);
    assert!(
        stderr(&output).contains("cannot read /nonexistent"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_ca_and_what_it_issued_are_shown() {
    let directory = tempfile::tempdir().unwrap();
    let name = |common_name: &str| {
        let mut parameters = rcgen::CertificateParams::default();
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, common_name);
        parameters
    };
    let mut parameters = name("Troth CA");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = parameters.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(parameters, &ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let client = name("client").signed_by(&key, &issuer).unwrap();
    let foreign = name("foreign").self_signed(&key).unwrap();
    for (file, certificate) in [
        ("cacert.crt", &ca),
        ("client-cert.crt", &client),
        ("other.crt", &foreign),
    ] {
        std::fs::write(directory.path().join(file), certificate.pem()).unwrap();
    }

    let output = trothctl(&["--ca-dir", text(directory.path()), "--json", "ca", "show"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let shown = json(&output);
    assert_eq!(shown["ca"]["subject"], "CN=Troth CA");
    assert_eq!(shown["ca"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(shown["issued"][0]["file"], "client-cert.crt");
    assert_eq!(shown["issued"][0]["issued_by_ca"], true);
    assert_eq!(shown["issued"][1]["issued_by_ca"], false);

    let output = trothctl(&["--ca-dir", text(directory.path()), "ca", "show"]);
    assert!(
        stdout(&output).contains("NOT by this CA"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn completions_and_manual_pages_are_complete() {
    for shell in ["bash", "zsh", "fish"] {
        let output = trothctl(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("registrar"), "{shell}");
    }
    let directory = tempfile::tempdir().unwrap();
    let output = trothctl(&["man", text(directory.path())]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for page in [
        "trothctl.1",
        "trothctl-agent.1",
        "trothctl-agent-add.1",
        "trothctl-man.1",
    ] {
        assert!(directory.path().join(page).exists(), "{page}");
    }
    let page = std::fs::read_to_string(directory.path().join("trothctl.1")).unwrap();
    for section in [
        "EXIT STATUS",
        "JSON",
        "CONFIGURATION",
        "ENVIRONMENT",
        "FILES",
    ] {
        assert!(page.contains(&format!(".SH \"{section}\"")), "{section}");
    }
    let page = std::fs::read_to_string(directory.path().join("trothctl-agent-add.1")).unwrap();
    for section in ["EXAMPLES", "EXIT STATUS", "SEE ALSO"] {
        assert!(page.contains(&format!(".SH \"{section}\"")), "{section}");
    }
    let help = trothctl(&["agent", "add", "--help"]);
    assert!(stdout(&help).contains("Examples:"), "{}", stdout(&help));
    let help = trothctl(&["--help"]);
    assert!(stdout(&help).contains("Exit status:"));
}

#[test]
fn a_mistake_in_the_configuration_is_named_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trothctl.toml");
    for (content, wanted) in [
        ("max_retries = 1\nmax_retry = 2\n", "line 2"),
        ("verifier_port = 'x'\n", "line 1"),
    ] {
        std::fs::write(&path, content).unwrap();
        let output = trothctl(&["--config", text(&path), "agent", "list"]);
        assert_eq!(output.status.code(), Some(1));
        let error = stderr(&output);
        assert!(
            error.contains("trothctl.toml") && error.contains(wanted),
            "{error}"
        );
    }
    // What needs no server needs no configuration either.
    let quote = captured_quote(directory.path(), "grub");
    let output = trothctl(&["--config", text(&path), "inspect", "quote", text(&quote)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

/// A bundle of a node that passed, with the policies that it was judged by.
fn kept_bundle() -> PathBuf {
    fixture("../fuzz/corpus/bundle/trusted")
}

#[test]
fn a_bundle_is_judged_by_what_the_operator_names() {
    let bundle = kept_bundle();
    let judged = trothctl(&["--json", "appraise", text(&bundle), "--embedded-policies"]);
    assert_eq!(judged.status.code(), Some(0), "{judged:?}");
    let report = json(&judged);
    assert_eq!(report["verdict"], "trusted");
    let appraised = &report["bundles"][0];
    assert_eq!(appraised["same_as_recorded"], true);
    assert_eq!(appraised["runtime_policy"]["from"], "bundle");

    let shown = trothctl(&["appraise", text(&bundle), "--embedded-policies"]);
    let shown = stdout(&shown);
    for line in [
        "trusted",
        "the same",
        "Not proved by this",
        "Freshness",
        "Whose",
        "By which rules",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }

    // Nothing is judged by less than it was.
    let without = trothctl(&["appraise", text(&bundle)]);
    assert_eq!(without.status.code(), Some(1));
    assert!(stderr(&without).contains("name its file with --policy"));

    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.json");
    std::fs::write(&empty, EMPTY_POLICY).unwrap();
    let other = trothctl(&[
        "--json",
        "appraise",
        text(&bundle),
        "--policy",
        text(&empty),
    ]);
    assert_eq!(other.status.code(), Some(3), "{other:?}");
    let appraised = &json(&other)["bundles"][0];
    assert_eq!(appraised["runtime_policy"]["as_recorded"], false);
    assert_eq!(appraised["recorded_verdict"], "trusted");
    assert_eq!(appraised["same_as_recorded"], false);

    // Of several, none is the one.
    let third = directory.path().join("third.json");
    std::fs::write(&third, format!("{EMPTY_POLICY}\n")).unwrap();
    let options = ["--policy", text(&empty), "--policy", text(&third)];
    let several = trothctl(&[&["appraise", text(&bundle)], &options[..]].concat());
    assert_eq!(several.status.code(), Some(2));
    assert!(stderr(&several).contains("which of the 2 policies?"));
}

#[test]
fn what_a_bundle_says_of_itself_counts_only_where_the_operator_takes_it() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(kept_bundle()).unwrap();
    let runtime = directory.path().join("runtime.json");
    let forged = directory.path().join("forged");
    let refstate = directory.path().join("refstate.json");
    let mut bundle = Bundle::parse(&bytes).unwrap();
    std::fs::write(&runtime, bundle.runtime_policy.unwrap()).unwrap();
    let nobody = r#"{"has_secureboot": true, "scrtm_and_bios": [], "pk": [], "kek": [], "db": [],
        "dbx": [], "vendor_db": [], "kernels": [], "mokdig": [], "mokxdig": []}"#;
    std::fs::write(&refstate, nobody).unwrap();
    let honest = bundle.head.criteria.clone().unwrap();
    let mut judged = |criteria: &Criteria, options: &[&str]| {
        bundle.head.criteria = Some(criteria.clone());
        std::fs::write(&forged, bundle.to_bytes().unwrap()).unwrap();
        let named = [
            "--json",
            "appraise",
            text(&forged),
            "--policy",
            text(&runtime),
        ];
        trothctl(&[&named[..], options].concat())
    };
    let strict = ["--boot-policy", text(&refstate)];

    let mut criteria = honest.clone();
    criteria.boot_engine = BootEngine::AcceptAll;
    let failed = judged(&criteria, &strict);
    assert_eq!(failed.status.code(), Some(3), "{failed:?}");
    let report = json(&failed);
    assert_eq!(
        report["bundles"][0]["rules"]["boot_engine"]["from"],
        "default"
    );
    assert!(report["not_proved"].to_string().contains("accept-all"));
    let taken = judged(&criteria, &[&strict[..], &["--embedded-policies"]].concat());
    let report = json(&taken);
    let engine = &report["bundles"][0]["rules"]["boot_engine"];
    assert_eq!(engine["value"], "accept-all");
    assert_eq!(engine["from"], "bundle");
    let notes = report["not_proved"].to_string();
    assert!(
        notes.contains("chose itself: boot engine accept-all"),
        "{notes}"
    );
    let given = [&strict[..], &["--boot-engine", "accept-all"]].concat();
    let report = json(&judged(&honest, &given));
    assert_eq!(
        report["bundles"][0]["rules"]["boot_engine"]["from"],
        "given"
    );
}

const EMPTY_POLICY: &str = r#"{
    "meta": {"version": 1, "generator": 0}, "release": 0, "digests": {}, "excludes": [],
    "keyrings": {}, "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1"}, "ima-buf": {},
    "verification-keys": ""
}"#;

#[test]
fn a_bundle_that_a_node_made_needs_no_verifier() {
    let own = fixture("../fuzz/corpus/bundle/own");
    // It had run what nobody allowed.
    let judged = trothctl(&["--json", "appraise", text(&own)]);
    assert_eq!(judged.status.code(), Some(3), "{judged:?}");
    let report = json(&judged);
    assert_eq!(report["bundles"][0]["recorded_verdict"], Value::Null);
    assert!(report["not_proved"].to_string().contains("by no policy"));
}

#[test]
fn what_is_no_bundle_and_what_is_anothers_is_refused() {
    let policy = fixture("boots/uki/ak.pub");
    let no_bundle = trothctl(&["appraise", text(&policy)]);
    assert_eq!(no_bundle.status.code(), Some(1));
    assert!(
        stderr(&no_bundle).contains("not an evidence bundle"),
        "{no_bundle:?}"
    );

    let (bundle, own) = (kept_bundle(), fixture("../fuzz/corpus/bundle/own"));
    let foreign = [
        "appraise",
        text(&bundle),
        "--embedded-policies",
        "--ak",
        text(&policy),
    ];
    let foreign = trothctl(&foreign);
    assert_eq!(foreign.status.code(), Some(3), "{foreign:?}");

    let name = json(&trothctl(&["--json", "appraise", text(&own)]))["bundles"][0]["ak_name"]
        .as_str()
        .unwrap()
        .to_owned();
    let known = trothctl(&["appraise", text(&own), "--ak", &name]);
    assert!(!stdout(&known).contains("Whose"), "{known:?}");

    let directory = tempfile::tempdir().unwrap();
    let nothing = trothctl(&["appraise", text(directory.path())]);
    assert!(stderr(&nothing).contains("no *.evidence.gz"), "{nothing:?}");
    let late = [
        "appraise",
        text(&bundle),
        "--embedded-policies",
        "--nonce",
        "mine",
    ];
    assert_eq!(trothctl(&late).status.code(), Some(3));
}

#[test]
fn a_finding_is_explained_without_a_server() {
    let output = trothctl(&["explain", "measured_boot.invalid_pcr_4"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for part in [
        "Component: measured boot",
        "Usual causes: - ",
        "systemd-analyze pcrs 4",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let entry = json(&trothctl(&[
        "--json",
        "explain",
        "measured_boot.invalid_pcr_4",
    ]));
    assert_eq!(entry["kind"], "measured_boot.invalid_pcr_<n>");
    let all = json(&trothctl(&["--json", "explain"]));
    let all = all["findings"].as_array().unwrap();
    assert!(all.iter().any(|one| one["id"] == "ima.pcr_mismatch"));
    let table = trothctl(&["explain"]);
    assert_eq!(stdout(&table).lines().count(), 1 + all.len());

    let unknown = trothctl(&["explain", "ima.nothing_like_it"]);
    assert_eq!(unknown.status.code(), Some(5));
    assert!(
        stderr(&unknown).contains("`trothctl explain`"),
        "{}",
        stderr(&unknown)
    );
}
