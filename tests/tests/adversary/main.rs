//! The adversaries: who may lie to Troth, what he tries, and that it does not work.
//!
//! Each test is one case. Whatever is tried, nothing is trusted by mistake, nothing is called
//! untrusted for a fault of ours, the message is clear, nothing is lost, and memory is bounded.
//! The daemons are processes and all connections are TLS, but for cases marked pure.
//!
//! # To add a case
//!
//! 1. Write it in the module of its adversary, with a name that says what is tried
//!    (`cargo nextest list --test adversary` is the list of all cases).
//! 2. Name the check that it is about in the last paragraph of its doc comment, as
//!    `` Check: `FILE`: `TEXT` ``: the place in the code without which the case fails. `cases`
//!    sees to it that the place exists.
//! 3. Take the check out, see the case fail, and put it back.
//!
//! An agent that lies is a [`forge::Liar`]: a host in memory that answers over real mTLS and is
//! honest until it is told what to say. A man in the middle of a real agent is
//! [`troth_tests::proxy::LyingAgent`], a real agent on a TPM of its own a [`host::Host`].
//!
//! `cargo xtask soak kills` has the verifier killed more often than CI has time for.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

/// The list of cases: how many there are, and that each names its check.
mod cases;
/// Clients whose certificate is not what it should be.
mod client;
/// The time of day jumps under the daemons.
mod clock;
/// A database that is full, read-only, damaged, away, or written by others; and a verifier that is
/// killed.
mod database;
/// Evidence of a host that exists in memory only, and the agent that tells it.
mod forge;
/// A real agent on a machine of its own.
mod host;
/// Who has a certificate of the right CA and is not who is asked.
mod impostor;
/// An agent that lies about its host.
mod lying_agent;
/// Who sits between the verifier and a real agent.
mod middle;
/// Enrolments and policies that do harm, on purpose or not.
mod operator;
/// Anybody, at the routes that are open to anybody.
mod public;
/// Requests as they stand on the wire.
mod raw;
/// Who wants another host's identity at the registrar, or no identity there at all.
mod registrar;
/// Connections that stay, and who is at their ends meanwhile.
mod reuse;
/// A TPM that is gone, locked, slow, full, or not itself.
mod tpm;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use rustls::ClientConfig;
use serde_json::Value;
use tempfile::TempDir;
use troth_daemon::tls::{Identity, ServerTrust, certificates_from_pem, client_config};
use troth_tests::api::{Api, Reply};
use troth_tests::fleet::{Extra, Fleet, Programs};
use troth_tests::process::{PATIENCE, Process};

use forge::Liar;

/// Time between two questions: the cases wait for verdicts.
const INTERVAL: Duration = Duration::from_millis(100);

/// Registrar and verifier, and an operator who talks to them.
struct Stage {
    operator: Operator,
    // Dropped from the top: daemons before the files.
    fleet: Fleet,
    programs: Programs,
    directory: TempDir,
}

impl Stage {
    fn new() -> Self {
        Self::with(&Extra::default())
    }

    /// With these lines in `verifier.toml`.
    fn with_verifier(lines: &str) -> Self {
        Self::with(&Extra {
            verifier: lines.to_owned(),
            ..Extra::default()
        })
    }

    fn with(extra: &Extra) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let programs = Programs::beside_this().unwrap();
        let place = directory.path().join("fleet");
        let fleet = Fleet::start_with(&programs, &place, INTERVAL, extra).unwrap();
        let operator = Operator::of(&fleet);
        Self {
            operator,
            fleet,
            programs,
            directory,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// An honest host that the verifier trusts.
    fn trusted(&self, id: &str) -> Liar {
        let liar = Liar::start(&self.fleet.ca_dir());
        self.enrol(id, &liar);
        self.operator.wait_for_state(id, "trusted");
        liar
    }

    fn enrol(&self, id: &str, liar: &Liar) {
        let reply = self.operator.enrol(id, &liar.enrolment());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

/// Who has a certificate of the fleet's CA.
struct Operator {
    verifier: Api,
    registrar: Api,
}

impl Operator {
    fn of(fleet: &Fleet) -> Self {
        Self {
            verifier: Api::operator(fleet.verifier_port(), &fleet.ca_dir()).unwrap(),
            registrar: Api::operator(fleet.registrar_tls_port(), &fleet.ca_dir()).unwrap(),
        }
    }

    fn enrol(&self, id: &str, body: &Value) -> Reply {
        let path = format!("/v2.6/agents/{id}");
        let sent = self.verifier.send(Method::POST, &path, Some(body));
        sent.unwrap()
    }

    /// What the verifier says about a node.
    fn status(&self, id: &str) -> Value {
        let mut reply = self.verifier.get(&format!("/v2.6/agents/{id}")).unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.body["results"].take()
    }

    /// Waits until the node's status is as `wanted`.
    fn wait_for(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let node = self.status(id);
            if wanted(&node) {
                return node;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "waited until {id} {what}; last seen: {node:#}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_state(&self, id: &str, state: &str) -> Value {
        self.wait_for(id, &format!("is {state}"), |node| {
            node["troth"]["state"] == state
        })
    }

    /// Waits until the node, which has to stay trusted, was attested `more` times.
    fn wait_for_attestations(&self, id: &str, more: u64) {
        let count = |node: &Value| node["attestation_count"].as_u64().unwrap();
        let goal = count(&self.status(id)) + more;
        self.wait_for(id, "was attested again", |node| {
            assert_eq!(node["troth"]["state"], "trusted", "{node:#}");
            count(node) >= goal
        });
    }
}

/// TLS towards the servers, with the operator's certificate.
fn operator_tls(ca_dir: &Path) -> Arc<ClientConfig> {
    let read = |name| fs::read(ca_dir.join(name)).unwrap();
    let ca = certificates_from_pem(&read("cacert.crt")).unwrap();
    let identity = Identity::from_pem(&read("client-cert.crt"), &read("client-private.pem"));
    client_config(ServerTrust::Roots(ca), Some(&identity.unwrap())).unwrap()
}

/// Why the node is not trusted, as its operator reads it.
fn reason(node: &Value) -> &str {
    node["troth"]["reason"].as_str().unwrap()
}

/// The largest resident memory of a process so far, in MiB.
fn peak_memory(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() / 1024
}
