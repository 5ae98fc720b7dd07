//! What the options mean together; combinations that cannot work.

use std::{
    net::{IpAddr, ToSocketAddrs, UdpSocket},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer};
use troth_core::{
    identity::{AgentId, IdentityError},
    tpm::{HashAlgorithm, SignatureScheme},
};
use troth_daemon::{
    config::Secret,
    tls::{RevocationError, RevocationFiles},
};
use zeroize::Zeroizing;

use super::Config;
use crate::{
    http::ApiVersion,
    identity::agent_data::{self, Candidate},
    tpm::{AkTemplate, Endorsement, KeyKind},
};

/// A configuration that cannot work: which option, and what would.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidConfig {
    /// An option's value is not one of those that exist.
    #[error("{option} = {value:?} is not known; {expected}")]
    Value {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is possible.
        expected: &'static str,
    },
    /// A scheme that keys of this kind do not sign with.
    #[error(
        "tpm_signing_alg = {scheme:?} does not fit tpm_encryption_alg = {kind:?}; leave \
             tpm_signing_alg out to get {fitting}"
    )]
    Scheme {
        /// The scheme.
        scheme: &'static str,
        /// The kind of key.
        kind: &'static str,
        /// The usual scheme of that kind.
        fitting: &'static str,
    },
    /// The password cannot be one. Its text is not shown.
    #[error("{option}: {reason}")]
    Password {
        /// The option.
        option: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// A client CA file cannot be used.
    #[error("trusted_client_ca: {reason}; copy the verifier's CA certificate (cacert.crt) there")]
    ClientCa {
        /// The file, and what is wrong with it.
        reason: String,
    },
    /// A list of revoked clients cannot be used.
    #[error("client_crl: {0}")]
    ClientCrl(#[from] RevocationError),
    /// The registrar's CA file cannot be used.
    #[error("registrar_tls_ca: {reason}; copy the registrar's CA certificate there")]
    RegistrarCa {
        /// The file, and what is wrong with it.
        reason: String,
    },
    /// An agent id that cannot be one.
    #[error("uuid: {0}")]
    Uuid(#[from] IdentityError),
    /// An unspecified address is nobody's contact address.
    #[error(
        "contact_ip = {0:?} is no address that a verifier can connect to; set it to this \
             host's name or address"
    )]
    UnspecifiedContact(String),
    /// No contact address was given and none can be found.
    #[error("cannot tell which address verifiers reach this host at ({0}); set contact_ip")]
    NoContact(String),
}

impl Config {
    /// The AK to make, and the EK to make it under.
    pub fn ak_template(&self) -> Result<AkTemplate, InvalidConfig> {
        let kind =
            KeyKind::from_name(&self.tpm_encryption_alg).ok_or_else(|| InvalidConfig::Value {
                option: "tpm_encryption_alg",
                value: self.tpm_encryption_alg.clone(),
                expected: "EK templates exist for rsa2048, rsa3072, rsa4096, ecc256, ecc384 and \
                           ecc521",
            })?;
        let hash =
            HashAlgorithm::from_name(&self.tpm_hash_alg).ok_or_else(|| InvalidConfig::Value {
                option: "tpm_hash_alg",
                value: self.tpm_hash_alg.clone(),
                expected: "use sha256, sha384, sha512 or sha1",
            })?;
        let scheme = match self.tpm_signing_alg.as_deref() {
            None => kind.default_scheme(),
            Some("rsassa") => SignatureScheme::RsaSsa,
            Some("rsapss") => SignatureScheme::RsaPss,
            Some("ecdsa") => SignatureScheme::Ecdsa,
            Some(other) => {
                return Err(InvalidConfig::Value {
                    option: "tpm_signing_alg",
                    value: other.to_owned(),
                    expected: "use rsassa, rsapss or ecdsa",
                });
            }
        };
        if kind.is_rsa() == (scheme == SignatureScheme::Ecdsa) {
            return Err(InvalidConfig::Scheme {
                scheme: scheme.name(),
                kind: kind.name(),
                fitting: kind.default_scheme().name(),
            });
        }
        Ok(AkTemplate { kind, hash, scheme })
    }

