use std::io::{BufRead, BufReader, Read};
use std::ops::AddAssign;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;

use crate::setup::{self, Scope};
use crate::workspace::{cargo, display, in_ci, run};

/// The package whose integration tests are the loopback tier.
const LOOPBACK_PACKAGE: &str = "troth-tests";

/// Integration tests of other packages that belong there as well: they talk to a TPM or to
/// PostgreSQL.
const LOOPBACK_TARGETS: [&str; 3] = ["notify", "store_postgres", "swtpm"];

/// What is real in a run of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Pure functions, captured logs, one daemon's parts: needs nothing but the compiler
    Unit,
    /// Processes, mTLS, swtpm, tpm2-abrmd on a private bus, Keylime as the other side, PostgreSQL
    Loopback,
}

impl Tier {
    const ALL: [Self; 2] = [Self::Unit, Self::Loopback];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Loopback => "loopback",
        }
    }

    fn scope(self) -> Scope {
        match self {
            Self::Unit => Scope::Build,
            Self::Loopback => Scope::Test,
        }
    }

    /// The tier as an expression of nextest's filter language.
    fn filter(self) -> String {
        let mut loopback = format!("(package({LOOPBACK_PACKAGE}) & kind(test))");
        for target in LOOPBACK_TARGETS {
            loopback.push_str(&format!(" | binary(={target})"));
        }
        match self {
            Self::Unit => format!("not ({loopback})"),
            Self::Loopback => loopback,
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

    fn run(self, tier: Tier) -> Result<Counts> {
        match self {
            Self::Nextest => nextest(tier),
            Self::Cargo => cargo_test(tier),
        }
    }
}

fn nextest(tier: Tier) -> Result<Counts> {
    let filter = tier.filter();
    let mut command = cargo();
    command.args([
        "nextest",
        "run",
        "--workspace",
        "--no-fail-fast",
        "--no-tests=pass",
    ]);
    command.args(["-E", &filter]).stderr(Stdio::piped());
    let line = display(&command);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let mut counts = None;
    if let Some(stderr) = child.stderr.take() {
        for_each_line(stderr, |line| {
            eprintln!("{line}");
            counts = parse_nextest_summary(line).or(counts);
        })?;
    }
    let status = child.wait()?;
    let Some(mut counts) = counts else {
        bail!("`{line}` ran no tests: {status}");
    };
    counts.skipped = ignored(&filter)?;
    if !status.success() && counts.failed == 0 {
        bail!("`{line}` failed: {status}");
    }
    Ok(counts)
}

/// `Summary [   2.103s] 12 tests run: 11 passed (1 slow), 1 failed, 3 skipped`. Its own "skipped"
/// is not taken: it also counts every test of the other tiers.
fn parse_nextest_summary(line: &str) -> Option<Counts> {
    let rest = line.trim_start().strip_prefix("Summary [")?;
    let (_, results) = rest.split_once(" run: ")?;
    let mut counts = Counts::default();
    for part in results.split(", ") {
        let mut words = part.split_whitespace();
        let number: u64 = words.next()?.parse().ok()?;
        match words.next()? {
            "passed" => counts.passed += number,
            "failed" | "timed" | "exec" => counts.failed += number,
            _ => {}
        }
    }
    Some(counts)
}

/// How many tests of the tier are marked `#[ignore]`.
fn ignored(filter: &str) -> Result<u64> {
    let output = cargo()
        .args([
            "nextest",
            "list",
            "--workspace",
            "--message-format",
            "json",
            "-E",
            filter,
        ])
        .stderr(Stdio::null())
        .output()?;
    let list: Value =
        serde_json::from_slice(&output.stdout).context("`cargo nextest list` wrote no JSON")?;
    let suites = list["rust-suites"].as_object();
    let tests = suites
        .into_iter()
        .flat_map(|suites| suites.values())
        .filter_map(|suite| suite["testcases"].as_object())
        .flat_map(|cases| cases.values());
    let count = tests
        .filter(|test| test["filter-match"]["reason"] == "ignored")
        .count();
    Ok(u64::try_from(count)?)
}

fn cargo_test(tier: Tier) -> Result<Counts> {
    let (loopback, others) = integration_tests()?;
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    let names = match tier {
        Tier::Unit => {
            command.args(["--lib", "--bins"]);
            others
        }
        Tier::Loopback => loopback,
    };
    for name in &names {
        command.args(["--test", name]);
    }
    let line = display(&command);
    command.stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let mut counts = Counts::default();
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

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in ...`
fn parse_cargo_result(line: &str) -> Option<Counts> {
    let (_, results) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for part in results.split("; ") {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(number) = number.parse::<u64>() else {
            continue;
        };
        match what {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" => counts.skipped += number,
            _ => {}
        }
    }
    Some(counts)
}

/// The names of the integration tests: those of the loopback tier, and all others.
fn integration_tests() -> Result<(Vec<String>, Vec<String>)> {
    let output = cargo()
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .output()?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("`cargo metadata` wrote no JSON")?;
    let (mut loopback, mut others) = (Vec::new(), Vec::new());
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            if target["kind"][0] == "test" {
                let name = target["name"].as_str().unwrap_or_default().to_owned();
                if package["name"] == LOOPBACK_PACKAGE || LOOPBACK_TARGETS.contains(&name.as_str())
                {
                    loopback.push(name);
                } else {
                    others.push(name);
                }
            }
        }
    }
    Ok((loopback, others))
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
                skipped: 0
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
