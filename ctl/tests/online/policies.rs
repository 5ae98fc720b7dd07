use std::{path::Path, process::Command};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use troth_core::tpm::HashAlgorithm;

use crate::site::{Site, stderr, stdout};

#[test]
fn policies_are_stored_listed_shown_and_removed_by_name() {
    let site = Site::start();
    let run = |arguments: &[&str]| site.trothctl(arguments);
    let digest = "ab".repeat(32);
    let list = site.file("allowlist", format!("{digest}  /usr/bin/x\n"));
    let import = [
        "policy",
        "import",
        "runtime",
        "a b",
        "--allowlist",
        list.to_str().unwrap(),
    ];

    site.answer("POST /v2.6/allowlists/a%20b", 201, "{}");
    let output = run(&import);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "The runtime policy a b is imported.\n");
    let sent = site.sent("POST /v2.6/allowlists/a%20b");
    let policy = BASE64_STANDARD.decode(sent["runtime_policy"].as_str().unwrap());
    let policy: Value = serde_json::from_slice(&policy.unwrap()).unwrap();
    assert_eq!(policy["digests"]["/usr/bin/x"], json!([digest]));

    // A name that is taken needs --replace; --replace takes a name that is not.
    site.answer("POST /v2.6/allowlists/a%20b", 409, "");
    let output = run(&import);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--replace"), "{}", stderr(&output));
    site.answer("PUT /v2.6/allowlists/a%20b", 201, "{}");
    let output = run(&[&import[..], &["--replace"]].concat());
    assert!(
        stdout(&output).contains("is replaced"),
        "{}",
        stderr(&output)
    );
    site.answer("PUT /v2.6/mbpolicies/b", 409, "");
    site.answer("POST /v2.6/mbpolicies/b", 201, "{}");
    let output = run(&["policy", "import", "boot", "b", "{}", "--replace"]);
    assert!(
        stdout(&output).contains("is imported"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        site.sent("POST /v2.6/mbpolicies/b"),
        json!({"mb_policy": "{}"})
    );

    site.success(
        "GET /v2.6/allowlists/",
        &json!({
            "runtimepolicy names": ["a b"],
            "policies": [{"name": "a b", "sha256": "abcd", "bytes": 77, "nodes": 3}],
        }),
    );
    site.success("GET /v2.6/mbpolicies/", &json!({"mbpolicy names": ["b"]}));
    let output = run(&["policy", "list"]);
    assert_eq!(
        stdout(&output),
        "NAME  KIND     NODES  BYTES  SHA-256\n\
         a b   runtime  3      77     abcd\n\
         b     boot     -      -      -\n"
    );
    let output = run(&["--json", "policy", "list", "boot"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let boot = json!({"kind": "boot", "name": "b", "sha256": null, "bytes": null, "nodes": null});
    assert_eq!(list, json!({ "policies": [boot] }));

    let text = policy.to_string();
    let stored = json!({"name": "a b", "tmp_policy": null, "runtime_policy": text});
    site.success("GET /v2.6/allowlists/a%20b", &stored);
    let output = run(&["policy", "show", "runtime", "a b"]);
    assert!(stdout(&output).contains("Files: 1"), "{}", stdout(&output));
    let output = run(&["--json", "policy", "show", "runtime", "a b"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["policy"], policy);
    let output = run(&["policy", "show", "runtime", "a b", "-o", "-"]);
    assert_eq!(stdout(&output), text, "as the verifier has it");

    site.answer("DELETE /v2.6/allowlists/a%20b", 204, "");
    let output = run(&["policy", "remove", "runtime", "a b"]);
    assert_eq!(stdout(&output), "The runtime policy a b is removed.\n");
    let in_use = json!({"code": 409, "status": "in use by agent n", "results": {}});
    site.answer("DELETE /v2.6/allowlists/a%20b", 409, in_use.to_string());
    let output = run(&["policy", "remove", "runtime", "a b"]);
    assert!(
        stderr(&output).contains("in use by agent n"),
        "{}",
        stderr(&output)
    );
    for command in ["show", "remove"] {
        assert_eq!(
            run(&["policy", command, "boot", "other"]).status.code(),
            Some(5)
        );
    }
}

#[test]
fn a_downloaded_policy_is_the_one_of_the_checksum() {
    let site = Site::start();
    let digests = json!({"/usr/bin/x": ["ab".repeat(32)]});
    let policy = json!({
        "meta": {"version": 1, "generator": 0, "timestamp": "2026-01-01 00:00:00"},
        "release": 0, "digests": digests, "excludes": [], "keyrings": {}, "ima-buf": {},
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null},
        "verification-keys": ""
    })
    .to_string();
    let checksum = HashAlgorithm::Sha256
        .digest(&[policy.as_bytes()])
        .to_string();
    site.answer("GET /p.json", 200, policy.clone());
    site.answer("GET /moved", 302, "");
    site.answer("POST /v2.6/allowlists/p", 201, "{}");
    let ca = site.directory.path().join("cacert.crt");
    let fetch = |path: &str, checksum: &str, bundle: &Path| {
        let server = format!("https://127.0.0.1:{}", site.port);
        Command::new(env!("CARGO_BIN_EXE_trothctl"))
            .args(["--verifier", &server, "policy", "import", "runtime", "p"])
            .args(["--url", &format!("https://localhost:{}{path}", site.port)])
            .args(["--checksum", checksum])
            .env("TROTH_CA_DIR", site.directory.path())
            .env("SSL_CERT_FILE", bundle)
            .output()
            .unwrap()
    };
    let output = fetch("/p.json", &checksum, &ca);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let sent = site.sent("POST /v2.6/allowlists/p");
    assert_eq!(
        sent["runtime_policy"],
        json!(BASE64_STANDARD.encode(policy))
    );

    for (path, checksum, wanted) in [
        ("/p.json", "0".repeat(64), "its SHA-256 is"),
        ("/moved", checksum.clone(), "redirects are not followed"),
        ("/absent", checksum.clone(), "status 404"),
    ] {
        let output = fetch(path, &checksum, &ca);
        assert_eq!(output.status.code(), Some(1), "{path}");
        assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
    }
    let stranger = Site::start();
    let output = fetch(
        "/p.json",
        &checksum,
        &stranger.directory.path().join("cacert.crt"),
    );
    assert_eq!(
        output.status.code(),
        Some(7),
        "a certificate of no known CA"
    );
    assert_eq!(site.times("POST /v2.6/allowlists/p"), 1);
}

#[test]
fn a_signed_policy_is_checked_here_and_sent_with_its_key() {
    let site = Site::start();
    let vectors = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/vectors/dsse.json"
    );
    let vectors: Value = serde_json::from_slice(&std::fs::read(vectors).unwrap()).unwrap();
    let file = |name: &str, text: &Value| {
        let path = site.file(name, text.as_str().unwrap());
        path.to_str().unwrap().to_owned()
    };
    let signed = file("signed.json", &vectors["ecdsa"]["envelope"]);
    let plain = file("plain.json", &vectors["policy"]);
    let own = file("own.pem", &vectors["ecdsa"]["key"]);
    let other = file("other.pem", &vectors["x509"]["key"]);
    let import = |policy: &str, key: &[&str]| {
        site.trothctl(&[&["policy", "import", "runtime", "p", policy], key].concat())
    };
    let post = "POST /v2.6/allowlists/p";
    site.answer(post, 201, "{}");
    for (policy, key, status, why) in [
        (&signed, &[][..], 1, "the policy is signed"),
        (
            &signed,
            &["--sig-key", &other],
            3,
            "no signature of the policy is by this key",
        ),
        (
            &signed,
            &["--sig-key", &plain],
            1,
            "neither a public key nor",
        ),
        (&plain, &["--sig-key", &own], 3, "the policy is not signed"),
    ] {
        let output = import(policy, key);
        assert_eq!(output.status.code(), Some(status), "{why}");
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
    assert!(!site.asked(post));
    let output = import(&signed, &["--sig-key", &own]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let sent = site.sent(post);
    let base64 = |text: &Value| BASE64_STANDARD.encode(text.as_str().unwrap());
    assert_eq!(
        sent["runtime_policy"],
        base64(&vectors["ecdsa"]["envelope"])
    );
    assert_eq!(sent["runtime_policy_key"], base64(&vectors["ecdsa"]["key"]));
}
