use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair};
use troth_tests::node::{Container, LOGS, TCTI};
use troth_tests::tpm::Fault;

use crate::attestation::broker;
use crate::{CA, HOST, ID, Site, dropin};

/// The agent's state.
const STATE: &str = "/var/lib/troth";

/// Connects to the agent, says that it has, and waits for whatever comes.
const ASK: &str = "exec 3<>/dev/tcp/10.77.0.2/9002 && touch /run/connected && \
                   printf 'no TLS\\r\\n\\r\\n' >&3 && cat <&3 >/dev/null && echo answered";

fn stored(os: &Container) -> String {
    os.property("troth-agent", "NFileDescriptorStore").unwrap()
}

/// Where the agent listens for verifiers.
fn listening(os: &Container) -> String {
    let all = ["ss", "--tcp", "--listening", "--numeric", "--no-header"];
    let lines = os.output(&all).unwrap();
    let addresses = lines
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3));
    let agents = addresses.filter(|address| address.contains(":900"));
    agents.collect::<Vec<_>>().join(" ")
}

#[test]
fn who_connects_while_the_agent_restarts_is_answered() {
    // A pause that is long enough to connect in. The list is as the kernel's: opened by systemd.
    let unit = format!(
        "[Service]\nRestartSec=1h\nRestartSteps=0\n\
         OpenFile={LOGS}/ascii_runtime_measurements:ima-list:read-only\n"
    );
    let path = "/etc/systemd/system/troth-agent.service.d/20-pause.conf";
    let toml = "/etc/troth/agent.toml.d/20-list.toml";
    let default = "ima_ml_path = \"/sys/kernel/security/ima/ascii_runtime_measurements\"\n";
    let site = Site::trusted(TCTI, &[(path, &unit), (toml, default)]);
    let (os, server) = (site.host.os(), site.server.os());
    let before = site.wait_for_state("trusted");
    assert_eq!(stored(os), "3", "listener, list and position in it");
    let kill = ["systemctl", "kill", "--signal=KILL", "troth-agent"];
    os.output(&kill).unwrap();
    let state = |os: &Container| os.property("troth-agent", "SubState");
    os.wait_for("the agent is to be restarted", state, |s| {
        s == "auto-restart"
    })
    .unwrap();
    thread::scope(|scope| {
        let asked = scope.spawn(|| server.run(&["bash", "-c", ASK]));
        let connected = |os: &Container| os.output(&["cat", "/run/connected"]);
        server
            .wait_for("the connection is there", connected, |_| true)
            .unwrap();
        os.output(&["systemctl", "restart", "troth-agent"]).unwrap();
        let answer = asked.join().unwrap().unwrap();
        assert_eq!(answer.stdout, "answered\n", "{answer:?}");
    });
    let before = site.wait_for_trust_after(&before);
    assert_eq!(stored(os), "3");
    // Another list: what was kept of this one is closed.
    os.write(toml, "").unwrap();
    os.output(&["systemctl", "restart", "troth-agent"]).unwrap();
    site.wait_for_trust_after(&before);
    assert_eq!(stored(os), "1");
}

#[test]
fn another_port_or_address_takes_effect_and_nobody_listens_at_the_old_one() {
    let site = Site::trusted(TCTI, &[]);
    let os = site.host.os();
    let before = site.wait_for_state("trusted");
    for (lines, address) in [
        ("port = 9003\n", "0.0.0.0:9003".to_owned()),
        ("port = 9003\nip = \"10.77.0.2\"\n", format!("{HOST}:9003")),
        ("port = 9003\n", "0.0.0.0:9003".to_owned()),
        ("", "0.0.0.0:9002".to_owned()),
    ] {
        os.write("/etc/troth/agent.toml.d/20-listener.toml", lines)
            .unwrap();
        os.output(&["systemctl", "restart", "troth-agent"]).unwrap();
        assert_eq!(listening(os), address);
        assert_eq!(stored(os), "1");
    }
    site.wait_for_trust_after(&before);
    os.output(&["systemctl", "stop", "troth-agent"]).unwrap();
    let nowhere = |os: &Container| Ok(listening(os));
    os.wait_for("nobody listens", nowhere, String::is_empty)
        .unwrap();
    assert_eq!(stored(os), "0");
}

#[test]
fn a_registrar_that_comes_late_is_found() {
    let site = Site::new(TCTI, &[]);
    let (os, server) = (site.host.os(), site.server.os());
    server
        .output(&["systemctl", "stop", "troth-registrar"])
        .unwrap();
    os.output(&["systemctl", "start", "troth-agent"]).unwrap();
    let status = |os: &Container| os.property("troth-agent", "StatusText");
    let waiting = |text: &String| text.starts_with("Not registered, trying again in");
    os.wait_for("the agent says that it waits", status, waiting)
        .unwrap();
    server
        .output(&["systemctl", "start", "troth-registrar"])
        .unwrap();
    let serving = |text: &String| text.starts_with("Attesting as");
    os.wait_for("the agent is registered", status, serving)
        .unwrap();
    assert_eq!(os.property("troth-agent", "NRestarts").unwrap(), "0");
}

