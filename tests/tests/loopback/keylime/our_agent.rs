use std::fs;

use serde_json::{Value, json};
use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions, Programs};
use troth_tests::keylime::Keylime;
use troth_tests::tpm::Bank;

const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000";

/// Our agents that serve Keylime's servers.
struct Site {
    // Dropped from the top: daemons before TPMs, everything before the files.
    keylime: Keylime,
    machine: Machine,
    directory: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine::booted(&directory.path().join("machine")).unwrap();
        let place = directory.path().join("keylime");
        let keylime = Keylime::start(&place, &machine.tpm().ek_issuer()).unwrap();
        Self {
            keylime,
            machine,
            directory,
        }
    }

    /// It listens once it is registered and activated.
    fn agent(&self, machine: &Machine, options: &AgentOptions) -> Agent {
        Agent::start(
            &Programs::beside_this().unwrap(),
            &self.directory.path().join(&options.id),
            machine,
            self.keylime.registrar_port(),
            &self.keylime.ca_dir(),
            options,
        )
        .unwrap()
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn tenant(&self, arguments: &[&str]) -> String {
        self.keylime.tenant(arguments).unwrap()
    }

    fn status(&mut self, id: &str) -> Value {
        self.keylime.operator().status(id).unwrap()
    }

    fn is_attested(&self, id: &str) {
        let node = self.keylime.wait_for_attestations(id, 2).unwrap();
        assert_eq!(node["operational_state"], 3, "{node:#}");
        assert_eq!(node["last_event_id"], Value::Null, "{node:#}");
    }

    fn fails_for(&self, id: &str, event: &str) {
        let node = self.keylime.wait_for_state(id, "Invalid Quote").unwrap();
        assert_eq!(node["last_event_id"], event, "{node:#}");
    }
}

fn policy(machine: &Machine) -> String {
    let policy = machine.write_runtime_policy().unwrap();
    policy.to_str().unwrap().to_owned()
}

