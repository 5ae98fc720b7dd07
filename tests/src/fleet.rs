use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::boot::Machine;
use crate::process::{PATIENCE, Process, stable_port};

/// Where this workspace's daemons and tools are built.
#[derive(Clone, Debug)]
pub struct Programs(PathBuf);

impl Programs {
    /// Beside the running test or tool.
    pub fn beside_this() -> Result<Self> {
        let this = std::env::current_exe()?;
        let directory = this.parent().context("an executable without a directory")?;
        let directory = if directory.ends_with("deps") {
            directory
                .parent()
                .context("a target directory without a parent")?
        } else {
            directory
        };
        Ok(Self(directory.to_owned()))
    }

    /// In `directory`.
    pub fn in_directory(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The program called `name`, not started yet.
    pub fn command(&self, name: &str) -> Result<Command> {
        let program = self.0.join(name);
        if !program.is_file() {
            bail!(
                "{} is not built: run `cargo build --workspace`",
                program.display()
            );
        }
        Ok(Command::new(program))
    }
}

/// Registrar and verifier of one CA, on ports of 127.0.0.1 that stay theirs over restarts.
#[derive(Debug)]
pub struct Fleet {
    programs: Programs,
    directory: PathBuf,
    registrar: Process,
    verifier: Process,
    ports: Ports,
    daemon: DaemonOptions,
}

/// URLs of the daemons' databases; a file in the state directory where there is none.
#[derive(Clone, Debug, Default)]
pub struct Databases {
    /// The registrar's.
    pub registrar: Option<String>,
    /// The verifier's.
    pub verifier: Option<String>,
}

/// What a fleet has beyond, or instead of, what every fleet has.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// Lines of `registrar.toml`; they replace lines of the same option.
    pub registrar: String,
    /// Lines of `verifier.toml`; they replace lines of the same option.
    pub verifier: String,
    /// How both daemons are started.
    pub daemon: DaemonOptions,
}

/// How a daemon's process is started.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// Further environment.
    pub environment: Vec<(String, String)>,
    /// A program with its arguments that becomes the daemon, whose command line follows.
    pub wrapper: Vec<String>,
}

/// `text` with its lines of the same option replaced by those of `lines`.
fn overridden(text: &str, lines: &str) -> String {
    let option = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let replaced: Vec<_> = lines.lines().map(option).collect();
    let kept = text
        .lines()
        .filter(|line| !replaced.contains(&option(line)));
    kept.chain(lines.lines())
        .map(|line| format!("{line}\n"))
        .collect()
}

impl Databases {
    /// The line of a configuration file.
    fn line(url: Option<&str>) -> String {
        url.map_or_else(String::new, |url| format!("database_url = {url:?}\n"))
    }
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    registrar: u16,
    registrar_tls: u16,
    verifier: u16,
}

/// Time between two quotes of one node, unless a test says otherwise: short, so that verdicts come
/// soon.
pub const QUOTE_INTERVAL: Duration = Duration::from_millis(500);

impl Fleet {
    /// Starts both daemons with state in `directory`, and waits until they serve.
    pub fn start(programs: &Programs, directory: &Path, interval: Duration) -> Result<Self> {
        Self::start_on(programs, directory, interval, &Databases::default())
    }

    /// [`Fleet::start`] with other databases than files in `directory`.
    pub fn start_on(
        programs: &Programs,
        directory: &Path,
        interval: Duration,
        databases: &Databases,
    ) -> Result<Self> {
        let extra = Extra {
            registrar: Databases::line(databases.registrar.as_deref()),
            verifier: Databases::line(databases.verifier.as_deref()),
            ..Extra::default()
        };
        Self::start_with(programs, directory, interval, &extra)
    }

