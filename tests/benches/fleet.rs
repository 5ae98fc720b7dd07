//! `cargo xtask bench fleet`: what verifier, registrar, agent and trothctl cost, beside Keylime's
//! under the same load in the same run. Prints a table; asserts nothing but that the load was taken.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use troth_daemon::tls::{Identity, ServerTrust, certificates_from_pem, client_config};
use troth_tests::{
    api::Api,
    boot::Machine,
    fleet::{Agent, AgentOptions, Fleet, Programs},
    keylime::{Keylime, KeylimeAgent},
    process::{Process, output_of, stable_port},
    usage::{Usage, children_cpu, wake_ups},
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
/// Runs of trothctl, and of Keylime's tenant.
const RUNS: u32 = 50;
const THEIR_RUNS: u32 = 5;
/// Identity quotes of each agent: CPU time is counted in steps of 10 ms.
const QUOTES: u32 = 200;
const THEIR_ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00001";
/// Until a server that has just started needs no more memory.
const SETTLE: Duration = Duration::from_secs(3);
const MINUTE: Duration = Duration::from_secs(60);

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
    let mut keylime = Keylime::start(&place, &issuer)?;

    bench.idle(&keylime)?;
    bench.registration(&keylime)?;
    bench.attestation(&keylime)?;
    bench.command_line(&mut keylime)?;
    bench.agents()?;
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

    /// What an operator's command costs; the node that it shows stays behind.
    fn command_line(&mut self, keylime: &mut Keylime) -> Result<()> {
        let mut fleet = self.fleet(INTERVAL)?;
        let keep = ["--keep", "--prefix", "shown"];
        self.attest_ours(&mut fleet, 1, &keep)?;
        self.attest_theirs(keylime, 1, &keep)?;
        let id = "shown-000000";
        // By now the node does not answer any more, which our exit status says.
        let status = ["agent", "status", id];
        let ours = cpu_of_each(RUNS, id, || Ok(fleet.trothctl(&status)?.stdout))?;
        let tenant = keylime.operator();
        let status = ["-c", "cvstatus", "-u", id];
        let theirs = cpu_of_each(THEIR_RUNS, id, || tenant.run_alone(&status))?;
        let what = "status of a node, CPU of the command";
        self.row(what, ours, Some(theirs), "ms", "<= 15 ms");
        Ok(())
    }

    /// Our agent, and the last of Keylime's that is on PyPI, each on a TPM of its own.
    fn agents(&mut self) -> Result<()> {
        let fleet = self.fleet(INTERVAL)?;
        let [machine, other] = ["machine", "other-machine"]
            .map(|name| Machine::manufacture(&self.directory.join(name)));
        let (machine, other) = (machine?, other?);
        for machine in [&machine, &other] {
            fs::write(machine.ima_list(), "")?;
            fs::write(machine.boot_log(), "")?;
        }
        let (registrar, ca_dir) = (fleet.registrar_port(), fleet.ca_dir());
        let place = self.directory.join("agent");
        let options = AgentOptions::with_id("ours");
        let mut ours = Agent::start(
            &self.programs,
            &place,
            &machine,
            registrar,
            &ca_dir,
            &options,
        )?;
        let place = self.directory.join("their-agent");
        let mut theirs = KeylimeAgent::start(&place, &other, THEIR_ID, registrar, &ca_dir)?;
        let (port, pid) = (ours.address().port(), ours.process().id());
        let our_cost = AgentCost::measure(&fleet, "ours", port, pid)?;
        let (port, pid) = (theirs.address().port(), theirs.process().id());
        let their_cost = AgentCost::measure(&fleet, THEIR_ID, port, pid)?;
        sleep(SETTLE);
        let pids = [ours.process().id(), theirs.process().id()];
        let woken = |of: usize| Ok::<_, anyhow::Error>(wake_ups(pids[of])? as f64);
        let before = [woken(0)?, woken(1)?];
        sleep(MINUTE);
        let in_a_minute = [woken(0)? - before[0], woken(1)? - before[1]];
        let ours = our_cost.idle.resident as f64 / 1e6;
        let theirs = their_cost.idle.proportional as f64 / 1e6;
        self.row("agent, idle memory", ours, Some(theirs), "MB", "<= 8 MB");
        let [ours, theirs] = in_a_minute;
        let what = "agent, wake-ups of all threads in an idle minute";
        self.row(
            what,
            ours,
            Some(theirs),
            "",
            "none but to look after its TPM",
        );
        let (ours, theirs) = (our_cost.quote, Some(their_cost.quote));
        let what = "agent, CPU per identity quote";
        self.row(what, ours, theirs, "ms", "<= 0.4 ms");
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

/// What an agent takes, with the programs that it starts, and without what stands between it and
/// its TPM.
struct AgentCost {
    /// After its registration.
    idle: Usage,
    /// CPU time of an identity quote over a kept connection, in ms.
    quote: f64,
}

impl AgentCost {
    fn measure(fleet: &Fleet, id: &str, port: u16, pid: u32) -> Result<Self> {
        let record = fleet.wait_registered(id)?;
        ensure!(record["port"] == port, "another agent: {record:#}");
        sleep(SETTLE);
        let idle = Usage::of(pid)?;
        let registrar = Api::operator(fleet.registrar_tls_port(), &fleet.ca_dir())?;
        let record = registrar.get(&format!("/v2.6/agents/{id}"))?;
        let pem = record.body["results"]["mtls_cert"].as_str();
        let pem = pem.context("an agent without a certificate")?;
        let certificate = certificates_from_pem(pem.as_bytes())?.remove(0);
        let identity = Identity::load(
            &fleet.ca_dir().join("client-cert.crt"),
            &fleet.ca_dir().join("client-private.pem"),
        )?;
        let tls = client_config(ServerTrust::Pinned(certificate), Some(&identity))?;
        let agent = Api::over(port, Some(tls))?;
        for _ in 0..QUOTES {
            let answer = agent.get("/v2.1/quotes/identity?nonce=abcdefghij0123456789")?;
            ensure!(answer.status == 200, "no quote: {answer:?}");
        }
        let cpu = (Usage::of(pid)?.cpu - idle.cpu).as_secs_f64() * 1e3;
        Ok(Self {
            idle,
            quote: cpu / f64::from(QUOTES),
        })
    }
}

/// CPU time in ms of each of so many runs of a command that shows the node `id`.
fn cpu_of_each(runs: u32, id: &str, run: impl Fn() -> Result<String>) -> Result<f64> {
    let before = children_cpu()?;
    for _ in 0..runs {
        let shown = run()?;
        ensure!(shown.contains(id), "{id} is not shown: {shown}");
    }
    Ok((children_cpu()? - before).as_secs_f64() * 1e3 / f64::from(runs))
}

fn number(figures: &Value, name: &str) -> Result<f64> {
    figures[name]
        .as_f64()
        .with_context(|| format!("no {name} in {figures:#}"))
}
