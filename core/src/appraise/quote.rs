use super::{AcceptedAlgorithms, Finding, Place};
use crate::tpm::{AttestationKey, ClockInfo, Expected, PcrMask, Quote, QuoteError, VerifiedQuote};
use crate::wire::QuoteResponse;

/// Keylime's id of everything that makes a quote worthless (spelt so).
const QUOTE_VALIDATION: &str = "qoute_validation.quote_validation";

/// Algorithms, then the quote itself.
pub(super) fn verify(
    ak: &AttestationKey,
    nonce: &str,
    mask: PcrMask,
    evidence: &QuoteResponse,
    accept: &AcceptedAlgorithms,
) -> Result<VerifiedQuote, Box<Finding>> {
    if evidence.quote.is_empty() {
        return Err(Box::new(Finding {
            id: "qoute_validation.invalid_data".to_owned(),
            recoverable: false,
            place: Place::Quote,
            expected: Vec::new(),
            got: None,
            explanation: "The agent's answer has no quote.".to_owned(),
            action: "Look at the agent's journal: its TPM may have failed.".to_owned(),
        }));
    }
    let hash = accept.check(ak, evidence)?;
    let expected = Expected {
        nonce: nonce.as_bytes(),
        hash,
        mask,
    };
    Quote::parse(&evidence.quote)
        .and_then(|quote| quote.verify(ak, &expected))
        .map_err(|error| Box::new(refused(&error, mask)))
}

/// A quote of which only the hash is said, over whatever PCRs it covers.
pub(super) fn verify_whole(
    ak: &AttestationKey,
    nonce: &str,
    evidence: &QuoteResponse,
    accept: &AcceptedAlgorithms,
) -> Result<VerifiedQuote, Box<Finding>> {
    let evidence = QuoteResponse {
        quote: evidence.quote.clone(),
        hash_alg: evidence.hash_alg.clone(),
        enc_alg: ak.algorithm().to_owned(),
        sign_alg: ak.scheme().name().to_owned(),
        ..QuoteResponse::default()
    };
    let mask = Quote::parse(&evidence.quote).map_or_else(
        // The check says what is wrong with it.
        |_| PcrMask::default(),
        |quote| quote.claimed_mask(),
    );
    verify(ak, nonce, mask, &evidence, accept)
}

fn refused(error: &QuoteError, mask: PcrMask) -> Finding {
    let (id, action) = match error {
        QuoteError::MissingPcrs(_) => (
            "pcr_validation.missing_pcrs",
            "Check that the agent quotes the bank and PCRs it is asked for.",
        ),
        QuoteError::Signature | QuoteError::Scheme { .. } | QuoteError::KeyHash { .. } => (
            QUOTE_VALIDATION,
            "The AK that was enrolled did not make this quote. If the TPM was replaced or cleared, \
             register and enrol the node again; else treat it as another machine.",
        ),
        QuoteError::Nonce => (
            QUOTE_VALIDATION,
            "The quote answers another challenge: an old one was played back, or two verifiers \
             share the connection. Treat the node as not attested.",
        ),
        _ => (
            QUOTE_VALIDATION,
            "Compare the agent's version with what the verifier supports; if it did not change, \
             treat the node as compromised.",
        ),
    };
    let (expected, got) = match error {
        QuoteError::MissingPcrs(missing) => (
            vec![format!("PCR {}", mask.list())],
            Some(format!("without PCR {}", missing.list())),
        ),
        _ => (Vec::new(), None),
    };
    Finding {
        id: id.to_owned(),
        recoverable: false,
        place: Place::Quote,
        expected,
        got,
        explanation: format!("The quote cannot be believed: {error}."),
        action: action.to_owned(),
    }
}

/// TPMS_CLOCK_INFO against that of the last good quote (TPM 2.0 Part 2, 10.11.1).
///
/// A higher resetCount is a reboot and starts the comparison anew; with the same resetCount,
/// restartCount must not fall and the clock must have advanced.
pub(super) fn check_clock(last: Option<ClockInfo>, now: ClockInfo) -> Option<Finding> {
    let fail = |what: &str, expected: String, got: String, action: &str| {
        Some(Finding {
            id: QUOTE_VALIDATION.to_owned(),
            recoverable: false,
            place: Place::Quote,
            expected: vec![expected],
            got: Some(got),
            explanation: format!("The TPM's clock cannot be right: {what}."),
            action: action.to_owned(),
        })
    };
    let replayed = "An earlier quote was played back, or the TPM was replaced or cleared. In the \
                    latter case register and enrol the node again.";
    if !now.safe {
        return fail(
            "the TPM says that its clock may have been higher before",
            "safe = 1".to_owned(),
            "safe = 0".to_owned(),
            "The node lost power, or was reset, without TPM2_Shutdown, and is not asked again by \
             itself. The TPM trusts its clock again after 70 minutes of running at most: reactivate \
             the node then.",
        );
    }
    let last = last?;
    let (expected, got) = (|n| format!("at least {n}"), |n: u32| n.to_string());
    if now.reset_count < last.reset_count {
        let what = "resetCount decreased";
        return fail(
            what,
            expected(last.reset_count),
            got(now.reset_count),
            replayed,
        );
    }
    if now.reset_count > last.reset_count {
        return None;
    }
    if now.restart_count < last.restart_count {
        let what = "restartCount decreased";
        return fail(
            what,
            expected(last.restart_count),
            got(now.restart_count),
            replayed,
        );
    }
    if now.clock <= last.clock {
        let (expected, got) = (
            format!("more than {} ms", last.clock),
            now.clock.to_string(),
        );
        return fail(
            "it did not advance since the last quote",
            expected,
            got + " ms",
            replayed,
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(clock: u64, reset_count: u32, restart_count: u32) -> ClockInfo {
        ClockInfo {
            clock,
            reset_count,
            restart_count,
            safe: true,
        }
    }

    #[test]
    fn the_clock_may_only_advance() {
        let last = Some(clock(1_000, 5, 3));
        for (now, good) in [
            (clock(1_001, 5, 3), true),
            (clock(1_001, 5, 4), true),
            // A reboot after suspend: restartCount starts again.
            (clock(1, 6, 0), true),
            (clock(1_000, 5, 3), false),
            (clock(999, 5, 4), false),
            (clock(2_000, 5, 2), false),
            (clock(2_000, 4, 9), false),
        ] {
            assert_eq!(check_clock(last, now).is_none(), good, "{now:?}");
        }
        assert!(check_clock(None, clock(1, 0, 0)).is_none());
    }

    /// As Keylime has it: nobody is asked again until an operator says so, and is told to.
    #[test]
    fn a_clock_that_the_tpm_does_not_trust_waits_for_an_operator() {
        let unsafe_clock = ClockInfo {
            safe: false,
            ..clock(2_000, 5, 3)
        };
        for last in [None, Some(clock(1_000, 5, 3))] {
            let finding = check_clock(last, unsafe_clock).unwrap();
            assert!(!finding.recoverable);
            assert!(finding.action.contains("reactivate"), "{}", finding.action);
        }
    }
}
