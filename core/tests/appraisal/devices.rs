use serde_json::{Value, json};
use troth_core::policy::RuntimePolicy;
use troth_core::tpm::HashAlgorithm;

use super::judged::{Node, ids, trusted};
use super::templates::{Measured, digest};

/// A policy for a verity device `root` that is required, changed.
fn policy(change: impl FnOnce(&mut Value)) -> RuntimePolicy {
    let mut rule = json!({
        "required": true, "device_resume_required": true, "allow_clear": true,
        "device_rename": {"valid_name": "root2", "valid_uuid": "1234.*"},
        "device_remove": {"allow_removal": true},
        "table_load": {
            "allow_multiple_loads": true, "name": "root.*", "uuid": null, "major": 253,
            "minor": null, "minor_count": 1, "num_targets": 1,
            "targets": [{"target_name": "verity", "root_digest": "aa", "check_at_most_once": false}]
        }
    });
    change(&mut rule);
    let policy = json!({
        "meta": {"version": 1, "generator": 3}, "release": 0, "digests": {}, "excludes": [],
        "keyrings": {}, "ima-buf": {}, "verification-keys": "",
        "ima": {
            "ignored_keyrings": [], "log_hash_alg": "sha1",
            "dm_policy": {"version": 1, "match_on": "name", "rules": {"root": rule}},
        },
    });
    RuntimePolicy::compile(policy.to_string().as_bytes()).unwrap()
}

fn device(name: &str) -> String {
    format!("name={name},uuid=,major=253,minor=0,minor_count=1,num_targets=1;")
}

fn table(name: &str, root: &str) -> String {
    format!(
        "dm_version=4.45.0;{}target_index=0,target_begin=0,target_len=8,target_name=verity,\
         target_version=1.8.0,hash_failed=V,root_digest={root},check_at_most_once=n;",
        device(name)
    )
}

fn hash(table: &str) -> String {
    format!(
        "sha256:{}",
        HashAlgorithm::Sha256.digest(&[table.as_bytes()])
    )
}

fn load(node: &mut Node, table: &str) {
    event(node, "dm_table_load", table);
}

fn resume(node: &mut Node, name: &str, table: &str) {
    let text = format!(
        "dm_version=4.45.0;{}active_table_hash={};current_device_capacity=8;",
        device(name),
        hash(table)
    );
    event(node, "dm_device_resume", &text);
}

fn clear(node: &mut Node, table: &str) {
    let text = format!(
        "dm_version=4.45.0;{}inactive_table_hash={};current_device_capacity=8;",
        device("root"),
        hash(table)
    );
    event(node, "dm_table_clear", &text);
}

fn remove(node: &mut Node, name: &str, table: &str) {
    let text = format!(
        "dm_version=4.45.0;device_active_metadata={0}device_inactive_metadata={0}\
         active_table_hash={1},inactive_table_hash={1},remove_all=n;current_device_capacity=8;",
        device(name),
        hash(table)
    );
    event(node, "dm_device_remove", &text);
}

fn rename(node: &mut Node, to: &str) {
    let text = format!(
        "dm_version=4.45.0;{}new_name={to},new_uuid=;current_device_capacity=8;",
        device("root")
    );
    event(node, "dm_device_rename", &text);
}

fn event(node: &mut Node, name: &str, text: &str) {
    let hash = HashAlgorithm::Sha256.digest(&[text.as_bytes()]);
    let field = [name.as_bytes(), b"\0"].concat();
    let data = digest("sha256", hash.as_bytes());
    let entry = Measured::new("ima-buf", &[&data, &field, text.as_bytes()]);
    node.measure_entry(
        &entry,
        &format!("sha256:{hash} {name} {}", hex::encode(text)),
    );
}

const NOT_IN_USE: &str = "ima.validation.dm.required_policy_not_in_use";
const NOT_RESUMED: &str = "ima.validation.dm.device_invalid_state";

