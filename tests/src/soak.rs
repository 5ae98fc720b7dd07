use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::api::Api;
use crate::boot::Machine;
use crate::fleet::{Agent, AgentOptions, Fleet, Programs};
use crate::keylime::Keylime;
use crate::process::PATIENCE;

const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c0ffee";

/// Time between two quotes.
const QUOTE_INTERVAL: Duration = Duration::from_secs(1);

/// Time that one attestation after the other takes at most, on average: interval and work, on a
/// machine that has other things to do.
const SLOWEST: Duration = Duration::from_secs(3);

/// Time between two programs that run for the first time: several per quote.
const PROGRAM_INTERVAL: Duration = Duration::from_millis(200);

/// What no policy lists.
const INTRUDER: &str = "/usr/local/bin/miner";

/// Keylime's number of the state of an agent that failed (`Invalid Quote`).
const INVALID_QUOTE: u64 = 9;

/// Registrar and verifier of a long run; the agent is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Keylime's.
    Keylime,
    /// This workspace's.
    Ours,
}

/// How long, and what happens meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Time without a fault; the intruder comes after it.
    pub duration: Duration,
    /// The agent is stopped and started again that often.
    pub restart_every: Duration,
    /// The machine is rebooted that often.
    pub reboot_every: Duration,
}

/// What a run has seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Good attestations, as the verifier counts them.
    pub attestations: u64,
    /// Those of them that were made while the agent ran undisturbed.
    pub undisturbed: u64,
    /// For how long it did: all but restarts and reboots, until it was attested twice after each.
    pub calm: Duration,
    /// Questions without an answer, around restarts and reboots.
    pub unanswered: usize,
    /// Entries that the IMA list got while it was attested.
    pub entries: u64,
    /// Restarts of the agent, reboots not counted.
    pub restarts: u64,
    /// Reboots of the machine.
    pub reboots: u64,
}

/// Attests one machine every second while it runs new programs all the time; then an intruder's
/// runs and must be found. `progress` is called every second. An error is the first thing that was
/// not as it should be: a finding; a question without an answer while the agent ran undisturbed;
/// fewer attestations meanwhile than one in three seconds.
pub fn run(
    programs: &Programs,
    directory: &Path,
    side: Side,
    plan: &Plan,
    mut progress: impl FnMut(Duration, &Tally),
) -> Result<Tally> {
    let mut stage = Stage::start(programs, directory, side, plan)?;
    let start = Instant::now();
    let mut tally = Tally::default();
    let mut watch = Watch::new(start);
    let mut next_status = start;
    let (mut next_restart, mut next_reboot) =
        (start + plan.restart_every, start + plan.reboot_every);
    while start.elapsed() < plan.duration {
        let tick = Instant::now();
        if tick >= next_reboot {
            stage.reboot()?;
            tally.reboots += 1;
            next_reboot = Instant::now() + plan.reboot_every;
            watch.disturbed();
        } else if tick >= next_restart {
            stage.restart_agent()?;
            tally.restarts += 1;
            next_restart = Instant::now() + plan.restart_every;
            watch.disturbed();
        }
        stage.run_listed_program(tally.entries)?;
        tally.entries += 1;
        if tick >= next_status {
            next_status = tick + QUOTE_INTERVAL;
            let node = stage.node()?;
            let unanswered = stage.unanswered();
            watch
                .look(tick, &node, unanswered, &mut tally)
                .with_context(|| format!("{node:#}\n{}", stage.servers.logs()))?;
            progress(start.elapsed(), &tally);
        }
        std::thread::sleep(PROGRAM_INTERVAL.saturating_sub(tick.elapsed()));
    }
    let expected = tally.calm.as_secs() / SLOWEST.as_secs();
    ensure!(
        tally.undisturbed >= expected.max(1),
        "too few attestations: {tally:?}"
    );
    stage.find_intruder()?;
    Ok(tally)
}

/// What is said of the machine, look by look.
#[derive(Debug)]
struct Watch {
    /// The last look, and the last one that saw another attestation.
    last: Instant,
    advanced: Instant,
    /// With so many attestations the agent is undisturbed again; `None`: the next look decides.
    calm_at: Option<u64>,
}

impl Watch {
    /// At the enrolment, which is a disturbance too.
    fn new(now: Instant) -> Self {
        Self {
            last: now,
            advanced: now,
            calm_at: None,
        }
    }

    fn disturbed(&mut self) {
        self.calm_at = None;
    }

    fn look(
        &mut self,
        now: Instant,
        node: &Value,
        unanswered: usize,
        tally: &mut Tally,
    ) -> Result<()> {
        ensure!(
            node["operational_state"] != INVALID_QUOTE && node["last_event_id"].is_null(),
            "a good machine was found to be bad"
        );
        let attestations = node["attestation_count"].as_u64().unwrap_or(0);
        let more = attestations.saturating_sub(tally.attestations);
        let since = now.duration_since(std::mem::replace(&mut self.last, now));
        // The first attestation after a disturbance may have begun before it.
        let calm_at = *self.calm_at.get_or_insert(attestations + 2);
        if tally.attestations >= calm_at {
            ensure!(
                unanswered == tally.unanswered && node["troth"]["state"] != "unreachable",
                "a question went unanswered, and nothing had been done to the agent"
            );
            tally.undisturbed += more;
            tally.calm += since;
        }
        tally.unanswered = unanswered;
        if more > 0 {
            tally.attestations = attestations;
            self.advanced = now;
        }
        ensure!(
            now.duration_since(self.advanced) < PATIENCE,
            "no attestation for {PATIENCE:?}"
        );
        Ok(())
    }
}