#[test]
fn a_stop_in_the_middle_of_a_quote_leaves_the_tpm_clean() {
    let site = Site::trusted(TCTI, &[]);
    let (os, tpm) = (site.host.os(), site.host.machine().unwrap().tpm());
    // Longer than the pause between two questions: there is hardly a moment without a quote.
    tpm.misbehave(Fault::Slow(Duration::from_secs(4)));
    let before = site.wait_for_state("trusted");
    site.wait_for_trust_after(&before);
    os.output(&["systemctl", "stop", "troth-agent"]).unwrap();
    assert_eq!(os.property("troth-agent", "Result").unwrap(), "success");
    tpm.misbehave(Fault::None);
    let left = tpm.client().loaded_objects().unwrap();
    assert!(left.is_empty(), "objects left in the TPM: {left:x?}");
    os.output(&["systemctl", "start", "troth-agent"]).unwrap();
    site.wait_for_trust_after(&before);
}

#[test]
fn a_soft_reboot_changes_nothing_for_the_verifier() {
    // The machine's logs are the kernel's own elsewhere.
    let logs = "/etc/systemd/system/run-machine.mount.d/10-kernel.conf";
    let site = Site::trusted(TCTI, &[(logs, "[Unit]\nDefaultDependencies=no\n")]);
    let os = site.host.os();
    os.output(&["systemctl", "enable", "troth-agent"]).unwrap();
    let before = site.wait_for_state("trusted");
    let record = site.trothctl(&["--json", "registrar", "show", ID]);
    os.output(&["systemctl", "soft-reboot", "--no-block"])
        .unwrap();
    // Whoever is in the container meanwhile is stopped.
    let manager = |os: &Container| Ok(fs::read_to_string(os.file("/proc/1/cmdline"))?);
    let another = |line: &String| line.contains("--deserialize");
    os.wait_for("user space starts again", manager, another)
        .unwrap();
    let after = site.wait_for_trust_after(&before);
    let entries = |node: &serde_json::Value| node["ima_entries"].as_u64().unwrap();
    assert!(entries(&after) >= entries(&before), "{after:#}");
    let again = site.trothctl(&["--json", "registrar", "show", ID]);
    assert_eq!(again.json().unwrap()["ak"], record.json().unwrap()["ak"]);
    let failed = ["systemctl", "--failed", "--plain", "--no-legend"];
    assert_eq!(os.output(&failed).unwrap(), "");
}

/// What libtss2 brings into the process never finds a bus again that it has lost: the agent has
/// itself started anew, before the watchdog would kill it. In a container of its own: without its
/// bus it cannot be shut down in order.
#[test]
fn an_agent_gets_over_a_restart_of_the_bus_between_it_and_its_tpm() {
    let unit = "/etc/systemd/system/tpm2-abrmd.service";
    let (needs, content) = dropin("tpm2-abrmd.conf");
    let watchdog = (
        "/etc/systemd/system/troth-agent.service.d/20-watchdog.conf",
        "[Service]\nWatchdogSec=8s\n",
    );
    let broker = broker();
    let files = [(unit, broker.as_str()), (&needs, &content), watchdog];
    let site = Site::trusted("tabrmd", &files);
    let os = site.host.os();
    let before = site.wait_for_state("trusted");
    os.output(&["systemctl", "restart", "dbus"]).unwrap();
    os.output(&["systemctl", "restart", "tpm2-abrmd"]).unwrap();
    site.wait_for_trust_after(&before);
    assert_eq!(os.property("troth-agent", "NRestarts").unwrap(), "1");
    let killed = |entry: &serde_json::Value| entry.to_string().contains("Watchdog timeout");
    let entries = os.journal(&["--unit=troth-agent"]).unwrap();
    assert!(!entries.iter().any(killed));
    wait_until_on_the_bus(os);
}

#[test]
fn an_agent_that_needs_no_bus_for_its_tpm_joins_one_that_was_restarted() {
    let site = Site::trusted(TCTI, &[]);
    let os = site.host.os();
    wait_until_on_the_bus(os);
    let before = site.wait_for_state("trusted");
    os.output(&["systemctl", "restart", "dbus"]).unwrap();
    wait_until_on_the_bus(os);
    site.wait_for_trust_after(&before);
    assert_eq!(os.property("troth-agent", "NRestarts").unwrap(), "0");
}

fn wait_until_on_the_bus(os: &Container) {
    let name = |os: &Container| os.output(&["busctl", "status", "org.troth.Agent1"]);
    os.wait_for("the agent has its name", name, |_| true)
        .unwrap();
}

/// Mounts a disk of 16 MiB on a service's state directory.
fn mount_a_small_disk(os: &Container, directory: &str, owner: &str) {
    let mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs"];
    os.output(&[&mount[..], &[directory]].concat()).unwrap();
    os.output(&["chown", &format!("{owner}:{owner}"), directory])
        .unwrap();
}

