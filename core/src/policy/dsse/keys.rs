use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA256_ASN1,
    ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, ParsedPublicKey,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use x509_cert::{
    Certificate,
    der::{
        Decode, DecodePem, EncodePem,
        oid::{ObjectIdentifier, db::rfc5912},
        pem::{self, LineEnding},
    },
    spki::SubjectPublicKeyInfoOwned,
};
use zeroize::Zeroizing;

use crate::tpm::HashAlgorithm;

/// Longest key in bytes.
const MAX_KEY: usize = 64 * 1024;

/// Whose signature counts: an EC public key (P-256, P-384 or P-521), used with SHA-256.
#[derive(Clone, Debug)]
pub struct SigningKey {
    key: ParsedPublicKey,
    keyid: String,
}

impl SigningKey {
    /// From a public key or an X.509 certificate, PEM or DER. Of a certificate the key alone
    /// counts: it was chosen by an administrator, not found in the envelope.
    ///
    /// # Errors
    /// What it is instead.
    pub fn parse(bytes: &[u8]) -> Result<Self, SigningKeyError> {
        if bytes.len() > MAX_KEY {
            return Err(SigningKeyError::NotAKey);
        }
        let of = |certificate: Certificate| {
            certificate
                .tbs_certificate()
                .subject_public_key_info()
                .clone()
        };
        let key = Certificate::from_pem(bytes)
            .or_else(|_| Certificate::from_der(bytes))
            .map(of)
            .or_else(|_| SubjectPublicKeyInfoOwned::from_pem(bytes))
            .or_else(|_| SubjectPublicKeyInfoOwned::from_der(bytes))
            .map_err(|_| SigningKeyError::NotAKey)?;
        let parameters = key.algorithm.parameters.as_ref();
        let curve = parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let algorithm = match (key.algorithm.oid, curve) {
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_256_R_1)) => &ECDSA_P256_SHA256_ASN1,
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_384_R_1)) => &ECDSA_P384_SHA256_ASN1,
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_521_R_1)) => &ECDSA_P521_SHA256_ASN1,
            _ => return Err(SigningKeyError::Algorithm),
        };
        let point = key.subject_public_key.raw_bytes();
        let parsed = ParsedPublicKey::new(algorithm, point);
        Ok(Self {
            key: parsed.map_err(|_| SigningKeyError::NotAKey)?,
            keyid: keyid(&key).ok_or(SigningKeyError::NotAKey)?,
        })
    }

    /// What signatures call it (Keylime's ecdsa backend): SHA-256 of the PEM public key, hex.
    pub fn keyid(&self) -> &str {
        &self.keyid
    }

    pub(super) fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(signed, signature).is_ok()
    }
}

fn keyid(key: &SubjectPublicKeyInfoOwned) -> Option<String> {
    let pem = key.to_pem(LineEnding::LF).ok()?;
    Some(HashAlgorithm::Sha256.digest(&[pem.as_bytes()]).to_string())
}

/// Bytes that no signature can be checked with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SigningKeyError {
    /// A key that does not sign policies.
    #[error("it is not an EC key of P-256, P-384 or P-521")]
    Algorithm,
    /// No key at all.
    #[error("it is neither a public key nor an X.509 certificate, in PEM or DER")]
    NotAKey,
}

/// Who signs policies: an EC private key (P-256 or P-521), used with SHA-256, and the id that its
/// signatures name it by.
#[derive(Debug)]
pub struct PolicySigner {
    key: EcdsaKeyPair,
    public: SubjectPublicKeyInfoOwned,
    keyid: String,
}

