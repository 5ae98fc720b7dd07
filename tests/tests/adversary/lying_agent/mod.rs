/// What comes back is no answer, or too much of one.
mod answer;
/// The IMA list and the boot log are not those of the quote.
mod logs;
/// The quote is not of this TPM, this moment, or these PCRs.
mod quote;

use serde_json::Value;

use crate::forge::Evidence;
use crate::{Stage, reason};

const ID: &str = "liar";

/// A trusted host that changes its evidence is failed, with `words` among the reason.
fn fails(words: &str, change: impl Fn(&mut Evidence) + Send + Sync + 'static) -> Value {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.falsify(change);
    failed(&stage, words)
}

/// The node is failed, with `words` among the reason, and says what to do.
fn failed(stage: &Stage, words: &str) -> Value {
    let node = stage.operator.wait_for_state(ID, "failed");
    assert!(reason(&node).contains(words), "{node:#}");
    assert_eq!(node["operational_state"], 9, "{node:#}");
    let action = node["troth"]["findings"][0]["action"].as_str().unwrap();
    assert!(!action.is_empty());
    node
}
