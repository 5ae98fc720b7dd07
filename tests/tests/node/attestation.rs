use std::fs;

use troth_tests::node::{Container, TCTI};

use crate::{ID, MINER, Site, dropin};

/// The resource manager on a TPM in software: Debian's unit requires the kernel's device, which a
/// drop-in cannot take away.
pub(crate) fn broker() -> String {
    format!(
        "[Unit]\nDescription=TPM2 resource manager on a TPM in software\n\
         [Service]\nType=dbus\nBusName=com.intel.tss2.Tabrmd\nUser=tss\n\
         ExecStart=/usr/sbin/tpm2-abrmd --tcti={TCTI}\n"
    )
}

#[test]
fn a_host_is_trusted_until_it_runs_what_its_policy_does_not_list() {
    let site = Site::trusted(TCTI, &[]);
    let os = site.host.os();
    let status = os.output(&["systemctl", "status", "troth-agent"]).unwrap();
    let serving = format!("Status: \"Attesting as {ID} on 0.0.0.0:9002\"");
    assert!(status.contains(&serving), "{status}");

    let secrets = "/var/lib/troth/secure";
    let mounted = os.output(&[
        "findmnt",
        "--noheadings",
        "--output=FSTYPE,OPTIONS",
        secrets,
    ]);
    let mounted = mounted.unwrap();
    for option in ["tmpfs", "nosuid", "nodev", "noexec", "noswap"] {
        assert!(mounted.contains(option), "{mounted}");
    }

    let node = site.run_a_miner();
    let findings = node["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert!(findings[0].to_string().contains(MINER), "{findings:#?}");
}

/// The verifier's address and port in its connection to the agent.
fn connection(os: &Container) -> String {
    let established = ["state", "established", "sport = :9002"];
    let command = [
        &["ss", "--tcp", "--numeric", "--no-header"][..],
        &established,
    ]
    .concat();
    let lines = os.output(&command).unwrap();
    lines.split_whitespace().nth(3).unwrap().to_owned()
}

#[test]
fn a_host_stays_trusted_over_reloads_and_restarts() {
    let site = Site::trusted(TCTI, &[]);
    let (os, server) = (site.host.os(), site.server.os());
    let process = os.property("troth-agent", "MainPID").unwrap();
    let before = site.wait_for_state("trusted");
    let connection = connection(os);
    os.output(&["systemctl", "reload", "troth-agent"]).unwrap();
    let units = ["troth-registrar", "troth-verifier"];
    server
        .output(&[&["systemctl", "reload"][..], &units].concat())
        .unwrap();
    let before = site.wait_for_trust_after(&before);
    assert_eq!(os.property("troth-agent", "MainPID").unwrap(), process);
    assert_eq!(self::connection(os), connection);

    os.output(&["systemctl", "restart", "troth-agent"]).unwrap();
    let before = site.wait_for_trust_after(&before);
    assert_ne!(os.property("troth-agent", "MainPID").unwrap(), process);
    server
        .output(&[&["systemctl", "restart"][..], &units].concat())
        .unwrap();
    let after = site.wait_for_trust_after(&before);
    assert!(after["ima_entries"].as_u64().unwrap() > 1600, "{after:#}");
    assert_eq!(os.property("troth-agent", "NRestarts").unwrap(), "0");
    for unit in units {
        assert_eq!(server.property(unit, "NRestarts").unwrap(), "0", "{unit}");
    }
}

#[test]
fn a_host_is_attested_over_the_resource_manager() {
    let unit = "/etc/systemd/system/tpm2-abrmd.service";
    let (needs, content) = dropin("tpm2-abrmd.conf");
    let site = Site::trusted("tabrmd", &[(unit, &broker()), (&needs, &content)]);
    let os = site.host.os();
    // Not as root, and no member of the group by anything but its sysusers file.
    let process = os.property("troth-agent", "MainPID").unwrap();
    let status = fs::read_to_string(os.file(&format!("/proc/{process}/status"))).unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap();
    assert_eq!(
        line("CapEff:").trim_end().rsplit('\t').next(),
        Some("0000000000000000")
    );
    assert!(!line("Uid:").contains("\t0"), "{status}");

    let before = site.wait_for_state("trusted");
    os.output(&["systemctl", "restart", "tpm2-abrmd"]).unwrap();
    site.wait_for_trust_after(&before);
    assert_eq!(os.property("troth-agent", "MainPID").unwrap(), process);
    let registered = ["--unit=troth-agent", "--grep=registered and activated"];
    assert_eq!(os.journal(&registered).unwrap().len(), 1);
}

#[test]
fn a_reboot_leaves_the_tpm_clean_and_the_host_is_trusted_without_help() {
    let mut site = Site::trusted(TCTI, &[]);
    let enable = ["systemctl", "enable", "troth-agent"];
    site.host.os().output(&enable).unwrap();
    let status = site.host.shut_down().unwrap();
    assert!(status.success(), "{status}");
    let machine = site.host.machine().unwrap();
    let left = machine.tpm().client().loaded_objects().unwrap();
    assert!(left.is_empty(), "objects left in the TPM: {left:x?}");
    let before = site.wait_for("the host is not shown as trusted", |node| {
        node["state"] != "trusted"
    });
    assert_ne!(before["state"], "failed", "{before:#}");

    site.host.start_again().unwrap();
    site.wait_for_trust_after(&before);
    let failed = ["systemctl", "--failed", "--plain", "--no-legend"];
    assert_eq!(site.host.os().output(&failed).unwrap(), "");
}
