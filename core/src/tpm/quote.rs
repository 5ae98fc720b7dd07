use super::{ClockInfo, HashAlgorithm, Name, PcrBlobError, PcrMask, PcrValues, Public, SignatureScheme, StructureError};

/// A quote as it came over the wire: parsed, not yet checked. Its values cannot be read.
#[derive(Clone, Debug)]
pub struct Quote {
    attest: Vec<u8>,
    signature: Vec<u8>,
    pcrs: PcrValues,
}

impl Quote {
    /// Parses Keylime's quote string `r<b64>:<b64>:<b64>`.
    pub fn parse(_text: &str) -> Result<Self, QuoteError> { todo!() }
    /// From the three binary parts.
    pub fn from_parts(_attest: &[u8], _signature: &[u8], _pcrs: PcrValues) -> Result<Self, QuoteError> { todo!() }
    /// Writes the quote string.
    pub fn encode(_attest: &[u8], _signature: &[u8], _pcrs: &PcrValues) -> String { todo!() }
    /// The only way to a [`VerifiedQuote`]: AK signature, magic, type, nonce, selection, PCR digest.
    pub fn verify(&self, _key: &AttestationKey, _expected: &Expected<'_>) -> Result<VerifiedQuote, QuoteError> { todo!() }
}

/// What the verifier asked for.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Qualifying data, the ASCII bytes of the nonce.
    pub nonce: &'a [u8],
    /// The bank, and the hash the signature must use.
    pub hash: HashAlgorithm,
    /// PCRs that must be in the quote, exactly; no more, no less.
    pub mask: PcrMask,
}

/// An AK public key, parsed once and kept per node.
#[derive(Debug)]
pub struct AttestationKey { name: Name }

impl AttestationKey {
    /// From the AK's public area. Object attributes are checked by [`crate::identity::check_ak`], not here.
    pub fn new(_public: &Public) -> Result<Self, KeyError> { todo!() }
    /// The AK's name.
    pub fn name(&self) -> &Name { &self.name }
    /// The scheme that its quotes must use.
    pub fn scheme(&self) -> SignatureScheme { todo!() }
}

/// A quote whose AK signature, nonce, selection and PCR digest were checked. Made by [`Quote::verify`] alone.
#[derive(Clone, Debug)]
pub struct VerifiedQuote { pcrs: PcrValues, clock: ClockInfo, firmware_version: u64 }

impl VerifiedQuote {
    /// The quoted values.
    pub fn pcrs(&self) -> &PcrValues { &self.pcrs }
    /// TPM clock and counters.
    pub fn clock(&self) -> ClockInfo { self.clock }
    /// TPM firmware version.
    pub fn firmware_version(&self) -> u64 { self.firmware_version }
}

/// Why a quote is not believed. Variants may be renamed/extended by the implementer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// A structure does not parse.
    #[error(transparent)]
    Structure(#[from] StructureError),
    /// The PCR blob does not parse.
    #[error(transparent)]
    PcrBlob(#[from] PcrBlobError),
}
/// An AK that cannot sign quotes we can check.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not a signing key of a known scheme.
    #[error("AK has no signing scheme (TPM_ALG_NULL)")]
    NoScheme,
}
