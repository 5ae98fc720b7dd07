use serde_json::{Value, json};
use troth_tests::node::{Container, TCTI};

use crate::{Site, agent_toml, dropin};

/// Value and origin of an option, as root of the host is told.
fn shown(os: &Container, program: &str, option: &str) -> (Value, Value) {
    let command = ["trothctl", "--json", "config", "show", program];
    let all = os.run(&command).unwrap().json().unwrap();
    let options = all["options"].as_array().unwrap();
    let found = options.iter().find(|o| o["name"] == option).unwrap();
    (found["value"].clone(), found["origin"].clone())
}

#[test]
fn what_a_service_goes_by_is_shown_with_its_environment_and_credentials() {
    let (needs, any_tpm) = dropin("any-tpm.conf");
    let site = Site::new(
        TCTI,
        &[
            (&needs, &any_tpm),
            ("/etc/credstore/troth.agent.contact_port", "9102\n"),
            (
                "/etc/systemd/system/troth-agent.service.d/10-site.conf",
                "[Service]\nEnvironment=TROTH_AGENT_PORT=9102\n\
                 SetCredential=troth.agent.iak_password:hunter2\n",
            ),
        ],
    );
    let os = site.host.os();
    // It does not run yet.
    let (state, origin) = shown(os, "agent", "state_dir");
    assert_eq!(state, "/var/lib/troth");
    assert_eq!(
        origin,
        json!({ "kind": "unit", "variable": "STATE_DIRECTORY" })
    );
    let told = os.run(&["trothctl", "config", "show", "agent"]).unwrap();
    assert!(
        told.stderr.contains("troth-agent.service does not run"),
        "{told:?}"
    );
    assert_eq!(shown(os, "agent", "port").0, 9002);

    os.output(&["systemctl", "start", "troth-agent"]).unwrap();
    site.wait_until_registered();
    let credential = |option: &str| {
        let file = format!("/run/credentials/troth-agent.service/troth.agent.{option}");
        json!({ "kind": "credential", "file": file })
    };
    let port = (
        json!(9102),
        json!({ "kind": "variable", "variable": "TROTH_AGENT_PORT" }),
    );
    assert_eq!(shown(os, "agent", "port"), port);
    assert_eq!(
        shown(os, "agent", "contact_port"),
        (json!(9102), credential("contact_port"))
    );
    let password = shown(os, "agent", "iak_password");
    assert_eq!(password, (Value::Null, credential("iak_password")));
    let line = agent_toml(TCTI)
        .lines()
        .position(|line| line.starts_with("tcti"));
    let file =
        json!({ "kind": "file", "file": "/etc/troth/agent.toml", "line": line.unwrap() + 1 });
    assert_eq!(shown(os, "agent", "tcti"), (json!(TCTI), file));
    // What was imported took effect.
    let registered = site
        .trothctl(&["--json", "registrar", "show", crate::ID])
        .json()
        .unwrap();
    assert_eq!(registered["port"], 9102);

    let directory = "/run/credentials/troth-verifier.service";
    let ca = json!({ "kind": "unit", "variable": "CREDENTIALS_DIRECTORY" });
    assert_eq!(
        shown(site.server.os(), "verifier", "ca_dir"),
        (json!(directory), ca)
    );
}
