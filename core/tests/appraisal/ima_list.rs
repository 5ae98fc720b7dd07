use std::sync::LazyLock;

use proptest::prelude::*;
use troth_core::ima::{
    AnomalyKind, ImaPosition, Replay, replay, unverified_entries, unverified_replay,
};
use troth_core::policy::RuntimePolicy;
use troth_core::tpm::{Digest, HashAlgorithm, VerifiedQuote};

use super::tpm::{Tpm, captured_quote, mask};
use super::{text_fixture, vectors};

static LIST: LazyLock<String> =
    LazyLock::new(|| vectors("ima.json")["list"].as_str().unwrap().to_owned());

fn value(pointer: &str) -> Digest {
    Digest::from_hex(
        vectors("ima.json")
            .pointer(pointer)
            .unwrap()
            .as_str()
            .unwrap(),
    )
    .unwrap()
}

/// A quote over PCR 10 with the given value.
fn quote(pcr: &Digest) -> VerifiedQuote {
    let bank = match pcr.as_bytes().len() {
        48 => HashAlgorithm::Sha384,
        _ => HashAlgorithm::Sha256,
    };
    let mut tpm = Tpm::new(bank);
    tpm.pcrs.set(10, *pcr);
    tpm.verified(mask([10]))
}

fn from_start<'q, 'l>(list: &'l str, quote: &'q VerifiedQuote) -> Replay<'q, 'l> {
    replay(list, &ImaPosition::default(), HashAlgorithm::Sha1, quote)
}

#[test]
fn the_vector_matches_after_each_of_its_lines() {
    for lines in 0..=9u64 {
        let pcr = match lines {
            0 => Digest::zero(HashAlgorithm::Sha256),
            lines => value(&format!("/pcr10_sha256/{}", lines - 1)),
        };
        let quote = quote(&pcr);
        let replay = from_start(&LIST, &quote);
        assert_eq!(replay.anomalies.total, 0);
        let list = replay.outcome.unwrap();
        assert_eq!(list.covered(), lines);
        let expected = ImaPosition {
            next_entry: lines,
            pcr: Some(pcr),
            lag: 9 - lines,
            ..ImaPosition::default()
        };
        assert_eq!(list.position(), expected);
        assert_eq!(u64::try_from(list.entries().count()).unwrap(), lines);
    }
}

#[test]
fn the_vector_matches_in_the_sha384_bank() {
    let quote = quote(&value("/pcr10_sha384"));
    assert_eq!(from_start(&LIST, &quote).outcome.unwrap().covered(), 9);
}

#[test]
fn violations_are_those_with_a_zero_template_hash() {
    let quote = quote(&value("/pcr10_sha256/8"));
    let list = from_start(&LIST, &quote).outcome.unwrap();
    let violations: Vec<_> = list
        .entries()
        .filter(|e| e.is_violation())
        .map(|e| e.name)
        .collect();
    assert_eq!(violations, ["/var/log/open-writer"]);
}

#[test]
fn captured_lists_replay_to_the_quoted_pcr() {
    for (boot, entries) in [("uki", 1_641), ("grub", 1_633)] {
        let quote = captured_quote(boot);
        for (suffix, hash) in [
            ("", HashAlgorithm::Sha1),
            ("_sha256", HashAlgorithm::Sha256),
        ] {
            let file = format!("boots/{boot}/ima-ascii_runtime_measurements{suffix}");
            let list = text_fixture(&file);
            let replay = replay(&list, &ImaPosition::default(), hash, &quote);
            assert_eq!(replay.anomalies.total, 0, "{file}");
            let list = replay.outcome.unwrap();
            assert_eq!(list.covered(), entries, "{file}");
            assert_eq!(
                list.entries().filter(|entry| entry.is_violation()).count(),
                2,
                "{file}"
            );
        }
    }
}

#[test]
fn a_policy_made_of_a_captured_list_lists_every_file_of_it() {
    let list = text_fixture("boots/grub/ima-ascii_runtime_measurements");
    let json = RuntimePolicy::json_from_ima_list(&list, 1_795_370_000).unwrap();
    let policy = RuntimePolicy::compile(json.as_bytes()).unwrap();
    for entry in unverified_entries(&list, 0, HashAlgorithm::Sha1).map(Result::unwrap) {
        let allowed = policy.digests().get(entry.name);
        let listed = allowed.is_some_and(|allowed| allowed.contains(entry.digest.as_bytes()));
        assert!(listed || entry.is_violation(), "{}", entry.name);
    }
    assert!(policy.digests().get("/usr/bin/not-there").is_none());
}

#[test]
fn a_policy_made_of_the_vector_knows_keys_from_buffers() {
    let json = RuntimePolicy::json_from_ima_list(&LIST, 0).unwrap();
    let policy = RuntimePolicy::compile(json.as_bytes()).unwrap();
    assert!(policy.keyrings().get(".ima").is_some());
    assert!(policy.ima_buf().get("kernel_info").is_some());
    assert!(policy.digests().get("/opt/my file.txt").is_some());
    assert!(
        policy.digests().get("/var/log/open-writer").is_none(),
        "violations allow nothing"
    );
    let lines: String = LIST.split_inclusive('\n').take(8).collect();
    let error = RuntimePolicy::json_from_ima_list(&format!("{lines}x\n"), 0).unwrap_err();
    assert!(error.to_string().contains("entry 8"), "{error}");
}

