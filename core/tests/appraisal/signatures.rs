use serde_json::{Value, json};
use troth_core::appraise::NodeState;
use troth_core::ima::{Keyring, LearnedKeys};
use troth_core::policy::RuntimePolicy;
use troth_core::tpm::HashAlgorithm;

use super::judged::{NOT_LISTED, Node, findings, ids, trusted};
use super::templates::{Measured, digest};
use super::vectors;

/// A policy that lists no file, with `keys` of the vectors, and `change`d.
fn policy(keys: &[&str], change: impl FnOnce(&mut Value)) -> RuntimePolicy {
    let mut policy = json!({
        "meta": {"version": 1, "generator": 3}, "release": 0, "digests": {}, "excludes": [],
        "keyrings": {}, "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null},
        "ima-buf": {}, "verification-keys": keyring(keys),
    });
    change(&mut policy);
    RuntimePolicy::compile(policy.to_string().as_bytes()).unwrap()
}

/// Keylime's JSON of a keyring.
fn keyring(keys: &[&str]) -> String {
    let vectors = vectors("ima-signatures.json");
    let keys: Vec<_> = keys
        .iter()
        .map(|key| vectors["keys"][key].clone())
        .collect();
    json!({"meta": {"version": 1}, "keyids": [], "pubkeys": keys}).to_string()
}

/// A signature of the vectors as an entry, and what the kernel prints of it.
fn signed(vector: &Value, verity: bool) -> (Measured, String) {
    let text = |name: &str| vector[name].as_str().unwrap().to_owned();
    let (hash, hex, signature) = (text("hash"), text("digest"), text("signature"));
    let (template, prefix) = match verity {
        true => ("ima-sigv2", format!("verity:{hash}")),
        false => ("ima-sig", hash),
    };
    let path = format!("/signed/{}", text("key"));
    let bytes = |hex: &str| hex::decode(hex).unwrap();
    let fields = [
        digest(&prefix, &bytes(&hex)),
        [path.as_bytes(), b"\0"].concat(),
        bytes(&signature),
    ];
    let fields: Vec<_> = fields.iter().map(Vec::as_slice).collect();
    let entry = Measured::new(template, &fields);
    (entry, format!("{prefix}:{hex} {path} {signature}"))
}

fn node(policy: RuntimePolicy, entry: &(Measured, String)) -> Node {
    let mut node = Node::new(Some(policy));
    node.measure_entry(&entry.0, &entry.1);
    node
}

/// What the only finding says of the signature.
fn fault(node: &mut Node) -> String {
    let appraisal = node.attest();
    assert_eq!(ids(&appraisal), [NOT_LISTED]);
    findings(&appraisal)[0].explanation.clone()
}

fn of<'v>(all: &'v Value, key: &str, hash: &str) -> &'v Value {
    let mut all = all.as_array().unwrap().iter();
    all.find(|vector| vector["key"] == key && vector["hash"] == hash)
        .unwrap()
}

/// A key that the kernel measured when it was added to `ring`, and its digest.
fn measured_key(ring: &str, certificate: usize) -> ((Measured, String), String) {
    let data = vectors("ima-signatures.json")["certificates"][certificate]["data"].clone();
    let hex_data = data.as_str().unwrap().to_owned();
    let data = hex::decode(&hex_data).unwrap();
    let hash = HashAlgorithm::Sha256.digest(&[&data]);
    let name = [ring.as_bytes(), b"\0"].concat();
    let entry = Measured::new(
        "ima-buf",
        &[&digest("sha256", hash.as_bytes()), &name, &data],
    );
    (
        (entry, format!("sha256:{hash} {ring} {hex_data}")),
        hash.to_string(),
    )
}

/// The vector's signature under another key id, which is no part of what is signed.
fn with_id(vector: &Value, id: &str) -> Value {
    let mut vector = vector.clone();
    let mut signature = vector["signature"].as_str().unwrap().to_owned();
    signature.replace_range(6..14, id);
    vector["signature"] = json!(signature);
    vector
}

