/// Directories that are made once and used by many.
mod cached;
/// A container with systemd as its PID 1.
mod container;
/// Network namespaces, and cables between them.
mod network;
/// The Debian root that containers stand on.
mod root;
/// The install tree.
mod tree;

use std::path::Path;
use std::process::Command;

use anyhow::Result;

pub use self::container::{Container, Setup};
pub use self::network::Network;
pub use self::root::trixie;
pub use self::tree::{example, install_tree};
use crate::boot::Machine;
use crate::fleet::Programs;
use crate::process::output_of;

/// Where the TPM is in every host that has one, as TCTI configuration.
pub const TCTI: &str = "swtpm:host=127.0.0.1,port=2321";

/// The port of [`TCTI`].
const TPM_PORT: u16 = 2321;

/// Where the logs of the machine's boot are in a host's file system.
pub const LOGS: &str = "/run/machine";

/// A host with our install tree: a machine that has booted, and a container as its operating
/// system.
#[derive(Debug)]
pub struct Host {
    // Dropped from the top: what runs before what it runs on.
    container: Container,
    machine: Option<Machine>,
    network: Network,
}

impl Host {
    /// A host with a TPM and logs of a captured boot, called `name`, its files in `directory`; it
    /// starts with `files` (absolute paths and their contents) beside those of the install tree.
    pub fn with_tpm(directory: &Path, name: &str, files: &[(&str, &str)]) -> Result<Self> {
        let machine = Machine::booted(&directory.join("machine"))?;
        Self::boot(directory, name, files, Some(machine))
    }

    /// A host without a TPM, and so without logs.
    pub fn without_tpm(directory: &Path, name: &str, files: &[(&str, &str)]) -> Result<Self> {
        Self::boot(directory, name, files, None)
    }

    fn boot(
        directory: &Path,
        name: &str,
        files: &[(&str, &str)],
        machine: Option<Machine>,
    ) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let network = Network::new(directory)?;
        let mut mounts = Vec::new();
        if let Some(machine) = &machine {
            machine.tpm().serve_in(&network, TPM_PORT)?;
            mounts.push((machine.directory(), LOGS));
        }
        let tree = install_tree(&Programs::beside_this()?)?;
        let container = Container::boot(&Setup {
            name,
            directory: &directory.join("container"),
            network: &network,
            layers: &[&tree, &trixie()?],
            mounts: &mounts,
            files,
        })?;
        Ok(Self {
            container,
            machine,
            network,
        })
    }

    /// The operating system.
    pub fn os(&self) -> &Container {
        &self.container
    }

    /// The operating system, to be shut down.
    pub fn os_mut(&mut self) -> &mut Container {
        &mut self.container
    }

    /// The machine, for a host that has a TPM.
    pub fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// The machine, to hold its TPM.
    pub fn machine_mut(&mut self) -> Option<&mut Machine> {
        self.machine.as_mut()
    }

    /// Its network: nothing but loopback, until it is connected.
    pub fn network(&self) -> &Network {
        &self.network
    }
}

/// What keeps this machine, or this user, from running containers, and cannot be installed.
pub fn obstacles() -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        return vec!["the rights of root".to_owned()];
    }
    let tried = tempfile::tempdir().map_err(Into::into).and_then(|place| {
        let script = format!("{}\n{}", container::CGROUPS, OVERLAY_PROBE);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "sh", "-ec", &script, "sh"]);
        output_of(command.arg(place.path()))
    });
    let ability = "namespaces with cgroup2 and overlay mounts (a container has to be privileged)";
    tried
        .err()
        .map(|error| format!("{ability}: {error:#}"))
        .into_iter()
        .collect()
}

/// Mounts an overlay in the directory `$1`.
const OVERLAY_PROBE: &str = "\
cd \"$1\"
mkdir lower upper work merged
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged";
