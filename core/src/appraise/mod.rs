//! The verdict over one answer of a node: (evidence, policies, state) to (verdict, state').
//!
//! `appraise()` is one pure function and the only way to `Verdict::Trusted`. Its
//! order: algorithms, quote (signature, nonce, selection, PCR digest), TPM clock, reboot, binding
//! of the agent's key, boot log, IMA list, PCR values. Nothing an answer says is used before its
//! quote was verified, and an answer whose quote was not leaves the state as it is.

/// Accepted algorithms, and their aliases.
mod accept;
/// Bodies of answers.
mod answer;
/// Boot log against the quoted PCRs.
mod boot;
/// What the boot log shows, against the boot policy.
mod boot_policy;
/// The rules of Keylime's engine `example`.
mod boot_refstate;
/// The rules of a boot policy of ours.
mod boot_rules;
/// IMA entries against the runtime policy.
mod files;
/// A boot that was judged good, recognised when it is shown again.
mod known;
/// PCR values against the TPM policy, and the binding of the agent's key.
mod pcrs;
/// Quote and TPM clock.
mod quote;

pub use crate::finding::{Finding, MAX_FINDINGS, Place};
pub use accept::AcceptedAlgorithms;
pub use answer::{appraise_answer, unusable_answer};
pub use boot::boot_trail;
pub(crate) use boot_policy::unverified as boot_policy_unverified;
pub use known::KnownBoot;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::boot::Boot;
use crate::eventlog::Quirk;
use crate::finding::Findings;
use crate::ima::{ImaPosition, Keyring};
use crate::policy::{BootPolicy, RuntimePolicy, TpmPolicy};
use crate::tpm::{AttestationKey, BIND_PCR, ClockInfo, PcrMask, VerifiedQuote};
use crate::wire::QuoteResponse;

/// What the verifier asked this time.
#[derive(Clone, Copy, Debug)]
pub struct Challenge<'a> {
    /// ASCII nonce.
    pub nonce: &'a str,
    /// The TPM policy's mask; PCR 16 is added by the agent and by the check.
    pub mask: PcrMask,
    /// First IMA entry asked for.
    pub ima_entry: u64,
}

/// Compiled policies of one node.
#[derive(Clone, Copy, Debug)]
pub struct Policies<'a> {
    /// Allowed PCR values.
    pub tpm: &'a TpmPolicy,
    /// Allowed files; `None`: the empty policy, under which any measured file fails. Under a
    /// policy that asks for files a node that has measured none since boot fails too.
    pub runtime: Option<&'a RuntimePolicy>,
    /// Boot log policy.
    pub boot: &'a BootPolicy,
    /// Accepted algorithms.
    pub accept: &'a AcceptedAlgorithms,
    /// What the verifier, not a policy, says about the IMA list.
    pub ima: ImaRules<'a>,
}

/// What the verifier, not a policy, says about the IMA list.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImaRules<'a> {
    /// What violations are.
    pub tomtou: Tomtou,
    /// Keys for the signatures of this node's files, instead of those of its policy.
    pub keys: Option<&'a Keyring>,
}

/// What violations are: files that were written to while they were measured (open writers), or
/// measured and then opened for writing (time of measure, time of use). Nobody knows what was read.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tomtou {
    /// Not judged, as they have no digest. Logs and databases cause them all the time.
    #[default]
    Ignore,
    /// A finding each.
    Fail,
}

/// What the verifier remembers of one node between two quotes, kept over restarts: a few hundred bytes,
/// and the keys that the node's kernel loaded.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NodeState {
    /// Where the IMA check resumes.
    #[serde(deserialize_with = "ImaPosition::stored")]
    pub ima: ImaPosition,
    /// Boot time of the last answer.
    pub boottime: u64,
    /// Clock of the last good quote.
    pub clock: Option<ClockInfo>,
    /// The agent's public key (NK, PEM) that PCR 16 was last seen to bind; `None`: the next
    /// request must ask for it.
    pub pubkey: Option<String>,
    /// What spares the work of judging the same boot again. Only in memory.
    #[serde(skip)]
    pub known_boot: KnownBoot,
}

