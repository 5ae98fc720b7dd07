use std::collections::{BTreeSet, HashMap};
use std::fmt;

use x509_cert::der::{DateTime, Decode, Encode};

use super::IdentityError;
use super::x509::{AlgorithmError, Certificate, Extensions, KeyNumbers};
use crate::tpm::{HashAlgorithm, Public};

/// Certificates of CAs between the EK certificate and the trust anchor; vendors have up to four.
const MAX_CAS: usize = 8;
/// Intermediate certificates that are looked at.
const MAX_INTERMEDIATES: usize = 16;
/// Signatures that are checked for one path: 16 us of work each.
const MAX_SIGNATURES: usize = 64;
/// tcg-kp-EKCertificate, 2.23.133.8.1.
const EK_CERTIFICATE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
/// anyExtendedKeyUsage, 2.5.29.37.0.
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
/// keyCertSign of keyUsage.
const KEY_CERT_SIGN: u16 = 1 << 10;

/// The CAs that are believed: those whose certificates an administrator put into a store.
///
/// Each of them ends a path, whether it is self-signed or not: who puts an intermediate CA into the
/// store trusts it. Its own signature and the fate of its issuer are not looked at.
#[derive(Clone, Debug, Default)]
pub struct TrustAnchors {
    /// DER by subject.
    by_subject: HashMap<Vec<u8>, Vec<Vec<u8>>>,
}

impl TrustAnchors {
    /// Adds a certificate (DER), if it can be read; a second time is no second anchor.
    pub fn add(&mut self, der: &[u8]) -> Result<(), IdentityError> {
        let certificate = Certificate::parse(der)?;
        certificate.key()?;
        certificate.extensions()?;
        let anchors = self.by_subject.entry(certificate.subject_key());
        let anchors = anchors.or_default();
        if !anchors.iter().any(|anchor| anchor == der) {
            anchors.push(der.to_vec());
        }
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_subject.values().map(Vec::len).sum()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.by_subject.is_empty()
    }
}

/// What a path is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Trust<'a> {
    /// Where a path may end.
    pub anchors: &'a TrustAnchors,
    /// The time of the check, Unix seconds.
    pub at: u64,
    /// What to do about a certificate that has expired.
    pub expired: Expiry,
}

/// What to do about an EK certificate that has expired.
///
/// The TCG recommends 9999-12-31 as notAfter (EK Credential Profile, 3.2.5), since a TPM does not
/// stop being what it is. Many older certificates name an earlier time all the same, and cannot be
/// renewed. A certificate of a CA is judged by the time when it issued, whatever is chosen here.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Expiry {
    /// Refuse it.
    #[default]
    Refuse,
    /// Accept it, with [`Quirk::Expired`].
    Accept,
}

/// An EK whose certificate leads to a trust anchor: the key is in a TPM of a manufacturer that the
/// administrator trusts. Made by [`certify_ek`] alone.
#[derive(Clone, Debug)]
pub struct CertifiedEk {
    path: Vec<String>,
    quirks: BTreeSet<Quirk>,
}

impl CertifiedEk {
    /// Subjects from the EK certificate to the trust anchor, for people.
    pub fn path(&self) -> &[String] {
        &self.path
    }

    /// Deviations from the standards that were tolerated.
    pub fn quirks(&self) -> &BTreeSet<Quirk> {
        &self.quirks
    }
}

/// Where certificates of TPMs in the field deviate from RFC 5280 and the TCG's profiles, and are
/// accepted nevertheless. Prints its id; [`Quirk::meaning`] says more.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Quirk {
    /// Strict DER is written otherwise: SETs in order, defaults left out, times before 2050 as
    /// UTCTime.
    NotStrictDer,
    /// The key is marked as id-RSAES-OAEP.
    OaepKey,
    /// The serial number is zero, negative, or over 20 octets.
    OddSerial,
    /// A CA without basicConstraints: an anchor, or one whose keyUsage has keyCertSign.
    NoBasicConstraints,
    /// A CA has expired since it issued.
    IssuerExpired,
    /// The EK certificate has expired, and [`Expiry::Accept`] was chosen.
    Expired,
}

