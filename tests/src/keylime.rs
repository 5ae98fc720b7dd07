use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::process::{Process, cache, stable_port};

/// The release that `cargo xtask setup` installs.
pub const VERSION: &str = "7.14.3";

/// The options that have no default in Keylime's code, as its own templates give them; what each
/// test bed sets is in braces.
const VERIFIER: &str = "\
[verifier]
version = 2.6
uuid = default
ip = 127.0.0.1
port = {verifier_port}
registrar_ip = 127.0.0.1
registrar_port = {registrar_tls_port}
enable_agent_mtls = True
tls_dir = generate
server_key = default
server_key_password =
server_cert = default
client_key = default
client_key_password =
client_cert = default
trusted_client_ca = default
trusted_server_ca = default
cert_subject_alternative_names =
authorization_provider = simple
database_url = sqlite
database_pool_sz_ovfl = 5,10
auto_migrate_db = True
max_workers = 1
exponential_backoff = False
retry_interval = 1
max_retries = 5
quote_interval = 1
max_upload_size = 104857600
request_timeout = 10.0
measured_boot_policy_name = accept-all
measured_boot_imports = []
measured_boot_evaluate = once
severity_labels = [\"info\", \"notice\", \"warning\", \"error\", \"critical\", \"alert\", \"emergency\"]
severity_policy = [{\"event_id\": \".*\", \"severity_label\": \"emergency\"}]
ignore_tomtou_errors = False
durable_attestation_import =
persistent_store_url =
transparency_log_url =
time_stamp_authority_url =
time_stamp_authority_certs_path =
persistent_store_format = json
persistent_store_encoding =
transparency_log_sign_algo = sha256
signed_attributes =
require_allow_list_signatures = False
mode = pull

[revocations]
enabled_revocation_notifications = []
zmq_ip = 127.0.0.1
zmq_port = 8992
webhook_url =
";

const REGISTRAR: &str = "\
[registrar]
version = 2.6
ip = 127.0.0.1
port = {registrar_port}
tls_port = {registrar_tls_port}
tls_dir = default
server_key = default
server_key_password =
server_cert = default
trusted_client_ca = default
cert_subject_alternative_names =
authorization_provider = simple
database_url = sqlite
database_pool_sz_ovfl = 5,10
max_workers = 1
auto_migrate_db = True
durable_attestation_import =
persistent_store_url =
transparency_log_url =
time_stamp_authority_url =
time_stamp_authority_certs_path =
persistent_store_format = json
persistent_store_encoding =
transparency_log_sign_algo = sha256
signed_attributes = ek_tpm,aik_tpm,ekcert
tpm_identity = default
malformed_cert_action = reject
";

const TENANT: &str = "\
[tenant]
version = 2.6
verifier_ip = 127.0.0.1
verifier_port = {verifier_port}
registrar_ip = 127.0.0.1
registrar_port = {registrar_tls_port}
tls_dir = default
enable_agent_mtls = True
client_key = default
client_key_password =
client_cert = default
trusted_server_ca = default
tpm_cert_store = {tpm_cert_store}
max_payload_size = 1048576
accept_tpm_hash_algs = ['sha512', 'sha384', 'sha256']
accept_tpm_encryption_algs = ['ecc', 'rsa']
accept_tpm_signing_algs = ['ecdsa', 'rsassa']
exponential_backoff = False
retry_interval = 1
max_retries = 5
request_timeout = 60
require_ek_cert = True
ek_check_script =
mb_refstate =
";

const CA: &str = "\
[ca]
version = 2.6
password = default
cert_country = US
cert_ca_name = Keylime Certificate Authority
cert_state = MA
cert_locality = Lexington
cert_organization = Keylime
cert_org_unit = 53
cert_ca_lifetime = 3650
cert_lifetime = 365
cert_bits = 2048
cert_crl_dist = http://localhost:38080/crl
";

const LOGGING: &str = "\
[logging]
version = 2.6
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = formatter
[formatter_formatter]
format = %(asctime)s.%(msecs)03d - %(name)s - %(levelname)s - %(message)s
datefmt = %Y-%m-%d %H:%M:%S
[logger_root]
level = INFO
handlers = console
[handler_console]
class = StreamHandler
level = INFO
formatter = formatter
args = (sys.stdout,)
";

/// Keylime's verifier and registrar as processes, with a CA that its verifier made.
#[derive(Debug)]
pub struct Keylime {
    directory: PathBuf,
    programs: PathBuf,
    registrar_port: u16,
    registrar_tls_port: u16,
    servers: Vec<Group>,
}

impl Keylime {
    /// Starts both servers with their state in `directory`. `ek_issuer` is the certificate that
    /// the tenant must find above an EK's.
    pub fn start(directory: &Path, ek_issuer: &Path) -> Result<Self> {
        let programs = installation()?.join("bin");
        let store = directory.join("tpm_cert_store");
        fs::create_dir_all(&store)?;
        fs::create_dir_all(directory.join("state"))?;
        fs::copy(ek_issuer, store.join("issuer.pem"))?;
        let registrar_port = stable_port()?;
        let registrar_tls_port = stable_port()?;
        let values = [
            ("{verifier_port}", stable_port()?.to_string()),
            ("{registrar_port}", registrar_port.to_string()),
            ("{registrar_tls_port}", registrar_tls_port.to_string()),
            ("{tpm_cert_store}", store.display().to_string()),
        ];
        for (name, template) in [
            ("verifier", VERIFIER),
            ("registrar", REGISTRAR),
            ("tenant", TENANT),
            ("ca", CA),
            ("logging", LOGGING),
        ] {
            let mut text = template.to_owned();
            for (key, value) in &values {
                text = text.replace(key, value);
            }
            fs::write(directory.join(format!("{name}.conf")), text)?;
        }
        let mut keylime = Self {
            directory: directory.to_owned(),
            programs,
            registrar_port,
            registrar_tls_port,
            servers: Vec::new(),
        };
        // In this order: the registrar needs the CA that the verifier makes.
        for server in ["keylime_verifier", "keylime_registrar"] {
            let mut command = keylime.command(server);
            let process = Process::start(server, directory, command.process_group(0))?;
            let mut group = Group(process);
            let ready = |log: &str| log.contains("Listening on").then_some(());
            group.0.wait_for_log(0, ready)?;
            keylime.servers.push(group);
        }
        Ok(keylime)
    }

    /// Plain HTTP port of the registrar.
    pub fn registrar_port(&self) -> u16 {
        self.registrar_port
    }

    /// TLS port of the registrar.
    pub fn registrar_tls_port(&self) -> u16 {
        self.registrar_tls_port
    }

    /// The CA directory that agents trust.
    pub fn ca_dir(&self) -> PathBuf {
        self.directory.join("state/cv_ca")
    }

    /// `keylime_tenant ARGUMENTS`; returns what it printed when it succeeded.
    pub fn tenant(&self, arguments: &[&str]) -> Result<String> {
        crate::process::output_of(self.command("keylime_tenant").args(arguments))
            .with_context(|| self.logs())
    }

    /// Waits until Keylime's verifier gives the agent one of the operational states.
    pub fn wait_for_state(&self, id: &str, states: &[&str]) -> Result<String> {
        let start = std::time::Instant::now();
        loop {
            let status = self.tenant(&["-c", "cvstatus", "-u", id])?;
            if states.iter().any(|state| status.contains(state)) {
                return Ok(status);
            }
            if start.elapsed() > crate::process::PATIENCE {
                bail!(
                    "{id} is not in one of {states:?}: {status}\n{}",
                    self.logs()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until Keylime's verifier counts at least `wanted` good attestations.
    pub fn wait_for_attestations(&self, id: &str, wanted: u64) -> Result<u64> {
        let start = std::time::Instant::now();
        loop {
            let status = self.tenant(&["-c", "cvstatus", "-u", id])?;
            let count = status
                .split_once("\"attestation_count\": ")
                .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
                .and_then(|digits| digits.parse().ok())
                .unwrap_or(0);
            if count >= wanted {
                return Ok(count);
            }
            if start.elapsed() > crate::process::PATIENCE {
                bail!("{id} was attested {count} times: {status}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What the servers printed.
    pub fn logs(&self) -> String {
        self.servers
            .iter()
            .map(|group| group.0.log())
            .collect::<Vec<_>>()
            .join("\n---\n")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        for component in ["verifier", "registrar", "tenant", "ca", "logging"] {
            command.env(
                format!("KEYLIME_{}_CONFIG", component.to_uppercase()),
                self.directory.join(format!("{component}.conf")),
            );
        }
        command
            .current_dir(&self.directory)
            .env("KEYLIME_DIR", self.directory.join("state"))
            .env("PYTHONWARNINGS", "ignore")
            .env("PYTHONUNBUFFERED", "1");
        command
    }
}

/// A server with the workers that it forked.
#[derive(Debug)]
struct Group(Process);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(leader, Signal::KILL);
            // What it would have removed itself, had it been asked; that takes it several seconds.
            let _ = fs::remove_file(format!("/run/keylime/shared_data.{}.sock", self.0.id()));
        }
    }
}

/// Where `cargo xtask setup` makes a virtual environment with Keylime, below `$XDG_CACHE_HOME`.
pub fn installation_place() -> Result<PathBuf> {
    Ok(cache()?.join(format!("keylime-{VERSION}")))
}

fn installation() -> Result<PathBuf> {
    let place = installation_place()?;
    if !place.join("bin/keylime_verifier").is_file() {
        bail!(
            "Keylime is not in {}: run `cargo xtask setup`",
            place.display()
        );
    }
    Ok(place)
}
