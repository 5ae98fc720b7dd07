use troth_core::eventlog::{
    Divergence, EventLog, EventType, Measurement, Quirk, Register, Step, UserspaceLog,
};
use troth_core::tpm::{Digest, HashAlgorithm, VerifiedQuote};

use super::fixture;
use super::tpm::{Tpm, captured_quote, mask, pcrread};

const BANK: HashAlgorithm = HashAlgorithm::Sha256;

fn boot_log(boot: &str) -> Vec<u8> {
    fixture(&format!("boots/{boot}/binary_bios_measurements"))
}

fn userspace_log(boot: &str) -> UserspaceLog {
    UserspaceLog::parse(&fixture(&format!("boots/{boot}/tpm2-measure.log"))).unwrap()
}

/// A quote over the PCRs that were read after a boot, with `change`.
fn quote_of(boot: &str, change: impl FnOnce(&mut Tpm)) -> VerifiedQuote {
    let mut tpm = Tpm::new(BANK);
    let read = pcrread(boot, BANK);
    read.iter()
        .for_each(|(pcr, value)| tpm.pcrs.set(pcr, *value));
    change(&mut tpm);
    tpm.verified(mask(0..16))
}

fn unexplained(log: &troth_core::eventlog::ReplayedLog<'_>) -> Vec<u8> {
    log.mismatches().iter().map(|one| one.pcr).collect()
}

#[test]
fn both_logs_together_explain_every_pcr_of_a_uki_host() {
    for boot in ["uki", "sdboot"] {
        let (bytes, userspace) = (boot_log(boot), userspace_log(boot));
        let log = EventLog::parse(&bytes).unwrap();
        let quote = quote_of(boot, |_| ());
        assert_eq!(unexplained(&log.verify(&quote)), [11, 15], "{boot}");
        let joined = log.verify_joined(&quote, Some(&userspace));
        assert_eq!(unexplained(&joined), [0; 0], "{boot}");
        assert!(joined.quirks().is_empty());
        let told: Vec<_> = joined
            .measurements()
            .map(|(pcr, one)| (pcr, one.event_type.as_deref().unwrap()))
            .collect();
        let expected = [
            (11, "phase"),
            (11, "phase"),
            (15, "machine-id"),
            (15, "filesystem"),
        ];
        assert_eq!(told, expected, "{boot}");
        let phases: Vec<_> = joined
            .measurements()
            .filter(|(pcr, one)| *pcr == 11 && one.vouches_for_text(BANK))
            .map(|(_, one)| one.text.as_deref().unwrap())
            .collect();
        assert_eq!(phases, ["sysinit", "ready"], "{boot}");
        // The kernel took the aggregate before user space measured anything.
        assert_eq!(
            joined.boot_aggregates(),
            log.verify(&quote).boot_aggregates()
        );
    }
    let bytes = boot_log("grub");
    let log = EventLog::parse(&bytes).unwrap();
    let quote = captured_quote("grub");
    let none = UserspaceLog::default();
    assert_eq!(unexplained(&log.verify_joined(&quote, Some(&none))), [0; 0]);
}

/// The log is read after the quote: the last phase may not be in the quote yet.
#[test]
fn what_was_measured_after_the_quote_is_not_believed() {
    let (bytes, userspace) = (boot_log("uki"), userspace_log("uki"));
    let log = EventLog::parse(&bytes).unwrap();
    let firmware = *log.replay(BANK).get(11).unwrap();
    for phases in [&[][..], &["sysinit"], &["sysinit", "ready"]] {
        let quote = quote_of("uki", |tpm| {
            tpm.pcrs.set(11, firmware);
            for phase in phases {
                tpm.extend(11, BANK.digest(&[phase.as_bytes()]).as_bytes());
            }
        });
        let joined = log.verify_joined(&quote, Some(&userspace));
        assert_eq!(unexplained(&joined), [0; 0], "{phases:?}");
        let believed = joined.measurements().filter(|(pcr, _)| *pcr == 11);
        assert_eq!(believed.count(), phases.len());
    }
    // Nor is anything in another order than measured.
    let quote = quote_of("uki", |tpm| {
        tpm.pcrs.set(11, firmware);
        for phase in ["ready", "sysinit"] {
            tpm.extend(11, BANK.digest(&[phase.as_bytes()]).as_bytes());
        }
    });
    assert_eq!(
        unexplained(&log.verify_joined(&quote, Some(&userspace))),
        [11]
    );
}

