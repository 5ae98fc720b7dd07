//! The kernel's IMA measurement list: its lines, and their replay against the quoted PCR 10.

/// One line of the list, and the template data the kernel hashed for it.
mod entry;
/// Keys that the kernel measured when they were added to a keyring.
mod key;
/// Incremental replay: from lines to a list that the quote vouches for.
mod replay;

pub use entry::{Entry, EntryError, Template};
pub use key::MeasuredKey;
pub use replay::{
    Anomalies, Anomaly, AnomalyKind, Mismatch, Replay, ReplayedList, replay, unverified_replay,
};

use serde::{Deserialize, Serialize};

use crate::tpm::{Digest, HashAlgorithm};

/// The PCR that IMA extends.
pub const IMA_PCR: u8 = 10;
/// Name of the entry that ties the list to the boot: a hash over the boot PCRs.
pub const BOOT_AGGREGATE: &str = "boot_aggregate";
/// Longest line of a list, in bytes; the longest real ones carry a kexec or device-mapper buffer.
pub const MAX_LINE: usize = 1 << 20;
/// Most entries in one answer.
pub const MAX_ENTRIES: u64 = 4_000_000;

/// Where the check of a node's list resumes: entries matched so far and the PCR value after them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ImaPosition {
    /// Entries that the last matching quote covered; the next request starts here.
    pub next_entry: u64,
    /// PCR 10 after them; `None`: zero of the bank's size.
    pub pcr: Option<Digest>,
    /// How many entries the last answer had beyond the match (quote progress rule).
    pub lag: u64,
}

/// The lines of a list as entries, **not checked against any quote**: for display, and for
/// making policies of a list one trusts. `first` is the index of the first line.
pub fn unverified_entries(
    list: &str,
    first: u64,
) -> impl Iterator<Item = Result<Entry<'_>, EntryError>> {
    lines(list)
        .zip(first..)
        .map(|(line, index)| Entry::parse(line, index))
}

/// The non-empty lines.
fn lines(list: &str) -> impl Iterator<Item = &str> {
    list.split('\n').filter(|line| !line.is_empty())
}

/// The hash algorithm whose digests have `bytes` bytes.
pub(crate) fn hash_of_size(bytes: usize) -> Option<HashAlgorithm> {
    match bytes {
        20 => Some(HashAlgorithm::Sha1),
        32 => Some(HashAlgorithm::Sha256),
        48 => Some(HashAlgorithm::Sha384),
        64 => Some(HashAlgorithm::Sha512),
        _ => None,
    }
}
