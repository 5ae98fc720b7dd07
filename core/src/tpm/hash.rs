use serde::{Deserialize, Serialize};

/// A hash algorithm of a PCR bank or a signature (TPM_ALG_ID).
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum HashAlgorithm {
    /// `TPM_ALG_SHA1` 0x0004, 20 bytes.
    Sha1,
    /// `TPM_ALG_SHA256` 0x000B, 32 bytes.
    Sha256,
    /// `TPM_ALG_SHA384` 0x000C, 48 bytes.
    Sha384,
    /// `TPM_ALG_SHA512` 0x000D, 64 bytes.
    Sha512,
}

impl HashAlgorithm {
    /// The algorithm of a TPM_ALG_ID.
    pub fn from_id(_id: u16) -> Option<Self> { todo!() }
    /// Its TPM_ALG_ID.
    pub fn id(self) -> u16 { todo!() }
    /// The algorithm of a lower-case name as Keylime writes it (`sha256`).
    pub fn from_name(_name: &str) -> Option<Self> { todo!() }
    /// Its name as Keylime writes it.
    pub fn name(self) -> &'static str { todo!() }
    /// Digest size in bytes.
    pub fn size(self) -> usize { todo!() }
    /// Hash over the concatenation of `parts`.
    pub fn digest(self, _parts: &[&[u8]]) -> Digest { todo!() }
}

/// A digest of up to 64 bytes. `Copy`, never on the heap. Prints as lower-case hex.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Digest {
    bytes: [u8; 64],
    len: u8,
}

impl Digest {
    /// All zero, of the bank's size: a PCR after reset.
    pub fn zero(_algorithm: HashAlgorithm) -> Self { todo!() }
    /// All ones, of the bank's size: what a violation extends.
    pub fn ones(_algorithm: HashAlgorithm) -> Self { todo!() }
    /// From raw bytes; `None` over 64.
    pub fn from_slice(_bytes: &[u8]) -> Option<Self> { todo!() }
    /// From hex of either case; `None` when it is not hex or over 64 bytes.
    pub fn from_hex(_hex: &str) -> Option<Self> { todo!() }
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] { &self.bytes[..usize::from(self.len)] }
    /// TPM2_PCR_Extend: H(self || data).
    #[must_use]
    pub fn extend(&self, _algorithm: HashAlgorithm, _data: &[u8]) -> Self { todo!() }
}
impl std::fmt::Debug for Digest { fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { todo!() } }
impl std::fmt::Display for Digest { fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { todo!() } }
impl Serialize for Digest { fn serialize<S: serde::Serializer>(&self, _s: S) -> Result<S::Ok, S::Error> { todo!("as lower-case hex") } }
impl<'de> Deserialize<'de> for Digest { fn deserialize<D: serde::Deserializer<'de>>(_d: D) -> Result<Self, D::Error> { todo!() } }
