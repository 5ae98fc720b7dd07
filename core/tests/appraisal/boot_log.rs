use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use troth_core::eventlog::{EventLog, EventType, LogProblem, MAX_LOG};
use troth_core::tpm::{Digest, HashAlgorithm, PcrMask, PcrValues};

use super::tpm::{Tpm, captured_quote, mask, pcrread};
use super::{fixture, vectors};

/// PCRs with events of user space after the firmware's log, by boot.
const USER_SPACE: [(&str, &[u8]); 4] = [
    ("uki", &[11, 15]),
    ("grub", &[]),
    ("sdboot", &[11, 15]),
    ("kernel", &[]),
];

fn boot_log(boot: &str) -> Vec<u8> {
    fixture(&format!("boots/{boot}/binary_bios_measurements"))
}

fn different(replayed: &PcrValues, read: &PcrValues) -> Vec<u8> {
    (0..16)
        .filter(|pcr| *pcr != 10 && replayed.get(*pcr) != read.get(*pcr))
        .collect()
}

#[test]
fn captured_logs_replay_to_the_pcrs_in_every_bank() {
    for (boot, user_space) in USER_SPACE {
        let bytes = boot_log(boot);
        let log = EventLog::parse(&bytes).unwrap();
        let banks: Vec<_> = log.banks().collect();
        assert!(banks.contains(&HashAlgorithm::Sha1) && banks.contains(&HashAlgorithm::Sha256));
        for bank in [HashAlgorithm::Sha1, HashAlgorithm::Sha256] {
            assert_eq!(
                different(&log.replay(bank), &pcrread(boot, bank)),
                user_space,
                "{boot}"
            );
        }
    }
}

#[test]
fn a_captured_quote_vouches_for_the_events_of_explained_pcrs_only() {
    let bytes = boot_log("uki");
    let log = EventLog::parse(&bytes).unwrap();
    let quote = captured_quote("uki");
    let verified = log.verify(&quote);
    assert_eq!(
        verified
            .mismatches()
            .iter()
            .map(|m| m.pcr)
            .collect::<Vec<_>>(),
        [11, 15]
    );
    assert_eq!(
        verified.explained,
        mask((0..16).filter(|pcr| ![10, 11, 15].contains(pcr)))
    );
    assert!(log.unverified_events().any(|event| event.pcr == 11));
    assert!(verified.events().all(|event| event.pcr != 11));
    assert!(
        verified
            .events()
            .all(|event| event.kind != EventType::EV_NO_ACTION)
    );
    assert!(
        verified
            .events()
            .any(|event| event.kind == EventType::EV_SEPARATOR)
    );
}

#[test]
fn the_kernels_boot_aggregate_is_among_the_candidates() {
    for boot in ["uki", "grub"] {
        let list = super::text_fixture(&format!("boots/{boot}/ima-ascii_runtime_measurements"));
        let aggregate = list
            .split(' ')
            .nth(3)
            .unwrap()
            .strip_prefix("sha256:")
            .unwrap();
        let aggregate = Digest::from_hex(aggregate).unwrap();
        let (bytes, quote) = (boot_log(boot), captured_quote(boot));
        let log = EventLog::parse(&bytes).unwrap();
        let candidates = log.verify(&quote).boot_aggregates();
        assert!(
            candidates
                .iter()
                .any(|c| c.digest == aggregate && c.pcrs == 10),
            "{boot}"
        );
    }
}

#[test]
fn the_vector_replays_to_every_value() {
    let vector = vectors("boot-log.json");
    let bytes = STANDARD.decode(vector["log"].as_str().unwrap()).unwrap();
    let log = EventLog::parse(&bytes).unwrap();
    let replayed = log.replay(HashAlgorithm::Sha256);
    for pcr in 0..16u8 {
        let value = vector["pcrs_sha256"].get(pcr.to_string());
        let zero = Digest::zero(HashAlgorithm::Sha256).to_string();
        let expected = value.map_or(zero.as_str(), |value| value.as_str().unwrap());
        assert_eq!(
            replayed.get(pcr).unwrap().to_string(),
            expected,
            "PCR {pcr}"
        );
    }
    let aggregates: Vec<_> = log
        .boot_aggregates()
        .iter()
        .map(|a| (a.bank.name(), a.pcrs, a.digest.to_string()))
        .collect();
    for bank in ["sha1", "sha256"] {
        for (index, pcrs) in [8, 10].into_iter().enumerate() {
            let digest = vector["boot_aggregates"][bank][index]
                .as_str()
                .unwrap()
                .to_owned();
            assert!(
                aggregates.contains(&(bank, pcrs, digest)),
                "{bank} over {pcrs} PCRs"
            );
        }
    }
}

