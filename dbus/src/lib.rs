//! Troth on its own host: what the agent tells and does for local callers, and the front doors to it.
//!
//! [`agent`] says what there is to tell and to do; the agent implements it once. Nothing but this
//! crate knows zbus or zlink.

/// State, operations, errors and events of an agent, as every front door offers them.
pub mod agent;
/// The agent on the system bus.
pub mod bus;
/// Clients of the varlink interfaces.
pub mod client;
/// Entry points that take arbitrary bytes.
pub mod fuzz;
/// Logs that can be turned up.
pub mod logs;
/// Who may do what.
pub mod polkit;
/// Interfaces over varlink.
pub mod varlink;
