use super::{Finding, Place};
use crate::eventlog::BootAggregate;
use crate::finding::{Findings, hex_list, shown};
use crate::ima::{
    self, Anomaly, AnomalyKind, BOOT_AGGREGATE, Entry, IMA_PCR, ImaPosition, MeasuredKey, Mismatch,
    ReplayedList, Template,
};
use crate::policy::{DigestTable, ExcludesBudget, RuntimePolicy};
use crate::tpm::{HashAlgorithm, VerifiedQuote};
use crate::wire::QuoteResponse;

/// The part of an answer that is about IMA.
pub(super) struct Answer<'a> {
    pub(super) evidence: &'a QuoteResponse,
    /// First entry asked for.
    pub(super) asked_entry: u64,
    pub(super) quote: &'a VerifiedQuote,
    /// What `boot_aggregate` may be.
    pub(super) aggregates: &'a [BootAggregate],
}

/// The IMA list, if the quote covers PCR 10. Returns where the next check resumes: at entry 0
/// after any finding.
pub(super) fn check(
    answer: &Answer<'_>,
    policy: Option<&RuntimePolicy>,
    state: &ImaPosition,
    findings: &mut Findings,
) -> ImaPosition {
    let Some(quoted) = answer.quote.pcrs().get(IMA_PCR) else {
        return state.clone();
    };
    let evidence = answer.evidence;
    let start = match evidence.ima_measurement_list_entry.unwrap_or(0) {
        0 => ImaPosition::default(),
        entry if entry == answer.asked_entry && entry == state.next_entry => state.clone(),
        entry => {
            findings.push(|| wrong_entry(entry, answer.asked_entry));
            return ImaPosition::default();
        }
    };
    let list = match &evidence.ima_measurement_list {
        Some(list) => list.as_str(),
        // Without a list there may still be nothing new.
        None if start.pcr.as_ref() == Some(quoted) => "",
        None => {
            findings.push(missing_list);
            return ImaPosition::default();
        }
    };
    let before = findings.total();
    let log_hash = policy.map_or(HashAlgorithm::Sha1, RuntimePolicy::log_hash_alg);
    let replay = ima::replay(list, &start, log_hash, answer.quote);
    let kept = u64::try_from(replay.anomalies.first.len()).unwrap_or(u64::MAX);
    for anomaly in &replay.anomalies.first {
        findings.push(|| anomalous(anomaly));
    }
    findings.count(replay.anomalies.total - kept);
    let list = match replay.outcome {
        Ok(list) => list,
        Err(mismatch) => {
            findings.push(|| mismatched(&mismatch, &start));
            return ImaPosition::default();
        }
    };
    if !list.made_progress(&start) {
        findings.push(|| no_progress(&list, &start));
    }
    let files = judge(&list, policy, answer.aggregates, findings);
    // What resumes at a later entry was judged from entry 0 on and had no finding.
    if start.next_entry == 0 && !files && policy.is_some_and(|policy| expects(policy, &list)) {
        findings.push(|| nothing_measured(&list));
    }
    if findings.total() == before {
        list.position()
    } else {
        ImaPosition::default()
    }
}

/// Does `policy` ask for more than `list`, which has no file and no buffer? Where even
/// `boot_aggregate` is missing, the kernel runs without IMA.
fn expects(policy: &RuntimePolicy, list: &ReplayedList<'_, '_>) -> bool {
    if list.covered() == 0 {
        policy.requires_ima()
    } else {
        policy.lists_files()
    }
}

