use aws_lc_rs::signature::{self, RsaPublicKeyComponents};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{DateTime, Decode};

use super::IdentityError;
use super::der::{Der, Element, malformed};
use crate::tpm::{
    EccCurve, HashAlgorithm, Public, PublicParms, SignatureScheme, ecdsa_verification,
    rsa_verification,
};

/// 1.2.840.113549.1.1, PKCS #1.
const PKCS1: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
/// 1.2.840.10045.4, signatures of ANSI X9.62.
const X962_SIGNATURES: [u8; 6] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
/// 2.5.29, certificate extensions.
const EXTENSIONS: [u8; 2] = [0x55, 0x1d];
/// id-pe-authorityInfoAccess, 1.3.6.1.5.5.7.1.1.
const AUTHORITY_INFO_ACCESS: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x01];

/// A certificate (RFC 5280, 4.1) taken apart, with no more strictness than its parts need.
///
/// One reader for every certificate of a path: where a strict and a lenient one disagree, a forger
/// has a choice.
#[derive(Clone, Debug)]
pub(super) struct Certificate<'a> {
    /// The whole certificate.
    pub(super) der: &'a [u8],
    /// TBSCertificate as it was signed.
    pub(super) signed: &'a [u8],
    /// INTEGER, two's complement; positive in certificates that follow the standard.
    pub(super) serial: &'a [u8],
    issuer: Element<'a>,
    validity: Element<'a>,
    subject: Element<'a>,
    key_info: Element<'a>,
    /// `Extensions` in its explicit tag.
    extensions: Option<Element<'a>>,
    /// AlgorithmIdentifier inside and outside of what is signed.
    algorithms: [Element<'a>; 2],
    signature: Element<'a>,
}

impl<'a> Certificate<'a> {
    /// Finds the parts; what is in them is read when it is asked for.
    pub(super) fn parse(der: &'a [u8]) -> Result<Self, IdentityError> {
        let mut outer = Der::new(der).expect(0x30, "not a certificate")?.inside();
        let signed = outer.expect(0x30, "not a TBSCertificate")?;
        let mut tbs = signed.inside();
        tbs.optional(0xa0)?;
        let serial = tbs.expect(0x02, "no serialNumber")?.content;
        let inner_algorithm = tbs.expect(0x30, "no signature algorithm")?;
        let issuer = tbs.expect(0x30, "no issuer")?;
        let validity = tbs.expect(0x30, "no validity")?;
        let subject = tbs.expect(0x30, "no subject")?;
        let key_info = tbs.expect(0x30, "no SubjectPublicKeyInfo")?;
        // issuerUniqueID, subjectUniqueID
        tbs.optional(0x81)?;
        tbs.optional(0x82)?;
        let extensions = tbs.optional(0xa3)?;
        let algorithm = outer.expect(0x30, "no signatureAlgorithm")?;
        Ok(Self {
            der,
            signed: signed.raw,
            serial,
            issuer,
            validity,
            subject,
            key_info,
            extensions,
            algorithms: [inner_algorithm, algorithm],
            signature: outer.expect(0x03, "no signature")?,
        })
    }

    /// The certified key.
    pub(super) fn key(&self) -> Result<KeyNumbers, IdentityError> {
        KeyNumbers::parse(self.key_info)
    }

    /// Is the key marked as id-RSAES-OAEP?
    pub(super) fn has_oaep_key(&self) -> bool {
        let algorithm = self.key_info.inside().next();
        let oid = algorithm.and_then(|algorithm| algorithm.inside().next());
        oid.is_ok_and(|oid| oid.content == [&PKCS1[..], &[7]].concat())
    }

    /// notBefore and notAfter, Unix seconds.
    pub(super) fn validity(&self) -> Result<(u64, u64), IdentityError> {
        let mut times = self.validity.inside();
        Ok((unix_time(times.next()?)?, unix_time(times.next()?)?))
    }

    /// The subject's name, equal to the [`Self::issuer_key`] of what it may have issued.
    ///
    /// Letter case and the kind of string do not count (RFC 5280, 7.1): vendors' issuers and
    /// subjects differ in them. Whom to ask is all that a name decides; a signature does the rest.
    pub(super) fn subject_key(&self) -> Vec<u8> {
        name_key(self.subject)
    }

