use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::Rng;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
    SerialNumber,
};
use troth_core::identity::AgentId;
use troth_daemon::{
    config::Secret,
    private_key::{PrivateKeyError, decrypt_pem},
    tls::{Identity, TlsError},
};
use x509_cert::{
    Certificate,
    der::{
        Decode,
        oid::db::{
            rfc4519::CN,
            rfc5280::{ID_CE_BASIC_CONSTRAINTS, ID_CE_SUBJECT_ALT_NAME},
        },
    },
};
use zeroize::Zeroizing;

use super::state::{self, StateError};
use crate::{messages, pem};

/// Default name of the certificate's file in the state directory.
pub const CERTIFICATE_FILE: &str = "server-cert.crt";
/// Default name of the key's file in the state directory.
pub const KEY_FILE: &str = "server-private.pem";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Validity of a new certificate.
const LIFETIME: Duration = Duration::from_secs(365 * DAY.as_secs());
/// A certificate is renewed, or its administrator warned, when so much time is left at most.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * DAY.as_secs());

/// Where certificate and key are.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PKCS#8 PEM.
    pub key: PathBuf,
    /// Of the key, if it is encrypted.
    pub password: Secret,
}

impl Files {
    /// The files' content cannot be used.
    pub fn unusable(&self, source: TlsError) -> MtlsError {
        MtlsError::Unusable {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        }
    }
}

/// The agent's TLS server identity, and the text that the registrar gets.
#[derive(Debug)]
pub struct ServerIdentity {
    /// Certificate and key for the listener.
    pub tls: Identity,
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// When it ends; `None` if that cannot be read.
    pub term: Option<Term>,
}

/// Who made a certificate: that decides who replaces it, and when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Maker {
    /// This agent: renewed before it ends, and when id or contact address change.
    Us,
    /// Keylime's agent, whose place this one took: kept until it ends, as Keylime's verifier knows
    /// the host by this very certificate. Then it is renewed.
    Keylime,
    /// Anybody else, who alone can replace it.
    Administrator,
}

/// When a certificate is good, and who renews it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Term {
    /// Who made it.
    pub maker: Maker,
    not_before: SystemTime,
    not_after: SystemTime,
    life: Duration,
}

impl Term {
    /// Time until the agent renews the certificate: 30 days, or a third of its life if that is
    /// shorter, before the end of its own, and at once if it was made while the clock was ahead;
    /// the end of Keylime's. `None`: it never does.
    pub fn renewal_due_in(&self, now: SystemTime) -> Option<Duration> {
        let before = match self.maker {
            Maker::Us if now < self.not_before => return Some(Duration::ZERO),
            Maker::Us => RENEW_BEFORE.min(self.life / 3),
            Maker::Keylime => Duration::ZERO,
            Maker::Administrator => return None,
        };
        Some(self.left(now).saturating_sub(before))
    }

    /// Does the certificate end within 30 days?
    pub fn ends_soon(&self, now: SystemTime) -> bool {
        self.left(now) < RENEW_BEFORE
    }

    /// Time until the certificate ends.
    pub fn left(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

/// Why there is no TLS identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MtlsError {
    /// A file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The certificate or key does not parse, or they do not belong together.
    #[error("{} and {}: {source}", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: TlsError,
    },
    /// The key is encrypted and does not open.
    #[error("{}: {source} (server_key_password)", key.display())]
    Encrypted {
        /// The key's file.
        key: PathBuf,
        /// The reason.
        source: PrivateKeyError,
    },
    /// One of the two files is missing.
    #[error(
        "{} is missing; restore it, or remove {} as well to have both made at the next start",
        missing.display(),
        other.display()
    )]
    Half {
        /// The missing file.
        missing: PathBuf,
        /// The file that belongs to it.
        other: PathBuf,
    },
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// [`load`], or makes certificate and key when there is neither.
pub fn load_or_create(
    files: &Files,
    id: &AgentId,
    contact: &str,
) -> Result<ServerIdentity, MtlsError> {
    if state::read(&files.certificate)?.is_none() && state::read(&files.key)?.is_none() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key_pem = Zeroizing::new(pair.serialize_pem().into_bytes());
        let text = issue(&pair, id, contact)?;
        state::write(&files.key, &key_pem)?;
        if let Err(error) = state::write(&files.certificate, text.as_bytes()) {
            // Nobody knows the key yet, and alone it would look like half of a lost pair.
            let _ = std::fs::remove_file(&files.key);
            return Err(error.into());
        }
    }
    load(files, id, contact)
}

