use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use troth_core::appraise::{AcceptedAlgorithms, Finding, Place, Policies, appraise_evidence};
use troth_core::eventlog::EventLog;
use troth_core::policy::{
    BootEngine, BootPolicy, BootRules, CreateError, PolicyError, Refstate, TpmPolicy,
};
use troth_core::tpm::{HashAlgorithm, PcrValues};
use troth_core::wire::QuoteResponse;

use super::tpm::{Tpm, mask};
use super::{fixture, vectors};

const BANK: HashAlgorithm = HashAlgorithm::Sha256;

/// Logs of boots that have SHA-256 digests.
const LOGS: [&str; 8] = [
    "boots/grub/binary_bios_measurements",
    "boots/kernel/binary_bios_measurements",
    "boots/sdboot/binary_bios_measurements",
    "boots/uki/binary_bios_measurements",
    "public-logs/coreos_36_shielded_vm_no_secure_boot_eventlog",
    "public-logs/crypto_agile_eventlog",
    "public-logs/sb_cert_eventlog",
    "public-logs/ubuntu_2104_shielded_vm_no_secure_boot_eventlog",
];

/// What a host that booted as `log` tells is found guilty of.
fn judge(policy: &BootPolicy, log: &[u8]) -> Vec<Finding> {
    let pcrs = EventLog::parse(log).map(|log| log.replay(BANK));
    judge_with(policy, log, &pcrs.unwrap_or_else(|_| PcrValues::new(BANK)))
}

