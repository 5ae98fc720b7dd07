use super::{HashAlgorithm, SignatureScheme, StructureError};

/// TPMT_PUBLIC with its marshalled bytes, which the name is computed over.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Public {
    tpmt: Vec<u8>,
    name_alg: HashAlgorithm,
    attributes: ObjectAttributes,
    auth_policy: Vec<u8>,
    parms: PublicParms,
}

/// TPMU_PUBLIC_PARMS and TPMU_PUBLIC_ID together.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum PublicParms {
    /// TPM_ALG_RSA.
    Rsa {
        /// AES-CFB key size in bits of a storage key; `None` for TPM_ALG_NULL.
        symmetric_bits: Option<u16>,
        /// Signing scheme and its hash; `None` for TPM_ALG_NULL.
        scheme: Option<(SignatureScheme, HashAlgorithm)>,
        /// Modulus size in bits.
        key_bits: u16,
        /// Public exponent; 65537 where the structure says 0.
        exponent: u32,
        /// Modulus, big-endian.
        modulus: Vec<u8>,
    },
    /// TPM_ALG_ECC.
    Ecc {
        /// AES-CFB key size in bits of a storage key; `None` for TPM_ALG_NULL.
        symmetric_bits: Option<u16>,
        /// Signing scheme and its hash; `None` for TPM_ALG_NULL.
        scheme: Option<(SignatureScheme, HashAlgorithm)>,
        /// The curve.
        curve: EccCurve,
        /// Affine x, big-endian, padded to the field size.
        x: Vec<u8>,
        /// Affine y, big-endian, padded to the field size.
        y: Vec<u8>,
    },
}

/// TPM_ECC_CURVE, the NIST curves that EK templates name.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EccCurve {
    /// TPM_ECC_NIST_P256.
    NistP256,
    /// TPM_ECC_NIST_P384.
    NistP384,
    /// TPM_ECC_NIST_P521.
    NistP521,
}

/// TPMA_OBJECT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ObjectAttributes(pub u32);

/// TPM2B_NAME of an object: nameAlg and the digest of its TPMT_PUBLIC. Prints as hex.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Name(Vec<u8>);

impl Name {
    /// The bytes: TPM_ALG_ID, then the digest.
    pub fn as_bytes(&self) -> &[u8] { &self.0 }
}

impl Public {
    /// Parses TPM2B_PUBLIC (u16 size, TPMT_PUBLIC); nothing may follow.
    pub fn from_tpm2b(_bytes: &[u8]) -> Result<Self, StructureError> { todo!() }
    /// Parses TPMT_PUBLIC; nothing may follow.
    pub fn from_tpmt(_bytes: &[u8]) -> Result<Self, StructureError> { todo!() }
    /// TPM2B_PUBLIC.
    pub fn to_tpm2b(&self) -> Vec<u8> { todo!() }
    /// TPMT_PUBLIC as it was parsed.
    pub fn as_tpmt(&self) -> &[u8] { &self.tpmt }
    /// nameAlg.
    pub fn name_alg(&self) -> HashAlgorithm { self.name_alg }
    /// objectAttributes.
    pub fn attributes(&self) -> ObjectAttributes { self.attributes }
    /// authPolicy.
    pub fn auth_policy(&self) -> &[u8] { &self.auth_policy }
    /// Parameters and unique.
    pub fn parms(&self) -> &PublicParms { &self.parms }
    /// The object's name (Part 1, "Names").
    pub fn name(&self) -> Name { todo!() }
    /// SubjectPublicKeyInfo, DER.
    pub fn to_spki_der(&self) -> Vec<u8> { todo!() }
    /// SubjectPublicKeyInfo, PEM: 64 columns, LF, final LF.
    pub fn to_spki_pem(&self) -> String { todo!() }
    /// Keylime's `enc_alg` name with its size: `rsa2048`, `ecc256`.
    pub fn enc_alg(&self) -> String { todo!() }
}
