//! What every Troth process shares: mTLS server and client, layered configuration, logs, and the
//! service manager's notifications. Nothing here knows what attestation is.

/// Directories of CA certificates.
pub mod cert_store;
/// HTTP client: one target, one kept-alive connection.
pub mod client;
/// Layered TOML configuration with drop-ins and environment.
pub mod config;
/// Files that the service manager opened for this process.
pub mod descriptors;
/// Entry points for fuzzing.
pub mod fuzz;
/// The journal's native protocol.
mod journal;
/// Structured logs: the journal's native protocol, or plain lines.
pub mod logging;
/// sd_notify(3): READY, RELOADING, STATUS, WATCHDOG.
pub mod notify;
/// Private keys that may be encrypted.
pub mod private_key;
/// Reload requests: SIGHUP.
pub mod reload;
/// What of a process stays in memory once it serves.
pub mod resident;
/// Spans of time in configuration files.
pub mod seconds;
/// HTTP server: accept loop that knows its peer's certificate.
pub mod server;
/// Stop requests: SIGTERM, SIGINT, or a test's trigger.
pub mod shutdown;
/// rustls configurations for both sides.
pub mod tls;
/// Files that may be replaced at any time.
pub mod watch;
