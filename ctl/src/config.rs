use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use troth_daemon::{
    config::{self, Component, Place, Secret, Shown},
    seconds::Seconds,
};

use crate::{
    api::Endpoint,
    cli::{EkArgs, Global},
    error::Error,
    show_config,
};

/// What the options of Keylime's tenant are here.
mod keylime;

/// Longest pause between two attempts to reach an agent.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// `trothctl.toml`. Option names follow Keylime's tenant where it has the option.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Where a relative `ek_check_script` is, and what it is run in.
    pub(crate) state_dir: PathBuf,
    /// Name or address of the verifier.
    pub(crate) verifier_ip: String,
    /// Its port.
    pub(crate) verifier_port: u16,
    /// Name that its certificate must have, by default `verifier_ip`.
    pub(crate) verifier_tls_name: Option<String>,
    /// Name or address of the registrar.
    pub(crate) registrar_ip: String,
    /// Its TLS port.
    pub(crate) registrar_port: u16,
    /// Name that its certificate must have, by default `registrar_ip`.
    pub(crate) registrar_tls_name: Option<String>,
    /// CA directory, default `<state_dir>/cv_ca`.
    pub(crate) ca_dir: Option<PathBuf>,
    /// The operator's certificate, default `client-cert.crt` of the CA directory.
    pub(crate) client_cert: Option<PathBuf>,
    /// Its private key, default `client-private.pem` of the CA directory.
    pub(crate) client_key: Option<PathBuf>,
    /// Its password, if it is encrypted.
    pub(crate) client_key_password: Secret,
    /// CAs of verifier and registrar, default `cacert.crt` of the CA directory.
    pub(crate) trusted_server_ca: Vec<PathBuf>,
    /// Time for connecting, and time for one answer.
    pub(crate) request_timeout: Seconds,
    /// How often an agent that does not answer, or is busy, is asked again.
    pub(crate) max_retries: u32,
    /// Pause before it is asked again.
    pub(crate) retry_interval: Seconds,
    /// Double the pause each time, up to a minute.
    pub(crate) exponential_backoff: bool,
    /// Hash algorithms that a node's quotes may use.
    pub(crate) accept_tpm_hash_algs: Vec<String>,
    /// Algorithms that a node's AK may have.
    pub(crate) accept_tpm_encryption_algs: Vec<String>,
    /// Signature schemes that a node's quotes may use.
    pub(crate) accept_tpm_signing_algs: Vec<String>,
    /// Refuse a node whose EK certificate is missing or was not issued by a CA of the store.
    pub(crate) require_ek_cert: bool,
    /// Certificates of the CAs of TPM vendors, default `<state_dir>/tpm_cert_store`.
    pub(crate) tpm_cert_store: Option<PathBuf>,
    /// Program that accepts or refuses an EK; `""`: none.
    pub(crate) ek_check_script: PathBuf,
    /// How long it may take.
    pub(crate) ek_check_timeout: Seconds,
    /// What `--boot-policy default` stands for.
    pub(crate) mb_refstate: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Self {
            state_dir: PathBuf::from("/var/lib/troth"),
            verifier_ip: String::from("127.0.0.1"),
            verifier_port: 8881,
            verifier_tls_name: None,
            registrar_ip: String::from("127.0.0.1"),
            registrar_port: 8891,
            registrar_tls_name: None,
            ca_dir: None,
            client_cert: None,
            client_key: None,
            client_key_password: Secret::default(),
            trusted_server_ca: Vec::new(),
            request_timeout: Seconds(Duration::from_secs(60)),
            max_retries: 5,
            retry_interval: Seconds(Duration::from_millis(500)),
            exponential_backoff: true,
            accept_tpm_hash_algs: names(&["sha256", "sha384", "sha512"]),
            accept_tpm_encryption_algs: names(&[
                "rsa2048", "rsa3072", "rsa4096", "ecc256", "ecc384", "ecc521",
            ]),
            accept_tpm_signing_algs: names(&["rsassa", "rsapss", "ecdsa"]),
            require_ek_cert: true,
            tpm_cert_store: None,
            ek_check_script: PathBuf::new(),
            ek_check_timeout: Seconds(Duration::from_secs(60)),
            mb_refstate: None,
        }
    }
}

