use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SerialNumber};
use serde_json::{Value, json};
use troth_core::identity::AgentId;
use troth_core::tpm::Public;
use troth_tests::api::Api;
use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions, Programs};
use troth_tests::keylime::Keylime;
use troth_tests::namespace::MountNamespace;
use troth_tests::process::{Process, cannot_run, output_of};

use crate::guide::{Block, blocks};

/// The id in the guide.
const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000";

/// The host's address: the guide's, in a network that this machine has.
const ADDRESS: &str = "127.0.0.2";

/// What the last payload has left in memory.
const SECRET: &[u8] = b"the key of a payload, 32 bytes..";

/// Certificate and key as Keylime's agent makes them, in its last month; and its contact address
/// has changed since.
fn certificate() -> (String, String) {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let names = ["localhost", "localhost.domain", "127.0.0.1", "::1"].map(Into::into);
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, ID);
    params.serial_number = Some(SerialNumber::from(0));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + DAY * 20;
    params.not_before = params.not_after - DAY * 365;
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// A host with directories of its own under the names that the guide has.
struct Host {
    mounts: MountNamespace,
    directory: PathBuf,
}

impl Host {
    /// `None` where nothing may be mounted, which is an error in CI. `keylime` is what becomes
    /// `/var/lib/keylime`; the secret is in a file system in memory below it.
    fn new(directory: &Path, keylime: &Path) -> Option<Self> {
        let script = format!(
            "cd {}; mkdir etc lib; cp -a /etc/. etc || true; mount --bind etc /etc\n\
             cp -aT {} lib/keylime; mount --bind lib /var/lib\n\
             mkdir -m 0700 /var/lib/keylime/secure\n\
             mount -t tmpfs -o size=1m,mode=0700 tmpfs /var/lib/keylime/secure\n\
             mkdir /var/lib/keylime/secure/unzipped",
            directory.display(),
            keylime.display()
        );
        match MountNamespace::start(directory, &script) {
            Ok(mounts) => {
                let host = Self {
                    mounts,
                    directory: directory.to_owned(),
                };
                fs::write(host.secret(), SECRET).unwrap();
                Some(host)
            }
            Err(error) => {
                cannot_run(&format_args!("{error:#}"));
                None
            }
        }
    }

    fn secret(&self) -> PathBuf {
        let file = "/var/lib/keylime/secure/unzipped/derived_tci_key";
        self.mounts.path(file)
    }

    /// The disk below `/var/lib`, without what is mounted on it.
    fn disk(&self, name: &str) -> PathBuf {
        self.directory.join("lib").join(name)
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let wrapper = self.mounts.wrapper();
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]).arg(program);
        command
    }
}