/// Reads certificate and key. A certificate that the agent made is renewed with the same key when
/// it is about to end, or names another agent or address; Keylime's, when it has ended.
pub fn load(files: &Files, id: &AgentId, contact: &str) -> Result<ServerIdentity, MtlsError> {
    let missing = |missing: &Path, other: &Path| MtlsError::Half {
        missing: missing.to_owned(),
        other: other.to_owned(),
    };
    let certificate =
        state::read(&files.certificate)?.ok_or_else(|| missing(&files.certificate, &files.key))?;
    let key_pem = state::read(&files.key)?
        .map(Zeroizing::new)
        .ok_or_else(|| missing(&files.key, &files.certificate))?;
    let key_pem =
        decrypt_pem(&key_pem, &files.password).map_err(|source| MtlsError::Encrypted {
            key: files.key.clone(),
            source,
        })?;
    let mut certificate_pem = String::from_utf8_lossy(&certificate).into_owned();
    if !fits(&certificate_pem, id, contact) {
        let pair = KeyPair::from_pem(&String::from_utf8_lossy(&key_pem))?;
        certificate_pem = issue(&pair, id, contact)?;
        tracing::info!(
            message_id = messages::HOST_CERTIFICATE_RENEWED,
            node_id = %id,
            path = %files.certificate.display(),
            "renewing the TLS certificate {}",
            files.certificate.display()
        );
        state::write(&files.certificate, certificate_pem.as_bytes())?;
    }
    Ok(ServerIdentity {
        tls: Identity::from_pem(certificate_pem.as_bytes(), &key_pem)
            .map_err(|source| files.unusable(source))?,
        term: parse(&certificate_pem).map(|certificate| term(&certificate)),
        certificate_pem,
    })
}

/// The registrar and verifiers trust this very certificate, so it carries no key usage: OpenSSL
/// takes a self-signed certificate with a key usage that lacks keyCertSign for one whose issuer is
/// missing.
fn issue(key: &KeyPair, id: &AgentId, contact: &str) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, id.as_str());
    params.distinguished_name = name;
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = alternative_names(contact)?;
    // Positive and never zero: RFC 5280, 4.1.2.2.
    let mut serial = [0; 16];
    rand::rng().fill_bytes(&mut serial);
    serial[0] = serial[0] & 0x7F | 0x40;
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_secs());
    params.not_after = params.not_before + LIFETIME;
    Ok(pem::encode("CERTIFICATE", params.self_signed(key)?.der()))
}

fn alternative_names(contact: &str) -> Result<Vec<SanType>, rcgen::Error> {
    let mut names = vec![
        SanType::DnsName("localhost".try_into()?),
        SanType::IpAddress(IpAddr::from([127, 0, 0, 1])),
        SanType::IpAddress(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])),
    ];
    let own = match contact.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(contact.try_into()?),
    };
    if !names.contains(&own) {
        names.push(own);
    }
    Ok(names)
}

/// May this certificate go on being used?
fn fits(text: &str, id: &AgentId, contact: &str) -> bool {
    let Some(certificate) = parse(text) else {
        // Left to the TLS stack, which says what is wrong with it.
        return true;
    };
    let term = term(&certificate);
    if term.renewal_due_in(SystemTime::now()) == Some(Duration::ZERO) {
        return false;
    }
    let named = certificate.tbs_certificate().subject().to_string() == format!("CN={id}");
    let reachable = has_name(&certificate, &name_bytes(contact));
    term.maker != Maker::Us || (named && reachable)
}

fn parse(text: &str) -> Option<Certificate> {
    Certificate::from_der(&pem::decode("CERTIFICATE", text)?).ok()
}

fn term(certificate: &Certificate) -> Term {
    let body = certificate.tbs_certificate();
    let validity = body.validity();
    let not_before = validity.not_before.to_system_time();
    let not_after = validity.not_after.to_system_time();
    let life = not_after.duration_since(not_before);
    // What an agent makes is self-issued to a commonName alone, for the host itself besides its
    // contact address. Keylime's has no extension but those names.
    let subject = body.subject();
    let self_made = subject == body.issuer()
        && subject.iter().map(|attribute| attribute.oid).eq([CN])
        && ["localhost", "127.0.0.1", "::1"]
            .iter()
            .all(|name| has_name(certificate, &name_bytes(name)));
    let mut extensions = body.extensions().into_iter().flatten();
    let maker = if !self_made {
        Maker::Administrator
    } else if extensions.any(|extension| extension.extn_id == ID_CE_BASIC_CONSTRAINTS) {
        Maker::Us
    } else {
        Maker::Keylime
    };
    Term {
        maker,
        not_before,
        not_after,
        life: life.unwrap_or_default(),
    }
}