    /// The issuer's name.
    pub(super) fn issuer_key(&self) -> Vec<u8> {
        name_key(self.issuer)
    }

    /// The subject for people, or the serial number where there is none.
    pub(super) fn subject(&self) -> String {
        name_text(self.subject).unwrap_or_else(|| {
            let serial = hex::encode(self.serial.get(..20).unwrap_or(self.serial));
            format!("certificate without subject, serial {serial}")
        })
    }

    /// The issuer for people.
    pub(super) fn issuer(&self) -> String {
        name_text(self.issuer).unwrap_or_else(|| String::from("an issuer without name"))
    }

    /// What the extensions say.
    pub(super) fn extensions(&self) -> Result<Extensions<'a>, IdentityError> {
        let mut found = Extensions::default();
        let Some(tagged) = &self.extensions else {
            return Ok(found);
        };
        let mut list = tagged.inside().expect(0x30, "no Extensions")?.inside();
        let mut seen = Vec::new();
        while list.peek().is_some() {
            let mut extension = list.expect(0x30, "not an Extension")?.inside();
            let oid = extension.expect(0x06, "Extension without an OID")?;
            let critical = extension.optional(0x01)?;
            let critical = critical.is_some_and(|critical| critical.content != [0]);
            let value = extension.expect(0x04, "Extension without a value")?;
            if seen.contains(&oid.content) {
                return Err(malformed(oid.at, "an extension stands twice"));
            }
            seen.push(oid.content);
            found.take(oid.content, critical, value.inside())?;
        }
        Ok(found)
    }

    /// The signature's scheme and hash.
    pub(super) fn signature_algorithm(
        &self,
    ) -> Result<(SignatureScheme, HashAlgorithm), AlgorithmError> {
        let [inner, outer] = self.algorithms;
        let mut algorithm = outer.inside();
        let oid = algorithm.expect(0x06, "no signature algorithm")?.content;
        if inner
            .inside()
            .expect(0x06, "no signature algorithm")?
            .content
            != oid
        {
            return Err(malformed(outer.at, "two different signature algorithms").into());
        }
        let unknown = || AlgorithmError::Unknown(oid_text(oid));
        if let Some([last]) = oid.strip_prefix(&PKCS1) {
            return match last {
                5 => Ok((SignatureScheme::RsaSsa, HashAlgorithm::Sha1)),
                10 => Ok((
                    SignatureScheme::RsaPss,
                    pss_hash(algorithm)?.ok_or_else(unknown)?,
                )),
                11 => Ok((SignatureScheme::RsaSsa, HashAlgorithm::Sha256)),
                12 => Ok((SignatureScheme::RsaSsa, HashAlgorithm::Sha384)),
                13 => Ok((SignatureScheme::RsaSsa, HashAlgorithm::Sha512)),
                _ => Err(unknown()),
            };
        }
        let hash = match oid.strip_prefix(&X962_SIGNATURES) {
            Some([1]) => HashAlgorithm::Sha1,
            Some([3, 2]) => HashAlgorithm::Sha256,
            Some([3, 3]) => HashAlgorithm::Sha384,
            Some([3, 4]) => HashAlgorithm::Sha512,
            _ => return Err(unknown()),
        };
        Ok((SignatureScheme::Ecdsa, hash))
    }

    /// The signature's octets.
    pub(super) fn signature(&self) -> Result<&'a [u8], IdentityError> {
        whole_octets(self.signature)
    }
}

/// What extensions say, as far as paths need it.
#[derive(Clone, Debug, Default)]
pub(super) struct Extensions<'a> {
    /// `cA` and `pathLenConstraint`.
    pub(super) basic_constraints: Option<(bool, Option<u32>)>,
    /// Bits as in RFC 5280, 4.2.1.3: digitalSignature is the highest.
    pub(super) key_usage: Option<u16>,
    /// Purposes, as content octets of OIDs.
    pub(super) extended_key_usage: Option<Vec<&'a [u8]>>,
    /// Does subjectAltName have a directoryName with tcg-at-tpmManufacturer?
    pub(super) names_a_tpm: bool,
    /// The first critical extension that is not understood, in dotted form.
    pub(super) unknown_critical: Option<String>,
}

