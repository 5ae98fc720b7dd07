//! The verifier over real mTLS against an agent that can misbehave on purpose. What honest agents
//! do on real TPMs is tested with processes elsewhere; here are the faults that those cannot make.
#![allow(clippy::unwrap_used, reason = "a test helper's error is a failed test")]

/// Evidence becomes verdicts, and verdicts last.
mod attestation;
/// Who may do what.
mod authority;
#[path = "../common/mod.rs"]
mod common;
/// What may be enrolled.
mod enrolment;
/// Checks for anybody.
mod on_demand;
/// Policies by name.
mod policies;
/// Runtime policies with signatures.
mod signed;
/// Agents without evidence.
mod silence;
/// The verifier and its agent.
mod stage;
