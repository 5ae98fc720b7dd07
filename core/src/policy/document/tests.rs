use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::policy::RuntimePolicy;

#[test]
fn times_are_utc_with_microseconds() {
    let document = PolicyDocument::new(1_795_456_568);
    assert_eq!(document.timestamp(), Some("2026-11-23 17:56:08.000000"));
}

fn digest(byte: u8, size: usize) -> Digest {
    Digest::from_slice(&vec![byte; size]).unwrap()
}

const P256: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEzf25ZUSND4goWDxGUKvHYyoGFkUpnjY/\
    VyIrMqBXN+h8xTG9URNNCtfg91zVUS9OG6FTvzW6kS8Erln8y6TPaA==";

fn spki() -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(P256).unwrap()
}

/// Read, with its parts in another order, with duplicates, and with members of other programs.
fn sample() -> String {
    let keys = json!({"meta": {"version": 1}, "pubkeys": [P256], "keyids": [7]}).to_string();
    json!({
        "verification-keys": keys,
        "site": {"b": [1.50, "x  y"], "a": null},
        "ima-buf": {"kernel_info": ["ee".repeat(32)]},
        "ima": {"ignored_keyrings": [".evm", ".evm"], "log_hash_alg": "sha256", "note": "n"},
        "keyrings": {".ima": ["dd".repeat(32)]},
        "excludes": ["/var/.*", "/tmp/.*", "/tmp/.*"],
        "digests": {"/b": ["bb".repeat(20), "aa".repeat(32), "bb".repeat(20)], "/a\"\n": ["cc".repeat(64)]},
        "release": 4,
        "meta": {"version": 1, "generator": 2, "timestamp": "2026-01-01 00:00:00.000000", "by": "me"},
    })
    .to_string()
}

#[test]
fn all_members_come_back_sorted_and_once() {
    let document = PolicyDocument::parse(sample().as_bytes()).unwrap();
    let text = document.to_json();
    let key = format!(r#"{{"keyids": [7], "pubkeys": ["{P256}"], "meta": {{"version":1}}}}"#);
    let expected = format!(
        r#"{{
"meta": {{"version": 1, "generator": 2, "timestamp": "2026-01-01 00:00:00.000000", "by": "me"}},
"release": 4,
"digests": {{
"/a\"\n": ["{}"],
"/b": ["{}", "{}"]
}},
"excludes": [
"/tmp/.*",
"/var/.*"
],
"keyrings": {{
".ima": ["{}"]
}},
"ima": {{"ignored_keyrings": [
".evm"
], "log_hash_alg": "sha256", "dm_policy": null, "note": "n"}},
"ima-buf": {{
"kernel_info": ["{}"]
}},
"verification-keys": "{}",
"site": {{"a":null,"b":[1.5,"x  y"]}}
}}
"#,
        "cc".repeat(64),
        "aa".repeat(32),
        "bb".repeat(20),
        "dd".repeat(32),
        "ee".repeat(32),
        key.replace('"', "\\\""),
    );
    assert_eq!(text, expected);
    assert_eq!(PolicyDocument::parse(text.as_bytes()).unwrap(), document);
}

#[test]
fn the_reader_refuses_what_the_compiler_refuses() {
    let sample: Value = serde_json::from_str(&sample()).unwrap();
    let cases = [
        ("/digests", json!({"/a": []})),
        ("/digests", json!({"/a": ["AA".repeat(32)]})),
        ("/keyrings", json!({"k": "aa"})),
        ("/meta", json!({"version": 1})),
        ("/meta/generator", json!(4)),
        ("/meta/version", json!(-1)),
        ("/release", json!("1")),
        ("/ima/log_hash_alg", json!("md5")),
        (
            "/ima",
            json!({"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": {}}),
        ),
        ("/excludes", json!(["("])),
        ("/verification-keys", json!(null)),
    ];
    for (pointer, value) in cases {
        let mut bad = sample.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        let text = bad.to_string();
        let error = PolicyDocument::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error, RuntimePolicy::compile(text.as_bytes()).unwrap_err());
    }
    let twice = sample.to_string().replacen('{', r#"{"site":1,"#, 1);
    let error = PolicyDocument::parse(twice.as_bytes()).unwrap_err();
    assert!(
        error.to_string().contains("\"site\" occurs twice"),
        "{error}"
    );
}

#[test]
fn digests_are_as_long_as_hashes_are() {
    let mut document = PolicyDocument::new(0);
    assert!(document.add_digest("/a", digest(1, 20)).unwrap());
    assert!(
        !document.add_digest("/a", digest(1, 20)).unwrap(),
        "it is there"
    );
    assert!(document.add_file("/a b", digest(1, 64)).unwrap());
    assert_eq!(document.digests().get("/a_b"), [digest(1, 64)]);
    let error = document.add_keyring(".ima", digest(1, 16)).unwrap_err();
    assert!(error.to_string().contains("\".ima\""), "{error}");
    assert!(document.keyrings().is_empty());
}

#[test]
fn a_bad_pattern_adds_nothing() {
    let mut document = PolicyDocument::new(0);
    let error = document.add_excludes(["/tmp/", "/x("]).unwrap_err();
    assert!(error.to_string().contains("/x("), "{error}");
    assert_eq!(document.excludes().len(), 0);
}

