use std::fmt::Display;
use std::fs::{File, read_to_string};
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use troth_daemon::shutdown::Shutdown;

/// How long a process gets to come up or to go down. Generous: machines that test are busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How much of a log is shown when something went wrong.
const SHOWN_LINES: usize = 40;

/// A child process; killed and waited for when dropped. Its output goes to a file, shown when
/// the test that owns it panics.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` without standard input, its output appended to `directory/NAME.log`.
    /// Settings of the caller's environment for our daemons, Keylime's and PostgreSQL are not passed on.
    pub fn start(name: &str, directory: &Path, command: &mut Command) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        isolate(command);
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {:?} as {name}", command.get_program()))?;
        lock_running().push(child.id());
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// The process id, for whoever wants to look at it from outside.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything the process has printed so far; earlier processes of the same name included.
    pub fn log(&self) -> String {
        read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `found` finds what it looks for in the output that starts at byte `from`.
    /// An error when the process ends first, or after [`PATIENCE`].
    pub fn wait_for_log<T>(&mut self, from: usize, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        let name = self.name.clone();
        let start = Instant::now();
        loop {
            // In this order: what was printed just before the end counts.
            let ended = self.child.try_wait()?;
            if let Some(value) = found(self.log().get(from..).unwrap_or_default()) {
                return Ok(value);
            }
            if let Some(status) = ended {
                bail!("{name} ended early, {status}:\n{}", self.log_tail());
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "{name} is not ready after {PATIENCE:?}:\n{}",
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, then waits for the end. An error when that takes longer than [`PATIENCE`].
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait()
    }

    /// Waits for the end of a process that was told to end. An error when that takes longer than
    /// [`PATIENCE`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("{} does not end:\n{}", self.name, self.log_tail())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGKILL, as a power cut would have it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends `signal` unless the process has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a child without a process id")?, signal)?;
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // Killed, not asked: this may be the clean-up of a test that found it hanging.
            let _ = self.kill();
        }
        lock_running().retain(|id| *id != self.child.id());
        if std::thread::panicking() {
            // Not eprintln: a second panic, on a closed stream, would leave the others running.
            let _ = writeln!(
                io::stderr(),
                "--- {}:\n{}",
                self.log.display(),
                self.log_tail()
            );
        }
    }
}

/// Ids of the children that have a [`Process`]: none of them has been reaped and forgotten.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn lock_running() -> MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on SIGTERM and SIGINT end this program only after its children. Nothing is dropped
/// then: for programs, not for tests.
pub fn kill_all_at_signal() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shutdown = runtime.block_on(async { Shutdown::from_signals() })?;
    std::thread::spawn(move || {
        runtime.block_on(shutdown.wait());
        for id in lock_running().iter() {
            if let Some(pid) = i32::try_from(*id).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::process::exit(130);
    });
    Ok(())
}

/// Runs `command` to its end and returns its standard output; an error has its standard error.
pub fn output_of(command: &mut Command) -> Result<String> {
    isolate(command);
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Takes this machine's own settings for what is tested out of `command`'s environment, but for
/// those that `command` sets itself.
pub(crate) fn isolate(command: &mut Command) {
    let set: Vec<_> = command.get_envs().map(|(key, _)| key.to_owned()).collect();
    for (key, _) in std::env::vars_os() {
        let text = key.to_string_lossy();
        let ours = text.starts_with("TROTH_")
            || text.starts_with("KEYLIME")
            || text.starts_with("TSS2_")
            || text.starts_with("PG")
            || ["TCTI", "NOTIFY_SOCKET", "JOURNAL_STREAM"].contains(&text.as_ref());
        if ours && !set.contains(&key) {
            command.env_remove(&key);
        }
    }
}

/// A port of 127.0.0.1 for a server that must have the same one after a restart. Below the range
/// that kernels give to connections, and another stretch for every process that tests.
pub fn stable_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const PROCESSES: u16 = 700;
    const EACH: u16 = 30;
    let process = u16::try_from(std::process::id() % u32::from(PROCESSES))?;
    for _ in 0..PROCESSES {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) % (PROCESSES * EACH);
        let port = FIRST + (process * EACH + offset) % (PROCESSES * EACH);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!(
        "no free port between {FIRST} and {}",
        FIRST + PROCESSES * EACH
    )
}

/// `name` in `PATH`, or where administrators' tools are (not in everybody's `PATH`).
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// Is this a run of CI (`CI=true`)? Some tests take longer there.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// For a test that this machine cannot run, before it returns: an error in CI, where every test
/// has to run.
pub fn cannot_run(why: &dyn Display) {
    assert!(!in_ci(), "cannot run here: {why}");
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// `$XDG_CACHE_HOME/troth` (default `~/.cache/troth`): tools and Keylime, outside the checkout.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(directory) => PathBuf::from(directory),
        None => std::env::home_dir()
            .context("neither XDG_CACHE_HOME nor HOME is set: no place for the cache")?
            .join(".cache"),
    };
    Ok(base.join("troth"))
}
