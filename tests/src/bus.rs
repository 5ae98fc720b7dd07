use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::process::{Process, find_program};
use crate::tpm::Swtpm;

/// A system bus that is nobody else's.
#[derive(Debug)]
pub struct Bus {
    process: Process,
    directory: PathBuf,
}

impl Bus {
    /// Starts it, its files in `directory`.
    pub fn start(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let configuration = directory.join("bus.conf");
        fs::write(
            &configuration,
            format!(
                r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#,
                directory.join(SOCKET).display()
            ),
        )?;
        Ok(Self {
            process: launch(directory)?,
            directory: directory.to_owned(),
        })
    }

    /// Its D-Bus address, the same over all restarts.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.directory.join(SOCKET).display())
    }

    /// Ends it, and whoever is connected loses it. Then there is none until [`Bus::start_again`].
    pub fn stop(&mut self) -> Result<()> {
        self.process.kill()?;
        Ok(fs::remove_file(self.directory.join(SOCKET))?)
    }

    /// After a stop.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = launch(&self.directory)?;
        Ok(())
    }
}

/// The bus's socket in its directory.
const SOCKET: &str = "bus";

fn launch(directory: &Path) -> Result<Process> {
    let mut process = Process::start(
        "dbus-daemon",
        directory,
        Command::new("dbus-daemon")
            .arg("--config-file")
            .arg(directory.join("bus.conf"))
            .args(["--nofork", "--nopidfile"]),
    )?;
    let socket = directory.join(SOCKET);
    // The socket is there before somebody listens on it.
    process.wait_for_log(0, |_| UnixStream::connect(&socket).ok().map(drop))?;
    Ok(process)
}

/// tpm2-abrmd as the TPM's resource manager, on a system bus that is nobody else's.
#[derive(Debug)]
pub struct Abrmd {
    // Dropped in this order: the broker before its bus.
    _broker: Process,
    bus: Bus,
}

impl Abrmd {
    /// Starts a bus and a broker for `tpm`, their files in `directory`.
    pub fn start(directory: &Path, tpm: &Swtpm) -> Result<Self> {
        let bus = Bus::start(directory)?;
        let address = bus.address();
        let program =
            find_program("tpm2-abrmd").context("tpm2-abrmd is missing: run `cargo xtask setup`")?;
        // It refuses to run as root unless told otherwise.
        let mut broker = Process::start(
            "tpm2-abrmd",
            directory,
            Command::new(program)
                .arg("--allow-root")
                .arg(format!("--tcti={}", tpm.tcti()))
                .env("DBUS_SYSTEM_BUS_ADDRESS", &address),
        )?;
        broker.wait_for_log(0, |_| owns_its_name(&address).then_some(()))?;
        Ok(Self {
            _broker: broker,
            bus,
        })
    }

    /// TCTI configuration for libtss2; needs [`Abrmd::environment`] in the client's environment.
    pub fn tcti(&self) -> String {
        "tabrmd:bus_type=system".to_owned()
    }

    /// What brings a client to this bus instead of the machine's.
    pub fn environment(&self) -> (String, String) {
        ("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), self.bus.address())
    }
}

fn owns_its_name(address: &str) -> bool {
    Command::new("dbus-send")
        .args([
            "--system",
            "--print-reply",
            "--dest=org.freedesktop.DBus",
            "/",
            "org.freedesktop.DBus.NameHasOwner",
            "string:com.intel.tss2.Tabrmd",
        ])
        .env("DBUS_SYSTEM_BUS_ADDRESS", address)
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("boolean true"))
}