/// Nodes with a finding each.
pub(crate) fn failing() -> [(Node, &'static str); 2] {
    let mut loaded = Node::new(Some(policy(|_| {})));
    load(&mut loaded, &table("root", "bb"));
    let mismatch = "ima.validation.dm.dm_table_load.target_data_mismatch";
    [
        (loaded, mismatch),
        (Node::new(Some(policy(|_| {}))), NOT_IN_USE),
    ]
}

#[test]
fn a_device_is_followed_over_attestations_and_a_restart_of_the_verifier() {
    let mut node = Node::new(Some(policy(|_| {})));
    let first = table("root", "aa");
    assert_eq!(ids(&node.attest()), ["ima.nothing_measured", NOT_IN_USE]);
    load(&mut node, &first);
    assert_eq!(ids(&node.attest()), [NOT_RESUMED, NOT_IN_USE]);
    resume(&mut node, "root", &first);
    assert_eq!(trusted(&node.attest()), 2);
    assert!(node.state.ima.devices.is_some());
    rename(&mut node, "root2");
    assert_eq!(trusted(&node.attest()), 3);
    let kept = serde_json::to_string(&node.state).unwrap();
    node.state = serde_json::from_str(&kept).unwrap();
    // Under the new name it has its table still.
    resume(&mut node, "root2", &first);
    assert_eq!(
        ids(&node.attest()),
        ["ima.validation.dm.dm_device_resume.already_active"]
    );
}

#[test]
fn a_fault_is_found_again_until_it_is_gone() {
    let mut node = Node::new(Some(policy(|_| {})));
    let first = table("root", "aa");
    load(&mut node, &first);
    resume(&mut node, "root", &first);
    assert_eq!(trusted(&node.attest()), 2);
    load(&mut node, &table("root", "bb"));
    let found = ["ima.validation.dm.dm_table_load.target_data_mismatch"];
    assert_eq!(ids(&node.attest()), found);
    assert_eq!(node.state.ima.next_entry, 2);
    assert_eq!(ids(&node.attest()), found);
}

#[test]
fn a_new_policy_has_the_list_read_again() {
    let mut node = Node::new(Some(policy(|rule| rule["required"] = json!(false))));
    let first = table("root", "aa");
    load(&mut node, &first);
    resume(&mut node, "root", &first);
    assert_eq!(trusted(&node.attest()), 2);
    node.runtime = Some(policy(|rule| {
        rule["table_load"]["targets"][0]["root_digest"] = json!("b")
    }));
    // This answer holds no event, the next one all.
    node.attest();
    assert_eq!(node.state.ima.next_entry, 0);
    let appraisal = node.attest();
    assert_eq!(
        ids(&appraisal)[0],
        "ima.validation.dm.dm_table_load.target_data_mismatch"
    );
}

#[test]
fn tables_are_loaded_cleared_and_removed() {
    let mut node = Node::new(Some(policy(|_| {})));
    let (first, second) = (table("root", "aa"), table("root", "aa").replace("V", "C"));
    load(&mut node, &first);
    resume(&mut node, "root", &first);
    load(&mut node, &second);
    clear(&mut node, &second);
    assert_eq!(trusted(&node.attest()), 4);
    clear(&mut node, &second);
    let mismatch = "ima.validation.dm.dm_table_clear.inactive_table_mismatch";
    assert_eq!(ids(&node.attest()), [mismatch]);
    let mut node = Node::new(Some(policy(|_| {})));
    load(&mut node, &first);
    resume(&mut node, "root", &first);
    load(&mut node, &second);
    remove(&mut node, "root", &first);
    assert_eq!(ids(&node.attest()), [NOT_IN_USE]);
}

#[test]
fn more_devices_than_are_kept_are_found() {
    let mut node = Node::new(Some(policy(|_| {})));
    for number in 0..=64 {
        let table = table(&format!("root{number}"), "aa");
        load(&mut node, &table);
        resume(&mut node, &format!("root{number}"), &table);
    }
    let found = node.attest();
    assert_eq!(
        ids(&found)[0],
        "ima.validation.dm.dm_table_load.too_many_devices"
    );
}
