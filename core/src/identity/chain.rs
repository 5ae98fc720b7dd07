use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;

pub use self::error::{ChainError, ChainProblem};
use super::IdentityError;
use super::quirk::{Quirk, own_quirks};
use super::x509::{AlgorithmError, Certificate, Extensions, KeyNumbers};
use crate::tpm::{HashAlgorithm, Public};

/// What can be wrong with a path.
mod error;

/// Certificates of CAs between the EK certificate and the trust anchor; vendors have up to four.
const MAX_CAS: usize = 8;
/// Intermediate certificates that are looked at.
const MAX_INTERMEDIATES: usize = 16;
/// Signatures that are checked for one path: 16 us of work each.
const MAX_SIGNATURES: usize = 64;
/// tcg-kp-EKCertificate, 2.23.133.8.1.
const EK_CERTIFICATE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
/// tcg-kp-AIKCertificate, 2.23.133.8.3.
const AK_CERTIFICATE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x03];
/// anyExtendedKeyUsage, 2.5.29.37.0.
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
/// digitalSignature of keyUsage.
const DIGITAL_SIGNATURE: u16 = 1 << 15;
/// id-kp-codeSigning, 1.3.6.1.5.5.7.3.3.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];
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
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expiry {
    /// Refuse it.
    Refuse,
    /// Accept it, with [`Quirk::Expired`].
    Accept,
}

/// How a key's certificate leads to a trust anchor.
#[derive(Clone, Debug)]
pub struct CertifiedKey {
    path: Vec<String>,
    quirks: BTreeSet<Quirk>,
}

impl CertifiedKey {
    /// Subjects from the key's certificate to the trust anchor, for people.
    pub fn path(&self) -> &[String] {
        &self.path
    }

    /// Deviations from the standards that were tolerated.
    pub fn quirks(&self) -> &BTreeSet<Quirk> {
        &self.quirks
    }
}

/// An EK whose certificate leads to a trust anchor: the key is in a TPM of a manufacturer that the
/// administrator trusts. Made by [`certify_ek`] alone.
#[derive(Clone, Debug)]
pub struct CertifiedEk(CertifiedKey);

impl Deref for CertifiedEk {
    type Target = CertifiedKey;
    fn deref(&self) -> &CertifiedKey {
        &self.0
    }
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
    certify(ek, certificate, intermediates, trust, Purpose::Ek).map(CertifiedEk)
}

/// Checks that `certificate` (DER) is one for signing policies, and that one of the trust anchors
/// issued it. Whether its key made a signature is another question.
///
/// A certificate with purposes (extendedKeyUsage) must have codeSigning among them: those of a CA's
/// TLS servers and clients sign no policies.
pub fn certify_policy_signer(
    certificate: &[u8],
    trust: &Trust<'_>,
) -> Result<CertifiedKey, ChainError> {
    let leaf = parse_leaf(certificate)?;
    let mut quirks = own_quirks(&leaf);
    check_usable(&leaf, trust, Purpose::PolicySigner, &mut quirks)
        .map_err(|problem| problem.of(&leaf))?;
    let path = path(&leaf, &[], trust, &mut quirks)?;
    Ok(CertifiedKey { path, quirks })
}

/// What a certificate must be for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    PolicySigner,
    Ek,
    Iak,
    Idevid,
}

/// [`certify_ek`] for a key of any purpose.
pub(super) fn certify(
    key: &Public,
    certificate: &[u8],
    intermediates: &[Vec<u8>],
    trust: &Trust<'_>,
    purpose: Purpose,
) -> Result<CertifiedKey, ChainError> {
    let leaf = parse_leaf(certificate)?;
    let mut quirks = own_quirks(&leaf);
    check_key(&leaf, key)
        .and_then(|()| check_usable(&leaf, trust, purpose, &mut quirks))
        .map_err(|problem| problem.of(&leaf))?;
    let path = path(&leaf, intermediates, trust, &mut quirks)?;
    Ok(CertifiedKey { path, quirks })
}

fn parse_leaf(der: &[u8]) -> Result<Certificate<'_>, ChainError> {
    Certificate::parse(der).map_err(|error| ChainError {
        certificate: String::from("certificate"),
        problem: ChainProblem::Malformed(error),
    })
}

fn check_key(leaf: &Certificate<'_>, key: &Public) -> Result<(), ChainProblem> {
    if leaf.key()? == KeyNumbers::of(key) {
        Ok(())
    } else {
        Err(ChainProblem::OtherKey)
    }
}

fn check_usable(
    leaf: &Certificate<'_>,
    trust: &Trust<'_>,
    purpose: Purpose,
    quirks: &mut BTreeSet<Quirk>,
) -> Result<(), ChainProblem> {
    let extensions = leaf.extensions()?;
    check_critical(&extensions)?;
    check_purpose(&extensions, purpose)?;
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

/// A CA that issues for several purposes must not have one certificate taken for another: an
/// IDevID's for an IAK's, a TLS server's for an EK's.
fn check_purpose(extensions: &Extensions<'_>, purpose: Purpose) -> Result<(), ChainProblem> {
    let purposes = extensions.extended_key_usage.as_deref();
    let may = |purpose| {
        purposes.map(|purposes| purposes.contains(&purpose) || purposes.contains(&ANY_PURPOSE))
    };
    let signs = extensions
        .key_usage
        .is_none_or(|usage| usage & DIGITAL_SIGNATURE != 0);
    match purpose {
        // The purpose is optional in older profiles; the name of a TPM is in all of them.
        Purpose::Ek if !may(EK_CERTIFICATE).unwrap_or(extensions.names_a_tpm) => {
            Err(ChainProblem::NotEk)
        }
        Purpose::Iak if !(signs && may(AK_CERTIFICATE) == Some(true)) => Err(ChainProblem::NotIak),
        Purpose::Idevid if !signs || may(EK_CERTIFICATE) == Some(true) => {
            Err(ChainProblem::NotIdevid)
        }
        Purpose::PolicySigner if !signs || may(CODE_SIGNING) == Some(false) => {
            Err(ChainProblem::NotPolicySigner)
        }
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests;
