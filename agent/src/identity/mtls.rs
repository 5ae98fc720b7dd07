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
use troth_daemon::tls::{Identity, TlsError};
use x509_cert::{
    Certificate,
    der::{Decode, Encode, oid::db::rfc5280::ID_CE_SUBJECT_ALT_NAME},
};
use zeroize::Zeroizing;

use super::state::{self, StateError};
use crate::pem;

/// Default name of the certificate's file in the state directory.
pub const CERTIFICATE_FILE: &str = "server-cert.crt";
/// Default name of the key's file in the state directory.
pub const KEY_FILE: &str = "server-private.pem";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Validity of a new certificate.
const LIFETIME: Duration = Duration::from_secs(365 * DAY.as_secs());
/// A certificate with less time left is replaced at start.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * DAY.as_secs());

/// The agent's TLS server identity, and the text that the registrar gets.
#[derive(Debug)]
pub struct ServerIdentity {
    /// Certificate and key for the listener.
    pub tls: Identity,
    /// The certificate, PEM.
    pub certificate_pem: String,
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
    /// One of the two files is missing.
    #[error("{} is missing, but {} exists; restore it, or remove both to have them made",
            missing.display(), present.display())]
    Half {
        /// The missing file.
        missing: PathBuf,
        /// The file that exists.
        present: PathBuf,
    },
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// Reads the certificate and key, or makes them. A self-made certificate is renewed with the same
/// key when it is about to expire, or names another agent or address.
pub fn load_or_create(
    certificate: &Path,
    key: &Path,
    id: &AgentId,
    contact: &str,
) -> Result<ServerIdentity, MtlsError> {
    let found = (
        state::read(certificate)?,
        state::read(key)?.map(Zeroizing::new),
    );
    let (certificate_pem, key_pem) = match found {
        (Some(text), Some(key_pem)) if fits(&text, id, contact) => {
            (String::from_utf8_lossy(&text).into_owned(), key_pem)
        }
        (Some(_), Some(key_pem)) => {
            let pair = KeyPair::from_pem(&String::from_utf8_lossy(&key_pem))?;
            let text = issue(&pair, id, contact)?;
            tracing::info!("renewing the TLS certificate {}", certificate.display());
            state::write(certificate, text.as_bytes())?;
            (text, key_pem)
        }
        (None, None) => {
            let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let key_pem = Zeroizing::new(pair.serialize_pem().into_bytes());
            let text = issue(&pair, id, contact)?;
            state::write(key, &key_pem)?;
            state::write(certificate, text.as_bytes())?;
            (text, key_pem)
        }
        (None, Some(_)) => {
            let (missing, present) = (certificate.to_owned(), key.to_owned());
            return Err(MtlsError::Half { missing, present });
        }
        (Some(_), None) => {
            let (missing, present) = (key.to_owned(), certificate.to_owned());
            return Err(MtlsError::Half { missing, present });
        }
    };
    let tls = Identity::from_pem(certificate_pem.as_bytes(), &key_pem).map_err(|source| {
        MtlsError::Unusable {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        }
    })?;
    Ok(ServerIdentity {
        tls,
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

/// May this certificate go on being used? One that somebody else issued always may: only its
/// issuer can replace it.
fn fits(text: &[u8], id: &AgentId, contact: &str) -> bool {
    let der = pem::decode("CERTIFICATE", &String::from_utf8_lossy(text));
    let Some(certificate) = der.and_then(|der| Certificate::from_der(&der).ok()) else {
        // Left to the TLS stack, which says what is wrong with it.
        return true;
    };
    let body = certificate.tbs_certificate();
    let left = body
        .validity()
        .not_after
        .to_system_time()
        .duration_since(SystemTime::now());
    let expiring = left.unwrap_or_default() < RENEW_BEFORE;
    if body.subject() != body.issuer() {
        if expiring {
            tracing::warn!("the TLS certificate expires in less than 30 days, or has expired");
        }
        return true;
    }
    let named = body.subject().to_string() == format!("CN={id}");
    let reachable = body
        .extensions()
        .into_iter()
        .flatten()
        .filter(|extension| extension.extn_id == ID_CE_SUBJECT_ALT_NAME)
        .filter_map(|extension| extension.extn_value.to_der().ok())
        .any(|value| contains(&value, &contact_bytes(contact)));
    named && reachable && !expiring
}

/// How `contact` stands in a subjectAltName.
fn contact_bytes(contact: &str) -> Vec<u8> {
    match contact.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.octets().to_vec(),
        Ok(IpAddr::V6(address)) => address.octets().to_vec(),
        Err(_) => contact.as_bytes().to_vec(),
    }
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
        let (certificate, key) = (directory.join(CERTIFICATE_FILE), directory.join(KEY_FILE));
        load_or_create(&certificate, &key, &id, contact).unwrap()
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
                .to_der()
                .unwrap()
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
    fn half_of_the_pair_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path(), "agent", "192.0.2.1");
        let (certificate, key) = (
            directory.path().join(CERTIFICATE_FILE),
            directory.path().join(KEY_FILE),
        );
        std::fs::remove_file(&key).unwrap();
        let id = AgentId::new("agent").unwrap();
        let error = load_or_create(&certificate, &key, &id, "192.0.2.1").unwrap_err();
        assert!(matches!(error, MtlsError::Half { .. }), "{error}");
    }
}