/// Each covered entry against the policy. Violations are not judged: they have no digest. Returns
/// whether anything but `boot_aggregate` was measured.
fn judge(
    list: &ReplayedList<'_, '_>,
    policy: Option<&RuntimePolicy>,
    aggregates: &[BootAggregate],
    findings: &mut Findings,
) -> bool {
    let mut budget = ExcludesBudget::default();
    let mut files = false;
    for entry in list.entries() {
        files |= entry.name != BOOT_AGGREGATE;
        if entry.is_violation() || is_boot_aggregate(&entry, aggregates) {
            continue;
        }
        let Some(policy) = policy else {
            findings.push(|| not_listed(&entry, "runtime policy", true));
            continue;
        };
        match entry.template {
            Template::Ima | Template::ImaNg | Template::ImaSig => {
                judge_digest(
                    &entry,
                    policy.digests(),
                    "digests",
                    policy,
                    &mut budget,
                    findings,
                );
            }
            Template::ImaBuf => judge_buffer(&entry, policy, &mut budget, findings),
        }
    }
    files
}

/// Is it the `boot_aggregate` of the boot that quote and boot log tell of?
fn is_boot_aggregate(entry: &Entry<'_>, aggregates: &[BootAggregate]) -> bool {
    entry.name == BOOT_AGGREGATE
        && entry.template != Template::ImaBuf
        && aggregates
            .iter()
            .any(|aggregate| aggregate.digest == entry.digest)
}

/// A key or another buffer. Unlike a file's, its digest can be checked, and is.
fn judge_buffer(
    entry: &Entry<'_>,
    policy: &RuntimePolicy,
    budget: &mut ExcludesBudget,
    findings: &mut Findings,
) {
    if entry.buffer_matches_digest() != Some(true) {
        findings.push(|| wrong_buffer(entry));
        return;
    }
    match entry.key() {
        Some(MeasuredKey::Other) => findings.push(|| invalid_key(entry)),
        Some(_) if policy.ignores_keyring(entry.name) => {}
        Some(_) => judge_digest(
            entry,
            policy.keyrings(),
            "keyrings",
            policy,
            budget,
            findings,
        ),
        None => judge_digest(entry, policy.ima_buf(), "ima-buf", policy, budget, findings),
    }
}

/// The digest must be listed for the name, or the name be excluded. The table is asked first: it
/// answers faster than the patterns, and nearly always with yes.
fn judge_digest(
    entry: &Entry<'_>,
    table: &DigestTable,
    key: &'static str,
    policy: &RuntimePolicy,
    budget: &mut ExcludesBudget,
    findings: &mut Findings,
) {
    let allowed = table.get(entry.name);
    if allowed.is_some_and(|allowed| allowed.contains(entry.digest.as_bytes()))
        || policy.excludes().matches(entry.name, budget)
    {
        return;
    }
    match allowed {
        None => findings.push(|| not_listed(entry, key, false)),
        Some(allowed) => findings.push(|| wrong_digest(entry, hex_list(allowed), allowed.count())),
    }
}

fn place(entry: &Entry<'_>) -> Place {
    Place::ImaEntry {
        entry: entry.index,
        path: Some(shown(entry.name)),
    }
}