    /// [`Fleet::start`] with what `extra` says.
    pub fn start_with(
        programs: &Programs,
        directory: &Path,
        interval: Duration,
        extra: &Extra,
    ) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let ports = Ports {
            registrar: stable_port()?,
            registrar_tls: stable_port()?,
            verifier: stable_port()?,
        };
        let state = directory.join("state");
        let registrar = format!(
            "state_dir = {state:?}\nport = {}\ntls_port = {}\n",
            ports.registrar, ports.registrar_tls
        );
        fs::write(
            directory.join("registrar.toml"),
            overridden(&registrar, &extra.registrar),
        )?;
        let verifier = format!(
            "state_dir = {state:?}\nport = {}\nquote_interval = {}\nretry_interval = 0.2\n\
             exponential_backoff = false\nrequest_timeout = 10.0\n",
            ports.verifier,
            interval.as_secs_f64(),
        );
        fs::write(
            directory.join("verifier.toml"),
            overridden(&verifier, &extra.verifier),
        )?;
        let start = |name| start_daemon(programs, name, directory, &extra.daemon);
        Ok(Self {
            registrar: start("troth-registrar")?,
            verifier: start("troth-verifier")?,
            programs: programs.clone(),
            directory: directory.to_owned(),
            ports,
            daemon: extra.daemon.clone(),
        })
    }

    /// The CA directory with the operator's certificate.
    pub fn ca_dir(&self) -> PathBuf {
        self.directory.join("state/cv_ca")
    }

    /// Plain HTTP port of the registrar.
    pub fn registrar_port(&self) -> u16 {
        self.ports.registrar
    }

    /// TLS port of the registrar.
    pub fn registrar_tls_port(&self) -> u16 {
        self.ports.registrar_tls
    }

    /// Port of the verifier.
    pub fn verifier_port(&self) -> u16 {
        self.ports.verifier
    }

    /// The registrar's process.
    pub fn registrar(&mut self) -> &mut Process {
        &mut self.registrar
    }

    /// The verifier's process.
    pub fn verifier(&mut self) -> &mut Process {
        &mut self.verifier
    }

    /// Starts the registrar again after its end.
    pub fn start_registrar(&mut self) -> Result<()> {
        self.registrar = self.daemon("troth-registrar")?;
        Ok(())
    }

    /// Starts the verifier again after its end.
    pub fn start_verifier(&mut self) -> Result<()> {
        self.verifier = self.daemon("troth-verifier")?;
        Ok(())
    }

    fn daemon(&self, name: &str) -> Result<Process> {
        start_daemon(&self.programs, name, &self.directory, &self.daemon)
    }

    /// `trothctl ARGUMENTS` as this fleet's operator types it.
    pub fn trothctl<A: AsRef<std::ffi::OsStr>>(&self, arguments: &[A]) -> Result<Answer> {
        self.trothctl_as(&self.ca_dir(), arguments)
    }

    /// [`Fleet::trothctl`] with another CA directory's client certificate.
    pub fn trothctl_as<A: AsRef<std::ffi::OsStr>>(
        &self,
        ca_dir: &Path,
        arguments: &[A],
    ) -> Result<Answer> {
        let output = self
            .programs
            .command("trothctl")?
            .env(
                "TROTH_VERIFIER",
                format!("https://127.0.0.1:{}", self.ports.verifier),
            )
            .env(
                "TROTH_REGISTRAR",
                format!("https://127.0.0.1:{}", self.ports.registrar_tls),
            )
            .env("TROTH_CA_DIR", ca_dir)
            .env("TROTH_CTL_TPM_CERT_STORE", self.tpm_cert_store())
            .env(
                "TROTH_CTL_REQUIRE_EK_CERT",
                self.tpm_cert_store().exists().to_string(),
            )
            .env("COLUMNS", "100")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot start trothctl")?;
        Ok(Answer::from(output))
    }

    /// Has the operator trust a CA of TPM vendors; before the first, no EK certificate is required.
    pub fn trust_tpm_vendor(&self, certificate: &Path) -> Result<()> {
        let store = self.tpm_cert_store();
        fs::create_dir_all(&store)?;
        let number = fs::read_dir(&store)?.count();
        fs::copy(certificate, store.join(format!("{number}.pem")))?;
        Ok(())
    }

    /// The operator's directory of TPM vendors' CAs.
    pub fn tpm_cert_store(&self) -> PathBuf {
        self.directory.join("tpm_cert_store")
    }

    /// Waits until the registrar shows the agent `id`, activated.
    pub fn wait_registered(&self, id: &str) -> Result<Value> {
        let start = Instant::now();
        loop {
            let answer = self.trothctl(&["--json", "registrar", "show", id])?;
            if answer.status.success() {
                return answer.json();
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "{id} is not registered after {PATIENCE:?}: {}",
                    answer.stderr
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `trothctl agent add`, with a runtime policy from `policy`.
    pub fn add(&self, id: &str, policy: &Path) -> Result<()> {
        let policy = policy
            .to_str()
            .context("a temporary directory with an odd name")?;
        self.trothctl(&["agent", "add", id, "--runtime-policy", policy])?
            .success()
            .map(drop)
    }

    /// The node as `trothctl agent status` shows it, whatever its state.
    pub fn status(&self, id: &str) -> Result<Value> {
        self.trothctl(&["--json", "agent", "status", id])?.json()
    }

    /// Waits until the verifier shows `state` for the agent, and returns its status then.
    pub fn wait_for_state(&self, id: &str, state: &str) -> Result<Value> {
        self.wait_for(id, &format!("is {state}"), |node| node["state"] == state)
    }

    /// Waits until a status of the agent is as `wanted`; an error says what it was last.
    pub fn wait_for(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let start = Instant::now();
        loop {
            let node = self.status(id);
            match &node {
                Ok(node) if wanted(node) => return Ok(node.clone()),
                _ if start.elapsed() > PATIENCE => {
                    bail!("waited {PATIENCE:?} until {id} {what}; last seen: {node:#?}");
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// What a command, most often `trothctl`, answered.
#[derive(Debug)]
pub struct Answer {
    /// Exit status; `trothctl --help` says what each of its own means.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Answer {
    /// Itself when the exit status was 0, else an error with what was printed.
    pub fn success(self) -> Result<Self> {
        if !self.status.success() {
            bail!("{}\n{}{}", self.status, self.stdout, self.stderr);
        }
        Ok(self)
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("no JSON:\n{}{}", self.stdout, self.stderr))
    }
}

/// What an agent is started with.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Agent id, or how to make one (`hash_ek`).
    pub id: String,
    /// `rsa2048` (also when empty), `ecc256`, ...
    pub key: String,
    /// TCTI configuration; that of the machine's TPM when `None`.
    pub tcti: Option<String>,
    /// Port told to the registrar, when it is not the agent's own.
    pub contact_port: Option<u16>,
    /// Further environment.
    pub environment: Vec<(String, String)>,
    /// Where it serves varlink, as if a service manager had opened the socket.
    pub varlink: Option<PathBuf>,
}

impl AgentOptions {
    /// An RSA agent with this id on the machine's own TPM.
    pub fn with_id(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            ..Self::default()
        }
    }
}

/// An agent with its state directory; may be stopped and started again.
#[derive(Debug)]
pub struct Agent {
    programs: Programs,
    directory: PathBuf,
    process: Process,
    port: u16,
    daemon: DaemonOptions,
}

impl Agent {
    /// Starts an agent on `machine` that registers at `registrar_port` and takes clients of the CA
    /// in `ca_dir`. Returns when it listens.
    pub fn start(
        programs: &Programs,
        directory: &Path,
        machine: &Machine,
        registrar_port: u16,
        ca_dir: &Path,
        options: &AgentOptions,
    ) -> Result<Self> {
        let state = directory.join("state");
        fs::create_dir_all(&state)?;
        let port = stable_port()?;
        let key = if options.key.is_empty() {
            "rsa2048"
        } else {
            &options.key
        };
        let tcti = options.tcti.clone().unwrap_or_else(|| machine.tpm().tcti());
        let mut text = format!(
            "state_dir = {state:?}\nuuid = {:?}\nport = {port}\nregistrar_ip = \"127.0.0.1\"\n\
             registrar_port = {registrar_port}\ntrusted_client_ca = [{:?}]\ntcti = {tcti:?}\n\
             tpm_encryption_alg = {key:?}\nima_ml_path = {:?}\nmeasuredboot_ml_path = {:?}\n\
             userspace_ml_path = {:?}\nexponential_backoff_initial_delay = 100\n",
            options.id,
            ca_dir.join("cacert.crt"),
            machine.ima_list(),
            machine.boot_log(),
            machine.userspace_log(),
        );
        if let Some(port) = options.contact_port {
            text.push_str(&format!("contact_port = {port}\n"));
        }
        fs::write(directory.join("agent.toml"), text)?;
        let socket = options.varlink.as_deref();
        let daemon = DaemonOptions {
            environment: options.environment.clone(),
            wrapper: socket.map(socket_activation).unwrap_or_default(),
        };
        let process = start_daemon(programs, "troth-agent", directory, &daemon)?;
        Ok(Self {
            programs: programs.clone(),
            directory: directory.to_owned(),
            process,
            port,
            daemon,
        })
    }

    /// The agent's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Replaces lines of its configuration by `lines`, for the next start.
    pub fn reconfigure(&self, lines: &str) -> Result<()> {
        let file = self.directory.join("agent.toml");
        let text = fs::read_to_string(&file)?;
        Ok(fs::write(file, overridden(&text, lines))?)
    }

    /// Starts the agent again, after its end, with the same configuration and state.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = start_daemon(&self.programs, "troth-agent", &self.directory, &self.daemon)?;
        Ok(())
    }

    /// Ends the agent and starts it again with another registrar, with the keys it has.
    pub fn move_to(&mut self, registrar_port: u16) -> Result<()> {
        self.process.terminate()?;
        let file = self.directory.join("agent.toml");
        let text = fs::read_to_string(&file)?;
        let lines = text.lines().map(|line| {
            if line.starts_with("registrar_port = ") {
                format!("registrar_port = {registrar_port}\n")
            } else {
                format!("{line}\n")
            }
        });
        fs::write(&file, lines.collect::<String>())?;
        self.start_again()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Certificate and key of its TLS server.
    pub fn tls_files(&self) -> (PathBuf, PathBuf) {
        let state = self.directory.join("state");
        (
            state.join("server-cert.crt"),
            state.join("server-private.pem"),
        )
    }
}

/// Runs a program with a listening socket, as sd_listen_fds(3) says.
fn socket_activation(path: &Path) -> Vec<String> {
    const RUN: &str = "
import os, socket, sys
path, program = sys.argv[1], sys.argv[2:]
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='varlink')
os.execvp(program[0], program)";
    let path = path.display().to_string();
    ["python3".to_owned(), "-c".to_owned(), RUN.to_owned(), path].into()
}

/// Starts `troth-NAME --config NAME.toml` in `directory` and waits until it listens.
fn start_daemon(
    programs: &Programs,
    name: &str,
    directory: &Path,
    options: &DaemonOptions,
) -> Result<Process> {
    let component = name.trim_start_matches("troth-");
    let before = fs::metadata(directory.join(format!("{name}.log"))).map_or(0, |log| log.len());
    let daemon = programs.command(name)?;
    let mut command = match options.wrapper.split_first() {
        None => daemon,
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(daemon.get_program());
            command
        }
    };
    command
        .arg("--config")
        .arg(directory.join(format!("{component}.toml")))
        .envs(options.environment.iter().cloned());
    let mut process = Process::start(name, directory, &mut command)?;
    let from = usize::try_from(before)?;
    process.wait_for_log(from, |log| log.contains("listening on").then_some(()))?;
    Ok(process)
}
