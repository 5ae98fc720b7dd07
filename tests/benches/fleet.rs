//! `cargo xtask bench fleet`: what verifier, registrar and trothctl cost, beside Keylime's under
//! the same load in the same run. Prints a table; asserts nothing but that the load was taken.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use troth_tests::{
    fleet::{Fleet, Programs},
    keylime::Keylime,
    process::{Process, output_of, stable_port},
    usage::{Usage, children_cpu},
};

/// Nodes of ours under each measurement of CPU time, and how often each is asked.
const NODES: usize = 1000;
const INTERVAL: Duration = Duration::from_secs(2);
/// Nodes of Keylime's, which asks each once a second: its verifier stays below one core.
const THEIR_NODES: usize = 20;
/// With 30,000 digests it takes ten times as long.
const THEIR_NODES_WITH_POLICY: usize = 4;
/// Seconds that each measurement takes.
const DURATION: &str = "20";
/// Digests of the policy, and new entries of each answer.
const POLICY: [&str; 4] = ["--policy", "30000", "--entries", "10"];
/// Nodes whose memory is compared, and how often each is asked meanwhile.
const FEW: usize = 2000;
const MANY: usize = 5000;
const SLOW: Duration = Duration::from_secs(10);
/// Agents registered at our registrar and at Keylime's.
const AGENTS: usize = 2000;
const THEIR_AGENTS: usize = 200;
/// Runs of trothctl.
const RUNS: u32 = 50;
/// Until a server that has just started needs no more memory.
const SETTLE: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    // `cargo xtask bench` builds the programs and says where they are.
    let programs = std::env::var_os("TROTH_BENCH_PROGRAMS")
        .context("TROTH_BENCH_PROGRAMS is not set: run `cargo xtask bench`")?;
    let directory = tempfile::tempdir()?;
    let mut bench = Bench {
        programs: Programs::in_directory(Path::new(&programs)),
        directory: directory.path().to_owned(),
        rows: Vec::new(),
        fleets: 0,
    };
    let issuer = bench.directory.join("issuer.pem");
    let certificate = CertificateParams::default().self_signed(&KeyPair::generate()?)?;
    fs::write(&issuer, certificate.pem())?;
    let place = bench.directory.join("keylime");
    fs::create_dir_all(&place)?;
    let keylime = Keylime::start(&place, &issuer)?;

    bench.idle(&keylime)?;
    bench.registration(&keylime)?;
    bench.attestation(&keylime)?;
    bench.command_line()?;
    bench.memory()?;
    bench.print();
    Ok(())
}

struct Bench {
    programs: Programs,
    directory: PathBuf,
    rows: Vec<[String; 5]>,
    fleets: usize,
}

impl Bench {
    fn idle(&mut self, keylime: &Keylime) -> Result<()> {
        let mut fleet = self.fleet(INTERVAL)?;
        sleep(SETTLE);
        let [their_verifier, their_registrar] = keylime.pids();
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let ours = |pid| Ok::<_, anyhow::Error>(megabytes(Usage::of(pid)?.resident));
        let theirs = |pid| Ok::<_, anyhow::Error>(megabytes(Usage::of(pid)?.proportional));
        let (verifier, registrar) = (ours(fleet.verifier().id())?, ours(fleet.registrar().id())?);
        self.row(
            "verifier, idle memory",
            verifier,
            Some(theirs(their_verifier)?),
            "MB",
            "<= 12 MB",
        );
        let their_registrar = theirs(their_registrar)?;
        self.row(
            "registrar, idle memory",
            registrar,
            Some(their_registrar),
            "MB",
            "<= 8 MB",
        );
        Ok(())
    }

    fn registration(&mut self, keylime: &Keylime) -> Result<()> {
        // Not the fleet's: all these agents come from one address.
        let place = self.directory.join("registrar");
        fs::create_dir_all(&place)?;
        let (port, tls_port) = (stable_port()?, stable_port()?);
        let state = place.join("state");
        let text = format!(
            "state_dir = {state:?}\nport = {port}\ntls_port = {tls_port}\nsource_rate_limit = 0\n"
        );
        fs::write(place.join("registrar.toml"), text)?;
        let mut command = self.programs.command("troth-registrar")?;
        command.arg("--config").arg(place.join("registrar.toml"));
        let mut registrar = Process::start("troth-registrar", &place, &mut command)?;
        registrar.wait_for_log(0, |log| log.contains("listening on").then_some(()))?;

        let register = |port: u16, pid: u32, agents: usize| {
            let figures = self.load(&[
                "register",
                "--registrar",
                &format!("127.0.0.1:{port}"),
                "--pid",
                &pid.to_string(),
                "--agents",
                &agents.to_string(),
            ])?;
            number(&figures, "cpu_ms_per_agent")
        };
        let [_, their_pid] = keylime.pids();
        let ours = register(port, registrar.id(), AGENTS)?;
        let theirs = register(keylime.registrar_port(), their_pid, THEIR_AGENTS)?;
        self.row(
            "registrar, CPU to register and activate",
            ours,
            Some(theirs),
            "ms",
            "<= 0.7 ms",
        );
        Ok(())
    }

