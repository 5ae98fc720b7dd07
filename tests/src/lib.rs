//! The stage of the loopback, node and vm tiers: real daemons, a TPM in software, a boot replayed
//! into it; for the node tier also the operating system around them, for the vm tier a whole machine
//! that boots.
//!
//! Everything started here is stopped by its process id when its value is dropped, listens on
//! loopback or in a network namespace of its own, and writes into a temporary directory of its own,
//! so that tests run side by side. `cargo xtask demo` plays on the same stage.

/// A server's REST interface, asked without any tool.
pub mod api;
/// A captured boot, replayed into a TPM; programs that "run" later.
pub mod boot;
/// D-Bus system buses that are nobody else's, and tpm2-abrmd on one.
pub mod bus;
/// Directories that are made once and used by many.
pub(crate) mod cached;
/// The time of day, set forth and back.
pub mod clock;
/// What configuration is documented, here and at Keylime.
pub mod configuration;
/// IDevID and IAK with certificates, as a manufacturer makes them.
pub mod device;
/// Our daemons as processes, and the operator's `trothctl` beside them.
pub mod fleet;
/// The fuzz corpus, replayed on stable Rust.
#[cfg(test)]
mod fuzz_corpus;
/// IMA lists and the policies that allow them.
pub mod ima_list;
/// Keylime's registrar, verifier, tenant and agent as the other side.
pub mod keylime;
/// Mounts that nobody else sees.
pub mod namespace;
/// Hosts whose operating system is a container: systemd as PID 1, the daemons as its units.
pub mod node;
/// A PostgreSQL server that is nobody else's.
pub mod postgres;
/// Processes that do not outlive their value, and ports they can listen on.
pub mod process;
/// An agent that lies: what a man in the middle with the agent's TLS key could do.
pub mod proxy;
/// Which crate may know what: the workspace's dependency rules.
#[cfg(test)]
mod rules;
/// One machine attested for a long time, while it changes.
pub mod soak;
/// Quotes signed by a key in memory, for benchmarks and simulated nodes.
pub mod software_ak;
/// An EK in memory, for simulated registrations.
pub mod software_ek;
/// swtpm, a client for raw TPM commands, and a multiplexer before the one connection it serves.
pub mod tpm;
/// What units, catalog and code promise each other.
#[cfg(test)]
mod units;
/// CPU time and memory of a process.
pub mod usage;
/// Hosts that are virtual machines: firmware, a TPM and a kernel of their own.
pub mod vm;