#[test]
fn lists_that_do_not_lead_to_the_quoted_value_mismatch() {
    let quote = quote(&value("/pcr10_sha256/8"));
    let lines: Vec<_> = LIST.lines().collect();
    let join = |lines: &[&str]| lines.join("\n") + "\n";
    let truncated = join(&lines[..8]);
    let beheaded = join(&lines[1..]);
    let mut swapped = lines.clone();
    swapped.swap(3, 4);
    let altered = LIST.replacen("/usr/bin/true", "/usr/bin/trve", 1);
    for list in [truncated, beheaded, join(&swapped), altered, String::new()] {
        let mismatch = from_start(&list, &quote).outcome.unwrap_err();
        assert_eq!(mismatch.quoted, Some(value("/pcr10_sha256/8")));
        assert_eq!(
            mismatch.entries,
            u64::try_from(list.lines().count()).unwrap()
        );
    }
}

#[test]
fn what_is_wrong_with_a_line_is_told_by_entry() {
    let quote = quote(&value("/pcr10_sha256/8"));
    let anomalies = |list: &str| {
        let replay = from_start(list, &quote);
        let kinds = replay
            .anomalies
            .first
            .into_iter()
            .map(|anomaly| (anomaly.entry, anomaly.kind));
        (kinds.collect::<Vec<_>>(), replay.outcome.is_ok())
    };
    let (first, matched) = anomalies(&LIST.replacen("/usr/bin/true", "/usr/bin/trve", 1));
    assert!(matches!(first[..], [(1, AnomalyKind::TemplateHash { .. })]) && !matched);
    let (first, matched) = anomalies(&LIST.replacen("\n10 ", "\n11 ", 1));
    assert!(matches!(first[..], [(1, AnomalyKind::Pcr(11))]) && matched);
    // A line of an unknown template is not replayed; nothing else is lost.
    let unknown = "10 0ce80743e3295d47fb02766d4972b545be179795 ima-ng3 ima:sha256:aa /a\n";
    let (first, matched) = anomalies(&format!("{unknown}{}", *LIST));
    assert!(
        matches!(
            first[..],
            [(0, AnomalyKind::Unparsable("unknown template"))]
        ) && matched
    );
}

#[test]
fn anomalies_are_counted_but_not_hoarded() {
    let quote = quote(&value("/pcr10_sha256/8"));
    let list = "x\n".repeat(5_000);
    let replay = from_start(&list, &quote);
    assert_eq!(
        (replay.anomalies.total, replay.anomalies.first.len()),
        (5_000, 1_000)
    );
}

#[test]
fn no_line_is_walked_again_for_each_that_is_no_entry() {
    const LINES: usize = 400_000;
    for (line, anomalies) in [("\n", 0), ("x\n", LINES), ("10 0\n", LINES)] {
        let list = line.repeat(LINES);
        let bank = HashAlgorithm::Sha256;
        let (pcr, found) = unverified_replay(&list, HashAlgorithm::Sha1, bank);
        assert_eq!(pcr, Digest::zero(bank));
        assert_eq!(usize::try_from(found.total), Ok(anomalies), "{line:?}");
    }
}

#[test]
fn progress_is_covering_what_was_beyond_the_last_quote() {
    let matched_at = |line: u64, lag: u64| {
        let quote = quote(&value(&format!("/pcr10_sha256/{}", line - 1)));
        let position = ImaPosition {
            lag,
            ..ImaPosition::default()
        };
        from_start(&LIST, &quote)
            .outcome
            .unwrap()
            .made_progress(&position)
    };
    assert!(matched_at(3, 0) && matched_at(3, 3) && matched_at(9, 100));
    assert!(!matched_at(3, 4));
}

proptest! {
    #[test]
    fn replay_in_two_parts_equals_replay_at_once(split in 0usize..=9, end in 0usize..=9) {
        let (split, end) = (split.min(end), split.max(end));
        let pcr = |lines: usize| match lines {
            0 => Digest::zero(HashAlgorithm::Sha256),
            lines => value(&format!("/pcr10_sha256/{}", lines - 1)),
        };
        let (first_quote, second_quote) = (quote(&pcr(split)), quote(&pcr(end)));
        let first = from_start(&LIST, &first_quote).outcome.unwrap().position();
        let rest: String = LIST.split_inclusive('\n').skip(split).collect();
        let second = replay(&rest, &first, HashAlgorithm::Sha1, &second_quote).outcome.unwrap();
        let at_once = from_start(&LIST, &second_quote).outcome.unwrap();
        prop_assert_eq!(second.position(), at_once.position());
        let names = |entry: troth_core::ima::Entry<'_>| (entry.index, entry.name.to_owned());
        let in_parts: Vec<_> = second.entries().map(names).collect();
        let all: Vec<_> = at_once.entries().skip(split).map(names).collect();
        prop_assert_eq!(in_parts, all);
    }

    #[test]
    fn any_text_is_replayed_without_panic(text in "(10 [0-9a-f]{40} ima(-ng|-sig|-buf)? (sha1:)?[0-9a-f]{0,40} [ -~]{0,20}\n?|\\PC{0,30}\n){0,8}") {
        let quote = quote(&value("/pcr10_sha256/8"));
        let _ = from_start(&text, &quote).outcome;
        for entry in unverified_entries(&text, 0, HashAlgorithm::Sha1).flatten() {
            entry.key();
        }
    }
}
