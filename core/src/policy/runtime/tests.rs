use serde_json::{Value, json};

use super::*;

fn document() -> Value {
    json!({
        "meta": {"version": 1, "generator": 3, "timestamp": "2026-01-01 00:00:00.000000"},
        "release": 0,
        "digests": {"/bin/a b": ["aa".repeat(32), "bb".repeat(20)], "/bin/\u{e9}\n": ["cc".repeat(64)]},
        "excludes": ["/tmp/.*"],
        "keyrings": {".ima": ["dd".repeat(32)]},
        "ima": {"ignored_keyrings": [".evm"], "log_hash_alg": "sha1", "dm_policy": null},
        "ima-buf": {"kernel_info": ["ee".repeat(32)]},
        "verification-keys": "",
        "extra": [1, {"2": 3}],
    })
}

fn compile(document: &Value) -> Result<RuntimePolicy, PolicyError> {
    RuntimePolicy::compile(document.to_string().as_bytes())
}

#[test]
fn a_complete_policy_compiles() {
    let policy = compile(&document()).unwrap();
    assert!(
        policy
            .digests()
            .get("/bin/a b")
            .unwrap()
            .contains(&[0xbb; 20])
    );
    assert!(
        policy
            .digests()
            .get("/bin/\u{e9}\n")
            .unwrap()
            .contains(&[0xcc; 64])
    );
    assert!(policy.keyrings().get(".ima").unwrap().contains(&[0xdd; 32]));
    assert!(
        policy
            .ima_buf()
            .get("kernel_info")
            .unwrap()
            .contains(&[0xee; 32])
    );
    assert!(policy.ignores_keyring(".evm") && !policy.ignores_keyring(".ima"));
    assert_eq!(policy.log_hash_alg(), HashAlgorithm::Sha1);
    assert_eq!(policy.generator(), 3);
    assert!(policy.requires_ima());
}

#[test]
fn each_required_key_is_named_when_missing() {
    for key in [
        "meta",
        "release",
        "digests",
        "excludes",
        "keyrings",
        "ima",
        "ima-buf",
        "verification-keys",
    ] {
        let mut document = document();
        document.as_object_mut().unwrap().remove(key);
        let error = compile(&document).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")), "{error}");
    }
}

#[test]
fn malformed_parts_are_refused_where_they_are() {
    let cases = [
        ("/digests", json!({"/a": []}), "digests"),
        ("/digests", json!({"/a": ["AA".repeat(32)]}), "lower-case"),
        ("/digests", json!({"/a": ["aa".repeat(19)]}), "40 to 128"),
        ("/digests", json!({"/a": ["a".repeat(41)]}), "40 to 128"),
        ("/digests", json!({"/a": ["aa".repeat(65)]}), "40 to 128"),
        ("/keyrings", json!({"k": "aa"}), "keyrings"),
        ("/meta/generator", json!(4), "generator"),
        ("/ima/log_hash_alg", json!("md5"), "log_hash_alg"),
        ("/ima/dm_policy", json!({}), "dm_policy"),
        ("/excludes", json!(["("]), "\"(\""),
    ];
    for (pointer, value, part) in cases {
        let mut document = document();
        *document.pointer_mut(pointer).unwrap() = value;
        let error = compile(&document).unwrap_err().to_string();
        assert!(error.contains(part), "{pointer}: {error}");
    }
    assert!(matches!(
        RuntimePolicy::compile(b"{"),
        Err(PolicyError::NotJson(_))
    ));
    assert!(matches!(
        RuntimePolicy::compile(b"[]"),
        Err(PolicyError::Schema(_))
    ));
}

#[test]
fn names_and_keys_given_twice_are_refused() {
    let text = document().to_string();
    let twice = text.replace(r#""release":0"#, r#""release":0,"release":0"#);
    assert!(
        RuntimePolicy::compile(twice.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("release")
    );
    let entry = format!(r#""digests":{{"/bin/a b":["{}"],"#, "aa".repeat(32));
    let twice = text.replace(r#""digests":{"#, &entry);
    assert!(
        RuntimePolicy::compile(twice.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("/bin/a b")
    );
}

#[test]
fn deep_nesting_is_an_error_not_a_crash() {
    let mut text = document().to_string().into_bytes();
    text.pop();
    text.extend_from_slice(b",\"x\":");
    text.extend(std::iter::repeat_n(b'[', 100_000));
    assert!(RuntimePolicy::compile(&text).is_err());
}

#[test]
fn groups_in_one_another_are_bounded_whatever_they_are() {
    for group in ["(", "(?:", "(?<!", "(?>", "(?i:", "(?(1)"] {
        let mut document = document();
        document["excludes"] = json!([format!("(){}", group.repeat(13_000))]);
        let error = compile(&document).unwrap_err().to_string();
        assert!(error.contains("groups in one another"), "{group}: {error}");
    }
}

#[test]
fn the_empty_policy_does_not_ask_for_ima() {
    let empty = json!({
        "meta": {"version": 1, "generator": 1}, "release": 0, "digests": {}, "excludes": [],
        "keyrings": {}, "ima-buf": {}, "verification-keys": "",
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null},
    });
    assert!(!compile(&empty).unwrap().requires_ima());
}