impl Config {
    /// `trothctl.toml`, `TROTH_CTL_...`, `troth.ctl....`.
    const COMPONENT: Component = Component {
        name: "trothctl",
        secrets: &["client_key_password"],
        keylime: &[&keylime::TENANT],
        from_unit: &[],
    };

    /// The files, the environment, and above them the options of the command line.
    pub(crate) fn load(global: &Global) -> Result<Self, Error> {
        let place = Place {
            file: global.config.clone(),
            root: None,
        };
        let mut config: Self = config::load(&Self::COMPONENT, &place)?.report();
        if let Some(verifier) = &global.verifier {
            config.verifier_ip.clone_from(&verifier.host);
            config.verifier_port = verifier.port;
        }
        if let Some(registrar) = &global.registrar {
            config.registrar_ip.clone_from(&registrar.host);
            config.registrar_port = registrar.port;
        }
        if let Some(ca_dir) = &global.ca_dir {
            // Whose directory is named on the command line is meant as a whole.
            config.ca_dir = Some(ca_dir.clone());
            config.client_cert = None;
            config.client_key = None;
            config.trusted_server_ca.clear();
        }
        Ok(config)
    }

    /// All options as [`Config::load`] finds them; files are looked for below `root`.
    pub(crate) fn show(global: &Global, root: Option<&Path>) -> Result<Shown, Error> {
        let place = Place {
            file: global.config.clone(),
            root: root.map(Path::to_owned),
        };
        let mut shown = config::show::<Self>(&Self::COMPONENT, &place)?;
        show_config::above(&mut shown, global);
        Ok(shown)
    }

    /// The verifier's address.
    pub(crate) fn verifier(&self) -> Result<Endpoint, Error> {
        endpoint("verifier_ip", &self.verifier_ip, self.verifier_port)
    }

    /// The registrar's address.
    pub(crate) fn registrar(&self) -> Result<Endpoint, Error> {
        endpoint("registrar_ip", &self.registrar_ip, self.registrar_port)
    }

    /// The CA directory that applies.
    pub(crate) fn ca_dir(&self) -> PathBuf {
        self.ca_dir
            .clone()
            .unwrap_or_else(|| self.state_dir.join("cv_ca"))
    }

    /// The operator's certificate that applies.
    pub(crate) fn client_cert(&self) -> PathBuf {
        self.in_ca_dir(self.client_cert.as_deref(), "client-cert.crt")
    }

    /// The private key that applies.
    pub(crate) fn client_key(&self) -> PathBuf {
        self.in_ca_dir(self.client_key.as_deref(), "client-private.pem")
    }

    /// The CA certificates that apply.
    pub(crate) fn trusted_server_ca(&self) -> Vec<PathBuf> {
        if self.trusted_server_ca.is_empty() {
            vec![self.ca_dir().join("cacert.crt")]
        } else {
            self.trusted_server_ca.clone()
        }
    }

    /// The options of the command line that are about the EK.
    #[must_use]
    pub(crate) fn with_ek(&self, args: &EkArgs) -> Self {
        let mut config = self.clone();
        if let Some(require) = args.require_ek_cert {
            config.require_ek_cert = require;
        }
        if let Some(store) = &args.tpm_cert_store {
            config.tpm_cert_store = Some(store.clone());
        }
        if let Some(script) = &args.ek_check_script {
            config.ek_check_script.clone_from(script);
        }
        config
    }

    /// The directory of TPM vendors' CAs that applies.
    pub(crate) fn tpm_cert_store(&self) -> PathBuf {
        self.tpm_cert_store
            .clone()
            .unwrap_or_else(|| self.state_dir.join("tpm_cert_store"))
    }

