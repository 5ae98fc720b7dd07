//! The trust decision through its public API: captured logs, spec vectors, and quotes signed by a
//! key of the test.
#![allow(clippy::unwrap_used)]

/// Boot logs: captured ones, public ones, vectors.
mod boot_log;
/// Boot logs as JSON.
mod boot_model;
/// Boot policies of all forms: made of logs, and judged by.
mod boot_policy;
/// Evidence that is kept, and judged again.
mod bundled;
/// Devices of the device mapper, by their events.
mod devices;
/// What events say, and whether their digests vouch for it.
mod event_content;
/// IMA lists and runtime policies: captured ones, vectors, properties.
mod ima_list;
/// The firmware's log and systemd's, joined; quirks of firmware; where a log and a PCR part.
mod joined_logs;
/// Whole answers, judged.
mod judged;
/// Quotes and evidence on demand.
mod on_demand;
/// Where the check of a list goes on after a finding.
mod recovery;
/// Signatures of files, and the keys for them.
mod signatures;
/// Entries of every template, in both forms of the list.
mod templates;
/// A TPM of the test: keys, PCRs, a clock, and quotes over them.
mod tpm;

/// A file of tests/fixtures.
fn fixture(path: &str) -> Vec<u8> {
    let path = format!("{}/../tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A text file of tests/fixtures.
fn text_fixture(path: &str) -> String {
    String::from_utf8(fixture(path)).unwrap()
}

/// A JSON file of tests/fixtures/vectors.
fn vectors(file: &str) -> serde_json::Value {
    serde_json::from_slice(&fixture(&format!("vectors/{file}"))).unwrap()
}