/// The same for a host with these PCRs.
fn judge_with(policy: &BootPolicy, log: &[u8], pcrs: &PcrValues) -> Vec<Finding> {
    let mut tpm = Tpm::new(BANK);
    pcrs.iter()
        .for_each(|(pcr, value)| tpm.pcrs.set(pcr, *value));
    let evidence = QuoteResponse {
        quote: tpm.quote_string("nonce", mask((0..16).filter(|pcr| *pcr != 10))),
        hash_alg: BANK.name().to_owned(),
        mb_measurement_list: Some(STANDARD.encode(log)),
        ..QuoteResponse::default()
    };
    let ak = tpm.ak();
    let policies = Policies {
        tpm: &TpmPolicy::parse(r#"{"mask": "0x0"}"#).unwrap(),
        runtime: None,
        boot: policy,
        accept: &AcceptedAlgorithms::of(&ak),
    };
    match appraise_evidence(&ak, "nonce", &evidence, &policies) {
        Ok(()) => Vec::new(),
        Err(findings) => findings,
    }
}

fn parse(policy: &Value) -> BootPolicy {
    BootPolicy::parse(Some(&policy.to_string())).unwrap()
}

/// The log that Keylime's engine accepts, and its refstate.
fn example() -> (Vec<u8>, Value) {
    let log = STANDARD
        .decode(vectors("boot-log.json")["log"].as_str().unwrap())
        .unwrap();
    let state = Refstate::json_from_log(&EventLog::parse(&log).unwrap(), false).unwrap();
    (log, serde_json::from_str(&state).unwrap())
}

/// Offset of the digest of `bank` in each event, with the event's index, PCR and data's offset.
fn events(log: &[u8]) -> Vec<(usize, u32, usize)> {
    let base = log.as_ptr() as usize;
    let parsed = EventLog::parse(log).unwrap();
    let events = parsed.unverified_events().filter(|event| event.kind.0 != 3);
    events
        .map(|event| (event.index, event.pcr, event.data.as_ptr() as usize - base))
        .collect()
}

/// `log` with another SHA-256 digest in event `index`.
fn with_digest(log: &[u8], index: usize) -> Vec<u8> {
    let parsed = EventLog::parse(log).unwrap();
    let event = parsed.unverified_events().nth(index).unwrap();
    let digest = event.digests.get(BANK).unwrap();
    let data = event.data.as_ptr() as usize - log.as_ptr() as usize;
    let start = log[..data]
        .windows(32)
        .rposition(|window| window == digest.as_bytes())
        .unwrap();
    let mut log = log.to_vec();
    log[start] ^= 1;
    log
}

#[test]
fn a_refstate_accepts_its_boot_and_names_what_differs() {
    let (log, state) = example();
    assert_eq!(judge(&parse(&state), &log), []);
    let zeros = format!("0x{}", "00".repeat(32));
    for (path, value, place, words) in [
        (
            "/kernels/0/shim_authcode_sha256",
            json!(zeros),
            (4, 20),
            "shim is not the one",
        ),
        (
            "/kernels/0/grub_authcode_sha256",
            json!(zeros),
            (4, 21),
            "GRUB is not the one",
        ),
        (
            "/kernels/0/kernel_authcode_sha256",
            json!(zeros),
            (4, 22),
            "kernel is not the one",
        ),
        (
            "/kernels/0/initrd_plain_sha256",
            json!(zeros),
            (9, 28),
            "initrd is not the one",
        ),
        (
            "/kernels/0/kernel_cmdline",
            json!("/vmlinuz.* root=/dev/sdb1 ro"),
            (8, 27),
            "command line",
        ),
        (
            "/scrtm_and_bios/0/scrtm/sha256",
            json!(zeros),
            (0, 1),
            "firmware version is not",
        ),
        (
            "/scrtm_and_bios/0/platform_firmware/1/sha256",
            json!(zeros),
            (0, 3),
            "firmware is not",
        ),
        (
            "/has_secureboot",
            json!(false),
            (7, 4),
            "Secure Boot is not in the state",
        ),
        ("/pk", json!([]), (7, 5), "PK has a key"),
        ("/kek", json!([]), (7, 6), "KEK has a key"),
        ("/db", json!([]), (7, 7), "db has a key"),
        ("/mokdig", json!([]), (14, 23), "MokList is not"),
        (
            "/mokxdig/0/sha256",
            json!(zeros),
            (14, 24),
            "MokListX is not",
        ),
    ] {
        let mut state = state.clone();
        *state.pointer_mut(path).unwrap() = value;
        if path == "/has_secureboot" {
            state["kernels"][0]["vmlinuz_plain_sha256"] = json!(zeros);
        }
        let findings = judge(&parse(&state), &log);
        let finding = findings
            .iter()
            .find(|finding| finding.explanation.contains(words))
            .unwrap_or_else(|| panic!("{path}: {findings:#?}"));
        assert_eq!(finding.id, "measured_boot.policy_example");
        let (pcr, event) = place;
        assert_eq!(finding.place, Place::BootEvent { event, pcr }, "{path}");
        assert!(finding.got.is_some(), "{path}");
    }
    let mut state = state;
    let more =
        json!({"SignatureOwner": "11111111-2222-3333-4444-555555555555", "SignatureData": zeros});
    state["dbx"].as_array_mut().unwrap().push(more);
    let findings = judge(&parse(&state), &log);
    assert!(
        findings[0].explanation.contains("dbx lacks 1 of"),
        "{findings:#?}"
    );
}

#[test]
fn the_refstate_of_a_log_is_the_one_that_keylime_makes() {
    let (_, state) = example();
    assert_eq!(state, vectors("boot-log.json")["refstate"]);
    let log = fixture("boots/grub/binary_bios_measurements");
    let log = EventLog::parse(&log).unwrap();
    assert_eq!(
        Refstate::json_from_log(&log, false),
        Err(CreateError::NoSecureBoot)
    );
    assert!(Refstate::json_from_log(&log, true).is_ok());
}

#[test]
fn what_is_no_policy_is_refused_with_the_place_and_the_nearest_key() {
    let refused = |text: &str| BootPolicy::parse(Some(text)).unwrap_err().to_string();
    let (_, state) = example();
    let with = |path: &str, value: Value| {
        let mut state = state.clone();
        *state.pointer_mut(path).unwrap() = value;
        state.to_string()
    };
    for (text, reason) in [
        (
            with("/kernels/0/shim_authcode_sha256", json!("0xAB")),
            "kernels[0].shim_authcode_sha256",
        ),
        (
            with("/kernels/0/kernel_cmdline", json!("a(")),
            "kernels[0].kernel_cmdline",
        ),
        (
            with("/mokdig/0", json!({"sha256": "0x00"})),
            "mokdig[0].sha256 is no sha256 digest",
        ),
        (
            with("/pk/0/SignatureOwner", json!("x")),
            "pk[0].SignatureOwner",
        ),
        (with("/scrtm_and_bios", json!(null)), "invalid type: null"),
        (r#"{"version": 2}"#.to_owned(), "version 2"),
        (
            r#"{"version": 1, "componet": []}"#.to_owned(),
            "did you mean `component`?",
        ),
        (
            r#"{"version": 1, "component": [{"name": "kernl", "any": true}]}"#.to_owned(),
            "`kernel`",
        ),
        (
            r#"{"version": 1, "component": [{"name": "kernel"}]}"#.to_owned(),
            "say `any = true`",
        ),
        (
            r#"{"version": 1, "secure_boot": {"enabled": true, "db": [{"ower": ""}]}}"#.to_owned(),
            "`owner`",
        ),
        ("[]".to_owned(), "is no boot policy"),
    ] {
        let error = refused(&text);
        assert!(
            matches!(error.as_str(), text if text.contains(reason)),
            "{text}: {error}"
        );
    }
    let toml = "version = 1\n\n[[component]]\nname = \"kernel\"\ndigest = []\n";
    let error = BootRules::from_toml(toml).unwrap_err();
    let schema =
        PolicyError::Schema("line 5: unknown key `digest`; did you mean `digests`?".to_owned());
    assert_eq!(error, schema);
}

#[test]
fn what_the_engine_decides_is_what_the_operator_chose() {
    let (log, mut state) = example();
    state["pk"] = json!([]);
    let text = state.to_string();
    let of = |engine| BootPolicy::parse_for(Some(&text), engine).unwrap();
    assert!(!judge(&of(BootEngine::default()), &log).is_empty());
    assert_eq!(judge(&of(BootEngine::AcceptAll), &log), []);
    let rejected = judge(&of(BootEngine::RejectAll), &log);
    assert_eq!(rejected[0].id, "measured_boot.policy_reject-all");
    // Accepted is what is in the log, not a log that does not replay.
    let findings = judge_with(&of(BootEngine::AcceptAll), &log, &Tpm::new(BANK).pcrs);
    assert_eq!(findings[0].id, "measured_boot.invalid_pcr_0");
    let replay = BootPolicy::parse_for(Some("{}"), BootEngine::RejectAll).unwrap();
    assert_eq!(replay, BootPolicy::Replay);
    let rules = r#"{"version": 1, "others": "deny"}"#;
    for (engine, empty) in [
        (BootEngine::AcceptAll, false),
        (BootEngine::RejectAll, true),
    ] {
        let policy = BootPolicy::parse_for(Some(rules), engine).unwrap();
        assert!(!judge(&policy, &log).is_empty());
        assert_eq!(policy == BootPolicy::RejectAll, empty);
    }
}

#[test]
fn a_policy_of_a_boot_accepts_that_boot_and_names_each_event_that_changes() {
    for path in LOGS {
        let log = fixture(path);
        let rules = BootRules::from_log(&EventLog::parse(&log).unwrap(), Some(BANK), true);
        let rules = rules.unwrap_or_else(|error| panic!("{path}: {error}"));
        let policy = BootPolicy::parse(Some(&rules.to_json())).unwrap();
        assert_eq!(BootPolicy::Rules(rules.clone().into()), policy, "{path}");
        assert_eq!(BootRules::from_toml(&rules.to_toml()), Ok(rules), "{path}");
        assert_eq!(judge(&policy, &log), [], "{path}");
        for (index, pcr, _) in events(&log) {
            let findings = judge(&policy, &with_digest(&log, index));
            let place = Place::BootEvent {
                event: index,
                pcr: u8::try_from(pcr).unwrap(),
            };
            let finding = findings.first();
            let finding = finding.unwrap_or_else(|| panic!("{path}: event {index} is accepted"));
            assert_eq!(finding.id, "measured_boot.policy_troth");
            assert_eq!(finding.place, place, "{path}: {finding:#?}");
        }
    }
}
