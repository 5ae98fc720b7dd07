use std::fmt::Debug;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use super::network::Network;
use crate::fleet::Answer;
use crate::process::{PATIENCE, Process, find_program, output_of};

/// How long a container gets until everything that starts with it has started.
const BOOT_PATIENCE: Duration = Duration::from_secs(90);

/// How much of the journal is shown when something went wrong.
const SHOWN_ENTRIES: &str = "--lines=200";

/// What a container is made of.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Its host name.
    pub name: &'a str,
    /// A directory for what it writes, and for its log; what an earlier boot wrote is there again.
    pub directory: &'a Path,
    /// Its network.
    pub network: &'a Network,
    /// Directories that together are its root, the uppermost first. They are only read.
    pub layers: &'a [&'a Path],
    /// Directories of this machine that it can read, and where.
    pub mounts: &'a [(&'a Path, &'a str)],
    /// Files that are there when it boots, by their absolute paths.
    pub files: &'a [(&'a str, &'a str)],
}

/// An operating system in a container. It is killed when dropped; when the test that owns it
/// panics, the end of its journal is shown.
#[derive(Debug)]
pub struct Container {
    name: String,
    // Dropped in this order.
    leader: Leader,
    process: Process,
    _group: ControlGroup,
}

impl Container {
    /// Boots, and returns when everything has started that starts with it (or failed to).
    pub fn boot(setup: &Setup<'_>) -> Result<Self> {
        let nspawn = find_program("systemd-nspawn")
            .context("systemd-nspawn is missing: run `cargo xtask setup`")?;
        let directory = setup.directory;
        for made in ["upper", "work", "root"] {
            fs::create_dir_all(directory.join(made))?;
        }
        for (path, content) in setup.files {
            let path = directory.join("upper").join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().context("a file without a directory")?)?;
            fs::write(path, content)?;
        }
        let layers: Vec<_> = setup
            .layers
            .iter()
            .map(|l| l.display().to_string())
            .collect();
        let group = ControlGroup::name();
        let socket = directory.join("notify");
        // Of an earlier boot.
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let notified = UnixDatagram::bind(&socket)?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", &format!("{CGROUPS}\n{BOOT}"), "sh"]);
        command.args([&group.0, &layers.join(":")]).arg(directory);
        command
            .arg(nspawn)
            .args(["--quiet", "--register=no", "--keep-unit", "--boot"])
            .args(["--console=pipe", "--notify-ready=yes", "--link-journal=no"])
            .args(["--resolv-conf=off", "--timezone=off"])
            // Its network is its own, which nspawn cannot know.
            .arg("--capability=CAP_NET_ADMIN")
            .arg(format!(
                "--network-namespace-path={}",
                setup.network.path().display()
            ))
            .arg(format!("--machine={}", setup.name))
            .arg(format!("--directory={}", directory.join("root").display()));
        for (here, there) in setup.mounts {
            command.arg(format!("--bind-ro={}:{there}", here.display()));
        }
        command.env("NOTIFY_SOCKET", &socket);
        let mut process = Process::start("container", directory, &mut command)?;
        let leader = wait_for_boot(&notified, &mut process)?;
        Ok(Self {
            name: setup.name.to_owned(),
            leader,
            process,
            _group: group,
        })
    }

    /// Runs a command as root.
    pub fn run(&self, command: &[&str]) -> Result<Answer> {
        let mut entering = Command::new("nsenter");
        entering.arg(format!("--target={}", self.leader.id));
        entering.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
        entering.args(["--root", "--wd", "--"]).args(command);
        let output = entering
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8")
            .env("COLUMNS", "200")
            .stdin(Stdio::null())
            .output()
            .context("cannot start nsenter")?;
        Ok(Answer::from(output))
    }

    /// The standard output of a command that must succeed.
    pub fn output(&self, command: &[&str]) -> Result<String> {
        let answer = self.run(command)?.success();
        let answer = answer.with_context(|| format!("`{}`", command.join(" ")))?;
        Ok(answer.stdout)
    }

    /// A property of a unit, as `systemctl show` prints it.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        let shown = self.output(&["systemctl", "show", "--value", "--property", property, unit])?;
        Ok(shown.trim_end().to_owned())
    }

    /// Entries of the journal that `journalctl` finds by `arguments`, the oldest first.
    pub fn journal(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let command = ["journalctl", "--quiet", "--no-pager", "--output=json"];
        let entries = self.output(&[&command[..], arguments].concat())?;
        let parsed = entries.lines().map(serde_json::from_str);
        Ok(parsed.collect::<Result<_, _>>()?)
    }

    /// A file of the container as this machine can reach it. Absolute links on the way lead
    /// elsewhere.
    pub fn file(&self, path: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.leader.id));
        root.join(path.trim_start_matches('/'))
    }

    /// Writes a file, and the directories above it.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.file(path);
        fs::create_dir_all(path.parent().context("a file without a directory")?)?;
        Ok(fs::write(path, content)?)
    }

    /// Waits until `wanted` is true of what `look` sees; an error says what it saw last.
    pub fn wait_for<T: Debug>(
        &self,
        what: &str,
        look: impl Fn(&Self) -> Result<T>,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            let seen = look(self);
            match seen {
                Ok(seen) if wanted(&seen) => return Ok(seen),
                _ if start.elapsed() > PATIENCE => {
                    bail!(
                        "{}: waited {PATIENCE:?} until {what}; last seen: {seen:#?}",
                        self.name
                    );
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// An orderly shutdown, as `poweroff` does it.
    pub fn power_off(&mut self) -> Result<ExitStatus> {
        self.process.terminate()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = ["journalctl", "--quiet", "--no-pager", SHOWN_ENTRIES];
            let shown = self
                .output(&journal)
                .unwrap_or_else(|error| format!("{error:#}"));
            // Not eprintln, as in Process.
            let _ = writeln!(io::stderr(), "--- journal of {}:\n{shown}", self.name);
        }
        self.leader.kill();
        // It waits for its container's last process.
        let _ = self.process.wait();
    }
}

/// The container's PID 1; killed when dropped, and everything in the container with it.
#[derive(Debug)]
struct Leader {
    id: i32,
    process: OwnedFd,
}

impl Leader {
    fn kill(&self) {
        // It may have ended already.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads what nspawn tells (sd_notify): who is PID 1, and that PID 1 has told it to be ready.
fn wait_for_boot(notified: &UnixDatagram, process: &mut Process) -> Result<Leader> {
    notified.set_read_timeout(Some(Duration::from_millis(100)))?;
    let start = Instant::now();
    let mut leader = None;
    let mut message = [0; 4096];
    loop {
        let length = match notified.recv(&mut message) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        let text = String::from_utf8_lossy(&message[..length]);
        for line in text.lines() {
            if let Some(id) = line.strip_prefix("X_NSPAWN_LEADER_PID=") {
                let id = id.parse()?;
                let pid = Pid::from_raw(id).context("nspawn tells of no process")?;
                let process = pidfd_open(pid, PidfdFlags::empty())?;
                leader = Some(Leader { id, process });
            }
        }
        if text.lines().any(|line| line == "READY=1")
            && let Some(leader) = leader
        {
            return Ok(leader);
        }
        if let Some(status) = process.ended()? {
            bail!(
                "the container ended while it booted, {status}:\n{}",
                process.log()
            );
        }
        if start.elapsed() > BOOT_PATIENCE {
            bail!("not booted after {BOOT_PATIENCE:?}:\n{}", process.log());
        }
    }
}

/// The control group of a container; removed when dropped.
#[derive(Debug)]
struct ControlGroup(String);

impl ControlGroup {
    /// One that nobody else has; the container makes it.
    fn name() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("troth-node-{}-{number}", std::process::id()))
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let script = format!("{CGROUPS}\nfind \"$group\" -depth -type d -exec rmdir {{}} +");
        let mut command = Command::new("unshare");
        // One that is left costs nothing, and it is not there when the start failed early.
        let _ = output_of(command.args(["--mount", "sh", "-ec", &script, "sh", &self.0]));
    }
}

/// In a mount namespace of its own: the unified hierarchy takes the place of whatever this machine
/// has, because systemd 257 knows no other. `$group` becomes that of the container `$1`.
pub(super) const CGROUPS: &str = r#"
own=$(sed -n 's/^0:://p' /proc/self/cgroup)
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
group="/sys/fs/cgroup$own/$1""#;

/// Goes into the container's group, mounts the layers `$2` in the directory `$3`, and becomes what
/// follows. Two containers of one group would take each other's processes for their own.
const BOOT: &str = r#"
mkdir "$group"
echo $$ > "$group/cgroup.procs"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" "$3/root"
shift 3
exec "$@""#;
