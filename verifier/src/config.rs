//! Configuration of both servers. Option names follow Keylime's where Keylime has the option.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
pub use tls::{CaSubject, CertificateFiles, TlsOptions};
use troth_core::{
    appraise::Tomtou,
    finding::severity::{self, Severities, SeverityRule},
    policy::BootEngine,
};
pub use troth_daemon::seconds::Seconds;
use troth_daemon::{
    config::{Component, FromUnit, Secret},
    logging,
};
use zeroize::Zeroizing;

use crate::{
    evidence::Keep,
    poll::FleetError,
    server::{StartError, listen_address},
};

/// What the options of Keylime's servers are here.
mod keylime;
/// Certificates, keys and CAs of either server.
mod tls;

/// The configuration of one of the two programs.
pub trait ServerConfig: DeserializeOwned + Serialize + 'static {
    /// What it is called.
    const COMPONENT: Component;

    /// The option `log`.
    fn log(&self) -> Option<&str>;

    /// TLS certificates and CAs.
    fn tls(&self) -> TlsOptions;

    /// Whether a start would find that options cannot work, without a look at any file, at the
    /// database or at the network.
    fn check(&self) -> Result<(), StartError>;
}

/// `registrar.toml`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrarConfig {
    /// Where the CA and the database are unless said otherwise.
    pub state_dir: PathBuf,
    /// Address of both listeners.
    pub ip: String,
    /// Plain HTTP: registration and activation only. 0: any free port.
    pub port: u16,
    /// TLS: everything. 0: any free port.
    pub tls_port: u16,
    /// CA directory, default `<state_dir>/cv_ca`.
    pub ca_dir: Option<PathBuf>,
    /// The server's certificate with its chain, PEM. Default: `server-cert.crt` of the CA
    /// directory, made when missing.
    pub server_cert: Option<PathBuf>,
    /// Its private key, PEM. Default: `server-private.pem` of the CA directory.
    pub server_key: Option<PathBuf>,
    /// Password of `server_key`. Default: none, the file is not encrypted.
    pub server_key_password: Secret,
    /// CAs of operators' client certificates, PEM. Default: `cacert.crt` of the CA directory.
    pub trusted_client_ca: Vec<PathBuf>,
    /// Lists of client certificates that are revoked (CRL, PEM or DER), each signed by one of
    /// `trusted_client_ca`; read again when they change. Default: `cacrl.pem` and `cacrl.der` of
    /// the CA directory, if they exist.
    pub client_crl: Vec<PathBuf>,
    /// Names and addresses that a certificate made here is also for.
    pub cert_subject_alternative_names: Vec<String>,
    /// What a CA made here is called.
    pub ca: CaSubject,
    /// Database, default SQLite in `<state_dir>/reg_data.sqlite`.
    pub database_url: Option<Secret>,
    /// Connections to PostgreSQL.
    pub database_pool_size: u32,
    /// How long an unanswered challenge is good for.
    pub challenge_lifetime: Seconds,
    /// Unanswered challenges at a time, over all agents; more push out the oldest.
    pub max_pending: u32,
    /// Registrations and activations per second from one source address, with bursts of ten
    /// times as many; 0: no limit.
    pub source_rate_limit: u32,
    /// What must tell a device from others.
    pub tpm_identity: TpmIdentity,
    /// What to do about certificates that are not strict DER, as those of many TPMs are.
    pub malformed_cert_action: MalformedCertAction,
    /// Certificates of the CAs of TPM and device manufacturers (`*.pem`, `*.crt`, `*.der`,
    /// `*.cer`), default `<state_dir>/tpm_cert_store`.
    pub tpm_cert_store: Option<PathBuf>,
    /// Register only agents whose EK certificate leads to a CA of `tpm_cert_store`, or, where
    /// `tpm_identity` admits it, whose IAK and IDevID do.
    pub require_ek_cert: bool,
    /// Take certificates of TPMs and devices that have expired, with a warning: a TPM is what it
    /// was, and cannot renew its certificate.
    pub accept_expired_tpm_certs: bool,
    /// Refuse a TPM that is registered under another agent id; otherwise that is logged.
    pub one_id_per_tpm: bool,
    /// Least level of what is logged: `error`, `warn`, `info`, `debug` or `trace` (syslog's names are
    /// known too), or `off`; by target as in `info,rustls=warn`. `TROTH_LOG` wins. Default: `info`.
    #[serde(deserialize_with = "logging::option")]
    pub log: Option<String>,
}

