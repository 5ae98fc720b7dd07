use super::{HashAlgorithm, StructureError};

/// TPMI_ALG_SIG_SCHEME, the asymmetric schemes of quotes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SignatureScheme {
    /// TPM_ALG_RSASSA 0x0014.
    RsaSsa,
    /// TPM_ALG_RSAPSS 0x0016.
    RsaPss,
    /// TPM_ALG_ECDSA 0x0018.
    Ecdsa,
}
impl SignatureScheme {
    /// Keylime's name: `rsassa`, `rsapss`, `ecdsa`.
    pub fn name(self) -> &'static str { todo!() }
}

/// TPMT_SIGNATURE.
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
    pub fn parse(_bytes: &[u8]) -> Result<Self, StructureError> { todo!() }
}
