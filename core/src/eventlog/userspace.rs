use serde::Deserialize;

use crate::tpm::{Digest, HashAlgorithm};

/// Longest log that is parsed, in bytes; real ones have some kilobytes.
pub const MAX_USERSPACE_LOG: usize = 1 << 20;
/// Most records that a log may have.
const MAX_RECORDS: usize = 4096;
/// Most digests of a record (a TPM has up to five banks).
const MAX_DIGESTS: usize = 16;
/// Begins a record (RFC 7464).
const RECORD_SEPARATOR: u8 = 0x1e;

/// systemd's log of what user space measured (`/run/log/systemd/tpm2-measure.log`), parsed and not
/// compared with any quote: JSON text sequences (RFC 7464) of records close to TCG's CEL-JSON.
#[derive(Clone, Debug, Default)]
pub struct UserspaceLog {
    measurements: Vec<Measurement>,
    torn: bool,
}

/// One record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Measurement {
    /// 0-based index in the log.
    pub index: usize,
    /// What was extended.
    pub register: Register,
    /// One digest per bank; those of unknown algorithms are left out.
    pub digests: Vec<(HashAlgorithm, Digest)>,
    /// What kind: `phase`, `machine-id`, `filesystem`, `volume-key`, ...
    pub event_type: Option<String>,
    /// What systemd says was measured; absent for what is secret. Of a volume key the digest is
    /// an HMAC, of which this is the message.
    pub text: Option<String>,
    /// The boot, as systemd numbers it.
    pub boot_id: Option<String>,
    /// Microseconds since boot.
    pub timestamp: Option<u64>,
}

/// What a record says was extended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Register {
    /// A PCR.
    Pcr(u32),
    /// An NV index that is used like a PCR, which no quote covers.
    Nv {
        /// Its handle.
        index: u32,
        /// Its name.
        name: Option<String>,
    },
}

/// A log that does not parse: where and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("user space log, record {record}, byte {offset}: {problem}")]
pub struct UserspaceLogError {
    /// 0-based index of the record.
    pub record: usize,
    /// Offset from the start of the log, in bytes.
    pub offset: usize,
    /// What is wrong there.
    pub problem: UserspaceLogProblem,
}

/// What is wrong with a log.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum UserspaceLogProblem {
    /// Longer than [`MAX_USERSPACE_LOG`].
    #[error("the log is over 1 MiB")]
    TooLong,
    /// More than 4096 records.
    #[error("the log has over 4096 records")]
    TooMany,
    /// Does not begin with a record.
    #[error("no record separator (0x1e)")]
    NoRecord,
    /// A record is not what systemd writes.
    #[error("not a measurement: {0}")]
    NotAMeasurement(String),
    /// Neither `pcr` nor `nv_index`.
    #[error("the record names neither a PCR nor an NV index")]
    NoRegister,
    /// A digest that is none of its algorithm.
    #[error("no {0} digest")]
    Digest(&'static str),
    /// An algorithm twice, or more than 16.
    #[error("a digest too many")]
    DigestTwice,
}

/// A record as it is written.
#[derive(Deserialize)]
struct Written {
    pcr: Option<u32>,
    nv_index: Option<u32>,
    digests: Vec<WrittenDigest>,
    #[serde(default)]
    content: WrittenContent,
}

#[derive(Deserialize)]
struct WrittenDigest {
    #[serde(rename = "hashAlg")]
    algorithm: String,
    digest: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenContent {
    string: Option<String>,
    nv_index_name: Option<String>,
    boot_id: Option<String>,
    timestamp: Option<u64>,
    event_type: Option<String>,
}

impl UserspaceLog {
    /// Parses a log. A record that was begun and never ended is left out, and makes the log
    /// [torn](Self::is_torn).
    ///
    /// # Errors
    /// Where the log stops making sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, UserspaceLogError> {
        let fail = |record, offset, problem| UserspaceLogError {
            record,
            offset,
            problem,
        };
        if bytes.len() > MAX_USERSPACE_LOG {
            return Err(fail(0, 0, UserspaceLogProblem::TooLong));
        }
        let mut log = Self::default();
        let mut offset = 0;
        for (count, record) in bytes.split(|byte| *byte == RECORD_SEPARATOR).enumerate() {
            let start = offset;
            offset += record.len() + 1;
            let Some(index) = count.checked_sub(1) else {
                if !record.is_empty() {
                    return Err(fail(0, 0, UserspaceLogProblem::NoRecord));
                }
                continue;
            };
            if log.measurements.len() == MAX_RECORDS {
                return Err(fail(index, start, UserspaceLogProblem::TooMany));
            }
            let Some(text) = record.strip_suffix(b"\n") else {
                log.torn = true;
                continue;
            };
            let measurement = Measurement::parse(log.measurements.len(), text);
            log.measurements
                .push(measurement.map_err(|problem| fail(index, start, problem))?);
        }
        Ok(log)
    }

    /// Is a record begun and not ended? Whoever wrote it died in between, maybe after the TPM had
    /// extended its PCR: what the log says may be less than what was measured.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// All records, **whether or not a quote explains them**; what is to be believed comes from
    /// [`super::ReplayedLog::measurements`].
    pub fn unverified_measurements(&self) -> &[Measurement] {
        &self.measurements
    }
}