    /// The endorsement hierarchy: persistent EK and password.
    pub fn endorsement(&self) -> Result<Endorsement, InvalidConfig> {
        Ok(Endorsement {
            ek_handle: persistent("ek_handle", self.ek_handle.as_deref())?,
            auth: auth_value("tpm_ownerpassword", &self.tpm_ownerpassword)?,
        })
    }

    /// The API versions to serve and to register with, ascending.
    pub fn versions(&self) -> Result<Vec<ApiVersion>, InvalidConfig> {
        let Some(names) = &self.api_versions else {
            return Ok(ApiVersion::ALL.to_vec());
        };
        match names.as_slice() {
            [word] if word == "default" => return Ok(ApiVersion::ALL.to_vec()),
            [word] if word == "latest" => {
                return Ok(ApiVersion::ALL.last().copied().into_iter().collect());
            }
            _ => {}
        }
        let mut versions = Vec::new();
        for name in names {
            let version = name.parse().ok().filter(|v| ApiVersion::ALL.contains(v));
            versions.push(version.ok_or_else(|| InvalidConfig::Value {
                option: "api_versions",
                value: name.clone(),
                expected: "the versions are 2.1 to 2.6",
            })?);
        }
        versions.sort_unstable();
        versions.dedup();
        if versions.is_empty() {
            return Err(InvalidConfig::Value {
                option: "api_versions",
                value: String::new(),
                expected: "name at least one of 2.1 to 2.6, or leave the option out",
            });
        }
        Ok(versions)
    }

    /// Whether a start would find that options cannot work, without a look at any file, at the TPM or
    /// at the network.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        // The words for ids that are found out could be ids as well.
        AgentId::new(&self.uuid)?;
        self.ak_template()?;
        self.endorsement()?;
        self.versions()?;
        self.named_contact()?;
        self.device_identity()?;
        Ok(())
    }

    /// The contact address to announce.
    pub fn contact(&self) -> Result<String, InvalidConfig> {
        if let Some(named) = self.named_contact()? {
            return Ok(named);
        }
        let detected = address_towards(&self.registrar_ip, self.registrar_port())
            .map_err(|error| InvalidConfig::NoContact(error.to_string()))?;
        tracing::info!("contact_ip is not set; verifiers will be told {detected}");
        Ok(detected.to_string())
    }

    /// The contact address, where options say it.
    fn named_contact(&self) -> Result<Option<String>, InvalidConfig> {
        if let Some(contact) = &self.contact_ip {
            let bare = contact.strip_prefix('[').and_then(|c| c.strip_suffix(']'));
            let bare = bare.unwrap_or(contact);
            let unspecified = bare.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
            if unspecified || bare.is_empty() {
                return Err(InvalidConfig::UnspecifiedContact(contact.clone()));
            }
            return Ok(Some(bare.to_owned()));
        }
        Ok((!self.ip.is_unspecified()).then(|| self.ip.to_string()))
    }

    /// The registrar's port.
    pub fn registrar_port(&self) -> u16 {
        self.registrar_port
            .unwrap_or(if self.registrar_tls { 8891 } else { 8890 })
    }

    /// The registrar, `host:port`.
    pub fn registrar(&self) -> String {
        let (host, port) = (&self.registrar_ip, self.registrar_port());
        match host.contains(':') && !host.starts_with('[') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }
    }

    /// The first and the longest wait between registration attempts.
    pub fn backoff(&self) -> (Duration, Duration) {
        (
            Duration::from_millis(self.exponential_backoff_initial_delay.max(1)),
            Duration::from_millis(self.exponential_backoff_max_delay.max(1)),
        )
    }

    /// The files with the CA certificates of clients.
    pub fn client_ca_files(&self) -> Vec<PathBuf> {
        match &self.trusted_client_ca {
            Some(files) => files.iter().map(|file| self.state_dir.join(file)).collect(),
            None => vec![self.state_dir.join(CA_FILE)],
        }
    }

    /// The lists of clients that are revoked.
    pub fn client_crl_files(&self) -> RevocationFiles {
        let configured = self.client_crl.iter();
        let configured = configured.map(|file| self.state_dir.join(file)).collect();
        let authorities = self.client_ca_files();
        let mut directories: Vec<_> = authorities
            .iter()
            .filter_map(|file| file.parent())
            .collect();
        directories.sort_unstable();
        directories.dedup();
        RevocationFiles::new(configured, &directories)
    }

    /// Where an AK of Keylime's agent may be, in the order of preference.
    pub fn agent_data_files(&self) -> Vec<Candidate> {
        let candidate = |path: &Path, named| Candidate {
            path: self.state_dir.join(path),
            named,
        };
        match &self.agent_data_path {
            Some(none) if none.as_os_str().is_empty() => Vec::new(),
            Some(file) => vec![candidate(file, true)],
            None => [agent_data::FILE, agent_data::KEYLIME]
                .map(|file| candidate(Path::new(file), false))
                .into(),
        }
    }

    /// The file with the registrar's CA certificates.
    pub fn registrar_ca_file(&self) -> PathBuf {
        self.file(self.registrar_tls_ca.as_deref(), CA_FILE)
    }

    /// `configured`, or `name`; relative paths are in the state directory.
    pub fn file(&self, configured: Option<&Path>, name: &str) -> PathBuf {
        self.state_dir
            .join(configured.unwrap_or_else(|| Path::new(name)))
    }
}

