//! `cargo xtask`: set-up, demo and tests; what a contributor types, and all that CI runs.
//!
//! Builds without libtss2, so that it can be the one that installs it.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// What the project costs, measured against floors.
mod bench;
/// Runs one node's life from manufacture to a failed attestation, narrated.
mod demo;
/// Coverage-guided fuzzing of every parser.
mod fuzz;
/// The install tree: programs, units, documentation.
mod install;
/// The install tree as RPM packages.
mod rpm;
/// What this project needs from the machine, and how to get it.
mod setup;
/// One machine attested for an hour.
mod soak;
/// A length of time on the command line.
mod span;
/// Test tiers and their one closing line.
mod test;
/// Where the workspace, its cache and its cargo are.
mod workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what building and testing need and this machine lacks
    Setup {
        /// Install without asking (CI=true does the same)
        #[arg(long)]
        yes: bool,
    },
    /// Attest one machine end to end: a software TPM, a captured boot, real daemons
    Demo {
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
        /// Use optimised binaries (a long build the first time)
        #[arg(long)]
        release: bool,
    },
    /// Measure what docs/performance.md promises, each figure beside a floor or a peer from the same
    /// run
    Bench {
        /// Only this
        subject: Option<bench::Subject>,
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
    },
    /// Fuzz the parsers with libFuzzer; needs nightly Rust
    Fuzz(fuzz::Options),
    /// Lay the programs, units and documentation down below a directory, as a package has them
    Install(install::Options),
    /// Pack the install tree as RPM packages
    Rpm(rpm::Options),
    /// Attest one machine every second while it runs new programs, restarts and reboots; or kill the
    /// verifier again and again
    Soak(soak::Options),
    /// Run the tests: every tier, or one; the last line is `N passed, N failed, N skipped`
    Test {
        /// Only this tier
        tier: Option<test::Tier>,
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
    },
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Setup { yes } => setup::run_setup(yes)?,
        Command::Demo { yes, release } => return demo::run_demo(yes, release),
        Command::Bench { subject, yes } => bench::run_bench(subject, yes)?,
        Command::Fuzz(options) => fuzz::run_fuzz(&options)?,
        Command::Install(options) => install::run_install(&options)?,
        Command::Rpm(options) => rpm::run_rpm(&options)?,
        Command::Soak(options) => soak::run_soak(&options)?,
        Command::Test { tier, yes } => return test::run_tiers(tier, yes),
    }
    Ok(ExitCode::SUCCESS)
}
