//! The attestation agent: evidence from this host's TPM, served to verifiers over mTLS.
//!
//! One state, thin front doors: [`tpm`] talks to the TPM, [`identity`] keeps who this host is,
//! [`evidence`] turns a nonce into one consistent snapshot, [`http`] serves it to verifiers and
//! [`local`] to this host, [`registration`] makes it known. The agent judges nothing.

/// Start, registration, service, stop: the order of the agent's life.
pub mod agent;
/// `agent.toml`: options, defaults, checks.
pub mod config;
/// From a nonce to one consistent snapshot of quote and logs.
pub mod evidence;
/// Files of the host that root alone may read.
pub mod host_files;
/// The pull API.
pub mod http;
/// The agent id and the keys that belong to it.
pub mod identity;
/// Where verifiers connect.
mod listener;
/// What the agent tells and does for its own host.
pub mod local;
/// Files in memory.
mod memory_file;
/// Journal entries that an operator may want to be alerted of.
pub mod messages;
/// The payload key, from two shares.
pub mod payload;
/// PEM text of keys and certificates.
pub mod pem;
/// Making the host known to the registrar, with proof that AK and EK share a TPM.
pub mod registration;
/// The TLS certificate while the agent serves.
mod renewal;
/// The tmpfs for secrets, as the kernel shows it.
mod secure_mount;
/// The TPM: a trait, the thread that owns it, its real and its simulated implementation.
pub mod tpm;
