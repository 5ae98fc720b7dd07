use serde::{Deserialize, Serialize};

use super::buffer::Reader;
use super::{Digest, HashAlgorithm, Name, PcrMask, StructureError};

/// `TPM_GENERATED_VALUE`: only the TPM itself signs structures that start with it.
const MAGIC: u32 = 0xff54_4347;
/// `TPM_ST_ATTEST_CERTIFY`.
const ATTEST_CERTIFY: u16 = 0x8017;
/// `TPM_ST_ATTEST_QUOTE`.
const ATTEST_QUOTE: u16 = 0x8018;
/// Largest TPM2B_NAME, TPM2B_DATA: a TPMT_HA of SHA-512.
const MAX_HASH_AGILE: usize = 2 + 64;
/// `HASH_COUNT` of tpm2-tss: more banks than any TPM has.
const MAX_BANKS: u32 = 16;

/// TPMS_ATTEST (TPM 2.0 Part 2, 10.12.12).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attest {
    /// Name of the signing key, qualified by its hierarchy.
    pub qualified_signer: Vec<u8>,
    /// Qualifying data: the nonce.
    pub extra_data: Vec<u8>,
    /// TPM clock and counters.
    pub clock: ClockInfo,
    /// Vendor's firmware version.
    pub firmware_version: u64,
    /// What is attested.
    pub attested: Attested,
}

/// TPMU_ATTEST, the kinds Troth reads.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Attested {
    /// TPMS_QUOTE_INFO.
    Quote {
        /// Selected PCRs, one entry per bank in the order of the structure.
        selection: Vec<(HashAlgorithm, PcrMask)>,
        /// H over the selected values.
        pcr_digest: Digest,
    },
    /// TPMS_CERTIFY_INFO.
    Certify {
        /// Name of the certified object.
        name: Name,
        /// Its qualified name.
        qualified_name: Vec<u8>,
    },
}

/// TPMS_CLOCK_INFO (TPM 2.0 Part 2, 10.11.1).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ClockInfo {
    /// Milliseconds the TPM has been powered.
    pub clock: u64,
    /// TPM resets (reboots) since manufacture or clear.
    pub reset_count: u32,
    /// TPM restarts or resumes since the last reset.
    pub restart_count: u32,
    /// No value greater than `clock` was ever reported.
    pub safe: bool,
}

impl Attest {
    /// Parses TPMS_ATTEST; magic, type and the exact length are checked.
    pub fn parse(bytes: &[u8]) -> Result<Self, StructureError> {
        let mut reader = Reader::new("TPMS_ATTEST", bytes);
        if reader.u32()? != MAGIC {
            return Err(reader.error_at(0, "magic is not TPM_GENERATED_VALUE (ff544347)"));
        }
        let kind = reader.u16()?;
        if kind != ATTEST_QUOTE && kind != ATTEST_CERTIFY {
            return Err(reader.error_at(4, "type is neither a quote nor a certification"));
        }
        let qualified_signer = reader.tpm2b(MAX_HASH_AGILE)?.to_vec();
        let extra_data = reader.tpm2b(MAX_HASH_AGILE)?.to_vec();
        let clock = clock_info(&mut reader)?;
        let firmware_version = reader.u64()?;
        let attested = if kind == ATTEST_QUOTE {
            quote_info(&mut reader)?
        } else {
            certify_info(&mut reader)?
        };
        reader.finish()?;
        Ok(Self {
            qualified_signer,
            extra_data,
            clock,
            firmware_version,
            attested,
        })
    }
}

fn clock_info(reader: &mut Reader<'_>) -> Result<ClockInfo, StructureError> {
    Ok(ClockInfo {
        clock: reader.u64()?,
        reset_count: reader.u32()?,
        restart_count: reader.u32()?,
        safe: match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(reader.error_at(reader.offset() - 1, "safe is neither YES nor NO")),
        },
    })
}

fn quote_info(reader: &mut Reader<'_>) -> Result<Attested, StructureError> {
    let start = reader.offset();
    let count = reader.u32()?;
    if count > MAX_BANKS {
        return Err(reader.error_at(start, "selects from more than 16 banks"));
    }
    let mut selection = Vec::new();
    for _ in 0..count {
        let start = reader.offset();
        let bank = HashAlgorithm::from_id(reader.u16()?)
            .ok_or_else(|| reader.error_at(start, "selects from a bank of an unknown hash"))?;
        let size = usize::from(reader.u8()?);
        if size > 4 {
            return Err(reader.error_at(start + 2, "sizeofSelect is above 4"));
        }
        let mut octets = [0; 4];
        octets[..size].copy_from_slice(reader.take(size)?);
        let mask = PcrMask::from_bits(u32::from_le_bytes(octets))
            .map_err(|_| reader.error_at(start + 3, "selects a PCR above 23"))?;
        selection.push((bank, mask));
    }
    let start = reader.offset();
    let pcr_digest = Digest::from_slice(reader.tpm2b(64)?)
        .ok_or_else(|| reader.error_at(start, "pcrDigest is over 64 bytes"))?;
    Ok(Attested::Quote {
        selection,
        pcr_digest,
    })
}

fn certify_info(reader: &mut Reader<'_>) -> Result<Attested, StructureError> {
    let start = reader.offset();
    let name = Name::from_bytes(reader.tpm2b(MAX_HASH_AGILE)?)
        .ok_or_else(|| reader.error_at(start, "name is not a nameAlg with its digest"))?;
    let qualified_name = reader.tpm2b(MAX_HASH_AGILE)?.to_vec();
    Ok(Attested::Certify {
        name,
        qualified_name,
    })
}
