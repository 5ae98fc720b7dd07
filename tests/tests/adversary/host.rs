use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions};
use troth_tests::process::stable_port;

use crate::Stage;

/// A machine with a TPM of its own, booted, and our agent on it, registered.
pub(crate) struct Host {
    // Dropped from the top: the agent before its TPM.
    pub(crate) agent: Agent,
    pub(crate) machine: Machine,
    pub(crate) id: String,
    /// Where the verifier is told to find the agent.
    pub(crate) contact: u16,
}

impl Host {
    /// Nobody listens where the verifier looks for it yet: somebody may sit in the middle.
    pub(crate) fn start(stage: &Stage, id: &str) -> Self {
        let contact = stable_port().unwrap();
        let options = AgentOptions {
            contact_port: Some(contact),
            ..AgentOptions::with_id(id)
        };
        Self::with(stage, small(stage, id), contact, &options)
    }

    /// The verifier finds it without a detour, and trusts it.
    pub(crate) fn trusted(stage: &Stage, id: &str) -> Self {
        Self::trusted_on(stage, small(stage, id), id)
    }

    /// As [`Host::trusted`], on a machine that has booted as captured and may do so again.
    pub(crate) fn booted(stage: &Stage, id: &str) -> Self {
        let machine = Machine::booted(&stage.path().join("machine")).unwrap();
        Self::trusted_on(stage, machine, id)
    }

    fn trusted_on(stage: &Stage, machine: Machine, id: &str) -> Self {
        let host = Self::with(stage, machine, 0, &AgentOptions::with_id(id));
        host.enrol(stage);
        stage.operator.wait_for_state(id, "trusted");
        host
    }

    fn with(stage: &Stage, machine: Machine, contact: u16, options: &AgentOptions) -> Self {
        let agent = Agent::start(
            &stage.programs,
            &stage.path().join(&options.id),
            &machine,
            stage.fleet.registrar_port(),
            &stage.fleet.ca_dir(),
            options,
        )
        .unwrap();
        stage.fleet.wait_registered(&options.id).unwrap();
        Self {
            agent,
            machine,
            id: options.id.clone(),
            contact,
        }
    }

    /// `trothctl agent add`, with a policy of what the machine runs now.
    pub(crate) fn enrol(&self, stage: &Stage) {
        let policy = self.machine.write_runtime_policy().unwrap();
        stage.fleet.add(&self.id, &policy).unwrap();
    }
}

/// A machine that has run three programs since it was switched on, and logged no boot: a captured
/// boot has some thousand measurements, and few cases need them.
fn small(stage: &Stage, id: &str) -> Machine {
    let machine = Machine::manufacture(&stage.path().join(format!("machine-{id}"))).unwrap();
    std::fs::write(machine.ima_list(), "").unwrap();
    for path in ["/usr/bin/a", "/usr/bin/b", "/usr/bin/c"] {
        machine.run_program(path, path.as_bytes()).unwrap();
    }
    machine
}
