use std::fs;

use troth_tests::boot::fixtures;
use troth_tests::fleet::Programs;
use troth_tests::node::{Container, TCTI};
use troth_tests::process::output_of;

use crate::{HOST, SERVER, Site};

/// The id that Keylime's agent has unless it is told another.
const KEYLIMES_ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000";

/// Adds the set of Keylime's names to a system that runs, as an administrator does.
fn add_keylimes_names(os: &Container) {
    let mut install = Programs::beside_this().unwrap().command("xtask").unwrap();
    install.args(["install", "--set", "keylime-compat", "--root"]);
    output_of(install.arg(os.file("/"))).unwrap();
    os.output(&["systemd-tmpfiles", "--create", "troth-keylime.conf"])
        .unwrap();
    os.output(&["systemctl", "daemon-reload"]).unwrap();
}

/// Keylime's wiki, with its names: `/etc/keylime.conf`, units, tenant.
#[test]
fn what_keylimes_wiki_says_works_with_its_names() {
    let site = Site::new(TCTI, &[]);
    let (os, server) = (site.host.os(), site.server.os());
    fs::remove_file(os.file("/etc/troth/agent.toml")).unwrap();
    let text = fs::read_to_string(fixtures().join("keylime-config/keylime.conf")).unwrap();
    let text = text
        .replace(
            "registrar_ip = 127.0.0.1",
            &format!("registrar_ip = {SERVER}"),
        )
        .replace(
            "cloudagent_ip = 127.0.0.1",
            &format!("cloudagent_ip = {HOST}\nagent_contact_ip = {HOST}"),
        );
    os.write("/etc/keylime.conf", text).unwrap();
    // No file of ours says where the TPM is.
    let dropin = "/etc/systemd/system/troth-agent.service.d/20-tcti.conf";
    let tcti = format!("[Service]\nEnvironment=TROTH_AGENT_TCTI={TCTI}\n");
    os.write(dropin, tcti).unwrap();
    add_keylimes_names(os);
    add_keylimes_names(server);

    os.output(&["systemctl", "enable", "--now", "keylime_agent"])
        .unwrap();
    let state = os
        .output(&["systemctl", "is-active", "keylime_agent.service"])
        .unwrap();
    assert_eq!(state, "active\n");
    let unit = os.property("keylime_agent.service", "Id").unwrap();
    assert_eq!(unit, "troth-agent.service");
    let linked = os
        .output(&["readlink", "--canonicalize", "/var/lib/keylime"])
        .unwrap();
    assert_eq!(linked, "/var/lib/troth\n");
    server
        .output(&[
            "systemctl",
            "enable",
            "--now",
            "keylime_verifier",
            "keylime_registrar",
        ])
        .unwrap();

    let registered = ["--json", "registrar", "show", KEYLIMES_ID];
    let look = |_: &Container| Ok(site.trothctl(&registered));
    let shown = server.wait_for("it is registered", look, |answer| answer.status.success());
    assert_eq!(shown.unwrap().json().unwrap()["address"], HOST.to_string());

    // What has no meaning here is told of once each, and where it stands.
    let lines = os.journal(&["--unit=troth-agent", "--grep=/etc/keylime.conf: line"]);
    let lines = lines.unwrap();
    let messages: Vec<_> = lines
        .iter()
        .filter_map(|line| line["MESSAGE"].as_str())
        .collect();
    for option in [
        "enable_tls",
        "extract_payload_zip",
        "measure_payload_pcr",
        "payload_script",
        "retry_interval",
        "rsa_keyname",
        "secure_size",
    ] {
        let about = format!(": {option} ");
        let told = messages.iter().filter(|message| message.contains(&about));
        assert_eq!(told.count(), 1, "{option}: {messages:#?}");
    }

    // The wiki's command, as it is there.
    let address = HOST.to_string();
    let add = [
        "keylime_tenant",
        "-v",
        "127.0.0.1",
        "-t",
        &address,
        "-u",
        KEYLIMES_ID,
    ];
    let add = [&add[..], &["--cert", "default", "-c", "add"]].concat();
    let added = server.run(&add).unwrap();
    assert!(added.stderr.contains("--cert has no effect"), "{added:?}");
    added.success().unwrap();
    let status = ["keylime_tenant", "-c", "cvstatus", "-u", KEYLIMES_ID];
    let look = |os: &Container| os.run(&status);
    server
        .wait_for("the host is trusted", look, |answer| {
            answer.status.success()
        })
        .unwrap();

    // What the first start has made is found by either name after a restart.
    os.output(&["systemctl", "restart", "keylime_agent"])
        .unwrap();
    assert_eq!(
        os.property("keylime_agent", "ActiveState").unwrap(),
        "active"
    );
    server
        .wait_for("the host is trusted", look, |answer| {
            answer.status.success()
        })
        .unwrap();
    os.output(&["systemctl", "reload", "keylime_agent"])
        .unwrap();
    let told = ["--unit=troth-agent", "--grep=configuration reloaded"];
    let look = |os: &Container| os.journal(&told);
    let reloaded = os.wait_for("it is read again", look, |found| !found.is_empty());
    assert_eq!(reloaded.unwrap()[0]["MESSAGE"], "configuration reloaded");
    let wants = "/etc/systemd/system/multi-user.target.wants/troth-agent.service";
    os.output(&["test", "-e", wants]).unwrap();
}
