use std::io::{BufRead, BufReader, Read};
use std::ops::AddAssign;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;
use troth_tests::{node, vm};

use crate::setup::{self, Scope};
use crate::workspace::{cargo, display, in_ci, run};

/// The package whose integration tests run real processes.
const TESTS_PACKAGE: &str = "troth-tests";

/// Those of its integration tests that are tiers of their own; the others are the loopback tier.
const NODE_TARGET: &str = "node";
const VM_TARGET: &str = "vm";

/// Integration tests of other packages that belong to the loopback tier as well: they talk to a TPM
/// or to PostgreSQL.
const LOOPBACK_TARGETS: [&str; 3] = ["notify", "store_postgres", "swtpm"];

/// What is real in a run of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Pure functions, captured logs, one daemon's parts: needs nothing but the compiler
    Unit,
    /// Processes, mTLS, swtpm, tpm2-abrmd on a private bus, Keylime as the other side, PostgreSQL
    Loopback,
    /// systemd as PID 1 in containers: the installed tree, its units, firewalld; needs root
    Node,
    /// Machines with firmware, a TPM and a kernel of their own, in QEMU without KVM; making their
    /// image needs root
    Vm,
}

impl Tier {
    const ALL: [Self; 4] = [Self::Unit, Self::Loopback, Self::Node, Self::Vm];

    /// The tier of an integration test.
    fn of(package: &str, target: &str) -> Self {
        match (package, target) {
            (TESTS_PACKAGE, NODE_TARGET) => Self::Node,
            (TESTS_PACKAGE, VM_TARGET) => Self::Vm,
            (TESTS_PACKAGE, _) => Self::Loopback,
            (_, target) if LOOPBACK_TARGETS.contains(&target) => Self::Loopback,
            _ => Self::Unit,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Loopback => "loopback",
            Self::Node => "node",
            Self::Vm => "vm",
        }
    }

    fn scope(self) -> Scope {
        match self {
            Self::Unit => Scope::Build,
            Self::Loopback => Scope::Test,
            Self::Node => Scope::Node,
            Self::Vm => Scope::Vm,
        }
    }

    /// The tier's targets, as options of `cargo test` and of nextest.
    fn targets(self) -> Result<Vec<String>> {
        let mut targets: Vec<_> = match self {
            Self::Unit => ["--lib", "--bins"].map(str::to_owned).into(),
            Self::Loopback | Self::Node | Self::Vm => Vec::new(),
        };
        let output = cargo()
            .args(["metadata", "--no-deps", "--offline"])
            .args(["--format-version", "1"])
            .output()?;
        let metadata: Value =
            serde_json::from_slice(&output.stdout).context("`cargo metadata` wrote no JSON")?;
        for package in metadata["packages"].as_array().into_iter().flatten() {
            let package_name = package["name"].as_str().unwrap_or_default();
            for target in package["targets"].as_array().into_iter().flatten() {
                let name = target["name"].as_str().unwrap_or_default();
                if target["kind"][0] == "test" && Self::of(package_name, name) == self {
                    targets.extend(["--test".to_owned(), name.to_owned()]);
                }
            }
        }
        Ok(targets)
    }

    /// What is made before the first test, so that no test is the one that takes minutes.
    fn prepare(self) -> Result<()> {
        match self {
            Self::Unit | Self::Loopback => Ok(()),
            Self::Node => node::trixie().map(drop),
            Self::Vm => vm::prepare(),
        }
    }
}