    /// The program that checks EKs, as an absolute path or below the state directory.
    pub(crate) fn ek_check_script(&self) -> Option<PathBuf> {
        let script = &self.ek_check_script;
        (!script.as_os_str().is_empty()).then(|| self.state_dir.join(script))
    }

    /// The pauses before an agent is asked again.
    pub(crate) fn pauses(&self) -> impl Iterator<Item = Duration> + use<> {
        let Seconds(first) = self.retry_interval;
        let backoff = self.exponential_backoff;
        (0..self.max_retries).map(move |retry| {
            if backoff {
                first.saturating_mul(1_u32.checked_shl(retry).unwrap_or(u32::MAX))
            } else {
                first
            }
            .min(LONGEST_PAUSE.max(first))
        })
    }

    fn in_ca_dir(&self, configured: Option<&Path>, name: &str) -> PathBuf {
        configured.map_or_else(|| self.ca_dir().join(name), Path::to_owned)
    }
}

fn endpoint(option: &'static str, host: &str, port: u16) -> Result<Endpoint, Error> {
    Endpoint::new(host, port).map_err(|reason| Error::Option { option, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global() -> Global {
        Global {
            verifier: None,
            registrar: None,
            ca_dir: None,
            config: None,
            json: false,
        }
    }

    fn load(text: &str, global: Global) -> Result<Config, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trothctl.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&Global {
            config: Some(path),
            ..global
        })
    }

    /// The units make the CA where the file that is installed with them says.
    #[test]
    fn the_vendors_file_names_the_directory_of_the_units() {
        let vendor = include_str!("../../units/lib/troth/trothctl.toml");
        let unit = include_str!("../../units/lib/systemd/system/troth-ca-init.service");
        let directory = load(vendor, global()).unwrap().ca_dir();
        let name = directory.strip_prefix("/var/lib").unwrap();
        let made = unit
            .lines()
            .find_map(|line| line.strip_prefix("StateDirectory="));
        assert_eq!(made, name.to_str());
    }

    #[test]
    fn the_command_line_is_above_the_file() {
        let text = "verifier_ip = '2001:db8::1'\nregistrar_ip = 'registrar'\n\
                    registrar_port = 99\nclient_cert = '/c'\nca_dir = '/file'\n";
        let config = load(text, global()).unwrap();
        assert_eq!(config.verifier().unwrap().to_string(), "[2001:db8::1]:8881");
        assert_eq!(config.registrar().unwrap().to_string(), "registrar:99");
        assert_eq!(config.client_cert(), Path::new("/c"));
        assert_eq!(config.client_key(), Path::new("/file/client-private.pem"));
        assert_eq!(config.trusted_server_ca(), [Path::new("/file/cacert.crt")]);

        let above = Global {
            verifier: Some(Endpoint::parse("v:1", 2).unwrap()),
            ca_dir: Some(PathBuf::from("/flag")),
            ..global()
        };
        let config = load(text, above).unwrap();
        assert_eq!(config.verifier().unwrap().to_string(), "v:1");
        assert_eq!(config.client_cert(), Path::new("/flag/client-cert.crt"));
    }

    #[test]
    fn a_host_that_is_none_names_its_option() {
        let config = load("verifier_ip = 'https://v'", global()).unwrap();
        let error = config.verifier().unwrap_err().to_string();
        assert!(error.contains("verifier_ip"), "{error}");
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let pauses = |text: &str| -> Vec<u64> {
            let config = load(text, global()).unwrap();
            config.pauses().map(|pause| pause.as_secs()).collect()
        };
        // As Keylime's tenant waits with these.
        let keylime = "retry_interval = 2\nmax_retries = 5";
        assert_eq!(pauses(keylime), [2, 4, 8, 16, 32]);
        let linear = "retry_interval = 2\nmax_retries = 3\nexponential_backoff = false";
        assert_eq!(pauses(linear), [2, 2, 2]);
        let long = pauses("retry_interval = 1\nmax_retries = 100");
        assert_eq!((long.len(), long[99]), (100, 60));
        assert!(pauses("max_retries = 0").is_empty());
    }
}