fn has_name(certificate: &Certificate, name: &[u8]) -> bool {
    let extensions = certificate.tbs_certificate().extensions();
    extensions
        .into_iter()
        .flatten()
        .filter(|extension| extension.extn_id == ID_CE_SUBJECT_ALT_NAME)
        .any(|extension| contains(extension.extn_value.as_bytes(), name))
}

/// How an address or name stands in a subjectAltName: tag, length, value (RFC 5280, 4.2.1.6).
fn name_bytes(name: &str) -> Vec<u8> {
    const DNS_NAME: u8 = 0x82;
    const IP_ADDRESS: u8 = 0x87;
    let (tag, value) = match name.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => (IP_ADDRESS, address.octets().to_vec()),
        Ok(IpAddr::V6(address)) => (IP_ADDRESS, address.octets().to_vec()),
        Err(_) => (DNS_NAME, name.as_bytes().to_vec()),
    };
    let mut bytes = vec![tag];
    match u8::try_from(value.len()) {
        Ok(length @ 0..0x80) => bytes.push(length),
        // DNS names end at 253 bytes.
        length => bytes.extend([0x81, length.unwrap_or(u8::MAX)]),
    }
    bytes.extend(value);
    bytes
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len().max(1))
        .any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(directory: &Path, id: &str, contact: &str) -> ServerIdentity {
        let id = AgentId::new(id).unwrap();
        load_or_create(&files(directory), &id, contact).unwrap()
    }

    fn files(directory: &Path) -> Files {
        Files {
            certificate: directory.join(CERTIFICATE_FILE),
            key: directory.join(KEY_FILE),
            password: Secret::default(),
        }
    }

    #[test]
    fn the_certificate_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let one = make(directory.path(), "agent", "192.0.2.1");
        assert_eq!(
            make(directory.path(), "agent", "192.0.2.1").certificate_pem,
            one.certificate_pem
        );
    }

    #[test]
    fn another_id_or_address_gets_a_new_certificate_with_the_same_key() {
        let directory = tempfile::tempdir().unwrap();
        let one = make(directory.path(), "agent", "192.0.2.1");
        let two = make(directory.path(), "agent", "host.example");
        let three = make(directory.path(), "other", "host.example");
        assert_ne!(one.certificate_pem, two.certificate_pem);
        assert_ne!(two.certificate_pem, three.certificate_pem);
        let spki = |text: &str| {
            let der = pem::decode("CERTIFICATE", text).unwrap();
            let certificate = Certificate::from_der(&der).unwrap();
            certificate
                .tbs_certificate()
                .subject_public_key_info()
                .to_owned()
        };
        assert_eq!(spki(&one.certificate_pem), spki(&three.certificate_pem));
    }

    #[test]
    fn the_certificate_satisfies_rfc_5280() {
        let directory = tempfile::tempdir().unwrap();
        let made = make(directory.path(), "agent-7", "host.example");
        let der = pem::decode("CERTIFICATE", &made.certificate_pem).unwrap();
        let certificate = Certificate::from_der(&der).unwrap();
        let body = certificate.tbs_certificate();
        assert_eq!(body.subject().to_string(), "CN=agent-7");
        assert_eq!(body.subject(), body.issuer());
        let serial = body.serial_number().as_bytes();
        assert!(serial.len() <= 20 && serial[0] & 0x80 == 0 && serial.iter().any(|&b| b != 0));
        let oids: Vec<String> = body
            .extensions()
            .unwrap()
            .iter()
            .map(|e| e.extn_id.to_string())
            .collect();
        for wanted in ["2.5.29.14", "2.5.29.17", "2.5.29.19"] {
            assert!(oids.iter().any(|oid| oid == wanted), "{wanted} in {oids:?}");
        }
        assert!(!oids.iter().any(|oid| oid == "2.5.29.15"), "key usage");
    }

    #[test]
    fn an_encrypted_key_opens_with_its_password_only() {
        let directory = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/tests/fixtures");
        let key = std::fs::read_to_string(fixtures.join("plain-key.pem")).unwrap();
        let key = KeyPair::from_pem(&key).unwrap();
        let mut files = files(directory.path());
        std::fs::copy(fixtures.join("encrypted-key.pem"), &files.key).unwrap();
        let supplied = certificate(&key, DAY, DAY * 365, |_| ());
        std::fs::write(&files.certificate, &supplied).unwrap();

        let id = AgentId::new("agent").unwrap();
        let error = load_or_create(&files, &id, "192.0.2.1").unwrap_err();
        assert!(error.to_string().contains("server_key_password"), "{error}");
        files.password = "correct".into();
        let opened = load_or_create(&files, &id, "192.0.2.1").unwrap();
        assert_eq!(opened.certificate_pem, supplied);
    }

    #[test]
    fn one_that_is_not_valid_yet_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let key = KeyPair::generate().unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        let ahead = certificate(&key, Duration::ZERO, DAY * 365, |params| {
            params.not_before += DAY;
            params.not_after += DAY;
        });
        std::fs::write(&files.certificate, &ahead).unwrap();
        let now = make(directory.path(), "agent", "192.0.2.1");
        assert_ne!(now.certificate_pem, ahead);
        let term = now.term.unwrap();
        assert!(term.renewal_due_in(SystemTime::now()) > Some(Duration::ZERO));
    }

    #[test]
    fn half_of_the_pair_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path(), "agent", "192.0.2.1");
        let files = files(directory.path());
        std::fs::remove_file(&files.key).unwrap();
        let id = AgentId::new("agent").unwrap();
        let error = load_or_create(&files, &id, "192.0.2.1").unwrap_err();
        assert!(matches!(error, MtlsError::Half { .. }), "{error}");
    }

    /// A certificate of `key` that began `age` ago and lives for `life`.
    fn certificate(
        key: &KeyPair,
        age: Duration,
        life: Duration,
        change: impl FnOnce(&mut CertificateParams),
    ) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "agent");
        params.subject_alt_names = alternative_names("192.0.2.1").unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + (now - age);
        params.not_after = params.not_before + life;
        params.is_ca = IsCa::ExplicitNoCa;
        change(&mut params);
        params.self_signed(key).unwrap().pem()
    }

    #[test]
    fn it_is_renewed_30_days_before_its_end_or_when_two_thirds_are_over() {
        for (age, life, renewed) in [
            (334, 365, false),
            (336, 365, true),
            (366, 365, true),
            (39, 60, false),
            (41, 60, true),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let first = make(directory.path(), "agent", "192.0.2.1");
            let files = files(directory.path());
            let key = std::fs::read_to_string(&files.key).unwrap();
            let key = KeyPair::from_pem(&key).unwrap();
            let old = certificate(&key, DAY * age, DAY * life, |_| ());
            std::fs::write(&files.certificate, &old).unwrap();
            let now = make(directory.path(), "agent", "192.0.2.1");
            assert_eq!(now.certificate_pem != old, renewed, "day {age} of {life}");
            let term = now.term.unwrap();
            assert_eq!(term.maker, Maker::Us);
            assert!(term.renewal_due_in(SystemTime::now()) > Some(Duration::ZERO));
            assert_ne!(first.certificate_pem, now.certificate_pem);
        }
    }

    /// Keylime's verifier knows the host by it; the guide says that nothing changes there.
    #[test]
    fn what_keylimes_agent_made_is_kept_until_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let key = KeyPair::generate().unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        for (age, kept) in [(1, true), (364, true), (366, false)] {
            let old = certificate(&key, DAY * age, DAY * 365, |params| {
                params.is_ca = IsCa::NoCa;
                params.serial_number = Some(SerialNumber::from(0));
            });
            std::fs::write(&files.certificate, &old).unwrap();
            let now = make(directory.path(), "agent", "host.example");
            assert_eq!(now.certificate_pem == old, kept, "day {age}");
            let term = now.term.unwrap();
            assert_eq!(term.maker == Maker::Keylime, kept, "day {age}");
            assert!(term.renewal_due_in(SystemTime::now()) > Some(Duration::ZERO));
        }
    }

    #[test]
    fn what_an_administrator_made_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let key = KeyPair::generate().unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        let changes: [fn(&mut CertificateParams); 2] = [
            |params| params.subject_alt_names.truncate(1),
            |params| {
                let name = &mut params.distinguished_name;
                name.push(DnType::OrganizationName, "Example");
            },
        ];
        for change in changes {
            let supplied = certificate(&key, DAY * 360, DAY * 365, change);
            std::fs::write(&files.certificate, &supplied).unwrap();
            let loaded = make(directory.path(), "other", "host.example");
            assert_eq!(loaded.certificate_pem, supplied);
            let term = loaded.term.unwrap();
            assert_eq!(term.renewal_due_in(SystemTime::now()), None);
            assert!(term.ends_soon(SystemTime::now()));
        }
    }

    #[test]
    fn a_long_contact_name_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let label = "a".repeat(60);
        let name = format!("{label}.{label}.{label}.example");
        let one = make(directory.path(), "agent", &name);
        let two = make(directory.path(), "agent", &name);
        assert_eq!(one.certificate_pem, two.certificate_pem);
    }
}
