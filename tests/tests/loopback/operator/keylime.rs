use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions, Answer, Programs};
use troth_tests::keylime::Keylime;

/// An operator who keeps Keylime's servers.
struct Site {
    programs: Programs,
    keylime: Keylime,
    tpm_cert_store: PathBuf,
}

impl Site {
    fn trothctl(&self, arguments: &[&str]) -> Answer {
        let server = |port| format!("https://127.0.0.1:{port}");
        let output = self
            .programs
            .command("trothctl")
            .unwrap()
            .env("TROTH_VERIFIER", server(self.keylime.verifier_port()))
            .env("TROTH_REGISTRAR", server(self.keylime.registrar_tls_port()))
            .env("TROTH_CA_DIR", self.keylime.ca_dir())
            .env("TROTH_CTL_TPM_CERT_STORE", &self.tpm_cert_store)
            .args(arguments)
            .output()
            .unwrap();
        Answer::from(output)
    }

    /// The JSON of a command that succeeds.
    fn json(&self, arguments: &[&str]) -> Value {
        let answer = self.trothctl(&[&["--json"], arguments].concat());
        assert!(
            answer.status.success(),
            "{arguments:?}: {}\n{}",
            answer.stderr,
            self.keylime.logs()
        );
        answer.json().unwrap()
    }

    fn ends(&self, arguments: &[&str], status: i32) {
        let answer = self.trothctl(arguments);
        let (code, error) = (answer.status.code(), &answer.stderr);
        assert_eq!(
            code,
            Some(status),
            "{arguments:?}: {}{error}",
            answer.stdout
        );
    }
}

/// The life of a node by trothctl alone, at Keylime's registrar and verifier.
#[test]
fn trothctl_operates_keylimes_servers() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::booted(&directory.path().join("machine")).unwrap();
    let issuer = machine.tpm().ek_issuer();
    let keylime = Keylime::start(&directory.path().join("keylime"), &issuer).unwrap();
    let site = Site {
        programs: Programs::beside_this().unwrap(),
        keylime,
        tpm_cert_store: issuer.parent().unwrap().to_owned(),
    };
    let id = "operated-at-keylime";
    let _agent = start_agent(&site, directory.path(), &machine, id);
    assert_eq!(site.json(&["registrar", "list"])["agents"], json!([id]));
    let shown = site.json(&["registrar", "show", id]);
    assert_eq!(shown["ek_certificate_matches"], true);
    assert_eq!(site.json(&["agent", "list"])["agents"], json!([]));

    let policy = machine.write_runtime_policy().unwrap();
    let policy = policy.to_str().unwrap();
    let added = site.json(&["agent", "add", id, "--runtime-policy", policy]);
    assert_eq!(added["ek_certificate"], "certified");
    let until = [
        "agent",
        "watch",
        id,
        "--timeout",
        "60",
        "--until",
        "trusted",
    ];
    site.ends(&until, 0);
    site.ends(&["agent", "status", id], 0);
    let listed = site.json(&["agent", "list"]);
    assert_eq!(listed["agents"][0]["state"], "trusted");

    // Policies by name, of both kinds.
    site.json(&["policy", "import", "runtime", "base", policy]);
    site.json(&["policy", "import", "boot", "replays", "{}", "--replace"]);
    let listed = site.json(&["policy", "list"]).to_string();
    assert!(
        listed.contains(r#""base""#) && listed.contains(r#""replays""#),
        "{listed}"
    );
    let shown = site.json(&["policy", "show", "runtime", "base"]);
    assert_eq!(shown["policy"], machine.runtime_policy().unwrap());
    let taken = site.trothctl(&["policy", "import", "runtime", "base", policy]);
    assert!(taken.stderr.contains("--replace"), "{}", taken.stderr);
    let replaced = site.json(&["policy", "import", "runtime", "base", policy, "--replace"]);
    assert_eq!(replaced["result"], "replaced");

    // Keylime's verifier does not say which policy a node has, but the node's own can be read.
    let updated = site.json(&["agent", "update", id, "--accept-hash", "sha256"]);
    assert_eq!(updated["has_runtime_policy"], true);
    let updated = site.json(&["agent", "update", id, "--runtime-policy-name", "base"]);
    assert_eq!(updated["how"], "enrolled_anew");
    site.ends(&until, 0);
    let in_use = site.trothctl(&["policy", "remove", "runtime", "base"]);
    assert!(in_use.stderr.contains(id), "{}", in_use.stderr);

    // What it may not run.
    machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    let until = ["agent", "watch", id, "--timeout", "60", "--until", "failed"];
    site.ends(&until, 0);
    site.ends(&["agent", "status", id], 3);
    assert_eq!(
        site.json(&["agent", "reactivate", id])["result"],
        "reactivated"
    );
    assert_eq!(site.json(&["agent", "stop", id])["result"], "stopped");
    site.ends(&["agent", "stop", "unknown"], 5);

    assert_eq!(
        site.json(&["agent", "remove", "--wait", id])["result"],
        "removed"
    );
    site.ends(&["agent", "status", id], 5);
    assert_eq!(
        site.json(&["policy", "remove", "runtime", "base"])["result"],
        "removed"
    );
    assert_eq!(site.json(&["registrar", "remove", id])["result"], "removed");
    site.ends(&["registrar", "show", id], 5);
}

fn start_agent(site: &Site, directory: &Path, machine: &Machine, id: &str) -> Agent {
    let mut agent = Agent::start(
        &site.programs,
        &directory.join("agent"),
        machine,
        site.keylime.registrar_port(),
        &site.keylime.ca_dir(),
        &AgentOptions::with_id(id),
    )
    .unwrap();
    agent
        .process()
        .wait_for_log(0, |log| {
            log.to_lowercase().contains("activated").then_some(())
        })
        .unwrap();
    agent
}
