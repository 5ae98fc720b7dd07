//! The vm tier: hosts that are machines with firmware, a TPM and a kernel of their own, in QEMU
//! without KVM: Debian with our install tree, IMA, SELinux (permissive).
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

/// A host that attests itself: what the kernel shows, read as it grows.
mod attestation;
/// Boots from power on, through boot loaders.
mod boot;
/// A host attested by another.
mod two_guests;

use std::fs;
use std::path::Path;

use serde_json::Value;
use troth_tests::vm::{BootLoader, Cable, Guest, Setup};

/// The agent's id in all tests.
const ID: &str = "node-1";

/// The kernel's list, which root alone may read.
const IMA_LIST: &str = "/sys/kernel/security/ima/ascii_runtime_measurements";

/// Where the agent expects the CA of verifier and registrar.
const CA: &str = "/var/lib/troth/cv_ca";

/// The program that changes.
const GREETS: &str = "/root/greets.sh";

/// Runs what tests and services run later, so that a policy of the IMA list allows it. /tmp is in
/// memory, where IMA does not look.
const WARM_UP: &str = "\
trothctl --version
trothctl --json agent status nobody || true
trothctl agent watch nobody --until trusted --timeout 1 || true
journalctl --boot --quiet --no-pager --lines=1 --grep=denied || true
systemctl show --value --property MainPID troth-agent
cat /proc/self/status > /dev/null
echo warm | grep --quiet warm
cat /etc/troth/tpm_cert_store/* > /dev/null || true
wc -c < /dev/null
date
mkdir -p /tmp/warm";

/// A restored guest; its files are in `directory`.
fn restored(directory: &Path, name: &str, loader: BootLoader, cable: Option<Cable<'_>>) -> Guest {
    let place = directory.join(name);
    Guest::restored(&Setup {
        name,
        directory: &place,
        loader,
        cable,
    })
    .unwrap()
}

/// Does what the administrator of verifier and registrar does, but for starting them. Quotes are
/// asked for often, so that verdicts come soon.
fn configure_server(server: &Guest, ip: &str, ek_issuer: &Path) {
    let verifier = "quote_interval = 1\nretry_interval = 1\nexponential_backoff = false\n\
                    request_timeout = 60\n";
    let issuer = fs::read_to_string(ek_issuer).unwrap();
    for (path, content) in [
        (
            "/etc/troth/registrar.toml",
            format!("ip = {ip:?}\n").as_str(),
        ),
        ("/etc/troth/verifier.toml", verifier),
        (
            "/etc/troth/trothctl.toml",
            "ca_dir = \"/var/lib/troth-ca\"\ntpm_cert_store = \"/etc/troth/tpm_cert_store\"\n",
        ),
        ("/etc/troth/tpm_cert_store/vendor.pem", &issuer),
    ] {
        server.write(path, content).unwrap();
    }
}

/// Does what the administrator of a host does, but for starting the agent.
fn configure_host(host: &Guest, ip: &str, registrar: &str, ca: &str) {
    host.sh(&format!("install -d -o troth -g troth -m 0700 {CA}"))
        .unwrap();
    host.write(&format!("{CA}/cacert.crt"), ca).unwrap();
    let site = format!("uuid = {ID:?}\nip = {ip:?}\nregistrar_ip = {registrar:?}\n");
    host.write("/etc/troth/agent.toml.d/10-site.toml", &site)
        .unwrap();
}

/// A program of this content at [`GREETS`], executed.
fn greet(host: &Guest, text: &str) {
    host.write(GREETS, &format!("#!/bin/sh\necho {text}\n"))
        .unwrap();
    let said = host.sh(&format!("chmod 0755 {GREETS}; {GREETS}")).unwrap();
    assert_eq!(said.trim_end(), text);
}

/// `trothctl agent status` as JSON.
fn status(server: &Guest) -> Value {
    let shown = server
        .run(&["trothctl", "--json", "agent", "status", ID])
        .unwrap();
    shown.json().unwrap()
}

/// Waits until the verifier has judged the host, and it is trusted.
fn wait_for_trust(server: &Guest) -> Value {
    let watch = [
        "trothctl",
        "agent",
        "watch",
        ID,
        "--until",
        "trusted",
        "--timeout",
        "180",
    ];
    let watched = server.run(&watch).unwrap();
    let node = status(server);
    assert!(watched.status.success(), "{watched:?}\n{node:#}");
    node
}

/// Waits until the host was judged twice more than in `before`, its list is at `entries` at least,
/// and it is trusted.
fn wait_for_trust_after(server: &Guest, before: &Value, entries: u64) -> Value {
    let count = |node: &Value| node["attestation_count"].as_u64().unwrap();
    let enough = |node: &Value| {
        node["state"] == "failed"
            || node["state"] == "trusted"
                && count(node) > count(before) + 1
                && node["ima_entries"].as_u64().unwrap() >= entries
    };
    let look = |server: &Guest| Ok(status(server));
    let node = server
        .wait_for("the host is trusted again", look, enough)
        .unwrap();
    assert_eq!(node["state"], "trusted", "{node:#}");
    node
}

/// Runs the changed program, and sees that it alone is named.
fn assert_that_a_change_is_named(host: &Guest, server: &Guest) {
    greet(host, "malice");
    let watch = [
        "trothctl",
        "agent",
        "watch",
        ID,
        "--until",
        "failed",
        "--timeout",
        "180",
    ];
    let watched = server.run(&watch).unwrap();
    let node = status(server);
    assert!(watched.status.success(), "{watched:?}\n{node:#}");
    let findings = node["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert!(findings[0].to_string().contains(GREETS), "{findings:#?}");
}
