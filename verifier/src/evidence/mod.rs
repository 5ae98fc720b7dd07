//! Evidence bundles of answers that were judged, kept in a directory: durable attestation.
//!
//! Attestation comes first. A bundle is handed over without waiting, and written by a thread of
//! its own; where the disk is full, fails, or is slower than the answers come, bundles are lost,
//! and the log says so.

/// The directory and what is thrown away of it.
mod directory;
/// The thread that writes.
mod keeper;

pub use directory::{Kept, list, read};
pub(crate) use keeper::{Job, Keeper};

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use troth_core::bundle::Word;

use crate::config::VerifierConfig;

/// Which answers are kept.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Those that failed.
    Failed,
    /// Those after which a node is in another state.
    #[default]
    Changes,
    /// All.
    All,
}

impl Keep {
    /// May an answer with this verdict be kept?
    pub(crate) fn may_want(self, verdict: Word) -> bool {
        self != Self::Failed || verdict == Word::Failed
    }

    /// Is it kept? `changed`: its node is in another state than before.
    pub(crate) fn wants(self, verdict: Word, changed: bool) -> bool {
        match self {
            Self::Failed => verdict == Word::Failed,
            Self::Changes => changed,
            Self::All => true,
        }
    }
}

/// Where bundles are kept, and how many.
#[derive(Clone, Debug)]
pub(crate) struct Retention {
    pub(crate) directory: PathBuf,
    /// Of each node, of those that failed and of the others.
    pub(crate) count: usize,
    /// `None`: for ever.
    pub(crate) age: Option<Duration>,
    /// Bytes on disk, of all nodes.
    pub(crate) size: u64,
}

impl Retention {
    /// As configured; `None`: no evidence is kept.
    pub(crate) fn new(config: &VerifierConfig) -> Option<Self> {
        Some(Self {
            directory: config.evidence_dir()?,
            count: config.evidence_keep_count.max(1),
            age: Some(config.evidence_keep_age.0).filter(|age| !age.is_zero()),
            size: config.evidence_max_size,
        })
    }
}
