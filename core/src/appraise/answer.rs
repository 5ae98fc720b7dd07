use super::{Appraisal, Challenge, Finding, NodeState, Place, Policies, Verdict, appraise};
use crate::tpm::AttestationKey;
use crate::wire::{Envelope, QuoteResponse};

/// [`appraise`] over the body of an answer as it came over the wire. The evidence is `None` when
/// the body is none, which is a finding.
pub fn appraise_answer(
    ak: &AttestationKey,
    challenge: &Challenge<'_>,
    body: &[u8],
    policies: &Policies<'_>,
    state: &NodeState,
) -> (Appraisal, Option<QuoteResponse>) {
    let explanation = match serde_json::from_slice::<Envelope<QuoteResponse>>(body) {
        Ok(Envelope {
            results: Some(evidence),
            ..
        }) => {
            let appraisal = appraise(ak, challenge, &evidence, policies, state);
            return (appraisal, Some(evidence));
        }
        Ok(_) => "the answer has no `results`".to_owned(),
        Err(error) => format!("the answer is not the expected JSON: {error}"),
    };
    let appraisal = Appraisal {
        verdict: Verdict::Failed(vec![unusable_answer(explanation).catalogued()]),
        state: state.clone(),
        findings_total: 1,
        findings_unseen: 0,
        boot_quirks: Vec::new(),
    };
    (appraisal, None)
}

/// The finding of a node that answered, but not with evidence.
pub fn unusable_answer(explanation: String) -> Finding {
    Finding {
        // Keylime's spelling.
        id: "qoute_validation.invalid_data".to_owned(),
        recoverable: false,
        place: Place::Quote,
        expected: Vec::new(),
        got: None,
        explanation,
        action: "Look at the agent's log; check that its version is supported, then reactivate \
                 the node."
            .to_owned(),
    }
}
