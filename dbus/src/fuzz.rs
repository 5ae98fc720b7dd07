//! Entry points that take arbitrary bytes; they must not panic. As those of `troth_core::fuzz`.

use crate::varlink::{Fault, Parameters, cut_messages, parse_message};

/// A function that takes arbitrary bytes, and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All entry points by name.
pub const TARGETS: &[Target] = &[("varlink_messages", varlink_messages)];

/// What a peer sends: messages are cut where they are too long, however they are read, and each that is
/// JSON gives parameters or says what is wrong.
pub fn varlink_messages(data: &[u8]) {
    let at_once = cut_messages(data, data.len().max(1));
    assert_eq!(at_once, cut_messages(data, 7));
    for message in at_once.split(|byte| *byte == 0) {
        let Some(parameters) = parse_message(message) else {
            continue;
        };
        let taken = parameters.and_then(|mut parameters: Parameters| {
            let _: Option<Vec<u32>> = parameters.optional("pcrs")?;
            let nonce: String = parameters.required("nonce")?;
            assert!(nonce.len() <= data.len());
            parameters.end()
        });
        if let Err(fault) = taken {
            let named = fault.parameter("parameter").unwrap_or_default();
            assert_eq!(fault, Fault::invalid_parameter(named));
        }
    }
}
