use std::ops::Range;

use super::{Event, EventDigests, EventType};
use crate::tpm::HashAlgorithm;

/// Longest log that is parsed, in bytes; real ones have up to some 200 KiB.
pub const MAX_LOG: usize = 16 << 20;
/// Most banks a log may have (a TPM has up to five).
const MAX_BANKS: usize = 16;
/// Signature of TCG_EfiSpecIDEvent in a crypto-agile log.
const SPEC_ID_03: &[u8; 16] = b"Spec ID Event03\0";
/// Signature of TCG_EfiStartupLocalityEvent.
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
/// Size of a SHA-1 digest, which the old format has in each event.
const SHA1_SIZE: usize = 20;

/// A parsed boot log, not compared with any quote.
#[derive(Clone, Debug)]
pub struct EventLog<'l> {
    bytes: &'l [u8],
    events: Vec<Record>,
    /// TPM_ALG_ID and digest size, in the header's order.
    banks: Vec<(u16, usize)>,
    crypto_agile: bool,
    startup_locality: Option<u8>,
    padding: usize,
}

/// Where an event is in the log.
#[derive(Clone, Debug)]
struct Record {
    pcr: u32,
    kind: EventType,
    legacy: bool,
    digests: Range<usize>,
    data: Range<usize>,
}

/// A log that does not parse: where and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("boot log, event {event}, byte {offset}: {problem}")]
pub struct EventLogError {
    /// 0-based index of the event.
    pub event: usize,
    /// Offset from the start of the log, in bytes.
    pub offset: usize,
    /// What is wrong there.
    pub problem: LogProblem,
}

/// What is wrong with a log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LogProblem {
    /// Longer than [`MAX_LOG`].
    #[error("the log is over 16 MiB")]
    TooLong,
    /// Ends inside an event.
    #[error("the log ends inside {0}")]
    Truncated(&'static str),
    /// The header's list of algorithms cannot be.
    #[error("the header lists {0} algorithms, 1 to 16 are possible")]
    BankCount(u32),
    /// The header gives a known algorithm another digest size.
    #[error("the header gives algorithm {id:#06x} digests of {size} bytes")]
    BankSize {
        /// TPM_ALG_ID.
        id: u16,
        /// Digest size in the header, in bytes.
        size: u16,
    },
    /// The header lists an algorithm twice, or an event has two digests of one.
    #[error("algorithm {0:#06x} occurs twice")]
    BankTwice(u16),
    /// An event has more digests than the header has algorithms.
    #[error("the event has {0} digests, more than the header has algorithms")]
    DigestCount(u32),
    /// An event has a digest of an algorithm that the header does not list.
    #[error("algorithm {0:#06x} is not in the header")]
    UnknownBank(u16),
    /// An event names a PCR that no TPM has.
    #[error("there is no PCR {0}")]
    Pcr(u32),
}

impl<'l> EventLog<'l> {
    /// Parses a log: crypto-agile (the first event is TCG_EfiSpecIDEvent "Spec ID Event03", then
    /// TCG_PCR_EVENT2), or the old format with SHA-1 digests, with or without a header.
    ///
    /// # Errors
    /// Where the log stops making sense. A log cut short is an error.
    pub fn parse(bytes: &'l [u8]) -> Result<Self, EventLogError> {
        let mut reader = Reader {
            bytes,
            at: 0,
            event: 0,
        };
        if bytes.len() > MAX_LOG {
            return Err(reader.fail(LogProblem::TooLong));
        }
        let mut log = Self {
            bytes,
            events: Vec::with_capacity(bytes.len() / 256),
            banks: vec![(HashAlgorithm::Sha1.id(), SHA1_SIZE)],
            crypto_agile: false,
            startup_locality: None,
            padding: 0,
        };
        let fill = fill(bytes);
        while reader.at < bytes.len() {
            // Some firmware fills what is left of its buffer.
            if fill.contains(&reader.at) {
                log.padding = bytes.len() - reader.at;
                break;
            }
            let record = if log.crypto_agile {
                reader.event2(&log.banks)?
            } else {
                reader.event()?
            };
            let data = &bytes[record.data.clone()];
            if record.kind == EventType::EV_NO_ACTION {
                if reader.event == 0 && data.starts_with(SPEC_ID_03) {
                    log.banks = reader.spec_id(&record.data)?;
                    log.crypto_agile = true;
                } else if let Some((signature, [locality, ..])) = data.split_first_chunk()
                    && signature == STARTUP_LOCALITY
                    && record.pcr == 0
                {
                    log.startup_locality.get_or_insert(*locality);
                }
            } else if record.pcr > 23 {
                return Err(reader.fail(LogProblem::Pcr(record.pcr)));
            }
            log.events.push(record);
            reader.event += 1;
        }
        Ok(log)
    }

    /// The banks the log has digests of; unknown algorithms are left out.
    pub fn banks(&self) -> impl Iterator<Item = HashAlgorithm> {
        self.banks
            .iter()
            .filter_map(|(id, _)| HashAlgorithm::from_id(*id))
    }

    /// Is it in the crypto-agile format?
    pub fn is_crypto_agile(&self) -> bool {
        self.crypto_agile
    }

    /// The locality of TPM2_Startup, if the log says: PCR 0 starts with it instead of zero.
    pub fn startup_locality(&self) -> Option<u8> {
        self.startup_locality
    }

    /// Bytes behind the last event that are none, all 0 or all 0xff.
    pub fn padding(&self) -> usize {
        self.padding
    }