/// One appraised answer.
#[derive(Debug)]
pub struct Appraisal {
    /// The verdict.
    pub verdict: Verdict,
    /// State to keep for the next quote.
    pub state: NodeState,
    /// How many findings there are; a failed verdict holds the first [`MAX_FINDINGS`], and beyond
    /// these the first of every other id.
    pub findings_total: u64,
    /// Findings that were only counted: nobody can say how much they matter.
    pub findings_unseen: u64,
    /// PCRs of the boot log whose quoted value only a quirk of the firmware explains, which is no
    /// finding.
    pub boot_quirks: Vec<(u8, Quirk)>,
}

/// The verdict over one answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// Every check passed. Made by [`appraise`] alone.
    Trusted(Trusted),
    /// At least one finding, the first [`MAX_FINDINGS`] of them and the first of every id.
    Failed(Vec<Finding>),
    /// The host rebooted since the last answer: ask again at once from IMA entry 0; neither pass nor fail.
    Rebooted,
}

/// Proof that [`appraise`] ran every check. Cannot be built elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Trusted {
    entries: u64,
    clock: ClockInfo,
}
impl Trusted {
    /// IMA entries covered since boot.
    pub fn ima_entries(&self) -> u64 {
        self.entries
    }
    /// TPM clock of the quote.
    pub fn clock(&self) -> ClockInfo {
        self.clock
    }
}

/// The whole check of one integrity answer.
///
/// A failed check is a value, never an error. After an IMA finding the state's position is at
/// the first entry that has one, as far as the quote vouches for what came before it, else at entry 0.
pub fn appraise(
    ak: &AttestationKey,
    challenge: &Challenge<'_>,
    evidence: &QuoteResponse,
    policies: &Policies<'_>,
    state: &NodeState,
) -> Appraisal {
    let stop = |finding: Finding| Appraisal {
        verdict: Verdict::Failed(vec![finding.catalogued()]),
        state: state.clone(),
        findings_total: 1,
        findings_unseen: 0,
        boot_quirks: Vec::new(),
    };
    if fresh_key(evidence).is_none() && state.pubkey.is_none() {
        return stop(pcrs::no_pubkey());
    }
    let mask = challenge.mask.with(BIND_PCR);
    let quote = match quote::verify(ak, challenge.nonce, mask, evidence, policies.accept) {
        Ok(quote) => quote,
        Err(finding) => return stop(*finding),
    };
    match quote::check_clock(state.clock, quote.clock()) {
        Some(finding) => stop(finding),
        None => judge(&quote, challenge.ima_entry, evidence, policies, state),
    }
}

/// What follows once quote and clock are good: reboot, key binding, logs, PCR values.
pub(crate) fn judge(
    quote: &VerifiedQuote,
    asked_entry: u64,
    evidence: &QuoteResponse,
    policies: &Policies<'_>,
    state: &NodeState,
) -> Appraisal {
    let mut state = state.clone();
    let clock = quote.clock();
    let reset = state
        .clock
        .is_some_and(|last| clock.reset_count > last.reset_count);
    let boottime = evidence.boottime.unwrap_or(0);
    let entry = evidence.ima_measurement_list_entry.unwrap_or(0);
    let rebooted = reset || state.boottime != boottime;
    state.clock = Some(clock);
    state.boottime = boottime;
    if rebooted && entry != 0 && entry == asked_entry {
        state.ima = ImaPosition::default();
        return Appraisal {
            verdict: Verdict::Rebooted,
            state,
            findings_total: 0,
            findings_unseen: 0,
            boot_quirks: Vec::new(),
        };
    }

    let mut findings = Findings::default();
    let bound = fresh_key(evidence)
        .or(state.pubkey.as_deref())
        .unwrap_or_default();
    state.pubkey = match pcrs::check_binding(bound, quote) {
        None => Some(bound.to_owned()),
        Some(finding) => {
            findings.push(|| finding);
            None
        }
    };
    let (position, boot) = content(
        quote,
        asked_entry,
        evidence,
        policies,
        &state.ima,
        &mut state.known_boot,
        &mut findings,
    );
    state.ima = position;
    let (kept, findings_total, findings_unseen) = findings.into_parts();
    let verdict = if findings_total == 0 {
        Verdict::Trusted(Trusted {
            entries: state.ima.next_entry,
            clock,
        })
    } else {
        Verdict::Failed(kept)
    };
    Appraisal {
        verdict,
        state,
        findings_total,
        findings_unseen,
        boot_quirks: boot.quirks.clone(),
    }
}

