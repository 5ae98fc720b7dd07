use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Event, EventLog, EventType, Step};
use crate::tpm::{Digest, HashAlgorithm};

/// Most events that are kept; real logs have some hundred.
const MAX_EVENTS: usize = 2_048;
/// Bytes of a digest that are kept: enough to tell one from another, and nothing rests on it.
const DIGEST_KEPT: usize = 16;
/// The PCRs of a boot.
const PCRS: u32 = 16;

/// What a boot log tells, small enough to be kept (some kilobytes) for comparison with a later one.
///
/// It explains, and proves nothing: whether a boot is good is never decided by it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Trail {
    bank: HashAlgorithm,
    /// PCR, type and the start of the digest of each event that extends one.
    events: Vec<(u8, u32, Digest)>,
    /// The events in words, where they were asked for.
    #[serde(skip)]
    words: Vec<String>,
}

/// Where the log of one boot and that of another part, for one PCR.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Parting<'t> {
    /// This is the first event that is another than in the earlier boot.
    Differs(&'t str),
    /// This is the first event beyond those of the earlier boot.
    Added(&'t str),
    /// The later log ends before this event of the earlier boot: its type, and its 1-based number
    /// among the events of the PCR.
    Missing(EventType, usize),
    /// The logs tell the same.
    Nowhere,
}

impl Trail {
    /// Of a log that was judged good.
    pub fn new(log: &EventLog<'_>, bank: HashAlgorithm) -> Self {
        Self {
            bank,
            events: steps(log, bank).map(|(_, step)| step).collect(),
            words: Vec::new(),
        }
    }

    /// Of a log that is to be compared with that of an earlier boot.
    pub fn in_words(log: &EventLog<'_>, bank: HashAlgorithm) -> Self {
        let words = steps(log, bank).map(|(event, _)| Step::Event(event).to_string());
        Self {
            words: words.collect(),
            ..Self::new(log, bank)
        }
    }

    /// Where this log, which is in words, parts from an earlier one in what it tells of a PCR.
    /// `None`: they tell of different banks.
    pub fn parting_from(&self, earlier: &Self, pcr: u8) -> Option<Parting<'_>> {
        if self.bank != earlier.bank {
            return None;
        }
        let words = self.words.iter().map(String::as_str);
        let mut now = self
            .events
            .iter()
            .zip(words)
            .filter(|(event, _)| event.0 == pcr);
        let before = earlier.events.iter().filter(|event| event.0 == pcr);
        for (index, wanted) in before.enumerate() {
            match now.next() {
                Some((event, _)) if event == wanted => {}
                Some((_, words)) => return Some(Parting::Differs(words)),
                None => return Some(Parting::Missing(EventType(wanted.1), index + 1)),
            }
        }
        Some(match now.next() {
            Some((_, words)) => Parting::Added(words),
            None => Parting::Nowhere,
        })
    }
}

/// The events that extend a PCR of the boot.
fn steps<'l>(
    log: &'l EventLog<'_>,
    bank: HashAlgorithm,
) -> impl Iterator<Item = (Event<'l>, (u8, u32, Digest))> {
    let events = log.unverified_events().filter_map(move |event| {
        let pcr = u8::try_from(event.pcr).ok()?;
        let digest = event.digests.get(bank)?;
        let start = digest.as_bytes().get(..DIGEST_KEPT)?;
        let extends = event.kind != EventType::EV_NO_ACTION && event.pcr < PCRS;
        extends.then_some((event, (pcr, event.kind.0, Digest::from_slice(start)?)))
    });
    events.take(MAX_EVENTS)
}

/// One sentence.
impl fmt::Display for Parting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs(event) => write!(
                f,
                "By the log, {event} is the first of this PCR that is another than in the last \
                 boot that was trusted."
            ),
            Self::Added(event) => write!(
                f,
                "By the log, {event} comes after all that this PCR had in the last boot that was \
                 trusted."
            ),
            Self::Missing(kind, number) => write!(
                f,
                "In the last boot that was trusted this PCR had a {kind} as its event number \
                 {number}, which the log does not tell of."
            ),
            Self::Nowhere => f.write_str(
                "The firmware's log tells the same of this PCR as in the last boot that was \
                 trusted.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANK: HashAlgorithm = HashAlgorithm::Sha256;

    fn log(boot: &str) -> Vec<u8> {
        let root = env!("CARGO_MANIFEST_DIR");
        let path = format!("{root}/../tests/fixtures/boots/{boot}/binary_bios_measurements");
        std::fs::read(path).unwrap()
    }

    /// The place of the SHA-256 digest of the event in the log, and the end of the event.
    fn place(log: &[u8], pcr: u32, nth: usize) -> (usize, usize, usize) {
        let parsed = EventLog::parse(log).unwrap();
        let mut events = parsed
            .unverified_events()
            .filter(|event| event.pcr == pcr && event.kind != EventType::EV_NO_ACTION);
        let event = events.nth(nth).unwrap();
        let data = event.data.as_ptr() as usize - log.as_ptr() as usize;
        let digest = event.digests.get(BANK).unwrap();
        let at = log[..data]
            .windows(32)
            .rposition(|window| window == digest.as_bytes());
        (event.index, at.unwrap(), data + event.data.len())
    }

    #[test]
    fn the_first_event_that_is_another_than_before_is_named() {
        let before = log("grub");
        let kept = Trail::new(&EventLog::parse(&before).unwrap(), BANK);
        let kept = serde_json::to_string(&kept).unwrap();
        assert!(kept.len() < 16 << 10, "{}", kept.len());
        let kept: Trail = serde_json::from_str(&kept).unwrap();
        let told = |log: &[u8], pcr| {
            let trail = Trail::in_words(&EventLog::parse(log).unwrap(), BANK);
            trail.parting_from(&kept, pcr).unwrap().to_string()
        };
        for pcr in 0..16 {
            assert!(told(&before, pcr).contains("tells the same"), "PCR {pcr}");
        }
        let (index, digest, _) = place(&before, 4, 1);
        let mut changed = before.clone();
        changed[digest] ^= 1;
        let text = told(&changed, 4);
        assert!(text.contains(&format!("event {index} (EV_")), "{text}");
        assert!(
            text.contains("is the first of this PCR that is another"),
            "{text}"
        );
        assert!(told(&changed, 7).contains("tells the same"));
        // The log ends before the last event of PCR 5.
        let (_, digest, _) = place(&before, 5, 0);
        let start = digest - 2 - 22 - 12;
        let text = told(&before[..start], 5);
        assert!(
            text.contains("as its event number 1, which the log does not tell"),
            "{text}"
        );
        // One more, which is a copy of the last.
        let parsed = EventLog::parse(&before).unwrap();
        let of_pcr = parsed.unverified_events().filter(|event| event.pcr == 4);
        let (_, digest, end) = place(&before, 4, of_pcr.count() - 1);
        let copy = &before[digest - 2 - 22 - 12..end];
        let more = [&before[..], copy].concat();
        let text = told(&more, 4);
        let added = format!("event {} (EV_", parsed.len());
        assert!(
            text.contains(&added) && text.contains("comes after all"),
            "{text}"
        );
    }

    #[test]
    fn logs_of_different_banks_are_not_compared() {
        let log = log("grub");
        let log = EventLog::parse(&log).unwrap();
        let [one, other] = [HashAlgorithm::Sha1, BANK].map(|bank| Trail::in_words(&log, bank));
        assert_eq!(one.parting_from(&other, 0), None);
    }
}
