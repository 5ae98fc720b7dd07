//! `trothctl` as a process against servers that answer as a test tells them to: exit statuses,
//! JSON shapes and messages for what a real fleet does only now and then.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

/// `agent add`: who is not enrolled.
mod enrolment;
/// `agent status`, `list`, `watch`, `remove`, `stop`, `reactivate`.
mod nodes;
/// `policy ...`, and policies from the web.
mod policies;
/// Servers of every version, broken, foreign and dead.
mod servers;
/// A CA, the operator's files, and a server that plays every part.
mod site;
/// `agent update`.
mod update;
