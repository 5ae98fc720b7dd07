use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Digest, HashAlgorithm};

/// Number of PCRs of a TPM 2.0 as the PC Client profile defines it.
pub(super) const PCR_COUNT: u8 = 24;

/// PCR that binds the agent's transport key (NK) to a quote, as Keylime's agents use it.
pub const BIND_PCR: u8 = 16;

/// Entries of the TPML_PCR_SELECTION in a PCR blob, used or not.
const BLOB_SELECTIONS: usize = 16;
/// One such entry: TPMI_ALG_HASH, sizeofSelect, four octets, one octet of padding.
const BLOB_SELECTION_SIZE: usize = 8;
/// Where the number of TPML_DIGEST stands.
const BLOB_LISTS: usize = 4 + BLOB_SELECTIONS * BLOB_SELECTION_SIZE;
/// TPM2B_DIGEST slots of one TPML_DIGEST.
const BLOB_SLOTS: usize = 8;
/// One slot: UINT16 size, 64 bytes of buffer.
const BLOB_SLOT_SIZE: usize = 2 + 64;
/// One TPML_DIGEST: UINT32 count and the slots.
const BLOB_LIST_SIZE: usize = 4 + BLOB_SLOTS * BLOB_SLOT_SIZE;

/// A set of PCRs 0 to 23; bit n is PCR n.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct PcrMask(u32);

impl PcrMask {
    /// From bits; bits 24 and up are an error.
    pub fn from_bits(bits: u32) -> Result<Self, PcrMaskError> {
        if bits >> PCR_COUNT == 0 {
            Ok(Self(bits))
        } else {
            Err(PcrMaskError::OutOfRange(bits))
        }
    }

    /// From hex text with an optional `0x`, as Keylime's `mask` parameter.
    pub fn from_hex(text: &str) -> Result<Self, PcrMaskError> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        // from_str_radix alone would take a sign.
        let bits = Some(digits)
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .ok_or_else(|| PcrMaskError::NotHex(text.chars().take(32).collect()))?;
        Self::from_bits(bits)
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Is PCR `pcr` in the set?
    pub fn contains(self, pcr: u8) -> bool {
        pcr < PCR_COUNT && self.0 >> pcr & 1 == 1
    }

    /// The set with PCR `pcr` added (`pcr` < 24, else unchanged).
    #[must_use]
    pub fn with(self, pcr: u8) -> Self {
        if pcr < PCR_COUNT {
            Self(self.0 | 1 << pcr)
        } else {
            self
        }
    }

    /// Union.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The PCRs of this set that are not in `other`.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The PCR numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..PCR_COUNT).filter(move |&pcr| self.contains(pcr))
    }

    /// Empty?
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The numbers for people: `0, 7, 10`.
    pub fn list(self) -> String {
        let numbers: Vec<String> = self.iter().map(|pcr| pcr.to_string()).collect();
        numbers.join(", ")
    }
}

/// Prints as `0x408400`.
impl std::fmt::Display for PcrMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for PcrMask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PcrMask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).map_err(D::Error::custom)
    }
}

/// A mask that names no valid set of PCRs.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PcrMaskError {
    /// Not hexadecimal. Holds the first 32 characters.
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
    values: [Option<Digest>; PCR_COUNT as usize],
}

impl PcrValues {
    /// No value yet.
    pub fn new(bank: HashAlgorithm) -> Self {
        Self {
            bank,
            values: [None; PCR_COUNT as usize],
        }
    }

    /// The bank.
    pub fn bank(&self) -> HashAlgorithm {
        self.bank
    }

    /// The value of one PCR, if present.
    pub fn get(&self, pcr: u8) -> Option<&Digest> {
        self.values.get(usize::from(pcr))?.as_ref()
    }

    /// Sets one value (`pcr` < 24, else ignored).
    pub fn set(&mut self, pcr: u8, value: Digest) {
        if let Some(slot) = self.values.get_mut(usize::from(pcr)) {
            *slot = Some(value);
        }
    }

    /// Which PCRs are present.
    pub fn mask(&self) -> PcrMask {
        self.iter()
            .fold(PcrMask::default(), |mask, (pcr, _)| mask.with(pcr))
    }

