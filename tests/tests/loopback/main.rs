//! The loopback tier: processes, mTLS and TPMs as they are, on 127.0.0.1.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

/// Our agent, registrar and verifier: the way to trust.
mod attestation;
/// Daemons that are configured by Keylime's files.
mod configuration;
/// `cargo xtask demo`, as its reader sees it.
mod demo;
/// Evidence that the verifier keeps, judged again without it.
mod evidence;
/// Guides, followed word for word.
mod guide;
/// What an agent proves of its host when it registers.
mod identity;
/// What is attested of a machine whose programs are not what they should be.
mod intrusion;
/// Keylime's registrar, verifier and tenant attest our agent.
mod keylime;
/// Simulated nodes by the dozen: the load generator.
mod load;
/// A Keylime site whose servers are replaced by ours.
mod migration;
/// A host that moves from Keylime's agent to ours.
mod moved_host;
/// What an operator decides: which TPMs are believed, which policies apply.
mod operator;
/// RPM packages of the install tree.
mod packages;
/// Policies that are made of files and packages, beside what Keylime, rpm and evmctl say of them.
mod policies;
/// Registrar and verifier with their databases in a PostgreSQL server.
mod postgres;
/// Daemons that are stopped, killed and started again.
mod restart;
/// The stage itself: a captured boot in a software TPM.
mod stage;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions, Databases, Extra, Fleet, Programs, QUOTE_INTERVAL};

/// A machine that has booted, a fleet for it, and a place for all their files.
struct Stage {
    // Dropped from the top: daemons before the TPM, everything before the files.
    fleet: Fleet,
    machine: Machine,
    programs: Programs,
    directory: TempDir,
}

impl Stage {
    fn new() -> Self {
        Self::with_interval(QUOTE_INTERVAL)
    }

    fn with_interval(interval: Duration) -> Self {
        Self::with_databases(interval, &Databases::default())
    }

    fn with_databases(interval: Duration, databases: &Databases) -> Self {
        Self::start(|programs, place| Fleet::start_on(programs, place, interval, databases))
    }

    fn with_extra(interval: Duration, extra: &Extra) -> Self {
        Self::start(|programs, place| Fleet::start_with(programs, place, interval, extra))
    }

    fn start(fleet: impl FnOnce(&Programs, &Path) -> anyhow::Result<Fleet>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let programs = Programs::beside_this().unwrap();
        let machine = Machine::booted(&directory.path().join("machine")).unwrap();
        let place = directory.path().join("fleet");
        let fleet = fleet(&programs, &place).unwrap();
        Self {
            fleet,
            machine,
            programs,
            directory,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// An agent on the stage's machine, registered and activated.
    fn agent(&self, options: &AgentOptions) -> Agent {
        let agent = self.unregistered_agent(&self.machine, options);
        self.fleet.wait_registered(&options.id).unwrap();
        agent
    }

    /// An agent on any machine, which may not have reached the registrar yet.
    fn unregistered_agent(&self, machine: &Machine, options: &AgentOptions) -> Agent {
        Agent::start(
            &self.programs,
            &self.path().join(&options.id),
            machine,
            self.fleet.registrar_port(),
            &self.fleet.ca_dir(),
            options,
        )
        .unwrap()
    }

    /// Enrols the agent with a policy of what its machine runs now.
    fn enrol(&self, id: &str) {
        let policy = self.policy();
        self.fleet.add(id, &policy).unwrap();
    }

    fn policy(&self) -> PathBuf {
        self.machine.write_runtime_policy().unwrap()
    }
}

/// The one finding of a node that failed.
fn only_finding(node: &Value) -> &Value {
    let findings = node["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    &findings[0]
}

/// A CA directory for other servers, so that one operator has both.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
