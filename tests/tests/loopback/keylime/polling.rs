use std::time::Duration;

use troth_tests::fleet::Programs;
use troth_tests::process::in_ci;
use troth_tests::soak::{Plan, Side, run};

/// Five minutes in CI, where other tests run meanwhile; `cargo xtask soak` takes an hour.
fn duration() -> Duration {
    Duration::from_secs(if in_ci() { 300 } else { 30 })
}

#[test]
fn keylime_polls_a_changing_machine_without_one_failure_and_finds_the_intruder() {
    let directory = tempfile::tempdir().unwrap();
    let duration = duration();
    let plan = Plan {
        duration,
        restart_every: duration / 4,
        reboot_every: duration * 5 / 8,
    };
    let programs = Programs::beside_this().unwrap();
    let tally = run(&programs, directory.path(), Side::Keylime, &plan, |_, _| {}).unwrap();
    println!("{tally:?}");
    assert!(tally.restarts >= 2 && tally.reboots == 1, "{tally:?}");
    assert!(tally.unanswered > 0, "a restart is noticed: {tally:?}");
}
