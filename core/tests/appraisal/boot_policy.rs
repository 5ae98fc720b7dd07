use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};
use troth_core::appraise::{
    AcceptedAlgorithms, Challenge, Finding, ImaRules, NodeState, Place, Policies, Verdict,
    appraise, appraise_evidence,
};
use troth_core::eventlog::{EventLog, UserspaceLog};
use troth_core::policy::{
    BootEngine, BootPolicy, BootRules, CreateError, PolicyError, Refstate, TpmPolicy,
};
use troth_core::tpm::{Digest, HashAlgorithm, PcrValues};
use troth_core::wire::QuoteResponse;

use super::tpm::{Tpm, mask, pcrread};
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
    judge_joined(policy, log, None, pcrs)
}

/// The same for a host that sends systemd's log too.
fn judge_joined(
    policy: &BootPolicy,
    log: &[u8],
    userspace: Option<&[u8]>,
    pcrs: &PcrValues,
) -> Vec<Finding> {
    let mut tpm = Tpm::new(BANK);
    pcrs.iter()
        .for_each(|(pcr, value)| tpm.pcrs.set(pcr, *value));
    let evidence = QuoteResponse {
        quote: tpm.quote_string("nonce", mask((0..16).filter(|pcr| *pcr != 10))),
        hash_alg: BANK.name().to_owned(),
        mb_measurement_list: Some(STANDARD.encode(log)),
        userspace_measurement_list: userspace.map(|log| STANDARD.encode(log)),
        ..QuoteResponse::default()
    };
    let ak = tpm.ak();
    let policies = Policies {
        tpm: &TpmPolicy::parse(r#"{"mask": "0x0"}"#).unwrap(),
        runtime: None,
        boot: policy,
        accept: &AcceptedAlgorithms::of(&ak),
        ima: ImaRules::default(),
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

/// A log of SHA-256 events.
struct Log(Vec<u8>);

impl Log {
    fn new() -> Self {
        let mut header = vec![0; 4];
        header.extend(3_u32.to_le_bytes());
        header.extend([0; 20]);
        let mut data = b"Spec ID Event03\0".to_vec();
        data.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
        header.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        header.extend(data);
        Self(header)
    }

    fn event(mut self, pcr: u32, kind: u32, digest: &[u8], data: &[u8]) -> Self {
        for number in [pcr, kind, 1] {
            self.0.extend(number.to_le_bytes());
        }
        self.0.extend([0x0b, 0]);
        self.0.extend(digest);
        self.0
            .extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        self.0.extend(data);
        self
    }

    /// An event whose digest is of its data.
    fn plain(self, pcr: u32, kind: u32, data: &[u8]) -> Self {
        self.event(pcr, kind, BANK.digest(&[data]).as_bytes(), data)
    }
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
fn a_refstate_believes_what_the_quote_vouches_for() {
    let (log, state) = example();
    // What is written beside a digest is not what was measured.
    let line = b"kernel_cmdline: /vmlinuz-1 root=/dev/sda1 ro";
    let at = log.windows(line.len()).position(|bytes| bytes == line);
    let mut rewritten = log.clone();
    rewritten[at.unwrap() + line.len() - 1] = b'w';
    let mut wanted = state.clone();
    wanted["kernels"][0]["kernel_cmdline"] = json!("/vmlinuz-1 root=/dev/sda1 rw");
    let findings = judge(&parse(&wanted), &rewritten);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert!(
        findings[0]
            .explanation
            .contains("something else than was measured")
    );
    // Digests of another bank are nothing that the quote covers.
    let mut other = state;
    let scrtm = other.pointer_mut("/scrtm_and_bios/0/scrtm").unwrap();
    *scrtm = json!({"sha1": "0x453385da2d1a9fe78c5d755c88db1ea05921f250"});
    let findings = judge(&parse(&other), &log);
    assert!(
        findings[0]
            .explanation
            .contains("the policy has no sha256 digest of it")
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

/// Boots that a refstate accepts are accepted by what it is converted to, and an event that it
/// finds changed is found there.
#[test]
fn a_converted_refstate_judges_as_the_refstate_does() {
    let files = LOGS.map(fixture);
    let mut accepted = 0;
    for log in files.into_iter().chain([example().0]) {
        let state = Refstate::json_from_log(&EventLog::parse(&log).unwrap(), true).unwrap();
        let Ok(BootPolicy::Refstate(state)) = BootPolicy::parse(Some(&state)) else {
            continue;
        };
        let converted = BootPolicy::Rules(state.to_rules().unwrap().rules.into());
        let state = BootPolicy::Refstate(state);
        let found = judge(&state, &log);
        if !found.is_empty() {
            continue;
        }
        accepted += 1;
        assert_eq!(judge(&converted, &log), []);
        let mut refused = 0;
        for (index, pcr, data) in events(&log) {
            let altered = with_digest(&log, index);
            let (theirs, ours) = (judge(&state, &altered), judge(&converted, &altered));
            assert_eq!(
                theirs.is_empty(),
                ours.is_empty(),
                "event {index} of PCR {pcr}"
            );
            refused += usize::from(!ours.is_empty());
            // Its data beside the same digest.
            let mut altered = log.clone();
            altered[data] ^= 1;
            let (theirs, ours) = (judge(&state, &altered), judge(&converted, &altered));
            if !theirs.is_empty() && ours.is_empty() {
                assert!(
                    [1, 7, 8, 9, 14].contains(&pcr),
                    "event {index} of PCR {pcr}"
                );
            }
        }
        assert!(refused > 10, "{refused}");
    }
    assert!(accepted > 0);
}

#[test]
fn what_a_refstate_cannot_hand_on_is_told() {
    let told = |change: &dyn Fn(&mut Value)| {
        let (_, mut state) = example();
        change(&mut state);
        let BootPolicy::Refstate(state) = parse(&state) else {
            panic!("a refstate");
        };
        state
            .to_rules()
            .map(|converted| converted.differences.join("\n"))
    };
    assert!(!told(&|_| ()).unwrap().contains("alternatives"));
    let two = told(&|state| {
        let kernel = state["kernels"][0].clone();
        state["kernels"].as_array_mut().unwrap().push(kernel);
    });
    assert!(two.unwrap().contains("alternatives"));
    let error = told(&|state| state["kernels"] = json!([])).unwrap_err();
    assert!(error.to_string().contains("allows no boot"), "{error}");
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
        let rules = BootRules::from_log(&EventLog::parse(&log).unwrap(), None, Some(BANK), true);
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

/// `log` with another type of event `index`.
fn with_type(log: &[u8], index: usize, kind: u32) -> Vec<u8> {
    let parsed = EventLog::parse(log).unwrap();
    let event = parsed.unverified_events().nth(index).unwrap();
    let digests: usize = event
        .digests
        .iter()
        .map(|(_, one)| 2 + one.as_bytes().len())
        .sum();
    // Before it are its data's size, its digests, and their number.
    let data = event.data.as_ptr() as usize - log.as_ptr() as usize;
    let start = data - 4 - digests - 4 - 4;
    assert_eq!(log[start..start + 4], event.kind.0.to_le_bytes());
    let mut log = log.to_vec();
    log[start..start + 4].copy_from_slice(&kind.to_le_bytes());
    log
}

/// Types that a host may claim for an event.
const TYPES: [u32; 26] = [
    0x1,
    0x3,
    0x4,
    0x5,
    0x6,
    0x7,
    0x8,
    0x9,
    0xa,
    0xc,
    0xd,
    0xe,
    0x10,
    0x11,
    0x12,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_000c,
    0x8000_0010,
    0x8000_00e0,
    0xdead_beef,
];

/// What was measured stays judged, whatever the log calls it: the TPM extended it all the same.
#[test]
fn an_event_that_calls_itself_no_action_needs_a_rule() {
    let policy = "version = 1\nothers = \"allow\"\n[secure_boot]\nenabled = true\n\
        [[component]]\nname = \"shim\"\ndigests = [\"sha256:05\"]\n"
        .replace(":05", &format!(":{}", "05".repeat(32)));
    let policy = BootPolicy::Rules(BootRules::from_toml(&policy).unwrap().into());
    let log = |off: u32, evil: u32| {
        Log::new()
            .plain(7, off, &variable(GLOBAL, "SecureBoot", &[0]))
            .plain(7, DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot", &[1]))
            .event(4, APPLICATION, &[5; 32], &[0; 32])
            .event(4, evil, &[6; 32], &[0; 32])
    };
    let truth = log(DRIVER_CONFIG, APPLICATION);
    let pcrs = EventLog::parse(&truth.0).unwrap().replay(BANK);
    for (off, evil) in [(3, APPLICATION), (DRIVER_CONFIG, 3), (3, 3)] {
        let findings = judge_with(&policy, &log(off, evil).0, &pcrs);
        let places: Vec<_> = findings.iter().map(|one| &one.place).collect();
        for (event, pcr) in [(1, 7), (4, 4)] {
            let place = Place::BootEvent { event, pcr };
            assert!(
                places.contains(&&place),
                "{off:#x} {evil:#x}: {findings:#?}"
            );
        }
    }
    // What it is allowed as, it is allowed as whatever it calls itself.
    let allowed = log(3, 3).0;
    let policy = "version = 1\n[[component]]\nname = \"all\"\npcr = 4\nany = true\n\
        [[component]]\nname = \"keys\"\npcr = 7\nany = true\n";
    let policy = BootPolicy::Rules(BootRules::from_toml(policy).unwrap().into());
    assert_eq!(judge_with(&policy, &allowed, &pcrs), []);
}

/// Firmware that extends its EV_NO_ACTION events boots by the policy that was made of its log.
#[test]
fn a_policy_of_a_log_allows_no_action_events_that_may_have_been_extended() {
    let log = |digest: [u8; 32]| {
        let log = Log::new()
            .plain(7, DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot", &[1]))
            .event(4, APPLICATION, &[5; 32], &[0; 32])
            .event(4, 3, &digest, b"Vendor's event!\0")
            .event(4, APPLICATION, &[7; 32], &[1; 32])
            .event(0xffff_ffff, 3, &[9; 32], b"Vendor's other!\0");
        log.0
    };
    let own = log([6; 32]);
    let rules = |log: &[u8]| {
        let log = EventLog::parse(log).unwrap();
        BootRules::from_log(&log, None, Some(BANK), false).unwrap()
    };
    let policy = BootPolicy::Rules(rules(&own).into());
    let honest = EventLog::parse(&own).unwrap().replay(BANK);
    let extended = |log: &[u8]| {
        let mut pcrs = honest.clone();
        let events = EventLog::parse(log).unwrap();
        let digests = events.unverified_events().filter(|event| event.pcr == 4);
        let digests = digests.filter_map(|event| event.digests.get(BANK));
        let value = digests.fold(Digest::zero(BANK), |value, digest| {
            value.extend(BANK, digest.as_bytes())
        });
        pcrs.set(4, value);
        pcrs
    };
    assert_eq!(judge_with(&policy, &own, &honest), []);
    assert_eq!(judge_with(&policy, &own, &extended(&own)), []);
    let other = log([8; 32]);
    let findings = judge_with(&policy, &other, &extended(&other));
    let places: Vec<_> = findings.iter().map(|one| one.place.clone()).collect();
    assert_eq!(places, [Place::BootEvent { event: 3, pcr: 4 }]);
    // The order of the others is kept where there is none of these.
    let toml = rules(&own).to_toml();
    assert!(
        toml.contains("name = \"no-action\"") && toml.contains("7 = ["),
        "{toml}"
    );
    assert!(!toml.contains("4 = ["), "{toml}");
}

const IPL: u32 = 0xd;
const ACTION: u32 = 0x8000_0007;
const APPLICATION: u32 = 0x8000_0003;
const DRIVER_CONFIG: u32 = 0x8000_0001;
const AUTHORITY: u32 = 0x8000_00e0;
const GLOBAL: &str = "61dfe48bca93d211aa0d00e098032b8c";
const DATABASE: &str = "cbb219d73a3d9645a3bcdad00e67656f";
const SHIM: &str = "50ab5d6046e00043abb63dd810dd8b23";

/// UEFI_VARIABLE_DATA.
fn variable(guid: &str, name: &str, value: &[u8]) -> Vec<u8> {
    let mut data = hex::decode(guid).unwrap();
    data.extend(u64::try_from(name.len()).unwrap().to_le_bytes());
    data.extend(u64::try_from(value.len()).unwrap().to_le_bytes());
    data.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    data.extend(value);
    data
}

/// EFI_SIGNATURE_LIST of one key.
fn key_list(key: &[u8]) -> Vec<u8> {
    let mut list = hex::decode("a159c0a5e494a74a87b5ab155c2bf072").unwrap();
    let size = u32::try_from(16 + key.len()).unwrap();
    for number in [28 + size, 0, size] {
        list.extend(number.to_le_bytes());
    }
    list.extend([0x11; 16]);
    list.extend(key);
    list
}

/// Explanations of what is wrong with a boot by a policy in TOML.
fn wrong(policy: &str, log: &Log) -> Vec<String> {
    let rules = BootRules::from_toml(policy).unwrap_or_else(|error| panic!("{policy}: {error}"));
    let findings = judge(&BootPolicy::Rules(rules.into()), &log.0);
    findings
        .into_iter()
        .map(|finding| finding.explanation)
        .collect()
}

#[test]
fn each_event_needs_a_rule_and_each_rule_its_events() {
    let zeros = [0; 32];
    let hex = |digest: &[u8]| format!("sha256:{}", hex::encode(digest));
    let shim = Log::new().event(4, APPLICATION, &zeros, &[0; 32]);
    let rule = format!(
        "[[component]]\nname = \"shim\"\ndigests = [\"{}\"]\n",
        hex(&zeros)
    );
    let allow = format!("version = 1\nothers = \"allow\"\n{rule}");
    let deny = format!("version = 1\n{rule}");
    let other = || Log(shim.0.clone()).event(2, 0x8000_0004, &[1; 32], &[0; 32]);
    let twice = Log(shim.0.clone()).event(4, APPLICATION, &zeros, &[0; 32]);
    let more = Log(shim.0.clone()).event(4, IPL, &[1; 32], b"more");
    for (policy, log, expected) in [
        (&allow, &shim, ""),
        (&deny, &shim, ""),
        (&allow, &other(), ""),
        (&deny, &other(), "event 2 is an event that nobody allowed"),
        (&allow, &twice, "event 2 is an event that nobody allowed"),
        (&allow, &more, "event 2 is an event that nobody allowed"),
        (&allow, &Log::new(), "shim was not measured"),
        (
            &allow,
            &Log::new().event(4, APPLICATION, &[1; 32], &[0; 32]),
            "shim is not what it has to be: event 1",
        ),
        // A label that says otherwise changes nothing.
        (
            &allow,
            &Log(shim.0.clone()).event(
                4,
                ACTION,
                &[1; 32],
                b"Calling EFI Application from Boot Option",
            ),
            "event 2 is an event that nobody allowed",
        ),
        (
            &allow,
            &Log(shim.0.clone()).plain(4, ACTION, b"Calling EFI Application from Boot Option"),
            "",
        ),
        (&allow, &Log(shim.0.clone()).plain(4, 4, &[0; 4]), ""),
        (
            &allow,
            &Log(shim.0.clone()).plain(4, 4, &[1, 0, 0, 0]),
            "event 2 is an event that nobody allowed",
        ),
    ] {
        let wrong = wrong(policy, log);
        match expected {
            "" => assert_eq!(wrong, Vec::<String>::new()),
            expected => assert!(wrong.len() == 1 && wrong[0].contains(expected), "{wrong:?}"),
        }
    }
}

#[test]
fn a_command_line_is_believed_if_its_digest_is_of_it() {
    let policy = "version = 1\nothers = \"allow\"\ncommand_line = ['/vmlinuz root=/dev/\\w+ ro']\n";
    let line = |text: &str, measured: &str| {
        let digest = BANK.digest(&[measured.as_bytes()]);
        Log::new().event(
            8,
            IPL,
            digest.as_bytes(),
            format!("kernel_cmdline: {text}\0").as_bytes(),
        )
    };
    let good = "/vmlinuz root=/dev/sda ro";
    assert_eq!(wrong(policy, &line(good, good)), Vec::<String>::new());
    for log in [
        line(good, "/vmlinuz root=/dev/sda ro init=/bin/sh"),
        line(
            "/vmlinuz root=/dev/sda ro init=/bin/sh",
            "/vmlinuz root=/dev/sda ro init=/bin/sh",
        ),
        line("x /vmlinuz root=/dev/sda ro", "x /vmlinuz root=/dev/sda ro"),
        // Measured by GRUB, but as a command of its script.
        Log::new().event(
            8,
            IPL,
            BANK.digest(&[good.as_bytes()]).as_bytes(),
            b"grub_cmd: x",
        ),
    ] {
        let wrong = wrong(policy, &log);
        assert!(
            wrong.iter().any(|one| one.contains("command-line")),
            "{wrong:?}"
        );
    }
    let wide: Vec<_> = "/vmlinuz root=/dev/sda ro\0"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    assert_eq!(
        wrong(policy, &Log::new().plain(12, IPL, &wide)),
        Vec::<String>::new()
    );
}

#[test]
fn secure_boot_is_judged_by_state_keys_signers_and_generations() {
    let der = b"certificate";
    let digest = BANK.digest(&[der]);
    let mut signature = vec![0x11; 16];
    signature.extend(der);
    let log = |on: u8, signature: &[u8], sbat: &str| {
        Log::new()
            .plain(7, DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot", &[on]))
            .plain(7, DRIVER_CONFIG, &variable(DATABASE, "db", &key_list(der)))
            .plain(7, 4, &[0; 4])
            .plain(7, AUTHORITY, &variable(DATABASE, "db", signature))
            .plain(7, AUTHORITY, &variable(SHIM, "SbatLevel", sbat.as_bytes()))
            .event(4, APPLICATION, &[5; 32], &[0; 32])
    };
    let policy = format!(
        "version = 1\n[secure_boot]\nenabled = true\ndb = [\"sha256:{digest}\"]\n\
         sbat = {{ sbat = 2023012900, shim = 3 }}\n\
         [[component]]\nname = \"kernel\"\nsigners = [\"sha256:{digest}\"]\n"
    );
    let sbat = "sbat,1,2023012900\nshim,3\n";
    let good = log(1, &signature, sbat);
    assert_eq!(wrong(&policy, &good), Vec::<String>::new());
    let mut other = signature.clone();
    other.push(0);
    let db = format!("sha256:{}", "00".repeat(32));
    for (policy, log, expected) in [
        (
            policy.clone(),
            log(0, &signature, sbat),
            "Secure Boot is not in the state",
        ),
        (
            policy.clone(),
            log(1, &other, sbat),
            "let an image run by a key that is not allowed",
        ),
        (
            policy.clone(),
            log(1, &signature, "sbat,1,2022052400\nshim,3\n"),
            "SbatLevel is older",
        ),
        (
            policy.clone(),
            log(1, &signature, "sbat,1,2023012900\n"),
            "SbatLevel is older",
        ),
        (
            policy.replacen(&format!("sha256:{digest}"), &db, 1),
            good,
            "db has a key that is not allowed",
        ),
        (
            policy
                .replace(
                    "enabled = true",
                    "enabled = true\ndbx_at_least = [\"sha256:00\"]",
                )
                .replace("sha256:00\"", &format!("{db}\"")),
            log(1, &signature, sbat),
            "dbx was not measured",
        ),
        (
            policy.clone(),
            Log::new().event(4, APPLICATION, &[5; 32], &[0; 32]),
            "SecureBoot was not measured",
        ),
    ] {
        let wrong = wrong(&policy, &log);
        assert!(
            wrong.iter().any(|one| one.contains(expected)),
            "{expected}: {wrong:?}"
        );
    }
}

#[test]
fn revocations_are_found_in_any_order() {
    let (log, _) = example();
    let (_, mut policy) = policy_of(&log);
    let wanted = policy["secure_boot"]["dbx_at_least"]
        .as_array_mut()
        .unwrap();
    assert!(wanted.len() > 1);
    wanted.reverse();
    assert_eq!(judge(&parse(&policy), &log), []);
    policy["secure_boot"]["dbx_at_least"][0] = json!(format!("sha256:{}", "5a".repeat(32)));
    let findings = judge(&parse(&policy), &log);
    assert!(
        findings[0].explanation.contains("lacks 1 of the"),
        "{findings:?}"
    );
}

#[test]
fn a_variable_of_secure_boot_passes_as_nothing_else() {
    let der = b"certificate";
    let digest = BANK.digest(&[der]);
    let entry = |key: &[u8]| [&[0x11; 16][..], key].concat();
    let log = |kind: u32, keys: &[u8], authority: &[u8]| {
        Log::new()
            .plain(7, DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot", &[1]))
            .plain(7, kind, &variable(DATABASE, "db", keys))
            .plain(7, 4, &[0; 4])
            .plain(7, AUTHORITY, &variable(DATABASE, "db", authority))
    };
    let (good, evil) = (key_list(der), key_list(b"evil"));
    let open = "version = 1\n[secure_boot]\nenabled = true\n";
    let judged = format!("{open}db = [\"sha256:{digest}\"]\n");
    for policy in [judged.as_str(), open] {
        let fine = log(DRIVER_CONFIG, &good, &entry(der));
        assert_eq!(wrong(policy, &fine), Vec::<String>::new());
        for log in [
            log(AUTHORITY, &evil, &entry(der)),
            log(AUTHORITY, &good, &entry(der)),
            log(DRIVER_CONFIG, &good, &entry(b"evil")),
        ] {
            assert!(!wrong(policy, &log).is_empty(), "{policy}");
        }
    }
    let wrong = wrong(&judged, &log(AUTHORITY, &evil, &entry(der)));
    let missing = "db was not measured";
    assert!(wrong.iter().any(|one| one.contains(missing)), "{wrong:?}");
}

#[test]
fn only_sections_of_an_image_are_names_without_a_rule() {
    let policy = "version = 1\nothers = \"allow\"\n[[component]]\nname = \"uki-section\"\n\
        digests = [\"sha256:07\"]\n"
        .replace(":07", &format!(":{}", "07".repeat(32)));
    let name: &[u8] = b".linux\0";
    let log = |names: &[&[u8]]| {
        let named = names
            .iter()
            .fold(Log::new(), |log, name| log.plain(11, IPL, name));
        named.event(11, IPL, &[7; 32], b".linux\0")
    };
    assert_eq!(wrong(&policy, &log(&[name])), Vec::<String>::new());
    for names in [
        &[&b".evil\0"[..]][..],
        &[name, name],
        &[name, b".osrel\0"],
        &[b".linux"],
        &[b". #!/bin/sh"],
    ] {
        assert!(!wrong(&policy, &log(names)).is_empty(), "{names:?}");
    }
    let alone = log(&[name]).plain(11, IPL, b".osrel\0");
    assert!(!wrong(&policy, &alone).is_empty());
}

#[test]
fn phases_are_a_chain_that_ends_where_it_may() {
    let policy = "version = 1\nothers = \"allow\"\n[phases]\n\
        chain = [\"sysinit\", \"ready\", \"shutdown\"]\nlast = [\"ready\"]\n\
        [[component]]\nname = \"uki-section\"\ndigests = [\"sha256:07\"]\n";
    let policy = policy.replace(":07", &format!(":{}", "07".repeat(32)));
    let policy = BootPolicy::Rules(BootRules::from_toml(&policy).unwrap().into());
    let log = Log::new().event(11, IPL, &[7; 32], b".\0l\0i\0n\0u\0x\0\0\0");
    let pcrs = EventLog::parse(&log.0).unwrap().replay(BANK);
    let after = |phases: &[&str]| {
        let mut pcrs = pcrs.clone();
        for phase in phases {
            let digest = BANK.digest(&[phase.as_bytes()]);
            let value = pcrs.get(11).unwrap().extend(BANK, digest.as_bytes());
            pcrs.set(11, value);
        }
        judge_with(&policy, &log.0, &pcrs)
    };
    assert_eq!(after(&["sysinit", "ready"]), []);
    for (phases, id, words) in [
        (
            &["sysinit"][..],
            "measured_boot.policy_troth",
            "the phase of the boot",
        ),
        (
            &["sysinit", "ready", "shutdown"],
            "measured_boot.policy_troth",
            "the phase of the boot",
        ),
        (&[], "measured_boot.policy_troth", "the phase of the boot"),
        (&["ready"], "measured_boot.invalid_pcr_11", ""),
        (
            &["sysinit", "evil", "ready"],
            "measured_boot.invalid_pcr_11",
            "",
        ),
    ] {
        let findings = after(phases);
        assert_eq!(findings[0].id, id, "{phases:?}");
        assert!(
            findings[0].explanation.contains(words),
            "{phases:?}: {findings:?}"
        );
    }
}

/// Logs of a boot through systemd-stub, and the PCRs after it.
fn stub_boot(boot: &str) -> (Vec<u8>, Vec<u8>, PcrValues) {
    let file = |name: &str| fixture(&format!("boots/{boot}/{name}"));
    (
        file("binary_bios_measurements"),
        file("tpm2-measure.log"),
        pcrread(boot, BANK),
    )
}

/// Extends PCR 11 by a phase.
fn enter(pcrs: &mut PcrValues, phase: &str) {
    let digest = BANK.digest(&[phase.as_bytes()]);
    let value = pcrs.get(11).unwrap().extend(BANK, digest.as_bytes());
    pcrs.set(11, value);
}

#[test]
fn a_policy_of_both_logs_accepts_the_boot_to_its_end_and_nothing_else_of_user_space() {
    for boot in ["uki", "sdboot"] {
        let (log, userspace, pcrs) = stub_boot(boot);
        let firmware = EventLog::parse(&log).unwrap();
        let parsed = UserspaceLog::parse(&userspace).unwrap();
        let rules = BootRules::from_log(&firmware, Some(&parsed), Some(BANK), true).unwrap();
        assert_eq!(BootRules::from_toml(&rules.to_toml()).as_ref(), Ok(&rules));
        let policy = BootPolicy::Rules(rules.into());
        let judged =
            |userspace: &[u8], pcrs: &PcrValues| judge_joined(&policy, &log, Some(userspace), pcrs);
        assert_eq!(judged(&userspace, &pcrs), [], "{boot}");
        // Before the last phase, and after those that were still to come.
        let mut early = pcrs.clone();
        early.set(11, *firmware.replay(BANK).get(11).unwrap());
        enter(&mut early, "sysinit");
        assert_eq!(judged(&userspace, &early), [], "{boot}");
        let (mut late, mut told) = (pcrs.clone(), userspace.clone());
        for phase in ["shutdown", "final"] {
            enter(&mut late, phase);
            let digest = BANK.digest(&[phase.as_bytes()]);
            let record = json!({
                "pcr": 11,
                "digests": [{"hashAlg": "sha256", "digest": digest.to_string()}],
                "content": {"string": phase, "eventType": "phase"},
            });
            told.extend(format!("\x1e{record}\n").into_bytes());
            assert_eq!(judged(&told, &late), [], "{boot}: {phase}");
        }
        enter(&mut late, "more");
        let findings = judged(&told, &late);
        assert_eq!(findings[0].id, "measured_boot.invalid_pcr_11", "{boot}");
        // Another machine, which tells so.
        let text = String::from_utf8(userspace.clone()).unwrap();
        let at = text.find("machine-id:").unwrap();
        let other = text.replacen(&text[at..at + 43], &format!("machine-id:{:032}", 7), 1);
        let own = BANK.digest(&[&text.as_bytes()[at..at + 43]]).to_string();
        let theirs = BANK.digest(&[format!("machine-id:{:032}", 7).as_bytes()]);
        let other = other.replace(&own, &theirs.to_string());
        let mut moved = pcrs.clone();
        let parsed = UserspaceLog::parse(other.as_bytes()).unwrap();
        let told = parsed.unverified_measurements().iter();
        let value = told
            .filter(|one| one.register == troth_core::eventlog::Register::Pcr(15))
            .fold(Digest::zero(BANK), |value, one| {
                value.extend(BANK, one.digest(BANK).unwrap().as_bytes())
            });
        moved.set(15, value);
        let findings = judged(other.as_bytes(), &moved);
        assert_eq!(findings[0].id, "measured_boot.policy_troth", "{boot}");
        assert_eq!(findings[0].place, Place::Pcr(15), "{boot}");
    }
}

#[test]
fn no_policy_is_made_of_a_log_of_user_space_that_may_lack_something() {
    let (log, userspace, _) = stub_boot("uki");
    let log = EventLog::parse(&log).unwrap();
    let made = |userspace: &[u8]| {
        let userspace = UserspaceLog::parse(userspace).unwrap();
        BootRules::from_log(&log, Some(&userspace), Some(BANK), true)
    };
    let torn = [&userspace[..], b"\x1e{\"pcr\":11"].concat();
    let twice = [&userspace[..], &userspace[last_record(&userspace)..]].concat();
    for (userspace, words) in [(torn, "never ended"), (twice, "measured twice")] {
        let error = made(&userspace).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// What the logs cannot explain fails a node where its policy speaks of it, and else never.
#[test]
fn pcrs_that_user_space_extends_fail_nobody_whose_policy_does_not_speak_of_them() {
    let (log, userspace, pcrs) = stub_boot("uki");
    let torn = [&userspace[..last_record(&userspace)], b"\x1e{\"pcr\":11"].concat();
    let (_, whole) = policy_of(&log);
    let mut silent = whole.clone();
    for pcr in [9, 11, 15] {
        let order = silent["order"].as_object_mut().unwrap();
        order.remove(&pcr.to_string());
        let components = silent["component"].as_array_mut().unwrap();
        components.retain(|component| component["pcr"] != pcr);
    }
    let listing = |pcr: u8| {
        let mut policy = silent.clone();
        let rule = json!({"name": "one", "pcr": pcr, "any": true});
        policy["component"].as_array_mut().unwrap().push(rule);
        parse(&policy)
    };
    let ids = |policy: &BootPolicy, userspace: Option<&[u8]>, pcrs: &PcrValues| -> Vec<String> {
        let findings = judge_joined(policy, &log, userspace, pcrs);
        findings.into_iter().map(|finding| finding.id).collect()
    };
    let mut extended = pcrs.clone();
    for pcr in [9, 11, 15] {
        let value = pcrs.get(pcr).unwrap().extend(BANK, &[1; 32]);
        extended.set(pcr, value);
    }
    for userspace in [None, Some(&torn[..])] {
        let unlisted = ids(&parse(&silent), userspace, &extended);
        // What the firmware's log shows there is judged where it explains the PCR, and only there.
        assert_eq!(unlisted, [""; 0]);
        for pcr in [9, 11, 15] {
            let found = ids(&listing(pcr), userspace, &extended);
            assert_eq!(found, [format!("measured_boot.invalid_pcr_{pcr}")]);
        }
    }
    // A whole log of user space has to explain them, whatever the policy speaks of.
    let found = ids(&parse(&silent), Some(&userspace), &extended);
    let expected = [9, 11, 15].map(|pcr| format!("measured_boot.invalid_pcr_{pcr}"));
    assert_eq!(found, expected);
}

/// Where the last record begins.
fn last_record(log: &[u8]) -> usize {
    log.iter().rposition(|byte| *byte == 0x1e).unwrap()
}

#[test]
fn events_out_of_their_order_are_told_from_the_first_on() {
    let log = fixture("boots/grub/binary_bios_measurements");
    let rules =
        BootRules::from_log(&EventLog::parse(&log).unwrap(), None, Some(BANK), true).unwrap();
    let toml = rules.to_toml();
    let swapped = toml.replacen(
        "\"boot-loader\",\n    \"kernel\"",
        "\"kernel\",\n    \"boot-loader\"",
        1,
    );
    assert_ne!(toml, swapped, "{toml}");
    let policy = BootPolicy::Rules(BootRules::from_toml(&swapped).unwrap().into());
    let findings = judge(&policy, &log);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(findings[0].place, Place::BootEvent { event: 23, pcr: 4 });
    assert!(
        findings[0]
            .explanation
            .contains("boot-loader comes where kernel")
    );
}

#[test]
fn the_examples_of_the_documentation_are_policies() {
    let text = std::fs::read_to_string("../docs/boot-policy.md").unwrap();
    let blocks = text.split("```").skip(1).step_by(2);
    let examples: Vec<_> = blocks
        .filter(|block| block.contains("version = 1"))
        .collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        // Their digests are cut short for the reader.
        let mut whole = String::new();
        for (index, part) in example.split("...").enumerate() {
            let digits = part
                .rsplit_once("sha256:")
                .map_or(0, |(_, digits)| digits.len());
            whole.push_str(part);
            if index + 1 < example.split("...").count() {
                whole.push_str(&"0".repeat(64 - digits));
            }
        }
        BootRules::from_toml(&whole).unwrap_or_else(|error| panic!("{error}\n{whole}"));
    }
}

/// A host under attestation by one boot policy.
struct Host {
    tpm: Tpm,
    policy: BootPolicy,
    state: NodeState,
}

impl Host {
    /// Booted as `log` tells.
    fn booted(log: &[u8], policy: BootPolicy) -> Self {
        let mut tpm = Tpm::new(BANK);
        let pcrs = EventLog::parse(log).unwrap().replay(BANK);
        pcrs.iter()
            .for_each(|(pcr, value)| tpm.pcrs.set(pcr, *value));
        tpm.bind("key");
        Self {
            tpm,
            policy,
            state: NodeState::default(),
        }
    }

    /// Whether it is trusted with this boot log, base64.
    fn is_trusted(&mut self, log: &str) -> bool {
        let boot_pcrs = mask((0..16).filter(|pcr| *pcr != 10));
        let evidence = QuoteResponse {
            quote: self.tpm.quote_string("nonce", boot_pcrs.with(16)),
            hash_alg: BANK.name().to_owned(),
            enc_alg: "ecc256".to_owned(),
            sign_alg: "ecdsa".to_owned(),
            pubkey: Some("key".to_owned()),
            mb_measurement_list: Some(log.to_owned()),
            ..QuoteResponse::default()
        };
        let ak = self.tpm.ak();
        let policies = Policies {
            tpm: &TpmPolicy::parse(r#"{"mask": "0x0"}"#).unwrap(),
            runtime: None,
            boot: &self.policy,
            accept: &AcceptedAlgorithms::of(&ak),
            ima: ImaRules::default(),
        };
        let challenge = Challenge {
            nonce: "nonce",
            mask: boot_pcrs,
            ima_entry: 0,
        };
        let appraisal = appraise(&ak, &challenge, &evidence, &policies, &self.state);
        self.state = appraisal.state;
        matches!(appraisal.verdict, Verdict::Trusted(_))
    }
}

/// A policy of the boot, as the verifier gets it.
fn policy_of(log: &[u8]) -> (BootPolicy, Value) {
    let rules =
        BootRules::from_log(&EventLog::parse(log).unwrap(), None, Some(BANK), true).unwrap();
    let json = serde_json::from_str(&rules.to_json()).unwrap();
    (BootPolicy::Rules(rules.into()), json)
}

#[test]
fn what_was_judged_good_is_recognised_by_every_bit_of_it() {
    let log = fixture("boots/sdboot/binary_bios_measurements");
    let (policy, _) = policy_of(&log);
    let mut host = Host::booted(&log, policy.clone());
    let text = STANDARD.encode(&log);
    for _ in 0..3 {
        assert!(
            host.is_trusted(&text),
            "the same evidence is good each time"
        );
    }
    let known = host.state.clone();
    let mut fresh = Host::booted(&log, policy.clone());
    // What differs in one bit is judged as if nothing had been judged before.
    for at in (0..text.len()).step_by(7) {
        for bit in [1, 2, 4] {
            let mut flipped = text.clone().into_bytes();
            flipped[at] ^= bit;
            let flipped = String::from_utf8(flipped).unwrap();
            host.state = known.clone();
            fresh.state = NodeState::default();
            let (known, anew) = (host.is_trusted(&flipped), fresh.is_trusted(&flipped));
            assert_eq!(known, anew, "bit {bit} of character {at}");
        }
    }
    host.state = known.clone();
    assert!(!host.is_trusted(&text[..text.len() - 4]));
    assert!(!host.is_trusted(""));
    for pcr in (0..16).filter(|pcr| *pcr != 10) {
        let mut host = Host::booted(&log, policy.clone());
        host.state = known.clone();
        let mut value = host.tpm.pcrs.get(pcr).unwrap().as_bytes().to_vec();
        value[31] ^= 1;
        host.tpm.pcrs.set(pcr, Digest::from_slice(&value).unwrap());
        assert!(!host.is_trusted(&text), "PCR {pcr}");
    }
    let mut host = Host::booted(&log, BootPolicy::RejectAll);
    host.state = known;
    assert!(!host.is_trusted(&text), "another policy");
}

/// Digests, and the PCR that each event of `log` is in.
fn measured(log: &EventLog<'_>) -> Vec<(u32, Option<Digest>)> {
    let events = log.unverified_events().filter(|event| event.kind.0 != 3);
    events
        .map(|event| (event.pcr, event.digests.get(BANK)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// With the quoted PCRs of the true log, a flipped bit is found, or it is in what no quote
    /// vouches for and no verdict depends on.
    #[test]
    fn no_flipped_bit_of_a_log_is_trusted(
        path in prop::sample::select(LOGS.to_vec()),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let log = fixture(path);
        let (policy, _) = policy_of(&log);
        let true_log = EventLog::parse(&log).unwrap();
        let mut flipped = log.clone();
        flipped[at.index(log.len())] ^= 1 << bit;
        if judge_with(&policy, &flipped, &true_log.replay(BANK)).is_empty() {
            let flipped = EventLog::parse(&flipped).unwrap();
            prop_assert_eq!(measured(&flipped), measured(&true_log));
        }
    }

    /// What was measured and nobody allowed is found, whatever type the log says it is of.
    #[test]
    fn no_other_type_hides_an_event(
        path in prop::sample::select(LOGS.to_vec()),
        which in any::<prop::sample::Index>(),
        kind in prop::sample::select(TYPES.to_vec()),
        ordered in any::<bool>(),
    ) {
        let log = fixture(path);
        let (_, mut policy) = policy_of(&log);
        if !ordered {
            policy.as_object_mut().unwrap().remove("order");
        }
        let events = events(&log);
        let (index, ..) = events[which.index(events.len())];
        let other = with_digest(&log, index);
        let pcrs = EventLog::parse(&other).unwrap().replay(BANK);
        let changed = with_type(&other, index, kind);
        prop_assert!(!judge_with(&parse(&policy), &changed, &pcrs).is_empty());
    }

    /// A policy with one flipped bit in a digest is another policy.
    #[test]
    fn no_flipped_bit_of_a_policys_digest_is_trusted(
        path in prop::sample::select(LOGS.to_vec()),
        which in any::<prop::sample::Index>(),
        digit in 0..64_usize,
        bit in 0..4_u8,
    ) {
        let log = fixture(path);
        let (_, policy) = policy_of(&log);
        let text = policy.to_string();
        let digests: Vec<_> = text.match_indices("sha256:").map(|(at, _)| at + 7).collect();
        let at = digests[which.index(digests.len())] + digit;
        let value = u8::from_str_radix(&text[at..=at], 16).unwrap() ^ (1 << bit);
        let text = format!("{}{value:x}{}", &text[..at], &text[at + 1..]);
        let policy = BootPolicy::parse(Some(&text)).unwrap();
        prop_assert!(!judge(&policy, &log).is_empty());
    }
}

#[test]
fn a_merged_policy_accepts_the_boots_of_both_and_no_other() {
    let mut merged = Vec::new();
    let logs = LOGS.map(|name| (name, fixture(name)));
    let policies = logs.each_ref().map(|(_, log)| {
        let log = EventLog::parse(log).unwrap();
        BootRules::from_log(&log, None, None, true)
            .unwrap()
            .to_json()
    });
    for (at, (one, log)) in logs.iter().enumerate() {
        for (other_at, (other, other_log)) in logs.iter().enumerate() {
            let both = match BootPolicy::merge(&policies[at], &policies[other_at]) {
                Ok(both) => BootPolicy::parse(Some(&both.json)).unwrap(),
                Err(PolicyError::BootMerge(_)) => continue,
                Err(error) => panic!("{one}, {other}: {error}"),
            };
            for log in [log, other_log] {
                let findings = judge(&both, log);
                assert!(findings.is_empty(), "{one}, {other}: {findings:?}");
            }
            if at < other_at {
                merged.push((*one, *other));
                for (name, third) in &logs {
                    if ![one, other].contains(&name) {
                        assert!(!judge(&both, third).is_empty(), "{one}, {other}: {name}");
                    }
                }
            }
        }
    }
    assert!(merged.len() >= 3, "{merged:?}");
}

/// Ways to say whose signatures may have let the images of a boot run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Signed {
    /// `authorities`, as a policy of a log has them.
    Listed,
    /// Images have signers instead of digests.
    Signers,
    /// The same, and one image may be anything.
    AndAny,
    /// Anybody whom the variables allow.
    Open,
}

/// The policy of a log, with its authorities said in this way; `None`: it has none.
fn signed_policy(log: &[u8], signed: Signed) -> Option<Value> {
    let (_, mut policy) = policy_of(log);
    let table = policy["secure_boot"].as_object_mut()?;
    if signed == Signed::Listed {
        return table.contains_key("authorities").then_some(policy);
    }
    let authorities = table.remove("authorities")?;
    if signed == Signed::Open {
        return Some(policy);
    }
    let images = ["shim", "boot-loader", "kernel", "uki", "application"];
    let components = policy["component"].as_array_mut()?.iter_mut();
    let images = components.filter(|component| {
        let kind = component.get("kind").unwrap_or_else(|| &component["name"]);
        images.contains(&kind.as_str().unwrap())
    });
    for (at, image) in images.enumerate() {
        image.as_object_mut()?.remove("digests");
        match (signed, at) {
            (Signed::AndAny, 0) => image["any"] = true.into(),
            _ => image["signers"] = authorities.clone(),
        }
    }
    Some(policy)
}

#[test]
fn a_merged_policy_lets_the_signers_of_both_sign() {
    const WAYS: [Signed; 4] = [
        Signed::Listed,
        Signed::Signers,
        Signed::AndAny,
        Signed::Open,
    ];
    let logs = LOGS.map(fixture);
    let logs: Vec<_> = logs
        .iter()
        .filter(|log| signed_policy(log, Signed::Listed).is_some())
        .collect();
    assert!(!logs.is_empty());
    let mut merged = Vec::new();
    for (one, other) in logs
        .iter()
        .flat_map(|one| logs.iter().map(move |other| (one, other)))
    {
        for (way, other_way) in WAYS
            .into_iter()
            .flat_map(|way| WAYS.map(|other| (way, other)))
        {
            let policies = [(one, way), (other, other_way)];
            let policies = policies.map(|(log, way)| signed_policy(log, way).unwrap());
            for (policy, log) in policies.iter().zip([one, other]) {
                let findings = judge(&parse(policy), log);
                assert!(findings.is_empty(), "{way:?}, {other_way:?}: {findings:?}");
            }
            let [mine, theirs] = policies.map(|policy| policy.to_string());
            let both = match BootPolicy::merge(&mine, &theirs) {
                Ok(both) => BootPolicy::parse(Some(&both.json)).unwrap(),
                Err(PolicyError::BootMerge(_)) => continue,
                Err(error) => panic!("{error}"),
            };
            for log in [one, other] {
                let findings = judge(&both, log);
                assert!(findings.is_empty(), "{way:?}, {other_way:?}: {findings:?}");
            }
            merged.push((way, other_way));
        }
    }
    for way in WAYS {
        for other in WAYS {
            let signers = [Signed::Signers, Signed::AndAny];
            let halves = |one, other| one == Signed::Open && signers.contains(&other);
            let said = !halves(way, other) && !halves(other, way);
            assert_eq!(merged.contains(&(way, other)), said, "{way:?}, {other:?}");
        }
    }
}
