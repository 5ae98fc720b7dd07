use std::marker::PhantomData;

use super::{Entry, IMA_PCR, ImaPosition, MAX_ENTRIES, lines};
use crate::tpm::{Digest, HashAlgorithm, VerifiedQuote};

/// Anomalies kept in memory; the others are only counted.
const KEPT_ANOMALIES: usize = 1_000;

/// Entries that the quoted PCR 10 vouches for. Made by [`replay`] alone.
///
/// Only the entries up to the one after which the replayed value equals the quoted one: later
/// lines were read after the quote was made, nothing vouches for them yet, and the next answer
/// starts with them.
#[derive(Debug)]
pub struct ReplayedList<'q, 'l> {
    /// The lines covered.
    text: &'l str,
    /// Index of the first line.
    first: u64,
    /// How many lines are covered, and how many the answer had.
    covered: u64,
    listed: u64,
    pcr: Digest,
    quote: PhantomData<&'q VerifiedQuote>,
}

impl<'l> ReplayedList<'_, 'l> {
    /// The covered entries. A line that does not parse is left out; it is among the anomalies.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'l>> + use<'l> {
        let lines = lines(self.text).zip(self.first..);
        lines.filter_map(|(line, index)| Entry::parse(line, index).ok())
    }

    /// How many entries of this answer are covered.
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// Where the next check resumes.
    pub fn position(&self) -> ImaPosition {
        ImaPosition {
            next_entry: self.first.saturating_add(self.covered),
            pcr: Some(self.pcr),
            lag: self.listed - self.covered,
        }
    }

    /// The progress rule: the entries that the last answer had beyond its quote must be covered
    /// now, unless everything is. Else a host could show entries for ever and never extend them.
    pub fn made_progress(&self, previous: &ImaPosition) -> bool {
        self.covered == self.listed || self.covered >= previous.lag
    }
}

/// What came of a replay.
#[derive(Debug)]
pub struct Replay<'q, 'l> {
    /// The list, if some entry's value equals the quoted PCR 10.
    pub outcome: Result<ReplayedList<'q, 'l>, Mismatch>,
    /// Lines with something wrong, whatever the outcome.
    pub anomalies: Anomalies,
}

/// No entry leads to the quoted value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mismatch {
    /// PCR 10 in the quote, if it is in there.
    pub quoted: Option<Digest>,
    /// What the whole list replays to.
    pub replayed: Digest,
    /// Lines replayed.
    pub entries: u64,
}

/// Lines with something wrong: the first 1,000, and how many there are.
#[derive(Debug, Default)]
pub struct Anomalies {
    /// The first ones.
    pub first: Vec<Anomaly>,
    /// All.
    pub total: u64,
}

/// A line with something wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Anomaly {
    /// 0-based index since boot.
    pub entry: u64,
    /// The entry's name, if it parsed.
    pub name: Option<String>,
    /// What is wrong.
    pub kind: AnomalyKind,
}

/// What is wrong with a line.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AnomalyKind {
    /// It is no entry, and is not added to the replayed value.
    Unparsable(&'static str),
    /// It says that another PCR was extended; it is replayed all the same.
    Pcr(u32),
    /// The printed template hash is not that of the fields.
    TemplateHash {
        /// Hash of the fields.
        expected: Digest,
        /// Hash as printed.
        printed: Digest,
    },
    /// There are more lines than one answer may have; the rest is not looked at.
    TooManyEntries,
}

impl Anomalies {
    fn push(&mut self, entry: u64, name: Option<&str>, kind: AnomalyKind) {
        self.total += 1;
        if self.first.len() < KEPT_ANOMALIES {
            // A line can be 1 MiB long; a path is not.
            let name = name.map(|name| name.chars().take(4_096).collect());
            self.first.push(Anomaly { entry, name, kind });
        }
    }
}

