use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use troth_tests::fleet::Programs;
use troth_tests::process::kill_all_at_signal;
use troth_tests::soak::{self, Plan, Side, Tally};

use crate::setup::{self, Scope};
use crate::span::span;
use crate::workspace::{cargo, run};

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(60);

/// Options of `cargo xtask soak`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to do for so long
    #[arg(value_enum, default_value_t = Subject::Keylime)]
    subject: Subject,
    /// How long, until the intruder comes: 90s, 10m, 1h
    #[arg(long, default_value = "1h", value_parser = span)]
    duration: Duration,
    /// Stop the agent and start it again that often
    #[arg(long, default_value = "5m", value_parser = span)]
    restart_every: Duration,
    /// Reboot the machine that often
    #[arg(long, default_value = "12m", value_parser = span)]
    reboot_every: Duration,
    /// How many kills
    #[arg(long, default_value_t = 1000)]
    kills: u32,
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Subject {
    /// Keylime's registrar and verifier, from PyPI, attest our agent
    Keylime,
    /// Those of this workspace do
    Ours,
    /// Our verifier is killed at random moments of its work
    Kills,
}

/// `cargo xtask soak`: one machine, attested every second while it runs new programs; or a
/// verifier that is killed again and again.
pub(crate) fn run_soak(options: &Options) -> Result<()> {
    match options.subject {
        Subject::Keylime => polling(options, Scope::Test, Side::Keylime, "Keylime's"),
        Subject::Ours => polling(options, Scope::Demo, Side::Ours, "our"),
        Subject::Kills => kills(options),
    }
}

/// The adversary suite's case, without the time limit that it has there.
fn kills(options: &Options) -> Result<()> {
    setup::ensure(Scope::Demo, options.yes)?;
    run(cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
    println!("our verifier is killed {} times", options.kills);
    run(cargo()
        .args(["test", "--quiet", "--package", "troth-tests"])
        .args(["--test", "adversary", "--", "--nocapture", "--exact"])
        .arg("database::killed_at_random_moments")
        .env("TROTH_TEST_KILLS", options.kills.to_string()))?;
    println!("{} kills: nothing was lost", options.kills);
    Ok(())
}

fn polling(options: &Options, scope: Scope, side: Side, whose: &str) -> Result<()> {
    setup::ensure(scope, options.yes)?;
    run(cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
    kill_all_at_signal()?;
    let this = std::env::current_exe()?;
    let profile = this
        .ancestors()
        .nth(2)
        .context("no target directory")?
        .join("debug");
    let directory = tempfile::tempdir()?;
    let plan = Plan {
        duration: options.duration,
        restart_every: options.restart_every,
        reboot_every: options.reboot_every,
    };
    let seconds = plan.duration.as_secs();
    println!("{whose} servers attest our agent every second, for {seconds} s");
    let tally = attest(
        &Programs::in_directory(&profile),
        directory.path(),
        side,
        &plan,
    )?;
    println!("{}: no failure; the intruder was found", told(&tally));
    Ok(())
}

fn attest(programs: &Programs, directory: &Path, side: Side, plan: &Plan) -> Result<Tally> {
    let mut next = PROGRESS;
    soak::run(programs, directory, side, plan, |elapsed, tally| {
        if elapsed >= next {
            next += PROGRESS;
            // A reader that left ends nothing.
            let line = format!("[{:5} s] {}", elapsed.as_secs(), told(tally));
            let _ = writeln!(io::stdout(), "{line}");
        }
    })
}

fn told(tally: &Tally) -> String {
    format!(
        "{} attestations, {} new entries, {} restarts, {} reboots",
        tally.attestations, tally.entries, tally.restarts, tally.reboots
    )
}