/// What became of a run's tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Builds once, runs the tiers in order, and closes with one line that counts all of them.
pub(crate) fn run_tiers(tier: Option<Tier>, yes: bool) -> Result<ExitCode> {
    let wanted: Vec<_> = Tier::ALL
        .into_iter()
        .filter(|candidate| tier.is_none_or(|tier| tier == *candidate))
        .collect();
    setup::ensure(Scope::Build, yes)?;
    let mut not_run = Vec::new();
    let mut able = Vec::new();
    for tier in wanted {
        match setup::ensure(tier.scope(), yes) {
            Ok(()) => able.push(tier),
            Err(error) if in_ci() => {
                return Err(error.context(format!("the {} tier cannot run", tier.name())));
            }
            Err(error) => not_run.push((tier, error)),
        }
    }

    run(cargo().args(["build", "--workspace", "--all-targets"]))?;
    let runner = Runner::pick();
    let mut counts = Counts::default();
    for tier in able {
        println!("--- {} tier", tier.name());
        tier.prepare()?;
        counts += runner.run(tier)?;
    }
    for (tier, error) in &not_run {
        println!("not run: {} tier: {error:#}", tier.name());
        for item in setup::lacking(tier.scope())? {
            println!("  missing: {item}");
        }
    }
    println!(
        "{} passed, {} failed, {} skipped",
        counts.passed, counts.failed, counts.skipped
    );
    let good = counts.failed == 0 && counts.passed > 0;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Who runs the tests: nextest where it is installed, else what comes with Rust.
#[derive(Clone, Copy, Debug)]
enum Runner {
    Nextest,
    Cargo,
}

impl Runner {
    fn pick() -> Self {
        let nextest = cargo()
            .args(["nextest", "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if nextest { Self::Nextest } else { Self::Cargo }
    }

    /// Both take the same options and end with lines that count.
    fn run(self, tier: Tier) -> Result<Counts> {
        let mut command = cargo();
        match self {
            Self::Nextest => command
                .args(["nextest", "run", "--no-tests=pass"])
                .stderr(Stdio::piped()),
            Self::Cargo => command.arg("test").stdout(Stdio::piped()),
        };
        command.args(["--workspace", "--no-fail-fast"]);
        command.args(tier.targets()?);
        let line = display(&command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        let mut counts = Counts::default();
        if let Some(stderr) = child.stderr.take() {
            for_each_line(stderr, |line| {
                eprintln!("{line}");
                counts += parse_nextest_summary(line).unwrap_or_default();
            })?;
        }
        if let Some(stdout) = child.stdout.take() {
            for_each_line(stdout, |line| {
                println!("{line}");
                counts += parse_cargo_result(line).unwrap_or_default();
            })?;
        }
        let status = child.wait()?;
        if !status.success() && counts.failed == 0 {
            bail!("`{line}` failed: {status}");
        }
        Ok(counts)
    }
}

/// `Summary [   2.103s] 12 tests run: 11 passed (1 slow), 1 failed, 3 skipped`
fn parse_nextest_summary(line: &str) -> Option<Counts> {
    let rest = line.trim_start().strip_prefix("Summary [")?;
    let (_, results) = rest.split_once(" run: ")?;
    Some(count(results.split(", ")))
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in ...`
fn parse_cargo_result(line: &str) -> Option<Counts> {
    let (_, results) = line.strip_prefix("test result: ")?.split_once(". ")?;
    Some(count(results.split("; ")))
}

/// Sums up parts that begin with a number and what it counts.
fn count<'a>(parts: impl Iterator<Item = &'a str>) -> Counts {
    let mut counts = Counts::default();
    for part in parts {
        let mut words = part.split_whitespace();
        let number = words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(number), Some(what)) = (number, words.next()) else {
            continue;
        };
        match what {
            "passed" => counts.passed += number,
            "failed" | "timed" | "exec" => counts.failed += number,
            "skipped" | "ignored" => counts.skipped += number,
            _ => {}
        }
    }
    counts
}

/// Passes on what a test prints even where it is not UTF-8.
fn for_each_line(output: impl Read, mut act: impl FnMut(&str)) -> Result<()> {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        act(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_summary_counts_time_outs_as_failures() {
        let line = "     Summary [   2.103s] 14 tests run: 11 passed (1 slow), 2 failed, \
                    1 timed out, 30 skipped";
        let counts = parse_nextest_summary(line).unwrap();
        assert_eq!(
            counts,
            Counts {
                passed: 11,
                failed: 3,
                skipped: 30
            }
        );
        assert_eq!(
            parse_nextest_summary("        PASS [   0.010s] troth-core a::b"),
            None
        );
    }

    #[test]
    fn cargo_results_are_read() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; \
                    9 filtered out; finished in 0.00s";
        let counts = parse_cargo_result(line).unwrap();
        assert_eq!(
            counts,
            Counts {
                passed: 3,
                failed: 1,
                skipped: 2
            }
        );
    }
}
