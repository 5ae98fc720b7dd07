use std::sync::OnceLock;

use aws_lc_rs::digest::{Algorithm, Digest as AwsDigest, SHA256, SHA384, SHA512};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, VerificationAlgorithm,
};
use x509_cert::Certificate;
use x509_cert::der::asn1::{OctetString, UintRef};
use x509_cert::der::oid::db::{rfc5280, rfc5912};
use x509_cert::der::{Decode, DecodePem, Encode, Reader, SliceReader};
use x509_cert::spki::{ObjectIdentifier, SubjectPublicKeyInfoOwned};

use crate::tpm::HashAlgorithm;

/// Longest key, in bytes of its SubjectPublicKeyInfo: RSA of 8192 bits takes some 1,060.
pub(super) const MAX_KEY: usize = 2_048;

/// A public key that IMA signatures are checked with: RSA from 2048 bits on, or EC on P-256, P-384
/// or P-521.
#[derive(Debug)]
pub struct ImaKey {
    id: u32,
    kind: Kind,
    /// SubjectPublicKeyInfo, DER.
    spki: Box<[u8]>,
    /// What the library takes: RSAPublicKey, or the point.
    key: Box<[u8]>,
    /// SHA-256 of `spki`.
    fingerprint: [u8; 32],
    /// Parsed when it is first needed, for RSA once for each hash.
    parsed: [OnceLock<Option<ParsedPublicKey>>; 4],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Rsa,
    P256,
    P384,
    P521,
}

/// A key that no IMA signature is checked with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// No SubjectPublicKeyInfo.
    #[error("it is no public key (DER, SubjectPublicKeyInfo)")]
    NotAKey,
    /// Another algorithm than RSA or EC.
    #[error("it is neither an RSA nor an EC key")]
    Algorithm,
    /// Too small, too large, or on another curve.
    #[error("it is not RSA of 2048 to 8192 bits, nor EC on P-256, P-384 or P-521")]
    Size,
}

impl ImaKey {
    /// From a SubjectPublicKeyInfo in DER. `id` is the key's id where it has one of its own; else
    /// it is made of the key: the end of the SHA-1 over the RSAPublicKey or the point.
    ///
    /// # Errors
    /// Why no signature is checked with it.
    pub fn from_spki(der: &[u8], id: Option<u32>) -> Result<Self, KeyFault> {
        if der.len() > MAX_KEY {
            return Err(KeyFault::Size);
        }
        let info = SubjectPublicKeyInfoOwned::from_der(der).map_err(|_| KeyFault::NotAKey)?;
        Self::new(&info, id)
    }

    fn new(info: &SubjectPublicKeyInfoOwned, id: Option<u32>) -> Result<Self, KeyFault> {
        let parameters = info.algorithm.parameters.as_ref();
        let curve = parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let kind = match (info.algorithm.oid, curve) {
            // The parameters are NULL (RFC 3279, 2.3.1).
            (rfc5912::RSA_ENCRYPTION, _) if parameters.is_none_or(|any| any.is_null()) => Kind::Rsa,
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_256_R_1)) => Kind::P256,
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_384_R_1)) => Kind::P384,
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_521_R_1)) => Kind::P521,
            (rfc5912::ID_EC_PUBLIC_KEY, _) => return Err(KeyFault::Size),
            _ => return Err(KeyFault::Algorithm),
        };
        let spki = info.to_der().map_err(|_| KeyFault::NotAKey)?;
        if spki.len() > MAX_KEY {
            return Err(KeyFault::Size);
        }
        let key = info
            .subject_public_key
            .as_bytes()
            .ok_or(KeyFault::NotAKey)?;
        let made = || {
            let hash = HashAlgorithm::Sha1.digest(&[key]);
            last_four(hash.as_bytes()).unwrap_or_default()
        };
        let key = Self {
            id: id.filter(|id| *id != 0).unwrap_or_else(made),
            kind,
            key: key.into(),
            fingerprint: sha256(&spki),
            spki: spki.into(),
            parsed: Default::default(),
        };
        let usable = match kind {
            Kind::Rsa => rsa_bits(&key.key).is_some_and(|bits| (2048..=8192).contains(&bits)),
            // The id is made of the uncompressed point.
            _ => key.key.first() == Some(&4),
        };
        (usable && key.parsed(0).is_some())
            .then_some(key)
            .ok_or(KeyFault::Size)
    }

    /// Which signatures are its: IMA's key id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// SubjectPublicKeyInfo in DER.
    pub(super) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub(super) fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Is `signature` this key's over `digest`, of the hash of that name? `None`: keys of this kind
    /// are not used with it.
    pub(super) fn verifies(&self, hash: &str, digest: &[u8], signature: &[u8]) -> Option<bool> {
        let (which, algorithm, digest) = match self.kind {
            Kind::Rsa => {
                let which = RSA.iter().position(|(name, ..)| *name == hash)?;
                let (_, _, algorithm) = RSA.get(which)?;
                (which, *algorithm, digest.to_vec())
            }
            // ECDSA takes the digest as a number, of as many bits as the curve's order has (FIPS
            // 186-5, 6.4.1), so that any digest stands for one of the size that belongs to the
            // curve.
            Kind::P256 => (0, &SHA256, to_size(digest, 32)),
            Kind::P384 => (0, &SHA384, to_size(digest, 48)),
            Kind::P521 => (0, &SHA512, to_size(digest, 64)),
        };
        let digest = AwsDigest::import_less_safe(&digest, algorithm).ok()?;
        let key = self.parsed(which)?;
        Some(key.verify_digest_sig(&digest, signature).is_ok())
    }

    /// The key as the library has it, for the hash of that index.
    fn parsed(&self, which: usize) -> Option<&ParsedPublicKey> {
        let slot = self.parsed.get(which)?;
        let parse = || {
            let algorithm: &'static dyn VerificationAlgorithm = match self.kind {
                Kind::Rsa => RSA.get(which)?.1,
                Kind::P256 => &ECDSA_P256_SHA256_ASN1,
                Kind::P384 => &ECDSA_P384_SHA384_ASN1,
                Kind::P521 => &ECDSA_P521_SHA512_ASN1,
            };
            ParsedPublicKey::new(algorithm, &self.key).ok()
        };
        slot.get_or_init(parse).as_ref()
    }
}

