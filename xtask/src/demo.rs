use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions, Fleet, Programs};
use troth_tests::process::kill_all_at_signal;

use crate::setup::{self, Scope};
use crate::workspace::{cargo, run};

/// The verifier's own default, and Keylime's.
const INTERVAL: Duration = Duration::from_secs(2);

/// What a quote and its appraisal may take on top of the interval, on a machine that does it all.
const SLACK: Duration = Duration::from_secs(1);

/// As wide as the time before each step.
const INDENT: &str = "             ";

/// A program that no policy lists.
const INTRUDER: &str = "/usr/local/bin/cryptominer";

/// `cargo xtask demo`.
pub(crate) fn run_demo(yes: bool, release: bool) -> Result<ExitCode> {
    setup::ensure(Scope::Demo, yes)?;
    let mut build = cargo();
    build.args(["build", "--quiet", "--workspace", "--bins"]);
    if release {
        build.arg("--release");
    }
    run(&mut build)?;
    kill_all_at_signal()?;

    let profile = if release { "release" } else { "debug" };
    let this = std::env::current_exe()?;
    let target = this
        .parent()
        .and_then(Path::parent)
        .context("no target directory")?;
    let programs = Programs::in_directory(&target.join(profile));
    let directory = tempfile::tempdir()?;
    let narrator = Narrator(Instant::now());
    Narrator::line(
        "One machine is attested, end to end: real processes, mTLS, a TPM in software.\n",
    );
    let result = play(&narrator, &programs, directory.path());
    match &result {
        Ok(()) => narrator.say("Everything was as told. Nothing is left running."),
        Err(error) => narrator.say(format!("NOT as told: {error:#}")),
    }
    Ok(if result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Tells each step with the time since the start. A reader that left ends nothing: the story is
/// played, checked and cleaned up to its end.
struct Narrator(Instant);

impl Narrator {
    fn say(&self, what: impl Display) {
        Self::line(format!("[{:6.2} s] {what}", self.0.elapsed().as_secs_f64()));
    }

    fn detail(&self, what: impl Display) {
        for line in what.to_string().lines() {
            Self::line(format!("{INDENT}{line}"));
        }
    }

    fn line(line: impl Display) {
        let _ = writeln!(io::stdout(), "{line}");
    }
}

fn play(narrator: &Narrator, programs: &Programs, directory: &Path) -> Result<()> {
    narrator.say("A machine is built: its TPM is manufactured, with an EK certificate.");
    let mut machine = Machine::manufacture(&directory.join("machine"))?;

    narrator.say("It boots. (A captured boot of Debian 13 is replayed into the TPM's PCRs.)");
    let boot = machine.boot()?;
    narrator.detail(format!(
        "{} events of firmware and boot loader, {} of systemd, {} files measured by IMA",
        boot.boot_events, boot.userspace_events, boot.ima_entries
    ));

    narrator.say("Registrar and verifier start; the first of them makes the fleet's CA.");
    let mut fleet = Fleet::start(programs, &directory.join("fleet"), INTERVAL)?;

    narrator.say("The machine's agent starts and registers.");
    let mut agent = Agent::start(
        programs,
        &directory.join("agent"),
        &machine,
        fleet.registrar_port(),
        &fleet.ca_dir(),
        &AgentOptions::with_id("hash_ek"),
    )?;
    let id = only_registered(&fleet)?;
    narrator.say("Registered: the TPM proved that EK and AK live in it (MakeCredential).");
    narrator.detail(format!("agent id (hash of the EK): {id}"));

    narrator.say("The operator trusts the CA of the TPM's vendor, which certified that EK.");
    fleet.trust_tpm_vendor(&machine.tpm().ek_issuer())?;

    let policy = machine.write_runtime_policy()?;
    let files = machine.runtime_policy()?["digests"]
        .as_object()
        .map_or(0, serde_json::Map::len);
    narrator.say(format!(
        "The operator enrols it with a policy of the {files} files that it runs now; its boot log\n\
         {INDENT}must replay to the quoted PCRs:"
    ));
    narrator.detail(format!(
        "$ trothctl agent add {} --runtime-policy runtime-policy.json --boot-policy '{{}}'",
        short(&id)
    ));
    let policy = policy.to_str().context("a directory with an odd name")?;
    let add = [
        "agent",
        "add",
        &id,
        "--boot-policy",
        "{}",
        "--runtime-policy",
        policy,
    ];
    fleet.trothctl(&add)?.success()?;
    narrator.detail(format!(
        "$ trothctl agent watch {} --until trusted",
        short(&id)
    ));
    let watch = [
        "agent",
        "watch",
        &id,
        "--until",
        "trusted",
        "--timeout",
        "30",
    ];
    narrator.detail(
        fleet
            .trothctl(&watch)?
            .success()?
            .stdout
            .replace(&id, &short(&id)),
    );
    let trusted = fleet.status(&id)?;
    ensure!(
        trusted["state"] == "trusted",
        "the node is {}",
        trusted["state"]
    );
    ensure!(
        trusted["has_boot_policy"] == true,
        "no boot policy is in force"
    );
    ensure!(
        trusted["findings"].as_array().is_none_or(Vec::is_empty),
        "trusted, with findings"
    );
    narrator.say("TRUSTED: the quote, the boot and every measured file are as they should be.");

    narrator.say(format!(
        "An unlisted program runs on the machine: {INTRUDER}"
    ));
    let ran = Instant::now();
    let digest = machine.run_program(INTRUDER, b"#!/bin/sh\nmine --all-night\n")?;
    let failed = fleet.wait_for_state(&id, "failed")?;
    let took = ran.elapsed();
    narrator.say(format!(
        "FAILED, {:.2} s later (interval {} s):",
        took.as_secs_f64(),
        INTERVAL.as_secs()
    ));
    check_finding(narrator, &failed, &digest)?;
    ensure!(
        took <= INTERVAL + SLACK,
        "that took longer than an interval"
    );

    narrator.say("What the operator sees:");
    narrator.detail(format!("$ trothctl agent status {}", short(&id)));
    let status = fleet.trothctl(&["agent", "status", &id])?.stdout;
    narrator.detail(status.replace(&id, &short(&id)));

    narrator.say("What it means, and what to run next:");
    narrator.detail(format!("$ trothctl agent explain {}", short(&id)));
    let explained = fleet.trothctl(&["agent", "explain", &id])?.stdout;
    ensure!(
        explained.contains("Run next:"),
        "the finding is not explained: {explained}"
    );
    narrator.detail(explained.replace(&id, &short(&id)));

    narrator.say("Everything stops.");
    for process in [agent.process(), fleet.verifier()] {
        let status = process.terminate()?;
        ensure!(status.success(), "a daemon did not stop cleanly: {status}");
    }
    let status = fleet.registrar().terminate()?;
    ensure!(
        status.success(),
        "the registrar did not stop cleanly: {status}"
    );
    let left = machine.tpm().client().loaded_objects()?;
    ensure!(
        left.is_empty(),
        "the agent left objects in the TPM: {left:x?}"
    );
    Ok(())
}

/// The id of the one agent that the registrar has.
fn only_registered(fleet: &Fleet) -> Result<String> {
    let start = Instant::now();
    loop {
        let list = fleet
            .trothctl(&["--json", "registrar", "list"])?
            .success()?
            .json()?;
        if let Some(id) = list["agents"][0].as_str() {
            fleet.wait_registered(id)?;
            return Ok(id.to_owned());
        }
        ensure!(
            start.elapsed() < Duration::from_secs(15),
            "the agent does not register"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The verdict's finding must name the file, the digest found, and what the policy had.
fn check_finding(narrator: &Narrator, node: &Value, digest: &str) -> Result<()> {
    let findings = node["findings"].as_array().context("no findings")?;
    ensure!(
        findings.len() == 1,
        "{} findings instead of one",
        findings.len()
    );
    let finding = &findings[0];
    let path = &finding["place"]["ima_entry"]["path"];
    ensure!(path == INTRUDER, "the finding is about {path}");
    let found = finding["got"].as_str().unwrap_or_default();
    ensure!(found.contains(digest), "the finding has the digest {found}");
    let expected = finding["expected"].as_array().context("no expectation")?;
    ensure!(
        expected.is_empty(),
        "the policy lists the file: {expected:?}"
    );
    narrator.detail(format!(
        "finding     {}",
        finding["id"].as_str().unwrap_or_default()
    ));
    narrator.detail(format!("file        {INTRUDER}"));
    narrator.detail(format!("found       {found}"));
    narrator.detail("policy has  nothing for this file");
    Ok(())
}

/// An id in a line that is to fit the terminal.
fn short(id: &str) -> String {
    let head: String = id.chars().take(12).collect();
    if head.len() < id.len() {
        format!("{head}...")
    } else {
        head
    }
}
