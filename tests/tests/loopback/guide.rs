use std::fs;
use std::process::Command;

use troth_core::eventlog::{EventLog, EventType};
use troth_core::tpm::HashAlgorithm;
use troth_tests::boot::fixtures;
use troth_tests::fleet::AgentOptions;
use troth_tests::process::output_of;

use crate::Stage;

/// A fenced block of a guide, without the indentation of the list that it stands in.
pub(crate) struct Block<'a> {
    /// What is after the fence: nothing, if the lines are commands.
    pub(crate) language: &'a str,
    pub(crate) lines: Vec<&'a str>,
}

pub(crate) fn blocks(guide: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for line in guide.lines().map(str::trim) {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                let lines = Vec::new();
                open = Some(Block { language, lines });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.lines.push(line),
            (None, None) => {}
        }
    }
    blocks
}

/// Logs of two hosts with Secure Boot, whose last application is not the same.
fn boot_logs() -> [Vec<u8>; 2] {
    let one = fs::read(fixtures().join("public-logs/sb_cert_eventlog")).unwrap();
    let log = EventLog::parse(&one).unwrap();
    let applications = log.unverified_events().filter(|event| {
        event.pcr == 4 && event.kind == EventType::EV_EFI_BOOT_SERVICES_APPLICATION
    });
    let digest = applications
        .last()
        .unwrap()
        .digests
        .get(HashAlgorithm::Sha256);
    let digest = digest.unwrap();
    let mut places = one.windows(32).enumerate();
    let (at, _) = places
        .find(|(_, bytes)| *bytes == digest.as_bytes())
        .unwrap();
    let mut other = one.clone();
    other[at] ^= 1;
    [one, other]
}

/// Follows docs/policies.md word for word, with two nodes.
#[test]
fn the_guide_to_policies_holds() {
    let stage = Stage::new();
    let desk = stage.path().join("desk");
    fs::create_dir(&desk).unwrap();
    let write = |name: &str, text: &str| fs::write(desk.join(name), text).unwrap();
    let list = fs::read_to_string(stage.machine.ima_list()).unwrap();
    write("web1.ima", &list);
    write(
        "site.txt",
        &format!("{}  /opt/site/server\n", "aa".repeat(32)),
    );
    write("exclude.txt", "# scratch files\n/tmp/.*\n");
    write(
        "update.txt",
        &format!("{}  /opt/site/server\n", "bb".repeat(32)),
    );
    let pcrs = fs::read_to_string(fixtures().join("boots/uki/pcrread.txt")).unwrap();
    write("pcrs.txt", &pcrs);
    let [web1, web2] = boot_logs();
    fs::write(desk.join("web1.bios"), web1).unwrap();
    fs::write(desk.join("web2.bios"), web2).unwrap();
    let vendor = stage.machine.tpm().ek_issuer();
    stage.fleet.trust_tpm_vendor(&vendor).unwrap();
    let _agents = ["web1", "web2"].map(|id| stage.agent(&AgentOptions::with_id(id)));

    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policies.md");
    let guide = fs::read_to_string(guide).unwrap();
    let blocks = blocks(&guide);
    let commands = blocks.iter().filter(|block| block.language.is_empty());
    let commands: Vec<_> = commands.flat_map(|block| &block.lines).collect();
    assert!(commands.len() > 20, "{commands:?}");
    let trothctl = stage.programs.command("trothctl").unwrap();
    let programs = std::path::Path::new(trothctl.get_program())
        .parent()
        .unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let server = |port| format!("https://127.0.0.1:{port}");
    let mut printed = String::new();
    for &line in commands {
        let mut shell = Command::new("sh");
        shell
            .args(["-e", "-c", line])
            .current_dir(&desk)
            .env("PATH", &path)
            .env("TROTH_VERIFIER", server(stage.fleet.verifier_port()))
            .env("TROTH_REGISTRAR", server(stage.fleet.registrar_tls_port()))
            .env("TROTH_CA_DIR", stage.fleet.ca_dir())
            .env("TROTH_CTL_TPM_CERT_STORE", stage.fleet.tpm_cert_store());
        let output = output_of(&mut shell).unwrap_or_else(|error| panic!("{line}: {error:#}"));
        if line == "trothctl policy list" {
            printed = output;
        }
    }
    let web = printed
        .lines()
        .find(|line| line.starts_with("web "))
        .unwrap();
    let columns: Vec<_> = web.split_whitespace().collect();
    assert_eq!(columns[1..3], ["runtime", "2"], "{printed}");
    let [web1, web2, web] = ["web1", "web2", "web"]
        .map(|name| fs::read_to_string(desk.join(name).with_extension("toml")).unwrap());
    assert_ne!(web1, web2);
    let digests = |policy: &str| policy.matches("\"sha256:").count();
    assert_eq!(digests(&web), digests(&web1) + 1, "{web}");
    let allowlist = fs::read_to_string(desk.join("allowlist.txt")).unwrap();
    for digest in ["aa", "bb"] {
        let line = format!("{}  /opt/site/server\n", digest.repeat(32));
        assert!(allowlist.contains(&line), "{line}");
    }
}