/// The paths of all files below `directory`.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// docs/compatibility.md, "Move one host", word for word: Keylime's verifier, which is told
/// nothing, goes on attesting the host that it knows.
///
/// No release of Keylime's agent that saves its AK is on PyPI. Ours stands in for it until the
/// move, with a certificate as that makes it; its directory is made of what the stand-in has.
#[test]
fn a_host_moves_and_its_verifier_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let programs = Programs::beside_this().unwrap();
    let machine = Machine::booted(&directory.path().join("machine")).unwrap();
    let place = directory.path().join("keylime");
    let keylime = Keylime::start(&place, &machine.tpm().ek_issuer()).unwrap();
    let before = directory.path().join("before");
    let state = before.join("state");
    fs::create_dir_all(&state).unwrap();
    let (certificate, key) = certificate();
    fs::write(state.join("server-cert.crt"), &certificate).unwrap();
    fs::write(state.join("server-private.pem"), key).unwrap();
    let address = ["TROTH_AGENT_IP", "TROTH_AGENT_CONTACT_IP"];
    let mut agent = Agent::start(
        &programs,
        &before,
        &machine,
        keylime.registrar_port(),
        &keylime.ca_dir(),
        &AgentOptions {
            environment: address.map(|name| (name.into(), ADDRESS.into())).into(),
            ..AgentOptions::with_id(ID)
        },
    )
    .unwrap();
    let policy = machine.write_runtime_policy().unwrap();
    let policy = policy.to_str().unwrap();
    let add = ["-c", "add", "-u", ID, "--runtime-policy", policy];
    keylime.tenant(&add).unwrap();
    keylime.wait_for_attestations(ID, 1).unwrap();
    let registrar = Api::operator(keylime.registrar_tls_port(), &keylime.ca_dir()).unwrap();
    let record = || registrar.get(&format!("/v2.6/agents/{ID}")).unwrap().body["results"].take();
    let known = record();
    assert_eq!(known["mtls_cert"], certificate);
    assert_eq!(known["ip"], ADDRESS);

    // Keylime's directory on the host.
    let left = directory.path().join("left");
    fs::create_dir_all(left.join("cv_ca")).unwrap();
    let ca = keylime.ca_dir().join("cacert.crt");
    fs::copy(ca, left.join("cv_ca/cacert.crt")).unwrap();
    for name in [
        "server-cert.crt",
        "server-private.pem",
        "payload-private.pem",
    ] {
        fs::copy(state.join(name), left.join(name)).unwrap();
    }
    let saved = fs::read(state.join("ak.json")).unwrap();
    let data = agent_data(&saved, &known);
    fs::write(left.join("agent_data.json"), data).unwrap();
    let host = directory.path().join("host");
    fs::create_dir(&host).unwrap();
    let Some(host) = Host::new(&host, &left) else {
        return;
    };

    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/compatibility.md");
    let guide = fs::read_to_string(guide).unwrap();
    let (_, guide) = guide.split_once("## Move one host\n").unwrap();
    let (guide, _) = guide.split_once("\n## ").unwrap();
    let mut moved = None;
    let mut followed = Vec::new();
    for Block { language, lines } in blocks(guide) {
        if language == "toml" {
            let text = lines.join("\n").replace("192.0.2.", "127.0.0.");
            fs::write(host.mounts.path("/etc/troth/agent.toml"), text).unwrap();
            continue;
        }
        assert_eq!(language, "", "{lines:?}");
        for line in lines {
            followed.push(line);
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["systemctl", "disable", "--now", "keylime_agent"] => {
                    agent.process().terminate().unwrap();
                }
                ["troth-agent"] => {
                    let program = programs.command("troth-agent").unwrap();
                    let mut command = host.command(program.get_program());
                    let port = agent.address().port();
                    for (name, value) in [
                        ("PORT", port.to_string()),
                        ("REGISTRAR_PORT", keylime.registrar_port().to_string()),
                        ("TCTI", machine.tpm().tcti()),
                        ("IMA_ML_PATH", machine.ima_list().display().to_string()),
                        (
                            "MEASUREDBOOT_ML_PATH",
                            machine.boot_log().display().to_string(),
                        ),
                    ] {
                        command.env(format!("TROTH_AGENT_{name}"), value);
                    }
                    let log = &host.directory;
                    let mut process = Process::start("troth-agent", log, &mut command).unwrap();
                    let ready = |log: &str| log.contains("listening on").then_some(());
                    process.wait_for_log(0, ready).unwrap();
                    let told = "this host's AK is that of Keylime's agent";
                    assert!(process.log().contains(told), "{}", process.log());
                    moved = Some(process);
                }
                ["keylime_tenant", "-c", "status", ..] => {
                    let count = |node: &Value| node["attestation_count"].as_u64().unwrap();
                    let before = count(&keylime.wait_for_attestations(ID, 1).unwrap());
                    let node = keylime.wait_for_attestations(ID, before + 2).unwrap();
                    assert_eq!(node["operational_state"], 3, "{node:#}");
                    keylime.tenant(&words[1..]).unwrap();
                }
                ["keylime_tenant", "-c", "update", ..] => {
                    // For next year's certificate; the file is the operator's.
                    let line = line.replace("ID", ID).replace("policy.json", policy);
                    let words: Vec<_> = line.split(' ').collect();
                    keylime.tenant(&words[1..]).unwrap();
                    keylime.wait_for_attestations(ID, 1).unwrap();
                }
                _ => {
                    let mut shell = host.command("sh");
                    output_of(shell.args(["-e", "-c", line])).unwrap();
                }
            }
        }
    }
    assert!(moved.is_some() && followed.len() >= 6, "{followed:#?}");

    // At the registrar nothing has changed but the number of registrations.
    let mut now = record();
    assert_eq!(now["regcount"], 2, "{now:#}");
    now["regcount"] = known["regcount"].clone();
    assert_eq!(now, known);

    assert_eq!(fs::read(host.secret()).unwrap(), SECRET, "still in memory");
    assert!(host.disk("troth").join("ak.json").is_file());
    for file in files(&host.disk("troth")) {
        let content = fs::read(&file).unwrap();
        let found = content.windows(SECRET.len()).any(|part| part == SECRET);
        assert!(!found, "{} has the secret", file.display());
    }

    machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    keylime.wait_for_state(ID, "Invalid Quote").unwrap();
}

/// The AK that our agent saved, as Keylime's agent saves its own.
fn agent_data(saved: &[u8], record: &Value) -> String {
    let saved: Value = serde_json::from_slice(saved).unwrap();
    let decoded = |text: &Value| BASE64.decode(text.as_str().unwrap()).unwrap();
    let ek = Public::from_tpm2b(&decoded(&record["ek_tpm"])).unwrap();
    let data = json!({
        "ak_hash_alg": "Sha256",
        "ak_sign_alg": "RsaSsa",
        "ak_public": decoded(&saved["public"]),
        "ak_private": decoded(&saved["private"]),
        "ek_hash": AgentId::hash_ek(&ek).as_str().as_bytes(),
    });
    serde_json::to_string_pretty(&data).unwrap()
}