/// What kind of thing an entry measured.
fn noun(entry: &Entry<'_>) -> &'static str {
    match entry.template {
        Template::ImaBuf if entry.key().is_some() => "key of keyring",
        Template::ImaBuf => "buffer",
        Template::Ima | Template::ImaNg | Template::ImaSig => "file",
    }
}

fn digest_text(entry: &Entry<'_>) -> String {
    match entry.algorithm {
        "" => entry.digest.to_string(),
        algorithm => format!("{}:{}", shown(algorithm), entry.digest),
    }
}

fn not_listed(entry: &Entry<'_>, key: &'static str, no_policy: bool) -> Finding {
    let (name, noun, digest) = (shown(entry.name), noun(entry), digest_text(entry));
    let (explanation, action) = if no_policy {
        (
            format!("The {noun} {name} was measured, but the node has no runtime policy."),
            "Enrol the node with a runtime policy, or with a mask without PCR 10.".to_owned(),
        )
    } else if entry.name == BOOT_AGGREGATE {
        (
            format!(
                "boot_aggregate {digest} is neither in the policy nor what the verified boot log \
                 and PCRs give."
            ),
            "Enrol the node with the boot policy {} so that the boot log explains it, or add this \
             host's value to the policy."
                .to_owned(),
        )
    } else {
        (
            format!("The policy has no digest for the {noun} {name}, which was measured."),
            format!(
                "If {name} belongs on this node, add {digest} for it to `{key}` of the runtime \
                 policy; else find out who put it there and used it."
            ),
        )
    };
    Finding {
        id: "ima.validation.ima-ng.not_in_allowlist".to_owned(),
        recoverable: true,
        place: place(entry),
        expected: Vec::new(),
        got: Some(digest),
        explanation,
        action,
    }
}

fn wrong_digest(entry: &Entry<'_>, expected: Vec<String>, allowed: usize) -> Finding {
    let (name, noun, digest) = (shown(entry.name), noun(entry), digest_text(entry));
    let explanation = match expected.as_slice() {
        [only] => format!("The {noun} {name} has digest {digest}; the policy allows only {only}."),
        _ => format!(
            "The {noun} {name} has digest {digest}, which is none of the {allowed} that the policy \
             allows for it."
        ),
    };
    Finding {
        id: "ima.validation.ima-ng.runtime_policy_hash".to_owned(),
        recoverable: true,
        place: place(entry),
        expected,
        got: Some(digest),
        explanation,
        action: format!(
            "If {name} was updated on purpose, add the new digest to the runtime policy; else \
             treat the node as compromised."
        ),
    }
}

fn wrong_buffer(entry: &Entry<'_>) -> Finding {
    let name = shown(entry.name);
    let known = HashAlgorithm::from_name(entry.algorithm);
    let (expected, explanation) = match known {
        Some(algorithm) => (
            vec![algorithm.digest(&[&entry.extra()]).to_string()],
            format!("The digest of the measured buffer {name} is not that of its content."),
        ),
        None => (
            Vec::new(),
            format!("The digest of the measured buffer {name} is of an unknown algorithm."),
        ),
    };
    Finding {
        id: "ima.validation.ima-buf.digest".to_owned(),
        recoverable: true,
        place: place(entry),
        expected,
        got: Some(digest_text(entry)),
        explanation,
        action: "The kernel never writes such an entry: treat the node as compromised.".to_owned(),
    }
}

fn invalid_key(entry: &Entry<'_>) -> Finding {
    let name = shown(entry.name);
    Finding {
        id: "ima.invalid_key".to_owned(),
        recoverable: true,
        place: place(entry),
        expected: vec!["an RSA or EC key".to_owned()],
        got: Some(digest_text(entry)),
        explanation: format!("A key of an unknown algorithm was added to the keyring {name}."),
        action: "Find out which software added it; IMA signatures are made with RSA or EC keys."
            .to_owned(),
    }
}

fn wrong_entry(got: u64, asked: u64) -> Finding {
    Finding {
        id: "qoute_validation.invalid_ima_entry_nb".to_owned(),
        recoverable: false,
        place: Place::ImaList,
        expected: vec![asked.to_string(), "0".to_owned()],
        got: Some(got.to_string()),
        explanation: format!(
            "The IMA list was asked for from entry {asked}, but the answer starts at entry {got}."
        ),
        action: "The list is asked for from entry 0 next time; if the finding stays, compare the \
                 agent's version with what the verifier supports."
            .to_owned(),
    }
}

fn missing_list() -> Finding {
    Finding {
        id: format!("pcr_validation.unused_pcr_{IMA_PCR}"),
        recoverable: true,
        place: Place::ImaList,
        expected: vec!["an IMA list".to_owned()],
        got: None,
        explanation: "The quote covers PCR 10, but the agent sent no IMA list.".to_owned(),
        action: "Check that the kernel has an IMA policy (boot with ima_policy=tcb) and that the \
                 agent can read /sys/kernel/security/ima/ascii_runtime_measurements."
            .to_owned(),
    }
}

fn nothing_measured(list: &ReplayedList<'_, '_>) -> Finding {
    let (explanation, action) = if list.covered() == 0 {
        (
            "The kernel has measured nothing since boot: IMA is switched off or not built in.",
            "Boot a kernel that has CONFIG_IMA, without ima=off, and with a measurement policy \
             (ima_policy=tcb, or /etc/ima/ima-policy); or enrol the node without a runtime policy.",
        )
    } else {
        (
            "The kernel has measured no file since boot, only boot_aggregate: it has no IMA policy.",
            "Boot with a measurement policy (ima_policy=tcb, or /etc/ima/ima-policy); or enrol the \
             node without a runtime policy.",
        )
    };
    Finding {
        id: "ima.nothing_measured".to_owned(),
        recoverable: true,
        place: Place::ImaList,
        expected: vec!["measured files".to_owned()],
        got: Some(format!("{} entries", list.covered())),
        explanation: explanation.to_owned(),
        action: action.to_owned(),
    }
}

fn mismatched(mismatch: &Mismatch, start: &ImaPosition) -> Finding {
    Finding {
        id: "ima.pcr_mismatch".to_owned(),
        recoverable: true,
        place: Place::Pcr(IMA_PCR),
        expected: mismatch.quoted.iter().map(ToString::to_string).collect(),
        got: Some(mismatch.replayed.to_string()),
        explanation: format!(
            "No entry of the IMA list leads to the quoted PCR 10 ({} entries from entry {}).",
            mismatch.entries, start.next_entry
        ),
        action: "Entries are missing, changed or out of order, or something else extended PCR 10. \
                 The whole list is asked for next; if the finding stays, treat the node as \
                 compromised."
            .to_owned(),
    }
}

fn no_progress(list: &ReplayedList<'_, '_>, start: &ImaPosition) -> Finding {
    Finding {
        id: "ima.quote_progress".to_owned(),
        recoverable: true,
        place: Place::ImaList,
        expected: vec![format!("at least {} entries covered", start.lag)],
        got: Some(format!("{} entries covered", list.covered())),
        explanation: format!(
            "The last answer had {} entries beyond its quote, and this quote does not cover them \
             either.",
            start.lag
        ),
        action: "Entries are in the list that PCR 10 was never extended with: treat the node as \
                 compromised."
            .to_owned(),
    }
}

fn anomalous(anomaly: &Anomaly) -> Finding {
    let path = anomaly.name.as_deref().map(shown);
    let place = Place::ImaEntry {
        entry: anomaly.entry,
        path,
    };
    let entry = anomaly.entry;
    let (id, expected, got, explanation, action) = match &anomaly.kind {
        AnomalyKind::Unparsable(reason) => (
            "ima.parser.entry",
            Vec::new(),
            None,
            format!("Entry {entry} of the IMA list cannot be used: {reason}."),
            "Supported templates are ima, ima-ng, ima-sig and ima-buf: boot with \
             ima_template=ima-ng or ima-sig.",
        ),
        AnomalyKind::Pcr(pcr) => (
            "ima.validation.ima_pcr",
            vec![IMA_PCR.to_string()],
            Some(pcr.to_string()),
            format!("Entry {entry} of the IMA list was extended into PCR {pcr}, not 10."),
            "Remove the pcr= option from the node's IMA policy.",
        ),
        AnomalyKind::TemplateHash { expected, printed } => (
            "ima.validation.ima_hash",
            vec![expected.to_string()],
            Some(printed.to_string()),
            format!("The template hash of entry {entry} is not that of its fields."),
            "If all entries are so, set ima.log_hash_alg of the runtime policy to the hash of the \
             list; else the list was changed: treat the node as compromised.",
        ),
        AnomalyKind::TooManyEntries => (
            "ima.parser.entry",
            vec![format!("at most {} entries", ima::MAX_ENTRIES)],
            None,
            "The IMA list has more entries than one answer may have.".to_owned(),
            "Narrow the node's IMA policy; rebooting empties the list.",
        ),
    };
    Finding {
        id: id.to_owned(),
        recoverable: true,
        place,
        expected,
        got,
        explanation,
        action: action.to_owned(),
    }
}