impl PolicySigner {
    /// From the PEM of a private key, PKCS#8 or SEC1 (`EC PRIVATE KEY`), not encrypted. The id is
    /// that of Keylime's ecdsa backend.
    ///
    /// # Errors
    /// What it is instead.
    pub fn parse(pem: &[u8]) -> Result<Self, PolicySignerError> {
        let der = private_key(pem)?;
        let key = [
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &ECDSA_P521_SHA256_ASN1_SIGNING,
        ]
        .into_iter()
        .find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, &der).ok())
        .ok_or(PolicySignerError::Algorithm)?;
        let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(key.public_key()).ok();
        let spki = spki.and_then(|der| SubjectPublicKeyInfoOwned::from_der(der.as_ref()).ok());
        let public = spki.ok_or(PolicySignerError::Algorithm)?;
        let keyid = keyid(&public).ok_or(PolicySignerError::Algorithm)?;
        Ok(Self { key, public, keyid })
    }

    /// The same key with the id of Keylime's x509 backend, which is its certificate (PEM or DER).
    ///
    /// # Errors
    /// A certificate of another key, or none.
    pub fn with_certificate(self, certificate: &[u8]) -> Result<Self, PolicySignerError> {
        let certificate = Certificate::from_pem(certificate)
            .or_else(|_| Certificate::from_der(certificate))
            .map_err(|_| PolicySignerError::NotACertificate)?;
        if *certificate.tbs_certificate().subject_public_key_info() != self.public {
            return Err(PolicySignerError::OtherCertificate);
        }
        let pem = certificate
            .to_pem(LineEnding::LF)
            .map_err(|_| PolicySignerError::NotACertificate)?;
        let keyid = STANDARD.encode(pem);
        Ok(Self { keyid, ..self })
    }

    /// What its signatures call it.
    pub fn keyid(&self) -> &str {
        &self.keyid
    }

    /// The public half as PEM; `None` does not happen.
    pub fn public_pem(&self) -> Option<String> {
        self.public.to_pem(LineEnding::LF).ok()
    }

    /// The private key as PKCS#8 DER, for a certificate; `None` when it cannot be written.
    pub fn to_pkcs8(&self) -> Option<Zeroizing<Vec<u8>>> {
        let document = self.key.to_pkcs8v1().ok()?;
        Some(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// A signature (DER); `None` when libcrypto fails.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signature = self.key.sign(&SystemRandom::new(), message).ok()?;
        Some(signature.as_ref().to_vec())
    }
}

/// DER of the first private key in a PEM file. `openssl ecparam -genkey` writes parameters before it.
fn private_key(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, PolicySignerError> {
    let text = std::str::from_utf8(text)
        .ok()
        .filter(|text| text.len() <= MAX_KEY)
        .ok_or(PolicySignerError::NotAKey)?;
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("\nDEK-Info:") {
        return Err(PolicySignerError::Encrypted);
    }
    for label in ["PRIVATE KEY", "EC PRIVATE KEY"] {
        let (begin, end) = (
            format!("-----BEGIN {label}-----"),
            format!("-----END {label}-----"),
        );
        let Some((_, rest)) = text.split_once(&begin) else {
            continue;
        };
        let Some((body, _)) = rest.split_once(&end) else {
            continue;
        };
        let block = Zeroizing::new(format!("{begin}{body}{end}\n"));
        let (_, der) = pem::decode_vec(block.as_bytes()).map_err(|_| PolicySignerError::NotAKey)?;
        return Ok(Zeroizing::new(der));
    }
    Err(PolicySignerError::NotAKey)
}

/// Bytes that nothing can be signed with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicySignerError {
    /// A key that does not sign policies.
    #[error("it is not an EC private key of P-256 or P-521")]
    Algorithm,
    /// It has a passphrase.
    #[error("it is encrypted; `openssl pkcs8 -topk8 -nocrypt` writes it in the clear")]
    Encrypted,
    /// No private key at all.
    #[error("it holds no private key in PEM (PKCS#8 or SEC1)")]
    NotAKey,
    /// No certificate at all.
    #[error("it is no X.509 certificate, in PEM or DER")]
    NotACertificate,
    /// The certificate is for another key.
    #[error("the certificate is for another key")]
    OtherCertificate,
}
