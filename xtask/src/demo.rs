use std::process::ExitCode;

use anyhow::Result;

use crate::setup::{self, Scope};

/// `cargo xtask demo`.
pub(crate) fn run(yes: bool, _release: bool) -> Result<ExitCode> {
    setup::ensure(Scope::Demo, yes)?;
    Ok(ExitCode::SUCCESS)
}
