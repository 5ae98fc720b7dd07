use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::install::{self, Set};
use crate::workspace::{root, run};

/// Options of `cargo xtask rpm`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the packages are written
    #[arg(long, value_name = "DIRECTORY", default_value = "target/rpm")]
    output: PathBuf,
    /// Take the programs that were built into this directory, such as target/release; without it,
    /// they are built
    #[arg(long, value_name = "DIRECTORY")]
    programs: Option<PathBuf>,
    /// Further options of rpmbuild, such as `--define "troth_release 2"`
    #[arg(last = true, value_name = "OPTION")]
    rpmbuild: Vec<OsString>,
}

/// `cargo xtask rpm`: packs the install tree with all its sets. Nothing is compiled a second time.
pub(crate) fn run_rpm(options: &Options) -> Result<()> {
    let work = tempfile::tempdir()?;
    let tree = work.path().join("tree");
    install::lay_sets(
        &[Set::Host, Set::KeylimeCompat],
        options.programs.as_deref(),
        &tree,
    )?;
    fs::create_dir_all(&options.output)?;
    let output = fs::canonicalize(&options.output)
        .with_context(|| format!("cannot write to {}", options.output.display()))?;
    let mut command = Command::new("rpmbuild");
    command.args(["-bb", "--quiet"]);
    for (name, value) in [
        ("_topdir", work.path().join("rpmbuild").into_os_string()),
        ("_rpmdir", output.clone().into_os_string()),
        (
            "_rpmfilename",
            "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm".into(),
        ),
        ("troth_tree", tree.into_os_string()),
        ("troth_version", env!("CARGO_PKG_VERSION").into()),
    ] {
        let mut definition = OsString::from(name);
        definition.push(" ");
        definition.push(value);
        command.arg("--define").arg(definition);
    }
    command.args(&options.rpmbuild);
    run(command.arg(root().join("units/rpm/troth.spec")))?;
    println!("packages are in {}", output.display());
    Ok(())
}
