use serde_json::{Value, json};

use crate::site::{Site, node, stderr};

/// [`node`] as its verifier has it by `runtime_policy` and `boot_policy`.
fn node_with(runtime: Option<&str>, boot: Option<&str>) -> Value {
    let mut node = node("failed", 9);
    node["has_runtime_policy"] = json!(u8::from(runtime.is_some()));
    node["has_mb_refstate"] = json!(u8::from(boot.is_some()));
    node["troth"]["runtime_policy"] = json!(runtime);
    node["troth"]["boot_policy"] = json!(boot);
    node
}

#[test]
fn a_new_text_of_a_nodes_own_policy_is_replaced_in_place() {
    let site = Site::start();
    let list = site.file("allowlist", format!("{}  /usr/bin/x\n", "ab".repeat(32)));
    let update = [
        "--json",
        "agent",
        "update",
        "n",
        "--allowlist",
        list.to_str().unwrap(),
    ];
    site.success("GET /v2.6/agents/n", &node_with(Some("n"), None));
    site.answer("PUT /v2.6/allowlists/n", 201, "{}");
    site.success("PUT /v2.6/agents/n/reactivate", &json!({}));
    let output = site.trothctl(&update);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let updated: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&updated["result"], &updated["how"]),
        (&json!("updated"), &json!("in_place"))
    );
    assert!(site.asked("PUT /v2.6/agents/n/reactivate"), "it had failed");
    assert!(!site.asked("DELETE /v2.6/agents/n"));

    // A policy that other nodes may use is never replaced by an update of one node.
    site.success("GET /v2.6/agents/n", &node_with(Some("base"), None));
    let output = site.trothctl(&update);
    assert_ne!(
        output.status.code(),
        Some(0),
        "the registrar has no keys here"
    );
    assert_eq!(site.times("PUT /v2.6/allowlists/n"), 1);
    assert!(!site.asked("PUT /v2.6/allowlists/base"));
}

#[test]
fn an_update_that_cannot_succeed_removes_nothing() {
    let site = Site::start();
    let update = |arguments: &[&str]| {
        let output = site.trothctl(&[&["agent", "update", "n"], arguments].concat());
        assert!(!site.asked("DELETE /v2.6/agents/n"), "{arguments:?}");
        assert_ne!(output.status.code(), Some(0), "{arguments:?}");
        stderr(&output).to_owned()
    };
    site.success("GET /v2.6/agents/n", &node_with(Some("base"), None));
    site.success(
        "GET /v2.6/allowlists/taken",
        &json!({"name": "taken", "runtime_policy": "{}"}),
    );
    let list = site.file("allowlist", format!("{}  /usr/bin/x\n", "ab".repeat(32)));
    let list = list.to_str().unwrap();
    let error = update(&["--runtime-policy-name", "absent"]);
    assert!(error.contains("no runtime policy \"absent\""), "{error}");
    let error = update(&["--runtime-policy-name", "taken", "--allowlist", list]);
    assert!(error.contains("\"taken\" already"), "{error}");

    // Keylime's verifier does not say which policy a node uses.
    let mut keylime = node_with(Some("base"), None);
    keylime.as_object_mut().unwrap().remove("troth");
    site.success("GET /v2.6/agents/n", &keylime);
    let error = update(&["--boot-policy", "{}"]);
    assert!(error.contains("--runtime-policy-name"), "{error}");
}
