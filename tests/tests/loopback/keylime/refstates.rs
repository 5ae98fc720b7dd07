use std::fs;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use troth_core::appraise::{AcceptedAlgorithms, ImaRules, Policies, appraise_evidence};
use troth_core::eventlog::EventLog;
use troth_core::policy::{BootPolicy, Refstate, TpmPolicy};
use troth_core::tpm::{AttestationKey, HashAlgorithm, PcrValues};
use troth_core::wire::QuoteResponse;
use troth_tests::boot::fixtures;
use troth_tests::keylime::boot_verdicts;
use troth_tests::software_ak::SoftwareAk;

/// Does our verifier accept a host that booted as `log` tells?
fn accepts(software: &SoftwareAk, log: &[u8], state: &Value) -> bool {
    let (Ok(policy), Ok(parsed)) = (
        BootPolicy::parse(Some(&state.to_string())),
        EventLog::parse(log),
    ) else {
        return false;
    };
    let bank = HashAlgorithm::Sha256;
    let mut pcrs = PcrValues::new(bank);
    let replayed = parsed.replay(bank);
    let quoted = replayed.iter().filter(|(pcr, _)| *pcr != 10);
    quoted.for_each(|(pcr, value)| pcrs.set(pcr, *value));
    let evidence = QuoteResponse {
        quote: software.quote(b"nonce", &pcrs, 1).unwrap(),
        hash_alg: bank.name().to_owned(),
        mb_measurement_list: Some(BASE64_STANDARD.encode(log)),
        ..QuoteResponse::default()
    };
    let ak = AttestationKey::new(software.public()).unwrap();
    let policies = Policies {
        tpm: &TpmPolicy::parse(r#"{"mask": "0x0"}"#).unwrap(),
        runtime: None,
        boot: &policy,
        accept: &AcceptedAlgorithms::of(&ak),
        ima: ImaRules::default(),
    };
    appraise_evidence(&ak, "nonce", &evidence, &policies).is_ok()
}

/// Every refstate that differs from `state` in one place.
fn altered(state: &Value) -> Vec<Value> {
    fn walk(value: &Value, path: &str, paths: &mut Vec<String>) {
        paths.push(path.to_owned());
        match value {
            Value::Object(members) => members
                .iter()
                .for_each(|(name, value)| walk(value, &format!("{path}/{name}"), paths)),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .for_each(|(at, value)| walk(value, &format!("{path}/{at}"), paths)),
            _ => {}
        }
    }
    let mut paths = Vec::new();
    walk(state, "", &mut paths);
    let mut all = Vec::new();
    for path in paths.iter().filter(|path| !path.is_empty()) {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let mut without = state.clone();
        match without.pointer_mut(parent).unwrap() {
            Value::Object(members) => drop(members.remove(name)),
            Value::Array(items) => drop(items.remove(name.parse().unwrap())),
            _ => continue,
        }
        all.push(without);
        let mut changed = state.clone();
        let value = changed.pointer_mut(path).unwrap();
        *value = match value.clone() {
            Value::Bool(on) => json!(!on),
            // Another last digit, which is still one.
            Value::String(text) if text.starts_with("0x") => {
                let last = if text.ends_with('0') { "1" } else { "0" };
                json!(format!("{}{last}", &text[..text.len() - 1]))
            }
            Value::String(text) if path.ends_with("cmdline") => json!(format!("{text}x|.*")),
            Value::Array(mut items) if !items.is_empty() => {
                items.push(items[0].clone());
                json!(items)
            }
            _ => continue,
        };
        all.push(changed);
    }
    all
}

/// Logs with one event more or less.
fn recut(log: &[u8]) -> Vec<Vec<u8>> {
    let parsed = EventLog::parse(log).unwrap();
    let base = log.as_ptr() as usize;
    let ends: Vec<_> = parsed
        .unverified_events()
        .map(|event| event.data.as_ptr() as usize - base + event.data.len())
        .collect();
    let spans = ends.windows(2).map(|span| (span[0], span[1]));
    spans
        .flat_map(|(start, end)| {
            let less = [&log[..start], &log[end..]].concat();
            let more = [&log[..end], &log[start..]].concat();
            [less, more]
        })
        .collect()
}

#[test]
fn refstates_are_judged_as_their_engine_does() {
    let directory = tempfile::tempdir().unwrap();
    let vectors = fs::read(fixtures().join("vectors/boot-log.json")).unwrap();
    let vectors: Value = serde_json::from_slice(&vectors).unwrap();
    let example = BASE64_STANDARD
        .decode(vectors["log"].as_str().unwrap())
        .unwrap();
    let state = &vectors["refstate"];
    let mut cases: Vec<(Vec<u8>, Value)> = vec![(example.clone(), state.clone())];
    cases.extend(
        altered(state)
            .into_iter()
            .map(|state| (example.clone(), state)),
    );
    cases.extend(recut(&example).into_iter().map(|log| (log, state.clone())));
    for name in [
        "boots/grub/binary_bios_measurements",
        "boots/kernel/binary_bios_measurements",
        "boots/sdboot/binary_bios_measurements",
        "boots/uki/binary_bios_measurements",
        "public-logs/coreos_36_shielded_vm_no_secure_boot_eventlog",
        "public-logs/ubuntu_2104_shielded_vm_no_secure_boot_eventlog",
    ] {
        let log = fs::read(fixtures().join(name)).unwrap();
        let made = Refstate::json_from_log(&EventLog::parse(&log).unwrap(), true).unwrap();
        cases.push((log.clone(), serde_json::from_str(&made).unwrap()));
        cases.push((log, state.clone()));
    }
    let mut written = Vec::new();
    for (index, (log, state)) in cases.iter().enumerate() {
        let path = directory.path().join(format!("{index}.bin"));
        fs::write(&path, log).unwrap();
        written.push(json!([path, state]));
    }
    let file = directory.path().join("cases.json");
    fs::write(&file, json!(written).to_string()).unwrap();
    let theirs = boot_verdicts(&file).unwrap();
    let software = SoftwareAk::generate().unwrap();
    let mut accepted = 0;
    for (index, ((log, state), theirs)) in cases.iter().zip(&theirs).enumerate() {
        let ours = accepts(&software, log, state);
        assert_eq!(ours, *theirs, "case {index}: {state:#}");
        accepted += usize::from(ours);
    }
    assert!(
        theirs.len() > 100 && accepted > 10,
        "{accepted} of {}",
        theirs.len()
    );
}
