use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use troth_core::eventlog::content::{Guid, IplKind, NoAction, Tag, Variable, VariableValue};
use troth_core::eventlog::{Content, Event, EventLog, EventType, Measured, pcr_name};
use troth_core::tpm::HashAlgorithm;

use super::fixture;

/// All captured logs but for the fragments.
pub(crate) const LOGS: [&str; 12] = [
    "boots/grub/binary_bios_measurements",
    "boots/kernel/binary_bios_measurements",
    "boots/sdboot/binary_bios_measurements",
    "boots/uki/binary_bios_measurements",
    "public-logs/coreos_36_shielded_vm_no_secure_boot_eventlog",
    "public-logs/crypto_agile_eventlog",
    "public-logs/ebs_event_missing_eventlog",
    "public-logs/event-sd-boot-fedora37.bin",
    "public-logs/event-uefi-sha1-log.bin",
    "public-logs/option_rom_eventlog",
    "public-logs/sb_cert_eventlog",
    "public-logs/ubuntu_2104_shielded_vm_no_secure_boot_eventlog",
];

fn windows() -> Vec<u8> {
    let dump: serde_json::Value =
        serde_json::from_slice(&fixture("public-logs/windows_gcp_shielded_vm.json")).unwrap();
    STANDARD
        .decode(dump["Log"]["Raw"].as_str().unwrap())
        .unwrap()
}

/// The strongest bank that an event has a digest of.
fn bank(event: &Event<'_>) -> HashAlgorithm {
    event.digests.iter().map(|(bank, _)| bank).max().unwrap()
}

/// Content of the first event that `wanted` picks.
fn find<T>(log: &EventLog<'_>, wanted: impl Fn(Event<'_>) -> Option<T>) -> T {
    log.unverified_events().find_map(wanted).unwrap()
}

fn variable<'l>(event: &Event<'l>) -> Option<Variable<'l>> {
    match event.content() {
        Content::Variable(variable) => Some(variable),
        _ => None,
    }
}

/// What the digests of real firmware and loaders are made of, by PCR and type.
#[test]
fn digests_are_made_of_what_the_profile_says() {
    let mut seen = BTreeSet::new();
    let windows = windows();
    let logs = LOGS.map(fixture);
    for bytes in logs.iter().chain([&windows]) {
        let log = EventLog::parse(bytes).unwrap();
        for event in log.unverified_events() {
            if event.kind == EventType::EV_NO_ACTION {
                assert_eq!(event.believed(HashAlgorithm::Sha256), None);
                continue;
            }
            let measured = match event.measured(bank(&event)) {
                Measured::Data => "data",
                Measured::Part(_) => "part",
                Measured::Elsewhere => "elsewhere",
                Measured::Mismatch => "mismatch",
                Measured::NoDigest => "none",
            };
            seen.insert(format!("{} {} {measured}", event.pcr, event.kind));
        }
    }
    let expected = include_str!("event_content.txt");
    let seen: Vec<_> = seen.iter().map(String::as_str).collect();
    assert_eq!(seen, expected.lines().collect::<Vec<_>>());
}

#[test]
fn every_captured_event_decodes() {
    let windows = windows();
    let logs = LOGS.map(fixture);
    for bytes in logs.iter().chain([&windows]) {
        let log = EventLog::parse(bytes).unwrap();
        for event in log.unverified_events() {
            let content = event.content();
            let odd = matches!(content, Content::Undecodable { .. })
                || variable(&event)
                    .is_some_and(|v| matches!(v.value, VariableValue::Undecodable(_)));
            // Windows' own record at the end of the log.
            assert!(!odd || event.pcr == u32::MAX, "{}: {content}", event.kind);
        }
    }
}

