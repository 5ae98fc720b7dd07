/// Devices of the device mapper.
mod devices;
/// Hosts made of rules: a list, the policy it is judged by, and the PCR 10 that belongs to it.
mod host;
/// Keys that files are signed with.
mod keys;
/// What can happen on a host: each rule adds entries, and what the policy says of them.
mod rules;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use troth_core::appraise::{AcceptedAlgorithms, Finding, ImaRules, Policies, appraise_evidence};
use troth_core::policy::{BootPolicy, RuntimePolicy, TpmPolicy};
use troth_core::tpm::AttestationKey;
use troth_core::wire::QuoteResponse;
use troth_tests::keylime::Oracle;
use troth_tests::software_ak::SoftwareAk;

use self::host::Host;
use self::keys::Keys;
use self::rules::{BAD, DIFFERENT, GOOD, Rule};

/// Cases that are judged by both.
const CASES: u64 = 1_000;
/// Most rules of one case.
const MOST_RULES: usize = 8;

/// How often a rule was in a case that was accepted, and in one that was rejected.
type Coverage = BTreeMap<&'static str, [u32; 2]>;

/// A thousand hosts: whatever Keylime accepts is accepted here, and whatever it rejects is
/// rejected. Where the two differ on purpose is in docs/compatibility.md.
#[test]
fn every_list_is_judged_as_keylime_judges_it() {
    let directory = TempDir::new().unwrap();
    let mut oracle = Oracle::start(directory.path()).unwrap();
    let keys = Keys::generate();
    let ak = SoftwareAk::generate_ecc().unwrap();
    let mut coverage: Coverage = GOOD
        .iter()
        .chain(BAD)
        .map(|(name, _)| (*name, [0, 0]))
        .collect();
    let mut rejected = 0;
    let mut differences = String::new();
    for seed in 0..CASES {
        let mut random = StdRng::seed_from_u64(seed);
        let rules = pick(&mut random);
        let mut host = Host::new(&keys, random);
        for (_, rule) in &rules {
            rule(&mut host);
        }
        let theirs = oracle.ima_list(&host.question()).unwrap();
        let ours = judge(&ak, &host);
        let names: Vec<_> = rules.iter().map(|(name, _)| *name).collect();
        if ours.is_empty() != theirs.is_empty() {
            let _ = writeln!(
                differences,
                "case {seed}, {}:\n  theirs {theirs:?}\n  ours {ours:?}\n{}\n{}",
                names.join(", "),
                host.policy(),
                host.list(),
            );
        }
        rejected += u64::from(!theirs.is_empty());
        for name in names {
            let counts = coverage.entry(name).or_default();
            counts[usize::from(!theirs.is_empty())] += 1;
        }
    }
    println!(
        "{rejected} of {CASES} rejected\n{:40} accepted rejected",
        "rule"
    );
    for (name, [accepted, rejected]) in &coverage {
        println!("{name:40} {accepted:8} {rejected:8}");
    }
    assert!(differences.is_empty(), "{differences}");
    assert!(
        (CASES * 2 / 5..=CASES * 3 / 5).contains(&rejected),
        "{rejected}"
    );
    for (name, _) in GOOD {
        assert!(coverage[name][0] > 0, "{name} was in no accepted case");
    }
    for (name, _) in BAD {
        let [accepted, rejected] = coverage[name];
        assert!(
            accepted == 0 && rejected > 0,
            "{name}: {accepted}, {rejected}"
        );
    }
}

/// The differences on purpose of docs/compatibility.md, each as it is said there.
#[test]
fn where_lists_are_judged_otherwise_on_purpose() {
    let directory = TempDir::new().unwrap();
    let mut oracle = Oracle::start(directory.path()).unwrap();
    let keys = Keys::generate();
    let ak = SoftwareAk::generate_ecc().unwrap();
    for ((name, rule), accepted) in DIFFERENT {
        let mut host = Host::new(&keys, StdRng::seed_from_u64(1));
        rule(&mut host);
        let (ours, theirs) = (
            judge(&ak, &host),
            oracle.ima_list(&host.question()).unwrap(),
        );
        assert_eq!(ours.is_empty(), *accepted, "{name}: {ours:?}");
        assert_eq!(theirs.is_empty(), !accepted, "{name}: {theirs:?}");
    }
}

/// Some good rules, and in half of the cases a bad one among them.
fn pick(random: &mut StdRng) -> Vec<Rule> {
    let count = random.random_range(1..=MOST_RULES);
    let mut rules: Vec<Rule> = (0..count)
        .filter_map(|_| GOOD.choose(random).copied())
        .collect();
    if random.random_bool(0.5) {
        let at = random.random_range(0..=rules.len());
        rules.extend(BAD.choose(random).copied());
        let last = rules.len() - 1;
        rules.swap(at.min(last), last);
    }
    rules
}

/// The ids of what is wrong with the host.
fn judge(ak: &SoftwareAk, host: &Host<'_>) -> Vec<String> {
    let policy = match RuntimePolicy::compile(host.policy().as_bytes()) {
        Ok(policy) => policy,
        Err(error) => return vec![format!("refused: {error}")],
    };
    let key = AttestationKey::new(ak.public()).unwrap();
    let accept = AcceptedAlgorithms::of(&key);
    let nonce = "0123456789ABCDEFGHIJ";
    let evidence = QuoteResponse {
        quote: ak.quote(nonce.as_bytes(), &host.pcrs(), 1_000).unwrap(),
        hash_alg: "sha256".to_owned(),
        ima_measurement_list: Some(host.list().to_owned()),
        ima_measurement_list_entry: Some(0),
        ..QuoteResponse::default()
    };
    let policies = Policies {
        tpm: &TpmPolicy::parse(r#"{"mask": "0x7ff"}"#).unwrap(),
        runtime: Some(&policy),
        boot: &BootPolicy::None,
        accept: &accept,
        ima: ImaRules::default(),
    };
    match appraise_evidence(&key, nonce, &evidence, &policies) {
        Ok(()) => Vec::new(),
        Err(findings) => findings.into_iter().map(|Finding { id, .. }| id).collect(),
    }
}