/// What a registration must have to tell a device from others. An EK it must have in any case: the
/// challenge is encrypted to it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TpmIdentity {
    /// The EK, or IAK and IDevID.
    #[default]
    #[serde(alias = "default")]
    EkCertOrIakIdevid,
    /// The EK.
    EkCert,
    /// IAK and IDevID.
    IakIdevid,
}

/// What to do about a certificate that is not strict DER.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MalformedCertAction {
    /// Take it, and say so in the log.
    #[default]
    Warn,
    /// Take it.
    Ignore,
    /// Refuse the registration.
    Reject,
}

impl Default for RegistrarConfig {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/troth"),
            ip: String::from("127.0.0.1"),
            port: 8890,
            tls_port: 8891,
            ca_dir: None,
            server_cert: None,
            server_key: None,
            server_key_password: Secret::default(),
            trusted_client_ca: Vec::new(),
            client_crl: Vec::new(),
            cert_subject_alternative_names: Vec::new(),
            ca: CaSubject::default(),
            database_url: None,
            database_pool_size: 4,
            challenge_lifetime: Seconds(Duration::from_secs(600)),
            max_pending: 20_000,
            source_rate_limit: 20,
            tpm_identity: TpmIdentity::default(),
            malformed_cert_action: MalformedCertAction::default(),
            tpm_cert_store: None,
            require_ek_cert: false,
            accept_expired_tpm_certs: true,
            one_id_per_tpm: false,
            log: None,
        }
    }
}

impl ServerConfig for RegistrarConfig {
    const COMPONENT: Component = Component {
        name: "registrar",
        secrets: &["database_url", "server_key_password"],
        keylime: &[&keylime::REGISTRAR, &keylime::CA, &keylime::LOGGING],
        from_unit: &[FromUnit::StateDirectory, FromUnit::Certificates],
    };

    fn log(&self) -> Option<&str> {
        self.log.as_deref()
    }

    fn tls(&self) -> TlsOptions {
        let server = CertificateFiles::new(
            self.server_cert.as_ref(),
            self.server_key.as_ref(),
            &self.server_key_password,
        );
        TlsOptions {
            ca_dir: self.ca_dir(),
            server,
            // It connects to nobody.
            client: None,
            trusted_client_ca: self.trusted_client_ca.clone(),
            client_crl: self.client_crl.clone(),
            names: tls::names(&self.ip, &self.cert_subject_alternative_names),
            subject: self.ca.clone(),
        }
    }

    fn check(&self) -> Result<(), StartError> {
        listen_address(&self.ip)?;
        crate::tls::check(self.tls())
    }
}

impl RegistrarConfig {
    /// The CA directory that applies.
    pub fn ca_dir(&self) -> PathBuf {
        ca_dir(self.ca_dir.as_deref(), &self.state_dir)
    }

    /// The certificate store that applies.
    pub fn tpm_cert_store(&self) -> PathBuf {
        let configured = self.tpm_cert_store.clone();
        configured.unwrap_or_else(|| self.state_dir.join("tpm_cert_store"))
    }

    /// The database that applies.
    pub fn database_url(&self) -> Zeroizing<String> {
        database_url(
            self.database_url.as_ref(),
            &self.state_dir,
            "reg_data.sqlite",
        )
    }
}

