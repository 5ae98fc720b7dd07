//! Asking nodes for evidence on schedule, and judging the answers.
//!
//! One task per node waits, asks and records; checks run on a bounded pool of worker threads, so
//! that a slow node or a long list delays no other node. Verdicts reach the database in batches.

/// One question to a node, and what came of it.
mod ask;
/// All nodes of this verifier.
mod fleet;
/// The worker pool that checks evidence.
mod judge;
/// What is put into an evidence bundle.
mod keep;
/// The last boot that was trusted, beside one that is not.
mod last_boot;
/// One node: its record and its task.
mod node;
/// Policies that have names, compiled; runtime policies once per content.
mod policies;
/// What a node is judged by: its enrolment, checked and compiled.
mod rules;
/// The verifier's half of the payload key.
mod share;
/// The operational states: pure transitions.
mod state;
/// The batched writer of verdicts.
mod writer;

pub use fleet::{CommandError, EnrolError, Fleet, FleetError, PolicyChangeError, RemoveError};
pub use policies::{PolicyName, PolicyNameError, SentPolicy, SignatureError};
pub use rules::NodeError;
pub use state::{NodeRecord, State, Timing};
pub(crate) use state::{milliseconds, now};
