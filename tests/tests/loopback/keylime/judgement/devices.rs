use serde_json::{Value, json};
use tempfile::TempDir;
use troth_core::tpm::HashAlgorithm;
use troth_tests::keylime::Oracle;
use troth_tests::software_ak::SoftwareAk;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::host::Host;
use super::judge;
use super::keys::Keys;

/// What happens to the devices of a host: names and texts of events.
type Events = Vec<(&'static str, String)>;

const VERSION: &str = "dm_version=4.45.0;";

fn device(name: &str, uuid: &str) -> String {
    format!("name={name},uuid={uuid},major=253,minor=0,minor_count=1,num_targets=1;")
}

fn linear(index: u32, start: &str) -> String {
    format!(
        "target_index={index},target_begin=0,target_len=8,target_name=linear,\
         target_version=1.4.0,device_name=7:0,start={start};"
    )
}

fn crypt(discards: &str) -> String {
    format!(
        "target_index=0,target_begin=0,target_len=8,target_name=crypt,target_version=1.23.0,\
         allow_discards={discards},same_cpu_crypt=n,submit_from_crypt_cpus=n,\
         no_read_workqueue=n,no_write_workqueue=n,iv_large_sectors=n,\
         cipher_string=aes-xts-plain64,key_size=32,key_parts=1,key_extra_size=0,key_mac_size=0;"
    )
}

fn verity(root: &str) -> String {
    format!(
        "target_index=0,target_begin=0,target_len=8,target_name=verity,target_version=1.8.0,\
         hash_failed=V,verity_version=1,data_device_name=253:1,hash_device_name=253:0,\
         verity_algorithm=sha256,root_digest={root},salt=e4,ignore_zero_blocks=n,\
         check_at_most_once=n;"
    )
}

fn load(names: (&str, &str), targets: &str) -> (&'static str, String) {
    let device = device(names.0, names.1);
    ("dm_table_load", format!("{VERSION}{device}{targets}"))
}

fn resume(names: (&str, &str), load: &str) -> (&'static str, String) {
    let (device, hash) = (device(names.0, names.1), hash(load));
    let text =
        format!("{VERSION}{device}active_table_hash=sha256:{hash};current_device_capacity=8;");
    ("dm_device_resume", text)
}

fn remove(names: (&str, &str), load: &str) -> (&'static str, String) {
    let (device, hash) = (device(names.0, names.1), hash(load));
    let text = format!(
        "{VERSION}device_active_metadata={device}active_table_hash=sha256:{hash},\
         remove_all=n;current_device_capacity=8;"
    );
    ("dm_device_remove", text)
}

/// The event of a device without an inactive table.
fn clear(names: (&str, &str)) -> (&'static str, String) {
    let text = format!(
        "{VERSION}name={},uuid={};table_clear=no_data;current_device_capacity=8;\0",
        names.0, names.1
    );
    ("dm_table_clear", text)
}

fn rename(from: (&str, &str), to: (&str, &str)) -> (&'static str, String) {
    let text = format!(
        "{VERSION}{}new_name={},new_uuid={};current_device_capacity=8;",
        device(from.0, from.1),
        to.0,
        to.1
    );
    ("dm_device_rename", text)
}

fn update(names: (&str, &str), target: &str) -> (&'static str, String) {
    let text = format!("{VERSION}{}{target}", device(names.0, names.1));
    ("dm_target_update", text)
}

fn hash(text: &str) -> String {
    HashAlgorithm::Sha256.digest(&[text.as_bytes()]).to_string()
}

/// A device-mapper policy with one rule, which lets everything happen to devices named `root`.
fn policy() -> Value {
    json!({"version": 1, "match_on": "name", "rules": {"root": {
        "required": false, "device_resume_required": false, "allow_clear": true,
        "device_rename": {"valid_name": null, "valid_uuid": null},
        "device_remove": {"allow_removal": true},
        "table_load": {
            "allow_multiple_loads": false, "name": "root[0-9]*", "uuid": null, "major": null,
            "minor": null, "minor_count": null, "num_targets": 1, "targets": [{}],
        }
    }}})
}

/// Events by what is tried with them.
fn sequences() -> Vec<(&'static str, Events)> {
    let root = ("root", "");
    let good = load(root, &linear(0, "512"));
    let other = load(root, &linear(0, "0"));
    let up = resume(root, &good.1);
    let crypted = load(root, &crypt("n"));
    let sealed = load(root, &verity("aa"));
    let stranger = ("stranger", "");
    let with_id = load(("root", "id-1"), &linear(0, "512"));
    let again = resume(("root2", ""), &good.1);
    let many = load(root, &(linear(0, "1") + &linear(1, "2")));
    let cut = (good.0, good.1[..good.1.len() - 1].to_owned());
    let swapped = ("dm_device_resume", good.1.clone());
    let number = (good.0, good.1.replace("major=253", "major=x"));
    vec![
        ("nothing", vec![]),
        ("load", vec![good.clone()]),
        (
            "load of a crypt",
            vec![crypted.clone(), resume(root, &crypted.1)],
        ),
        (
            "load of a verity",
            vec![sealed.clone(), resume(root, &sealed.1)],
        ),
        (
            "load of a crypt that discards",
            vec![load(root, &crypt("y"))],
        ),
        ("load and resume", vec![good.clone(), up.clone()]),
        ("load of a device with an id", vec![with_id]),
        ("load of two targets", vec![many]),
        ("load of a stranger", vec![load(stranger, &linear(0, "1"))]),
        ("load twice", vec![good.clone(), other.clone()]),
        (
            "load, resume, load",
            vec![good.clone(), up.clone(), other.clone()],
        ),
        (
            "load, resume, load, resume",
            vec![
                good.clone(),
                up.clone(),
                other.clone(),
                resume(root, &other.1),
            ],
        ),
        ("resume first", vec![up.clone()]),
        ("resume twice", vec![good.clone(), up.clone(), up.clone()]),
        (
            "resume of another table",
            vec![good.clone(), resume(root, &other.1)],
        ),
        (
            "removal",
            vec![good.clone(), up.clone(), remove(root, &good.1)],
        ),
        ("removal first", vec![remove(root, &good.1)]),
        (
            "removal and load",
            vec![good.clone(), remove(root, &good.1), other.clone()],
        ),
        ("clear", vec![good.clone(), up.clone(), clear(root)]),
        ("clear first", vec![clear(root)]),
        (
            "rename",
            vec![good.clone(), rename(root, ("root2", "")), again.clone()],
        ),
        (
            "resume under the old name",
            vec![good.clone(), rename(root, ("root2", "")), up],
        ),
        ("new id", vec![good.clone(), rename(root, ("root", "id-2"))]),
        ("rename first", vec![rename(root, ("root2", ""))]),
        ("update", vec![sealed.clone(), update(root, &verity("aa"))]),
        (
            "update of another kind",
            vec![sealed, update(root, &verity("bb"))],
        ),
        ("update first", vec![update(root, &verity("aa"))]),
        ("cut short", vec![cut]),
        ("event of another name", vec![good, swapped]),
        ("no number", vec![number]),
    ]
}

/// What is changed in the policy, by the pointer to it.
fn policies() -> Vec<(&'static str, Value)> {
    let rule = |pointer: &'static str, value| (pointer, value);
    vec![
        rule("/version", json!(1)),
        rule("/match_on", json!("uuid")),
        rule("/rules/root/required", json!(true)),
        rule("/rules/root/device_resume_required", json!(true)),
        rule("/rules/root/allow_clear", json!(false)),
        rule("/rules/root/device_remove/allow_removal", json!(false)),
        rule("/rules/root/device_rename/valid_name", json!("root3")),
        rule("/rules/root/device_rename/valid_uuid", json!("id-.")),
        rule("/rules/root/table_load/allow_multiple_loads", json!(true)),
        rule("/rules/root/table_load/uuid", json!("id-1")),
        rule("/rules/root/table_load/major", json!(254)),
        rule("/rules/root/table_load/minor", json!(false)),
        rule("/rules/root/table_load/minor_count", json!("[1-3]")),
        rule(
            "/rules/root/table_load/targets/0",
            json!({"root_digest": "a+"}),
        ),
        rule(
            "/rules/root/table_load/targets/0",
            json!({"allow_discards": false}),
        ),
        rule(
            "/rules/root/table_load/targets/0",
            json!({"target_len": 8, "start": 512}),
        ),
        rule(
            "/rules/root/table_load/targets/0",
            json!({"target_name": "crypt|linear"}),
        ),
    ]
}

/// Each sequence of events under each policy. Keylime's verifier has no way to such a policy, but
/// its code for them is there, and is asked.
#[test]
fn devices_are_judged_as_keylime_judges_them() {
    let directory = TempDir::new().unwrap();
    let mut oracle = Oracle::start(directory.path()).unwrap();
    let keys = Keys::generate();
    let ak = SoftwareAk::generate_ecc().unwrap();
    let (mut judged, mut rejected, mut differences) = (0, 0, Vec::new());
    for (pointer, value) in policies() {
        let mut policy = policy();
        *policy.pointer_mut(pointer).unwrap() = value;
        if pointer == "/match_on" {
            policy["rules"]["root"]["table_load"]["uuid"] = json!("id-[0-9]");
        }
        for (name, events) in sequences() {
            let mut host = Host::new(&keys, StdRng::seed_from_u64(1));
            for (event, text) in &events {
                let digest = host.digest(text.as_bytes());
                host.measure("ima-buf", &digest, event, Some(text.as_bytes()));
            }
            host.dm_policy = policy.clone();
            let ours = judge(&ak, &host);
            let theirs = oracle
                .devices(&json!({"policy": policy, "events": events}))
                .unwrap();
            judged += 1;
            rejected += u32::from(!theirs.is_empty());
            if ours.is_empty() != theirs.is_empty() {
                differences.push(format!(
                    "{pointer}, {name}: ours {ours:?}, theirs {theirs:?}"
                ));
            }
        }
    }
    println!("{rejected} of {judged} rejected");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(
        rejected > judged / 4 && rejected < judged * 3 / 4,
        "{rejected} of {judged}"
    );
}