/// `verifier.toml`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifierConfig {
    /// Where the CA and the database are unless said otherwise.
    pub state_dir: PathBuf,
    /// This verifier's name among several.
    pub uuid: String,
    /// Address of the listener.
    pub ip: String,
    /// Port of the listener. 0: any free port.
    pub port: u16,
    /// CA directory, default `<state_dir>/cv_ca`.
    pub ca_dir: Option<PathBuf>,
    /// The server's certificate with its chain, PEM. Default: `server-cert.crt` of the CA
    /// directory, made when missing.
    pub server_cert: Option<PathBuf>,
    /// Its private key, PEM. Default: `server-private.pem` of the CA directory.
    pub server_key: Option<PathBuf>,
    /// Password of `server_key`. Default: none, the file is not encrypted.
    pub server_key_password: Secret,
    /// CAs of operators' client certificates, PEM. Default: `cacert.crt` of the CA directory.
    pub trusted_client_ca: Vec<PathBuf>,
    /// Lists of client certificates that are revoked (CRL, PEM or DER), each signed by one of
    /// `trusted_client_ca`; read again when they change. Default: `cacrl.pem` and `cacrl.der` of
    /// the CA directory, if they exist.
    pub client_crl: Vec<PathBuf>,
    /// Names and addresses that a certificate made here is also for.
    pub cert_subject_alternative_names: Vec<String>,
    /// What a CA made here is called.
    pub ca: CaSubject,
    /// The certificate towards agents, PEM. Default: `client-cert.crt` of the CA directory.
    pub client_cert: Option<PathBuf>,
    /// Its private key, PEM. Default: `client-private.pem` of the CA directory.
    pub client_key: Option<PathBuf>,
    /// Password of `client_key`. Default: none, the file is not encrypted.
    pub client_key_password: Secret,
    /// Database, default SQLite in `<state_dir>/cv_data.sqlite`.
    pub database_url: Option<Secret>,
    /// Connections to PostgreSQL.
    pub database_pool_size: u32,
    /// Time from the start of one attestation of a node to the start of the next.
    pub quote_interval: Seconds,
    /// First wait after a node did not answer; the base of the power with `exponential_backoff`.
    pub retry_interval: Seconds,
    /// Wait `retry_interval` to the power of the attempt instead of `retry_interval`.
    pub exponential_backoff: bool,
    /// Attempts after which a silent node is in state 7 (it is asked again all the same).
    pub max_retries: u32,
    /// Longest wait between two attempts to reach a silent node.
    pub max_retry_interval: Seconds,
    /// Time for connecting, and time for one answer.
    pub request_timeout: Seconds,
    /// Largest answer of a node, in bytes. 50,000 IMA entries are some 8 MiB.
    pub max_answer_size: usize,
    /// Answers over 256 KiB that are in memory at a time, over all nodes; others wait for their
    /// turn. An answer that is being judged takes up to three times its size, so that this and
    /// `max_answer_size` bound the verifier's memory.
    pub max_large_answers: usize,
    /// Largest request of an operator, in bytes.
    pub max_upload_size: usize,
    /// Ask nodes over mTLS only. `false` also takes nodes that registered no certificate.
    pub enable_agent_mtls: bool,
    /// Threads that check evidence; 0: one per core.
    pub max_workers: usize,
    /// Take only runtime policies that are signed (DSSE), when nodes are enrolled and when
    /// policies are stored; what is stored already stays.
    pub require_allow_list_signatures: bool,
    /// Whose signature counts when a signed policy comes without `runtime_policy_key`: file with
    /// an EC public key or an X.509 certificate, PEM or DER.
    pub runtime_policy_key: Option<PathBuf>,
    /// Files with certificates of CAs, PEM or DER: a signed policy also counts if its signature
    /// carries a certificate for signing that one of them issued (Keylime's x509 backend), where
    /// `runtime_policy_key` would.
    pub runtime_policy_ca: Vec<PathBuf>,
    /// Who says whose signature counts: `request`, where the key that comes with a policy does
    /// before `runtime_policy_key`, as in Keylime; or `configured`, where only `runtime_policy_key`
    /// and `runtime_policy_ca` do, whatever an operator sends.
    pub runtime_policy_signers: PolicySigners,
    /// Labels of how much a finding matters, lowest first. A node with a finding of the last one is
    /// not asked any more until it is reactivated.
    pub severity_labels: Vec<String>,
    /// Which finding has which label: regular expressions for whole ids of findings, the first that
    /// matches counts. What none matches, and what stopped a check early, has the last label.
    pub severity_policy: Vec<SeverityRule>,
    /// What judges the boot log by a refstate: `example` as Keylime's engine of this name;
    /// `accept-all`: nothing, the log must replay; `reject-all`: every boot policy but `{}` fails.
    pub measured_boot_policy_name: BootEngine,
    /// `once`: a boot log that was judged good is judged again when it, the PCRs or the policy
    /// change; `always`: with every answer. The verdict is the same.
    pub measured_boot_evaluate: Evaluate,
    /// What violations of the IMA list are: files written to while they were measured or used.
    pub tomtou: Tomtou,
    /// Checks on demand (`/verify/identity`, `/verify/evidence`) at a time, for anybody; each may
    /// hold 16 MiB of evidence, and as much may be on its way to it. 0: none.
    pub max_evidence_checks: usize,
    /// Such checks per second from one source address, with bursts of ten times as many; 0: no
    /// limit.
    pub evidence_rate_limit: u32,
    /// Keep evidence bundles of judged answers in this directory, relative to `state_dir`. Default:
    /// none are kept.
    pub evidence_dir: Option<PathBuf>,
    /// Which answers are kept: `failed`, `changes` (those after which a node is in another state)
    /// or `all`.
    pub evidence_keep: Keep,
    /// Bundles kept of each node: so many that failed, and so many others.
    pub evidence_keep_count: usize,
    /// How long bundles are kept. 0: for ever.
    pub evidence_keep_age: Seconds,
    /// Most bytes of all bundles; the node that has most of them loses its oldest.
    pub evidence_max_size: u64,
    /// Least level of what is logged: `error`, `warn`, `info`, `debug` or `trace` (syslog's names are
    /// known too), or `off`; by target as in `info,rustls=warn`. `TROTH_LOG` wins. Default: `info`.
    #[serde(deserialize_with = "logging::option")]
    pub log: Option<String>,
}

