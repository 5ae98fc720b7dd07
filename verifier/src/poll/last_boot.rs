use troth_core::{
    appraise::{Finding, Place},
    eventlog::Trail,
};

use super::{node::Enrolled, state::Outcome};
use crate::store::Store;

/// PCRs that the firmware's log can tell of; 10 is IMA's.
const PCRS: u32 = 0xfbff;

/// Keeps the boot of a node that is trusted; and of one that is not says where its boot parts from
/// the last one that was.
///
/// Nothing is decided by it, so a database that fails is told of, and no more.
pub(super) async fn compare(store: &Store, node: &Enrolled, outcome: &mut Outcome) {
    let (id, generation) = (node.id.as_str(), node.generation);
    let failed = match outcome {
        Outcome::Trusted {
            boot: Some(boot), ..
        } => match serde_json::to_string(&**boot) {
            Ok(text) => store.keep_boot(id, generation, text).await.err(),
            Err(error) => {
                tracing::error!(node_id = %node.id, %error, "boot cannot be written");
                None
            }
        },
        Outcome::Failed {
            findings,
            boot: Some(boot),
            ..
        } => match store.boot(id, generation).await {
            Ok(before) => {
                let before = before.and_then(|text| serde_json::from_str(&text).ok());
                if let Some(before) = before {
                    explain(findings, boot, &before);
                }
                None
            }
            Err(error) => Some(error),
        },
        _ => None,
    };
    if let Some(error) = failed {
        tracing::warn!(node_id = %node.id, %error, "the last boot that was trusted is not known");
    }
}

/// The PCR of the boot that a finding is about.
pub(super) fn pcr_of(finding: &Finding) -> Option<u8> {
    let of_boot = ["measured_boot.", "pcr_validation."]
        .iter()
        .any(|start| finding.id.starts_with(start));
    let (Place::Pcr(pcr) | Place::BootEvent { pcr, .. }) = finding.place else {
        return None;
    };
    (of_boot && PCRS.checked_shr(u32::from(pcr)).unwrap_or(0) & 1 == 1).then_some(pcr)
}

/// Tells it in the first finding of each PCR.
fn explain(findings: &mut [Finding], now: &Trail, before: &Trail) {
    let mut told = 0_u32;
    for finding in findings {
        let Some(pcr) = pcr_of(finding).filter(|pcr| told >> pcr & 1 == 0) else {
            continue;
        };
        told |= 1 << pcr;
        if let Some(parting) = now.parting_from(before, pcr) {
            finding.explanation.push_str(&format!(" {parting}"));
        }
    }
}