impl Quirk {
    /// A short name that does not change.
    pub fn id(self) -> &'static str {
        match self {
            Self::NotStrictDer => "not-strict-der",
            Self::OaepKey => "oaep-key",
            Self::OddSerial => "odd-serial",
            Self::NoBasicConstraints => "no-basic-constraints",
            Self::IssuerExpired => "issuer-expired",
            Self::Expired => "expired",
        }
    }

    /// What it is, and why it is tolerated.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::NotStrictDer => {
                "the certificate is not strict DER; its signature is over the bytes as they are"
            }
            Self::OaepKey => {
                "the key is marked as id-RSAES-OAEP (TCG Credential Profiles 1.2); it is the \
                 same RSA key"
            }
            Self::OddSerial => {
                "the serial number is not a positive number of 20 octets at most; nothing depends \
                 on it"
            }
            Self::NoBasicConstraints => {
                "a CA certificate has no basicConstraints; the store or its keyUsage says that it \
                 is a CA"
            }
            Self::IssuerExpired => {
                "a CA certificate has expired since it issued; it was valid then"
            }
            Self::Expired => "the EK certificate has expired; the TPM cannot renew it",
        }
    }
}

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// How a certificate (DER) deviates by itself: see [`Quirk::NotStrictDer`], [`Quirk::OaepKey`],
/// [`Quirk::OddSerial`].
pub fn certificate_quirks(der: &[u8]) -> Result<BTreeSet<Quirk>, IdentityError> {
    Ok(own_quirks(&Certificate::parse(der)?))
}

fn own_quirks(certificate: &Certificate<'_>) -> BTreeSet<Quirk> {
    let positive = matches!(certificate.serial, [first @ 0..0x80, rest @ ..] if *first != 0 || !rest.is_empty());
    // The reader sorts what is out of order, so that only writing shows it.
    let strict = x509_cert::Certificate::from_der(certificate.der)
        .and_then(|parsed| parsed.to_der())
        .is_ok_and(|written| written == certificate.der);
    [
        (Quirk::NotStrictDer, !strict),
        (Quirk::OaepKey, certificate.has_oaep_key()),
        (Quirk::OddSerial, !positive || certificate.serial.len() > 20),
    ]
    .into_iter()
    .filter_map(|(quirk, met)| met.then_some(quirk))
    .collect()
}

/// Checks that `certificate` (DER, original bytes) is the EK certificate of `ek`, and that it was
/// issued, over `intermediates` (DER, of any origin) or directly, by one of the trust anchors.
///
/// RFC 5280, section 6, with what TPM vendors need: any certificate policy is accepted, key
/// identifiers are not looked at, and the tolerated deviations are those of [`Quirk`]. Revocation
/// is not looked at. SHA-1 signatures are refused; an anchor's own signature does not count.
pub fn certify_ek(
    ek: &Public,
    certificate: &[u8],
    intermediates: &[Vec<u8>],
    trust: &Trust<'_>,
) -> Result<CertifiedEk, ChainError> {
    let leaf = Certificate::parse(certificate).map_err(|error| ChainError {
        certificate: String::from("EK certificate"),
        problem: ChainProblem::Malformed(error),
    })?;
    let mut quirks = own_quirks(&leaf);
    check_ek_certificate(&leaf, ek, trust, &mut quirks).map_err(|problem| problem.of(&leaf))?;
    let path = path(&leaf, intermediates, trust, &mut quirks)?;
    Ok(CertifiedEk { path, quirks })
}

fn check_ek_certificate(
    leaf: &Certificate<'_>,
    ek: &Public,
    trust: &Trust<'_>,
    quirks: &mut BTreeSet<Quirk>,
) -> Result<(), ChainProblem> {
    if leaf.key()? != KeyNumbers::of(ek) {
        return Err(ChainProblem::OtherKey);
    }
    let extensions = leaf.extensions()?;
    check_critical(&extensions)?;
    // A CA that also issues other certificates must not have them taken for an EK's. The purpose is
    // optional in older profiles; the name of a TPM is in all of them.
    let is_ek = match &extensions.extended_key_usage {
        Some(purposes) => purposes.contains(&EK_CERTIFICATE) || purposes.contains(&ANY_PURPOSE),
        None => extensions.names_a_tpm,
    };
    if !is_ek {
        return Err(ChainProblem::Purpose);
    }
    let (not_before, not_after) = leaf.validity()?;
    if trust.at < not_before {
        return Err(ChainProblem::NotYetValid(not_before));
    }
    if trust.at > not_after {
        match trust.expired {
            Expiry::Refuse => return Err(ChainProblem::Expired(not_after)),
            Expiry::Accept => quirks.insert(Quirk::Expired),
        };
    }
    Ok(())
}

fn check_critical(extensions: &Extensions<'_>) -> Result<(), ChainProblem> {
    match &extensions.unknown_critical {
        Some(oid) => Err(ChainProblem::CriticalExtension(oid.clone())),
        None => Ok(()),
    }
}

