use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::setup::{self, Scope};
use crate::workspace::{cargo, run};

/// What is measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Subject {
    /// Checks in process, and the agent on swtpm, beside floors
    Figures,
    /// Verifier, registrar and trothctl under load, beside Keylime's
    Fleet,
}

impl Subject {
    /// The benchmark in tests/benches.
    fn name(self) -> &'static str {
        match self {
            Self::Figures => "figures",
            Self::Fleet => "fleet",
        }
    }

    fn scope(self) -> Scope {
        match self {
            Self::Figures => Scope::Demo,
            Self::Fleet => Scope::Test,
        }
    }
}

/// `cargo xtask bench`: release binaries of the programs, then the benchmarks with them.
pub(crate) fn run_bench(subject: Option<Subject>, yes: bool) -> Result<()> {
    let subjects = match &subject {
        Some(subject) => std::slice::from_ref(subject),
        None => Subject::value_variants(),
    };
    for subject in subjects {
        setup::ensure(subject.scope(), yes)?;
    }
    run(cargo().args([
        "build",
        "--release",
        "--workspace",
        "--bins",
        "--exclude",
        "xtask",
    ]))?;
    let this = std::env::current_exe()?;
    let programs = this
        .ancestors()
        .nth(2)
        .context("no target directory")?
        .join("release");
    for subject in subjects {
        run(cargo()
            .args([
                "bench",
                "--package",
                "troth-tests",
                "--bench",
                subject.name(),
            ])
            .env("TROTH_BENCH_PROGRAMS", &programs))?;
    }
    Ok(())
}
