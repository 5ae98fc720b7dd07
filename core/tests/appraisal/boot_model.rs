use serde_json::Value;
use troth_core::eventlog::{Event, EventLog};

use super::fixture;

/// What `tpm2_eventlog` says of a captured boot, and what is said here, are the same; it shows
/// some data as hex which are decoded here.
#[test]
fn captured_logs_read_as_tpm2_eventlog_reads_them() {
    for boot in ["uki", "grub", "sdboot", "kernel"] {
        let theirs = fixture(&format!("boots/{boot}/eventlog.json"));
        let theirs: Value = serde_json::from_slice(&theirs).unwrap();
        let bytes = fixture(&format!("boots/{boot}/binary_bios_measurements"));
        let log = EventLog::parse(&bytes).unwrap();
        let ours = log.to_json();
        assert_eq!(ours["pcrs"], theirs["pcrs"], "{boot}");
        let (ours, theirs) = (
            ours["events"].as_array().unwrap(),
            theirs["events"].as_array().unwrap(),
        );
        assert_eq!(ours.len(), theirs.len());
        for (event, (ours, theirs)) in log.unverified_events().zip(ours.iter().zip(theirs)) {
            same(&event, ours, theirs, &format!("{boot} {}", event.index));
        }
    }
}

/// Compares member by member. Hex of theirs may be something decoded of ours: then it is that of
/// (the end of) the event's data.
fn same(event: &Event<'_>, ours: &Value, theirs: &Value, place: &str) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let names = |object: &serde_json::Map<String, Value>| {
                // An empty list of signatures has a name in the newer of their two forms alone.
                let mut names: Vec<_> = object
                    .iter()
                    .filter(|(_, value)| !value.is_null())
                    .map(|(name, _)| name.clone())
                    .collect();
                names.sort();
                names
            };
            assert_eq!(names(ours), names(theirs), "{place}");
            for name in names(ours) {
                same(
                    event,
                    &ours[&name],
                    &theirs[&name],
                    &format!("{place} {name}"),
                );
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len(), "{place}");
            for (ours, theirs) in ours.iter().zip(theirs) {
                same(event, ours, theirs, place);
            }
        }
        _ if ours == theirs => {}
        (Value::String(ours), Value::String(theirs)) if *theirs == format!("{ours}\0") => {}
        (_, Value::String(hex)) => {
            let bytes = hex::decode(hex).unwrap_or_else(|_| panic!("{place}: {ours} is not {hex}"));
            assert!(event.data.ends_with(&bytes), "{place}: {ours} is not {hex}");
            assert!(!bytes.is_empty());
        }
        _ => panic!("{place}: {ours} is not {theirs}"),
    }
}
