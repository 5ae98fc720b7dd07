/// Keylime's agent.
mod agent;
/// Templates of configuration files.
mod configuration;
/// Commands of the tenant, started quickly.
mod launcher;
/// Keylime's judgement, function by function.
mod oracle;
/// Keylime's tenant.
mod tenant;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

pub use self::agent::KeylimeAgent;
pub use self::oracle::Oracle;
pub use self::tenant::{Servers, Tenant};
use crate::process::{Process, cache, stable_port};

/// The release that `cargo xtask setup` installs.
pub const VERSION: &str = "7.14.3";

/// The last release on PyPI with an agent; later ones of Keylime's are another package.
pub const AGENT_VERSION: &str = "6.6.0";

/// Keylime's verifier and registrar as processes, with a CA that its verifier made, and its tenant.
#[derive(Debug)]
pub struct Keylime {
    directory: PathBuf,
    verifier_port: u16,
    registrar_port: u16,
    registrar_tls_port: u16,
    tenant: Tenant,
    servers: Vec<Group>,
}

impl Keylime {
    /// Starts both servers with their state in `directory`. `ek_issuer` is the certificate that
    /// the tenant must find above an EK's.
    pub fn start(directory: &Path, ek_issuer: &Path) -> Result<Self> {
        let (verifier_port, registrar_port, registrar_tls_port) =
            (stable_port()?, stable_port()?, stable_port()?);
        let values = [
            ("{verifier_port}", verifier_port.to_string()),
            ("{registrar_port}", registrar_port.to_string()),
            ("{registrar_tls_port}", registrar_tls_port.to_string()),
        ];
        for (component, template) in [
            ("verifier", configuration::VERIFIER),
            ("registrar", configuration::REGISTRAR),
        ] {
            configuration::write(directory, component, template, &values)?;
        }
        let ca_dir = directory.join("state/cv_ca");
        let servers = Servers {
            verifier_port,
            registrar_tls_port,
            ca_dir: &ca_dir,
        };
        let mut keylime = Self {
            directory: directory.to_owned(),
            verifier_port,
            registrar_port,
            registrar_tls_port,
            tenant: Tenant::new(directory, servers, ek_issuer)?,
            servers: Vec::new(),
        };
        // In this order: the registrar needs the CA that the verifier makes.
        for server in ["keylime_verifier", "keylime_registrar"] {
            keylime.start_server(server)?;
        }
        Ok(keylime)
    }

    fn start_server(&mut self, server: &str) -> Result<()> {
        let program = installation()?.join("bin").join(server);
        let components = ["verifier", "registrar", "tenant", "ca", "logging"];
        let mut command = configuration::command(&program, &self.directory, &components);
        let process = Process::start(server, &self.directory, command.process_group(0))?;
        let mut group = Group(process);
        let ready = |log: &str| log.contains("Listening on").then_some(());
        group.0.wait_for_log(0, ready)?;
        self.servers.push(group);
        Ok(())
    }

    /// Process ids of the verifier and of the registrar; both fork.
    pub fn pids(&self) -> [u32; 2] {
        [0, 1].map(|server: usize| self.servers[server].0.id())
    }

    /// Port of the verifier.
    pub fn verifier_port(&self) -> u16 {
        self.verifier_port
    }

    /// Plain HTTP port of the registrar.
    pub fn registrar_port(&self) -> u16 {
        self.registrar_port
    }

    /// TLS port of the registrar.
    pub fn registrar_tls_port(&self) -> u16 {
        self.registrar_tls_port
    }

    /// The CA directory that agents trust.
    pub fn ca_dir(&self) -> PathBuf {
        self.directory.join("state/cv_ca")
    }

    /// The operator of these servers.
    pub fn operator(&mut self) -> &mut Tenant {
        &mut self.tenant
    }

    /// `keylime_tenant ARGUMENTS`; returns what it printed when it succeeded.
    pub fn tenant(&self, arguments: &[&str]) -> Result<String> {
        self.tenant.run(arguments).with_context(|| self.logs())
    }