#[test]
fn signatures_of_evmctl_are_verified_with_every_key_and_hash() {
    let vectors = vectors("ima-signatures.json");
    for vector in vectors["signatures"].as_array().unwrap() {
        let (key, hash) = (vector["key"].as_str().unwrap(), &vector["hash"]);
        if key == "rsa1024" {
            let mut text = json!({"verification-keys": keyring(&[key])});
            text = json!({
                "meta": {"version": 1, "generator": 3}, "release": 0, "digests": {},
                "excludes": [], "keyrings": {}, "ima-buf": {},
                "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null},
                "verification-keys": text["verification-keys"],
            });
            let error = RuntimePolicy::compile(text.to_string().as_bytes()).unwrap_err();
            assert!(error.to_string().contains("pubkeys[0]"), "{error}");
            continue;
        }
        let mut node = node(policy(&[key], |_| {}), &signed(vector, false));
        if key.starts_with("rsa") && hash == "sha224" {
            assert!(fault(&mut node).contains("not used with that hash"));
        } else {
            assert_eq!(trusted(&node.attest()), 1, "{key} {hash}");
        }
    }
    for vector in vectors["verity"].as_array().unwrap() {
        let key = vector["key"].as_str().unwrap();
        let mut node = node(policy(&[key], |_| {}), &signed(vector, true));
        assert_eq!(trusted(&node.attest()), 1, "{vector}");
    }
}