/// Replays `list`, whose first line has the index `position.next_entry`, against the quoted PCR
/// 10. `log_hash` is the hash the list's template hashes are printed in.
pub fn replay<'q, 'l>(
    list: &'l str,
    position: &ImaPosition,
    log_hash: HashAlgorithm,
    quote: &'q VerifiedQuote,
) -> Replay<'q, 'l> {
    let bank = quote.pcrs().bank();
    let quoted = quote.pcrs().get(IMA_PCR);
    let first = position.next_entry;
    let start = position.pcr.unwrap_or_else(|| Digest::zero(bank));
    let mut running = Running::new(bank, log_hash, start);
    let mut covered = 0;
    let mut rest = list;
    while quoted != Some(&running.value) {
        let Some((line, after)) = next_line(rest) else {
            let mismatch = Mismatch {
                quoted: quoted.copied(),
                replayed: running.value,
                entries: covered,
            };
            return Replay {
                outcome: Err(mismatch),
                anomalies: running.anomalies,
            };
        };
        let index = first.saturating_add(covered);
        if covered == MAX_ENTRIES {
            let kind = AnomalyKind::TooManyEntries;
            running.anomalies.push(index, None, kind);
            rest = "";
            continue;
        }
        rest = after;
        covered += 1;
        running.extend(line, index);
    }
    let text = &list[..list.len() - rest.len()];
    let beyond = u64::try_from(lines(rest).count()).unwrap_or(u64::MAX);
    let listed = covered.saturating_add(beyond);
    let list = ReplayedList {
        text,
        first,
        covered,
        listed,
        pcr: running.value,
        quote: PhantomData,
    };
    Replay {
        outcome: Ok(list),
        anomalies: running.anomalies,
    }
}

/// What PCR 10 of `bank` holds after a list from boot on, and the lines with something wrong,
/// **not checked against any quote**: for display. `log_hash` as for [`replay`].
pub fn unverified_replay(
    list: &str,
    log_hash: HashAlgorithm,
    bank: HashAlgorithm,
) -> (Digest, Anomalies) {
    let mut running = Running::new(bank, log_hash, Digest::zero(bank));
    for (line, index) in lines(list).zip(0..MAX_ENTRIES) {
        running.extend(line, index);
    }
    (running.value, running.anomalies)
}

/// PCR 10 between two lines.
struct Running {
    bank: HashAlgorithm,
    log_hash: HashAlgorithm,
    value: Digest,
    anomalies: Anomalies,
    /// Template data of the last line, kept for its allocation.
    data: Vec<u8>,
}

impl Running {
    fn new(bank: HashAlgorithm, log_hash: HashAlgorithm, value: Digest) -> Self {
        Self {
            bank,
            log_hash,
            value,
            anomalies: Anomalies::default(),
            data: Vec::with_capacity(512),
        }
    }

    /// Extends by one line, as the kernel did.
    fn extend(&mut self, line: &str, index: u64) {
        let entry = Entry::parse(line, index);
        let entry = entry.and_then(|entry| entry.template_data(&mut self.data).map(|()| entry));
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let kind = AnomalyKind::Unparsable(error.reason);
                return self.anomalies.push(index, None, kind);
            }
        };
        if entry.pcr != u32::from(IMA_PCR) {
            let kind = AnomalyKind::Pcr(entry.pcr);
            self.anomalies.push(index, Some(entry.name), kind);
        }
        let extended = if entry.is_violation() {
            Digest::ones(self.bank)
        } else {
            let expected = self.log_hash.digest(&[&self.data]);
            if expected != entry.template_hash {
                let kind = AnomalyKind::TemplateHash {
                    expected,
                    printed: entry.template_hash,
                };
                self.anomalies.push(index, Some(entry.name), kind);
            }
            if self.bank == self.log_hash {
                expected
            } else {
                self.bank.digest(&[&self.data])
            }
        };
        self.value = self.value.extend(self.bank, extended.as_bytes());
    }
}

/// The next non-empty line, and what follows it.
fn next_line(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches('\n');
    if text.is_empty() {
        return None;
    }
    Some(text.split_once('\n').unwrap_or((text, "")))
}
