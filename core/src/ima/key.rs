use x509_cert::Certificate;
use x509_cert::der::{Decode, DecodePem};
use x509_cert::spki::{ObjectIdentifier, SubjectPublicKeyInfoOwned};

/// id-ecPublicKey (RFC 5480).
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// rsaEncryption (RFC 8017).
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A key that was measured when it was added to a keyring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum MeasuredKey {
    /// RSA.
    Rsa,
    /// Elliptic curve.
    Ec,
    /// Of an algorithm that IMA signatures are not made with.
    Other,
}

impl MeasuredKey {
    /// The key in a measured buffer: an X.509 certificate or SubjectPublicKeyInfo, DER or PEM.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let info = if data.starts_with(b"-----BEGIN ") {
            Certificate::from_pem(data)
                .map(|certificate| {
                    certificate
                        .tbs_certificate()
                        .subject_public_key_info()
                        .clone()
                })
                .or_else(|_| SubjectPublicKeyInfoOwned::from_pem(data))
                .ok()?
        } else if data.first() == Some(&0x30) {
            Certificate::from_der(data)
                .map(|certificate| {
                    certificate
                        .tbs_certificate()
                        .subject_public_key_info()
                        .clone()
                })
                .or_else(|_| SubjectPublicKeyInfoOwned::from_der(data))
                .ok()?
        } else {
            return None;
        };
        Some(match info.algorithm.oid {
            RSA_ENCRYPTION => Self::Rsa,
            EC_PUBLIC_KEY => Self::Ec,
            _ => Self::Other,
        })
    }
}
