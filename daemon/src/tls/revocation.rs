//! Certificate revocation lists (RFC 5280, section 5): read, and held against the CA that is said
//! to have issued them.

use std::{
    cmp::Reverse,
    collections::HashSet,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, CertificateRevocationListDer, UnixTime,
    pem::{self, PemObject},
};
use x509_cert::{
    Certificate,
    crl::{CertificateList, TbsCertList},
    der::{Decode, Encode, Reader, SliceReader, asn1::AnyRef},
};

use super::{is_pem, provider};

/// Bytes of one file: some 50,000 revoked certificates.
const MAX_FILE: u64 = 2 * 1024 * 1024;

/// Lists that CAs of ours have signed, of each CA the newest first.
///
/// Certificates are looked up here and not by webpki, which reads no list without extensions:
/// Keylime's CA makes such.
#[derive(Clone, Debug, Default)]
pub struct RevocationLists(Vec<RevocationList>);

#[derive(Clone, Debug)]
struct RevocationList {
    path: PathBuf,
    issuer: String,
    /// DER of the issuer's name.
    name: Vec<u8>,
    /// Serial numbers of revoked certificates.
    revoked: HashSet<Vec<u8>>,
    /// Unix seconds, as what follows.
    made: u64,
    next: Option<u64>,
}

