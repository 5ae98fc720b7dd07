use rustix::process::Signal;
use troth_tests::node::{Container, Host, TCTI};

use crate::Site;

#[test]
fn an_agent_whose_tpm_hangs_is_killed_and_trusted_again_when_it_answers() {
    let dropin = "/etc/systemd/system/troth-agent.service.d/20-watchdog.conf";
    let mut site = Site::trusted(TCTI, &[(dropin, "[Service]\nWatchdogSec=2s\n")]);
    let before = site.wait_for_state("trusted");
    let tpm = site.host.machine_mut().unwrap().tpm_mut();
    tpm.signal(Signal::STOP).unwrap();
    let restarts = |os: &Container| os.property("troth-agent", "NRestarts");
    let os = site.host.os();
    os.wait_for("the agent is started again", restarts, |count| count != "0")
        .unwrap();
    let killed = os
        .journal(&["--unit=troth-agent", "--grep=Watchdog timeout"])
        .unwrap();
    assert!(!killed.is_empty());
    let status = |os: &Container| os.property("troth-agent", "StatusText");
    let waiting = |text: &String| text == "Waiting for the TPM";
    os.wait_for("the next one says what it waits for", status, waiting)
        .unwrap();
    // Each wait is longer than the last.
    let next = os.property("troth-agent", "RestartUSecNext").unwrap();
    assert_ne!(next, os.property("troth-agent", "RestartUSec").unwrap());
    site.wait_for("the host is not shown as trusted", |node| {
        node["state"] != "trusted"
    });

    let tpm = site.host.machine_mut().unwrap().tpm_mut();
    tpm.signal(Signal::CONT).unwrap();
    site.wait_for_trust_after(&before);
}

#[test]
fn a_host_without_a_tpm_is_told_so_and_nothing_fails() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::without_tpm(directory.path(), "bare", &[]).unwrap();
    let os = host.os();
    for unit in ["troth-agent.socket", "troth-agent.service"] {
        os.output(&["systemctl", "start", unit]).unwrap();
        assert_eq!(os.property(unit, "ConditionResult").unwrap(), "no");
        assert_eq!(os.property(unit, "ActiveState").unwrap(), "inactive");
    }
    assert_eq!(os.property("troth-agent", "NRestarts").unwrap(), "0");
    // `systemctl status` says 3 of a unit that does not run.
    let status = os.run(&["systemctl", "status", "troth-agent"]).unwrap();
    assert!(
        status.stdout.contains("ConditionSecurity=tpm2"),
        "{status:?}"
    );
    let failed = os
        .output(&["systemctl", "--failed", "--plain", "--no-legend"])
        .unwrap();
    assert_eq!(failed, "");
}
