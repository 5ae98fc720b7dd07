use std::marker::PhantomData;

use super::{Entry, EntryError, IMA_PCR, ImaPosition, MAX_ENTRIES, hash_of_size, record, split};
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
    /// PCR 10 before the first line, and after the last one.
    start: Digest,
    pcr: Digest,
    bank: HashAlgorithm,
    log_hash: HashAlgorithm,
    /// Entries of several lines: the index of the first, and how many they are.
    joined: Vec<(u64, u64)>,
    quote: PhantomData<&'q VerifiedQuote>,
}

impl<'l> ReplayedList<'_, 'l> {
    /// The covered entries. A line that does not parse is left out; it is among the anomalies.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'l>> + use<'_, 'l> {
        let mut rest = self.text;
        let mut index = self.first;
        let mut joined = self.joined.iter().copied().peekable();
        std::iter::from_fn(move || {
            loop {
                if rest.is_empty() {
                    return None;
                }
                let (at, mut lines) = (index, 1);
                if let Some((_, several)) = joined.next_if(|(first, _)| *first == at) {
                    lines = several;
                }
                let (text, after) = split_lines(rest, lines);
                (rest, index) = (after, at.saturating_add(lines));
                if let Ok(entry) = Entry::parse(text, at) {
                    return Some(entry);
                }
            }
        })
    }

    /// How many entries of this answer are covered.
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// Where the next check resumes, but for the keys learned on the way.
    pub fn position(&self) -> ImaPosition {
        ImaPosition {
            next_entry: self.first.saturating_add(self.covered),
            pcr: Some(self.pcr),
            lag: self.listed - self.covered,
            ..ImaPosition::default()
        }
    }

    /// Where the next check resumes to judge the covered entry `entry`, and what follows, again.
    /// What the answer listed from there on must be covered then.
    pub fn position_before(&self, entry: u64) -> ImaPosition {
        let mut running = Running::new(self.bank, self.log_hash, self.start);
        let (mut rest, mut index) = (self.text, self.first);
        while index < entry && !rest.is_empty() {
            let (lines, after) = running.extend(rest, index);
            (rest, index) = (after, index.saturating_add(lines));
        }
        ImaPosition {
            next_entry: index,
            pcr: Some(running.value),
            lag: self.listed.saturating_sub(index - self.first),
            ..ImaPosition::default()
        }
    }

    /// The progress rule: the entries that the last answer had beyond its quote must be covered
    /// now, unless everything is. Else a host could show entries for ever and never extend them.
    pub fn made_progress(&self, previous: &ImaPosition) -> bool {
        self.covered == self.listed || self.covered >= previous.lag
    }
}

/// Splits off the first `lines` lines; the last one's line feed is in neither part.
fn split_lines(text: &str, lines: u64) -> (&str, &str) {
    let nth = usize::try_from(lines).unwrap_or(usize::MAX);
    split::at_nth(text, b'\n', nth).unwrap_or((text, ""))
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
    let mut covered: u64 = 0;
    let mut joined = Vec::new();
    let mut rest = list;
    while quoted != Some(&running.value) {
        if rest.is_empty() {
            let mismatch = Mismatch {
                quoted: quoted.copied(),
                replayed: running.value,
                entries: covered,
            };
            return Replay {
                outcome: Err(mismatch),
                anomalies: running.anomalies,
            };
        }
        let index = first.saturating_add(covered);
        if covered >= MAX_ENTRIES {
            let kind = AnomalyKind::TooManyEntries;
            running.anomalies.push(index, None, kind);
            rest = "";
            continue;
        }
        let (lines, after) = running.extend(rest, index);
        if lines > 1 {
            joined.push((index, lines));
        }
        rest = after;
        covered += lines;
    }
    let text = &list[..list.len() - rest.len()];
    let beyond = u64::try_from(rest.lines().count()).unwrap_or(u64::MAX);
    let listed = covered.saturating_add(beyond);
    let list = ReplayedList {
        text,
        first,
        covered,
        listed,
        start,
        pcr: running.value,
        bank,
        log_hash,
        joined,
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
    let (mut rest, mut index) = (list, 0);
    while !rest.is_empty() && index < MAX_ENTRIES {
        let (lines, after) = running.extend(rest, index);
        (rest, index) = (after, index + lines);
    }
    (running.value, running.anomalies)
}

/// The entries of a list, **not checked against any quote**: for display, and for making policies
/// of a list one trusts. `first` is the index of the first line, `log_hash` as for [`replay`].
pub fn unverified_entries(
    list: &str,
    first: u64,
    log_hash: HashAlgorithm,
) -> impl Iterator<Item = Result<Entry<'_>, EntryError>> {
    let (mut rest, mut index) = (list, first);
    let mut data = Vec::new();
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return None;
            }
            let record = record::next(rest, index, log_hash, &mut data);
            (rest, index) = (record.after, index.saturating_add(record.lines));
            if !record.text.is_empty() {
                return Some(record.entry);
            }
        }
    })
}

/// The hash that a list's template hashes are printed in, by their size; SHA-1 for none.
pub fn log_hash(list: &str) -> HashAlgorithm {
    let first = list.lines().find_map(|line| Entry::parse(line, 0).ok());
    first
        .and_then(|entry| hash_of_size(entry.template_hash.as_bytes().len()))
        .unwrap_or(HashAlgorithm::Sha1)
}

/// PCR 10 between two entries.
struct Running {
    bank: HashAlgorithm,
    log_hash: HashAlgorithm,
    value: Digest,
    anomalies: Anomalies,
    /// Template data of the last entry, kept for its allocation.
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

    /// Extends by the entry that `list` begins with, as the kernel did; how many lines it takes,
    /// and what follows.
    fn extend<'l>(&mut self, list: &'l str, index: u64) -> (u64, &'l str) {
        let record = record::next(list, index, self.log_hash, &mut self.data);
        let taken = (record.lines, record.after);
        // The kernel writes no empty lines, but agents count them.
        if record.text.is_empty() {
            return taken;
        }
        let (entry, hash) = match (&record.entry, record.hash) {
            (Ok(entry), Some(hash)) => (entry, hash),
            (entry, _) => {
                let reason = entry.as_ref().err();
                let reason = reason.map_or("no entry", |error| error.reason);
                let kind = AnomalyKind::Unparsable(reason);
                self.anomalies.push(index, None, kind);
                return taken;
            }
        };
        if entry.pcr != u32::from(IMA_PCR) {
            let kind = AnomalyKind::Pcr(entry.pcr);
            self.anomalies.push(index, Some(entry.name), kind);
        }
        let extended = if entry.is_violation() {
            Digest::ones(self.bank)
        } else {
            if hash != entry.template_hash {
                let kind = AnomalyKind::TemplateHash {
                    expected: hash,
                    printed: entry.template_hash,
                };
                self.anomalies.push(index, Some(entry.name), kind);
            }
            if self.bank == self.log_hash {
                hash
            } else {
                self.bank.digest(&[&self.data])
            }
        };
        self.value = self.value.extend(self.bank, extended.as_bytes());
        taken
    }
}
