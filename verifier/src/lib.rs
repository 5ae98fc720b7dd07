//! The verifier, which judges enrolled nodes again and again, and the registrar, which binds an
//! agent's attestation key to the TPM that holds it.

/// The verifier's REST interface: enrolment, status, removal.
pub mod api;
/// Who may do what: the one place where a request becomes a principal.
mod authority;
/// The certificate authority of an installation: made once, then only used.
pub mod ca;
/// What `verifier.toml` and `registrar.toml` may say.
pub mod config;
/// Where a host says that it can be reached.
mod contact;
/// Evidence bundles of answers that were judged, kept in a directory.
pub mod evidence;
/// Requests per source.
mod limit;
/// Journal MESSAGE_IDs of what an operator filters for.
pub mod messages;
/// Asking nodes for evidence on schedule, and judging the answers.
pub mod poll;
/// What the two programs do alike from their options to their exit status.
pub mod program;
/// Registration, activation, and the records that operators read.
pub mod registrar;
/// What the REST interfaces of both servers share: versions and envelopes.
mod rest;
/// Starting either server: CA, database, listeners.
pub mod server;
/// Everything that outlives a process.
pub mod store;
/// The TLS files of a server.
mod tls;