/// When a boot log is judged.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evaluate {
    /// When it, the quoted PCRs or the policy are not what was judged good last.
    #[default]
    Once,
    /// With every answer.
    Always,
}

/// Who says whose signature of a runtime policy counts.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicySigners {
    /// Whoever sends the policy.
    Request,
    /// The configuration alone.
    Configured,
}

impl Default for VerifierConfig {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/troth"),
            uuid: String::from("default"),
            ip: String::from("127.0.0.1"),
            port: 8881,
            ca_dir: None,
            server_cert: None,
            server_key: None,
            server_key_password: Secret::default(),
            trusted_client_ca: Vec::new(),
            client_crl: Vec::new(),
            cert_subject_alternative_names: Vec::new(),
            ca: CaSubject::default(),
            client_cert: None,
            client_key: None,
            client_key_password: Secret::default(),
            database_url: None,
            database_pool_size: 4,
            quote_interval: Seconds(Duration::from_secs(2)),
            retry_interval: Seconds(Duration::from_secs(2)),
            exponential_backoff: true,
            max_retries: 5,
            max_retry_interval: Seconds(Duration::from_secs(60)),
            request_timeout: Seconds(Duration::from_secs(60)),
            max_answer_size: 128 * 1024 * 1024,
            max_large_answers: 4,
            max_upload_size: 100 * 1024 * 1024,
            enable_agent_mtls: true,
            max_workers: 0,
            require_allow_list_signatures: false,
            runtime_policy_key: None,
            runtime_policy_ca: Vec::new(),
            runtime_policy_signers: PolicySigners::Request,
            severity_labels: severity::LABELS.map(str::to_owned).to_vec(),
            severity_policy: SeverityRule::defaults(),
            measured_boot_policy_name: BootEngine::default(),
            measured_boot_evaluate: Evaluate::default(),
            tomtou: Tomtou::default(),
            max_evidence_checks: 2,
            evidence_rate_limit: 5,
            evidence_dir: None,
            evidence_keep: Keep::default(),
            evidence_keep_count: 100,
            evidence_keep_age: Seconds(Duration::from_secs(30 * 86_400)),
            evidence_max_size: 1 << 30,
            log: None,
        }
    }
}

impl ServerConfig for VerifierConfig {
    const COMPONENT: Component = Component {
        name: "verifier",
        secrets: &["client_key_password", "database_url", "server_key_password"],
        keylime: &[&keylime::VERIFIER, &keylime::CA, &keylime::LOGGING],
        from_unit: &[FromUnit::StateDirectory, FromUnit::Certificates],
    };

