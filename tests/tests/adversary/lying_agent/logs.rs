use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use troth_core::tpm::Digest;
use troth_tests::process::PATIENCE;

use super::{ID, failed, fails};
use crate::forge::{Entry, Liar, Reply, SHA256};
use crate::{Stage, peak_memory, reason};

/// A program ran, and its entry is kept out of the list.
///
/// Check: `core/src/ima/replay.rs`: `quoted != Some(&running.value)`
#[test]
fn a_list_that_hides_an_entry() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.falsify(|evidence| {
        evidence.change_list(|lines| lines.retain(|line| !line.contains("/usr/bin/miner")));
    });
    liar.run("/usr/bin/miner");
    let node = failed(&stage, "PCR 10");
    assert_eq!(node["troth"]["findings"][0]["place"]["pcr"], 10);
}

/// The first answer lacks its first entry.
///
/// Check: `core/src/ima/replay.rs`: `quoted != Some(&running.value)`
#[test]
fn a_list_that_lacks_its_beginning() {
    enrolled_with_list("PCR 10", |lines| {
        lines.remove(0);
    });
}

/// All entries are there, in another order.
///
/// Check: `core/src/ima/replay.rs`: `quoted != Some(&running.value)`
#[test]
fn a_list_in_another_order() {
    enrolled_with_list("PCR 10", |lines| lines.swap(0, 1));
}

/// An entry comes twice.
///
/// Check: `core/src/ima/replay.rs`: `quoted != Some(&running.value)`
#[test]
fn a_list_that_repeats_an_entry() {
    enrolled_with_list("PCR 10", |lines| lines.insert(1, lines[0].clone()));
}

/// A host that tells of its list as `change` makes it, from the first answer on, is failed.
fn enrolled_with_list(words: &str, change: impl Fn(&mut Vec<String>) + Send + Sync + 'static) {
    let stage = Stage::new();
    let liar = Liar::start(&stage.fleet.ca_dir());
    liar.falsify(move |evidence| evidence.change_list(&change));
    stage.enrol(ID, &liar);
    failed(&stage, words);
}

/// The entry of a bad program is given the name and digest of a good one, with the template hash
/// that was extended.
///
/// Check: `core/src/ima/replay.rs`: `AnomalyKind::TemplateHash`
#[test]
fn an_entry_in_the_clothes_of_another() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.falsify(|evidence| {
        evidence.change_list(|lines| {
            for line in lines {
                let [bad, good] = ["/usr/bin/miner", "/usr/bin/a"].map(|path| Entry::of(path).line);
                let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
                if *line == bad {
                    let mut disguised = words(&good);
                    disguised[1].clone_from(&words(&bad)[1]);
                    *line = disguised.join(" ");
                }
            }
        });
    });
    liar.run("/usr/bin/miner");
    stage.operator.wait_for_state(ID, "failed");
}

/// Entries are shown that the TPM never saw: nothing that is not covered may be judged, and a list
/// that is always ahead of its quote never says what runs now.
///
/// Check: `core/src/appraise/files.rs`: `!list.made_progress(&start)`
#[test]
fn a_list_that_stays_ahead_of_its_quote() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.falsify(|evidence| {
        evidence.change_list(|lines| {
            lines.extend(["/usr/bin/a", "/usr/bin/b"].map(|path| Entry::of(path).line));
        });
    });
    stage.operator.wait_for_state(ID, "failed");
}

/// The answer begins behind an entry that the verifier has not seen.
///
/// Check: `core/src/appraise/files.rs`: `wrong_entry(entry, answer.asked_entry)`
#[test]
fn a_list_from_another_entry_than_asked() {
    fails("answer starts at entry", |evidence| {
        evidence.results["ima_measurement_list_entry"] = json!(2);
    });
}

/// PCR 10 changed, and there is no list.
///
/// Check: `core/src/appraise/files.rs`: `findings.push(findings::missing_list)`
#[test]
fn no_list_for_a_changed_pcr() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.falsify(|evidence| {
        let results = evidence.results.as_object_mut().unwrap();
        results.remove("ima_measurement_list");
    });
    liar.run("/usr/bin/miner");
    failed(&stage, "no IMA list");
}