#[test]
fn secure_boot_is_read_from_its_variables() {
    let bytes = fixture("public-logs/sb_cert_eventlog");
    let log = EventLog::parse(&bytes).unwrap();
    let named = |name: &str, kind| {
        find(&log, |event| {
            let wanted = variable(&event).filter(|v| v.name.is(name) && event.kind == kind);
            wanted.map(|_| event.index)
        })
    };
    let value = |index| {
        let event = log.unverified_events().nth(index).unwrap();
        assert!(event.believed(HashAlgorithm::Sha256).is_some(), "{index}");
        variable(&event).unwrap()
    };
    let config = EventType::EV_EFI_VARIABLE_DRIVER_CONFIG;
    let secure_boot = value(named("SecureBoot", config));
    assert_eq!(secure_boot.guid, Guid::GLOBAL);
    assert_eq!(secure_boot.value, VariableValue::Boolean(true));
    for (name, guid, kind, signatures) in [
        ("PK", Guid::GLOBAL, Guid::CERT_X509, 1),
        ("KEK", Guid::GLOBAL, Guid::CERT_X509, 1),
        ("db", Guid::SECURITY_DATABASE, Guid::CERT_X509, 4),
        ("dbx", Guid::SECURITY_DATABASE, Guid::CERT_SHA256, 77),
    ] {
        let variable = value(named(name, config));
        let VariableValue::SignatureLists(lists) = variable.value else {
            panic!("{variable:?}");
        };
        assert_eq!(variable.guid, guid, "{name}");
        assert!(lists.signatures().all(|(one, _)| one == kind), "{name}");
        assert_eq!(lists.signatures().count(), signatures, "{name}");
        if kind == Guid::CERT_SHA256 {
            assert!(lists.signatures().all(|(_, one)| one.data.len() == 32));
        }
    }
    let authority = EventType::EV_EFI_VARIABLE_AUTHORITY;
    let VariableValue::Authority(signature) = value(named("db", authority)).value else {
        panic!("no authority");
    };
    assert_eq!(signature.data[..2], [0x30, 0x82], "a certificate");
    let VariableValue::Certificate(certificate) = value(named("Shim", authority)).value else {
        panic!("no certificate");
    };
    assert_eq!(certificate.len(), 1080);
}

#[test]
fn loaders_texts_and_paths_are_read() {
    let bytes = fixture("public-logs/ubuntu_2104_shielded_vm_no_secure_boot_eventlog");
    let log = EventLog::parse(&bytes).unwrap();
    let ipl = |wanted| {
        find(&log, move |event| match event.content() {
            Content::Ipl(ipl) if ipl.kind == wanted => {
                Some((event.pcr, ipl.argument().to_string()))
            }
            _ => None,
        })
    };
    let (pcr, line) = ipl(IplKind::KernelCommandLine);
    assert_eq!(pcr, 8);
    assert!(
        line.starts_with("/boot/vmlinuz-5.11.0-1006-gcp root="),
        "{line}"
    );
    assert_eq!(ipl(IplKind::Mok), (14, "MokList".to_owned()));
    let path = find(&log, |event| match event.content() {
        Content::Image(image) => image.path.file().map(|file| file.to_string()),
        _ => None,
    });
    assert_eq!(path, "\\EFI\\ubuntu\\shimx64.efi");

    let bytes = fixture("boots/sdboot/binary_bios_measurements");
    let log = EventLog::parse(&bytes).unwrap();
    let sections: Vec<_> = log
        .unverified_events()
        .filter_map(|event| match event.content() {
            Content::Ipl(ipl) if ipl.kind == IplKind::Section => Some((
                ipl.text.to_string(),
                event.believed(HashAlgorithm::Sha256).is_some(),
            )),
            _ => None,
        })
        .collect();
    // The digest of a section's first event is of its name, that of the second of its content.
    let expected = [".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"]
        .iter()
        .flat_map(|name| [((*name).to_owned(), true), ((*name).to_owned(), false)]);
    assert_eq!(sections, expected.collect::<Vec<_>>());
    let tags: Vec<_> = log
        .unverified_events()
        .filter_map(|event| match event.content() {
            Content::Tag(tag) => Some((event.pcr, tag.id, tag.text.unwrap().to_string())),
            _ => None,
        })
        .collect();
    let expected = [
        (5, Tag::LOADER_CONF, "loader.conf"),
        (9, Tag::LINUX_LOAD_OPTIONS, "LOADED_IMAGE::LoadOptions"),
        (9, Tag::LINUX_INITRD, "Linux initrd"),
    ];
    assert_eq!(
        tags,
        expected.map(|(pcr, id, text)| (pcr, id, text.to_owned()))
    );
}