    fn log(&self) -> Option<&str> {
        self.log.as_deref()
    }

    fn tls(&self) -> TlsOptions {
        TlsOptions {
            ca_dir: self.ca_dir(),
            server: CertificateFiles::new(
                self.server_cert.as_ref(),
                self.server_key.as_ref(),
                &self.server_key_password,
            ),
            client: Some(CertificateFiles::new(
                self.client_cert.as_ref(),
                self.client_key.as_ref(),
                &self.client_key_password,
            )),
            trusted_client_ca: self.trusted_client_ca.clone(),
            client_crl: self.client_crl.clone(),
            names: tls::names(&self.ip, &self.cert_subject_alternative_names),
            subject: self.ca.clone(),
        }
    }

    fn check(&self) -> Result<(), StartError> {
        listen_address(&self.ip)?;
        crate::tls::check(self.tls())?;
        Severities::compile(&self.severity_labels, &self.severity_policy)
            .map_err(FleetError::Severity)?;
        Ok(())
    }
}

impl VerifierConfig {
    /// The CA directory that applies.
    pub fn ca_dir(&self) -> PathBuf {
        ca_dir(self.ca_dir.as_deref(), &self.state_dir)
    }

    /// Where evidence is kept, if it is.
    pub fn evidence_dir(&self) -> Option<PathBuf> {
        let given = self.evidence_dir.as_ref();
        let given = given.filter(|path| !path.as_os_str().is_empty());
        given.map(|path| self.state_dir.join(path))
    }

    /// The database that applies.
    pub fn database_url(&self) -> Zeroizing<String> {
        database_url(
            self.database_url.as_ref(),
            &self.state_dir,
            "cv_data.sqlite",
        )
    }
}

fn ca_dir(configured: Option<&Path>, state_dir: &Path) -> PathBuf {
    configured.map_or_else(|| state_dir.join("cv_ca"), Path::to_owned)
}

fn database_url(configured: Option<&Secret>, state_dir: &Path, file: &str) -> Zeroizing<String> {
    let url = match configured.map(Secret::expose) {
        // "sqlite" alone is what Keylime's files say for the default.
        Some(url) if url != "sqlite" => url.to_owned(),
        _ => {
            // What would end the path of a URL, or begin an escape in it.
            let path = state_dir.join(file).display().to_string();
            let path = path
                .replace('%', "%25")
                .replace('?', "%3F")
                .replace('#', "%23");
            format!("sqlite://{path}")
        }
    };
    Zeroizing::new(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrars_checks_are_named_as_keylime_names_them() {
        let parsed = |identity: &str, action: &str| {
            let options = serde_json::json!({
                "tpm_identity": identity, "malformed_cert_action": action,
            });
            let config: RegistrarConfig = serde_json::from_value(options).unwrap();
            (config.tpm_identity, config.malformed_cert_action)
        };
        let either = TpmIdentity::EkCertOrIakIdevid;
        for (identity, action, expected) in [
            ("default", "warn", (either, MalformedCertAction::Warn)),
            (
                "ek_cert_or_iak_idevid",
                "ignore",
                (either, MalformedCertAction::Ignore),
            ),
            (
                "ek_cert",
                "reject",
                (TpmIdentity::EkCert, MalformedCertAction::Reject),
            ),
            (
                "iak_idevid",
                "warn",
                (TpmIdentity::IakIdevid, MalformedCertAction::Warn),
            ),
        ] {
            assert_eq!(parsed(identity, action), expected);
        }
    }

    #[test]
    fn defaults_are_keylimes_ports_and_directories() {
        let registrar = RegistrarConfig::default();
        assert_eq!((registrar.port, registrar.tls_port), (8890, 8891));
        assert_eq!(registrar.ca_dir(), Path::new("/var/lib/troth/cv_ca"));
        let verifier = VerifierConfig::default();
        assert_eq!(verifier.port, 8881);
        assert_eq!(
            *verifier.database_url(),
            "sqlite:///var/lib/troth/cv_data.sqlite"
        );
    }
}