#[test]
fn registers_that_no_quote_covers_explain_nothing() {
    let bytes = boot_log("uki");
    let log = EventLog::parse(&bytes).unwrap();
    let text = String::from_utf8(fixture("boots/uki/tpm2-measure.log")).unwrap();
    let apart = text.replace("\"pcr\":11", "\"nv_index\":30409216");
    let userspace = UserspaceLog::parse(apart.as_bytes()).unwrap();
    let is_nv = |one: &&Measurement| matches!(one.register, Register::Nv { .. });
    let all = userspace.unverified_measurements();
    assert_eq!(all.iter().filter(is_nv).count(), 2);
    let quote = captured_quote("uki");
    let joined = log.verify_joined(&quote, Some(&userspace));
    assert_eq!(unexplained(&joined), [11]);
    assert!(joined.measurements().all(|(pcr, _)| pcr == 15));
}

/// A real log, read back under a TPM that did what the quirk says.
#[test]
fn quirks_of_firmware_explain_what_an_honest_replay_does_not() {
    let extend = |value: Digest, data: &[u8]| value.extend(BANK, BANK.digest(&[data]).as_bytes());
    let bytes = boot_log("grub");
    let log = EventLog::parse(&bytes).unwrap();
    let events = |bytes: &[u8], pcr: u32, start: u8| {
        let log = EventLog::parse(bytes).unwrap();
        let mut first = [0; 32];
        first[31] = start;
        log.unverified_events()
            .filter(|event| event.pcr == pcr && event.kind != EventType::EV_NO_ACTION)
            .filter_map(|event| event.digests.get(BANK))
            .fold(Digest::from_slice(&first).unwrap(), |value, digest| {
                value.extend(BANK, digest.as_bytes())
            })
    };

    // TPM2_Startup from locality 3, and no event that says so.
    let quote = quote_of("grub", |tpm| tpm.pcrs.set(0, events(&bytes, 0, 3)));
    let replayed = log.verify(&quote);
    assert_eq!(replayed.quirks(), [(0, Quirk::StartupLocalityMissing)]);
    assert_eq!(unexplained(&replayed), [0; 0]);

    // The kernel's copy of the log ends before ExitBootServices.
    let cut = bytes
        .windows(29)
        .position(|window| window == b"Exit Boot Services Invocation")
        .unwrap();
    // Before its size, two digests with ids, their number, type and PCR.
    let cut = &bytes[..cut - 4 - 34 - 22 - 12];
    let log = EventLog::parse(cut).unwrap();
    let quote = quote_of("grub", |_| ());
    let replayed = log.verify(&quote);
    assert_eq!(replayed.quirks(), [(5, Quirk::ExitBootServicesMissing)]);

    // An EV_NO_ACTION event with a digest, which was extended.
    let mut event = [7u32, 3, 2].map(u32::to_le_bytes).concat();
    event.extend([4, 0]);
    event.extend([0x5a; 20]);
    event.extend([11, 0]);
    event.extend([0x5a; 32]);
    event.extend([16, 0, 0, 0]);
    event.extend(b"Vendor's event!\0");
    let informative = [&bytes[..], &event].concat();
    let log = EventLog::parse(&informative).unwrap();
    let quote = quote_of("grub", |tpm| tpm.extend(7, &[0x5a; 32]));
    let replayed = log.verify(&quote);
    assert_eq!(replayed.quirks(), [(7, Quirk::NoActionExtended)]);
    assert!(log.verify(&quote_of("grub", |_| ())).quirks().is_empty());

    // A log that says locality 3, of a TPM that was started from 0.
    let mut locality = [0u32, 3, 2].map(u32::to_le_bytes).concat();
    locality.extend([4, 0]);
    locality.extend([0; 20]);
    locality.extend([11, 0]);
    locality.extend([0; 32]);
    locality.extend([17, 0, 0, 0]);
    locality.extend(b"StartupLocality\0\x03");
    let wrong = [&bytes[..], &locality].concat();
    let log = EventLog::parse(&wrong).unwrap();
    let replayed = log.verify(&quote);
    assert!(
        replayed
            .quirks()
            .contains(&(0, Quirk::StartupLocalityWrong))
    );

    // Whatever else was extended stays unexplained.
    for pcr in [0, 5, 7] {
        let quote = quote_of("grub", |tpm| {
            let value = *tpm.pcrs.get(pcr).unwrap();
            tpm.pcrs.set(pcr, extend(value, b"something"));
        });
        let log = EventLog::parse(&bytes).unwrap();
        assert_eq!(unexplained(&log.verify(&quote)), [pcr]);
    }
}

