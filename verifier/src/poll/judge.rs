use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::available_parallelism,
};

use tokio::sync::Semaphore;
use troth_core::{
    appraise::{
        Appraisal, Challenge, Finding, ImaRules, NodeState, Place, Policies, Verdict,
        appraise_answer, boot_trail, unusable_answer,
    },
    bundle,
    eventlog::Trail,
    wire::{BootQuirk, QuoteResponse},
};

use super::{
    last_boot::{self, Remembered, pcr_of},
    rules::Rules,
    state::{Algorithms, FailedBoot, Outcome},
};
use crate::evidence::Keep;

/// Bytes of evidence that are judged on the thread that received them. That takes some tens of
/// microseconds, and to hand them over takes as long: a thread is woken, then this one again.
const SMALL: usize = 16 * 1024;

/// Runs what costs CPU time on worker threads, at most so many at a time.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    slots: Arc<Semaphore>,
}

/// A worker that ended without a result: a panic, or the runtime is stopping.
#[derive(Debug, thiserror::Error)]
#[error("a worker ended without a result: {0}")]
pub struct WorkerError(String);

impl Workers {
    /// `count` 0: one per core.
    pub(super) fn new(count: usize) -> Self {
        let count = match count {
            0 => available_parallelism().map_or(1, usize::from),
            count => count,
        };
        Self {
            slots: Arc::new(Semaphore::new(count)),
        }
    }

    /// Runs `work` on `size` bytes of evidence: here and now when they are few.
    pub(super) async fn check<T: Send + 'static>(
        &self,
        size: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        if size > SMALL {
            return self.run(work).await;
        }
        // Nothing that `work` has taken is used again.
        catch_unwind(AssertUnwindSafe(work)).map_err(|_| WorkerError("it panicked".to_owned()))
    }

    /// Runs `work` when its turn comes.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        let slot = Arc::clone(&self.slots)
            .acquire_owned()
            .await
            .map_err(|error| WorkerError(error.to_string()))?;
        tokio::task::spawn_blocking(move || {
            let result = work();
            drop(slot);
            result
        })
        .await
        .map_err(|error| WorkerError(error.to_string()))
    }
}

/// Judges the body of an agent's answer with status 200. Runs on a worker. What came of it is
/// there once more, for a bundle, if it may be wanted.
pub(super) fn judge(
    rules: &Rules,
    nonce: &str,
    state: &NodeState,
    boots: &Remembered,
    body: &[u8],
    keep: Option<Keep>,
) -> (Outcome, Option<bundle::Outcome>) {
    let challenge = Challenge {
        nonce,
        mask: rules.tpm.mask(),
        ima_entry: state.ima.next_entry,
    };
    let policies = Policies {
        tpm: &rules.tpm,
        runtime: rules.named.runtime.as_deref(),
        boot: &rules.named.boot,
        accept: &rules.accept,
        ima: ImaRules {
            tomtou: rules.tomtou,
            keys: Some(&rules.ima_keys),
        },
    };
    let (appraisal, evidence) = appraise_answer(&rules.ak, &challenge, body, &policies, state);
    let kept = keep.map(|keep| (keep, bundle::Outcome::new(&appraisal)));
    let kept = kept.and_then(|(keep, kept)| keep.may_want(kept.verdict).then_some(kept));
    let (trusted_boot, failed_boot) = match &evidence {
        Some(evidence) => (
            boot_to_keep(&appraisal, evidence, boots),
            boot_to_compare(&appraisal, evidence, boots),
        ),
        None => (None, None),
    };
    let algorithms = evidence.map(|evidence| Algorithms {
        hash: short(&evidence.hash_alg),
        encryption: short(&evidence.enc_alg),
        signing: short(&evidence.sign_alg),
    });
    let quirks = appraisal.boot_quirks.iter();
    let boot_quirks = quirks
        .map(|(pcr, quirk)| BootQuirk::new(*pcr, *quirk))
        .collect();
    let outcome = match appraisal.verdict {
        Verdict::Trusted(trusted) => Outcome::Trusted {
            node: appraisal.state,
            ima_entries: trusted.ima_entries(),
            algorithms: algorithms.unwrap_or_default(),
            boot_quirks,
            boot: trusted_boot,
        },
        Verdict::Failed(findings) => Outcome::Failed {
            findings,
            total: appraisal.findings_total,
            unseen: appraisal.findings_unseen,
            node: Some(appraisal.state),
            algorithms,
            boot_quirks,
            boot: failed_boot,
        },
        Verdict::Rebooted => Outcome::Rebooted {
            node: appraisal.state,
        },
        // A verdict that this verifier does not know is none that it may show as trusted.
        _ => invalid("the appraisal ended in an unknown verdict".to_owned()),
    };
    (outcome, kept)
}

/// What the log of a boot tells that is trusted, and not kept as it is.
fn boot_to_keep(
    appraisal: &Appraisal,
    evidence: &QuoteResponse,
    boots: &Remembered,
) -> Option<Box<Trail>> {
    let trusted = matches!(appraisal.verdict, Verdict::Trusted(_));
    if !trusted || !appraisal.state.known_boot.is_new_since(&boots.kept) {
        return None;
    }
    boot_trail(evidence, false).map(Box::new)
}

/// The log of a boot that fails.
fn boot_to_compare(
    appraisal: &Appraisal,
    evidence: &QuoteResponse,
    boots: &Remembered,
) -> Option<FailedBoot> {
    let Verdict::Failed(findings) = &appraisal.verdict else {
        return None;
    };
    if !findings.iter().any(|one| pcr_of(one).is_some()) {
        return None;
    }
    let log = last_boot::hash(&(&evidence.hash_alg, &evidence.mb_measurement_list));
    let trail = match boots.failed {
        Some(before) if before == log => None,
        _ => Some(Box::new(boot_trail(evidence, true)?)),
    };
    Some(FailedBoot { log, trail })
}

/// The node answered, but not with evidence.
pub(super) fn invalid(explanation: String) -> Outcome {
    failed(unusable_answer(explanation))
}

/// The check itself broke.
pub(super) fn broken(error: &WorkerError) -> Outcome {
    failed(Finding {
        id: "internal.verifier.exception".to_owned(),
        recoverable: false,
        place: Place::Quote,
        expected: Vec::new(),
        got: None,
        explanation: format!("the evidence could not be judged: {error}"),
        action: "Report this with the verifier's log, then reactivate the node.".to_owned(),
    })
}

fn failed(finding: Finding) -> Outcome {
    Outcome::Failed {
        findings: vec![finding.catalogued()],
        total: 1,
        unseen: 0,
        node: None,
        algorithms: None,
        boot_quirks: Vec::new(),
        boot: None,
    }
}

/// An algorithm name as the agent sent it, cut to what any real one needs.
fn short(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_ascii_graphic())
        .take(32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// trothctl's explanation of it is tested with the file; `TROTH_REWRITE=1` writes it.
    #[test]
    fn the_kept_finding_of_a_check_that_broke_is_what_is_made() {
        let Outcome::Failed { findings, .. } = broken(&WorkerError("it panicked".to_owned()))
        else {
            panic!("not failed");
        };
        let text = serde_json::to_string_pretty(&findings[0]).unwrap() + "\n";
        let name = format!("findings/{}.json", findings[0].id);
        let path = troth_tests::boot::fixtures().join(name);
        if std::env::var_os("TROTH_REWRITE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), text);
    }
}
