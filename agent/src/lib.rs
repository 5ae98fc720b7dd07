//! The attestation agent: evidence from this host's TPM, served to verifiers over mTLS.
//!
//! One state, thin front doors: [`tpm`] talks to the TPM, [`identity`] keeps who this host is,
//! [`evidence`] turns a nonce into one consistent snapshot, [`http`] serves it, [`registration`]
//! makes it known. The agent judges nothing.

/// PEM text of keys and certificates.
pub mod pem;
/// The TPM: a trait, the thread that owns it, its real and its simulated implementation.
pub mod tpm;