impl<'a> Extensions<'a> {
    fn take(
        &mut self,
        oid: &'a [u8],
        critical: bool,
        mut value: Der<'a>,
    ) -> Result<(), IdentityError> {
        match oid.strip_prefix(&EXTENSIONS) {
            Some([15]) => {
                let bits = value.expect(0x03, "keyUsage is not a BIT STRING")?.content;
                let octet = |at: usize| u16::from(bits.get(at).copied().unwrap_or(0));
                self.key_usage = Some(octet(1) << 8 | octet(2));
            }
            Some([17]) => self.names_a_tpm = names_a_tpm(value),
            Some([19]) => {
                let mut constraints = value.expect(0x30, "no BasicConstraints")?.inside();
                let ca = constraints
                    .optional(0x01)?
                    .is_some_and(|ca| ca.content != [0]);
                let length = constraints
                    .optional(0x02)?
                    .map(|length| path_length(length.content));
                self.basic_constraints = Some((ca, length));
            }
            Some([37]) => {
                let mut purposes = value.expect(0x30, "no ExtKeyUsageSyntax")?.inside();
                let list = self.extended_key_usage.insert(Vec::new());
                while purposes.peek().is_some() {
                    list.push(purposes.expect(0x06, "not a KeyPurposeId")?.content);
                }
            }
            // subjectDirectoryAttributes, subjectKeyIdentifier, issuerAltName,
            // cRLDistributionPoints, certificatePolicies, authorityKeyIdentifier: nothing that a
            // path depends on, as any policy is accepted and nothing is fetched.
            Some([9 | 14 | 18 | 31 | 32 | 35]) => {}
            _ if critical && oid != AUTHORITY_INFO_ACCESS => {
                self.unknown_critical.get_or_insert_with(|| oid_text(oid));
            }
            _ => {}
        }
        Ok(())
    }
}

/// A pathLenConstraint; one that is negative or enormous admits nothing, or everything.
fn path_length(content: &[u8]) -> u32 {
    match content {
        [first, ..] if *first >= 0x80 => 0,
        digits => digits
            .iter()
            .try_fold(0_u32, |number, &digit| {
                Some(number.checked_mul(256)? | u32::from(digit))
            })
            .unwrap_or(u32::MAX),
    }
}

