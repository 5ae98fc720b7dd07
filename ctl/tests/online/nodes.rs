use serde_json::{Value, json};

use crate::site::{Site, node, stderr, stdout};

#[test]
fn the_exit_status_of_agent_status_is_the_verdict() {
    let site = Site::start();
    for (state, number, status) in [
        ("trusted", 3, 0),
        ("failed", 9, 3),
        ("unreachable", 7, 4),
        ("stale", 3, 4),
        ("pending", 1, 6),
        ("stopped", 10, 6),
        ("of the future", 3, 1),
    ] {
        site.success("GET /v2.6/agents/n", &node(state, number));
        let output = site.trothctl(&["agent", "status", "n"]);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{state}: {}",
            stderr(&output)
        );
        assert!(
            stdout(&output).contains(&format!("it is {state}")),
            "{}",
            stdout(&output)
        );
        let output = site.trothctl(&["agent", "explain", "n"]);
        assert_eq!(output.status.code(), Some(status), "explain: {state}");
        let output = site.trothctl(&["--json", "agent", "explain", "n"]);
        assert_eq!(output.status.code(), Some(status), "explain: {state}");
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["reason"], format!("it is {state}"));
    }
    assert_eq!(
        site.trothctl(&["agent", "status", "other"]).status.code(),
        Some(5)
    );
}

#[test]
fn a_list_has_every_node_and_a_summary() {
    let site = Site::start();
    let nodes = json!({"a": node("trusted", 3), "b": node("failed", 9), "c": node("trusted", 3)});
    site.success("GET /v2.6/agents/", &nodes);
    let output = site.trothctl(&["agent", "list"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).starts_with("AGENT  STATE    ATTESTED"),
        "{}",
        stdout(&output)
    );
    assert!(
        stdout(&output).ends_with("\n3 agents: 2 trusted, 1 failed\n"),
        "{}",
        stdout(&output)
    );

    let output = site.trothctl(&["--json", "agent", "list"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["agents"][1]["id"], "b");
    assert_eq!(list["agents"][1]["state"], "failed");
    assert_eq!(list["agents"][1]["address"], "192.0.2.7:9002");
}

#[test]
fn hostile_text_of_a_node_does_not_reach_the_terminal() {
    let site = Site::start();
    let mut hostile = node("failed", 9);
    hostile["troth"]["reason"] = json!("\u{1b}]0;owned\u{7}");
    hostile["troth"]["findings"] = json!([{
        "id": "x", "recoverable": true,
        "place": {"ima_entry": {"entry": 1, "path": "/tmp/\u{1b}[2J"}},
        "expected": ["\r\u{9b}31m"], "got": "\u{202e}", "explanation": "a\nb", "action": "c"
    }]);
    site.success("GET /v2.6/agents/n", &hostile);
    let output = site.trothctl(&["agent", "status", "n"]);
    let text = stdout(&output);
    assert!(
        !text.chars().any(|c| c != '\n' && c.is_control()),
        "{text:?}"
    );
    assert!(!text.contains('\u{202e}'), "{text:?}");
    assert!(text.contains(r"/tmp/\u{1b}[2J"), "{text}");
}

#[test]
fn removal_reactivation_and_stop_report_their_result() {
    let site = Site::start();
    let result = |arguments: &[&str]| {
        let output = site.trothctl(&[&["--json"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["result"].clone()
    };
    site.success("DELETE /v2.6/agents/n", &json!({}));
    assert_eq!(result(&["agent", "remove", "n"]), "removed");
    site.answer("DELETE /v2.6/agents/n", 202, "");
    assert_eq!(result(&["agent", "remove", "n"]), "accepted");
    assert_eq!(
        result(&["agent", "remove", "n", "--wait"]),
        "removed",
        "GET says 404"
    );
    site.success("DELETE /v2.6/agents/gone", &json!({}));
    assert_eq!(result(&["registrar", "remove", "gone"]), "removed");
    site.success("PUT /v2.6/agents/n/reactivate", &json!({}));
    assert_eq!(result(&["agent", "reactivate", "n"]), "reactivated");
    site.success("PUT /v2.6/agents/n/stop", &json!({}));
    assert_eq!(result(&["agent", "stop", "n"]), "stopped");
    assert_eq!(
        site.trothctl(&["agent", "remove", "other"]).status.code(),
        Some(5)
    );
    for command in [["agent", "stop", "other"], ["registrar", "remove", "other"]] {
        assert_eq!(site.trothctl(&command).status.code(), Some(5));
    }
}

#[test]
fn stopping_a_node_that_keylimes_verifier_does_not_know_is_exit_status_5() {
    let site = Site::start();
    let words = "Exception error: No row was found when one was required";
    let body = json!({"code": 400, "status": words, "results": {}});
    site.answer("PUT /v2.6/agents/n/stop", 400, body.to_string());
    assert_eq!(
        site.trothctl(&["agent", "stop", "n"]).status.code(),
        Some(5)
    );
}
#[test]
fn a_watch_ends_with_the_state_or_with_its_timeout() {
    let site = Site::start();
    let watch = |until: &str| {
        let wait = [
            "--json",
            "agent",
            "watch",
            "n",
            "--timeout",
            "0.3",
            "--until",
            until,
        ];
        site.trothctl(&wait)
    };
    site.success("GET /v2.6/agents/n", &node("trusted", 3));
    let output = watch("trusted");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 1);
    let line: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(
        (&line["state"], &line["previous"]),
        (&json!("trusted"), &Value::Null)
    );

    let output = watch("failed");
    assert_eq!(output.status.code(), Some(8));
    assert!(
        stderr(&output).contains("n is trusted"),
        "{}",
        stderr(&output)
    );

    site.success("GET /v2.6/agents/n", &node("failed", 9));
    assert_eq!(watch("failed").status.code(), Some(0));
    assert_eq!(watch("trusted").status.code(), Some(3));
    let output = site.trothctl(&["agent", "watch", "other"]);
    assert_eq!(output.status.code(), Some(5));
}
