use std::{fmt, path::Path};

use troth_core::tpm::Digest;

/// Problems that are told one by one; the rest is counted.
const MAX_TOLD: usize = 1000;

/// What a source of files holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Names as the kernel writes them, with digests; in no order.
    pub(super) files: Vec<(String, Digest)>,
    /// Files and directories that could not be read, and why.
    pub(super) unreadable: Vec<String>,
    /// How many there are of them.
    pub(super) unreadable_count: u64,
    /// How many of those were read, and are not what they should be.
    pub(super) malformed_count: u64,
    /// What was left out on purpose and whoever relies on the policy may look for.
    pub(super) left_out: Vec<String>,
    /// Mount points of other file systems.
    pub(super) not_entered: Vec<String>,
    /// Files whose digest was in the cache.
    pub(super) cached: u64,
    /// Files whose label was written, was right before, and is somebody else's signature.
    pub(super) labels: [u64; 3],
    /// Files that could not be labelled, and why.
    pub(super) unlabelled: Vec<String>,
    /// How many there are of them.
    pub(super) unlabelled_count: u64,
    /// Was the command stopped before the end?
    pub(super) stopped: bool,
}

impl Found {
    /// Takes over what another thread found.
    pub(super) fn add(&mut self, other: Self) {
        self.files.extend(other.files);
        let room = MAX_TOLD.saturating_sub(self.unreadable.len());
        self.unreadable
            .extend(other.unreadable.into_iter().take(room));
        self.unreadable_count += other.unreadable_count;
        self.malformed_count += other.malformed_count;
        self.left_out.extend(other.left_out);
        self.not_entered.extend(other.not_entered);
        self.cached += other.cached;
        for (mine, theirs) in self.labels.iter_mut().zip(other.labels) {
            *mine += theirs;
        }
        let room = MAX_TOLD.saturating_sub(self.unlabelled.len());
        self.unlabelled
            .extend(other.unlabelled.into_iter().take(room));
        self.unlabelled_count += other.unlabelled_count;
    }

    /// Remembers what could not be read.
    pub(super) fn unreadable(&mut self, path: &Path, reason: impl fmt::Display) {
        self.unreadable_count += 1;
        if self.unreadable.len() < MAX_TOLD {
            self.unreadable
                .push(format!("cannot read {}: {reason}", path.display()));
        }
    }

    /// Remembers what is damaged, or something else than it was named as.
    pub(super) fn malformed(&mut self, path: &Path, reason: impl fmt::Display) {
        self.unreadable_count += 1;
        self.malformed_count += 1;
        if self.unreadable.len() < MAX_TOLD {
            self.unreadable
                .push(format!("malformed: {}: {reason}", path.display()));
        }
    }

    /// Remembers what could not be labelled.
    pub(super) fn unlabelled(&mut self, path: &Path, reason: impl fmt::Display) {
        self.unlabelled_count += 1;
        if self.unlabelled.len() < MAX_TOLD {
            self.unlabelled
                .push(format!("cannot label {}: {reason}", path.display()));
        }
    }
}