/// The proof that our formats are Keylime's: registration, EK certificate, identity quote, payload
/// shares, integrity quotes with the IMA list and the boot log, and a finding, through every
/// command that Keylime's tenant has for an agent.
#[test]
fn keylime_runs_the_whole_life_of_our_agent() {
    let mut site = Site::new();
    let agent = site.agent(&site.machine, &AgentOptions::with_id(ID));
    let runtime_policy = policy(&site.machine);

    // Registered, not enrolled.
    let record = &site
        .keylime
        .operator()
        .json(&["-c", "regstatus", "-u", ID])
        .unwrap()[ID];
    assert_eq!(record["operational_state"], "Registered");
    assert_eq!(record["port"], agent.address().port());
    assert_eq!(record["regcount"], 1);

    // Files, the boot, and a payload whose key the agent must prove to have derived.
    let (boot_policy, payload) = (site.file("mb.json", "{}"), site.file("payload", "secret\n"));
    let add = [
        "--runtime-policy",
        &runtime_policy,
        "--mb-policy",
        &boot_policy,
        "-f",
        &payload,
        "--verify",
    ];
    let added = site.tenant(&[&["-c", "add", "-u", ID], &add[..]].concat());
    let told = format!("Agent {ID} ({}) added to Verifier", agent.address());
    assert!(added.contains(&told), "{added}");
    site.is_attested(ID);
    let node = site.status(ID);
    for (member, value) in [
        ("has_mb_refstate", json!(1)),
        ("has_runtime_policy", json!(1)),
        ("hash_alg", json!("sha256")),
        ("enc_alg", json!("rsa2048")),
        ("sign_alg", json!("rsassa")),
        ("attestation_status", json!("PASS")),
    ] {
        assert_eq!(node[member], value, "{node:#}");
    }
    assert_eq!(
        site.keylime
            .operator()
            .json(&["-c", "status", "-u", ID])
            .unwrap()[ID]["ip"],
        "127.0.0.1"
    );
    let list = site.keylime.operator().json(&["-c", "cvlist"]).unwrap();
    assert_eq!(list, json!({"uuids": [[ID]]}));
    let bulk = site.keylime.operator().json(&["-c", "bulkinfo"]).unwrap();
    assert_eq!(bulk[ID]["operational_state"], "Get Quote", "{bulk:#}");

    // A PCR with the right value, then with a wrong one, then without: `update` each time.
    let value = site.machine.tpm().client().read(Bank::Sha256, 7).unwrap();
    let right = json!({"7": [hex::encode(value)]}).to_string();
    site.tenant(&["-c", "update", "-u", ID, "--tpm_policy", &right]);
    site.is_attested(ID);
    let wrong = json!({"7": ["0".repeat(64)]}).to_string();
    site.tenant(&["-c", "update", "-u", ID, "--tpm_policy", &wrong]);
    site.fails_for(ID, "pcr_validation.invalid_pcr_7");
    site.tenant(&[
        "-c",
        "update",
        "-u",
        ID,
        "--runtime-policy",
        &runtime_policy,
    ]);
    site.is_attested(ID);

    // Asked anew on the operator's word.
    let told = site.tenant(&["-c", "reactivate", "-u", ID]);
    assert!(told.contains(&format!("Agent {ID} re-activated")), "{told}");
    let before = site.status(ID)["attestation_count"].as_u64().unwrap();
    site.keylime.wait_for_attestations(ID, before + 1).unwrap();

    site.machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    site.fails_for(ID, "ima.validation.ima-ng.not_in_allowlist");
    let found = "File not found in allowlist: /usr/local/bin/miner";
    assert!(site.keylime.logs().contains(found));

    site.tenant(&["-c", "delete", "-u", ID]);
    let list = site.keylime.operator().json(&["-c", "cvlist"]).unwrap();
    assert_eq!(list, json!({"uuids": []}));
    site.tenant(&["-c", "regdelete", "-u", ID]);
    let refused = site
        .keylime
        .operator()
        .refused(&["-c", "regstatus", "-u", ID])
        .unwrap();
    assert!(refused.contains(ID), "{refused}");
}

/// AKs on NIST curves. swtpm certifies its P-384 EK; the P-256 one has no certificate.
#[test]
fn keylime_attests_aks_on_both_curves() {
    let mut site = Site::new();
    let other = Machine::booted(&site.directory.path().join("machine-384")).unwrap();
    site.keylime
        .operator()
        .trust_ek_issuer("other", &other.tpm().ek_issuer())
        .unwrap();
    let (p256, p384) = (
        "d432fbb3-d2f1-4a97-9ef7-75bd81c00256",
        "d432fbb3-d2f1-4a97-9ef7-75bd81c00384",
    );
    let options = |id: &str, key: &str| AgentOptions {
        key: key.to_owned(),
        ..AgentOptions::with_id(id)
    };
    let _agent_256 = site.agent(&site.machine, &options(p256, "ecc256"));
    let _agent_384 = site.agent(&other, &options(p384, "ecc384"));
    let boot_policy = site.file("mb.json", "{}");
    let policies = [policy(&site.machine), policy(&other)];
    for (id, policy, certified) in [(p256, &policies[0], false), (p384, &policies[1], true)] {
        site.keylime.operator().require_ek_certificates(certified);
        site.tenant(&[
            "-c",
            "add",
            "-u",
            id,
            "--runtime-policy",
            policy,
            "--mb-policy",
            &boot_policy,
        ]);
    }
    for (id, key) in [(p256, "ecc256"), (p384, "ecc384")] {
        site.is_attested(id);
        assert_eq!(site.status(id)["enc_alg"], key);
        assert_eq!(site.status(id)["sign_alg"], "ecdsa");
    }
    other
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    site.fails_for(p384, "ima.validation.ima-ng.not_in_allowlist");
    assert_eq!(site.status(p256)["operational_state"], "Get Quote");
}
