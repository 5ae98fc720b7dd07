use super::Head;
use crate::appraise::{Appraisal, NodeState};
use crate::ima::IMA_PCR;

/// The states that a row of bundles led to, as far as their quotes vouch for them.
///
/// An answer with the end of an IMA list is judged from a state: which entries came before, and
/// what they extended PCR 10 to. One bundle alone can only claim it. In a row of them it is known.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    states: Vec<NodeState>,
}

/// What the state that a bundle continues from rests on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Link {
    /// On nothing: the answer has the list from its first entry.
    Start,
    /// On the evidence before it.
    Continued,
    /// On the bundle's word: evidence between is missing.
    Claimed,
}

impl Link {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Continued => "continued",
            Self::Claimed => "claimed",
        }
    }
}

impl Chain {
    /// What `state`, from which the next bundle continues, rests on.
    ///
    /// Any state before will do, not the last alone: a verifier that is killed goes on from the
    /// one that it had stored.
    pub fn link(&self, state: &NodeState) -> Link {
        if self.states.iter().rev().any(|known| known == state) {
            Link::Continued
        } else if state.ima.next_entry == 0 {
            Link::Start
        } else {
            Link::Claimed
        }
    }

    /// Takes in what the bundle with `head`, the next one, led to. What it merely claims is not
    /// carried on.
    pub fn push(&mut self, head: &Head, appraisal: &Appraisal) {
        // Without a good quote the state is left as it was claimed; with one, its clock went on.
        let verified = appraisal.state != head.state;
        // Without PCR 10 in it, the position in the list is.
        let vouched = head.mask.contains(IMA_PCR) || self.link(&head.state) != Link::Claimed;
        if verified && vouched {
            self.states.push(appraisal.state.clone());
        }
    }
}
