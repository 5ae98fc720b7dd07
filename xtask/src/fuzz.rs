use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use troth_tests::process::cache;

use crate::setup;
use crate::span::span;
use crate::workspace::{display, root};

/// Longest input that is tried, in bytes: what a corpus is made of is small.
const MAX_INPUT: usize = 64 * 1024;
/// An input that takes longer is a finding.
const INPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these; all of tests/fuzz/fuzz_targets without a name
    targets: Vec<String>,
    /// How long each is fuzzed: 60s, 10m
    #[arg(long, default_value = "60s", value_parser = span)]
    duration: Duration,
    /// Fuzz nothing, only show what was done on this machine so far
    #[arg(long)]
    report: bool,
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
}

/// What was fuzzed so far, over all runs on this machine.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Ledger(BTreeMap<String, Done>);

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
struct Done {
    seconds: u64,
    inputs: u64,
}

/// `cargo xtask fuzz`: libFuzzer on each target in turn, from the corpus in the checkout and what
/// earlier runs found, which is kept in the cache.
pub(crate) fn run_fuzz(options: &Options) -> Result<()> {
    let all = targets()?;
    for name in &options.targets {
        ensure!(
            all.contains(name),
            "no fuzz target {name}: there are {}",
            all.join(", ")
        );
    }
    let wanted = if options.targets.is_empty() {
        &all
    } else {
        &options.targets
    };
    let place = cache()?.join("fuzz");
    if !options.report {
        setup::ensure_fuzzer(options.yes)?;
        for (number, name) in (1..).zip(wanted) {
            let seconds = options.duration.as_secs();
            println!("[{number}/{}] {name}, {seconds} s", wanted.len());
            let inputs = fuzz(name, &place.join("corpus").join(name), options.duration)?;
            Ledger::add(&place, name, Done { seconds, inputs })?;
        }
    }
    let ledger = Ledger::load(&place)?;
    println!("{:24} {:>10} {:>14}", "target", "seconds", "inputs");
    for name in wanted {
        let done = ledger.0.get(name).copied().unwrap_or_default();
        println!("{name:24} {:>10} {:>14}", done.seconds, done.inputs);
    }
    Ok(())
}

fn directory() -> PathBuf {
    root().join("tests/fuzz")
}

fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    let place = directory().join("fuzz_targets");
    for entry in std::fs::read_dir(&place).with_context(|| place.display().to_string())? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Fuzzes one target; how many inputs were tried. Its output goes to a file in the cache, which an
/// error names.
fn fuzz(name: &str, found: &Path, duration: Duration) -> Result<u64> {
    std::fs::create_dir_all(found).with_context(|| found.display().to_string())?;
    let log = found.with_extension("log");
    let output = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
    let mut command = setup::as_user("cargo");
    command
        .args(["+nightly", "fuzz", "run", "--fuzz-dir"])
        .arg(directory())
        .arg(name)
        .arg(found)
        .arg(directory().join("corpus").join(name))
        .arg("--")
        .arg(format!("-max_total_time={}", duration.as_secs()))
        .arg(format!("-max_len={MAX_INPUT}"))
        .arg(format!("-timeout={}", INPUT_TIMEOUT.as_secs()))
        .arg("-print_final_stats=1")
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", display(&command)))?;
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    if !status.success() {
        bail!(
            "{name}: {status}; {} has the reason. An input that fails stands at the end of it: put \
             it into tests/fuzz/corpus/{name}, mend what it shows, and the unit tier replays it",
            log.display()
        );
    }
    let inputs = text
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|number| number.trim().parse().ok());
    inputs.with_context(|| format!("{}: libFuzzer's statistics are missing", log.display()))
}

impl Ledger {
    fn load(place: &Path) -> Result<Self> {
        let path = place.join("ledger.json");
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Adds to what is in the file. Other targets may be fuzzed beside this one.
    fn add(place: &Path, target: &str, more: Done) -> Result<()> {
        let lock = std::fs::File::create(place.join("ledger.lock"))?;
        lock.lock()?;
        let mut ledger = Self::load(place)?;
        let done = ledger.0.entry(target.to_owned()).or_default();
        done.seconds += more.seconds;
        done.inputs += more.inputs;
        let (path, new) = (place.join("ledger.json"), place.join("ledger.json.new"));
        std::fs::write(&new, serde_json::to_string_pretty(&ledger)?)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_fuzzed_side_by_side_is_all_counted() {
        let place = tempfile::tempdir().unwrap();
        let more = Done {
            seconds: 1,
            inputs: 10,
        };
        std::thread::scope(|scope| {
            for target in ["one", "other"] {
                let place = place.path();
                scope.spawn(move || {
                    for _ in 0..50 {
                        Ledger::add(place, target, more).unwrap();
                    }
                });
            }
        });
        let ledger = Ledger::load(place.path()).unwrap();
        for target in ["one", "other"] {
            let done = ledger.0[target];
            assert_eq!((done.seconds, done.inputs), (50, 500), "{target}");
        }
    }
}