#[test]
fn keys_have_their_ids_or_get_them() {
    let computed = VerificationKeys::id(&spki()).unwrap();
    for (keyids, expected) in [
        (json!([]), computed),
        (json!([0]), computed),
        (json!([5]), 5),
    ] {
        let text = json!({"keyids": keyids, "pubkeys": [P256]}).to_string();
        let keys = VerificationKeys::parse(&text).unwrap();
        assert_eq!(keys.iter().collect::<Vec<_>>(), [(expected, &spki()[..])]);
    }
    let mut document = PolicyDocument::new(0);
    assert!(document.add_verification_key(None, &spki()).unwrap());
    assert!(
        !document
            .add_verification_key(Some(computed), &spki())
            .unwrap()
    );
    for (text, part) in [
        (
            json!({"keyids": [1, 2], "pubkeys": [P256]}).to_string(),
            "more keyids",
        ),
        (
            json!({"pubkeys": ["*"]}).to_string(),
            "pubkeys[0] is not base64",
        ),
        (json!({"pubkeys": ["AAAA"]}).to_string(), "no public key"),
        (json!({"keyids": [1]}).to_string(), "pubkeys"),
        ("{".to_owned(), "EOF"),
    ] {
        let error = VerificationKeys::parse(&text).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// The vector of the IMA key id: the last bytes of the SHA-1 that OpenSSL prints for the point.
#[test]
fn a_key_id_is_the_end_of_the_hash_of_the_point() {
    let point = &spki()[26..];
    let hash = HashAlgorithm::Sha1.digest(&[point]).to_string();
    let id = format!("{:08x}", VerificationKeys::id(&spki()).unwrap());
    assert!(point[0] == 4 && point.len() == 65 && hash.ends_with(&id));
    assert_eq!(VerificationKeys::id(b"no key"), None);
}

#[test]
fn policies_that_contradict_each_other_are_not_merged() {
    let base = PolicyDocument::parse(sample().as_bytes()).unwrap();
    for (from, to, member) in [
        (r#""sha256""#, r#""sha1""#, "ima.log_hash_alg"),
        (r#""note":"n""#, r#""note":"m""#, "ima.note"),
        (r#""by":"me""#, r#""by":"you""#, "meta.by"),
        (r#""a":null"#, r#""a":0"#, "`site`"),
        (r#""version":1}"#, r#""version":2}"#, "meta.version"),
    ] {
        let text = sample();
        let other = text.replace(from, to);
        assert_ne!(text, other, "{from}");
        let other = PolicyDocument::parse(other.as_bytes()).unwrap();
        let error = base.merge(other).unwrap_err().to_string();
        assert!(error.contains(member), "{error}");
    }
}

#[test]
fn a_diff_names_what_changed() {
    let mut old = PolicyDocument::new(0);
    old.add_digest("/kept", digest(1, 32)).unwrap();
    old.add_digest("/gone", digest(2, 32)).unwrap();
    old.add_excludes(["/tmp/"]).unwrap();
    let mut new = PolicyDocument::new(1);
    new.add_digest("/kept", digest(3, 32)).unwrap();
    new.add_digest("/new", digest(2, 32)).unwrap();
    new.add_verification_key(Some(0xabcd), &spki()).unwrap();
    let diff = old.diff(&new);
    let kinds: Vec<_> = diff
        .digests
        .iter()
        .map(|(name, change)| (name.as_str(), change.kind))
        .collect();
    let expected = [
        ("/gone", ChangeKind::Removed),
        ("/kept", ChangeKind::Changed),
        ("/new", ChangeKind::Added),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(diff.digests["/kept"].removed, [digest(1, 32)]);
    assert_eq!(diff.digests["/kept"].added, [digest(3, 32)]);
    assert_eq!(diff.excludes.removed, ["/tmp/"]);
    assert!(diff.verification_keys.added[0].starts_with("0000abcd:"));
    assert!(!diff.is_time_alone());
    let mut later = new.clone();
    later.set_timestamp(9);
    assert!(new.diff(&later).is_time_alone() && !new.diff(&later).is_empty());
}

/// A policy from few names and digests, so that two of them have much in common.
fn any_document() -> impl Strategy<Value = PolicyDocument> {
    let name = prop::sample::select(vec!["/a", "/b c", "/d\n\"e", "boot_aggregate", "\u{e9}"]);
    let digest = (0u8..4, prop::sample::select(vec![20usize, 32, 64]))
        .prop_map(|(byte, size)| digest(byte, size));
    let entry = (0u8..3, name, digest);
    let entries = prop::collection::vec(entry, 0..12);
    let excludes = prop::collection::btree_set("/[a-c]{1,2}", 0..4);
    let key = prop::option::of(Just(9u32));
    let other = prop::collection::btree_map("[p-r]", Just("[1,\"  \"]".into()), 0..3);
    (entries, excludes, key, other, 0u64..3, 0u8..4).prop_map(
        |(entries, excludes, key, other, time, generator)| {
            let mut document = PolicyDocument::new(time);
            for (kind, name, digest) in entries {
                match kind {
                    0 => document.add_digest(name, digest),
                    1 => document.add_keyring(name, digest),
                    _ => document.add_buffer(name, digest),
                }
                .unwrap();
            }
            document.generator = generator;
            document.release = time;
            document.ignored_keyrings = excludes.clone();
            document
                .add_excludes(excludes.iter().map(String::as_str))
                .unwrap();
            if key.is_some() {
                document.add_verification_key(key, &spki()).unwrap();
            }
            document.other = Members(other.clone());
            document.other_meta = Members(other.clone());
            document.other_ima = Members(other);
            document
        },
    )
}

/// `old` with what `diff` says; keys are taken from `new`, as a diff has only their hashes.
fn applied(mut old: PolicyDocument, diff: &PolicyDiff, new: &PolicyDocument) -> PolicyDocument {
    fn names(old: &DigestNames, changes: &BTreeMap<String, Change>) -> DigestNames {
        let mut names = DigestNames::default();
        let none = (Vec::new(), Vec::new());
        let added = changes.keys().map(|name| (name.as_str(), old.get(name)));
        for (name, digests) in old.iter().chain(added) {
            let change = changes.get(name);
            let (removed, added) =
                change.map_or_else(|| none.clone(), |c| (c.removed.clone(), c.added.clone()));
            for digest in digests
                .iter()
                .filter(|d| !removed.contains(d))
                .chain(&added)
            {
                names.add(name, *digest).unwrap();
            }
        }
        names
    }
    fn set(old: &mut BTreeSet<String>, change: &SetChange) {
        old.retain(|text| !change.removed.contains(text));
        old.extend(change.added.iter().cloned());
    }
    old.digests = names(&old.digests, &diff.digests);
    old.keyrings = names(&old.keyrings, &diff.keyrings);
    old.ima_buf = names(&old.ima_buf, &diff.ima_buf);
    set(&mut old.excludes, &diff.excludes);
    set(&mut old.ignored_keyrings, &diff.ignored_keyrings);
    if !diff.verification_keys.is_empty() {
        old.verification_keys = new.verification_keys.clone();
    }
    for (pointer, [_, after]) in &diff.members {
        let number = || after.as_ref().unwrap().parse::<u64>().unwrap();
        match pointer.as_str() {
            "/meta/generator" => old.generator = u8::try_from(number()).unwrap(),
            "/meta/timestamp" => {
                old.timestamp = serde_json::from_str(after.as_ref().unwrap()).unwrap();
            }
            "/release" => old.release = number(),
            other => {
                let (above, name) = other.rsplit_once('/').unwrap();
                let members = match above {
                    "/meta" => &mut old.other_meta,
                    "/ima" => &mut old.other_ima,
                    "" => &mut old.other,
                    above => panic!("{above}"),
                };
                match after {
                    Some(value) => members.0.insert(name.to_owned(), value.as_str().into()),
                    None => members.0.remove(name),
                };
            }
        }
    }
    old
}

proptest! {
    #[test]
    fn merging_is_a_union(a in any_document(), b in any_document(), c in any_document()) {
        let merge = |a: &PolicyDocument, b: &PolicyDocument| a.merge(b.clone()).unwrap();
        prop_assert_eq!(merge(&a, &b), merge(&b, &a));
        prop_assert_eq!(&merge(&a, &a), &a);
        prop_assert_eq!(merge(&merge(&a, &b), &c), merge(&a, &merge(&b, &c)));
        let both = merge(&a, &b);
        for document in [&a, &b] {
            for (name, digests) in document.digests().iter() {
                prop_assert!(digests.iter().all(|digest| both.digests().get(name).contains(digest)));
            }
        }
    }

    #[test]
    fn a_diff_leads_from_one_to_the_other(a in any_document(), b in any_document()) {
        prop_assert!(a.diff(&a).is_empty());
        let diff = a.diff(&b);
        prop_assert_eq!(diff.is_empty(), a == b);
        prop_assert_eq!(applied(a, &diff, &b), b);
    }

    #[test]
    fn what_is_written_is_read_and_judges_alike(document in any_document()) {
        let text = document.to_json();
        let read = PolicyDocument::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(&read, &document);
        prop_assert_eq!(read.to_json(), text.clone());
        let compiled = RuntimePolicy::compile(text.as_bytes()).unwrap();
        let tables = [
            (document.digests(), compiled.digests()),
            (document.keyrings(), compiled.keyrings()),
            (document.ima_buf(), compiled.ima_buf()),
        ];
        for (names, table) in tables {
            prop_assert_eq!(names.len(), table.len());
            for (name, digests) in names.iter() {
                let allowed: Vec<_> = table.get(name).unwrap().collect();
                prop_assert_eq!(allowed, digests.iter().map(Digest::as_bytes).collect::<Vec<_>>());
            }
        }
        prop_assert!(document.ignored_keyrings().all(|name| compiled.ignores_keyring(name)));
        prop_assert_eq!(compiled.generator(), document.generator());
        prop_assert_eq!(compiled.verification_keys().is_empty(), document.verification_keys().is_empty());
    }
}