impl Measurement {
    fn parse(index: usize, text: &[u8]) -> Result<Self, UserspaceLogProblem> {
        let written: Written = serde_json::from_slice(text)
            .map_err(|error| UserspaceLogProblem::NotAMeasurement(error.to_string()))?;
        if written.digests.len() > MAX_DIGESTS {
            return Err(UserspaceLogProblem::DigestTwice);
        }
        let mut digests: Vec<(HashAlgorithm, Digest)> = Vec::with_capacity(written.digests.len());
        for WrittenDigest { algorithm, digest } in written.digests {
            let Some(algorithm) = HashAlgorithm::from_name(&algorithm) else {
                continue;
            };
            let digest = Digest::from_hex(&digest)
                .filter(|digest| digest.as_bytes().len() == algorithm.size())
                .ok_or_else(|| UserspaceLogProblem::Digest(algorithm.name()))?;
            if digests.iter().any(|(known, _)| *known == algorithm) {
                return Err(UserspaceLogProblem::DigestTwice);
            }
            digests.push((algorithm, digest));
        }
        let content = written.content;
        let register = match (written.pcr, written.nv_index) {
            (Some(pcr), None) => Register::Pcr(pcr),
            (None, Some(index)) => Register::Nv {
                index,
                name: content.nv_index_name,
            },
            _ => return Err(UserspaceLogProblem::NoRegister),
        };
        Ok(Self {
            index,
            register,
            digests,
            event_type: content.event_type,
            text: content.string,
            boot_id: content.boot_id,
            timestamp: content.timestamp,
        })
    }

    /// The digest of one bank.
    pub fn digest(&self, bank: HashAlgorithm) -> Option<Digest> {
        self.digests
            .iter()
            .find(|(algorithm, _)| *algorithm == bank)
            .map(|(_, digest)| *digest)
    }

    /// Is its digest that of its text? Otherwise the text is hearsay (or an HMAC's message).
    pub fn vouches_for_text(&self, bank: HashAlgorithm) -> bool {
        let text = self.text.as_deref();
        text.is_some_and(|text| self.digest(bank) == Some(bank.digest(&[text.as_bytes()])))
    }

    /// Does it speak of this PCR?
    pub(super) fn is_of(&self, pcr: u8) -> bool {
        self.register == Register::Pcr(u32::from(pcr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "\x1e{\"pcr\":11,\"digests\":[{\"hashAlg\":\"sha1\",\"digest\":\
        \"aeabcf402223916e804cce79778a55d5a9276983\"},{\"hashAlg\":\"sm3_256\",\"digest\":\"00\"}],\
        \"content_type\":\"systemd\",\"content\":{\"string\":\"sysinit\",\"eventType\":\"phase\"}}\n";

    #[test]
    fn a_record_that_never_ended_is_left_out_and_told() {
        let whole = UserspaceLog::parse(RECORD.repeat(2).as_bytes()).unwrap();
        assert!(!whole.is_torn());
        assert_eq!(whole.unverified_measurements().len(), 2);
        let first = &whole.unverified_measurements()[0];
        assert_eq!(first.digests.len(), 1, "unknown algorithms are left out");
        assert!(first.vouches_for_text(HashAlgorithm::Sha1));
        let torn_end = format!("{RECORD}\x1e{{\"pcr\":11");
        // Another writer came after the one that died.
        let torn_middle = format!("\x1e{{\"pcr\":11{RECORD}");
        let begun = format!("{RECORD}\x1e");
        for torn in [torn_end, torn_middle, begun] {
            let log = UserspaceLog::parse(torn.as_bytes()).unwrap();
            assert!(log.is_torn());
            assert_eq!(log.unverified_measurements().len(), 1, "{torn:?}");
        }
        assert!(UserspaceLog::parse(b"").unwrap().measurements.is_empty());
    }

    #[test]
    fn registers_that_are_no_pcrs_are_kept_apart() {
        let text = RECORD
            .replace("\"pcr\":11", "\"nv_index\":30409216")
            .replace(
                "\"eventType\"",
                "\"nvIndexName\":\"hardware\",\"eventType\"",
            );
        let log = UserspaceLog::parse(text.as_bytes()).unwrap();
        let register = Register::Nv {
            index: 0x01d0_0200,
            name: Some("hardware".to_owned()),
        };
        assert_eq!(log.measurements[0].register, register);
    }

    #[test]
    fn what_is_no_record_is_an_error_with_its_place() {
        let after = |text: &str| format!("{RECORD}\x1e{text}\n");
        let problem = |text: &str| UserspaceLog::parse(text.as_bytes()).unwrap_err();
        let error = problem(&after("[]"));
        assert_eq!((error.record, error.offset), (1, RECORD.len() + 1));
        assert!(matches!(
            error.problem,
            UserspaceLogProblem::NotAMeasurement(_)
        ));
        assert_eq!(problem("{}\n").problem, UserspaceLogProblem::NoRecord);
        let neither = after(r#"{"digests":[]}"#);
        assert_eq!(problem(&neither).problem, UserspaceLogProblem::NoRegister);
        let short = RECORD.replace("aeab", "");
        assert_eq!(problem(&short).problem, UserspaceLogProblem::Digest("sha1"));
        let twice = after(
            &r#"{"pcr":1,"digests":[{"hashAlg":"sha1","digest":"D"},{"hashAlg":"sha1","digest":"D"}]}"#
                .replace('D', &"00".repeat(20)),
        );
        assert_eq!(problem(&twice).problem, UserspaceLogProblem::DigestTwice);
        let long = "x".repeat(MAX_USERSPACE_LOG + 1);
        assert_eq!(problem(&long).problem, UserspaceLogProblem::TooLong);
    }
}