/// Handles of persistent objects (TPM 2.0 Part 2, 7.2, TPM_HT_PERSISTENT).
const PERSISTENT: RangeInclusive<u32> = 0x8100_0000..=0x81FF_FFFF;

/// A list of words, or a single one.
pub(super) fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(Some(match Words::deserialize(from)? {
        Words::One(word) => vec![word],
        Words::Many(words) => words,
    }))
}

/// A persistent handle in hex; `None` for a key that is made from its template.
pub(super) fn persistent(
    option: &'static str,
    text: Option<&str>,
) -> Result<Option<u32>, InvalidConfig> {
    let text = match text {
        None | Some("" | "generate") => return Ok(None),
        Some(text) => text,
    };
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let handle = u32::from_str_radix(digits, 16).ok();
    let handle = handle.filter(|handle| PERSISTENT.contains(handle));
    handle.map(Some).ok_or_else(|| InvalidConfig::Value {
        option,
        value: text.to_owned(),
        expected: "use \"generate\" or a persistent handle, 0x81000000 to 0x81ffffff",
    })
}

/// The authValue that a password gives: its text, or the bytes after `hex:`.
pub(super) fn auth_value(
    option: &'static str,
    password: &Secret,
) -> Result<Zeroizing<Vec<u8>>, InvalidConfig> {
    let invalid = |reason| InvalidConfig::Password { option, reason };
    let password = password.expose();
    let auth = Zeroizing::new(match password.strip_prefix("hex:") {
        Some(digits) => {
            hex::decode(digits).map_err(|_| invalid("what follows hex: is not hexadecimal"))?
        }
        None => password.as_bytes().to_vec(),
    });
    if auth.len() > AUTH_LIMIT {
        return Err(invalid("longer than 64 bytes"));
    }
    Ok(auth)
}

/// Longest authValue in bytes: a digest of SHA-512 (TPM 2.0 Part 2, 10.4.5).
const AUTH_LIMIT: usize = 64;

/// Where the CA certificate of verifier and registrar is expected, in the state directory.
const CA_FILE: &str = "cv_ca/cacert.crt";