/// One certificate on the way up.
struct Step<'a> {
    certificate: Certificate<'a>,
    /// What it was found to have issued, in the list of steps.
    issued: Option<usize>,
    /// CAs below it on the way, itself included.
    cas: usize,
    quirks: BTreeSet<Quirk>,
}

/// Breadth first: every intermediate is visited once, over its shortest way, so that neither
/// loops nor cross-signed CAs cost more than their number.
fn path(
    leaf: &Certificate<'_>,
    intermediates: &[Vec<u8>],
    trust: &Trust<'_>,
    quirks: &mut BTreeSet<Quirk>,
) -> Result<Vec<String>, ChainError> {
    // What cannot be read has issued nothing.
    let mut pool: Vec<_> = intermediates
        .iter()
        .take(MAX_INTERMEDIATES)
        .filter_map(|der| Certificate::parse(der).ok())
        .collect();
    let mut steps = vec![Step {
        certificate: leaf.clone(),
        issued: None,
        cas: 0,
        quirks: BTreeSet::new(),
    }];
    let mut check = IssuerCheck {
        at: trust.at,
        signatures: 0,
    };
    let mut nearest = None;
    let mut next = 0;
    while let Some(step) = steps.get(next) {
        let child = step.certificate.clone();
        let (cas, issuer_key) = (step.cas, child.issuer_key());
        for anchor in trust
            .anchors
            .by_subject
            .get(&issuer_key)
            .into_iter()
            .flatten()
        {
            let Ok(anchor) = Certificate::parse(anchor) else {
                continue;
            };
            match check.issued(&anchor, &child, cas, true) {
                Ok(found) => {
                    quirks.extend(found);
                    return Ok(way(&steps, next, &anchor, quirks));
                }
                Err(error) => drop(nearest.get_or_insert(error)),
            }
        }
        for at in (0..pool.len()).rev() {
            if cas >= MAX_CAS || pool[at].subject_key() != issuer_key {
                continue;
            }
            match check.issued(&pool[at], &child, cas, false) {
                Ok(quirks) => steps.push(Step {
                    certificate: pool.swap_remove(at),
                    issued: Some(next),
                    cas: cas + 1,
                    quirks,
                }),
                Err(error) => drop(nearest.get_or_insert(error)),
            }
        }
        next += 1;
    }
    // The last step is the one that came furthest.
    Err(nearest.unwrap_or_else(|| {
        let last = steps.last().map_or(leaf, |step| &step.certificate);
        ChainProblem::UnknownIssuer(last.issuer()).of(last)
    }))
}

