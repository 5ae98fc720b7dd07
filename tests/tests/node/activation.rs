use troth_tests::node::{Container, TCTI};

use crate::Site;

const SOCKET: &str = "unix:/run/troth/org.troth.Agent";
const PING: [&str; 4] = ["varlinkctl", "call", SOCKET, "io.systemd.service.Ping"];

fn state(os: &Container, unit: &str) -> String {
    os.property(unit, "ActiveState").unwrap()
}

fn ping(os: &Container) -> bool {
    let call = [&["timeout", "60"][..], &PING, &["{}"]].concat();
    os.run(&call).unwrap().status.success()
}

#[test]
fn local_callers_start_an_agent_until_it_is_stopped_or_cannot_work() {
    let site = Site::new(TCTI, &[]);
    let os = site.host.os();
    os.output(&["systemctl", "start", "troth-agent.socket"])
        .unwrap();
    assert_eq!(state(os, "troth-agent"), "inactive");
    assert!(ping(os));
    assert_ne!(state(os, "troth-agent"), "inactive");

    let active = |os: &Container| Ok(state(os, "troth-agent.socket"));
    let kill = ["systemctl", "kill", "--signal=KILL", "troth-agent"];
    os.output(&kill).unwrap();
    let restarts = |os: &Container| os.property("troth-agent", "NRestarts");
    os.wait_for("it is started again", restarts, |count| count == "1")
        .unwrap();
    os.wait_for("it listens again", active, |state| state == "active")
        .unwrap();
    assert!(ping(os));
    os.output(&["systemctl", "restart", "troth-agent"]).unwrap();
    assert!(ping(os));

    os.output(&["systemctl", "stop", "troth-agent"]).unwrap();
    assert!(!ping(os));
    assert_eq!(state(os, "troth-agent"), "inactive");

    // A caller that waits for an agent that cannot start is turned away.
    os.write("/etc/troth/agent.toml.d/20-wrong.toml", "prot = 9002\n")
        .unwrap();
    os.output(&["systemctl", "start", "troth-agent.socket"])
        .unwrap();
    assert!(!ping(os));
    assert_eq!(state(os, "troth-agent"), "failed");
    assert_eq!(os.property("troth-agent", "ExecMainStatus").unwrap(), "78");
    os.wait_for("it does not listen", active, |state| state != "active")
        .unwrap();
    let started = |os: &Container| os.journal(&["--unit=troth-agent", "--grep=prot"]);
    let count = started(os).unwrap().len();
    assert!((1..=3).contains(&count), "{count} starts");
}

#[test]
fn the_agents_socket_is_enabled_and_disabled_with_it() {
    let site = Site::new(TCTI, &[]);
    let os = site.host.os();
    for (verb, expected) in [("enable", "enabled"), ("disable", "disabled")] {
        os.output(&["systemctl", verb, "troth-agent"]).unwrap();
        for unit in ["troth-agent.service", "troth-agent.socket"] {
            let answer = os.run(&["systemctl", "is-enabled", unit]).unwrap();
            assert_eq!(answer.stdout.trim_end(), expected, "{unit}");
        }
    }
}
