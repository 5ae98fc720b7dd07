use aws_lc_rs::signature::{self, RsaParameters, VerificationAlgorithm};

use super::buffer::Reader;
use super::{EccCurve, HashAlgorithm, StructureError, der};

/// Largest RSA signature that is read: 8192 bits.
const MAX_RSA_SIGNATURE: usize = 1024;
/// Largest ECDSA component: P-521.
const MAX_ECC_COMPONENT: usize = 66;

/// `TPMI_ALG_SIG_SCHEME`, the asymmetric schemes of quotes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SignatureScheme {
    /// `TPM_ALG_RSASSA` 0x0014.
    RsaSsa,
    /// `TPM_ALG_RSAPSS` 0x0016.
    RsaPss,
    /// `TPM_ALG_ECDSA` 0x0018.
    Ecdsa,
}

impl SignatureScheme {
    /// The scheme of a `TPM_ALG_ID`.
    pub fn from_id(id: u16) -> Option<Self> {
        match id {
            0x0014 => Some(Self::RsaSsa),
            0x0016 => Some(Self::RsaPss),
            0x0018 => Some(Self::Ecdsa),
            _ => None,
        }
    }

    /// Keylime's name: `rsassa`, `rsapss`, `ecdsa`.
    pub fn name(self) -> &'static str {
        match self {
            Self::RsaSsa => "rsassa",
            Self::RsaPss => "rsapss",
            Self::Ecdsa => "ecdsa",
        }
    }
}

/// Prints Keylime's name.
impl std::fmt::Display for SignatureScheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// TPMT_SIGNATURE (TPM 2.0 Part 2, 11.3.4).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Signature {
    /// The scheme.
    pub scheme: SignatureScheme,
    /// Hash of the signed message.
    pub hash: HashAlgorithm,
    /// RSA: the signature. ECDSA: DER ECDSA-Sig-Value made of r and s.
    pub bytes: Vec<u8>,
}

impl Signature {
    /// Parses TPMT_SIGNATURE; nothing may follow.
    pub fn parse(bytes: &[u8]) -> Result<Self, StructureError> {
        let mut reader = Reader::new("TPMT_SIGNATURE", bytes);
        let scheme = SignatureScheme::from_id(reader.u16()?)
            .ok_or_else(|| reader.error_at(0, "sigAlg is not RSASSA, RSAPSS or ECDSA"))?;
        let hash = HashAlgorithm::from_id(reader.u16()?)
            .ok_or_else(|| reader.error_at(2, "hash is not SHA-1, SHA-256, SHA-384 or SHA-512"))?;
        let bytes = match scheme {
            SignatureScheme::RsaSsa | SignatureScheme::RsaPss => {
                reader.tpm2b(MAX_RSA_SIGNATURE)?.to_vec()
            }
            SignatureScheme::Ecdsa => {
                let r = der::unsigned(reader.tpm2b(MAX_ECC_COMPONENT)?);
                let s = der::unsigned(reader.tpm2b(MAX_ECC_COMPONENT)?);
                der::sequence(&[&r, &s])
            }
        };
        reader.finish()?;
        Ok(Self {
            scheme,
            hash,
            bytes,
        })
    }
}

/// The RSA check for a scheme and a hash, for keys of 2048 to 8192 bits, with PSS salts as long as
/// the hash; `None` for SHA-1 and ECDSA.
pub(crate) fn rsa_verification(
    scheme: SignatureScheme,
    hash: HashAlgorithm,
) -> Option<&'static RsaParameters> {
    use HashAlgorithm::{Sha1, Sha256, Sha384, Sha512};
    use SignatureScheme::{Ecdsa, RsaPss, RsaSsa};
    Some(match (scheme, hash) {
        (_, Sha1) | (Ecdsa, _) => return None,
        (RsaSsa, Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (RsaSsa, Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (RsaSsa, Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (RsaPss, Sha256) => &signature::RSA_PSS_2048_8192_SHA256,
        (RsaPss, Sha384) => &signature::RSA_PSS_2048_8192_SHA384,
        (RsaPss, Sha512) => &signature::RSA_PSS_2048_8192_SHA512,
    })
}

/// The ECDSA check for a curve and a hash; `None` for SHA-1.
pub(crate) fn ecdsa_verification(
    curve: EccCurve,
    hash: HashAlgorithm,
) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (curve, hash) {
        (_, HashAlgorithm::Sha1) => return None,
        (EccCurve::NistP256, HashAlgorithm::Sha256) => &signature::ECDSA_P256_SHA256_ASN1,
        (EccCurve::NistP256, HashAlgorithm::Sha384) => &signature::ECDSA_P256_SHA384_ASN1,
        (EccCurve::NistP256, HashAlgorithm::Sha512) => &signature::ECDSA_P256_SHA512_ASN1,
        (EccCurve::NistP384, HashAlgorithm::Sha256) => &signature::ECDSA_P384_SHA256_ASN1,
        (EccCurve::NistP384, HashAlgorithm::Sha384) => &signature::ECDSA_P384_SHA384_ASN1,
        (EccCurve::NistP384, HashAlgorithm::Sha512) => &signature::ECDSA_P384_SHA512_ASN1,
        (EccCurve::NistP521, HashAlgorithm::Sha256) => &signature::ECDSA_P521_SHA256_ASN1,
        (EccCurve::NistP521, HashAlgorithm::Sha384) => &signature::ECDSA_P521_SHA384_ASN1,
        (EccCurve::NistP521, HashAlgorithm::Sha512) => &signature::ECDSA_P521_SHA512_ASN1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecdsa_becomes_der() {
        let bytes = [0, 0x18, 0, 0x0b, 0, 2, 0x80, 1, 0, 1, 5];
        let signature = Signature::parse(&bytes).unwrap();
        assert_eq!(signature.scheme, SignatureScheme::Ecdsa);
        assert_eq!(signature.bytes, [0x30, 8, 2, 3, 0, 0x80, 1, 2, 1, 5]);
    }

    #[test]
    fn foreign_schemes_and_hashes_are_named() {
        let error = Signature::parse(&[0, 0x1c, 0, 0x0b, 0, 0, 0, 0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "TPMT_SIGNATURE at byte 0: sigAlg is not RSASSA, RSAPSS or ECDSA"
        );
        assert_eq!(
            Signature::parse(&[0, 0x14, 0, 0x12, 0, 0])
                .unwrap_err()
                .offset,
            2
        );
        assert_eq!(
            Signature::parse(&[0, 0x14, 0, 0x0b, 0, 1, 1, 1])
                .unwrap_err()
                .offset,
            7
        );
    }
}
