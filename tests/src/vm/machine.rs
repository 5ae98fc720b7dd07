use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::control::Control;
use crate::process::{PATIENCE, Process, find_program};
use crate::tpm;

/// The emulator. Its machines are x86-64, as the programs are that this machine builds.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// Firmware for QEMU with TPM support and without Secure Boot, and what its variables are at
/// first: of Debian, Fedora, openSUSE.
const FIRMWARE: [(&str, &str); 3] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-4m-code.bin",
        "/usr/share/qemu/ovmf-x86_64-4m-vars.bin",
    ),
];

/// What every machine is. A second processor would be slower: the host has hardly more itself,
/// and QEMU 7.2 was seen to crash a kernel that patched its code while the other one ran.
const MACHINE: &[&str] = &[
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-machine",
    "q35,smm=off,vmport=off,sata=off,smbus=off,hpet=off",
    "-accel",
    "tcg,thread=multi,tb-size=256",
    "-cpu",
    "Nehalem-v1",
    "-smp",
    "1",
    "-m",
    "768",
];

/// Its devices, but for those that need a file.
const DEVICES: &[&str] = &[
    "tpm-crb,tpmdev=tpm",
    "virtio-blk-pci,drive=root,serial=root",
    "virtio-blk-pci,drive=transfer,serial=transfer",
    "virtio-blk-pci,drive=boot,bootindex=0",
    "virtio-rng-pci",
    "virtio-serial-pci",
    "virtconsole,chardev=console",
    "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
    "virtio-net-pci,netdev=link,mac=52:54:00:77:00:01,romfile=",
];

/// Size of the disk that files come in on, in bytes. It is sparse.
const TRANSFER_SIZE: u64 = 512 << 20;

/// Where the firmware is, and what its variables are at first.
pub(super) fn firmware() -> Option<(PathBuf, PathBuf)> {
    let found = FIRMWARE.iter().find(|(code, _)| Path::new(code).is_file());
    found.map(|(code, variables)| (code.into(), variables.into()))
}

/// What a saved machine can only be restored on.
pub(super) fn description() -> Result<String> {
    let version = crate::process::output_of(Command::new(QEMU).arg("--version"))?;
    let (code, _) = firmware().context(NO_FIRMWARE)?;
    let firmware = fs::metadata(&code)?.len();
    Ok(format!(
        "{version}{MACHINE:?}{DEVICES:?}{TRANSFER_SIZE}{code:?}{firmware}"
    ))
}

const NO_FIRMWARE: &str = "no UEFI firmware for QEMU: run `cargo xtask setup`";

/// What a machine keeps while it is off, in one directory.
#[derive(Debug)]
pub(super) struct Parts(PathBuf);

impl Parts {
    /// Those of a new machine: a copy of `root_disk`, a new TPM, a firmware without memory.
    pub(super) fn new(directory: &Path, root_disk: &Path) -> Result<Self> {
        let (_, variables) = firmware().context(NO_FIRMWARE)?;
        fs::create_dir_all(directory)?;
        let parts = Self(directory.to_owned());
        crate::cached::copy_sparse(root_disk, &parts.root_disk())?;
        fs::copy(variables, parts.variables())?;
        tpm::manufacture(&parts.tpm())?;
        Ok(parts)
    }

    /// Those in `directory`.
    pub(super) fn of(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// A copy of all but the disk, which is large.
    fn copy_small_to(&self, directory: &Path) -> Result<Self> {
        let copy = Self(directory.to_owned());
        fs::copy(self.variables(), copy.variables())?;
        for part in ["state", "ek-ca"] {
            let (from, to) = (self.tpm().join(part), copy.tpm().join(part));
            fs::create_dir_all(&to)?;
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        Ok(copy)
    }

    /// A copy of all.
    pub(super) fn copy_to(&self, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let copy = self.copy_small_to(directory)?;
        crate::cached::copy_sparse(&self.root_disk(), &copy.root_disk())?;
        Ok(copy)
    }

    /// The certificate that issued the EK's.
    pub(super) fn ek_issuer(&self) -> PathBuf {
        self.tpm().join("ek-ca/issuercert.pem")
    }

    /// What it had in memory when it was saved.
    pub(super) fn memory(&self) -> PathBuf {
        self.0.join("memory")
    }

    fn root_disk(&self) -> PathBuf {
        self.0.join("root.raw")
    }

    fn variables(&self) -> PathBuf {
        self.0.join("variables.fd")
    }

    fn tpm(&self) -> PathBuf {
        self.0.join("tpm")
    }
}

/// What a machine is started with.
#[derive(Debug)]
pub(super) struct Start<'a> {
    /// Its parts.
    pub(super) parts: &'a Parts,
    /// Others start with the same parts, and nobody changes them: what this machine writes is gone
    /// at its end.
    pub(super) are_shared: bool,
    /// What it had in memory when it was saved: it goes on from there. Without, it boots.
    pub(super) memory: Option<PathBuf>,
    /// The disk that the firmware boots.
    pub(super) boot_disk: &'a Path,
    /// What is on the disk that files come in on: an archive of tar.
    pub(super) transfer: Option<&'a Path>,
    /// The other end of its network's cable.
    pub(super) cable: Option<Cable<'a>>,
}

/// Sockets at the ends of a cable: this machine's, and the other's.
#[derive(Clone, Copy, Debug)]
pub struct Cable<'a> {
    /// This machine's end.
    pub here: &'a Path,
    /// The other machine's.
    pub there: &'a Path,
}

