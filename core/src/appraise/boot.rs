use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Finding, Place, boot_policy};
use crate::eventlog::{
    BootAggregate, EventLog, EventLogError, PcrMismatch, Quirk, ReplayedLog, Trail, UserspaceLog,
    UserspaceLogError, named_pcr,
};
use crate::finding::Findings;
use crate::policy::BootPolicy;
use crate::tpm::{HashAlgorithm, PcrMask, VerifiedQuote};
use crate::wire::QuoteResponse;

/// PCRs that the firmware's log must explain.
///
/// Not among them are those that systemd goes on extending from user space, in a log of its own:
/// 9 (NvPCRs, with the initrds), 11 (boot phases), 15 (machine id, volume keys, file systems).
/// The firmware's log alone cannot explain them: without the other one they never fail a node.
const LOGGED: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14];

/// PCRs that the firmware's log and systemd's must explain together.
const USER_SPACE: [u8; 3] = [9, 11, 15];

/// What a boot log tells beyond findings.
#[derive(Debug)]
pub(super) struct Boot {
    /// What the kernel's `boot_aggregate` may be, in the quoted bank.
    pub(super) aggregates: Vec<BootAggregate>,
    /// May it be what the log replays to in another bank?
    pub(super) of_other_banks: bool,
    /// PCRs that only a quirk of the firmware explains.
    pub(super) quirks: Vec<(u8, Quirk)>,
}

/// The boot log, if the policy wants it.
pub(super) fn check(
    evidence: &QuoteResponse,
    policy: &BootPolicy,
    quote: &VerifiedQuote,
    findings: &mut Findings,
) -> Boot {
    let quoted = || Boot {
        aggregates: crate::eventlog::quoted_boot_aggregates(quote),
        of_other_banks: false,
        quirks: Vec::new(),
    };
    match policy {
        BootPolicy::None => return quoted(),
        BootPolicy::RejectAll => {
            findings.push(boot_policy::rejected);
            return quoted();
        }
        _ => {}
    }
    let logged = LOGGED.into_iter().fold(PcrMask::default(), PcrMask::with);
    let logged = policy.explained(logged);
    let wanted = match policy {
        BootPolicy::Rules(_) => policy.mask().union(logged),
        _ => logged,
    };
    let missing = wanted.difference(quote.pcrs().mask());
    if !missing.is_empty() {
        findings.push(|| missing_pcrs(missing, quote));
    }
    let text = evidence
        .mb_measurement_list
        .as_deref()
        .filter(|text| !text.is_empty());
    let Some(text) = text else {
        findings.push(missing_log);
        return quoted();
    };
    let Ok(bytes) = STANDARD.decode(text) else {
        findings.push(not_base64);
        return quoted();
    };
    match EventLog::parse(&bytes) {
        Ok(log) => {
            let userspace = userspace_log(evidence, findings);
            // A torn log may lack what was measured, which is no sign of an attack.
            let joined = userspace.as_ref().is_some_and(|log| !log.is_torn());
            let mask = policy.mask();
            let user_space = USER_SPACE
                .into_iter()
                .filter(|pcr| joined && mask.contains(*pcr));
            let logged = user_space.fold(logged, PcrMask::with);
            let replayed = log.verify_joined(quote, userspace.as_ref());
            for mismatch in replayed
                .mismatches()
                .iter()
                .filter(|m| logged.contains(m.pcr) && !boot_policy::explains(policy, m, &replayed))
            {
                findings.push(|| mismatched(mismatch, &replayed));
            }
            boot_policy::check(policy, &log, &replayed, findings);
            Boot {
                aggregates: replayed.boot_aggregates(),
                of_other_banks: replayed.explains_aggregates(),
                quirks: replayed.quirks().to_vec(),
            }
        }
        Err(error) => {
            findings.push(|| unparsable(&error));
            quoted()
        }
    }
}

/// What `boot_aggregate` may be in the log's banks but for the quoted one, where the log is to be
/// believed: few kernels aggregate another bank, and to replay them costs as much as the check.
/// Believing it there gives a host nothing: the aggregate it is compared with is an IMA entry, which
/// the quoted PCR 10 fixes.
pub(super) fn other_aggregates(
    evidence: &QuoteResponse,
    quoted: HashAlgorithm,
) -> Vec<BootAggregate> {
    let text = evidence.mb_measurement_list.as_deref();
    let bytes = STANDARD.decode(text.unwrap_or_default());
    let bytes = bytes.unwrap_or_default();
    EventLog::parse(&bytes).map_or_else(
        |_| Vec::new(),
        |log| log.other_boot_aggregates(quoted).collect(),
    )
}

