use std::fs;

use serde_json::{Value, json};
use troth_tests::fleet::AgentOptions;
use troth_tests::keylime::{Servers, Tenant};
use troth_tests::tpm::Bank;

use crate::Stage;

const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00002";

/// Everything is ours but the operator's tool.
struct Site {
    tenant: Tenant,
    stage: Stage,
}

impl Site {
    fn new() -> Self {
        let stage = Stage::new();
        let ca_dir = stage.fleet.ca_dir();
        let servers = Servers {
            verifier_port: stage.fleet.verifier_port(),
            registrar_tls_port: stage.fleet.registrar_tls_port(),
            ca_dir: &ca_dir,
        };
        let place = stage.path().join("tenant");
        let tenant = Tenant::new(&place, servers, &stage.machine.tpm().ek_issuer()).unwrap();
        Self { tenant, stage }
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.stage.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn is_attested(&self) {
        let node = self.tenant.wait_for_attestations(ID, 2).unwrap();
        assert_eq!(node["operational_state"], 3, "{node:#}");
        assert_eq!(node["last_event_id"], Value::Null, "{node:#}");
    }

    fn fails_for(&self, event: &str) {
        let node = self.tenant.wait_for_state(ID, "Invalid Quote").unwrap();
        assert_eq!(node["last_event_id"], event, "{node:#}");
        assert_eq!(node["attestation_status"], "FAIL", "{node:#}");
        assert!(node["severity_level"].is_u64(), "{node:#}");
    }
}

/// Keylime's tenant at our registrar and verifier: every command that it has for an agent, with
/// what scripts look for in its output.
#[test]
fn keylimes_tenant_runs_our_servers() {
    let site = Site::new();
    let mut agent = site.stage.agent(&AgentOptions::with_id(ID));
    let policy = site.stage.policy();
    let policy = policy.to_str().unwrap();
    let tenant = &site.tenant;

    let record = &tenant.json(&["-c", "regstatus", "-u", ID]).unwrap()[ID];
    assert_eq!(record["operational_state"], "Registered");
    assert_eq!(record["port"], agent.address().port());
    let registered = tenant.json(&["-c", "reglist"]).unwrap();
    assert_eq!(registered, json!({"uuids": [ID]}));

    // `--verify`: the agent proves that it has derived the key from both shares.
    let (boot_policy, payload) = (site.file("mb.json", "{}"), site.file("payload", "secret\n"));
    let added = tenant
        .run(&[
            "-c",
            "add",
            "-u",
            ID,
            "--runtime-policy",
            policy,
            "--mb-policy",
            &boot_policy,
            "-f",
            &payload,
            "--verify",
        ])
        .unwrap();
    let told = format!("Agent {ID} ({}) added to Verifier", agent.address());
    assert!(added.contains(&told), "{added}");
    site.is_attested();
    let status = &tenant.json(&["-c", "status", "-u", ID]).unwrap()[ID];
    assert_eq!(status["operational_state"], "Get Quote");
    assert_eq!(
        tenant.json(&["-c", "cvlist"]).unwrap(),
        json!({"uuids": [[ID]]})
    );
    let bulk = tenant.json(&["-c", "bulkinfo"]).unwrap();
    assert_eq!(bulk[ID]["operational_state"], "Get Quote", "{bulk:#}");
    let again = tenant.refused(&["-c", "add", "-u", ID]).unwrap();
    assert!(again.contains("conflict for agent"), "{again}");

    let value = site
        .stage
        .machine
        .tpm()
        .client()
        .read(Bank::Sha256, 7)
        .unwrap();
    let right = json!({"7": [hex::encode(value)]}).to_string();
    tenant
        .run(&["-c", "update", "-u", ID, "--tpm_policy", &right])
        .unwrap();
    site.is_attested();
    let wrong = json!({"7": ["0".repeat(64)]}).to_string();
    tenant
        .run(&["-c", "update", "-u", ID, "--tpm_policy", &wrong])
        .unwrap();
    site.fails_for("pcr_validation.invalid_pcr_7");
    tenant
        .run(&["-c", "update", "-u", ID, "--runtime-policy", policy])
        .unwrap();
    site.is_attested();
    let told = tenant.run(&["-c", "reactivate", "-u", ID]).unwrap();
    assert!(told.contains(&format!("Agent {ID} re-activated")), "{told}");

    // No answer is not a bad answer: the state that Keylime has for it, and it ends by itself.
    agent.process().kill().unwrap();
    let node = tenant.wait_for_state(ID, "Failed").unwrap();
    assert_eq!(
        node["last_event_id"], "internal.verifier.not_reachable",
        "{node:#}"
    );
    agent.start_again().unwrap();
    tenant.wait_for_state(ID, "Get Quote").unwrap();

    site.stage
        .machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    site.fails_for("ima.validation.ima-ng.not_in_allowlist");
    let told = tenant.run(&["-c", "delete", "-u", ID]).unwrap();
    assert!(
        told.contains(&format!("Agent {ID} deleted from the CV")),
        "{told}"
    );
    let refused = tenant.refused(&["-c", "cvstatus", "-u", ID]).unwrap();
    assert!(refused.contains(ID), "{refused}");

    agent.process().terminate().unwrap();
    tenant.run(&["-c", "regdelete", "-u", ID]).unwrap();
    let refused = tenant.refused(&["-c", "regstatus", "-u", ID]).unwrap();
    assert!(refused.contains(ID), "{refused}");
}

/// Policies by name, through the commands of Keylime's tenant.
#[test]
fn keylimes_tenant_keeps_policies_at_our_verifier() {
    let site = Site::new();
    let _agent = site.stage.agent(&AgentOptions::with_id(ID));
    let policy = site.stage.policy();
    let policy = policy.to_str().unwrap();
    let tenant = &site.tenant;
    let run = |arguments: &[&str]| tenant.run(arguments).unwrap();
    let named = ["--runtime-policy-name", "web"];
    let file = ["--runtime-policy", policy];

    run(&[&["-c", "addruntimepolicy"], &named[..], &file].concat());
    assert!(run(&["-c", "listruntimepolicy"]).contains("'runtimepolicy names': ['web']"));
    assert!(
        run(&[&["-c", "showruntimepolicy"], &named[..]].concat())
            .contains("/usr/lib/systemd/systemd")
    );
    let boot_policy = site.file("mb.json", "{}");
    let mb_named = ["--mb-policy-name", "uki"];
    run(&[
        &["-c", "addmbpolicy"],
        &mb_named[..],
        &["--mb-policy", &boot_policy],
    ]
    .concat());
    assert!(run(&["-c", "listmbpolicy"]).contains("'mbpolicy names': ['uki']"));
    assert!(run(&[&["-c", "showmbpolicy"], &mb_named[..]].concat()).contains("'mb_policy': '{}'"));

    run(&[&["-c", "add", "-u", ID], &named[..], &mb_named].concat());
    site.is_attested();
    let node = tenant.status(ID).unwrap();
    assert_eq!(
        (&node["has_runtime_policy"], &node["has_mb_refstate"]),
        (&json!(1), &json!(1))
    );

    // In use: neither goes away. A program is added to the policy before it runs.
    for command in [
        [&["-c", "deleteruntimepolicy"], &named[..]].concat(),
        [&["-c", "deletembpolicy"], &mb_named[..]].concat(),
    ] {
        let refused = tenant.refused(&command).unwrap();
        assert!(refused.contains("in use by agent"), "{refused}");
    }
    let mut grown = site.stage.machine.runtime_policy().unwrap();
    let content = b"serve\n";
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
    grown["digests"]["/usr/local/bin/server"] = json!([hex::encode(digest)]);
    let grown = site.file("grown.json", &grown.to_string());
    run(&[
        &["-c", "updateruntimepolicy"],
        &named[..],
        &["--runtime-policy", &grown],
    ]
    .concat());
    site.stage
        .machine
        .run_program("/usr/local/bin/server", content)
        .unwrap();
    let before = tenant.status(ID).unwrap()["attestation_count"]
        .as_u64()
        .unwrap();
    let node = tenant.wait_for_attestations(ID, before + 2).unwrap();
    assert_eq!(node["operational_state"], 3, "{node:#}");

    run(&["-c", "delete", "-u", ID]);
    run(&[&["-c", "deleteruntimepolicy"], &named[..]].concat());
    run(&[&["-c", "deletembpolicy"], &mb_named[..]].concat());
    assert!(run(&["-c", "listruntimepolicy"]).contains("'runtimepolicy names': []"));
    let refused = tenant
        .refused(&[&["-c", "showruntimepolicy"], &named[..]].concat())
        .unwrap();
    assert!(refused.contains("web"), "{refused}");
}
