use std::fs;

use troth_tests::boot::{Machine, fixtures};
use troth_tests::bus::Abrmd;
use troth_tests::process::output_of;
use troth_tests::tpm::Bank;

/// What `tpm2_pcrread` showed on the captured machine.
fn captured_pcrs() -> Vec<(Bank, u32, String)> {
    let text = fs::read_to_string(fixtures().join("boots/uki/pcrread.txt")).unwrap();
    let mut bank = Bank::Sha1;
    let mut pcrs = Vec::new();
    for line in text.lines() {
        let (name, value) = line.split_once(':').unwrap();
        match value.trim().strip_prefix("0x") {
            Some(value) => {
                pcrs.push((
                    bank,
                    name.trim().parse().unwrap(),
                    value.to_ascii_lowercase(),
                ));
            }
            None => {
                bank = Bank::ALL
                    .into_iter()
                    .find(|b| b.name() == name.trim())
                    .unwrap()
            }
        }
    }
    pcrs
}

#[test]
fn a_replayed_boot_gives_the_captured_pcrs() {
    let directory = tempfile::tempdir().unwrap();
    let mut machine = Machine::booted(directory.path()).unwrap();
    let captured = captured_pcrs();
    assert_eq!(captured.len(), 48);
    let tpm = machine.tpm().client();
    for round in ["first boot", "reboot"] {
        for (bank, pcr, value) in &captured {
            let shown = hex::encode(tpm.read(*bank, *pcr).unwrap());
            assert_eq!(&shown, value, "{round}: {} PCR {pcr}", bank.name());
        }
        machine.boot().unwrap();
    }
}

#[test]
fn a_program_that_runs_is_in_the_list_and_in_pcr_10() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::booted(directory.path()).unwrap();
    let tpm = machine.tpm().client();
    let before = tpm.read(Bank::Sha256, 10).unwrap();
    let digest = machine
        .run_program("/usr/local/bin/unlisted", b"#!/bin/sh\n")
        .unwrap();
    assert_ne!(tpm.read(Bank::Sha256, 10).unwrap(), before);
    let list = fs::read_to_string(machine.ima_list()).unwrap();
    let last = list.lines().next_back().unwrap();
    assert!(
        last.ends_with(&format!("ima-ng sha256:{digest} /usr/local/bin/unlisted")),
        "{last}"
    );
}

#[test]
fn the_broker_shows_the_same_tpm() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::booted(directory.path()).unwrap();
    let broker = Abrmd::start(&directory.path().join("bus"), machine.tpm()).unwrap();
    let (key, value) = broker.environment();
    let mut command = std::process::Command::new("tpm2");
    command
        .args(["pcrread", "sha256:0", "-T", &broker.tcti()])
        .env(key, value);
    let shown = output_of(&mut command).unwrap().to_ascii_lowercase();
    let expected = hex::encode(machine.tpm().client().read(Bank::Sha256, 0).unwrap());
    assert!(shown.contains(&expected), "{shown}");
}
