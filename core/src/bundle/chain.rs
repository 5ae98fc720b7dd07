use crate::appraise::{Appraisal, NodeState};

/// The states that a row of bundles led to.
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

    /// Takes in what the next bundle led to.
    pub fn push(&mut self, appraisal: &Appraisal) {
        self.states.push(appraisal.state.clone());
    }
}