/// Hashes that RSA signatures are checked with.
static RSA: [(&str, &dyn VerificationAlgorithm, &Algorithm); 4] = [
    ("sha256", &RSA_PKCS1_2048_8192_SHA256, &SHA256),
    ("sha512", &RSA_PKCS1_2048_8192_SHA512, &SHA512),
    ("sha384", &RSA_PKCS1_2048_8192_SHA384, &SHA384),
    (
        "sha1",
        &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
        &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
    ),
];

/// The leftmost `size` bytes of a digest, or the digest behind zeros.
fn to_size(digest: &[u8], size: usize) -> Vec<u8> {
    let digest = digest.get(..size).unwrap_or(digest);
    let mut number = vec![0; size - digest.len()];
    number.extend_from_slice(digest);
    number
}

/// Bits of the modulus of an RSAPublicKey.
fn rsa_bits(der: &[u8]) -> Option<u32> {
    let mut reader = SliceReader::new(der).ok()?;
    let modulus = reader
        .sequence(|inner: &mut SliceReader<'_>| {
            let modulus = UintRef::decode(inner)?;
            UintRef::decode(inner)?;
            Ok::<_, x509_cert::der::Error>(modulus)
        })
        .ok()?;
    let bytes = modulus.as_bytes();
    let first = bytes.first()?;
    u32::try_from(bytes.len())
        .ok()?
        .checked_mul(8)?
        .checked_sub(first.leading_zeros())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&SHA256, bytes);
    let mut copy = [0; 32];
    copy.copy_from_slice(digest.as_ref());
    copy
}

fn last_four(bytes: &[u8]) -> Option<u32> {
    bytes.last_chunk().map(|four| u32::from_be_bytes(*four))
}

/// A key that was measured when it was added to a keyring.
#[derive(Debug)]
pub enum MeasuredKey {
    /// One that signatures can be checked with.
    Usable(Box<ImaKey>),
    /// An RSA or EC key that they are not checked with.
    Unusable,
    /// Of an algorithm that IMA signatures are not made with.
    Other,
}

impl MeasuredKey {
    /// The key in a measured buffer: an X.509 certificate or SubjectPublicKeyInfo, DER or PEM.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let pem = data.starts_with(b"-----BEGIN ");
        if !pem && data.first() != Some(&0x30) {
            return None;
        }
        let certificate = if pem {
            Certificate::from_pem(data)
        } else {
            Certificate::from_der(data)
        };
        let (info, id) = match certificate {
            Ok(certificate) => {
                let id = subject_key_id(&certificate);
                let info = certificate.tbs_certificate().subject_public_key_info();
                (info.clone(), id)
            }
            Err(_) if pem => (SubjectPublicKeyInfoOwned::from_pem(data).ok()?, None),
            Err(_) => (SubjectPublicKeyInfoOwned::from_der(data).ok()?, None),
        };
        Some(match ImaKey::new(&info, id) {
            Ok(key) => Self::Usable(Box::new(key)),
            Err(KeyFault::Algorithm) => Self::Other,
            Err(_) => Self::Unusable,
        })
    }
}

/// The end of the subjectKeyIdentifier (RFC 5280, 4.2.1.2).
fn subject_key_id(certificate: &Certificate) -> Option<u32> {
    let extensions = certificate.tbs_certificate().extensions()?;
    let extension = extensions
        .iter()
        .find(|extension| extension.extn_id == rfc5280::ID_CE_SUBJECT_KEY_IDENTIFIER)?;
    let id = OctetString::from_der(extension.extn_value.as_bytes()).ok()?;
    last_four(id.as_bytes())
}