    /// Number and value, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Digest)> {
        (0..)
            .zip(&self.values)
            .filter_map(|(pcr, value)| Some((pcr, value.as_ref()?)))
    }

    /// `pcrDigest`: H over the values in ascending PCR order.
    pub fn digest(&self) -> Digest {
        let mut parts = [&[][..]; PCR_COUNT as usize];
        for (part, value) in parts.iter_mut().zip(self.values.iter().flatten()) {
            *part = value.as_bytes();
        }
        self.bank.digest(&parts)
    }

    /// The PCR part of the quote string: the memory image of tpm2-tools' structures, all integers
    /// little-endian, one bank, as few TPML_DIGEST as hold the values.
    pub fn to_blob(&self) -> Vec<u8> {
        let values: Vec<&Digest> = self.values.iter().flatten().collect();
        let lists = values.chunks(BLOB_SLOTS);
        let mut blob = Vec::with_capacity(BLOB_LISTS + 4 + lists.len() * BLOB_LIST_SIZE);
        blob.extend_from_slice(&1_u32.to_le_bytes());
        blob.extend_from_slice(&self.bank.id().to_le_bytes());
        blob.push(3);
        blob.extend_from_slice(&self.mask().bits().to_le_bytes());
        blob.resize(BLOB_LISTS, 0);
        blob.extend_from_slice(&little_endian(lists.len()));
        for list in lists {
            blob.extend_from_slice(&little_endian(list.len()));
            let end = blob.len() + BLOB_SLOTS * BLOB_SLOT_SIZE;
            for value in list {
                let bytes = value.as_bytes();
                let slot = blob.len() + BLOB_SLOT_SIZE;
                blob.extend_from_slice(&little_endian(bytes.len())[..2]);
                blob.extend_from_slice(bytes);
                blob.resize(slot, 0);
            }
            blob.resize(end, 0);
        }
        blob
    }

    /// Reads such an image: one bank, every byte used, as many values as selected PCRs.
    ///
    /// The values may be split over TPML_DIGEST in any way; empty slots are skipped.
    pub fn from_blob(blob: &[u8]) -> Result<Self, PcrBlobError> {
        let mut image = Image { blob, offset: 0 };
        if image.u32()? != 1 {
            return Err(error(0, "not exactly one PCR bank"));
        }
        let bank = HashAlgorithm::from_id(image.u16()?)
            .ok_or_else(|| error(4, "bank of an unknown hash algorithm"))?;
        let &[size, octet0, octet1, octet2, octet3, padding] = image.array()?;
        if size != 3 {
            return Err(error(6, "sizeofSelect is not 3"));
        }
        let mask = PcrMask::from_bits(u32::from_le_bytes([octet0, octet1, octet2, octet3]))
            .map_err(|_| error(10, "selects a PCR above 23"))?;
        if padding != 0 {
            return Err(error(11, "padding is not zero"));
        }
        image.zeros(BLOB_LISTS - image.offset, "unused selection is not zero")?;

        let lists = image.u32()?;
        let mut values = Self::new(bank);
        let mut selected = mask.iter();
        for _ in 0..lists {
            let start = image.offset;
            if image.u32()? > 8 {
                return Err(error(start, "more than 8 digests in one TPML_DIGEST"));
            }
            for _ in 0..BLOB_SLOTS {
                let start = image.offset;
                let size = usize::from(image.u16()?);
                if size == 0 {
                    image.zeros(BLOB_SLOT_SIZE - 2, "unused digest is not zero")?;
                    continue;
                }
                if size != bank.size() {
                    return Err(error(start, "digest is not of the bank's size"));
                }
                let value = Digest::from_slice(image.take(size)?)
                    .ok_or_else(|| error(start, "digest is over 64 bytes"))?;
                image.zeros(
                    BLOB_SLOT_SIZE - 2 - size,
                    "buffer after a digest is not zero",
                )?;
                let pcr = selected
                    .next()
                    .ok_or_else(|| error(start, "more values than selected PCRs"))?;
                values.set(pcr, value);
            }
        }
        if image.offset != blob.len() {
            return Err(error(image.offset, "bytes after the last TPML_DIGEST"));
        }
        if selected.next().is_some() {
            return Err(error(image.offset, "fewer values than selected PCRs"));
        }
        Ok(values)
    }
}

/// A count or size of the blob, all of which are far below 4 GiB.
fn little_endian(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

fn error(offset: usize, reason: &'static str) -> PcrBlobError {
    PcrBlobError { offset, reason }
}

/// Little-endian reading of a memory image.
struct Image<'a> {
    blob: &'a [u8],
    offset: usize,
}

