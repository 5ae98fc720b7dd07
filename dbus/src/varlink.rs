//! varlink (<https://varlink.org>): JSON over a Unix socket, as systemd's own services speak it.
//!
//! zlink carries the messages; what it does with a call that it cannot read is to end the connection.
//! So here a call is any object, and whoever calls wrongly is told what is wrong and may go on.

/// `org.troth.Agent`, and all else that the agent serves.
mod agent;
/// Texts and types.
#[cfg(test)]
mod idl_tests;
/// What a call and an error consist of.
mod message;
/// `io.systemd.Metrics`.
mod metrics;
/// Connections, calls and replies.
mod server;
/// `io.systemd.service`.
mod service;
/// Messages of bounded length.
mod socket;
/// Types of the interfaces, as JSON carries them.
pub mod wire;

pub use self::{
    agent::{AGENT, AgentService, Authority},
    message::{Fault, Parameters},
    server::{Answer, Call, Caller, Replies, Service, serve},
    service::Process,
};

/// An interface and its description, which is a file of this crate.
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    /// Its name.
    pub name: &'static str,
    /// Its text in varlink's interface definition language.
    pub description: &'static str,
}

/// `org.troth.Actions`, which troth-actiond serves.
pub const ACTIONS: Interface = Interface {
    name: "org.troth.Actions",
    description: include_str!("../org.troth.Actions.varlink"),
};

/// What is handed on of a stream that is read in parts of `step` bytes: for fuzzing.
pub(crate) fn cut_messages(stream: &[u8], step: usize) -> Vec<u8> {
    let mut cutter = socket::Cutter::default();
    let mut handed_on = Vec::new();
    for part in stream.chunks(step) {
        let mut part = part.to_vec();
        let (kept, _) = cutter.cut(&mut part);
        part.truncate(kept);
        handed_on.append(&mut part);
    }
    let longest = handed_on.split(|byte| *byte == 0).map(<[u8]>::len).max();
    assert!(longest.is_none_or(|longest| longest <= socket::MESSAGE_MAX + 1));
    handed_on
}

/// Parameters of a message that is JSON, or what is wrong with them: for fuzzing.
pub(crate) fn parse_message(message: &[u8]) -> Option<Result<Parameters, Fault>> {
    let message: message::Message = serde_json::from_slice(message).ok()?;
    Some(Parameters::new(message.parameters))
}