impl RevocationLists {
    /// Reads PEM or DER files, and checks that each list was signed by one of `authorities`.
    pub fn load(
        paths: &[PathBuf],
        authorities: &[CertificateDer<'static>],
    ) -> Result<Self, RevocationError> {
        let mut found = Vec::new();
        for path in paths {
            let refused = |reason| RevocationError {
                path: path.clone(),
                reason,
            };
            let lists = parse(&read(path).map_err(refused)?).map_err(refused)?;
            for der in lists {
                found.push(check(path, &der, authorities).map_err(refused)?);
            }
        }
        // The first list of its CA is the one that counts.
        found.sort_by_key(|list| Reverse(list.made));
        Ok(Self(found))
    }

    /// What an operator should know: lists whose CA was to issue a new one by `now`.
    pub fn overdue(&self, now: UnixTime) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .filter(move |list| list.next.is_some_and(|next| next <= now.as_secs()))
            .map(|list| {
                format!(
                    "{}: the revocation list of {:?} is out of date: whom it names stays refused, \
                     but who was revoked since is let in; put the CA's newest list there",
                    list.path.display(),
                    list.issuer
                )
            })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Has the newest list of its CA one of these certificates? One that cannot be read counts as
    /// revoked: nobody knows whether it is.
    pub(super) fn revoke_any(&self, certificates: &[&CertificateDer<'_>]) -> bool {
        let revoked = |certificate: &&CertificateDer<'_>| {
            let Ok(certificate) = Certificate::from_der(certificate) else {
                return true;
            };
            let certificate = certificate.tbs_certificate();
            let Ok(name) = certificate.issuer().to_der() else {
                return true;
            };
            let list = self.0.iter().find(|list| list.name == name);
            list.is_some_and(|list| {
                let serial = certificate.serial_number().as_bytes();
                list.revoked.contains(serial)
            })
        };
        !self.is_empty() && certificates.iter().any(revoked)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Reason> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Reason::Read)?;
    let size = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    match u64::try_from(size.map_err(Reason::Read)?) {
        Ok(size) if size <= MAX_FILE => Ok(bytes),
        _ => Err(Reason::TooLarge),
    }
}

/// All lists of a file.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Reason> {
    if !is_pem(bytes) {
        return Ok(vec![bytes.to_vec().into()]);
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(Reason::Pem)?;
    match lists.is_empty() {
        true => Err(Reason::Empty),
        false => Ok(lists),
    }
}

/// A list that one of `authorities` signed.
pub(crate) fn check_signed(
    der: &CertificateRevocationListDer<'_>,
    authorities: &[CertificateDer<'static>],
) -> Result<CertificateList, Reason> {
    let list = CertificateList::from_der(der).map_err(|error| Reason::Form(error.to_string()))?;
    let malformed = |error: x509_cert::der::Error| Reason::Form(error.to_string());
    let issuer = list.tbs_cert_list.issuer.to_der().map_err(malformed)?;
    let signed = signed_part(der).map_err(malformed)?;
    let algorithm = identifier(&list.signature_algorithm).map_err(malformed)?;
    let mut named = false;
    for authority in authorities {
        let Ok(authority) = Certificate::from_der(authority) else {
            continue;
        };
        let authority = authority.tbs_certificate();
        if authority
            .subject()
            .to_der()
            .is_ok_and(|name| name != issuer)
        {
            continue;
        }
        named = true;
        let key = authority.subject_public_key_info();
        let Ok(key_algorithm) = identifier(&key.algorithm) else {
            continue;
        };
        let fits = |known: AlgorithmIdentifier, found: &[u8]| *known == *found;
        let good = provider()
            .signature_verification_algorithms
            .all
            .iter()
            .filter(|known| fits(known.signature_alg_id(), &algorithm))
            .filter(|known| fits(known.public_key_alg_id(), &key_algorithm))
            .any(|known| {
                let key = key.subject_public_key.raw_bytes();
                let signature = list.signature.raw_bytes();
                known.verify_signature(key, signed, signature).is_ok()
            });
        if good {
            return Ok(list);
        }
    }
    let issuer = list.tbs_cert_list.issuer.to_string();
    Err(match named {
        true => Reason::Signature(issuer),
        false => Reason::Issuer(issuer),
    })
}

fn check(
    path: &Path,
    der: &CertificateRevocationListDer<'static>,
    authorities: &[CertificateDer<'static>],
) -> Result<RevocationList, Reason> {
    let list = check_signed(der, authorities)?.tbs_cert_list;
    if has_critical_extension(&list) {
        return Err(Reason::Partial);
    }
    let name = list.issuer.to_der();
    let serials = list.revoked_certificates.iter().flatten();
    Ok(RevocationList {
        path: path.to_owned(),
        issuer: list.issuer.to_string(),
        name: name.map_err(|error| Reason::Form(error.to_string()))?,
        revoked: serials
            .map(|entry| entry.serial_number.as_bytes().to_vec())
            .collect(),
        made: list.this_update.to_unix_duration().as_secs(),
        next: list
            .next_update
            .map(|time| time.to_unix_duration().as_secs()),
    })
}

/// Such a list names the certificates of other CAs, or not all of its own (RFC 5280, 5.2.4, 5.2.5
/// and 5.3.3).
fn has_critical_extension(list: &TbsCertList) -> bool {
    let of_entries = list.revoked_certificates.iter().flatten();
    of_entries
        .filter_map(|entry| entry.crl_entry_extensions.as_ref())
        .chain(&list.crl_extensions)
        .flatten()
        .any(|extension| extension.critical)
}

/// The bytes of `tbsCertList` as they were signed.
fn signed_part(der: &[u8]) -> x509_cert::der::Result<&[u8]> {
    SliceReader::new(AnyRef::from_der(der)?.value())?.tlv_bytes()
}

/// An AlgorithmIdentifier's content, as rustls compares it.
fn identifier(algorithm: &impl Encode) -> x509_cert::der::Result<Vec<u8>> {
    let encoded = algorithm.to_der()?;
    Ok(AnyRef::from_der(&encoded)?.value().to_vec())
}

/// A revocation list that cannot be used, and its file.
#[derive(Debug, thiserror::Error)]
#[error("revocation list {}: {reason}", path.display())]
pub struct RevocationError {
    path: PathBuf,
    reason: Reason,
}

/// What is wrong with a list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("no list found: expected DER, or a PEM block that begins with BEGIN X509 CRL")]
    Empty,
    #[error("it is not a list as RFC 5280 has them: {0}")]
    Form(String),
    #[error("it was issued by {0:?}, which is none of trusted_client_ca")]
    Issuer(String),
    #[error(
        "it has critical extensions, so that it is not all of its CA's list: put the full list there"
    )]
    Partial,
    #[error("not PEM: {0}")]
    Pem(pem::Error),
    #[error("{0}")]
    Read(std::io::Error),
    #[error("it says that {0:?} issued it, which did not sign it")]
    Signature(String),
    #[error("it is larger than 2 MiB")]
    TooLarge,
}
