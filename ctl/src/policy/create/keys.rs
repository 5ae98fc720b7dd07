use std::path::{Path, PathBuf};

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
        Self::of(path, &read_file(path)?)
    }

    /// The same, of the content of a file.
    fn of(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        Self::parse(bytes)
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
            return Self::of_private(&key);
        }
        Self::of_certificate(bytes)
            .or_else(|| {
                SubjectPublicKeyInfoRef::from_der(bytes).ok()?;
                Some(Self::bare(bytes.to_vec()))
            })
            .or_else(|| {
                let key = PrivateKeyDer::try_from(bytes).ok()?;
                Self::of_private(&key)
            })
    }

    fn bare(spki: Vec<u8>) -> Self {
        Self { id: None, spki }
    }

    fn of_private(key: &PrivateKeyDer<'_>) -> Option<Self> {
        Private::parse(key)?.public_half().map(Self::bare)
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

/// Keylime's JSON of keys whose signatures of files count: of files with a key, and of such JSON.
/// `None`: no file is named.
pub(crate) fn verification_keys(paths: &[PathBuf]) -> Result<Option<String>, Error> {
    let mut keys = VerificationKeys::default();
    for path in paths {
        let unusable = |source| Error::Policy {
            what: path.display().to_string(),
            source,
        };
        let bytes = read_file(path)?;
        let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
        if text.starts_with('{') {
            let more = VerificationKeys::parse(text).map_err(unusable)?;
            for (id, spki) in more.iter() {
                keys.add(Some(id), spki).map_err(unusable)?;
            }
        } else {
            let key = Key::of(path, &bytes)?;
            keys.add(key.id, &key.spki).map_err(unusable)?;
        }
    }
    Ok((!paths.is_empty()).then(|| keys.to_json()))
}

/// A private key that signs files.
pub(super) struct SigningKey {
    pub(super) private: Private,
    /// DER SubjectPublicKeyInfo of its public half.
    pub(super) spki: Vec<u8>,
    /// What its signatures call it.
    pub(super) id: u32,
}

/// A private key by its kind.
pub(super) enum Private {
    Rsa(rsa::KeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    P521(EcdsaKeyPair),
}

impl SigningKey {
    /// A private key in PEM, without a password; if its certificate is in the same file, that says
    /// how its signatures call it.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let bytes = read_file(path)?;
        let fail = |reason: &str| Error::Malformed {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let key = PrivateKeyDer::from_pem_slice(&bytes);
        let key = key.map_err(|_| fail("no private key in PEM without a password"))?;
        let private = Private::parse(&key);
        let private = private.ok_or_else(|| fail("not a key of RSA, P-256, P-384 or P-521"))?;
        let spki = private.public_half();
        let spki = spki.ok_or_else(|| fail("it has no public half"))?;
        let mut id = None;
        if let Ok(certificate) = CertificateDer::from_pem_slice(&bytes) {
            let certificate = Key::of_certificate(&certificate);
            let certificate = certificate.filter(|certificate| certificate.spki == spki);
            id = certificate
                .ok_or_else(|| fail("the certificate in it is for another key"))?
                .id;
        }
        let id = id.or_else(|| VerificationKeys::id(&spki));
        let id = id.ok_or_else(|| fail("not a key of RSA or EC"))?;
        Ok(Self { private, spki, id })
    }
}

impl Private {
    fn parse(key: &PrivateKeyDer<'_>) -> Option<Self> {
        let rsa = match key {
            PrivateKeyDer::Pkcs1(der) => rsa::KeyPair::from_der(der.secret_pkcs1_der()).ok(),
            PrivateKeyDer::Pkcs8(der) => rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
            _ => None,
        };
        let ec = |curve| EcdsaKeyPair::from_private_key_der(curve, key.secret_der()).ok();
        rsa.map(Self::Rsa)
            .or_else(|| ec(&ECDSA_P256_SHA256_ASN1_SIGNING).map(Self::P256))
            .or_else(|| ec(&ECDSA_P384_SHA384_ASN1_SIGNING).map(Self::P384))
            .or_else(|| ec(&ECDSA_P521_SHA512_ASN1_SIGNING).map(Self::P521))
    }

    /// DER SubjectPublicKeyInfo.
    fn public_half(&self) -> Option<Vec<u8>> {
        let der: PublicKeyX509Der<'_> = match self {
            Self::Rsa(pair) => pair.public_key().as_der(),
            Self::P256(pair) | Self::P384(pair) | Self::P521(pair) => pair.public_key().as_der(),
        }
        .ok()?;
        Some(der.as_ref().to_vec())
    }
}
