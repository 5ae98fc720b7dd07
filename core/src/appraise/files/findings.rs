use super::devices::Fault;
use crate::appraise::{Finding, Place};
use crate::finding::{hex_list, shown};
use crate::ima::{
    self, Anomaly, AnomalyKind, BOOT_AGGREGATE, Entry, IMA_PCR, ImaPosition, Mismatch,
    ReplayedList, SignatureFault,
};
use crate::policy::AllowedDigests;
use crate::tpm::HashAlgorithm;

fn place(entry: &Entry<'_>) -> Place {
    Place::ImaEntry {
        entry: entry.index,
        path: Some(shown(entry.name)),
    }
}

/// What kind of thing an entry measured.
fn noun(entry: &Entry<'_>) -> &'static str {
    match (entry.is_buffer(), entry.key()) {
        (_, Some(_)) => "key of keyring",
        (true, None) => "buffer",
        (false, None) => "file",
    }
}

fn digest_text(entry: &Entry<'_>) -> String {
    match entry.algorithm {
        "" => entry.digest.to_string(),
        algorithm => format!("{}:{}", shown(algorithm), entry.digest),
    }
}

pub(super) fn not_listed(entry: &Entry<'_>, key: &'static str, no_policy: bool) -> Finding {
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

pub(super) fn wrong_digest(entry: &Entry<'_>, allowed: AllowedDigests<'_>) -> Finding {
    let (expected, allowed) = (hex_list(allowed), allowed.count());
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

/// The finding of a file that is signed, with the reason why that did not help.
pub(super) fn with_fault(mut finding: Finding, fault: Option<SignatureFault>) -> Finding {
    if let Some(fault) = fault {
        let more = format!(" Its signature does not count: {fault}.");
        finding.explanation.push_str(&more);
    }
    finding
}

pub(super) fn too_many_keys(entry: &Entry<'_>) -> Finding {
    let name = shown(entry.name);
    Finding {
        id: "ima.too_many_keys".to_owned(),
        recoverable: true,
        place: place(entry),
        expected: vec!["at most 64 keys, of 16 KiB".to_owned()],
        got: Some(digest_text(entry)),
        explanation: format!(
            "A key was added to the keyring {name}, and the verifier remembers no more keys of a \
             node."
        ),
        action: "List keyrings that no file of yours is signed by under `ima.ignored_keyrings` of \
                 the runtime policy."
            .to_owned(),
    }
}

pub(super) fn violation(entry: &Entry<'_>) -> Finding {
    let name = shown(entry.name);
    Finding {
        id: "ima.validation.tomtou".to_owned(),
        recoverable: true,
        place: place(entry),
        expected: Vec::new(),
        got: None,
        explanation: format!(
            "{name} was open for writing while it was measured or used, so nobody knows what was \
             read."
        ),
        action: "Find out what wrote to it; leave files that are always written to, as logs are, \
                 out of the node's IMA policy, or set `tomtou = \"ignore\"` at the verifier."
            .to_owned(),
    }
}

pub(super) fn wrong_buffer(entry: &Entry<'_>) -> Finding {
    let name = shown(entry.name);
    let known = HashAlgorithm::from_name(entry.algorithm);
    let (expected, explanation) = match known {
        Some(algorithm) => (
            vec![algorithm.digest(&[&entry.buffer()]).to_string()],
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

pub(super) fn invalid_key(entry: &Entry<'_>) -> Finding {
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

/// What the device-mapper policy does not allow, at `entry` or once all entries are judged.
pub(super) fn device(fault: &Fault, entry: Option<&Entry<'_>>) -> Finding {
    let text = |text: &String| shown(text);
    Finding {
        id: format!("ima.validation.dm.{}", fault.id),
        recoverable: true,
        place: entry.map_or(Place::ImaList, place),
        expected: fault.expected.iter().map(text).collect(),
        got: fault.got.as_ref().map(text),
        explanation: shown(&fault.explanation),
        action:
            "If the device belongs on this node, change `ima.dm_policy` of the runtime policy; \
                 else find out who set it up."
                .to_owned(),
    }
}

pub(super) fn wrong_entry(got: u64, asked: u64) -> Finding {
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

pub(super) fn missing_list() -> Finding {
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

pub(super) fn nothing_measured(entries: u64) -> Finding {
    let (explanation, action) = if entries == 0 {
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
        got: Some(format!("{entries} entries")),
        explanation: explanation.to_owned(),
        action: action.to_owned(),
    }
}

pub(super) fn mismatched(mismatch: &Mismatch, start: &ImaPosition) -> Finding {
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

pub(super) fn no_progress(list: &ReplayedList<'_, '_>, start: &ImaPosition) -> Finding {
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

pub(super) fn anomalous(anomaly: &Anomaly) -> Finding {
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
            "If the kernel has a template of its own (ima_template_fmt=), boot with \
             ima_template=ima-ng or ima-sig; else the list was changed.",
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
