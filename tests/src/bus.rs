use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::process::{Process, find_program};
use crate::tpm::Swtpm;

/// tpm2-abrmd as the TPM's resource manager, on a system bus that is nobody else's.
#[derive(Debug)]
pub struct Abrmd {
    // Dropped in this order: the broker before its bus.
    _broker: Process,
    _bus: Process,
    address: String,
}

impl Abrmd {
    /// Starts a bus and a broker for `tpm`, their files in `directory`.
    pub fn start(directory: &Path, tpm: &Swtpm) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let socket = directory.join("bus");
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
                socket.display()
            ),
        )?;
        let mut bus = Process::start(
            "dbus-daemon",
            directory,
            Command::new("dbus-daemon")
                .arg("--config-file")
                .arg(&configuration)
                .args(["--nofork", "--nopidfile"]),
        )?;
        bus.wait_for_log(0, |_| socket.exists().then_some(()))?;

        let address = format!("unix:path={}", socket.display());
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
            _bus: bus,
            address,
        })
    }

    /// TCTI configuration for libtss2; needs [`Abrmd::environment`] in the client's environment.
    pub fn tcti(&self) -> String {
        "tabrmd:bus_type=system".to_owned()
    }

    /// What brings a client to this bus instead of the machine's.
    pub fn environment(&self) -> (String, String) {
        ("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), self.address.clone())
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