#[test]
fn a_signature_that_does_not_count_says_why() {
    let all = vectors("ima-signatures.json");
    let good = of(&all["signatures"], "prime256v1", "sha256");
    type Change<'c> = &'c dyn Fn(&mut Value);
    let cases: [(&str, Change<'_>, &str); 6] = [
        ("rsa2048", &|_| {}, "no key with id"),
        (
            "prime256v1",
            &|v| v["digest"] = json!("00".repeat(32)),
            "did not make it for this digest",
        ),
        (
            "prime256v1",
            &|v| v["hash"] = json!("sm3"),
            "another hash algorithm",
        ),
        (
            "prime256v1",
            &|v| v["signature"] = json!("0302"),
            "it is cut",
        ),
        (
            "prime256v1",
            &|v| v["signature"] = json!("0402040000"),
            "type 4, version 2",
        ),
        (
            "prime256v1",
            &|v| v["signature"] = all["version1"].clone(),
            "version 1",
        ),
    ];
    for (key, change, expected) in cases {
        let mut vector = good.clone();
        change(&mut vector);
        let text = fault(&mut node(policy(&[key], |_| {}), &signed(&vector, false)));
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // Neither kind of digest stands for the other.
    let verity = of(&all["verity"], "prime256v1", "sha256");
    for (vector, as_verity) in [(good, true), (verity, false)] {
        let mut node = node(policy(&["prime256v1"], |_| {}), &signed(vector, as_verity));
        assert!(fault(&mut node).contains("of another kind"));
    }
}

#[test]
fn excluded_listed_or_signed_is_enough() {
    let all = vectors("ima-signatures.json");
    let good = of(&all["signatures"], "prime256v1", "sha256");
    let entry = signed(good, false);
    type Change = fn(&mut Value);
    let digest = good["digest"].clone();
    let cases: [(&[&str], Change, bool); 4] = [
        (&[], |p| p["excludes"] = json!(["/signed/"]), true),
        (
            &["prime256v1"],
            |p| p["digests"]["/signed/prime256v1"] = json!(["00".repeat(32)]),
            true,
        ),
        (&["rsa2048"], |_| {}, false),
        (&[], |_| {}, false),
    ];
    for (keys, change, good) in cases {
        let appraisal = node(policy(keys, change), &entry).attest();
        if good {
            assert_eq!(trusted(&appraisal), 1);
        } else {
            assert_eq!(ids(&appraisal), [NOT_LISTED]);
        }
    }
    let listed = policy(&[], |p| {
        p["digests"]["/signed/prime256v1"] = json!([digest])
    });
    assert_eq!(trusted(&node(listed, &entry).attest()), 1);
}

#[test]
fn keys_sent_with_the_node_stand_for_those_of_its_policy() {
    let all = vectors("ima-signatures.json");
    let entry = signed(of(&all["signatures"], "prime256v1", "sha256"), false);
    let keys = |keys: &[&str]| Some(Keyring::from_json(&keyring(keys)).unwrap());
    let mut one = node(policy(&["rsa2048"], |_| {}), &entry);
    one.keys = keys(&["prime256v1"]);
    assert_eq!(trusted(&one.attest()), 1);
    let mut other = node(policy(&["prime256v1"], |_| {}), &entry);
    other.keys = keys(&["rsa2048"]);
    assert_eq!(ids(&other.attest()), [NOT_LISTED]);
    other.keys = keys(&[]);
    assert_eq!(trusted(&other.attest()), 1);
    // Without any policy too.
    let mut bare = Node::new(None);
    bare.keys = keys(&["prime256v1"]);
    bare.measure_entry(&entry.0, &entry.1);
    assert_eq!(trusted(&bare.attest()), 1);
}

#[test]
fn keys_are_learned_when_the_policy_allows_them_and_kept_with_the_position() {
    let all = vectors("ima-signatures.json");
    let ((rsa, rsa_text), rsa_digest) = measured_key(".ima", 0);
    let ((ec, ec_text), ec_digest) = measured_key(".machine", 1);
    let allowed = |p: &mut Value| {
        p["keyrings"] = json!({".ima": [rsa_digest], ".machine": [ec_digest]});
    };
    // The certificate names the key's id; the other one is made of the key.
    let by_rsa = with_id(of(&all["signatures"], "rsa3072", "sha256"), "11121314");
    let by_ec = of(&all["signatures"], "secp384r1", "sha512");
    let mut node = node(policy(&[], allowed), &signed(by_ec, false));
    assert_eq!(ids(&node.attest()), [NOT_LISTED], "not learned yet");
    let mut node = Node::new(Some(policy(&[], allowed)));
    node.measure_entry(&rsa, &rsa_text);
    node.measure_entry(&ec, &ec_text);
    assert_eq!(trusted(&node.attest()), 2);
    assert_eq!(node.state.ima.keys.len(), 2);
    for vector in [&by_rsa, by_ec] {
        let (entry, text) = signed(vector, false);
        node.measure_entry(&entry, &text);
        trusted(&node.attest());
    }
    // A verifier that starts again knows them; and they are few bytes.
    let stored = serde_json::to_string(&node.state).unwrap();
    assert!(stored.len() <= 4096, "{} bytes", stored.len());
    assert_eq!(
        serde_json::from_str::<NodeState>(&stored).unwrap(),
        node.state
    );
    // Behind an entry with a finding nothing is learned for good.
    let mut late = Node::new(Some(policy(&[], allowed)));
    late.measure_entry(&rsa, &rsa_text);
    late.measure("/tmp/evil", &[9; 32]);
    late.measure_entry(&ec, &ec_text);
    let (entry, text) = signed(by_ec, false);
    late.measure_entry(&entry, &text);
    assert_eq!(ids(&late.attest()), [NOT_LISTED]);
    assert_eq!(
        (late.state.ima.next_entry, late.state.ima.keys.len()),
        (1, 1)
    );
    assert_eq!(ids(&late.attest()), [NOT_LISTED]);
    // A reboot forgets them.
    node.restart();
    node.measure_entry(&entry, &text);
    assert_eq!(ids(&node.attest()), [NOT_LISTED]);
    assert!(node.state.ima.keys.is_empty());
}

#[test]
fn keys_that_were_stored_without_their_digests_are_learned_anew() {
    let all = vectors("ima-signatures.json");
    let ((key, key_text), allowed) = measured_key(".ima", 1);
    let mut node = Node::new(Some(policy(&[], |p| {
        p["keyrings"] = json!({".ima": [allowed]});
    })));
    node.measure_entry(&key, &key_text);
    assert_eq!(trusted(&node.attest()), 1);
    // As versions stored it that did not ask later policies.
    let mut stored = serde_json::to_value(&node.state).unwrap();
    let old = stored["ima"]["keys"][0].as_object_mut().unwrap();
    old.remove("digest").unwrap();
    node.state = serde_json::from_value(stored).unwrap();
    assert_eq!(node.state.boottime, 1_700_000_000);
    let (file, text) = signed(of(&all["signatures"], "secp384r1", "sha512"), false);
    node.measure_entry(&file, &text);
    assert_eq!(trusted(&node.attest()), 2);
    assert_eq!(node.state.ima.keys.len(), 1);
}

#[test]
fn a_learned_key_counts_as_long_as_the_policy_allows_it() {
    let all = vectors("ima-signatures.json");
    let ((key, key_text), allowed) = measured_key(".ima", 1);
    let (file, file_text) = signed(of(&all["signatures"], "secp384r1", "sha512"), false);
    let other = "00".repeat(32);
    type Change<'c> = &'c dyn Fn(&mut Value);
    let cases: [(&str, Change<'_>, bool); 7] = [
        (
            "as before",
            &|p| p["keyrings"] = json!({".ima": [&other, &allowed]}),
            true,
        ),
        (
            "keyring excluded",
            &|p| p["excludes"] = json!([r"\.im"]),
            true,
        ),
        ("listed no more", &|_| {}, false),
        (
            "another key",
            &|p| p["keyrings"] = json!({".ima": [&other]}),
            false,
        ),
        (
            "another keyring",
            &|p| p["keyrings"] = json!({".evm": [&allowed]}),
            false,
        ),
        (
            "a file's digest",
            &|p| p["digests"][".ima"] = json!([&allowed]),
            false,
        ),
        (
            "keys are not judged",
            &|p| {
                p["keyrings"] = json!({".ima": [&allowed]});
                p["ima"]["ignored_keyrings"] = json!([".ima"]);
            },
            false,
        ),
    ];
    for (what, change, good) in cases {
        let mut node = Node::new(Some(policy(&[], |p| {
            p["keyrings"] = json!({".ima": [&allowed]});
        })));
        node.measure_entry(&key, &key_text);
        assert_eq!(trusted(&node.attest()), 1);
        node.runtime = Some(policy(&[], change));
        node.measure_entry(&file, &file_text);
        if good {
            assert_eq!(trusted(&node.attest()), 2, "{what}");
            continue;
        }
        let appraisal = node.attest();
        assert_eq!(ids(&appraisal), [NOT_LISTED], "{what}");
        let text = &findings(&appraisal)[0].explanation;
        assert!(text.contains("no key with id"), "{what}: {text}");
        // It was learned, and counts again when it is allowed again.
        node.runtime = Some(policy(&[], |p| {
            p["keyrings"] = json!({".ima": [&allowed]});
        }));
        assert_eq!(trusted(&node.attest()), 2, "{what}");
    }
    // Without a policy nothing is allowed.
    let mut node = Node::new(Some(policy(&[], |p| {
        p["keyrings"] = json!({".ima": [&allowed]});
    })));
    node.measure_entry(&key, &key_text);
    assert_eq!(trusted(&node.attest()), 1);
    node.runtime = None;
    node.measure_entry(&file, &file_text);
    assert_eq!(ids(&node.attest()), [NOT_LISTED]);
}

#[test]
fn keys_of_ignored_or_unlisted_keyrings_are_not_learned() {
    let ((key, text), _) = measured_key(".ima", 1);
    for (change, good) in [
        (json!([".ima"]), true),
        (json!(["*"]), true),
        (json!([]), false),
    ] {
        let policy = policy(&[], |p| p["ima"]["ignored_keyrings"] = change);
        let mut node = Node::new(Some(policy));
        node.measure_entry(&key, &text);
        let appraisal = node.attest();
        assert_eq!(ids_or_none(&appraisal).is_empty(), good);
        assert_eq!(node.state.ima.keys, LearnedKeys::default());
    }
}

fn ids_or_none(appraisal: &troth_core::appraise::Appraisal) -> Vec<&str> {
    match &appraisal.verdict {
        troth_core::appraise::Verdict::Failed(_) => ids(appraisal),
        _ => Vec::new(),
    }
}

#[test]
fn no_flipped_bit_of_a_signature_or_key_is_trusted() {
    let all = vectors("ima-signatures.json");
    for key in ["prime256v1", "rsa2048"] {
        let good = of(&all["signatures"], key, "sha256");
        // One policy for all: what it remembers as good must not count for others.
        let shared = policy(&[key], |_| {});
        let mut node = node(shared, &signed(good, false));
        assert_eq!(trusted(&node.attest()), 1);
        let signature = hex::decode(good["signature"].as_str().unwrap()).unwrap();
        for bit in 0..signature.len() * 8 {
            let mut flipped = signature.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let mut vector = good.clone();
            vector["signature"] = json!(hex::encode(flipped));
            let entry = signed(&vector, false);
            let mut other = Node::new(node.runtime.take());
            other.measure_entry(&entry.0, &entry.1);
            assert_eq!(ids(&other.attest()), [NOT_LISTED], "{key} bit {bit}");
            node.runtime = other.runtime.take();
        }
        let spki = all["keys"][key].as_str().unwrap();
        let id = format!("{:08x}", key_id(good));
        let entry = signed(good, false);
        for bit in 0..spki.len() * 6 {
            let Some(keys) = flipped_key(spki, bit, &id) else {
                continue;
            };
            let mut other = Node::new(None);
            other.keys = Some(keys);
            other.measure_entry(&entry.0, &entry.1);
            assert_eq!(ids(&other.attest()), [NOT_LISTED], "{key}: key bit {bit}");
        }
    }
}

fn key_id(vector: &Value) -> u32 {
    let signature = vector["signature"].as_str().unwrap();
    u32::from_str_radix(&signature[6..14], 16).unwrap()
}

/// A keyring with one bit of its key changed, under the id of the signature.
fn flipped_key(spki: &str, bit: usize, id: &str) -> Option<Keyring> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut der = STANDARD.decode(spki).unwrap();
    *der.get_mut(bit / 8)? ^= 1 << (bit % 8);
    let id = u32::from_str_radix(id, 16).unwrap();
    let text = json!({"keyids": [id], "pubkeys": [STANDARD.encode(der)]}).to_string();
    Keyring::from_json(&text).ok()
}

#[test]
fn keyrings_are_keylimes_json() {
    let good = keyring(&["prime256v1"]);
    let quoted = json!(good).to_string();
    for text in [
        "",
        "null",
        "{}",
        "[]",
        r#""""#,
        r#"{"keyids": [], "pubkeys": []}"#,
    ] {
        assert!(Keyring::from_json(text).unwrap().is_empty(), "{text}");
    }
    assert!(!Keyring::from_json(&good).unwrap().is_empty());
    assert!(!Keyring::from_json(&quoted).unwrap().is_empty());
    for (text, reason) in [
        (r#"{"keys": 1}"#, "pubkeys"),
        (r#"{"keyids": [-1], "pubkeys": []}"#, "-1"),
        (r#"{"keyids": [1], "pubkeys": ["AAAA"]}"#, "pubkeys[0]"),
        (&json!(quoted).to_string(), "quoted"),
        ("7", "7"),
    ] {
        let error = Keyring::from_json(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
    let many = json!({"keyids": [], "pubkeys": vec!["AAAA"; 300]}).to_string();
    assert!(
        Keyring::from_json(&many)
            .unwrap_err()
            .to_string()
            .contains("256")
    );
}