    /// Number of events, the header included.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// No events?
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// All events, **whether or not a quote explains them**. For display only: whoever can write
    /// the log can put any event into it. What is to be believed comes from
    /// [`super::ReplayedLog::events`].
    pub fn unverified_events(&self) -> impl Iterator<Item = Event<'_>> {
        self.events.iter().enumerate().map(|(index, record)| Event {
            index,
            pcr: record.pcr,
            kind: record.kind,
            digests: EventDigests {
                bytes: &self.bytes[record.digests.clone()],
                banks: (!record.legacy).then_some(&self.banks),
            },
            data: &self.bytes[record.data.clone()],
        })
    }
}

/// Where what is left of the log is filling alone, all 0 or all 0xff.
///
/// No event begins with eight such bytes: that would be PCR 0 and the reserved type 0, or a PCR
/// that no TPM has and a type of all ones.
fn fill(bytes: &[u8]) -> Range<usize> {
    let last = bytes.last().filter(|last| matches!(last, 0 | 0xff));
    let end = last.map_or(0, |_| bytes.len().saturating_sub(7));
    let other = bytes.iter().rposition(|byte| Some(byte) != last);
    other.map_or(0, |other| other + 1)..end
}

/// Little-endian reading with a position for errors.
struct Reader<'l> {
    bytes: &'l [u8],
    at: usize,
    event: usize,
}

impl Reader<'_> {
    fn fail(&self, problem: LogProblem) -> EventLogError {
        EventLogError {
            event: self.event,
            offset: self.at,
            problem,
        }
    }

    /// Steps over `size` bytes.
    fn skip(&mut self, size: usize, what: &'static str) -> Result<Range<usize>, EventLogError> {
        let end = self
            .at
            .checked_add(size)
            .filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.fail(LogProblem::Truncated(what)))?;
        let start = std::mem::replace(&mut self.at, end);
        Ok(start..end)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, EventLogError> {
        let range = self.skip(2, what)?;
        Ok(u16::from_le_bytes([
            self.bytes[range.start],
            self.bytes[range.start + 1],
        ]))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, EventLogError> {
        let start = self.skip(4, what)?.start;
        let mut number = [0; 4];
        number.copy_from_slice(&self.bytes[start..start + 4]);
        Ok(u32::from_le_bytes(number))
    }

    fn data(&mut self) -> Result<Range<usize>, EventLogError> {
        let start = self.at;
        let size = self.u32("the size of the event data")?;
        // A size that cannot be is reported where it stands, not where the data would be.
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        self.skip(size, "the event data")
            .map_err(|error| EventLogError {
                offset: start,
                ..error
            })
    }

    /// TCG_PCClientPCREvent.
    fn event(&mut self) -> Result<Record, EventLogError> {
        let pcr = self.u32("the PCR index")?;
        let kind = EventType(self.u32("the event type")?);
        let digests = self.skip(SHA1_SIZE, "the digest")?;
        Ok(Record {
            pcr,
            kind,
            legacy: true,
            digests,
            data: self.data()?,
        })
    }

    /// TCG_PCR_EVENT2.
    fn event2(&mut self, banks: &[(u16, usize)]) -> Result<Record, EventLogError> {
        let pcr = self.u32("the PCR index")?;
        let kind = EventType(self.u32("the event type")?);
        let count = self.u32("the number of digests")?;
        if usize::try_from(count).map_or(true, |count| count > banks.len()) {
            return Err(self.fail(LogProblem::DigestCount(count)));
        }
        let start = self.at;
        // One bit for each bank seen; there are at most 16.
        let mut seen = 0u32;
        for _ in 0..count {
            let at = self.at;
            let id = self.u16("an algorithm id")?;
            let bank = banks.iter().position(|(bank, _)| *bank == id);
            let fail = |problem| EventLogError {
                event: self.event,
                offset: at,
                problem,
            };
            let bank = bank.ok_or_else(|| fail(LogProblem::UnknownBank(id)))?;
            if seen >> bank & 1 == 1 {
                return Err(fail(LogProblem::BankTwice(id)));
            }
            seen |= 1 << bank;
            self.skip(banks[bank].1, "a digest")?;
        }
        let digests = start..self.at;
        Ok(Record {
            pcr,
            kind,
            legacy: false,
            digests,
            data: self.data()?,
        })
    }

    /// The algorithms of TCG_EfiSpecIDEvent, which is the data at `range`.
    fn spec_id(&self, range: &Range<usize>) -> Result<Vec<(u16, usize)>, EventLogError> {
        // platformClass, specVersionMinor, specVersionMajor, specErrata, uintnSize follow the
        // signature.
        let at = range.start + SPEC_ID_03.len();
        let mut header = Reader {
            bytes: &self.bytes[..range.end],
            at,
            event: self.event,
        };
        header.skip(8, "the header")?;
        let count = header.u32("the number of algorithms")?;
        match usize::try_from(count) {
            Ok(1..=MAX_BANKS) => {}
            _ => return Err(header.fail(LogProblem::BankCount(count))),
        }
        let mut banks: Vec<(u16, usize)> = Vec::new();
        for _ in 0..count {
            let id = header.u16("an algorithm id")?;
            let size = header.u16("a digest size")?;
            let known = HashAlgorithm::from_id(id);
            if known.map_or(size == 0, |known| known.size() != usize::from(size)) {
                return Err(header.fail(LogProblem::BankSize { id, size }));
            }
            if banks.iter().any(|(bank, _)| *bank == id) {
                return Err(header.fail(LogProblem::BankTwice(id)));
            }
            banks.push((id, usize::from(size)));
        }
        Ok(banks)
    }
}