/// Leaves no room there.
fn fill(os: &Container, directory: &str) {
    let fill = format!("cat /dev/zero > {directory}/filler");
    let filled = os.run(&["sh", "-c", &fill]).unwrap();
    assert!(filled.stderr.contains("No space left"), "{filled:?}");
}

fn wait_for_journal(os: &Container, unit: &str, text: &str) {
    let (unit, text) = (format!("--unit={unit}"), format!("--grep={text}"));
    let entries = |os: &Container| os.journal(&[&unit, &text]);
    os.wait_for("the journal tells of it", entries, |found| {
        !found.is_empty()
    })
    .unwrap();
}

#[test]
fn an_agent_without_room_says_so_and_goes_on_when_there_is_some() {
    let site = Site::new(TCTI, &[]);
    let os = site.host.os();
    let authority = fs::read(os.file(&format!("{CA}/cacert.crt"))).unwrap();
    mount_a_small_disk(os, STATE, "troth");
    os.output(&["install", "-d", "-o", "troth", "-g", "troth", CA])
        .unwrap();
    os.write(&format!("{CA}/cacert.crt"), authority).unwrap();
    fill(os, STATE);
    os.output(&["systemctl", "start", "--no-block", "troth-agent"])
        .unwrap();
    wait_for_journal(os, "troth-agent", "cannot write .*No space left");
    let files = |os: &Container| os.output(&["ls", STATE]);
    let nothing = |files: &String| files == "cv_ca\nfiller\nsecure\n";
    os.wait_for("nothing is half-written", files, nothing)
        .unwrap();
    // Room for AK, payload key and TLS key, but not for the certificate.
    os.output(&["truncate", "--size=-12K", &format!("{STATE}/filler")])
        .unwrap();
    wait_for_journal(
        os,
        "troth-agent",
        "cannot write .*server-cert.*No space left",
    );
    let half = |files: &String| files == "ak.json\ncv_ca\nfiller\npayload-private.pem\nsecure\n";
    os.wait_for("a key without its certificate is removed", files, half)
        .unwrap();
    let remove = format!("{STATE}/filler");
    os.output(&["rm", &remove]).unwrap();
    site.enrol();

    // The certificate is to be renewed now, which needs room.
    let before = site.wait_for_state("trusted");
    fill(os, STATE);
    let key = fs::read_to_string(os.file(&format!("{STATE}/server-private.pem"))).unwrap();
    let certificate = format!("{STATE}/server-cert.crt");
    fs::write(os.file(&certificate), about_to_end(&key)).unwrap();
    wait_for_journal(os, "troth-agent", "certificate stays as it was.*No space");
    let before = site.wait_for_trust_after(&before);
    os.output(&["rm", &remove]).unwrap();
    os.output(&["touch", &certificate]).unwrap();
    wait_for_journal(
        os,
        "troth-agent",
        "the registrar shows the new TLS certificate",
    );
    site.wait_for_trust_after(&before);
    let files = os.output(&["ls", STATE]).unwrap();
    assert!(!files.contains(".new"), "{files}");
}

/// A certificate as the agent makes it, on its last day.
fn about_to_end(key: &str) -> String {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut params = CertificateParams::new([&names[..], &[HOST.to_string()]].concat()).unwrap();
    params.is_ca = IsCa::ExplicitNoCa;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, ID);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let day = Duration::from_secs(86_400);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + day;
    params.not_before = params.not_after - day * 100;
    let key = KeyPair::from_pem(key).unwrap();
    params.self_signed(&key).unwrap().pem()
}

/// With a small disk for the state of both servers.
#[test]
fn servers_without_room_lose_no_registration_and_no_verdict() {
    let site = Site::new(TCTI, &[]);
    let (os, server) = (site.host.os(), site.server.os());
    let units = ["troth-registrar", "troth-verifier"];
    let systemctl = |verb| server.output(&[&["systemctl", verb][..], &units].concat());
    systemctl("stop").unwrap();
    for unit in units {
        mount_a_small_disk(server, &format!("/var/lib/{unit}"), unit);
    }
    systemctl("start").unwrap();
    let processes = units.map(|unit| server.property(unit, "MainPID").unwrap());

    let [registrar, verifier] = units.map(|unit| format!("/var/lib/{unit}"));
    fill(server, &registrar);
    os.output(&["systemctl", "start", "troth-agent"]).unwrap();
    let status = |os: &Container| os.property("troth-agent", "StatusText");
    let refused = |text: &String| text.starts_with("Not registered, trying again in");
    os.wait_for("the agent says that it waits", status, refused)
        .unwrap();
    server
        .output(&["rm", &format!("{registrar}/filler")])
        .unwrap();
    site.enrol();

    fill(server, &verifier);
    let machine = site.host.machine().unwrap();
    machine.run_program(crate::MINER, b"mine\n").unwrap();
    wait_for_journal(
        server,
        "troth-verifier",
        "verdicts of 1 nodes not written, trying again",
    );
    server
        .output(&["rm", &format!("{verifier}/filler")])
        .unwrap();
    site.wait_for_state("failed");
    assert_eq!(
        units.map(|unit| server.property(unit, "MainPID").unwrap()),
        processes
    );
}
