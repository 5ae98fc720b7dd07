/// Every id, what it means and what to do next.
pub mod catalog;
/// How much a finding matters, and to whom that is left.
pub mod severity;

use serde::{Deserialize, Serialize};

use crate::tpm::Digest;

/// Findings of one appraisal that are kept, beside the first of every further id; the others are
/// counted.
pub const MAX_FINDINGS: usize = 1_000;
/// Findings that are looked at, lest there is one of an id that is not among those that are kept.
const MAX_LOOKED_AT: u64 = 10_000;
/// Longest name in a finding, in characters: the kernel's PATH_MAX.
const MAX_NAME: usize = 4_096;
/// Most allowed values in a finding.
const MAX_EXPECTED: usize = 16;

/// One reason why a node is not trusted: what, where, expected, got, and what to do.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// Stable id; Keylime's event id where it has one (`ima.validation.ima-ng.not_in_allowlist`).
    pub id: String,
    /// Keylime's notion: an irrecoverable finding stopped the check early.
    pub recoverable: bool,
    /// Where: a file, a PCR, a log entry.
    pub place: Place,
    /// What policy or log demanded; several allowed values are several elements.
    pub expected: Vec<String>,
    /// What was found.
    pub got: Option<String>,
    /// One sentence for the operator.
    pub explanation: String,
    /// What to do about it.
    pub action: String,
}

impl Finding {
    /// This finding, whose id is in the [`catalog`] as one that is made here: a build with debug
    /// assertions panics otherwise.
    #[must_use]
    pub fn catalogued(self) -> Self {
        debug_assert!(
            catalog::find(&self.id).is_some_and(catalog::Kind::is_made_here),
            "add {} to core/src/finding/catalog",
            self.id
        );
        self
    }
}

/// Where a finding is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Place {
    /// The quote as a whole.
    Quote,
    /// A PCR.
    Pcr(u8),
    /// The IMA list as a whole.
    ImaList,
    /// An entry of the IMA list.
    ImaEntry {
        /// 0-based index since boot.
        entry: u64,
        /// File path or keyring or buffer name, if the line parsed. Control characters are
        /// escaped, and it is cut after 4,096 characters.
        path: Option<String>,
    },
    /// The boot log as a whole.
    BootLog,
    /// An event of the boot log.
    BootEvent {
        /// 0-based index.
        event: usize,
        /// Its PCR.
        pcr: u8,
    },
}

/// Collects findings in bounded memory.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    kept: Vec<Finding>,
    total: u64,
    /// Those of the total of which not even the id is known.
    unseen: u64,
}

impl Findings {
    /// Adds a finding. When enough are kept only one of a new id is, so that a flood hides nothing
    /// that matters more; in the end it is not even built.
    pub(crate) fn push(&mut self, finding: impl FnOnce() -> Finding) {
        self.total += 1;
        if self.total > MAX_LOOKED_AT {
            self.unseen += 1;
            return;
        }
        let finding = finding().catalogued();
        if self.kept.len() < MAX_FINDINGS || self.kept.iter().all(|kept| kept.id != finding.id) {
            self.kept.push(finding);
        }
    }

    /// Counts `more` findings that were not kept elsewhere.
    pub(crate) fn count(&mut self, more: u64) {
        self.total = self.total.saturating_add(more);
        self.unseen = self.unseen.saturating_add(more);
    }

    /// Counts `more` findings of an id that is among those that are kept.
    pub(crate) fn count_known(&mut self, more: u64) {
        self.total = self.total.saturating_add(more);
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The findings that are kept, how many there are, and how many of those nothing is known of.
    pub(crate) fn into_parts(self) -> (Vec<Finding>, u64, u64) {
        (self.kept, self.total, self.unseen)
    }
}

/// A name from the node as it may be shown: what controls a terminal is escaped.
pub(crate) fn shown(name: &str) -> String {
    let mut shown = String::with_capacity(name.len().min(MAX_NAME));
    for c in name.chars().take(MAX_NAME) {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Allowed digests as hex, at most 16.
pub(crate) fn hex_list<'d>(digests: impl Iterator<Item = &'d [u8]>) -> Vec<String> {
    digests.take(MAX_EXPECTED).map(hex::encode).collect()
}

/// Allowed PCR values as hex, at most 16.
pub(crate) fn digest_list(digests: &[Digest]) -> Vec<String> {
    hex_list(digests.iter().map(Digest::as_bytes))
}