/// What the boot log in an answer tells, for comparison with that of another boot; `in_words` where
/// this one is to be compared with an earlier one. It need not be what was measured.
pub fn boot_trail(evidence: &QuoteResponse, in_words: bool) -> Option<Trail> {
    let bank = HashAlgorithm::from_name(&evidence.hash_alg)?;
    let bytes = STANDARD
        .decode(evidence.mb_measurement_list.as_deref()?)
        .ok()?;
    let log = EventLog::parse(&bytes).ok()?;
    Some(match in_words {
        true => Trail::in_words(&log, bank),
        false => Trail::new(&log, bank),
    })
}

/// systemd's log, if the agent sent it: not every host has one, nor does every agent send it.
fn userspace_log(evidence: &QuoteResponse, findings: &mut Findings) -> Option<UserspaceLog> {
    let text = evidence.userspace_measurement_list.as_deref()?;
    let Ok(bytes) = STANDARD.decode(text) else {
        findings.push(|| unusable_userspace_log("is not base64"));
        return None;
    };
    match UserspaceLog::parse(&bytes) {
        Ok(log) => Some(log),
        Err(error) => {
            findings.push(|| unparsable_userspace_log(&error));
            None
        }
    }
}

fn mismatched(mismatch: &PcrMismatch, log: &ReplayedLog<'_>) -> Finding {
    let pcr = mismatch.pcr;
    let divergence = log.divergence(pcr, &mismatch.quoted);
    Finding {
        id: format!("measured_boot.invalid_pcr_{pcr}"),
        recoverable: true,
        place: Place::Pcr(pcr),
        expected: vec![mismatch.replayed.to_string()],
        got: Some(mismatch.quoted.to_string()),
        explanation: format!(
            "The boot log does not replay to the quoted value of {}. {divergence}",
            named_pcr(pcr)
        ),
        action: format!(
            "Something extended PCR {pcr} that the log does not tell of, or the log was changed. \
             Reboot the node; if the finding stays, look for a firmware update, else treat the \
             node as compromised."
        ),
    }
}

fn missing_pcrs(missing: PcrMask, quote: &VerifiedQuote) -> Finding {
    Finding {
        id: "measured_boot.missing_pcrs".to_owned(),
        recoverable: true,
        place: Place::Quote,
        expected: vec![format!("PCR {}", missing.list())],
        got: Some(format!("PCR {}", quote.pcrs().mask().list())),
        explanation: format!(
            "The quote lacks PCR {} of the measured boot.",
            missing.list()
        ),
        action: "Enrol the node again with a mask that has PCRs 0-9 and 11-15 (0xfbff).".to_owned(),
    }
}

fn missing_log() -> Finding {
    Finding {
        id: "measured_boot.missing_log".to_owned(),
        recoverable: true,
        place: Place::BootLog,
        expected: vec!["a boot log".to_owned()],
        got: None,
        explanation: "The policy asks for the boot log, but the agent sent none.".to_owned(),
        action: "Check that the node boots by UEFI with its TPM enabled, and that the agent can \
                 read /sys/kernel/security/tpm0/binary_bios_measurements; or enrol the node \
                 without a measured boot policy."
            .to_owned(),
    }
}

fn not_base64() -> Finding {
    Finding {
        id: "measured_boot.parser.log.base64decode".to_owned(),
        recoverable: true,
        place: Place::BootLog,
        expected: vec!["base64".to_owned()],
        got: None,
        explanation: "The boot log in the agent's answer is not base64.".to_owned(),
        action: "Compare the agent's version with what the verifier supports.".to_owned(),
    }
}

fn unparsable(error: &EventLogError) -> Finding {
    Finding {
        id: "measured_boot.parser.eventlog".to_owned(),
        recoverable: true,
        place: Place::BootLog,
        expected: Vec::new(),
        got: None,
        explanation: format!("The boot log does not parse: {error}."),
        action:
            "Compare with `trothctl inspect eventlog` on the node; a log that parses there was \
                 changed on the way, one that does not should be reported with the firmware's \
                 version."
                .to_owned(),
    }
}

fn unparsable_userspace_log(error: &UserspaceLogError) -> Finding {
    unusable_userspace_log(&format!("does not parse: {error}"))
}

fn unusable_userspace_log(reason: &str) -> Finding {
    Finding {
        id: "measured_boot.parser.userspace_log".to_owned(),
        recoverable: true,
        place: Place::BootLog,
        expected: Vec::new(),
        got: None,
        explanation: format!("systemd's log of what user space measured {reason}."),
        action: "Look at /run/log/systemd/tpm2-measure.log on the node, and at its systemd's \
                 version: the log is in memory, and a reboot begins it anew."
            .to_owned(),
    }
}
