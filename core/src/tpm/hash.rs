use std::fmt;

use aws_lc_rs::{digest, hmac};
use serde::{Deserialize, Serialize};

use crate::base16;

/// A hash algorithm of a PCR bank or a signature (`TPM_ALG_ID`).
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
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
    /// All algorithms, weakest first.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The algorithm of a `TPM_ALG_ID`.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.id() == id)
    }

    /// Its `TPM_ALG_ID`.
    pub fn id(self) -> u16 {
        match self {
            Self::Sha1 => 0x0004,
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sha512 => 0x000d,
        }
    }

    /// The algorithm of a lower-case name as Keylime writes it (`sha256`).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    /// Its name as Keylime writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Digest size in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Hash over the concatenation of `parts`.
    pub fn digest(self, parts: &[&[u8]]) -> Digest {
        if let [whole] = parts {
            return Digest::from_aws(&digest::digest(self.aws(), whole));
        }
        // One call over a copy on the stack is twice as fast as a context for what is hashed
        // most: a PCR value with the digest that extends it.
        let mut joined = [0; 256];
        let mut length = 0;
        for part in parts {
            let Some(slot) = joined.get_mut(length..length + part.len()) else {
                let mut context = digest::Context::new(self.aws());
                parts.iter().for_each(|part| context.update(part));
                return Digest::from_aws(&context.finish());
            };
            slot.copy_from_slice(part);
            length += part.len();
        }
        Digest::from_aws(&digest::digest(self.aws(), &joined[..length]))
    }

    fn aws(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }

    /// The HMAC over this hash.
    pub(super) fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }
}

/// Prints Keylime's name.
impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A hash over what comes in pieces, such as a file that is never held whole.
#[derive(Clone)]
pub struct Hasher(digest::Context);

impl Hasher {
    /// A hash over nothing yet.
    pub fn new(algorithm: HashAlgorithm) -> Self {
        Self(digest::Context::new(algorithm.aws()))
    }

    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The hash over all pieces.
    pub fn finish(self) -> Digest {
        Digest::from_aws(&self.0.finish())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

/// A digest of up to 64 bytes. `Copy`, never on the heap. Prints as lower-case hex.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Digest {
    /// Zero from `len` on, so that derived equality holds.
    bytes: [u8; 64],
    len: u8,
}

impl Digest {
    /// All zero, of the bank's size: a PCR after reset.
    pub fn zero(algorithm: HashAlgorithm) -> Self {
        Self::filled(algorithm, 0)
    }

    /// All ones, of the bank's size: what a violation extends.
    pub fn ones(algorithm: HashAlgorithm) -> Self {
        Self::filled(algorithm, 0xff)
    }

    fn filled(algorithm: HashAlgorithm, byte: u8) -> Self {
        let mut bytes = [0; 64];
        bytes[..algorithm.size()].fill(byte);
        Self {
            bytes,
            len: length(algorithm.size()),
        }
    }

    /// From raw bytes; `None` over 64.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut copy = [0; 64];
        copy.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self {
            bytes: copy,
            len: length(bytes.len()),
        })
    }

    /// From hex of either case; `None` when it is not hex or over 64 bytes.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; 64];
        let size = hex.len() / 2;
        base16::decode_into(hex, bytes.get_mut(..size)?)?;
        Some(Self {
            bytes,
            len: length(size),
        })
    }

    fn from_aws(digest: &digest::Digest) -> Self {
        let mut bytes = [0; 64];
        let digest = digest.as_ref();
        bytes[..digest.len()].copy_from_slice(digest);
        Self {
            bytes,
            len: length(digest.len()),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// `TPM2_PCR_Extend`: H(self || data).
    #[must_use]
    pub fn extend(&self, algorithm: HashAlgorithm, data: &[u8]) -> Self {
        algorithm.digest(&[self.as_bytes(), data])
    }
}

/// A length that was already fitted into 64 bytes.
fn length(bytes: usize) -> u8 {
    u8::try_from(bytes).unwrap_or(64)
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 128];
        let text = &mut text[..2 * usize::from(self.len)];
        hex::encode_to_slice(self.as_bytes(), text).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(text).map_err(|_| fmt::Error)?)
    }
}

/// As lower-case hex.
impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From hex of either case.
impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Hex;
        impl serde::de::Visitor<'_> for Hex {
            type Value = Digest;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a digest of at most 64 bytes in hexadecimal")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Digest, E> {
                Digest::from_hex(text)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pcr_16_is_extended_with_the_hash_of_the_key_text() {
        let expected = [
            (
                HashAlgorithm::Sha1,
                "d671b869c66c99913b93563da7613bf4a9fa78fe",
            ),
            (
                HashAlgorithm::Sha256,
                "fc1ce47cee87936aaf38971506324618b637ba0eff8852b3e335b036fbb58439",
            ),
            (
                HashAlgorithm::Sha384,
                "73779ed3469163f2393e7ffc881017b05785786694e78cdb0728e64c7912bbfe\
                 7b1f65bc3acfaa4365a71f1056282b86",
            ),
        ];
        for (bank, value) in expected {
            let bound = bank.digest(&[b"A"]);
            let pcr = Digest::zero(bank).extend(bank, bound.as_bytes());
            assert_eq!(pcr.to_string(), value);
        }
        let bank = HashAlgorithm::Sha256;
        let bound = bank.digest(&[b"PUBKEY-PEM-TEXT"]);
        assert_eq!(
            Digest::zero(bank)
                .extend(bank, bound.as_bytes())
                .to_string(),
            "a7d024235cf331e76f350b24ff75f8a2a83a25768e0c95d312229cc1ddb7044a"
        );
    }

    #[test]
    fn long_and_short_input_hash_alike() {
        let long = [7; 1000];
        for algorithm in HashAlgorithm::ALL {
            let parts = algorithm.digest(&[&long[..100], &long[100..], b""]);
            assert_eq!(parts, algorithm.digest(&[&long]));
            assert_eq!(parts.as_bytes().len(), algorithm.size());
            let mut hasher = Hasher::new(algorithm);
            long.chunks(7).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), parts);
            assert_eq!(
                algorithm.digest(&[b"ab", b"c"]),
                algorithm.digest(&[b"abc"])
            );
        }
        let abc = "a9993e364706816aba3e25717850c26c9cd0d89d";
        assert_eq!(HashAlgorithm::Sha1.digest(&[b"abc"]).to_string(), abc);
    }

    #[test]
    fn names_and_ids_round_trip() {
        for algorithm in HashAlgorithm::ALL {
            assert_eq!(HashAlgorithm::from_id(algorithm.id()), Some(algorithm));
            assert_eq!(HashAlgorithm::from_name(algorithm.name()), Some(algorithm));
        }
        assert_eq!(HashAlgorithm::from_id(0x12), None);
        assert_eq!(HashAlgorithm::from_name("SHA256"), None);
    }

    #[test]
    fn hex_of_either_case_and_nothing_else() {
        let digest = Digest::from_hex("AAff").unwrap();
        assert_eq!(digest.to_string(), "aaff");
        assert_eq!(serde_json::to_string(&digest).unwrap(), "\"aaff\"");
        assert_eq!(serde_json::from_str::<Digest>("\"AAFF\"").unwrap(), digest);
        assert_eq!(Digest::from_hex("aaf"), None);
        assert_eq!(Digest::from_hex("zz"), None);
        assert_eq!(Digest::from_hex(&"00".repeat(65)), None);
        assert!(Digest::from_hex(&"00".repeat(64)).is_some());
        assert!(serde_json::from_str::<Digest>("\"0\"").is_err());
    }
}
