use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::launcher::Launcher;
use super::{configuration, installation};
use crate::api::Api;
use crate::process::{PATIENCE, output_of};

/// Keylime's names of the operational states that a verifier reports.
const STATES: [(u8, &str); 4] = [
    (1, "Start"),
    (3, "Get Quote"),
    (7, "Failed"),
    (9, "Invalid Quote"),
];

/// Whom an operator works with.
#[derive(Clone, Copy, Debug)]
pub struct Servers<'a> {
    /// Port of the verifier.
    pub verifier_port: u16,
    /// TLS port of the registrar.
    pub registrar_tls_port: u16,
    /// CA of both, with the operator's certificate.
    pub ca_dir: &'a Path,
}

/// An operator with Keylime's tenant; the servers may be Keylime's or ours.
#[derive(Debug)]
pub struct Tenant {
    directory: PathBuf,
    launcher: Mutex<Launcher>,
    verifier_port: u16,
    ca_dir: PathBuf,
    ek_certificates: bool,
}

impl Tenant {
    /// With its configuration in `directory`. `ek_issuer` is the certificate that must be found
    /// above an EK's.
    pub fn new(directory: &Path, servers: Servers<'_>, ek_issuer: &Path) -> Result<Self> {
        let store = directory.join("tpm_cert_store");
        fs::create_dir_all(&store)?;
        fs::create_dir_all(directory.join("state"))?;
        let values = [
            ("{verifier_port}", servers.verifier_port.to_string()),
            (
                "{registrar_tls_port}",
                servers.registrar_tls_port.to_string(),
            ),
            ("{ca_dir}", servers.ca_dir.display().to_string()),
            ("{tpm_cert_store}", store.display().to_string()),
        ];
        configuration::write(directory, "tenant", configuration::TENANT, &values)?;
        configuration::write(directory, "ca", configuration::CA, &[])?;
        configuration::write(directory, "logging", configuration::LOGGING, &[])?;
        let python = installation()?.join("bin/python3");
        let python = configuration::command(&python, directory, &["tenant", "ca", "logging"]);
        let tenant = Self {
            directory: directory.to_owned(),
            launcher: Mutex::new(Launcher::start(python, directory)?),
            verifier_port: servers.verifier_port,
            ca_dir: servers.ca_dir.to_owned(),
            ek_certificates: true,
        };
        tenant.trust_ek_issuer("issuer", ek_issuer)?;
        Ok(tenant)
    }

    /// Runs a Python program that uses Keylime's modules; returns what it printed when it succeeded,
    /// else an error with that.
    pub fn python(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let python = installation()?.join("bin/python3");
        let mut python =
            configuration::command(&python, &self.directory, &["tenant", "ca", "logging"]);
        output_of(python.args(["-c", program]).args(arguments))
    }

    /// From now on, EKs without a certificate are good enough (or need one again).
    pub fn require_ek_certificates(&mut self, required: bool) {
        self.ek_certificates = required;
    }

    /// Takes EKs of another manufacturer.
    pub fn trust_ek_issuer(&self, name: &str, certificate: &Path) -> Result<()> {
        let store = self.directory.join("tpm_cert_store");
        fs::copy(certificate, store.join(format!("{name}.pem")))?;
        Ok(())
    }

    /// `keylime_tenant ARGUMENTS`; returns what it printed when it succeeded, else an error with
    /// that.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let required = if self.ek_certificates {
            "True"
        } else {
            "False"
        };
        let environment = [("KEYLIME_TENANT_REQUIRE_EK_CERT", required)];
        let mut launcher = self.launcher.lock().unwrap_or_else(PoisonError::into_inner);
        launcher.run(arguments, &environment)
    }

    /// [`Tenant::run`] as a process of its own, as an operator starts it.
    pub fn run_alone(&self, arguments: &[&str]) -> Result<String> {
        let program = installation()?.join("bin/keylime_tenant");
        let components = ["tenant", "ca", "logging"];
        let mut program = configuration::command(&program, &self.directory, &components);
        output_of(program.args(arguments))
    }

    /// [`Tenant::run`] for what it is to refuse; returns what it printed.
    pub fn refused(&self, arguments: &[&str]) -> Result<String> {
        match self.run(arguments) {
            Ok(output) => bail!("keylime_tenant {arguments:?} succeeded: {output}"),
            Err(error) => Ok(error.to_string()),
        }
    }

    /// The JSON object that ends what `-c COMMAND` prints.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.run(arguments)?;
        let line = output.lines().rfind(|line| line.contains('{'));
        let json = line.and_then(|line| line.get(line.find('{')?..));
        let json = json.with_context(|| format!("no JSON in what it printed: {output}"))?;
        serde_json::from_str(json).with_context(|| format!("not JSON: {json}"))
    }

    /// The verifier's view of the agent `id` (`-c cvstatus`), states under their names.
    pub fn status(&self, id: &str) -> Result<Value> {
        let status = self.json(&["-c", "cvstatus", "-u", id])?;
        let node = status.get(id).cloned();
        node.with_context(|| format!("no status of {id}: {status}"))
    }

    /// Waits until the verifier's answer about the agent is as `wanted`. Asked without the tenant,
    /// which takes a second to start.
    pub fn wait_for(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let api = Api::operator(self.verifier_port, &self.ca_dir)?;
        let start = Instant::now();
        loop {
            let answer = api.get(&format!("/v2.6/agents/{id}"))?;
            if wanted(&answer.body["results"]) {
                return Ok(answer.body["results"].clone());
            }
            if start.elapsed() > PATIENCE {
                bail!("waited {PATIENCE:?} until {id} {what}; last seen: {answer:#?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the verifier gives the agent the operational state that the tenant calls
    /// `name`, and returns the tenant's view then.
    pub fn wait_for_state(&self, id: &str, name: &str) -> Result<Value> {
        let state = STATES.iter().find(|(_, known)| *known == name);
        let (number, _) = state.with_context(|| format!("no state is called {name:?}"))?;
        self.wait_for(id, &format!("is in {name:?}"), |node| {
            node["operational_state"] == *number
        })?;
        self.status(id)
    }

    /// Waits until the verifier counts at least `wanted` good attestations.
    pub fn wait_for_attestations(&self, id: &str, wanted: u64) -> Result<Value> {
        self.wait_for(id, &format!("was attested {wanted} times"), |node| {
            node["attestation_count"].as_u64() >= Some(wanted)
        })
    }
}