#[test]
fn public_logs_parse() {
    // File, events, crypto-agile, banks.
    for (file, events, agile, banks) in [
        ("coreos_36_shielded_vm_no_secure_boot_eventlog", 76, true, 3),
        ("crypto_agile_eventlog", 27, true, 1),
        ("ebs_event_missing_eventlog", 38, false, 1),
        ("event-sd-boot-fedora37.bin", 28, true, 1),
        ("event-uefi-sha1-log.bin", 17, false, 1),
        ("event-uefiaction.bin", 2, true, 4),
        ("event-uefiservices.bin", 2, true, 2),
        ("event-uefivar.bin", 2, true, 4),
        ("option_rom_eventlog", 61, false, 1),
        ("sb_cert_eventlog", 15, true, 3),
        ("short_no_action_eventlog", 1, false, 1),
        (
            "ubuntu_2104_shielded_vm_no_secure_boot_eventlog",
            106,
            true,
            3,
        ),
    ] {
        let bytes = fixture(&format!("public-logs/{file}"));
        let log = EventLog::parse(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
        let got = (log.len(), log.is_crypto_agile(), log.banks().count());
        assert_eq!(got, (events, agile, banks), "{file}");
    }
}

/// The quote that came with a Windows machine's log, through the log's SHA-1 and SHA-256 banks.
#[test]
fn a_windows_machines_log_replays_to_its_pcrs() {
    let dump: serde_json::Value =
        serde_json::from_slice(&fixture("public-logs/windows_gcp_shielded_vm.json")).unwrap();
    let bytes = STANDARD
        .decode(dump["Log"]["Raw"].as_str().unwrap())
        .unwrap();
    let log = EventLog::parse(&bytes).unwrap();
    let replays: Vec<_> = log.banks().map(|bank| log.replay(bank)).collect();
    let mut compared = 0;
    for pcr in dump["Log"]["PCRs"].as_array().unwrap() {
        let index = u8::try_from(pcr["Index"].as_u64().unwrap()).unwrap();
        let value = STANDARD.decode(pcr["Digest"].as_str().unwrap()).unwrap();
        let bank = replays
            .iter()
            .find(|values| values.bank().size() == value.len());
        let Some(bank) = bank.filter(|_| index < 10) else {
            continue;
        };
        assert_eq!(bank.get(index).unwrap().as_bytes(), value, "PCR {index}");
        compared += 1;
    }
    assert!(compared >= 8, "{compared} PCRs compared");
}

#[test]
fn startup_locality_is_where_pcr_0_starts() {
    let bytes = fixture("public-logs/short_no_action_eventlog");
    let log = EventLog::parse(&bytes).unwrap();
    assert_eq!(log.startup_locality(), Some(3));
    let replayed = log.replay(HashAlgorithm::Sha1);
    let mut expected = [0; 20];
    expected[19] = 3;
    assert_eq!(replayed.get(0).unwrap().as_bytes(), expected);
    assert_eq!(replayed.get(1), Some(&Digest::zero(HashAlgorithm::Sha1)));
}

#[test]
fn a_log_cut_short_says_where() {
    let bytes = boot_log("grub");
    let whole = EventLog::parse(&bytes).unwrap().len();
    let mut cuts_between_events = 0;
    for end in 1..bytes.len() {
        match EventLog::parse(&bytes[..end]) {
            Ok(log) => {
                assert!(log.len() < whole);
                cuts_between_events += 1;
            }
            Err(error) => {
                assert!(error.offset <= end && error.event < whole);
                assert!(matches!(error.problem, LogProblem::Truncated(_)), "{error}");
            }
        }
    }
    assert_eq!(cuts_between_events, whole - 1);
}

/// 524,288 events, each of which begins like the filling of a buffer.
#[test]
fn zeros_that_are_not_the_last_bytes_are_events() {
    let mut log = vec![0; MAX_LOG];
    *log.last_mut().unwrap() = 1;
    let error = EventLog::parse(&log).unwrap_err();
    let last = MAX_LOG / 32 - 1;
    assert_eq!((error.event, error.offset), (last, last * 32 + 28));
    assert_eq!(error.problem, LogProblem::Truncated("the event data"));
}

#[test]
fn impossible_structures_say_what_is_wrong() {
    let bytes = boot_log("grub");
    let header = 32;
    let damaged = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        EventLog::parse(&bytes).map(|_| ()).unwrap_err()
    };
    // numberOfAlgorithms, then the first algorithm's id and size, after the 24 bytes before them.
    let error = damaged(header + 24, &[17, 0, 0, 0]);
    assert_eq!((error.event, error.problem), (0, LogProblem::BankCount(17)));
    let error = damaged(header + 30, &[19, 0]);
    assert_eq!(error.problem, LogProblem::BankSize { id: 4, size: 19 });
    let error = damaged(header + 32, &[4, 0, 20, 0]);
    assert_eq!(error.problem, LogProblem::BankTwice(4));
    // The second event: PCR, type, number of digests, first algorithm.
    let size = u32::from_le_bytes(bytes[28..32].try_into().unwrap());
    let second = header + usize::try_from(size).unwrap();
    let error = damaged(second, &[24, 0, 0, 0]);
    assert_eq!((error.event, error.problem), (1, LogProblem::Pcr(24)));
    let error = damaged(second + 8, &[255, 255, 255, 255]);
    assert_eq!(error.problem, LogProblem::DigestCount(u32::MAX));
    let error = damaged(second + 12, &[0xee, 0]);
    assert_eq!(
        (error.offset, error.problem),
        (second + 12, LogProblem::UnknownBank(0xee))
    );
    let error = damaged(second + 12, &[0x0b, 0]);
    assert!(matches!(
        error.problem,
        LogProblem::UnknownBank(_) | LogProblem::BankTwice(_)
    ));
}

