use serde_json::json;

use crate::site::{Site, node, stderr};

#[test]
fn the_version_is_the_highest_that_both_speak() {
    let versions = |list: &[&str]| json!({"current_version": "2.3", "supported_versions": list});
    for (status, results, path) in [
        (200, versions(&["1.0", "2.0", "2.3"]), "GET /v2.3/agents/n"),
        (200, versions(&["2.6", "2.7", "3.0"]), "GET /v2.6/agents/n"),
        // Keylime's verifier in push mode.
        (410, json!({}), "GET /v2.6/agents/n"),
        (200, json!("?"), "GET /v2.6/agents/n"),
    ] {
        let site = Site::start();
        let body = json!({"code": status, "status": "", "results": results});
        site.answer("GET /version", status, body.to_string());
        site.success(path, &node("trusted", 3));
        let output = site.trothctl(&["agent", "status", "n"]);
        assert_eq!(output.status.code(), Some(0), "{path}: {}", stderr(&output));
    }
    let site = Site::start();
    site.success("GET /version", &versions(&["1.0", "3.0"]));
    let output = site.trothctl(&["agent", "status", "n"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("2.0 to 2.6"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn refusals_say_what_the_server_said() {
    let site = Site::start();
    let forbidden = json!({"errors": [{"status": "403", "title": "Forbidden",
        "detail": "Action read_agent requires authentication"}]});
    for (status, body, wanted) in [
        (403, forbidden.to_string(), "requires authentication"),
        (500, String::new(), "see its log"),
        (
            400,
            json!({"code": 400, "status": "no good", "results": {}}).to_string(),
            "no good",
        ),
        (200, "<html>".to_owned(), "unusable answer"),
        (
            200,
            json!({"code": 200, "status": "Success"}).to_string(),
            "results",
        ),
    ] {
        site.answer("GET /v2.6/agents/n", status, body);
        let output = site.trothctl(&["agent", "status", "n"]);
        assert_eq!(output.status.code(), Some(1), "{status}");
        assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
        assert!(
            stderr(&output).contains(&site.port.to_string()),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_dead_or_foreign_server_is_exit_status_7() {
    let site = Site::start();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("https://{free}");
    let output = site.trothctl(&["--verifier", &url, "agent", "list"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(stderr(&output).contains("refused"), "{}", stderr(&output));
    assert!(stderr(&output).contains(&url), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("--verifier"),
        "{}",
        stderr(&output)
    );

    let other = Site::start();
    let directory = other.directory.path().to_str().unwrap();
    let output = site.trothctl(&["--ca-dir", directory, "registrar", "list"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(stderr(&output).contains("TLS"), "{}", stderr(&output));
    assert!(stderr(&output).contains("--ca-dir"), "{}", stderr(&output));

    // The right CA, but a client certificate of another one.
    let ca = std::fs::read(site.directory.path().join("cacert.crt")).unwrap();
    other.file("cacert.crt", ca);
    let output = site.trothctl(&["--ca-dir", directory, "registrar", "list"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(
        stderr(&output).contains("operator's certificate is refused"),
        "{}",
        stderr(&output)
    );
}

/// Of a server whose certificate does not name the address it is asked at.
#[test]
fn the_name_that_a_servers_certificate_must_have_may_be_configured() {
    let site = Site::start_as(&["localhost"]);
    for (command, option) in [
        ("agent", "TROTH_CTL_VERIFIER_TLS_NAME"),
        ("registrar", "TROTH_CTL_REGISTRAR_TLS_NAME"),
    ] {
        let told = |name| {
            let output = site.trothctl_with(&[(option, name)], &[command, "list"]);
            (output.status.code(), stderr(&output).to_owned())
        };
        let output = site.trothctl(&[command, "list"]);
        assert_eq!(output.status.code(), Some(7));
        let text = stderr(&output);
        assert!(
            text.contains("is for localhost, not for 127.0.0.1"),
            "{text}"
        );
        let (status, text) = told("localhost");
        assert!(!text.contains("TLS"), "{text}");
        assert_ne!(status, Some(7), "{text}");
        let (status, text) = told("node.example");
        assert_eq!(status, Some(7), "{text}");
        assert!(text.contains("not for node.example"), "{text}");
        let (status, text) = told("no name");
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains("_tls_name: \"no name\" is neither"), "{text}");
    }
}

/// What an id had at both, or at one of them. An empty key is nobody's, and an id that no agent may
/// have cannot be asked for.
#[test]
fn registrars_are_compared_id_by_id() {
    // One server plays both: what it answers first is asked here, then there.
    let site = Site::start();
    let record = |ek: &str| {
        json!({"ek_tpm": ek, "aik_tpm": "YWs=", "ekcert": null, "mtls_cert": "disabled",
            "ip": "192.0.2.7", "port": 9002, "regcount": 1})
    };
    let other = "https://localhost:PORT".replace("PORT", &site.port.to_string());
    for (ek, ids, keys, status) in [
        ("ZWs=", json!(["a"]), "same", 0),
        ("", json!(["a"]), "other", 3),
        ("no base64", json!(["a"]), "other", 3),
        ("ZWs=", json!(["odd id"]), "other", 3),
    ] {
        site.success("GET /v2.6/agents/", &json!({ "uuids": ids }));
        site.success("GET /v2.6/agents/a", &record(ek));
        let compare = ["--json", "registrar", "compare", &other];
        let output = site.trothctl(&compare);
        assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["agents"][0]["keys"], keys, "{told}");
    }
    // The name of one registrar's certificate is not that of the other's.
    for (own, name, wrong) in [
        ("localhost", "127.0.0.1", None),
        ("localhost", "old.example", Some("not for old.example")),
        ("new.example", "localhost", Some("not for new.example")),
    ] {
        let names = [("TROTH_CTL_REGISTRAR_TLS_NAME", own)];
        let compare = ["registrar", "compare", &other, "--tls-name", name];
        let output = site.trothctl_with(&names, &compare);
        let text = stderr(&output);
        match wrong {
            None => assert_eq!(output.status.code(), Some(3), "{text}"),
            Some(reason) => {
                assert_eq!(output.status.code(), Some(7), "{text}");
                assert!(text.contains(reason), "{text}");
            }
        }
    }
}