impl<'a> Image<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], PcrBlobError> {
        let rest = self.blob.get(self.offset..).unwrap_or_default();
        let taken = rest
            .get(..count)
            .ok_or_else(|| error(self.offset, "cut short"))?;
        self.offset += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], PcrBlobError> {
        let start = self.offset;
        self.take(N)?
            .first_chunk()
            .ok_or_else(|| error(start, "cut short"))
    }

    fn u16(&mut self) -> Result<u16, PcrBlobError> {
        Ok(u16::from_le_bytes(*self.array()?))
    }

    fn u32(&mut self) -> Result<u32, PcrBlobError> {
        Ok(u32::from_le_bytes(*self.array()?))
    }

    fn zeros(&mut self, count: usize, reason: &'static str) -> Result<(), PcrBlobError> {
        let start = self.offset;
        match self.take(count)?.iter().position(|&byte| byte != 0) {
            Some(at) => Err(error(start + at, reason)),
            None => Ok(()),
        }
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn two_pcrs() -> PcrValues {
        let mut values = PcrValues::new(HashAlgorithm::Sha256);
        values.set(16, Digest::from_slice(&[0x10; 32]).unwrap());
        values.set(10, Digest::from_slice(&[0x0a; 32]).unwrap());
        values
    }

    #[test]
    fn blob_is_the_memory_image_of_tpm2_tools() {
        let values = two_pcrs();
        let blob = values.to_blob();
        assert_eq!(blob.len(), 668);
        assert_eq!(hex::encode(&blob[..12]), "010000000b00030004010000");
        assert_eq!(
            HashAlgorithm::Sha256.digest(&[&blob]).to_string(),
            "0e40e1c3a6b7a2d88ffd5b8c772f2c11695c4566bcfa903b55df788a9b0c17ea"
        );
        assert_eq!(
            values.digest().to_string(),
            "fa0f261d16a23f2e310de62cb4954afd94b56eaa71727fb949b616fa2517673c"
        );
        assert_eq!(PcrValues::from_blob(&blob), Ok(values));
    }

    #[test]
    fn values_may_be_split_over_lists_in_any_way() {
        let one = two_pcrs().to_blob();
        let mut split = one[..132].to_vec();
        split.extend_from_slice(&2_u32.to_le_bytes());
        for slot in [140, 140 + 66] {
            split.extend_from_slice(&1_u32.to_le_bytes());
            split.extend_from_slice(&[0; 3 * 66]);
            split.extend_from_slice(&one[slot..slot + 66]);
            split.extend_from_slice(&[0; 4 * 66]);
        }
        assert_eq!(PcrValues::from_blob(&split), Ok(two_pcrs()));
    }

    #[test]
    fn a_blob_that_lies_is_refused_where_it_does() {
        let blob = two_pcrs().to_blob();
        let changed = |at: usize, byte: u8| {
            let mut blob = blob.clone();
            blob[at] = byte;
            let error = PcrValues::from_blob(&blob).unwrap_err();
            (error.offset, error.reason)
        };
        assert_eq!(changed(0, 2), (0, "not exactly one PCR bank"));
        assert_eq!(changed(4, 0x12), (4, "bank of an unknown hash algorithm"));
        assert_eq!(changed(6, 2), (6, "sizeofSelect is not 3"));
        assert_eq!(changed(7, 1), (668, "fewer values than selected PCRs"));
        assert_eq!(changed(8, 0), (206, "more values than selected PCRs"));
        assert_eq!(changed(10, 1), (10, "selects a PCR above 23"));
        assert_eq!(changed(12, 1), (12, "unused selection is not zero"));
        assert_eq!(changed(132, 2), (668, "cut short"));
        assert_eq!(changed(132, 0), (136, "bytes after the last TPML_DIGEST"));
        assert_eq!(
            changed(136, 9),
            (136, "more than 8 digests in one TPML_DIGEST")
        );
        assert_eq!(changed(140, 20), (140, "digest is not of the bank's size"));
        assert_eq!(changed(300, 1), (300, "unused digest is not zero"));
        assert_eq!(
            PcrValues::from_blob(&blob[..667]).unwrap_err().reason,
            "cut short"
        );
        assert_eq!(PcrValues::from_blob(&[]).unwrap_err().offset, 0);
    }

    #[test]
    fn a_huge_list_count_ends_at_the_end_of_the_blob() {
        let mut blob = two_pcrs().to_blob();
        blob[132..136].fill(0xff);
        assert_eq!(PcrValues::from_blob(&blob).unwrap_err().reason, "cut short");
    }

    #[test]
    fn masks_are_hexadecimal_and_name_pcrs_0_to_23() {
        let mask = PcrMask::from_hex("0x408400").unwrap();
        assert_eq!(mask.iter().collect::<Vec<_>>(), [10, 15, 22]);
        assert_eq!(mask.to_string(), "0x408400");
        assert_eq!(mask.list(), "10, 15, 22");
        assert_eq!(PcrMask::from_hex("408400"), Ok(mask));
        assert_eq!(
            PcrMask::from_hex("0x1000000"),
            Err(PcrMaskError::OutOfRange(0x100_0000))
        );
        for text in ["", "0x", "+1", "-1", "0x0x1", "1 ", "100000000", "x"] {
            assert_eq!(
                PcrMask::from_hex(text),
                Err(PcrMaskError::NotHex(text.to_owned()))
            );
        }
        assert_eq!(mask.with(24), mask);
        assert!(!mask.contains(32));
    }

    proptest! {
        #[test]
        fn blobs_round_trip(
            bank in prop::sample::select(HashAlgorithm::ALL.to_vec()),
            bits in 0_u32..1 << 24,
            seed in any::<u64>(),
        ) {
            let mut values = PcrValues::new(bank);
            for pcr in PcrMask::from_bits(bits).unwrap().iter() {
                values.set(pcr, bank.digest(&[&seed.to_le_bytes(), &[pcr]]));
            }
            let blob = values.to_blob();
            let lists = usize::try_from(bits.count_ones().div_ceil(8)).unwrap();
            prop_assert_eq!(blob.len(), 136 + 532 * lists);
            prop_assert_eq!(values.mask().bits(), bits);
            prop_assert_eq!(PcrValues::from_blob(&blob), Ok(values));
        }
    }
}
