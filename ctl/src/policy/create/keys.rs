use std::path::Path;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rsa,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING,
        ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    },
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, pem::PemObject};
use troth_core::policy::VerificationKeys;
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
    ext::pkix::SubjectKeyIdentifier,
    spki::SubjectPublicKeyInfoRef,
};

use super::super::read_file;
use crate::error::Error;

/// A key whose signatures of files count.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Key {
    /// What its signatures call it, if a certificate says so.
    pub(super) id: Option<u32>,
    /// DER SubjectPublicKeyInfo.
    pub(super) spki: Vec<u8>,
}

impl Key {
    /// A certificate, a public or a private key, PEM or DER.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let bytes = read_file(path)?;
        Self::parse(&bytes)
            .filter(|key| VerificationKeys::id(&key.spki).is_some())
            .ok_or_else(|| Error::Malformed {
                path: path.to_owned(),
                reason: "no certificate, public or private key of RSA or EC, PEM or DER".to_owned(),
            })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        if let Ok(certificate) = CertificateDer::from_pem_slice(bytes) {
            return Self::of_certificate(&certificate);
        }
        if let Ok(key) = SubjectPublicKeyInfoDer::from_pem_slice(bytes) {
            return Some(Self::bare(key.to_vec()));
        }
        if let Ok(key) = PrivateKeyDer::from_pem_slice(bytes) {
            return public_half(&key).map(Self::bare);
        }
        Self::of_certificate(bytes)
            .or_else(|| {
                SubjectPublicKeyInfoRef::from_der(bytes).ok()?;
                Some(Self::bare(bytes.to_vec()))
            })
            .or_else(|| {
                let key = PrivateKeyDer::try_from(bytes).ok()?;
                public_half(&key).map(Self::bare)
            })
    }

    fn bare(spki: Vec<u8>) -> Self {
        Self { id: None, spki }
    }

    fn of_certificate(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let certificate = certificate.tbs_certificate();
        let id = certificate.get_extension::<SubjectKeyIdentifier>();
        let id = id.ok().flatten();
        let id = id.and_then(|(_, id)| id.0.as_bytes().last_chunk().copied());
        Some(Self {
            id: id.map(u32::from_be_bytes),
            spki: certificate.subject_public_key_info().to_der().ok()?,
        })
    }
}

/// DER SubjectPublicKeyInfo of a private key.
fn public_half(key: &PrivateKeyDer<'_>) -> Option<Vec<u8>> {
    let bytes = |der: PublicKeyX509Der<'_>| der.as_ref().to_vec();
    let rsa = match key {
        PrivateKeyDer::Pkcs1(der) => rsa::KeyPair::from_der(der.secret_pkcs1_der()).ok(),
        PrivateKeyDer::Pkcs8(der) => rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
        _ => None,
    };
    if let Some(pair) = rsa {
        return pair.public_key().as_der().ok().map(bytes);
    }
    let curves = [
        &ECDSA_P256_SHA256_ASN1_SIGNING,
        &ECDSA_P384_SHA384_ASN1_SIGNING,
        &ECDSA_P521_SHA512_ASN1_SIGNING,
    ];
    let pair = curves
        .into_iter()
        .find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, key.secret_der()).ok())?;
    pair.public_key().as_der().ok().map(bytes)
}
