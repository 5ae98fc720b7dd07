//! Troth's trust decision as pure functions: no I/O, no async, no unsafe code, no libtss2.
//!
//! Everything that arrives here is hostile until a checking function has turned it into a marker
//! type: [`tpm::VerifiedQuote`], [`eventlog::ReplayedLog`], [`ima::ReplayedList`],
//! [`identity::CertifiedEk`], [`identity::CertifiedAk`], [`appraise::Verdict::Trusted`]. None of
//! these can be built in another way.
#![forbid(unsafe_code)]

/// The verdict over one node: evidence, policies and the node's state in; verdict and state out.
pub mod appraise;
/// Hex digits, where many are decoded.
mod base16;
/// Evidence bundles: one attestation in one file, to be judged again without its node.
pub mod bundle;
/// TCG (UEFI) boot log: parse, replay, and events that may be believed.
pub mod eventlog;
/// What is wrong with a node, where, and what to do about it.
pub mod finding;
/// Entry points that take arbitrary bytes; they must not panic.
pub mod fuzz;
/// Who a node is: agent id, AK and EK acceptance rules, certificates and their path to a CA.
pub mod identity;
/// The kernel's IMA measurement list: parse and incremental replay.
pub mod ima;
/// What is allowed: TPM (PCR) policy, runtime policy, boot policy; compiled forms.
pub mod policy;
/// Dates for people and for policies.
pub mod time;
/// TPM 2.0 structures under their TCG names, quote check, MakeCredential in software.
pub mod tpm;
/// Keylime's REST bodies, as both sides write and read them.
pub mod wire;
