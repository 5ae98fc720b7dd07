use serde::{Deserialize, Serialize};

use super::BundleError;
use crate::appraise::{Appraisal, Finding, NodeState, Verdict};

/// What came of an appraisal, to be kept. It proves nothing by itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Word,
    /// The findings, as many as the appraisal kept.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub findings_total: u64,
    /// What is known of the node after it.
    pub state: NodeState,
}

/// The word for a verdict, which anybody can write.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// Every check passed.
    Trusted,
    /// At least one finding.
    Failed,
    /// The host had booted: neither.
    Rebooted,
}

impl Word {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Failed => "failed",
            Self::Rebooted => "rebooted",
        }
    }
}

impl Outcome {
    /// Of an appraisal.
    pub fn new(appraisal: &Appraisal) -> Self {
        let (verdict, findings) = match &appraisal.verdict {
            Verdict::Trusted(_) => (Word::Trusted, &[][..]),
            Verdict::Failed(findings) => (Word::Failed, findings.as_slice()),
            Verdict::Rebooted => (Word::Rebooted, &[][..]),
        };
        Self {
            verdict,
            findings: findings.to_vec(),
            findings_total: appraisal.findings_total,
            state: appraisal.state.clone(),
        }
    }

    /// JSON without spaces, members in this order: equal outcomes have equal bytes.
    ///
    /// # Errors
    /// None that is known: all of it is plain text and numbers.
    pub fn canonical(&self) -> Result<Vec<u8>, BundleError> {
        serde_json::to_vec(self).map_err(BundleError::Encode)
    }
}
