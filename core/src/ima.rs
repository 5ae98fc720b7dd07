//! The kernel's IMA measurement list. Stub: the implementer completes it (as a directory module).

use serde::{Deserialize, Serialize};

use crate::tpm::Digest;

/// Where the check of a node's list resumes: entries matched so far and the PCR value after them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ImaPosition {
    /// Entries that the last matching quote covered; the next request starts here.
    pub next_entry: u64,
    /// PCR 10 after them; `None`: zero of the bank's size.
    pub pcr: Option<Digest>,
    /// How many entries the last answer had beyond the match (quote progress rule).
    pub lag: u64,
}
