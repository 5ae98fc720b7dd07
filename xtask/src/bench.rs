use anyhow::{Context, Result};

use crate::setup::{self, Scope};
use crate::workspace::{cargo, run};

/// `cargo xtask bench`: release binaries of the daemons, then tests/benches/figures.rs with them.
pub(crate) fn run_bench(yes: bool) -> Result<()> {
    setup::ensure(Scope::Demo, yes)?;
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
    run(cargo()
        .args(["bench", "--package", "troth-tests", "--bench", "figures"])
        .env("TROTH_BENCH_PROGRAMS", programs))
}
