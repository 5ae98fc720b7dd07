use troth_tests::vm::{BootLoader, Guest};

use crate::{ID, IMA_LIST, WARM_UP, configure_host, configure_server, restored, wait_for_trust};

/// Boots a host whose units were enabled, and that never ran an agent before.
fn attested_after_a_boot(loader: BootLoader) {
    let directory = tempfile::tempdir().unwrap();
    let mut host = restored(directory.path(), "host", loader, None);
    let issuer = host.ek_issuer().to_owned();
    configure_server(&host, "127.0.0.1", &issuer);
    host.output(&["systemctl", "start", "troth-ca-init"])
        .unwrap();
    let ca = host
        .output(&["cat", "/var/lib/troth-ca/cacert.crt"])
        .unwrap();
    configure_host(&host, "127.0.0.1", "127.0.0.1", &ca);
    let units = ["troth-agent", "troth-registrar", "troth-verifier"];
    host.output(&[&["systemctl", "enable"][..], &units].concat())
        .unwrap();

    host.reboot().unwrap();
    let look = |host: &Guest| host.property("troth-agent", "StatusText");
    let attesting = format!("Attesting as {ID} on 127.0.0.1:9002");
    host.wait_for("the agent is registered", look, |shown| *shown == attesting)
        .unwrap();
    let journal = [
        "journalctl",
        "--boot",
        "--quiet",
        "--no-pager",
        "--unit=troth-agent",
    ];
    let journal = host.output(&journal).unwrap();
    let restarts = host.property("troth-agent", "NRestarts").unwrap();
    assert_eq!(restarts, "0", "{journal}");
    let failed = ["systemctl", "--failed", "--plain", "--no-legend"];
    assert_eq!(host.output(&failed).unwrap(), "");

    // GRUB measures its commands; behind systemd-stub, systemd measures what it does itself.
    let log =
        "grep --text --quiet 'grub_cmd: linux' /sys/kernel/security/tpm0/binary_bios_measurements";
    let has_commands = host.run(&["sh", "-c", log]).unwrap().status.success();
    assert_eq!(has_commands, loader == BootLoader::Grub);
    let measured = ["test", "-e", "/run/log/systemd/tpm2-measure.log"];
    let has_userspace = host.run(&measured).unwrap().status.success();
    assert_eq!(has_userspace, loader == BootLoader::Stub);

    let add = "trothctl policy create runtime --ima-list \"$1\" -o /tmp/policy.json
               trothctl agent add \"$0\" --runtime-policy /tmp/policy.json --boot-policy '{}'";
    host.sh(WARM_UP).unwrap();
    host.output(&["sh", "-ec", add, ID, IMA_LIST]).unwrap();
    let node = wait_for_trust(&host);
    assert_eq!(node["has_boot_policy"], true, "{node:#}");
    assert_eq!(node["boot_quirks"].as_array().unwrap().len(), 0, "{node:#}");

    // Last: the policy knows neither.
    assert_that_all_is_found(&host, &[]);
    let nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup"];
    assert_that_all_is_found(&host, &[&nobody[..], &["--clear-groups"]].concat());
}

/// `trothctl node check`, run by `user`, sees of the real kernel what an attestation has used.
fn assert_that_all_is_found(host: &Guest, user: &[&str]) {
    let check = [user, &["trothctl", "--json", "node", "check"]].concat();
    let checked = host.run(&check).unwrap();
    let view = checked.json().unwrap();
    assert!(checked.status.success(), "{view:#}");
    assert_eq!(view["attestable"], true, "{view:#}");
    let is_root = user.is_empty();
    for (name, state, found) in [
        ("TPM", "good", "tpm0: TPM 2.0"),
        ("PCR banks", "good", "sha256"),
        ("way to the TPM", "good", "/dev/tpmrm0"),
        ("ConditionSecurity=tpm2", "good", "systemd sees the TPM"),
        (
            "boot log",
            "good",
            if is_root {
                "the firmware's"
            } else {
                "only root"
            },
        ),
        ("systemd's log", "good", ""),
        ("Secure Boot", "lacking", "off"),
        (
            "IMA list",
            "good",
            if is_root {
                "digests sha256"
            } else {
                "only root"
            },
        ),
        ("IMA policy", "good", "ima_policy=tcb"),
        ("kernel command line", "good", "ima_policy=tcb"),
    ] {
        let mut checks = view["checks"].as_array().unwrap().iter();
        let check = checks.find(|check| check["check"] == name);
        let check = check.unwrap_or_else(|| panic!("{name}: {view:#}"));
        assert_eq!(check["state"], state, "{view:#}");
        assert!(check["found"].as_str().unwrap().contains(found), "{view:#}");
    }
}

#[test]
fn a_host_that_boots_through_grub_is_attested_without_help() {
    attested_after_a_boot(BootLoader::Grub);
}

#[test]
fn a_host_that_boots_a_unified_kernel_image_is_attested_without_help() {
    attested_after_a_boot(BootLoader::Stub);
}