/// Subjects from the leaf to the anchor; adds the quirks met on that way.
fn way(
    steps: &[Step<'_>],
    last: usize,
    anchor: &Certificate<'_>,
    quirks: &mut BTreeSet<Quirk>,
) -> Vec<String> {
    let mut subjects = vec![anchor.subject()];
    let mut at = Some(last);
    while let Some(step) = at.and_then(|at| steps.get(at)) {
        subjects.push(step.certificate.subject());
        quirks.extend(&step.quirks);
        at = step.issued;
    }
    subjects.reverse();
    subjects
}

/// Checks single links of paths, and counts what that costs.
struct IssuerCheck {
    at: u64,
    signatures: usize,
}

impl IssuerCheck {
    /// Did `issuer`, as a CA with `cas` CAs below it, issue `child`?
    fn issued(
        &mut self,
        issuer: &Certificate<'_>,
        child: &Certificate<'_>,
        cas: usize,
        anchor: bool,
    ) -> Result<BTreeSet<Quirk>, ChainError> {
        self.signed(issuer, child)
            .map_err(|problem| problem.of(child))?;
        let quirks = self
            .is_ca(issuer, child, cas, anchor)
            .map_err(|problem| problem.of(issuer))?;
        Ok(quirks)
    }

    fn signed(
        &mut self,
        issuer: &Certificate<'_>,
        child: &Certificate<'_>,
    ) -> Result<(), ChainProblem> {
        self.signatures += 1;
        if self.signatures > MAX_SIGNATURES {
            return Err(ChainProblem::TooManySignatures);
        }
        let algorithm = child.signature_algorithm().map_err(|error| match error {
            AlgorithmError::Unknown(oid) => ChainProblem::Algorithm(oid),
            AlgorithmError::Malformed(error) => ChainProblem::Malformed(error),
        })?;
        if algorithm.1 == HashAlgorithm::Sha1 {
            return Err(ChainProblem::Sha1);
        }
        let key = issuer.key()?;
        if key.verifies(algorithm, child.signed, child.signature()?) {
            Ok(())
        } else {
            Err(ChainProblem::Signature(issuer.subject()))
        }
    }

    fn is_ca(
        &self,
        issuer: &Certificate<'_>,
        child: &Certificate<'_>,
        cas: usize,
        anchor: bool,
    ) -> Result<BTreeSet<Quirk>, ChainProblem> {
        let mut quirks = BTreeSet::new();
        let extensions = issuer.extensions()?;
        check_critical(&extensions)?;
        let may_sign = extensions.key_usage.map(|usage| usage & KEY_CERT_SIGN != 0);
        if may_sign == Some(false) {
            return Err(ChainProblem::NotCa);
        }
        match extensions.basic_constraints {
            Some((false, _)) => return Err(ChainProblem::NotCa),
            Some((true, Some(length))) if cas > usize::try_from(length).unwrap_or(usize::MAX) => {
                return Err(ChainProblem::PathLength(length));
            }
            Some((true, _)) => {}
            // Certificates of other kinds lack it too, an IDevID's for one; they do not have
            // keyCertSign.
            None if anchor || may_sign == Some(true) => {
                quirks.insert(Quirk::NoBasicConstraints);
            }
            None => return Err(ChainProblem::NotCa),
        }
        let (not_before, not_after) = issuer.validity()?;
        let (issued_at, _) = child.validity()?;
        if self.at < not_before {
            return Err(ChainProblem::NotYetValid(not_before));
        }
        if issued_at > not_after {
            return Err(ChainProblem::IssuedAfterExpiry(not_after));
        }
        if self.at > not_after {
            quirks.insert(Quirk::IssuerExpired);
        }
        Ok(quirks)
    }
}

/// Why a certificate does not lead to a trust anchor.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{certificate}: {problem}")]
pub struct ChainError {
    /// Subject of the certificate that is wrong, for people.
    pub certificate: String,
    /// What is wrong with it.
    #[source]
    pub problem: ChainProblem,
}

/// What is wrong with a certificate, and what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainProblem {
    /// It cannot be read.
    #[error(transparent)]
    Malformed(#[from] IdentityError),
    /// It certifies another key than the EK.
    #[error("is not the certificate of this EK")]
    OtherKey,
    /// Nothing in it says that it is for an EK.
    #[error(
        "is not an EK certificate: extendedKeyUsage lacks tcg-kp-EKCertificate, or \
         subjectAltName names no TPM"
    )]
    Purpose,
    /// notBefore is in the future. Holds notBefore, Unix seconds.
    #[error("is not valid before {}; is this host's clock right?", date(*.0))]
    NotYetValid(u64),
    /// notAfter is in the past. Holds notAfter, Unix seconds.
    #[error("has expired on {}; accept expired EK certificates if this TPM is to stay", date(*.0))]
    Expired(u64),
    /// Nobody of its issuer's name is known. Holds the issuer.
    #[error(
        "its issuer ({0}) is neither in the store nor in the chain that came with it; get the \
         certificate from the TPM's manufacturer and put it into the store"
    )]
    UnknownIssuer(String),
    /// A CA of its issuer's name has another key. Holds that CA.
    #[error("was not signed by the key of {0}; the CA may have several, each with a certificate")]
    Signature(String),
    /// SHA-1 signatures can be forged.
    #[error("is signed with SHA-1; put its certificate into the store if it is that of a CA")]
    Sha1,
    /// Signed in a way that is not checked here. Holds the OID.
    #[error("is signed with an algorithm that is not supported ({0})")]
    Algorithm(String),
    /// It issued, and is not entitled to.
    #[error("is not the certificate of a CA (basicConstraints, keyUsage), but issued another")]
    NotCa,
    /// More CAs are below it than it admits. Holds pathLenConstraint.
    #[error("admits {0} CAs below itself, there are more")]
    PathLength(u32),
    /// It had expired when it issued. Holds notAfter, Unix seconds.
    #[error("had expired on {}, before it issued another", date(*.0))]
    IssuedAfterExpiry(u64),
    /// A critical extension that is not understood. Holds its OID.
    #[error("has a critical extension that is not understood ({0})")]
    CriticalExtension(String),
    /// Too many CAs of one name.
    #[error("too many CAs of one name to find out which has issued it")]
    TooManySignatures,
}

impl ChainProblem {
    fn of(self, certificate: &Certificate<'_>) -> ChainError {
        ChainError {
            certificate: certificate.subject(),
            problem: self,
        }
    }
}

/// Unix seconds as RFC 3339 writes them.
fn date(seconds: u64) -> String {
    DateTime::from_unix_duration(std::time::Duration::from_secs(seconds))
        .map_or_else(|_| seconds.to_string(), |date| date.to_string())
}

#[cfg(test)]
mod tests;
