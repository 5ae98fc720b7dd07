use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{agent_place, configuration, installation};
use crate::boot::Machine;
use crate::bus::Abrmd;
use crate::process::{Process, stable_port};

/// The kernel's files have fixed places in that release: the only two values that no option sets.
const LAUNCHER: &str = "\
import sys
from keylime import config
config.IMA_ML, config.MEASUREDBOOT_ML = sys.argv[1:3]
config.MOUNT_SECURE = False
from keylime.cmd.agent import main
main()
";

/// Keylime's own agent (API 2.0 and 2.1), on a TPM with a resource manager: it runs the programs
/// of tpm2-tools.
#[derive(Debug)]
pub struct KeylimeAgent {
    // Dropped in this order: the agent before what it talks to.
    process: Process,
    _broker: Abrmd,
    port: u16,
}

impl KeylimeAgent {
    /// Starts the agent `id` on `machine`; returns when it serves, which is after its registration.
    pub fn start(
        directory: &Path,
        machine: &Machine,
        id: &str,
        registrar_port: u16,
        ca_dir: &Path,
    ) -> Result<Self> {
        let place = installation()?;
        let package = agent_place()?;
        ensure!(
            package.is_dir(),
            "Keylime's agent is not in {}: run `cargo xtask setup`",
            package.display()
        );
        fs::create_dir_all(directory.join("state"))?;
        let port = stable_port()?;
        let values = [
            ("{uuid}", id.to_owned()),
            ("{port}", port.to_string()),
            ("{registrar_port}", registrar_port.to_string()),
            ("{ca}", ca_dir.join("cacert.crt").display().to_string()),
        ];
        configuration::write(directory, "agent", configuration::AGENT, &values)?;
        configuration::write(directory, "logging", configuration::LOGGING, &[])?;

        let broker = Abrmd::start(&directory.join("bus"), machine.tpm())?;
        let (bus, address) = broker.environment();
        let python = place.join("bin/python3");
        let mut command = configuration::command(&python, directory, &["agent", "logging"]);
        command
            .args(["-c", LAUNCHER])
            .args([machine.ima_list(), machine.boot_log()])
            .env("PYTHONPATH", package)
            .env("TPM2TOOLS_TCTI", broker.tcti())
            .env(bus, address);
        let mut process = Process::start("keylime_agent", directory, &mut command)?;
        process
            .wait_for_log(0, |log| {
                log.contains("Starting Cloud Agent on").then_some(())
            })
            .context("Keylime's agent")?;
        Ok(Self {
            process,
            _broker: broker,
            port,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The agent's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
