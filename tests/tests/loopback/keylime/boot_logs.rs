use std::fs;

use serde_json::Value;
use troth_core::eventlog::EventLog;
use troth_tests::keylime::boot_log_model;

/// Logs in the crypto-agile format, which is what Keylime takes.
const LOGS: [&str; 12] = [
    "boots/grub/binary_bios_measurements",
    "boots/kernel/binary_bios_measurements",
    "boots/sdboot/binary_bios_measurements",
    "boots/uki/binary_bios_measurements",
    "public-logs/coreos_36_shielded_vm_no_secure_boot_eventlog",
    "public-logs/crypto_agile_eventlog",
    "public-logs/event-sd-boot-fedora37.bin",
    "public-logs/event-uefiaction.bin",
    "public-logs/event-uefiservices.bin",
    "public-logs/event-uefivar.bin",
    "public-logs/sb_cert_eventlog",
    "public-logs/ubuntu_2104_shielded_vm_no_secure_boot_eventlog",
];

/// Debian's tpm2_eventlog and what Keylime's verifier adds to it, event by event and PCR by PCR.
#[test]
fn boot_logs_are_read_as_keylimes_verifier_reads_them() {
    for name in LOGS {
        let path = troth_tests::boot::fixtures().join(name);
        let theirs = boot_log_model(&path).unwrap().expect(name);
        let bytes = fs::read(&path).unwrap();
        let ours = EventLog::parse(&bytes).unwrap().to_json();
        for member in ["version", "events", "boot_aggregates"] {
            same(&ours[member], &theirs[member], name);
        }
        let banks = theirs["pcrs"].as_object().unwrap();
        assert_eq!(
            banks.len(),
            ours["pcrs"].as_object().unwrap().len(),
            "{name}"
        );
        for (bank, values) in banks {
            for (pcr, value) in values.as_object().unwrap() {
                // A number there: without zeros at its start.
                let digits = |value: &Value| {
                    let digits = value.as_str().and_then(|text| text.strip_prefix("0x"));
                    digits.unwrap().trim_start_matches('0').to_owned()
                };
                let ours = digits(&ours["pcrs"][bank][pcr]);
                assert_eq!(ours, digits(value), "{name} {bank} {pcr}");
            }
        }
    }
}

fn same(ours: &Value, theirs: &Value, place: &str) {
    match (ours, theirs) {
        (Value::Object(mine), Value::Object(other)) => {
            for name in mine.keys().chain(other.keys()) {
                // The device path of a boot option stays hex there, optional data included.
                let place = format!("{place} {name}");
                if name == "DevicePath" && mine.contains_key("FilePathListLength") {
                    continue;
                }
                same(&ours[name], &theirs[name], &place);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len(), "{place}");
            for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                same(ours, theirs, &format!("{place}[{index}]"));
            }
        }
        (Value::String(ours), Value::String(theirs)) => {
            assert_eq!(unescaped(ours), plain(theirs), "{place}");
        }
        _ => assert_eq!(ours, theirs, "{place}"),
    }
}

/// Their texts come through YAML and have escapes undone, also where a backslash is one.
fn unescaped(text: &str) -> String {
    let escapes = [
        ("\\0", "\0"),
        ("\\a", "\u{7}"),
        ("\\b", "\u{8}"),
        ("\\t", "\t"),
        ("\\v", "\u{b}"),
        ("\\f", "\u{c}"),
        ("\\r", "\r"),
        ("\\e", "\u{1b}"),
        ("\\'", "'"),
    ];
    let replaced = escapes
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    plain(&replaced)
}

/// Without the quotes that YAML has around each line, and without the ends of lines.
fn plain(text: &str) -> String {
    text.replace(['"', '\n'], "")
}