    /// [`Tenant::wait_for_state`].
    pub fn wait_for_state(&self, id: &str, name: &str) -> Result<Value> {
        self.tenant
            .wait_for_state(id, name)
            .with_context(|| self.logs())
    }

    /// [`Tenant::wait_for_attestations`].
    pub fn wait_for_attestations(&self, id: &str, wanted: u64) -> Result<Value> {
        self.tenant
            .wait_for_attestations(id, wanted)
            .with_context(|| self.logs())
    }

    /// What the servers printed.
    pub fn logs(&self) -> String {
        let logs: Vec<_> = self.servers.iter().map(|group| group.0.log()).collect();
        logs.join("\n---\n")
    }
}

/// A server with the workers that it forked.
#[derive(Debug)]
struct Group(Process);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(leader, Signal::KILL);
            // What it would have removed itself, had it been asked; that takes it several seconds.
            let _ = fs::remove_file(format!("/run/keylime/shared_data.{}.sock", self.0.id()));
        }
    }
}

/// Where `cargo xtask setup` makes a virtual environment with Keylime, below `$XDG_CACHE_HOME`.
pub fn installation_place() -> Result<PathBuf> {
    Ok(cache()?.join(format!("keylime-{VERSION}")))
}

/// Where it puts the package with Keylime's agent: imported by path, as one environment holds one
/// release.
pub fn agent_place() -> Result<PathBuf> {
    Ok(installation_place()?.join(format!("agent-{AGENT_VERSION}")))
}

/// What Keylime's verifier makes of a boot log, by its own function: the document that its policies
/// are given. `None`: it refuses the log.
pub fn boot_log_model(log: &Path) -> Result<Option<Value>> {
    let script = "import json, sys\n\
        from keylime.mba.elparsing.tpm2_tools_elparser import parse_binary_bootlog\n\
        failure, log = parse_binary_bootlog(open(sys.argv[1], 'rb').read())\n\
        pcrs = log['pcrs'] if log else {}\n\
        for bank in pcrs.values():\n\
        \x20   for pcr in bank: bank[pcr] = hex(bank[pcr])\n\
        print(json.dumps(None if failure else log))\n";
    let output = Command::new(installation()?.join("bin/python3"))
        .args(["-c", script])
        .arg(log)
        .env("PYTHONWARNINGS", "ignore")
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("Keylime's parser on {}: {text}", log.display());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// `keylime-policy`, which is yet without options.
pub fn policy_tool() -> Result<Command> {
    Ok(Command::new(installation()?.join("bin/keylime-policy")))
}

/// What Keylime's engine `example` says of pairs of a boot log and a refstate: accepted or not.
/// `cases` is a file with a JSON list of `[log, refstate]`.
pub fn boot_verdicts(cases: &Path) -> Result<Vec<bool>> {
    let script = "import json, sys\n\
        from keylime.mba.elparsing.tpm2_tools_elparser import parse_binary_bootlog\n\
        from keylime.mba.elchecking import example, policies\n\
        logs, verdicts = {}, []\n\
        for path, state in json.load(open(sys.argv[1])):\n\
        \x20   if path not in logs: logs[path] = parse_binary_bootlog(open(path, 'rb').read())\n\
        \x20   failure, log = logs[path]\n\
        \x20   try: verdicts.append(not failure and not policies.evaluate('example', state, log))\n\
        \x20   except Exception: verdicts.append(False)\n\
        print(json.dumps(verdicts))\n";
    let output = Command::new(installation()?.join("bin/python3"))
        .args(["-c", script])
        .arg(cases)
        .env("PYTHONWARNINGS", "ignore")
        .output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn installation() -> Result<PathBuf> {
    let place = installation_place()?;
    if !place.join("bin/keylime_verifier").is_file() {
        bail!(
            "Keylime is not in {}: run `cargo xtask setup`",
            place.display()
        );
    }
    Ok(place)
}