/// Boot log, IMA list and PCR values. Returns where the next check of the list resumes, and what
/// the boot log tells.
fn content(
    quote: &VerifiedQuote,
    asked_entry: u64,
    evidence: &QuoteResponse,
    policies: &Policies<'_>,
    position: &ImaPosition,
    known: &mut KnownBoot,
    findings: &mut Findings,
) -> (ImaPosition, Arc<Boot>) {
    let boot = known.check(evidence, policies.boot, quote, findings);
    let list = files::Answer {
        evidence,
        asked_entry,
        quote,
        boot: &boot,
    };
    let position = files::check(&list, policies, position, findings);
    pcrs::check_values(policies, quote, findings);
    (position, boot)
}

/// The agent's public key, if this answer has it.
fn fresh_key(evidence: &QuoteResponse) -> Option<&str> {
    evidence.pubkey.as_deref().filter(|pem| !pem.is_empty())
}

/// The identity quote's check (tenant): AK signature, nonce, PCR 16 bound to the key in the
/// answer. Returns the PEM of the bound NK.
///
/// # Errors
/// What is wrong, as findings.
pub fn appraise_identity<'a>(
    ak: &AttestationKey,
    nonce: &str,
    evidence: &'a QuoteResponse,
    accept: &AcceptedAlgorithms,
) -> Result<&'a str, Vec<Finding>> {
    let key = fresh_key(evidence).ok_or_else(|| vec![pcrs::no_pubkey()])?;
    let mask = PcrMask::default().with(BIND_PCR);
    let verify = |mask| quote::verify(ak, nonce, mask, evidence, accept);
    // Keylime's Python agents quote PCR 0 as well. Nothing is concluded from its value.
    let quote = verify(mask)
        .or_else(|finding| verify(mask.with(0)).map_err(|_| finding))
        .map_err(|finding| vec![*finding])?;
    match pcrs::check_binding(key, &quote) {
        None => Ok(key),
        Some(finding) => Err(vec![finding]),
    }
}

/// Is a quote by `ak`, over this nonce? Which PCRs it covers is up to who asked for it, and their
/// values are not judged.
///
/// # Errors
/// What is wrong.
pub fn appraise_quote(
    ak: &AttestationKey,
    nonce: &str,
    evidence: &QuoteResponse,
) -> Result<(), Box<Finding>> {
    quote::verify_whole(ak, nonce, evidence, &AcceptedAlgorithms::of(ak)).map(drop)
}

/// Evidence that somebody else asked for, on its own: what [`appraise`] checks but for the TPM's
/// clock, reboots and the agent's key, as there is no earlier answer to compare with, and PCR 16
/// binds a key of another conversation.
///
/// It makes no node trusted: whoever passes evidence on knows how fresh it is, and whose.
///
/// # Errors
/// What is wrong, the first [`MAX_FINDINGS`].
pub fn appraise_evidence(
    ak: &AttestationKey,
    nonce: &str,
    evidence: &QuoteResponse,
    policies: &Policies<'_>,
) -> Result<(), Vec<Finding>> {
    let quote = quote::verify_whole(ak, nonce, evidence, policies.accept)
        .map_err(|finding| vec![*finding])?;
    let mut findings = Findings::default();
    let start = ImaPosition::default();
    let mut known = KnownBoot::default();
    content(
        &quote,
        0,
        evidence,
        policies,
        &start,
        &mut known,
        &mut findings,
    );
    match findings.into_parts() {
        (_, 0, _) => Ok(()),
        (findings, ..) => Err(findings),
    }
}