/// A machine that is switched on: QEMU, and its TPM. Both end with the value.
#[derive(Debug)]
pub(super) struct Machine {
    // Dropped in this order.
    qemu: Process,
    _tpm: Process,
    directory: PathBuf,
    ek_issuer: PathBuf,
}

impl Machine {
    /// Switches it on; what it needs meanwhile is in `directory`.
    pub(super) fn start(directory: &Path, start: &Start<'_>) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let (code, _) = firmware().context(NO_FIRMWARE)?;
        let copy = match start.are_shared {
            true => Some(start.parts.copy_small_to(directory)?),
            false => None,
        };
        let own = copy.as_ref().unwrap_or(start.parts);
        let socket = |name: &str| directory.join(name).display().to_string();
        let mut tpm = Process::start(
            "swtpm",
            directory,
            Command::new("swtpm")
                .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
                .arg(format!("dir={}", own.tpm().join("state").display()))
                .arg("--ctrl")
                .arg(format!("type=unixio,path={}", socket("tpm.sock"))),
        )?;
        tpm.wait_for_log(0, |_| directory.join("tpm.sock").exists().then_some(()))?;

        let transfer = directory.join("transfer.tar");
        if let Some(archive) = start.transfer {
            crate::cached::copy_sparse(archive, &transfer)?;
        }
        let file = File::options().create(true).append(true).open(&transfer)?;
        file.set_len(TRANSFER_SIZE)?;

        let qemu = find_program(QEMU).context("QEMU is missing: run `cargo xtask setup`")?;
        let mut command = Command::new(qemu);
        // Where QEMU writes what is gone at the end.
        command.env("TMPDIR", directory).args(MACHINE);
        for drive in [
            format!(
                "if=pflash,unit=0,format=raw,readonly=on,file={}",
                code.display()
            ),
            format!(
                "if=pflash,unit=1,format=raw,file={}",
                own.variables().display()
            ),
            format!(
                "if=none,id=root,format=raw,cache=unsafe,snapshot={},file={}",
                if start.are_shared { "on" } else { "off" },
                start.parts.root_disk().display()
            ),
            format!(
                "if=none,id=transfer,format=raw,readonly=on,file={}",
                transfer.display()
            ),
            format!(
                "if=none,id=boot,format=raw,readonly=on,file={}",
                start.boot_disk.display()
            ),
        ] {
            command.args(["-drive", &drive]);
        }
        for chardev in [
            format!("socket,id=tpm,path={}", socket("tpm.sock")),
            format!("file,id=console,path={}", socket("console.log")),
            format!(
                "socket,id=agent,server=on,wait=off,path={}",
                socket("agent.sock")
            ),
            format!(
                "socket,id=monitor,server=on,wait=off,path={}",
                socket("monitor.sock")
            ),
        ] {
            command.args(["-chardev", &chardev]);
        }
        command.args(["-tpmdev", "emulator,id=tpm,chardev=tpm"]);
        command.args(["-mon", "chardev=monitor,mode=control"]);
        let link = start.cable.map_or_else(
            || "hubport,id=link,hubid=0".to_owned(),
            |Cable { here, there }| {
                format!(
                    "dgram,id=link,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                    here.display(),
                    there.display()
                )
            },
        );
        command.args(["-netdev", &link]);
        for device in DEVICES {
            command.args(["-device", device]);
        }
        if let Some(memory) = &start.memory {
            let uri = format!("exec:cat {}", memory.display());
            command.args(["-incoming", &uri]);
        }
        Ok(Self {
            qemu: Process::start("qemu", directory, &mut command)?,
            _tpm: tpm,
            directory: directory.to_owned(),
            ek_issuer: own.ek_issuer(),
        })
    }

    /// A connection to the agent in the guest.
    pub(super) fn agent(&mut self) -> Result<Control> {
        Control::connect(&self.directory.join("agent.sock"), &mut self.qemu)
    }

    pub(super) fn ek_issuer(&self) -> &Path {
        &self.ek_issuer
    }

    /// An error when QEMU has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.qemu.ended()? {
            None => Ok(()),
            Some(status) => bail!("QEMU has ended, {status}:\n{}", self.qemu.log()),
        }
    }

    /// What the kernel has said on the console.
    pub(super) fn console(&self) -> String {
        let console = fs::read(self.directory.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }

    /// Writes what it has in memory beside its other `parts`, and switches it off there and then.
    pub(super) fn save(&mut self, parts: &Parts) -> Result<()> {
        let socket = self.directory.join("monitor.sock");
        let mut monitor = Control::connect(&socket, &mut self.qemu)?;
        let mut ask = |command, arguments: Value| monitor.ask(command, arguments, PATIENCE);
        ask("qmp_capabilities", json!({}))?;
        // Not held back for the sake of a network.
        ask(
            "migrate-set-parameters",
            json!({"max-bandwidth": 10_000_000_000_u64}),
        )?;
        let uri = format!("exec:cat > {}", parts.memory().display());
        ask("migrate", json!({"uri": uri}))?;
        loop {
            let state = ask("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => {
                    bail!("the machine cannot be saved: {state}\n{}", self.qemu.log())
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        ask("quit", json!({}))?;
        self.qemu.wait()?;
        Ok(())
    }
}