#[test]
fn a_filled_buffer_is_no_event() {
    let bytes = boot_log("grub");
    let events = EventLog::parse(&bytes).unwrap().len();
    for (fill, size) in [(0, 8), (0, 16), (0, 4096), (0xff, 8), (0xff, 333)] {
        let padded = [&bytes[..], &vec![fill; size]].concat();
        let log = EventLog::parse(&padded).unwrap();
        assert_eq!((log.len(), log.padding()), (events, size), "{fill} {size}");
        assert!(log.verify(&captured_quote("grub")).mismatches().is_empty());
    }
    let mut odd = [&bytes[..], &[0xff; 333]].concat();
    *odd.last_mut().unwrap() = 0xfe;
    assert!(EventLog::parse(&odd).is_err());
}

#[test]
fn the_event_where_log_and_pcr_part_is_named() {
    let (bytes, userspace) = (boot_log("uki"), userspace_log("uki"));
    let log = EventLog::parse(&bytes).unwrap();
    let digests: Vec<_> = log
        .unverified_events()
        .filter(|event| event.pcr == 4 && event.kind != EventType::EV_NO_ACTION)
        .map(|event| (event.index, event.digests.get(BANK).unwrap()))
        .collect();
    let diverge = |pcr, change: &dyn Fn(&mut Tpm)| {
        let quote = quote_of("uki", change);
        let replayed = log.verify_joined(&quote, Some(&userspace));
        let divergence = replayed.divergence(pcr, quote.pcrs().get(pcr).unwrap());
        let index = match &divergence {
            Divergence::NotMeasured(Step::Event(event))
            | Divergence::LeftOut(Step::Event(event)) => Some(event.index),
            _ => None,
        };
        (index, divergence.to_string())
    };
    let measured = |indices: &[usize]| {
        let digests: Vec<_> = indices.iter().map(|index| digests[*index].1).collect();
        move |tpm: &mut Tpm| {
            tpm.pcrs.set(4, Digest::zero(BANK));
            digests.iter().for_each(|one| tpm.extend(4, one.as_bytes()));
        }
    };
    let last = digests.len() - 1;
    let (index, text) = diverge(4, &measured(&(0..last).collect::<Vec<_>>()));
    assert_eq!(index, Some(digests[last].0));
    assert!(
        text.contains("up to event") && text.contains("EV_EFI_BOOT_SERVICES"),
        "{text}"
    );
    let without: Vec<_> = (0..=last).filter(|index| *index != 1).collect();
    let (index, text) = diverge(4, &measured(&without));
    assert_eq!(index, Some(digests[1].0), "{text}");
    assert!(text.contains("without event"), "{text}");
    let (_, text) = diverge(4, &|tpm| tpm.extend(4, BANK.digest(&[&[0; 4]]).as_bytes()));
    assert!(
        text.contains("but for a separator, measured after"),
        "{text}"
    );
    let (_, text) = diverge(11, &|tpm| {
        for phase in ["shutdown", "final"] {
            tpm.extend(11, BANK.digest(&[phase.as_bytes()]).as_bytes());
        }
    });
    assert!(text.contains("systemd's phases shutdown, final"), "{text}");
    let (_, text) = diverge(15, &|tpm| {
        tpm.pcrs.set(15, Digest::zero(BANK));
        let second = userspace.unverified_measurements()[1].digest(BANK).unwrap();
        tpm.extend(15, second.as_bytes());
    });
    let machine = "without measurement 0 of user space (machine-id: machine-id:";
    assert!(text.contains(machine), "{text}");
    let (_, text) = diverge(7, &|tpm| tpm.extend(7, &[0x5a; 32]));
    assert!(text.starts_with("No part of the log's events"), "{text}");
}