/// The policy names files, and this host's IMA is said to have measured nothing since boot.
///
/// Check: `core/src/appraise/files.rs`: `nothing_measured(entries)`
#[test]
fn a_host_that_measures_nothing() {
    let stage = Stage::new();
    let liar = Liar::start(&stage.fleet.ca_dir());
    liar.falsify(|evidence| {
        evidence.pcrs.set(10, Digest::zero(SHA256));
        evidence.change_list(Vec::clear);
    });
    stage.enrol(ID, &liar);
    stage.operator.wait_for_state(ID, "failed");
}

/// A host that claims to have booted with each answer, so that its list is never judged.
///
/// Check: `core/src/appraise/mod.rs`: `rebooted && entry != 0 && entry == asked_entry`
#[test]
fn a_host_that_always_has_just_booted() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    let boots = AtomicU32::new(0);
    liar.falsify(move |evidence| {
        evidence.results["boottime"] = json!(1_800_000_000 + boots.fetch_add(1, Ordering::Relaxed));
        if evidence.results["ima_measurement_list_entry"] == 0 {
            // What cannot be put off any more.
            evidence.change_list(|lines| lines.truncate(1));
        }
    });
    liar.run("/usr/bin/miner");
    failed(&stage, "PCR 10");
}

/// A bad program ran before a boot that only the answers tell of.
///
/// Check: `core/src/appraise/mod.rs`: `clock.reset_count > last.reset_count`
#[test]
fn a_reboot_is_noticed_by_the_tpms_counter() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.asked();
    liar.falsify(|evidence| evidence.results["boottime"] = json!(1_700_000_000));
    liar.reboot();
    // The list of the new boot is read from its beginning.
    let mut again = false;
    let start = std::time::Instant::now();
    while !again && start.elapsed() < PATIENCE {
        again = liar
            .asked()
            .iter()
            .any(|asked| asked.contains("ima_ml_entry=0"));
        let node = stage.operator.status(ID);
        assert_ne!(node["troth"]["state"], "failed", "{node:#}");
    }
    assert!(again);
    stage.operator.wait_for_state(ID, "trusted");
}

/// A boot log that is good in itself, and of another boot.
///
/// Check: `core/src/appraise/boot.rs`: `mismatched(mismatch, &replayed)`
#[test]
fn the_boot_log_of_another_boot() {
    let log = troth_tests::boot::fixtures().join("boots/uki/binary_bios_measurements");
    let log = BASE64_STANDARD.encode(std::fs::read(log).unwrap());
    let stage = Stage::new();
    let liar = Liar::start(&stage.fleet.ca_dir());
    liar.falsify(move |evidence| evidence.results["mb_measurement_list"] = json!(log));
    let mut enrolment = liar.enrolment();
    enrolment["tpm_policy"] = json!("{\"mask\": \"0xffff\"}");
    enrolment["mb_policy"] = json!("{}");
    let reply = stage.operator.enrol(ID, &enrolment);
    assert_eq!(reply.status, 200, "{reply:?}");
    failed(&stage, "boot log does not replay");
}

/// `boot_aggregate` of another boot: entry, template hash and PCR 10 all agree.
///
/// Check: `core/src/appraise/files.rs`: `self.is_boot_aggregate(entry)`
#[test]
fn the_boot_aggregate_of_another_boot() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.run("boot_aggregate");
    failed(&stage, "boot_aggregate");
}

/// An honest list of a host that runs what it should not: 20,000 programs, with long names that
/// would control a terminal.
///
/// Check: `core/src/finding.rs`: `self.kept.len() < MAX_FINDINGS`
#[test]
fn a_flood_of_findings() {
    let mut stage = Stage::new();
    let liar = stage.trusted(ID);
    let name = "x\u{1b}[2J".repeat(40);
    liar.run_all((0..20_000).map(|number| format!("/tmp/{number}{name}")));
    let node = failed(&stage, "more findings");
    assert_eq!(node["troth"]["findings_total"], 20_000);
    let shown = node.to_string();
    assert!(shown.len() < 1_000_000, "{} bytes", shown.len());
    assert!(!reason(&node).contains('\u{1b}'), "{}", reason(&node));
    let memory = peak_memory(stage.fleet.verifier());
    assert!(memory < 150, "{memory} MiB");
}

