use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::Command,
    signal::unix::{SignalKind, signal},
    time::{Duration, timeout},
};

use crate::{config::Config, error::Error, output::Output};

/// Bytes of a program's output that are shown; the rest is read and dropped.
const MAX_OUTPUT: usize = 64 * 1024;
/// How long output is waited for after the program's end: something that it left running may hold
/// the pipe.
const DRAIN: Duration = Duration::from_secs(1);
/// The program finds its helpers, and nothing of the operator's environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the program is told, under the names that Keylime's tenant uses for its environment.
pub(super) struct Question<'a> {
    pub(super) agent_uuid: &'a str,
    /// PEM.
    pub(super) ek: String,
    /// base64 TPM2B_PUBLIC.
    pub(super) ek_tpm: &'a str,
    /// base64 DER, `""`: none.
    pub(super) ek_cert: String,
    /// JSON.
    pub(super) provkeys: String,
    pub(super) tpm_cert_store: PathBuf,
}

/// Runs `program`, which accepts an EK by exit status 0.
pub(super) async fn ask(
    config: &Config,
    program: &Path,
    question: &Question<'_>,
    out: &Output,
) -> Result<(), Error> {
    let limit = config.ek_check_timeout.0;
    let failed = |source| Error::EkScript {
        script: program.to_owned(),
        source,
    };
    let (reader, writer) = io::pipe().map_err(failed)?;
    let reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(failed)?;
    let errors = writer.try_clone().map_err(failed)?;
    let directory = if config.state_dir.is_dir() {
        &config.state_dir
    } else {
        Path::new("/")
    };
    // Before the program starts: what ends this process from then on must end both.
    let signals = signals().map_err(failed)?;
    // The statement's end closes this program's copies of the pipe.
    let mut child = Command::new(program)
        .env_clear()
        .env("PATH", PATH)
        .env("AGENT_UUID", question.agent_uuid)
        .env("EK", &question.ek)
        .env("EK_TPM", question.ek_tpm)
        .env("EK_CERT", &question.ek_cert)
        .env("PROVKEYS", &question.provkeys)
        .env("TPM_CERT_STORE", &question.tpm_cert_store)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::from(writer))
        .stderr(Stdio::from(errors))
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    // Its group is its own, so that a terminal's Ctrl-C does not reach it.
    let running = Running::default();
    *running.lock() = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    running.end_with_this(signals);
    let output = Arc::<Mutex<Vec<u8>>>::default();
    let reading = tokio::spawn(read(reader, Arc::clone(&output)));
    let status = match timeout(limit, child.wait()).await {
        Ok(status) => Some(status.map_err(failed)?),
        Err(_) => {
            running.kill().map_err(|error| failed(error.into()))?;
            None
        }
    };
    // From here on the number may be another's.
    *running.lock() = None;
    // What was read so far counts, whether or not there was more.
    let _ = timeout(DRAIN, reading).await;
    let output = output.lock().unwrap_or_else(PoisonError::into_inner);
    let output = String::from_utf8_lossy(&output).into_owned();
    match status {
        Some(status) if status.success() => {
            for line in output.lines() {
                out.note(&format!("{}: {line}", program.display()));
            }
            Ok(())
        }
        Some(status) => Err(Error::EkScriptRefused {
            id: question.agent_uuid.to_owned(),
            script: program.to_owned(),
            status: in_words(status),
            output,
        }),
        None => Err(Error::EkScriptTimeout {
            script: program.to_owned(),
            seconds: limit.as_secs_f64(),
            output,
        }),
    }
}

/// The process group of a program, while it is not reaped: then the number is its own.
#[derive(Clone, Default)]
struct Running(Arc<Mutex<Option<Pid>>>);

impl Running {
    fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill(&self) -> rustix::io::Result<()> {
        match *self.lock() {
            Some(group) => kill_process_group(group, Signal::KILL),
            None => Ok(()),
        }
    }

    /// When this process is told to end, it takes the program with it. It ends by that signal later
    /// too, as it would have without.
    fn end_with_this(&self, signals: [(tokio::signal::unix::Signal, i32); 2]) {
        for (mut signal, number) in signals {
            let running = self.clone();
            tokio::spawn(async move {
                signal.recv().await;
                // It may have ended by itself.
                let _ = running.kill();
                std::process::exit(128 + number);
            });
        }
    }
}

/// What ends this process, with its number (signal(7)).
fn signals() -> io::Result<[(tokio::signal::unix::Signal, i32); 2]> {
    Ok([
        (signal(SignalKind::interrupt())?, 2),
        (signal(SignalKind::terminate())?, 15),
    ])
}

/// Keeps the first [`MAX_OUTPUT`] bytes. What comes later is read too, so that nobody blocks on a
/// full pipe.
async fn read(mut pipe: pipe::Receiver, kept: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 8192];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(buffer.get(..length.min(room)).unwrap_or_default());
    }
}

fn in_words(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        // "signal: 9 (SIGKILL)"
        None => status.to_string(),
    }
}
