use super::{Digest, HashAlgorithm};

/// Number of PCRs of a TPM 2.0 as the PC Client profile defines it.
const PCR_COUNT: usize = 24;

/// A set of PCRs 0 to 23; bit n is PCR n.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct PcrMask(u32);

impl PcrMask {
    /// From bits; bits 24 and up are an error.
    pub fn from_bits(_bits: u32) -> Result<Self, PcrMaskError> { todo!() }
    /// From hex text with an optional `0x`, as Keylime's `mask` parameter.
    pub fn from_hex(_text: &str) -> Result<Self, PcrMaskError> { todo!() }
    /// The bits.
    pub fn bits(self) -> u32 { self.0 }
    /// Is PCR `pcr` in the set?
    pub fn contains(self, _pcr: u8) -> bool { todo!() }
    /// The set with PCR `pcr` added (`pcr` < 24, else unchanged).
    #[must_use]
    pub fn with(self, _pcr: u8) -> Self { todo!() }
    /// Union.
    #[must_use]
    pub fn union(self, _other: Self) -> Self { todo!() }
    /// The PCR numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> { (0..24u8).filter(move |p| self.0 >> p & 1 == 1) }
    /// Empty?
    pub fn is_empty(self) -> bool { self.0 == 0 }
}
/// Prints as `0x408400`.
impl std::fmt::Display for PcrMask { fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { todo!() } }

/// A mask that names no valid set of PCRs.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PcrMaskError {
    /// Not hexadecimal.
    #[error("mask {0:?} is not a hexadecimal 32-bit number")]
    NotHex(String),
    /// Names a PCR above 23.
    #[error("mask {0:#x} names a PCR above 23")]
    OutOfRange(u32),
}

/// Values of some PCRs of one bank.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PcrValues {
    bank: HashAlgorithm,
    values: [Option<Digest>; PCR_COUNT],
}

impl PcrValues {
    /// No value yet.
    pub fn new(bank: HashAlgorithm) -> Self { Self { bank, values: [None; PCR_COUNT] } }
    /// The bank.
    pub fn bank(&self) -> HashAlgorithm { self.bank }
    /// The value of one PCR, if present.
    pub fn get(&self, _pcr: u8) -> Option<&Digest> { todo!() }
    /// Sets one value (`pcr` < 24, else ignored).
    pub fn set(&mut self, _pcr: u8, _value: Digest) { todo!() }
    /// Which PCRs are present.
    pub fn mask(&self) -> PcrMask { todo!() }
    /// Number and value, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Digest)> { self.values.iter().enumerate().filter_map(|(i, v)| v.as_ref().map(|v| (i as u8, v))) }
    /// `pcrDigest`: H over the values in ascending PCR order.
    pub fn digest(&self) -> Digest { todo!() }
    /// The little-endian memory image that the quote string carries (agent-registrar spec, quote string).
    pub fn to_blob(&self) -> Vec<u8> { todo!() }
    /// Reads such an image: one bank, every byte used, as many values as selected PCRs.
    pub fn from_blob(_blob: &[u8]) -> Result<Self, PcrBlobError> { todo!() }
}

/// A PCR blob that is not one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("PCR blob at byte {offset}: {reason}")]
pub struct PcrBlobError {
    /// Offset in bytes.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}