/// The servers of either side.
#[derive(Debug)]
enum Servers {
    Keylime(Keylime),
    Ours(Fleet),
}

impl Servers {
    fn start(programs: &Programs, directory: &Path, side: Side, machine: &Machine) -> Result<Self> {
        Ok(match side {
            Side::Keylime => Self::Keylime(Keylime::start(directory, &machine.tpm().ek_issuer())?),
            Side::Ours => Self::Ours(Fleet::start(programs, directory, QUOTE_INTERVAL)?),
        })
    }

    fn registrar_port(&self) -> u16 {
        match self {
            Self::Keylime(keylime) => keylime.registrar_port(),
            Self::Ours(fleet) => fleet.registrar_port(),
        }
    }

    fn verifier_port(&self) -> u16 {
        match self {
            Self::Keylime(keylime) => keylime.verifier_port(),
            Self::Ours(fleet) => fleet.verifier_port(),
        }
    }

    fn ca_dir(&self) -> PathBuf {
        match self {
            Self::Keylime(keylime) => keylime.ca_dir(),
            Self::Ours(fleet) => fleet.ca_dir(),
        }
    }

    fn add(&self, id: &str, policy: &Path) -> Result<()> {
        match self {
            Self::Ours(fleet) => fleet.add(id, policy),
            Self::Keylime(keylime) => {
                let policy = policy.to_str().context("a directory with an odd name")?;
                let add = ["-c", "add", "-u", id, "--runtime-policy", policy];
                keylime.tenant(&add).map(drop)
            }
        }
    }

    /// For an error; our servers' are shown by their owner.
    fn logs(&self) -> String {
        match self {
            Self::Keylime(keylime) => keylime.logs(),
            Self::Ours(_) => String::new(),
        }
    }
}

/// A machine under attestation.
#[derive(Debug)]
struct Stage {
    // Dropped from the top: daemons before the TPM.
    agent: Agent,
    servers: Servers,
    verifier: Api,
    machine: Machine,
}

impl Stage {
    fn start(programs: &Programs, directory: &Path, side: Side, plan: &Plan) -> Result<Self> {
        let machine = Machine::booted(&directory.join("machine"))?;
        let place = directory.join("servers");
        fs::create_dir_all(&place)?;
        let servers = Servers::start(programs, &place, side, &machine)?;
        let agent = Agent::start(
            programs,
            &directory.join("agent"),
            &machine,
            servers.registrar_port(),
            &servers.ca_dir(),
            &AgentOptions::with_id(ID),
        )?;
        let mut policy = machine.runtime_policy()?;
        let count = plan.duration.as_millis() / PROGRAM_INTERVAL.as_millis() + 1;
        for number in 0..u64::try_from(count)? {
            let (path, content) = listed_program(number);
            let allowed = hex::encode(digest(&SHA256, content.as_bytes()));
            policy["digests"][path] = json!([allowed]);
        }
        let file = directory.join("soak-policy.json");
        fs::write(&file, policy.to_string())?;
        servers.add(ID, &file)?;
        let verifier = Api::operator(servers.verifier_port(), &servers.ca_dir())?;
        Ok(Self {
            agent,
            servers,
            verifier,
            machine,
        })
    }

    fn run_listed_program(&self, number: u64) -> Result<()> {
        let (path, content) = listed_program(number);
        self.machine.run_program(&path, content.as_bytes())?;
        Ok(())
    }

    /// The verifier's view; of a running verifier, so that an error here ends the run.
    fn node(&self) -> Result<Value> {
        let mut answer = self.verifier.get(&format!("/v2.6/agents/{ID}"))?;
        ensure!(answer.status == 200, "the verifier answers {answer:?}");
        Ok(answer.body["results"].take())
    }

    /// Questions that got no quote so far, as the logs have them.
    fn unanswered(&mut self) -> usize {
        let agents = self.agent.process().log();
        let refused = ["no quote: ", "no evidence: "].map(|words| agents.matches(words).count());
        let missed = match &self.servers {
            Servers::Keylime(keylime) => keylime.logs().matches(" refused after ").count(),
            // Ours say so of the node.
            Servers::Ours(_) => 0,
        };
        refused.iter().sum::<usize>() + missed
    }

    fn restart_agent(&mut self) -> Result<()> {
        self.agent.process().terminate()?;
        // Long enough to be missed.
        std::thread::sleep(QUOTE_INTERVAL * 2);
        self.agent.start_again()
    }

    fn reboot(&mut self) -> Result<()> {
        self.agent.process().terminate()?;
        self.machine.boot()?;
        self.agent.start_again()
    }

    fn find_intruder(&self) -> Result<()> {
        self.machine.run_program(INTRUDER, b"mine\n")?;
        let start = Instant::now();
        loop {
            let node = self.node()?;
            if node["operational_state"] == INVALID_QUOTE {
                return Ok(());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "{INTRUDER} ran and was not found: {node:#}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Path and content of one of the programs that the policy lists.
fn listed_program(number: u64) -> (String, String) {
    (format!("/opt/soak/bin/{number}"), format!("{number}\n"))
}
