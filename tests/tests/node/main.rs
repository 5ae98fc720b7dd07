//! The node tier: hosts with systemd 257 as PID 1, our install tree on Debian, a TPM in software.
//! Needs root.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

/// What starts an agent, and what does not.
mod activation;
/// A host attested by the units of another.
mod attestation;
/// The agent on the bus of its host: D-Bus, polkit, LogControl1.
mod bus;
/// What services are configured by.
mod configuration;
/// Disks, buses and registrars that fail, and come back. (A container has no clock of its own.)
mod faults;
/// firewalld's services.
mod firewall;
/// What the journal tells.
mod journal;
/// A host and a server that go by Keylime's names.
mod keylime;
/// The stage itself: a container on a captured boot.
mod stage;
/// Hosts whose TPM hangs, or is not there.
mod tpm;
/// The unit files and what comes with them, as systemd sees them.
mod units;
/// The agent's and the broker's varlink interfaces, and `trothctl node`.
mod varlink;

use std::fs;
use std::net::Ipv4Addr;

use serde_json::Value;
use tempfile::TempDir;
use troth_tests::fleet::Answer;
use troth_tests::node::{Container, Host, LOGS, example};

/// The agent's id in all tests.
const ID: &str = "node-1";

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// What the administrator of the server writes; quotes are asked for often, so that verdicts come
/// soon.
const SERVER_FILES: [(&str, &str); 3] = [
    ("/etc/troth/registrar.toml", "ip = \"0.0.0.0\"\n"),
    (
        "/etc/troth/verifier.toml",
        "quote_interval = 0.5\nretry_interval = 0.2\nexponential_backoff = false\n",
    ),
    (
        "/etc/troth/trothctl.toml.d/10-tpm-vendors.toml",
        "tpm_cert_store = \"/etc/troth/tpm_cert_store\"\n",
    ),
];

/// A program that no policy lists.
const MINER: &str = "/usr/local/bin/miner";

/// Where the agent expects the CA of verifier and registrar.
const CA: &str = "/var/lib/troth/cv_ca";

/// `agent.toml` of a host of [`Site`]; the logs are captured ones.
fn agent_toml(tcti: &str) -> String {
    format!(
        "uuid = {ID:?}\nip = \"0.0.0.0\"\nregistrar_ip = \"{SERVER}\"\n\
         tcti = {tcti:?}\n\
         ima_ml_path = \"{LOGS}/ascii_runtime_measurements\"\n\
         measuredboot_ml_path = \"{LOGS}/binary_bios_measurements\"\n\
         userspace_ml_path = \"{LOGS}/tpm2-measure.log\"\n"
    )
}

/// Where an administrator copies one of the agent's drop-ins to, and its content.
fn dropin(name: &str) -> (String, String) {
    dropin_of("troth-agent.service", name)
}

fn dropin_of(unit: &str, name: &str) -> (String, String) {
    let name = format!("{unit}.d/{name}");
    let content = example(&name).unwrap();
    (format!("/etc/systemd/system/{name}"), content)
}

/// The drop-ins for a TPM that systemd does not see.
fn any_tpm() -> [(String, String); 2] {
    ["troth-agent.service", "troth-agent.socket"].map(|unit| dropin_of(unit, "any-tpm.conf"))
}

/// A server with registrar and verifier, and a host to be attested, on a network of their own.
struct Site {
    host: Host,
    server: Host,
    // Last: they have files in it.
    _directory: TempDir,
}

impl Site {
    /// With the agent not started yet, and `files` on the host.
    fn new(tcti: &str, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let agent = agent_toml(tcti);
        let any_tpm = any_tpm();
        let [service, socket] = any_tpm.each_ref().map(|(p, c)| (p.as_str(), c.as_str()));
        let ours = [("/etc/troth/agent.toml", agent.as_str()), service, socket];
        let files = [&ours[..], files].concat();
        let host = Host::with_tpm(&directory.path().join("host"), "host", &files).unwrap();
        let place = directory.path().join("server");
        let server = Host::without_tpm(&place, "server", &SERVER_FILES).unwrap();
        server
            .network()
            .connect(SERVER, host.network(), HOST)
            .unwrap();
        server
            .os()
            .output(&["systemctl", "start", "troth-registrar", "troth-verifier"])
            .unwrap();
        let ca = fs::read(server.os().file("/var/lib/troth-ca/cacert.crt")).unwrap();
        let make = [
            "install", "-d", "-o", "troth", "-g", "troth", "-m", "0700", CA,
        ];
        host.os().output(&make).unwrap();
        host.os().write(&format!("{CA}/cacert.crt"), ca).unwrap();
        let issuer = fs::read(host.machine().unwrap().tpm().ek_issuer()).unwrap();
        server
            .os()
            .write("/etc/troth/tpm_cert_store/vendor.pem", issuer)
            .unwrap();
        Self {
            host,
            server,
            _directory: directory,
        }
    }

    /// With the agent registered and the host enrolled, with a policy of what it runs.
    fn trusted(tcti: &str, files: &[(&str, &str)]) -> Self {
        let site = Self::new(tcti, files);
        site.host
            .os()
            .output(&["systemctl", "start", "troth-agent"])
            .unwrap();
        site.enrol();
        site
    }

    /// Waits for the agent's registration and enrols the host.
    fn enrol(&self) {
        self.wait_until_registered();
        let policy = self.host.machine().unwrap().runtime_policy().unwrap();
        self.server
            .os()
            .write("/root/policy.json", policy.to_string())
            .unwrap();
        let add = ["agent", "add", ID, "--runtime-policy", "/root/policy.json"];
        self.trothctl(&add).success().unwrap();
        self.wait_for_state("trusted");
    }

    /// The host runs a program that its policy does not list.
    fn run_a_miner(&self) -> Value {
        let machine = self.host.machine().unwrap();
        machine.run_program(MINER, b"mine\n").unwrap();
        self.wait_for_state("failed")
    }

    /// `trothctl` as root of the server types it.
    fn trothctl(&self, arguments: &[&str]) -> Answer {
        let command = [&["trothctl"][..], arguments].concat();
        self.server.os().run(&command).unwrap()
    }

    fn wait_until_registered(&self) {
        let look = |_: &Container| Ok(self.trothctl(&["registrar", "show", ID]));
        let registered = |answer: &Answer| answer.status.success();
        let os = self.server.os();
        os.wait_for("the agent is registered", look, registered)
            .unwrap();
    }

    fn wait_for_state(&self, state: &str) -> Value {
        self.wait_for(&format!("the host is {state}"), |node| {
            node["state"] == state
        })
    }

    /// Waits until the host was judged twice more, and is trusted.
    fn wait_for_trust_after(&self, before: &Value) -> Value {
        let count = |node: &Value| node["attestation_count"].as_u64().unwrap();
        self.wait_for("the host is trusted again", |node| {
            node["state"] == "trusted" && count(node) > count(before) + 1
        })
    }

    fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let status = ["--json", "agent", "status", ID];
        let look = |_: &Container| self.trothctl(&status).json();
        self.server.os().wait_for(what, look, wanted).unwrap()
    }
}
