/// A container with systemd as its PID 1.
mod container;
/// Network namespaces, and cables between them.
mod network;
/// The Debian root that containers stand on.
mod root;
/// The install tree.
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::Result;

pub use self::container::{Container, Setup};
pub use self::network::Network;
pub use self::root::trixie;
pub(crate) use self::root::{trixie_key, way_to_the_archive};
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
    disk: Disk,
    machine: Option<Machine>,
    network: Network,
}

/// What a host keeps while it is off.
#[derive(Debug)]
struct Disk {
    directory: PathBuf,
    name: String,
}

impl Disk {
    fn boot(
        &self,
        machine: Option<&Machine>,
        network: &Network,
        files: &[(&str, &str)],
    ) -> Result<Container> {
        let tree = install_tree(&Programs::beside_this()?)?;
        let logs = machine.map(|machine| (machine.directory(), LOGS));
        Container::boot(&Setup {
            name: &self.name,
            directory: &self.directory,
            network,
            layers: &[&tree, &trixie()?],
            mounts: logs.as_slice(),
            files,
        })
    }
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
        fs::create_dir_all(directory)?;
        let network = Network::new(directory)?;
        if let Some(machine) = &machine {
            machine.tpm().serve_in(&network, TPM_PORT)?;
        }
        let disk = Disk {
            directory: directory.join("container"),
            name: name.to_owned(),
        };
        Ok(Self {
            container: disk.boot(machine.as_ref(), &network, files)?,
            disk,
            machine,
            network,
        })
    }

    /// An orderly shutdown.
    pub fn shut_down(&mut self) -> Result<ExitStatus> {
        self.container.power_off()
    }

    /// After a shutdown: the machine boots, and the operating system with what it has on its disk.
    pub fn start_again(&mut self) -> Result<()> {
        if let Some(machine) = &mut self.machine {
            machine.boot()?;
        }
        let machine = self.machine.as_ref();
        self.container = self.disk.boot(machine, &self.network, &[])?;
        Ok(())
    }

    /// The operating system.
    pub fn os(&self) -> &Container {
        &self.container
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