/// Lines that are no entries, between good ones.
///
/// Check: `core/src/ima/replay.rs`: `AnomalyKind::Unparsable`
#[test]
fn a_list_with_lines_that_are_no_entries() {
    enrolled_with_list("IMA", |lines| {
        lines.insert(1, "10 0000 ima-ng sha256: \n".to_owned());
    });
}

/// A host whose list has become shorter without a boot: what is gone may have been bad.
///
/// Check: `core/src/ima/replay.rs`: `quoted != Some(&running.value)`
#[test]
fn a_list_that_has_become_shorter() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.lie(|_, mut evidence| {
        evidence.results["ima_measurement_list_entry"] = json!(0);
        evidence.change_list(|lines| {
            lines.clear();
            lines.push(Entry::of("/usr/bin/a").line);
        });
        Reply::Evidence(evidence)
    });
    failed(&stage, "PCR 10");
}

/// A verifier that asks failed nodes on.
const TOLERANT: &str = "severity_policy = [{ event_id = '.*', severity_label = \"warning\" }]";

/// A host of which an intruder's program is known, and that is asked on.
fn intruded() -> (Stage, Liar) {
    let stage = Stage::with_verifier(TOLERANT);
    let liar = stage.trusted(ID);
    liar.run("/usr/bin/miner");
    let node = failed(&stage, "/usr/bin/miner");
    assert_eq!(
        node["troth"]["findings"][0]["place"]["ima_entry"]["entry"], 3,
        "{node:#}"
    );
    (stage, liar)
}

/// After its failure, the list continues behind the intruder's entry, which was told already.
///
/// Check: `core/src/ima/replay.rs`: `quoted != Some(&running.value)`
#[test]
fn a_list_that_goes_on_behind_what_failed() {
    let (stage, liar) = intruded();
    liar.falsify(|evidence| {
        evidence.change_list(|lines| lines.retain(|line| !line.contains("/usr/bin/miner")));
    });
    liar.run("/usr/bin/a");
    let node = stage
        .operator
        .wait_for(ID, "is failed for its lie", |node| {
            assert_eq!(node["troth"]["state"], "failed", "{node:#}");
            reason(node).contains("PCR 10")
        });
    assert_eq!(node["troth"]["findings"][0]["place"]["pcr"], 10, "{node:#}");
}

/// The same, and the answer says that it begins one entry later.
///
/// Check: `core/src/appraise/files.rs`: `wrong_entry(entry, answer.asked_entry)`
#[test]
fn a_list_that_begins_behind_what_failed() {
    let (stage, liar) = intruded();
    liar.falsify(|evidence| {
        evidence.results["ima_measurement_list_entry"] = json!(4);
        evidence.change_list(|lines| lines.retain(|line| !line.contains("/usr/bin/miner")));
    });
    liar.run("/usr/bin/a");
    stage
        .operator
        .wait_for(ID, "is failed for its lie", |node| {
            assert_eq!(node["troth"]["state"], "failed", "{node:#}");
            reason(node).contains("answer starts at entry 4")
        });
}

/// After its failure the host goes on honestly, with programs that are known: what failed is found
/// with each answer.
///
/// Check: `core/src/appraise/files.rs`: `list.position_before(entry)`
#[test]
fn an_honest_list_after_a_failure() {
    let (stage, liar) = intruded();
    liar.asked();
    let (mut asked, start) = (Vec::new(), std::time::Instant::now());
    while asked.len() < 5 && start.elapsed() < PATIENCE {
        liar.run("/usr/bin/a");
        asked.extend(liar.asked());
        let node = stage.operator.status(ID);
        assert_eq!(node["troth"]["state"], "failed", "{node:#}");
        let finding = &node["troth"]["findings"][0];
        assert_eq!(finding["place"]["ima_entry"]["entry"], 3, "{node:#}");
        assert!(reason(&node).contains("/usr/bin/miner"), "{node:#}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(asked.len() >= 5, "{asked:?}");
    assert!(
        asked.iter().all(|asked| asked.contains("ima_ml_entry=3")),
        "{asked:?}"
    );
}
