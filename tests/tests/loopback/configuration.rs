use std::fs;
use std::path::Path;

use serde_json::Value;
use troth_tests::boot::Machine;
use troth_tests::fleet::Programs;
use troth_tests::process::{PATIENCE, Process, output_of, stable_port};

const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000";

/// A file of the machine whose `/` is `root`.
fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Starts a daemon that has Keylime's files and nothing else, and waits until it serves.
fn start(programs: &Programs, name: &str, root: &Path, more: &[(&str, &str)]) -> Process {
    let component = name.trim_start_matches("troth-").to_uppercase();
    let mut command = programs.command(name).unwrap();
    command
        .arg("--root")
        .arg(root)
        .env(format!("TROTH_{component}_STATE_DIR"), root.join("state"))
        .envs(more.iter().copied());
    let mut process = Process::start(name, root, &mut command).unwrap();
    process
        .wait_for_log(0, |log| log.contains("listening on").then_some(()))
        .unwrap();
    process
}

/// Agent, registrar, verifier and trothctl with nothing but the files of Keylime's programs: the
/// node has Keylime's default id, and is trusted.
#[test]
fn a_site_with_keylimes_files_alone_reaches_a_trusted_node() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let machine = Machine::booted(&root.join("machine")).unwrap();
    let programs = Programs::beside_this().unwrap();
    let [verifier, registrar, registrar_tls, agent] = [(); 4].map(|()| stable_port().unwrap());
    let state = root.join("state");
    let ca = state.join("cv_ca");

    // The verifier's is the oldest kind of file, the others are today's.
    write(
        root,
        "etc/keylime.conf",
        &format!(
            "[general]\nreceive_revocation_ip = 192.0.2.1\n[cloud_verifier]\n\
             cloudverifier_port = {verifier}\nquote_interval = 0.5\nmax_retries = 10\n\
             [ca]\ncert_organization = Example\n"
        ),
    );
    write(
        root,
        "etc/keylime/registrar.conf",
        &format!("[registrar]\nport: {registrar}\ntls_port: {registrar_tls}\n"),
    );
    write(root, "usr/etc/keylime/agent.conf", "[agent]\nport = 1\n");
    write(
        root,
        "etc/keylime/agent.conf.d/10-site.conf",
        &format!(
            "[agent]\nport = {agent}\ncontact_port = {agent}\nregistrar_port = {registrar}\n\
             trusted_client_ca = {:?}\nima_ml_path = {:?}\nmeasuredboot_ml_path = {:?}\n\
             run_as = \"nobody:tss\"\n",
            format!("['{}']", ca.join("cacert.crt").display()),
            machine.ima_list(),
            machine.boot_log(),
        ),
    );
    write(
        root,
        "etc/keylime/tenant.conf",
        &format!(
            "[tenant]\nverifier_port = {verifier}\nregistrar_port = {registrar_tls}\n\
             tls_dir = {}\nrequire_ek_cert = False\naccept_tpm_signing_algs = ['rsassa']\n",
            ca.display()
        ),
    );

    let served = start(&programs, "troth-verifier", root, &[]);
    let _registrar = start(&programs, "troth-registrar", root, &[]);
    let tcti = machine.tpm().tcti();
    let node = start(
        &programs,
        "troth-agent",
        root,
        &[("TROTH_AGENT_TCTI", &tcti)],
    );
    let subject = output_of(
        std::process::Command::new("openssl")
            .args(["x509", "-noout", "-subject", "-in"])
            .arg(ca.join("cacert.crt")),
    );
    assert!(subject.unwrap().contains("Example"));
    let log = served.log();
    assert!(
        log.contains("is read from") && log.contains("etc/keylime.conf"),
        "{log}"
    );
    assert!(
        node.log().contains("run_as has no effect: "),
        "{}",
        node.log()
    );

    let trothctl = |arguments: &[&str]| {
        let mut command = programs.command("trothctl").unwrap();
        command
            .env(
                "KEYLIME_TENANT_CONFIG",
                root.join("etc/keylime/tenant.conf"),
            )
            .args(arguments);
        output_of(&mut command)
    };
    let policy = machine.write_runtime_policy().unwrap();
    let policy = policy.to_str().unwrap();
    trothctl(&["agent", "add", ID, "--runtime-policy", policy]).unwrap();
    let begin = std::time::Instant::now();
    loop {
        let status = trothctl(&["--json", "agent", "status", ID]).unwrap_or_default();
        let status: Value = serde_json::from_str(&status).unwrap_or_default();
        if status["state"] == "trusted" {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{status:#}\n{}", served.log());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn every_option_is_shown_with_who_set_it_and_no_secret_is() {
    let programs = Programs::beside_this().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    write(
        root,
        "usr/lib/troth/agent.toml",
        "port = 1\nlog = \"debug\"\n",
    );
    write(
        root,
        "etc/troth/agent.toml.d/10-site.toml",
        "# Ours.\nport = 9102\ntpm_ownerpassword = \"hunter2\"\n",
    );
    write(
        root,
        "etc/troth/verifier.toml",
        "database_url = \"postgres://troth:hunter2@db/troth\"\n[ca]\ncert_state = \"BY\"\n",
    );
    write(root, "etc/troth/registrar.toml", "\nprot = 1\n");
    let show = |program: &str, more: &[&str]| {
        let mut command = programs.command("trothctl").unwrap();
        command
            .args(["config", "show", program, "--root"])
            .arg(root);
        command.args(more).output().unwrap()
    };
    let options = |program: &str| {
        let output = show(program, &["--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        let shown: Value = serde_json::from_str(&text).unwrap();
        let options = shown["options"].as_array().unwrap().clone();
        move |name: &str| {
            options
                .iter()
                .find(|option| option["name"] == name)
                .unwrap()
                .clone()
        }
    };
    let file = |name: &str, line: usize| {
        let file = root.join(name);
        serde_json::json!({ "kind": "file", "file": file, "line": line })
    };

    let agent = options("agent");
    let site = "etc/troth/agent.toml.d/10-site.toml";
    assert_eq!(agent("port")["value"], 9102);
    assert_eq!(agent("port")["origin"], file(site, 2));
    assert_eq!(agent("log")["origin"], file("usr/lib/troth/agent.toml", 2));
    assert_eq!(agent("uuid")["value"], "hash_ek");
    assert_eq!(
        agent("uuid")["origin"],
        serde_json::json!({ "kind": "default" })
    );
    let password = agent("tpm_ownerpassword");
    assert_eq!(
        (&password["value"], &password["secret"]),
        (&Value::Null, &Value::Bool(true))
    );
    assert_eq!(password["origin"], file(site, 3));

    let verifier = options("verifier");
    assert_eq!(
        verifier("database_url")["origin"],
        file("etc/troth/verifier.toml", 1)
    );
    assert_eq!(verifier("ca.cert_state")["value"], "BY");
    assert_eq!(verifier("quote_interval")["value"], 2);

    let text = String::from_utf8(show("agent", &[]).stdout).unwrap();
    let words = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let path = root.join(site).display().to_string();
    assert_eq!(words("port "), format!("port 9102 {path}: line 2"));
    let password = format!("tpm_ownerpassword (not shown) {path}: line 3");
    assert_eq!(words("tpm_ownerpassword"), password);
    assert_eq!(words("tcti"), "tcti - default");

    let wrong = show("registrar", &[]);
    let error = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    let expected = "registrar.toml: line 2: unknown option `prot`; did you mean `port`?";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_host_without_a_daemon_is_told_which_one_is_missing() {
    let programs = Programs::beside_this().unwrap();
    let directory = tempfile::tempdir_in(programs.directory()).unwrap();
    let alone = directory.path().join("trothctl");
    fs::hard_link(programs.directory().join("trothctl"), &alone).unwrap();
    let show = |program: &str| {
        let mut command = std::process::Command::new(&alone);
        command
            .args(["config", "show", program])
            .env("PATH", directory.path());
        command
            .env("TROTH_VERIFIER", "v.example:1")
            .output()
            .unwrap()
    };
    let output = show("agent");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("troth-agent is not installed here"),
        "{error}"
    );

    let text = String::from_utf8(show("ctl").stdout).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("verifier_ip"))
        .unwrap();
    assert!(line.contains("\"v.example\""), "{line}");
    assert!(line.ends_with("--verifier or $TROTH_VERIFIER"), "{line}");
}