    fn attestation(&mut self, keylime: &Keylime) -> Result<()> {
        for (what, arguments, theirs, goal) in [
            ("no IMA, RSA AK", &[][..], THEIR_NODES, "<= 100 us"),
            ("no IMA, P-256 AK", &["--key", "ecc256"], THEIR_NODES, ""),
            (
                "10 new entries, 30,000 digests, RSA AK",
                &POLICY,
                THEIR_NODES_WITH_POLICY,
                "<= 120 us",
            ),
        ] {
            let mut fleet = self.fleet(INTERVAL)?;
            let ours = self.attest_ours(&mut fleet, NODES, arguments)?;
            let theirs = self.attest_theirs(keylime, theirs, arguments)?;
            let [ours, theirs] =
                [&ours, &theirs].map(|figures| number(figures, "cpu_us_per_answer"));
            let what = format!("verifier, CPU per attestation: {what}");
            self.row(&what, ours?, Some(theirs?), "us", goal);
        }
        Ok(())
    }

    /// What an operator's command costs; the node that it shows stays behind. Keylime's tenant runs
    /// in a process that is started once, so there is nothing to compare.
    fn command_line(&mut self) -> Result<()> {
        let mut fleet = self.fleet(INTERVAL)?;
        self.attest_ours(&mut fleet, 1, &["--keep", "--prefix", "shown"])?;
        let id = "shown-000000";
        let before = children_cpu()?;
        for _ in 0..RUNS {
            // By now the node does not answer any more, which its exit status says.
            let shown = fleet.trothctl(&["agent", "status", id])?.stdout;
            ensure!(shown.contains(id), "trothctl does not show {id}: {shown}");
        }
        let each = (children_cpu()? - before).as_secs_f64() * 1e3 / f64::from(RUNS);
        let what = "status of a node, CPU of the command";
        self.row(what, each, None, "ms", "<= 15 ms");
        Ok(())
    }

    fn memory(&mut self) -> Result<()> {
        let mut resident = Vec::new();
        let mut enrolment = 0.0;
        for nodes in [FEW, MANY] {
            let mut fleet = self.fleet(SLOW)?;
            let figures = self.attest_ours(&mut fleet, nodes, &[])?;
            resident.push(number(&figures, "resident_bytes")?);
            enrolment = number(&figures, "enrolment_cpu_ms")?;
        }
        let what = "verifier, CPU to enrol a node, its first attestation included";
        self.row(what, enrolment, None, "ms", "<= 2 ms");
        let each = (resident[1] - resident[0]) / (MANY - FEW) as f64 / 1024.0;
        self.row(
            "verifier, memory per attested node",
            each,
            None,
            "KiB",
            "<= 48 KiB",
        );
        let whole = resident[1] / 1e6;
        self.row("verifier, memory with 5,000 nodes", whole, None, "MB", "");
        Ok(())
    }

    /// A registrar and a verifier that nobody has used yet.
    fn fleet(&mut self, interval: Duration) -> Result<Fleet> {
        self.fleets += 1;
        let place = self.directory.join(format!("fleet-{}", self.fleets));
        Fleet::start(&self.programs, &place, interval)
    }

    fn attest_ours(&self, fleet: &mut Fleet, nodes: usize, arguments: &[&str]) -> Result<Value> {
        let (port, pid) = (fleet.verifier_port(), fleet.verifier().id());
        self.attest(port, pid, &fleet.ca_dir(), nodes, arguments)
    }

    fn attest_theirs(&self, keylime: &Keylime, nodes: usize, arguments: &[&str]) -> Result<Value> {
        let [pid, _] = keylime.pids();
        self.attest(
            keylime.verifier_port(),
            pid,
            &keylime.ca_dir(),
            nodes,
            arguments,
        )
    }

    fn attest(
        &self,
        port: u16,
        pid: u32,
        ca_dir: &Path,
        nodes: usize,
        arguments: &[&str],
    ) -> Result<Value> {
        let (verifier, pid, count) = (
            format!("127.0.0.1:{port}"),
            pid.to_string(),
            nodes.to_string(),
        );
        let ca_dir = ca_dir
            .to_str()
            .context("a temporary directory with an odd name")?;
        let mut all = vec![
            "attest",
            "--verifier",
            &verifier,
            "--pid",
            &pid,
            "--ca-dir",
            ca_dir,
        ];
        all.extend(["--nodes", &count, "--duration", DURATION]);
        all.extend(arguments);
        let figures = self.load(&all)?;
        ensure!(
            figures["attested"] == nodes,
            "not all of {nodes} nodes were attested: {figures:#}"
        );
        Ok(figures)
    }

    fn load(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = self.programs.command("troth-load")?;
        let figures = output_of(command.args(arguments).arg("--json"))?;
        println!("troth-load {}: {}", arguments.join(" "), figures.trim());
        Ok(serde_json::from_str(&figures)?)
    }

    fn row(&mut self, what: &str, ours: f64, theirs: Option<f64>, unit: &str, goal: &str) {
        let shown = |value: f64| match value {
            small if small < 10.0 => format!("{small:.2} {unit}"),
            large => format!("{large:.0} {unit}"),
        };
        self.rows.push([
            what.to_owned(),
            shown(ours),
            theirs.map(shown).unwrap_or_default(),
            theirs
                .map(|theirs| format!("{:.0}", theirs / ours))
                .unwrap_or_default(),
            goal.to_owned(),
        ]);
    }

    fn print(&self) {
        println!("| what | Troth | Keylime | ratio | goal |");
        println!("| --- | --- | --- | --- | --- |");
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
    }
}

fn number(figures: &Value, name: &str) -> Result<f64> {
    figures[name]
        .as_f64()
        .with_context(|| format!("no {name} in {figures:#}"))
}
