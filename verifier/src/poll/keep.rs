use base64::{Engine, engine::general_purpose::STANDARD};
use troth_core::{
    bundle::{Criteria, Head, PolicyReference},
    policy::BootEngine,
    wire::Enrolment,
};

use super::{ask::Exchange, node::Enrolled, rules::Rules, state::milliseconds, state::now};
use crate::evidence::Job;

/// Who makes the bundles.
const MAKER: &str = concat!("troth-verifier ", env!("CARGO_PKG_VERSION"));

/// All that a judgement by `rules` rested on.
pub(super) fn job(
    enrolled: &Enrolled,
    rules: &Rules,
    boot_engine: BootEngine,
    exchange: Exchange,
) -> Job {
    let Enrolled { id, enrolment, .. } = enrolled;
    let Exchange {
        nonce,
        state,
        body,
        outcome,
    } = exchange;
    let named = |name: &Option<String>, digest: &Option<_>| {
        digest.as_deref().map(|digest: &str| PolicyReference {
            name: policy_name(enrolled, name),
            sha256: digest.to_owned(),
        })
    };
    let Enrolment {
        runtime_policy_name,
        mb_policy_name,
        ima_sign_verification_keys,
        ..
    } = enrolment;
    Job {
        head: Head {
            maker: MAKER.to_owned(),
            node: id.clone(),
            time_ms: milliseconds(now()),
            sequence: None,
            nonce,
            mask: rules.tpm.mask(),
            ima_entry: state.ima.next_entry,
            // It was base64 when the node was enrolled.
            ak: STANDARD.decode(&enrolment.ak_tpm).unwrap_or_default(),
            state,
            criteria: Some(Criteria {
                accept: rules.accept.clone(),
                tpm_policy: rules.tpm.to_json(),
                runtime_policy: named(runtime_policy_name, &rules.named.runtime_digest),
                boot_policy: named(mb_policy_name, &rules.named.boot_digest),
                boot_engine,
                tomtou: rules.tomtou,
                ima_keys: ima_sign_verification_keys
                    .clone()
                    .filter(|keys| !keys.is_empty()),
            }),
        },
        answer: body,
        outcome,
    }
}

/// The name that a node's policy is stored under: its id, where it was enrolled without one.
pub(super) fn policy_name(enrolled: &Enrolled, given: &Option<String>) -> String {
    let given = given.clone().filter(|name| !name.is_empty());
    given.unwrap_or_else(|| enrolled.id.as_str().to_owned())
}
