use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::LazyLock,
    time::Duration,
};

use tokio::time::timeout;
use troth_core::{
    appraise::{Finding, KnownBoot, Place},
    eventlog::Trail,
};

use super::{
    node::Enrolled,
    state::{FailedBoot, Outcome},
};
use crate::store::{Store, StoreError};

/// PCRs that the firmware's log can tell of; 10 is IMA's.
const PCRS: u32 = 0xfbff;
/// Nothing waits for the database any longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The last boot of a node that was trusted, which is in the database: what the node's task
/// remembers of it, so that the database is asked once for each boot.
///
/// Nothing is decided by it, so a database that fails is told of, and no more.
#[derive(Debug, Default)]
pub(super) struct LastBoot {
    /// The boot as it was recognised when it was kept.
    recognised: KnownBoot,
    /// A hash of what is kept of it.
    kept: Option<u64>,
    /// A hash of the log of the boot that failed last, and where it parts from the one that is
    /// kept, by PCR.
    failed: Option<(u64, Vec<(u8, String)>)>,
}

/// What need not be told again.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered {
    /// The boot that is kept.
    pub(super) kept: KnownBoot,
    /// A hash of the log of the boot that failed last.
    pub(super) failed: Option<u64>,
}

/// A boot that is trusted, and what its log tells.
#[derive(Debug)]
pub(super) struct TrustedBoot {
    boot: KnownBoot,
    trail: Box<Trail>,
}

/// Takes the boot that is to be kept out of an outcome.
pub(super) fn trusted(outcome: &mut Outcome) -> Option<TrustedBoot> {
    let Outcome::Trusted { node, boot, .. } = outcome else {
        return None;
    };
    let (boot, trail) = (node.known_boot.clone(), boot.take()?);
    Some(TrustedBoot { boot, trail })
}

impl LastBoot {
    /// For the next question.
    pub(super) fn remembered(&self) -> Remembered {
        Remembered {
            kept: self.recognised.clone(),
            failed: self.failed.as_ref().map(|(log, _)| *log),
        }
    }

    /// Says of a boot that is not trusted where it parts from the last one that was.
    pub(super) async fn explain(&mut self, store: &Store, node: &Enrolled, outcome: &mut Outcome) {
        let Outcome::Failed {
            findings,
            boot: Some(FailedBoot { log, trail }),
            ..
        } = outcome
        else {
            return;
        };
        if let Some(now) = trail.take() {
            let before = store.boot(node.id.as_str(), node.generation);
            let Some(before) = in_time(node, before).await else {
                return;
            };
            let before = before.and_then(|text| serde_json::from_str(&text).ok());
            let partings = before.map(|before| partings(&now, &before));
            self.failed = Some((*log, partings.unwrap_or_default()));
        }
        if let Some((_, partings)) = self.failed.as_ref().filter(|(known, _)| known == log) {
            tell(findings, partings);
        }
    }

    /// Keeps a boot that is trusted. One that could not be kept is tried again with the next
    /// verdict.
    pub(super) async fn keep(&mut self, store: &Store, node: &Enrolled, trusted: TrustedBoot) {
        let text = match serde_json::to_string(&*trusted.trail) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(node_id = %node.id, %error, "boot cannot be written");
                return;
            }
        };
        let trail = hash(&text);
        if self.kept != Some(trail) {
            let (id, generation) = (node.id.as_str(), node.generation);
            let keep = async {
                // To write is dearer: after a restart most are there.
                match store.boot(id, generation).await? {
                    Some(before) if before == text => Ok(()),
                    _ => store.keep_boot(id, generation, text).await,
                }
            };
            if in_time(node, keep).await.is_none() {
                return;
            }
            self.kept = Some(trail);
            self.failed = None;
        }
        self.recognised = trusted.boot;
    }
}

/// A hash that differs from process to process.
pub(super) fn hash<T: Hash + ?Sized>(value: &T) -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEYS.hash_one(value)
}

/// The PCR of the boot that a finding is about.
pub(super) fn pcr_of(finding: &Finding) -> Option<u8> {
    let of_boot = ["measured_boot.", "pcr_validation."]
        .iter()
        .any(|start| finding.id.starts_with(start));
    let (Place::Pcr(pcr) | Place::BootEvent { pcr, .. }) = finding.place else {
        return None;
    };
    (of_boot && is_of_boot(pcr)).then_some(pcr)
}

fn is_of_boot(pcr: u8) -> bool {
    PCRS.checked_shr(u32::from(pcr)).unwrap_or(0) & 1 == 1
}

async fn in_time<T>(
    node: &Enrolled,
    question: impl Future<Output = Result<T, StoreError>>,
) -> Option<T> {
    let reason = match timeout(PATIENCE, question).await {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the database does not answer".to_owned(),
    };
    let id = &node.id;
    tracing::warn!(node_id = %id, "the last boot that was trusted is not known: {reason}");
    None
}

fn partings(now: &Trail, before: &Trail) -> Vec<(u8, String)> {
    let told = (0..=15).filter(|pcr| is_of_boot(*pcr)).filter_map(|pcr| {
        let parting = now.parting_from(before, pcr)?;
        Some((pcr, parting.to_string()))
    });
    told.collect()
}

/// Tells it in the first finding of each PCR.
fn tell(findings: &mut [Finding], partings: &[(u8, String)]) {
    for (of, parting) in partings {
        let first = findings.iter_mut().find(|one| pcr_of(one) == Some(*of));
        if let Some(finding) = first {
            finding.explanation.push_str(&format!(" {parting}"));
        }
    }
}