#[test]
fn a_changed_digest_shows_in_its_pcr_alone() {
    let bytes = boot_log("grub");
    let mut tpm = Tpm::new(HashAlgorithm::Sha256);
    let read = pcrread("grub", HashAlgorithm::Sha256);
    read.iter()
        .for_each(|(pcr, value)| tpm.pcrs.set(pcr, *value));
    let quote = tpm.verified(mask(0..16));
    let log = EventLog::parse(&bytes).unwrap();
    assert!(log.verify(&quote).mismatches().is_empty());
    let event = log
        .unverified_events()
        .find(|event| event.pcr == 4)
        .unwrap();
    let digest = event.digests.get(HashAlgorithm::Sha256).unwrap();
    let at = bytes
        .windows(32)
        .position(|window| window == digest.as_bytes())
        .unwrap();
    let mut changed = bytes.clone();
    changed[at] ^= 1;
    let log = EventLog::parse(&changed).unwrap();
    let verified = log.verify(&quote);
    let mismatches: Vec<_> = verified.mismatches().iter().map(|m| m.pcr).collect();
    assert_eq!(mismatches, [4]);
    assert!(verified.events().all(|event| event.pcr != 4));
    // Without PCRs 0 to 7 explained, the log's aggregates are not believed.
    let believed = verified.boot_aggregates();
    assert_eq!(believed.len(), 2, "those of the quoted PCRs");
}

#[test]
fn systemds_separator_explains_the_pcrs_that_it_extends_once() {
    let bytes = boot_log("grub");
    let log = EventLog::parse(&bytes).unwrap();
    let mut tpm = Tpm::new(HashAlgorithm::Sha256);
    let read = pcrread("grub", HashAlgorithm::Sha256);
    read.iter()
        .for_each(|(pcr, value)| tpm.pcrs.set(pcr, *value));
    let separator = HashAlgorithm::Sha256.digest(&[b"os-separator"]);
    let separated = [0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14];
    separated
        .iter()
        .for_each(|pcr| tpm.extend(*pcr, separator.as_bytes()));
    let quote = tpm.verified(mask(0..16));
    let verified = log.verify(&quote);
    assert!(verified.mismatches().is_empty());
    assert!(
        verified.boot_aggregates().len() > 2,
        "the kernel's was taken before the separator"
    );
    // Not in PCR 8, and not twice.
    tpm.extend(8, separator.as_bytes());
    tpm.extend(7, separator.as_bytes());
    let quote = tpm.verified(mask(0..16));
    let verified = log.verify(&quote);
    assert_eq!(
        verified
            .mismatches()
            .iter()
            .map(|m| m.pcr)
            .collect::<Vec<_>>(),
        [7, 8]
    );
}

#[test]
fn only_quoted_pcrs_are_compared() {
    let bytes = boot_log("grub");
    let log = EventLog::parse(&bytes).unwrap();
    let mut tpm = Tpm::new(HashAlgorithm::Sha256);
    let quote = tpm.verified(mask([3, 8, 16]));
    let verified = log.verify(&quote);
    assert_eq!(
        verified
            .mismatches()
            .iter()
            .map(|m| m.pcr)
            .collect::<Vec<_>>(),
        [3, 8]
    );
    assert_eq!(verified.explained, PcrMask::default());
    assert!(verified.boot_aggregates().is_empty());
}

proptest! {
    #[test]
    fn damaged_logs_never_panic(at in 0usize..5_000, byte: u8, cut in 0usize..5_000) {
        let mut bytes = boot_log("grub");
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut % bytes.len());
        if let Ok(log) = EventLog::parse(&bytes) {
            for bank in log.banks() {
                log.replay(bank);
            }
            log.unverified_events().for_each(|event| event.digests.iter().for_each(drop));
        }
    }
}