/// The address this host would use towards `host`. Nothing is sent.
fn address_towards(host: &str, port: u16) -> std::io::Result<IpAddr> {
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for target in (host, port).to_socket_addrs()? {
        let any = if target.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let found = UdpSocket::bind(any).and_then(|socket| {
            socket.connect(target)?;
            socket.local_addr()
        });
        match found {
            Ok(address) if !address.ip().is_unspecified() => return Ok(address.ip()),
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config::default();
        change(&mut config);
        config
    }

    #[test]
    fn the_scheme_follows_the_key() {
        let rsa = Config::default().ak_template().unwrap();
        assert_eq!(
            (rsa.kind, rsa.scheme),
            (KeyKind::Rsa2048, SignatureScheme::RsaSsa)
        );
        let ecc = with(|c| c.tpm_encryption_alg = "ecc384".into())
            .ak_template()
            .unwrap();
        assert_eq!(
            (ecc.kind, ecc.scheme),
            (KeyKind::EccP384, SignatureScheme::Ecdsa)
        );
    }

    #[test]
    fn a_scheme_that_the_key_cannot_do_is_refused_with_the_fitting_one() {
        let config = with(|c| {
            c.tpm_encryption_alg = "ecc".into();
            c.tpm_signing_alg = Some("rsassa".into());
        });
        let error = config.ak_template().unwrap_err().to_string();
        assert!(
            error.contains("ecdsa") && error.contains("ecc256"),
            "{error}"
        );
    }

    #[test]
    fn unknown_algorithms_are_named() {
        let error = with(|c| c.tpm_encryption_alg = "rsa1024".into())
            .ak_template()
            .unwrap_err();
        assert!(error.to_string().contains("rsa1024"));
        let error = with(|c| c.tpm_hash_alg = "md5".into())
            .ak_template()
            .unwrap_err();
        assert!(error.to_string().contains("md5"));
    }

    #[test]
    fn an_unspecified_address_is_never_announced() {
        for address in ["0.0.0.0", "::", "[::]", ""] {
            let config = with(|c| c.contact_ip = Some(address.into()));
            assert!(config.contact().is_err(), "{address}");
        }
        let config = with(|c| c.ip = IpAddr::from([0, 0, 0, 0]));
        assert_eq!(
            config.contact().unwrap(),
            "127.0.0.1",
            "the way to a local registrar"
        );
    }

    #[test]
    fn a_contact_address_may_be_a_name_or_of_either_family() {
        for (given, announced) in [
            ("host.example", "host.example"),
            ("192.0.2.7", "192.0.2.7"),
            ("[2001:db8::1]", "2001:db8::1"),
        ] {
            let config = with(|c| c.contact_ip = Some(given.into()));
            assert_eq!(config.contact().unwrap(), announced);
        }
    }

    #[test]
    fn a_check_tells_what_would_end_a_start() {
        Config::default().check().unwrap();
        for (option, config) in [
            ("uuid", with(|c| c.uuid = "no id".into())),
            ("tpm_hash_alg", with(|c| c.tpm_hash_alg = "sha7".into())),
            ("ek_handle", with(|c| c.ek_handle = Some("1".into()))),
            (
                "api_versions",
                with(|c| c.api_versions = Some(vec!["9".into()])),
            ),
            ("contact_ip", with(|c| c.contact_ip = Some("::".into()))),
            (
                "iak_idevid_template",
                with(|c| {
                    c.enable_iak_idevid = true;
                    c.iak_idevid_template = Some("H-9".into());
                }),
            ),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(option), "{error}");
        }
    }

    #[test]
    fn versions_are_sorted_and_checked() {
        let config = with(|c| c.api_versions = Some(vec!["2.6".into(), "2.1".into()]));
        let names: Vec<String> = config
            .versions()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["2.1", "2.6"]);
        for (word, wanted) in [
            ("default", &ApiVersion::ALL[..]),
            ("latest", &ApiVersion::ALL[5..]),
        ] {
            let config = with(|c| c.api_versions = Some(vec![word.into()]));
            assert_eq!(config.versions().unwrap(), wanted);
        }
        for bad in [
            vec!["2.7".to_owned()],
            vec!["x".into()],
            vec!["latest".into(), "2.1".into()],
            vec![],
        ] {
            assert!(with(|c| c.api_versions = Some(bad)).versions().is_err());
        }
    }

    #[test]
    fn one_version_needs_no_list() {
        let versions = |text: &str| {
            let text = format!(r#"{{"api_versions": {text}}}"#);
            let config: Result<Config, _> = serde_json::from_str(&text);
            config.map(|config| config.versions().unwrap())
        };
        assert_eq!(versions(r#""latest""#).unwrap(), [ApiVersion::v2(6)]);
        assert_eq!(versions(r#"["2.3"]"#).unwrap(), [ApiVersion::v2(3)]);
        assert!(versions("2.3").is_err());
    }

    #[test]
    fn keylimes_ak_is_looked_for_here_and_there_or_not_at_all() {
        let files = |path: Option<&str>| {
            let config = with(|c| c.agent_data_path = path.map(Into::into));
            let files = config.agent_data_files();
            assert!(files.iter().all(|file| file.named == path.is_some()));
            files.into_iter().map(|file| file.path).collect::<Vec<_>>()
        };
        let (ours, theirs) = (
            "/var/lib/troth/agent_data.json",
            "/var/lib/keylime/agent_data.json",
        );
        assert_eq!(files(None), [Path::new(ours), Path::new(theirs)]);
        assert_eq!(files(Some("agent_data.json")), [Path::new(ours)]);
        assert_eq!(files(Some("/old/data.json")), [Path::new("/old/data.json")]);
        assert!(files(Some("")).is_empty());
    }

    #[test]
    fn an_ek_handle_is_a_persistent_one() {
        let handle = |text: &str| with(|c| c.ek_handle = Some(text.into())).endorsement();
        for none in ["", "generate"] {
            assert_eq!(handle(none).unwrap().ek_handle, None);
        }
        for text in ["0x81010001", "81010001"] {
            assert_eq!(handle(text).unwrap().ek_handle, Some(0x8101_0001));
        }
        for bad in ["0x80000000", "0x82000000", "1", "ek", "0x181010001"] {
            let error = handle(bad).unwrap_err().to_string();
            assert!(
                error.contains(bad) && error.contains("0x81000000"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_password_is_text_or_hex_and_never_shown() {
        let password = |text: &str| with(|c| c.tpm_ownerpassword = text.into());
        let auth = |text: &str| password(text).endorsement().map(|e| e.auth.to_vec());
        assert_eq!(auth("").unwrap(), b"");
        assert_eq!(auth("s3cret").unwrap(), b"s3cret");
        assert_eq!(auth("hex:00ff").unwrap(), [0x00, 0xFF]);
        for bad in ["hex:s3cret".to_owned(), "s3cret".repeat(20)] {
            let error = auth(&bad).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("tpm_ownerpassword"), "{shown}");
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        let config = password("s3cret");
        let shown = format!("{config:?} {:?}", config.endorsement().unwrap());
        assert!(!shown.contains("s3cret"), "{shown}");
        let error = serde_json::from_str::<Config>(r#"{"tpm_ownerpassword": 73570}"#);
        let shown = error.unwrap_err().to_string();
        assert!(
            shown.contains("quotes") && !shown.contains("73570"),
            "{shown}"
        );
    }

    #[test]
    fn the_registrar_port_follows_the_transport() {
        assert_eq!(Config::default().registrar_port(), 8890);
        assert_eq!(with(|c| c.registrar_tls = true).registrar_port(), 8891);
        let config = with(|c| {
            c.registrar_tls = true;
            c.registrar_port = Some(1);
        });
        assert_eq!(config.registrar_port(), 1);
        assert_eq!(config.registrar(), "127.0.0.1:1");
        let config = with(|c| c.registrar_ip = "2001:db8::1".into());
        assert_eq!(config.registrar(), "[2001:db8::1]:8890");
    }
}