#[test]
fn boot_options_and_partitions_are_read() {
    let bytes = fixture("public-logs/coreos_36_shielded_vm_no_secure_boot_eventlog");
    let log = EventLog::parse(&bytes).unwrap();
    let order = find(&log, |event| match variable(&event)?.value {
        VariableValue::BootOrder(order) => Some(order.numbers().collect::<Vec<_>>()),
        _ => None,
    });
    assert_eq!(order, [2, 0, 1]);
    let option = find(&log, |event| match variable(&event)?.value {
        VariableValue::LoadOption(option) => Some(format!(
            "{} {} {}",
            option.is_active(),
            option.description,
            option.path
        )),
        _ => None,
    });
    assert_eq!(
        option,
        "true Fedora HD(2,GPT,22b9d9d7-140b-473b-82e0-26ded9d03d28,0x1000,0x3f800)/\
         File(\\EFI\\fedora\\shimx64.efi)"
    );
    let partitions = find(&log, |event| match event.content() {
        Content::Gpt(table) => Some(
            table
                .partitions()
                .map(|partition| (partition.name.to_string(), partition.first_lba))
                .collect::<Vec<_>>(),
        ),
        _ => None,
    });
    assert_eq!(
        partitions,
        [
            ("BIOS-BOOT".to_owned(), 0x800),
            ("EFI-SYSTEM".to_owned(), 0x1000),
            ("boot".to_owned(), 0x40800),
            ("root".to_owned(), 0x100800),
        ]
    );
    let header = find(&log, |event| match event.content() {
        Content::NoAction(NoAction::SpecId(header)) => {
            Some(header.algorithms().collect::<Vec<_>>())
        }
        _ => None,
    });
    assert_eq!(header, [(4, 20), (11, 32), (12, 48)]);
}

#[test]
fn pcrs_have_the_names_that_linux_gives_them() {
    assert_eq!(pcr_name(7), Some("secure-boot-policy"));
    assert_eq!(pcr_name(11), Some("kernel-boot"));
    assert_eq!(pcr_name(8), None);
    assert_eq!(pcr_name(24), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A bit of a believed event's data or digest is changed: nothing else is believed in its place.
    #[test]
    fn a_flipped_bit_is_never_believed(
        log in 0..LOGS.len(),
        event in any::<prop::sample::Index>(),
        bit in any::<prop::sample::Index>(),
    ) {
        let mut bytes = fixture(LOGS[log]);
        let original = bytes.clone();
        let parsed = EventLog::parse(&original).unwrap();
        let believed: Vec<_> = parsed
            .unverified_events()
            .filter(|event| {
                event.kind != EventType::EV_NO_ACTION && event.believed(bank(event)).is_some()
            })
            .collect();
        let event = believed[event.index(believed.len())];
        let bank = bank(&event);
        let digest = event.digests.get(bank).unwrap();
        // The digest that the event begins with, or its data.
        let bit = bit.index(8 * (digest.as_bytes().len() + event.data.len()));
        let start = event.data.as_ptr() as usize - original.as_ptr() as usize;
        let end_of_digests = start - 4;
        let at = match (bit / 8).checked_sub(digest.as_bytes().len()) {
            Some(at) => start + at,
            None => end_of_digests - 1 - bit / 8,
        };
        bytes[at] ^= 1 << (bit % 8);
        let Ok(changed) = EventLog::parse(&bytes) else {
            return Ok(());
        };
        let now = changed.unverified_events().nth(event.index).unwrap();
        match now.believed(bank) {
            None => {}
            // A final NUL, or a byte behind the structure: what it says is what it said.
            Some(content) => prop_assert_eq!(content, event.content()),
        }
    }
}
