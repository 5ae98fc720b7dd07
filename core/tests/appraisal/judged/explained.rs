//! Every kind of finding, made by the real appraisal and kept as JSON in tests/fixtures/findings,
//! from which trothctl's explanations are tested. `TROTH_REWRITE=1` writes the files.

use std::collections::BTreeSet;
use std::path::Path;

use troth_core::policy::{BootEngine, BootRules, Refstate};

use super::*;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/findings");

/// The finding of `appraisal` with the id `id`.
fn one(appraisal: &Appraisal, id: &str) -> Finding {
    let found = findings(appraisal).iter().find(|finding| finding.id == id);
    found
        .unwrap_or_else(|| panic!("no {id}: {:?}", ids(appraisal)))
        .clone()
}

/// A node whose list has one file that its policy allows.
fn node_with_a_file() -> Node {
    let mut node = Node::new(Some(policy(&[("/usr/bin/a", [1; 32])])));
    node.measure("/usr/bin/a", &[1; 32]);
    node
}

/// A trusted node with an answer that `change` tampers with.
fn tampered(change: impl FnOnce(&mut QuoteResponse)) -> Appraisal {
    let mut node = node_with_a_file();
    assert_eq!(trusted(&node.attest()), 1);
    node.attest_with(change)
}

/// An `ima-buf` entry of `data` in `name` that says its digest is that of `digested`.
fn measure_buffer(node: &mut Node, name: &str, data: &[u8], digested: &[u8]) {
    let digest = HashAlgorithm::Sha256.digest(&[digested]);
    let mut template = 40u32.to_le_bytes().to_vec();
    template.extend(b"sha256:\0");
    template.extend(digest.as_bytes());
    template.extend(u32::try_from(name.len() + 1).unwrap().to_le_bytes());
    template.extend(name.as_bytes());
    template.push(0);
    template.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    template.extend(data);
    let printed = HashAlgorithm::Sha1.digest(&[&template]);
    let data = hex::encode(data);
    node.list.push(format!(
        "10 {printed} ima-buf sha256:{digest} {name} {data}\n"
    ));
    node.tpm
        .extend(10, HashAlgorithm::Sha256.digest(&[&template]).as_bytes());
}

fn of_the_quote() -> Vec<Finding> {
    let mut found = Vec::new();
    let mut node = node_with_a_file();
    let (_, asked, evidence) = node.ask();
    found.push(one(
        &node.judge("another nonce 123456", asked, &evidence),
        QUOTE,
    ));
    type Change = fn(&mut QuoteResponse);
    let changes: [(&str, Change); 5] = [
        ("qoute_validation.invalid_data", |e| e.quote.clear()),
        ("qoute_validation.invalid_hash_alg", |e| {
            e.hash_alg = "sha1".into()
        }),
        ("qoute_validation.invalid_enc_alg", |e| {
            e.enc_alg = "rsa1024".into()
        }),
        ("qoute_validation.invalid_sign_alg", |e| {
            e.sign_alg = "rsapss".into()
        }),
        ("qoute_validation.invalid_ima_entry_nb", |e| {
            e.ima_measurement_list_entry = Some(5);
        }),
    ];
    for (id, change) in changes {
        found.push(one(&tampered(change), id));
    }
    let appraisal = node_with_a_file().attest_with(|evidence| evidence.pubkey = None);
    found.push(one(&appraisal, "qoute_validation.no_pubkey"));
    found
}

