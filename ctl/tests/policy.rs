//! `trothctl policy ...` with files alone.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

/// A directory with files, and trothctl in it.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs a command line and checks its exit status.
    fn ends(&self, line: &str, status: i32) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_trothctl"))
            .args(line.split(' '))
            .env("TROTH_CTL_STATE_DIR", self.0.path())
            .current_dir(self.0.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status), "{line}: {output:?}");
        output
    }

    fn text(&self, line: &str, status: i32) -> String {
        let output = self.ends(line, status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn error(&self, line: &str, status: i32) -> String {
        let output = self.ends(line, status);
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, line: &str, status: i32) -> Value {
        serde_json::from_str(&self.text(&format!("--json {line}"), status)).unwrap()
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

fn digest(byte: &str) -> String {
    byte.repeat(32)
}

/// Two policies made of allowlists, `old.json` and `new.json`.
fn two_policies() -> Desk {
    let desk = Desk::new();
    let (a, b, c) = (digest("aa"), digest("bb"), digest("cc"));
    desk.write(
        "old.txt",
        format!("{a}  /kept\n{b}  /gone\n{b}  /other version\n"),
    );
    desk.write(
        "new.txt",
        format!("{a}  /kept\n{c}  /new\n{c}  /other version\n{c}  %keyring:.ima\n"),
    );
    desk.write("exclude.txt", "# temporary\n/tmp/.*\n");
    desk.text(
        "policy convert old.txt --exclude exclude.txt -o old.json",
        0,
    );
    desk.text("policy convert new.txt -o new.json", 0);
    desk
}

#[test]
fn a_list_becomes_a_policy_and_a_list_again() {
    let desk = two_policies();
    let policy: Value = serde_json::from_str(&desk.read("old.json")).unwrap();
    assert_eq!(policy["digests"]["/other_version"], json!([digest("bb")]));
    assert_eq!(policy["excludes"], json!(["/tmp/.*"]));
    let (a, b) = (digest("aa"), digest("bb"));
    assert_eq!(
        desk.text("policy convert old.json --to allowlist", 0),
        format!("{b}  /gone\n{a}  /kept\n{b}  /other_version\n")
    );
    assert_eq!(
        desk.text("policy convert old.json --to excludes", 0),
        "/tmp/.*\n"
    );
    // What has no place in the list is told.
    let told = desk.error("policy convert old.json --to allowlist", 0);
    assert!(told.contains("1 excludes"), "{told}");
    let error = desk.error("policy convert old.json --to tpm", 2);
    assert!(error.contains("--to"), "{error}");
}

#[test]
fn an_older_policy_is_brought_to_the_present_version() {
    let desk = Desk::new();
    let old = json!({"meta": {"version": 5}, "release": 0, "hashes": {"/a b": [digest("aa")]},
        "keyrings": {}, "ima": {"ignored_keyrings": []}});
    desk.write("legacy.json", old.to_string());
    let new: Value = serde_json::from_str(&desk.text("policy convert legacy.json", 0)).unwrap();
    assert_eq!(new["digests"], json!({"/a_b": [digest("aa")]}));
    assert_eq!(new["meta"]["version"], 1);
}

#[test]
fn a_difference_is_shown_and_is_exit_status_1() {
    let desk = two_policies();
    let text = desk.text("policy diff old.json new.json", 1);
    let expected = format!(
        "--- old.json\n+++ new.json\nFiles: 1 added, 1 removed, 1 changed\n\
         - /gone\n    - {b}\n+ /new\n    + {c}\n~ /other_version\n    - {b}\n    + {c}\n\
         Keyrings: 1 added, 0 removed, 0 changed\n+ .ima\n    + {c}\n\
         Excludes\n- /tmp/.*\n",
        b = digest("bb"),
        c = digest("cc"),
    );
    // The second may have passed between the two.
    assert!(text.starts_with(&expected), "{text}");
    let json = desk.json("policy diff old.json new.json", 1);
    assert_eq!(json["same"], false);
    assert_eq!(json["digests"]["/new"]["kind"], "added");
    assert_eq!(json["excludes"]["removed"], json!(["/tmp/.*"]));
    assert_eq!(desk.json("policy diff old.json old.json", 0)["same"], true);
    assert_eq!(desk.text("policy diff old.json old.json", 0), "");
    // As diff(1) does, what cannot be compared is told from what differs.
    desk.ends("policy diff old.json none.json", 2);
    desk.write("tpm.json", r#"{"7": "aa"}"#);
    let error = desk.error("policy diff old.json tpm.json", 2);
    assert!(error.contains("tpm.json is a TPM policy"), "{error}");
}

#[test]
fn policies_of_pcrs_and_of_boots_are_compared_too() {
    let desk = Desk::new();
    desk.write("a.json", r#"{"7": ["aa", "bb"], "mask": "0x480"}"#);
    desk.write("b.json", r#"{"7": ["bb"], "0": "cc"}"#);
    let json = desk.json("policy diff a.json b.json", 1);
    assert_eq!(
        json["pcrs"]["7"],
        json!({"kind": "changed", "removed": ["aa"], "added": []})
    );
    assert_eq!(json["pcrs"]["0"]["kind"], "added");
    assert_eq!(json["members"]["/mask"], json!(["\"0x480\"", "\"0x81\""]));
    let merged = desk.text("policy merge a.json b.json", 0);
    assert_eq!(
        merged,
        "{\"0\": [\"cc\"], \"7\": [\"aa\", \"bb\"], \"mask\": \"0x481\"}\n"
    );
    desk.write("empty.json", "{}");
    desk.ends("policy diff empty.json empty.json", 0);
    assert!(
        desk.text("policy show empty.json", 0)
            .contains("boot policy")
    );
    assert!(desk.text("policy show a.json", 0).contains("TPM policy"));
}

#[test]
fn merged_policies_allow_what_either_allows() {
    let desk = two_policies();
    let one = desk.text("policy merge old.json new.json", 0);
    let other = desk.text("policy merge new.json old.json", 0);
    assert_eq!(one, other);
    let merged: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(merged["digests"].as_object().unwrap().len(), 4);
    assert_eq!(
        merged["digests"]["/other_version"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let contradicting = desk.read("new.json").replace("\"sha1\"", "\"sha256\"");
    desk.write("sha256.json", contradicting);
    let error = desk.error("policy merge old.json sha256.json", 1);
    assert!(
        error.contains("`ima.log_hash_alg` is sha1 in one and sha256"),
        "{error}"
    );
}

#[test]
fn what_a_policy_holds_is_shown() {
    let desk = two_policies();
    let text = desk.text("policy show old.json", 0);
    for line in [
        "Kind: runtime policy",
        "Files: 3",
        "Digests: 3 of 256 bits",
        "Excludes: 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let json = desk.json("policy show old.json", 0);
    assert_eq!(json["summary"]["files"], 3);
    assert_eq!(json["file"], "old.json");
    assert_eq!(
        desk.text("policy show old.json -o -", 0),
        desk.read("old.json")
    );
    desk.write(
        "bad.json",
        desk.read("old.json").replace("\"release\"", "\"relese\""),
    );
    assert!(
        desk.text("policy show bad.json", 1)
            .contains("missing field `release`")
    );
    desk.write("letter", "Dear operator,\n");
    assert!(
        desk.text("policy show letter", 1)
            .contains("no policy of any kind")
    );
}

#[test]
fn a_policy_is_signed_and_verified_by_key() {
    let desk = two_policies();
    let told = desk.text(
        "policy sign old.json --new-key signer.pem -o signed.json",
        0,
    );
    let public = &told[told.find("-----BEGIN").unwrap()..];
    desk.write("signer.pub", public);
    let mode = std::fs::metadata(desk.path("signer.pem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        desk.text("policy verify signed.json --key signer.pub", 0)
            .contains("signed by one")
    );
    // A key is never overwritten.
    let key = desk.read("signer.pem");
    let error = desk.error("policy sign old.json --new-key signer.pem -o again.json", 1);
    assert!(
        error.contains("--new-key: signer.pem is there already"),
        "{error}"
    );
    assert!(error.contains("--key signer.pem"), "{error}");
    assert_eq!(desk.read("signer.pem"), key);
    assert!(!desk.path("again.json").exists());
    // A second signature; each signer is found.
    let told = desk.json(
        "policy sign signed.json --new-key second.pem -o twice.json",
        0,
    );
    assert_eq!(told["signatures"], 2);
    desk.write("second.pub", told["public_key"].as_str().unwrap());
    for key in ["signer.pub", "second.pub"] {
        let json = desk.json(&format!("policy verify twice.json --key {key}"), 0);
        let by: Vec<_> = json["signatures"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["by"])
            .collect();
        assert_eq!(by.iter().filter(|by| by.is_string()).count(), 1, "{json}");
    }
    // The other key alone, no key, no signature, another text.
    desk.ends("policy verify signed.json --key second.pub", 3);
    let error = desk.error("policy verify signed.json", 2);
    assert!(error.contains("--key or --ca"), "{error}");
    assert!(
        desk.text("policy verify old.json --key signer.pub", 3)
            .contains("NOT signed at all")
    );
    let mut envelope: Value = serde_json::from_str(&desk.read("signed.json")).unwrap();
    let other = desk.read("old.json").replace("/gone", "/here");
    envelope["payload"] = json!(BASE64_STANDARD.encode(other));
    desk.write("forged.json", envelope.to_string());
    let text = desk.text("policy verify forged.json --key signer.pub", 3);
    assert!(text.contains("none of the keys made it"), "{text}");
    // The plain policy comes out only with its signer named.
    desk.ends("policy convert signed.json", 1);
    let advice = desk.error("policy convert signed.json --key second.pub", 3);
    assert!(advice.contains("--key or --ca of policy"), "{advice}");
    assert_eq!(
        desk.text("policy convert signed.json --key signer.pub", 0),
        desk.read("old.json")
    );
}

#[test]
fn a_key_is_not_overwritten_by_what_is_signed_with_it() {
    let desk = two_policies();
    desk.ends(
        "policy sign old.json --new-key signer.pem -o signed.json",
        0,
    );
    let key = desk.read("signer.pem");
    std::os::unix::fs::symlink("signer.pem", desk.path("link")).unwrap();
    for (line, status) in [
        ("--key signer.pem --cert-out signer.pem", 1),
        ("--key signer.pem --cert-out link", 1),
        ("--key signer.pem -o signer.pem", 2),
        ("--key signer.pem -o ./signer.pem", 2),
        ("--key signer.pem -o link", 2),
        ("--new-key fresh.pem -o fresh.pem", 2),
        ("--new-key fresh.pem --cert-out fresh.crt -o fresh.crt", 2),
    ] {
        desk.ends(&format!("policy sign old.json {line}"), status);
        assert_eq!(desk.read("signer.pem"), key, "{line}");
    }
    assert!(!desk.path("fresh.pem").exists());
    // Standard output has the policy alone, and an older file keeps its mode.
    let printed = desk.json("policy sign old.json --key signer.pem -o -", 0);
    assert!(printed["payload"].is_string());
    let mode = |bits| std::fs::Permissions::from_mode(bits);
    std::fs::set_permissions(desk.path("signed.json"), mode(0o640)).unwrap();
    desk.ends("policy sign old.json --key signer.pem -o signed.json", 0);
    let kept = std::fs::metadata(desk.path("signed.json")).unwrap();
    assert_eq!(kept.permissions().mode() & 0o777, 0o640);
    let names = std::fs::read_dir(desk.path("")).unwrap();
    let left = names.filter(|name| {
        let name = name.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".tmp")
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn a_policy_cannot_write_to_the_terminal() {
    let desk = two_policies();
    let mut policy: Value = serde_json::from_str(&desk.read("old.json")).unwrap();
    policy["meta"]["timestamp"] = json!("now\u{1b}]0;owned\u{7}\u{1b}[2J");
    desk.write("hostile.json", policy.to_string());
    let shown = desk.text("policy show hostile.json", 0);
    assert!(shown.contains("owned"), "{shown}");
    assert!(!shown.contains(['\u{1b}', '\u{7}']), "{shown:?}");
}

#[test]
fn a_signer_is_known_by_the_ca_of_the_certificate() {
    let desk = two_policies();
    let vectors = std::fs::read(fixture("vectors/policy-signer.json")).unwrap();
    let vectors: Value = serde_json::from_slice(&vectors).unwrap();
    for name in ["sec1", "ca", "signer", "server"] {
        desk.write(name, vectors[name].as_str().unwrap());
    }
    desk.text(
        "policy sign old.json --key sec1 --cert signer -o signed.json",
        0,
    );
    let text = desk.text("policy verify signed.json --ca ca", 0);
    assert!(
        text.contains("Policy team") && text.contains("issued by"),
        "{text}"
    );
    let shown = desk.text("policy show signed.json", 0);
    assert!(
        shown.contains("runtime policy, signed") && shown.contains("Policy team"),
        "{shown}"
    );
    desk.text(
        "policy sign old.json --key sec1 --cert server -o server.json",
        0,
    );
    let text = desk.text("policy verify server.json --ca ca", 3);
    assert!(text.contains("codeSigning"), "{text}");
    // A certificate that nobody issued counts only if it is named itself.
    desk.text(
        "policy sign old.json --key sec1 --cert-out own.crt -o own.json",
        0,
    );
    desk.ends("policy verify own.json --ca ca", 3);
    desk.ends("policy verify own.json --key own.crt", 0);
    desk.ends("policy verify own.json --key ca", 3);
    for (line, status, reason) in [
        (
            "policy sign old.json --key sec1 --cert ca",
            1,
            "another key",
        ),
        ("policy sign old.json --key ca", 1, "no private key"),
        (
            "policy sign old.json --key sec1 --backend x509",
            2,
            "--cert",
        ),
        ("policy sign old.txt --key sec1", 1, "not JSON"),
    ] {
        let error = desk.error(line, status);
        assert!(error.contains(reason), "{line}: {error}");
    }
}

#[test]
fn a_policy_of_pcrs_is_made_of_what_there_is() {
    let desk = Desk::new();
    let pcrs = |bank: &str, size: usize| {
        let lines: String = (0..24)
            .map(|pcr| format!("    {pcr:<2}: 0x{}\n", format!("{pcr:02X}").repeat(size)))
            .collect();
        format!("  {bank}:\n{lines}")
    };
    desk.write("pcrs.txt", pcrs("sha1", 20) + &pcrs("sha256", 32));
    let expected = format!(
        "{{\"0\": [\"{}\"], \"7\": [\"{}\"], \"mask\": \"0x81\"}}\n",
        digest("00"),
        digest("07")
    );
    assert_eq!(
        desk.text("policy create tpm --pcrread pcrs.txt --pcr 0,7", 0),
        expected
    );
    assert_eq!(
        desk.text("policy create tpm --pcrread pcrs.txt --mask 0x81", 0),
        expected
    );
    let sha1 = desk.text(
        "policy create tpm --pcrread pcrs.txt --pcr 7 --bank sha1",
        0,
    );
    assert!(sha1.contains(&format!("\"{}\"", "07".repeat(20))), "{sha1}");
    let told = desk.ends("policy create tpm --pcrread pcrs.txt --pcr 7,10", 0);
    assert!(String::from_utf8_lossy(&told.stderr).contains("PCR 10"));
    desk.ends(
        "policy create tpm --pcrread pcrs.txt --pcr 7 --bank sha384",
        1,
    );
    desk.ends("policy create tpm --pcrread pcrs.txt", 2);
    for nothing in ["--pcr 10", "--pcr 16,10", "--mask 0x0"] {
        let line = format!("policy create tpm --pcrread pcrs.txt {nothing} -o none.json");
        let error = desk.error(&line, 2);
        assert!(error.contains("no PCR for a policy: PCR 10"), "{error}");
        assert!(!desk.path("none.json").exists());
    }

    std::fs::create_dir(desk.path("pcr-sha256")).unwrap();
    for pcr in [0, 7] {
        desk.write(
            &format!("pcr-sha256/{pcr}"),
            format!("{:02X}", pcr).repeat(32) + "\n",
        );
    }
    assert_eq!(
        desk.text("policy create tpm --sysfs . --pcr 0,7", 0),
        expected
    );
    desk.ends("policy create tpm --sysfs . --pcr 0,8", 1);
}

#[test]
fn a_policy_of_pcrs_is_made_of_a_quote() {
    let desk = Desk::new();
    let part = |extension: &str| {
        let name = format!("boots/uki/quote-rsa.{extension}");
        BASE64_STANDARD.encode(std::fs::read(fixture(&name)).unwrap())
    };
    let quote = format!("r{}:{}:{}", part("msg"), part("sig"), part("pcrs"));
    desk.write("quote", &quote);
    desk.write(
        "ak.pub",
        std::fs::read(fixture("boots/uki/ak.pub")).unwrap(),
    );
    let policy = desk.text("policy create tpm --quote quote --pcr 0,7", 0);
    let policy: Value = serde_json::from_str(&policy).unwrap();
    let shown = desk.json("inspect quote quote", 0);
    for pcr in ["0", "7"] {
        assert_eq!(policy[pcr][0], shown["pcrs"][pcr]);
    }
    assert_eq!(policy["mask"], "0x81");
    let told = desk.error("policy create tpm --quote quote --pcr 0", 0);
    assert!(told.contains("--ak"), "{told}");
    assert_eq!(
        desk.error("policy create tpm --quote quote --ak ak.pub --pcr 0", 0),
        ""
    );
    desk.write(
        "ak2.pub",
        std::fs::read(fixture("boots/grub/ak.pub")).unwrap(),
    );
    let error = desk.error(
        "policy create tpm --quote quote --ak ak2.pub --pcr 0 -o x",
        3,
    );
    assert!(error.contains("quote: the quote is not valid: "), "{error}");
    assert!(!desk.path("x").exists());
}

#[test]
fn a_boot_policy_is_made_of_both_logs_and_converted_from_a_refstate() {
    let desk = Desk::new();
    for name in ["binary_bios_measurements", "tpm2-measure.log"] {
        let log = std::fs::read(fixture(&format!("boots/uki/{name}"))).unwrap();
        desk.write(name, log);
    }
    let firmware = "policy create boot --without-secureboot --event-log binary_bios_measurements";
    let both = format!("{firmware} --measure-log tpm2-measure.log");
    assert!(!desk.text(firmware, 0).contains("[phases]"));
    let made = desk.text(&both, 0);
    for part in ["[phases]", "\"shutdown\"", "machine-id:affd963e"] {
        assert!(made.contains(part), "{part}: {made}");
    }
    desk.write("made.toml", &made);
    desk.ends("policy show made.toml", 0);
    let error = desk.error(&format!("{both} --format keylime"), 2);
    assert!(error.contains("--measure-log"), "{error}");
    let error = desk.error(&format!("{firmware} --format keylime -o state.json"), 1);
    assert!(error.contains("use --format troth"), "{error}");
    assert!(!desk.path("state.json").exists());
    let torn = std::fs::read(desk.path("tpm2-measure.log")).unwrap();
    desk.write("tpm2-measure.log", &torn[..torn.len() - 1]);
    assert!(desk.error(&both, 1).contains("never ended"));

    let vectors = std::fs::read(fixture("vectors/boot-log.json")).unwrap();
    let vectors: Value = serde_json::from_slice(&vectors).unwrap();
    let log = BASE64_STANDARD.decode(vectors["log"].as_str().unwrap());
    desk.write("log", log.unwrap());
    desk.ends(
        "policy create boot --event-log log --format keylime -o state.json",
        0,
    );
    let told = desk.error("policy convert state.json --to boot-toml -o ours.toml", 0);
    assert!(told.contains("more than one kernel"), "{told}");
    let json = desk.text("policy convert ours.toml --to boot", 0);
    let policy: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(policy["version"], 1);
    assert_eq!(policy["secure_boot"]["enabled"], true);
}

/// Two boot policies of ours, `old.toml` and `new.toml`.
fn two_boot_policies() -> Desk {
    let desk = Desk::new();
    let policy = |kernel: &str, line: &str, more: &str| {
        format!(
            "version = 1\ncommand_line = ['root=a', '{line}']\n[secure_boot]\nenabled = true\n\
             db = [{{ sha256 = 'sha256:{a}', subject = 'CN=Vendor' }}]\n\
             [order]\n4 = ['separator', 'kernel']\n\
             [[component]]\nname = 'firmware'\ndigests = ['sha256:{a}']\n\
             [[component]]\nname = 'kernel'\ndigests = ['sha256:{kernel}']\n{more}",
            a = digest("aa"),
        )
    };
    let driver = "[[component]]\nname = 'driver'\nany = true\n";
    desk.write("old.toml", policy(&digest("bb"), "root=b", ""));
    desk.write("new.toml", policy(&digest("cc"), "root=c", driver));
    desk
}

#[test]
fn boot_policies_are_compared_by_pcr_and_component() {
    let desk = two_boot_policies();
    let text = desk.text("policy diff old.toml new.toml", 1);
    let expected = format!(
        "--- old.toml\n+++ new.toml\nComponents: 1 added, 0 removed, 2 changed\n\
         + PCR 2: driver\n    + anything\n    + times 1 or more\n\
         ~ PCR 4: kernel\n    - sha256:{b}\n    + sha256:{c}\n\
         ~ PCR 8, 12: command_line\n    - text root=b\n    + text root=c\n",
        b = digest("bb"),
        c = digest("cc"),
    );
    assert_eq!(text, expected);
    let json = desk.json("policy diff old.toml new.toml", 1);
    assert_eq!(json["components"]["PCR 2: driver"]["kind"], "added");
    // Where components stand makes no difference.
    let moved = desk.read("new.toml");
    let (head, tail) = moved.split_once("[[component]]").unwrap();
    let parts: Vec<_> = tail.split("[[component]]").collect();
    let back: String = parts
        .iter()
        .rev()
        .map(|part| format!("[[component]]{part}"))
        .collect();
    desk.write("moved.toml", head.to_owned() + &back);
    assert_eq!(
        desk.json("policy diff new.toml moved.toml", 0)["same"],
        true
    );
    desk.write(
        "others.toml",
        "others = 'allow'\n".to_owned() + &moved.replace("'kernel']", "'x']"),
    );
    let text = desk.text("policy diff new.toml others.toml", 1);
    for line in [
        "Order of PCR 4, from event 2 on\n- kernel (2 events in all)\n+ x (2 events in all)\n",
        "/others: \"deny\" -> \"allow\"",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn merged_boot_policies_allow_what_either_allows() {
    let desk = two_boot_policies();
    let merge = |more: &str| {
        desk.ends(
            &format!("{more}policy merge old.toml new.toml -o both.toml"),
            0,
        )
    };
    let told = String::from_utf8(merge("").stderr).unwrap();
    assert!(
        told.contains(
            "old.toml with new.toml: PCR 2: in one of them alone, and may be absent now: driver"
        ),
        "{told}"
    );
    let told: Value = serde_json::from_slice(&merge("--json ").stderr).unwrap();
    assert_eq!(told["notes"].as_array().unwrap().len(), 1);
    for one in ["old.toml", "new.toml"] {
        let json = desk.json(&format!("policy diff {one} both.toml"), 1);
        for (place, change) in json["components"].as_object().unwrap() {
            let removed = change["removed"].as_array().unwrap();
            let lost = removed.iter().any(|one| one != "times 1 or more");
            assert!(!lost, "{one}, {place}: {change}");
        }
    }
    let shown = desk.json("policy show both.toml", 0);
    let entries = shown["summary"]["entries"].as_array().unwrap();
    let entry = |name: &str| entries.iter().find(|entry| entry["name"] == name).unwrap();
    assert_eq!(entry("kernel")["digests"].as_array().unwrap().len(), 2);
    assert_eq!(entry("firmware")["digests"].as_array().unwrap().len(), 1);
    assert_eq!(
        entry("command_line")["texts"],
        json!(["root=a", "root=b", "root=c"])
    );
    assert_eq!(
        shown["summary"]["order"]["4"],
        json!(["separator", "kernel"])
    );
    // With itself it is what it was.
    desk.ends("policy merge both.toml both.toml -o twice.toml", 0);
    desk.ends("policy diff both.toml twice.toml", 0);
    // What contradicts is told, all of it.
    let other = desk
        .read("new.toml")
        .replace("enabled = true", "enabled = false");
    desk.write("off.toml", "partition_table = 'any'\n".to_owned() + &other);
    let error = desk.error("policy merge old.toml off.toml", 1);
    for part in [
        "`secure_boot.enabled` is true in one",
        "partition_table is in one of them alone",
        "make them agree",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    desk.write("empty.json", "{}");
    let error = desk.error("policy merge old.toml empty.json", 1);
    assert!(error.contains("accepts every boot that replays"), "{error}");
    desk.ends("policy merge empty.json empty.json", 0);
}

#[test]
fn a_boot_policy_is_shown_component_by_component() {
    let desk = two_boot_policies();
    let shown = desk.text("policy show new.toml", 0);
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_ascii_whitespace().collect())
        .collect();
    for row in [
        "Secure Boot: on",
        "Other PCRs: must hold nothing",
        "PCR NAME TIMES ALLOWED",
        "2 driver 1 or more anything",
        &format!("4 kernel 1 sha256:{}", digest("cc")),
        "8, 12 command_line text root=a",
        "text root=c",
        &format!(
            "7 secure_boot.db key \"CN=Vendor\", sha256:{}",
            digest("aa")
        ),
        "In this order: PCR 4: separator, kernel",
    ] {
        let words: Vec<_> = row.split(' ').collect();
        assert!(rows.contains(&words), "{row}: {shown}");
    }
    let vectors = std::fs::read(fixture("vectors/boot-log.json")).unwrap();
    let vectors: Value = serde_json::from_slice(&vectors).unwrap();
    let log = BASE64_STANDARD.decode(vectors["log"].as_str().unwrap());
    desk.write("log", log.unwrap());
    desk.ends(
        "policy create boot --event-log log --format keylime -o state.json",
        0,
    );
    let shown = desk.text("policy show state.json", 0);
    for part in [
        "Keylime's refstate",
        "scrtm_and_bios",
        "kernels",
        "command line",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    desk.ends("policy merge state.json state.json -o twice.json", 0);
    desk.ends("policy diff state.json twice.json", 0);
    assert!(
        desk.text("policy diff state.json new.toml", 1)
            .contains("/form: \"refstate\" -> \"rules\"")
    );
}