/// Is there a directoryName with tcg-at-tpmManufacturer, 2.23.133.2.1? (TCG EK Credential
/// Profile, 3.2.9.)
fn names_a_tpm(mut value: Der<'_>) -> bool {
    const TPM_MANUFACTURER: &[u8] = &[0x67, 0x81, 0x05, 0x02, 0x01];
    let mut find = || -> Result<bool, IdentityError> {
        let mut names = value.expect(0x30, "no GeneralNames")?.inside();
        while names.peek().is_some() {
            let name = names.next()?;
            if name.tag != 0xa4 {
                continue;
            }
            let mut attributes = name.inside().expect(0x30, "no Name")?.inside();
            while attributes.peek().is_some() {
                let mut set = attributes.next()?.inside();
                while set.peek().is_some() {
                    let oid = set.next()?.inside().next()?;
                    if oid.content == TPM_MANUFACTURER {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    };
    find().unwrap_or(false)
}

/// Why a signature cannot be checked.
#[derive(Clone, Debug)]
pub(super) enum AlgorithmError {
    /// Not an algorithm that is checked here, in dotted form.
    Unknown(String),
    Malformed(IdentityError),
}

impl From<IdentityError> for AlgorithmError {
    fn from(error: IdentityError) -> Self {
        Self::Malformed(error)
    }
}

/// The hash of RSASSA-PSS-params (RFC 4055, 3.1) where MGF1 uses the same and the salt is as long;
/// `None` for other parameters. The defaults are SHA-1 with 20 bytes.
fn pss_hash(mut algorithm: Der<'_>) -> Result<Option<HashAlgorithm>, IdentityError> {
    let mut parameters = algorithm.expect(0x30, "no RSASSA-PSS-params")?.inside();
    let (Some(hash), Some(mask), Some(salt)) = (
        parameters.optional(0xa0)?,
        parameters.optional(0xa1)?,
        parameters.optional(0xa2)?,
    ) else {
        return Ok(None);
    };
    let hash = hash_algorithm(hash.inside())?;
    let mut mask = mask.inside().expect(0x30, "no MaskGenAlgorithm")?.inside();
    let mgf1 = mask.expect(0x06, "no MaskGenAlgorithm")?.content == [&PKCS1[..], &[8]].concat();
    let mask = hash_algorithm(mask)?;
    let salt = salt.inside().expect(0x02, "no saltLength")?.content;
    let as_long = |hash: &HashAlgorithm| salt == [u8::try_from(hash.size()).unwrap_or(0)];
    Ok(hash.filter(|_| mgf1 && mask == hash).filter(as_long))
}

/// AlgorithmIdentifier of SHA-256, SHA-384 or SHA-512 (2.16.840.1.101.3.4.2.N).
fn hash_algorithm(mut outer: Der<'_>) -> Result<Option<HashAlgorithm>, IdentityError> {
    const NIST_HASHES: [u8; 8] = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
    let mut algorithm = outer.expect(0x30, "no HashAlgorithm")?.inside();
    let oid = algorithm.expect(0x06, "no HashAlgorithm")?.content;
    Ok(match oid.strip_prefix(&NIST_HASHES) {
        Some([1]) => Some(HashAlgorithm::Sha256),
        Some([2]) => Some(HashAlgorithm::Sha384),
        Some([3]) => Some(HashAlgorithm::Sha512),
        _ => None,
    })
}

/// What makes two public keys the same.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum KeyNumbers {
    /// Modulus and exponent without leading zeros.
    Rsa(Vec<u8>, Vec<u8>),
    /// Curve and uncompressed point without its 04.
    Ecc(EccCurve, Vec<u8>),
}

impl KeyNumbers {
    /// Those of a TPM's key.
    pub(super) fn of(key: &Public) -> Self {
        match key.parms() {
            PublicParms::Rsa {
                modulus, exponent, ..
            } => Self::Rsa(significant(modulus), significant(&exponent.to_be_bytes())),
            PublicParms::Ecc { curve, x, y, .. } => Self::Ecc(*curve, [&x[..], y].concat()),
        }
    }

    /// Those of a SubjectPublicKeyInfo.
    fn parse(key_info: Element<'_>) -> Result<Self, IdentityError> {
        let mut spki = key_info.inside();
        let mut algorithm = spki.expect(0x30, "no key algorithm")?.inside();
        let oid = algorithm.expect(0x06, "no key algorithm")?;
        let key = spki.expect(0x03, "no key")?;
        let octets = whole_octets(key)?;
        match oid.content {
            // rsaEncryption, id-RSAES-OAEP, id-RSASSA-PSS
            [prefix @ .., 1 | 7 | 10] if *prefix == PKCS1 => {
                let mut numbers = Der::new(octets)
                    .expect(0x30, "key is not an RSAPublicKey")?
                    .inside();
                let modulus = numbers.expect(0x02, "key has no modulus")?.content;
                let exponent = numbers.expect(0x02, "key has no exponent")?.content;
                Ok(Self::Rsa(significant(modulus), significant(exponent)))
            }
            // ecPublicKey: 1.2.840.10045.2.1
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01] => {
                let curve = algorithm
                    .expect(0x06, "key is not on a named curve")?
                    .content;
                let curve = match curve {
                    [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07] => EccCurve::NistP256,
                    [0x2b, 0x81, 0x04, 0x00, 0x22] => EccCurve::NistP384,
                    [0x2b, 0x81, 0x04, 0x00, 0x23] => EccCurve::NistP521,
                    _ => return Err(malformed(key.at, "key is on an unknown curve")),
                };
                match octets.split_first() {
                    Some((0x04, point)) => Ok(Self::Ecc(curve, point.to_vec())),
                    _ => Err(malformed(key.at, "key is not an uncompressed point")),
                }
            }
            _ => Err(malformed(key.at, "key is neither RSA nor ECC")),
        }
    }

    /// Did this key make that signature? Never, if it is a key of another kind.
    pub(super) fn verifies(
        &self,
        (scheme, hash): (SignatureScheme, HashAlgorithm),
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let verified = match self {
            Self::Rsa(modulus, exponent) => rsa_verification(scheme, hash).map(|algorithm| {
                let key = RsaPublicKeyComponents {
                    n: modulus,
                    e: exponent,
                };
                key.verify(algorithm, message, signature).is_ok()
            }),
            Self::Ecc(curve, point) if scheme == SignatureScheme::Ecdsa => {
                ecdsa_verification(*curve, hash).map(|algorithm| {
                    let point = [&[0x04], &point[..]].concat();
                    signature::UnparsedPublicKey::new(algorithm, point)
                        .verify(message, signature)
                        .is_ok()
                })
            }
            Self::Ecc(..) => None,
        };
        verified.unwrap_or(false)
    }
}

/// The content of a BIT STRING without unused bits.
fn whole_octets(bits: Element<'_>) -> Result<&[u8], IdentityError> {
    match bits.content.split_first() {
        Some((0, octets)) => Ok(octets),
        _ => Err(malformed(bits.at, "BIT STRING is not whole octets")),
    }
}

fn significant(number: &[u8]) -> Vec<u8> {
    number
        .iter()
        .copied()
        .skip_while(|&byte| byte == 0)
        .collect()
}

/// UTCTime or GeneralizedTime of RFC 5280, 4.1.2.5, as Unix seconds.
fn unix_time(time: Element<'_>) -> Result<u64, IdentityError> {
    let wrong = || malformed(time.at, "not a time");
    let digits = time.content.strip_suffix(b"Z").ok_or_else(wrong)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    let pairs: Vec<u8> = digits
        .chunks(2)
        .map(|pair| {
            pair.iter()
                .fold(0, |number, digit| number * 10 + (digit - b'0'))
        })
        .collect();
    let (year, rest) = match (time.tag, digits.len()) {
        (0x17, 12) => {
            let century = if pairs[0] < 50 { 2000 } else { 1900 };
            (century + u16::from(pairs[0]), &pairs[1..])
        }
        (0x18, 14) => (u16::from(pairs[0]) * 100 + u16::from(pairs[1]), &pairs[2..]),
        _ => return Err(wrong()),
    };
    let &[month, day, hour, minute, second] = rest else {
        return Err(wrong());
    };
    DateTime::new(year, month, day, hour, minute, second)
        .map(|time| time.unix_duration().as_secs())
        .map_err(|_| wrong())
}

/// Equal for names that are the same but for letter case and the kinds of their strings.
fn name_key(name: Element<'_>) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.content.len());
    let mut attributes = || -> Result<(), IdentityError> {
        let mut rdns = name.inside();
        while rdns.peek().is_some() {
            let mut set = rdns.next()?.inside();
            while set.peek().is_some() {
                let mut attribute = set.next()?.inside();
                let (oid, value) = (attribute.next()?, attribute.next()?);
                for part in [oid.content, &value.content.to_ascii_lowercase()] {
                    key.extend_from_slice(&part.len().to_be_bytes());
                    key.extend_from_slice(part);
                }
            }
        }
        Ok(())
    };
    match attributes() {
        Ok(()) => key,
        Err(_) => name.content.to_vec(),
    }
}

/// The name as RFC 4514 writes it, fit for a log line; `None` for an empty name.
fn name_text(name: Element<'_>) -> Option<String> {
    const LONGEST: usize = 200;
    if name.content.is_empty() {
        return None;
    }
    let text = x509_cert::name::Name::from_der(name.raw).map_or_else(
        |_| format!("name {}", hex::encode(name.content)),
        |name| name.to_string(),
    );
    let printable = |c: char| if c.is_control() { '?' } else { c };
    Some(text.chars().take(LONGEST).map(printable).collect())
}

/// Dotted form.
fn oid_text(oid: &[u8]) -> String {
    ObjectIdentifier::from_bytes(oid).map_or_else(|_| hex::encode(oid), |oid| oid.to_string())
}