fn of_pcrs() -> Vec<Finding> {
    let mut found = Vec::new();
    let other = NK.replace("agent's", "attacker's");
    let swapped = tampered(|evidence| evidence.pubkey = Some(other));
    found.push(one(&swapped, "pcr_validation.invalid_pcr_16"));
    let mut node = Node::new(None);
    let zero = Digest::zero(HashAlgorithm::Sha256);
    let text = format!(r#"{{"7":["{zero}"],"mask":"0x80"}}"#);
    node.tpm_policy = TpmPolicy::parse(&text).unwrap();
    node.tpm.extend(7, &[1; 32]);
    found.push(one(&node.attest(), "pcr_validation.invalid_pcr_7"));
    node.tpm_policy = TpmPolicy::parse(&text.replace("0x80", "0x1")).unwrap();
    found.push(one(&node.attest(), "pcr_validation.missing_pcrs"));
    let unused = tampered(|evidence| evidence.ima_measurement_list = None);
    assert!(matches!(unused.verdict, Verdict::Trusted(_)), "nothing new");
    let missing = node_with_a_file().attest_with(|evidence| evidence.ima_measurement_list = None);
    found.push(one(&missing, "pcr_validation.unused_pcr_10"));
    found
}

fn of_the_boot() -> Vec<Finding> {
    let mut found = Vec::new();
    let mut node = Node::of_boot("grub", None);
    node.boot_log = Some(fixture("boots/uki/binary_bios_measurements"));
    found.push(one(&node.attest(), "measured_boot.invalid_pcr_4"));
    let mut node = Node::of_boot("grub", None);
    node.tpm_policy = TpmPolicy::parse(r#"{"mask":"0xff"}"#).unwrap();
    found.push(one(&node.attest(), "measured_boot.missing_pcrs"));
    let mut node = Node::of_boot("grub", None);
    let missing = node.attest_with(|evidence| evidence.mb_measurement_list = None);
    found.push(one(&missing, "measured_boot.missing_log"));
    let undecodable = node.attest_with(|evidence| evidence.mb_measurement_list = Some("?".into()));
    found.push(one(&undecodable, "measured_boot.parser.log.base64decode"));
    let systemds = node.attest_with(|evidence| {
        evidence.userspace_measurement_list = Some(STANDARD.encode("no log"));
    });
    found.push(one(&systemds, "measured_boot.parser.userspace_log"));
    let mut log = node.boot_log.take().unwrap();
    log.truncate(log.len() - 1);
    node.boot_log = Some(log);
    found.push(one(&node.attest(), "measured_boot.parser.eventlog"));
    found
}

/// Boots under policies that do not allow them.
fn of_boot_policies() -> Vec<Finding> {
    let vector = vectors("boot-log.json");
    let bytes = STANDARD.decode(vector["log"].as_str().unwrap()).unwrap();
    let log = EventLog::parse(&bytes).unwrap();
    let state = Refstate::json_from_log(&log, true).unwrap();
    let mut state: Value = serde_json::from_str(&state).unwrap();
    state["kernels"][0]["kernel_cmdline"] = json!("/vmlinuz.* root=/dev/sdb1 ro");
    let state = state.to_string();
    let other = fixture("boots/uki/binary_bios_measurements");
    let other = EventLog::parse(&other).unwrap();
    let rules = BootRules::from_log(&other, None, Some(HashAlgorithm::Sha256), true).unwrap();
    let rules = rules.to_json();
    let cases = [
        ("measured_boot.policy_example", &state, BootEngine::Example),
        ("measured_boot.policy_troth", &rules, BootEngine::Example),
        (
            "measured_boot.policy_reject-all",
            &state,
            BootEngine::RejectAll,
        ),
    ];
    let found = cases.map(|(id, text, engine)| {
        let mut node = Node::new(None);
        for (pcr, value) in log.replay(HashAlgorithm::Sha256).iter() {
            node.tpm.pcrs.set(pcr, *value);
        }
        node.tpm.bind(NK);
        node.boot_log = Some(bytes.clone());
        node.boot = BootPolicy::parse_for(Some(text), engine).unwrap();
        node.tpm_policy = node.tpm_policy.with_mask(node.boot.mask());
        one(&node.attest(), id)
    });
    found.to_vec()
}

fn of_files() -> Vec<Finding> {
    let mut found = Vec::new();
    let mut node = node_with_a_file();
    node.measure("/tmp/evil", &[9; 32]);
    found.push(one(&node.attest(), NOT_LISTED));
    let mut node = Node::new(Some(policy(&[("/usr/bin/a", [1; 32])])));
    node.measure("/usr/bin/a", &[2; 32]);
    found.push(one(&node.attest(), WRONG_DIGEST));
    let mut node = node_with_a_file();
    node.list[0] = node.list[0].replace("/usr/bin/a", "/usr/bin/b");
    found.push(one(&node.attest(), "ima.validation.ima_hash"));
    found.push(one(&node.attest(), "ima.pcr_mismatch"));
    let mut node = node_with_a_file();
    node.list[0] = node.list[0].replacen("10", "11", 1);
    found.push(one(&node.attest(), "ima.validation.ima_pcr"));
    let mut node = node_with_a_file();
    node.list.insert(0, "10 no entry\n".to_owned());
    found.push(one(&node.attest(), "ima.parser.entry"));
    let mut node = node_with_a_file();
    measure_buffer(&mut node, ".ima", &ed25519(), &ed25519());
    found.push(one(&node.attest(), "ima.invalid_key"));
    let mut node = node_with_a_file();
    measure_buffer(&mut node, "kernel_info", b"one", b"another");
    found.push(one(&node.attest(), "ima.validation.ima-buf.digest"));
    let mut node = node_with_a_file();
    let shown = node.entry("/usr/bin/a", &[5; 32]).0;
    let show = |evidence: &mut QuoteResponse| {
        evidence
            .ima_measurement_list
            .as_mut()
            .unwrap()
            .push_str(&shown);
    };
    assert_eq!(trusted(&node.attest_with(show)), 1);
    found.push(one(&node.attest_with(show), "ima.quote_progress"));
    let mut node = Node::new(Some(policy(&[("/usr/bin/a", [1; 32])])));
    found.push(one(&node.attest(), "ima.nothing_measured"));
    let mut node = Node::of_vector(|_| {});
    node.tomtou = Tomtou::Fail;
    found.push(one(&node.attest(), "ima.validation.tomtou"));
    found.push(many_keys());
    for (mut node, id) in crate::devices::failing() {
        found.push(one(&node.attest(), id));
    }
    found
}

/// More keys than are remembered: one, in many keyrings that the policy excludes.
fn many_keys() -> Finding {
    let line = vector_lines()
        .into_iter()
        .find(|line| line.contains(" ima-buf ") && line.contains(" .ima "));
    let key = hex::decode(line.unwrap().trim_end().rsplit(' ').next().unwrap()).unwrap();
    let json = RuntimePolicy::json_from_allowlist("", "ring-.*", 0).unwrap();
    let mut node = Node::new(Some(RuntimePolicy::compile(json.as_bytes()).unwrap()));
    for ring in 0..100 {
        measure_buffer(&mut node, &format!("ring-{ring}"), &key, &key);
    }
    one(&node.attest(), "ima.too_many_keys")
}

/// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410).
fn ed25519() -> Vec<u8> {
    let mut key = hex::decode("302a300506032b6570032100").unwrap();
    key.extend([7; 32]);
    key
}

#[test]
fn the_kept_findings_are_what_the_appraisal_makes() {
    let made = [
        of_the_quote(),
        of_pcrs(),
        of_the_boot(),
        of_boot_policies(),
        of_files(),
    ]
    .concat();
    let mut ids = BTreeSet::new();
    for finding in &made {
        assert!(ids.insert(&finding.id), "{} is made twice", finding.id);
        let path = Path::new(DIRECTORY).join(format!("{}.json", finding.id));
        let text = serde_json::to_string_pretty(finding).unwrap() + "\n";
        if std::env::var_os("TROTH_REWRITE").is_some() {
            std::fs::create_dir_all(DIRECTORY).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == text,
            "{} is not what the appraisal makes now (TROTH_REWRITE=1 writes it, and then what \
             `cargo test -p troth-ctl explain` compares):\n{text}",
            path.display()
        );
    }
}
