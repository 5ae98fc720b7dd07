use serde_json::Value;
use troth_tests::node::example;
use troth_tests::vm::{BootLoader, Guest};

use crate::{
    GREETS, ID, IMA_LIST, WARM_UP, assert_that_a_change_is_named, configure_host, configure_server,
    greet, restored, wait_for_trust, wait_for_trust_after,
};

/// Programs that the policy lists, and nobody has used yet.
const TOOLS: usize = 400;

/// Writes them: `1` to [`TOOLS`] below /opt/tools.
const MAKE_TOOLS: &str = r#"
mkdir -p /opt/tools
for n in $(seq 400); do echo "tool $n" > /opt/tools/$n; done"#;

/// A policy of what the host has run, and of the tools. Their digests come from an ordinary user:
/// IMA measures what root reads.
const MAKE_POLICIES: &str = r#"
setpriv --reuid nobody --clear-groups sha256sum /opt/tools/* > /tmp/tools
trothctl policy create runtime --ima-list "$0" --allowlist /tmp/tools -o /tmp/policy.json
trothctl policy create boot --without-secureboot -o /tmp/boot.toml"#;

#[test]
fn a_host_is_trusted_as_its_list_grows_and_its_clock_jumps_over_both_ways_to_its_tpm_until_a_program_changes()
 {
    let directory = tempfile::tempdir().unwrap();
    let host = restored(directory.path(), "host", BootLoader::Stub, None);
    configure_server(&host, "127.0.0.1", host.ek_issuer());
    host.output(&["systemctl", "start", "troth-registrar", "troth-verifier"])
        .unwrap();
    let ca = host
        .output(&["cat", "/var/lib/troth-ca/cacert.crt"])
        .unwrap();
    configure_host(&host, "127.0.0.1", "127.0.0.1", &ca);
    start_before_udev_is_done(&host);
    assert_that_it_has_no_rights(&host);
    // What SELinux would deny is told, so that no denial of ours means something.
    assert_eq!(host.output(&["getenforce"]).unwrap(), "Permissive\n");
    let audit = [
        "journalctl",
        "--boot",
        "--quiet",
        "--no-pager",
        "--lines=1",
        "_TRANSPORT=audit",
    ];
    assert_ne!(host.output(&audit).unwrap(), "");

    // What the test does later is part of what the policy knows.
    greet(&host, "hello");
    use_the_resource_manager(&host);
    host.sh(MAKE_TOOLS).unwrap();
    host.sh(WARM_UP).unwrap();
    host.output(&["sh", "-ec", MAKE_POLICIES, IMA_LIST])
        .unwrap();
    let add = ["trothctl", "agent", "add", ID];
    let policies = [
        "--runtime-policy",
        "/tmp/policy.json",
        "--boot-policy",
        "/tmp/boot.toml",
    ];
    host.output(&[&add[..], &policies].concat()).unwrap();
    let before = wait_for_trust(&host);

    // The list grows while it is read.
    let read = "for n in $(seq 400); do cat /opt/tools/$n; done > /dev/null";
    host.sh(read).unwrap();
    let known = before["ima_entries"].as_u64().unwrap() + TOOLS as u64;
    let before = wait_for_trust_after(&host, &before, known);
    // Without news an attestation reads at the end of the list, not the list.
    let length = host.sh(&format!("wc -c < {IMA_LIST}")).unwrap();
    let (read, before) = (
        bytes_read(&host),
        wait_for_trust_after(&host, &before, known),
    );
    let before = wait_for_trust_after(&host, &before, known);
    let read = bytes_read(&host) - read;
    assert!(read < length.trim().parse().unwrap(), "{read} of {length}");
    // A new process, and so a new descriptor, goes on where the last one was.
    host.output(&["systemctl", "restart", "troth-agent"])
        .unwrap();
    let before = wait_for_trust_after(&host, &before, known);

    host.output(&["systemctl", "daemon-reload"]).unwrap();
    host.write(
        "/etc/troth/agent.toml.d/20-tcti.toml",
        "tcti = \"tabrmd\"\n",
    )
    .unwrap();
    host.output(&["systemctl", "restart", "troth-agent"])
        .unwrap();
    let open = "ls -l /proc/$(systemctl show --value --property MainPID troth-agent)/fd";
    let open = host.sh(open).unwrap();
    assert!(!open.contains("/dev/tpm"), "{open}");
    let before = wait_for_trust_after(&host, &before, known);

    set_the_clock(&host, before, known);
    assert_that_a_change_is_named(&host, &host);
}

/// Sets it for everything on the host, and right again: the agent's certificate would end soon,
/// then it is not valid yet.
fn set_the_clock(host: &Guest, mut before: Value, known: u64) {
    const JUMP: i64 = 340 * 86_400;
    let now = |host: &Guest| -> i64 {
        let shown = host.output(&["date", "+%s"]).unwrap();
        shown.trim().parse().unwrap()
    };
    let fed = |host: &Guest| -> u64 {
        let shown = host.property("troth-agent", "WatchdogTimestampMonotonic");
        shown.unwrap().parse().unwrap()
    };
    let renewals = |host: &Guest| {
        let journal = ["journalctl", "--boot", "--quiet", "--no-pager"];
        let journal = host.output(&[&journal[..], &["--unit=troth-agent"]].concat())?;
        let announced = "the registrar shows the new TLS certificate";
        Ok(journal.matches(announced).count())
    };
    let process = host.property("troth-agent", "MainPID").unwrap();
    for (jump, renewed) in [(JUMP, 1), (-JUMP, 2)] {
        let set = now(host) + jump;
        host.output(&["date", &format!("--set=@{set}")]).unwrap();
        let last = fed(host);
        let done = |count: &usize| *count == renewed;
        host.wait_for("the certificate is renewed", renewals, done)
            .unwrap();
        let look = |host: &Guest| Ok(fed(host));
        host.wait_for("the watchdog is fed", look, |now| *now > last)
            .unwrap();
        before = wait_for_trust_after(host, &before, known);
        // Nobody has set it since.
        let passed = now(host) - set;
        assert!((0..86_400).contains(&passed), "{passed}");
    }
    assert_eq!(host.property("troth-agent", "MainPID").unwrap(), process);
    assert_eq!(host.property("troth-agent", "NRestarts").unwrap(), "0");
}

/// What the agent has read of files so far.
fn bytes_read(host: &Guest) -> u64 {
    let process = host.property("troth-agent", "MainPID").unwrap();
    let counted = host
        .output(&["cat", &format!("/proc/{process}/io")])
        .unwrap();
    let line = counted
        .lines()
        .find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap_or_else(|| panic!("{counted}")).parse().unwrap()
}

/// When a host boots, the agent may start before udev has given the TPM to its group.
fn start_before_udev_is_done(host: &Guest) {
    let early = "chown root:root /dev/tpmrm0
                 chmod 0600 /dev/tpmrm0
                 systemctl start --no-block troth-agent";
    host.sh(early).unwrap();
    let journal = [
        "journalctl",
        "--boot",
        "--quiet",
        "--no-pager",
        "--unit=troth-agent",
    ];
    let look = |host: &Guest| host.output(&journal);
    let waits = |journal: &String| journal.contains("may open /dev/tpmrm0");
    host.wait_for("the agent has looked for its TPM", look, waits)
        .unwrap();
    host.sh("udevadm trigger --settle /dev/tpmrm0").unwrap();
    host.output(&["systemctl", "start", "troth-agent"]).unwrap();
    assert_eq!(host.property("troth-agent", "NRestarts").unwrap(), "0");
}

/// An ordinary user in the group of the TPM, with the files of root that it was handed.
fn assert_that_it_has_no_rights(host: &Guest) {
    let process = host.property("troth-agent", "MainPID").unwrap();
    let status = host
        .output(&["cat", &format!("/proc/{process}/status")])
        .unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{status}")).trim().to_owned()
    };
    for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    let user = host.output(&["id", "--user", "troth"]).unwrap();
    let user = user.trim_end();
    assert_eq!(field("Uid:"), [user; 4].join("\t"));
    let open = host
        .output(&["ls", "-l", &format!("/proc/{process}/fd")])
        .unwrap();
    for path in [
        "/sys/kernel/security/integrity/ima/ascii_runtime_measurements",
        "/sys/kernel/security/tpm0/binary_bios_measurements",
        "/run/log/systemd/tpm2-measure.log",
        "/dev/tpmrm0",
    ] {
        assert!(open.contains(path), "{path}: {open}");
    }
    // None of the logs is anybody's to read.
    for path in [IMA_LIST, "/run/log/systemd/tpm2-measure.log"] {
        let read = [
            "setpriv",
            "--reuid=troth",
            "--regid=troth",
            "--init-groups",
            "cat",
            path,
        ];
        assert!(!host.run(&read).unwrap().status.success(), "{path}");
    }
}

/// Has the resource manager run once, and everything that reads its unit or speaks to it. The agent
/// does not know of it yet.
fn use_the_resource_manager(host: &Guest) {
    let name = "troth-agent.service.d/tpm2-abrmd.conf";
    let dropin = format!("/etc/systemd/system/{name}");
    host.write(&dropin, &example(name).unwrap()).unwrap();
    host.sh(&format!(
        "cat {dropin} > /dev/null
        tpm2_pcrread --tcti tabrmd sha256:10
        systemctl stop tpm2-abrmd"
    ))
    .unwrap();
    assert!(host.output(&["cat", GREETS]).unwrap().contains("hello"));
}
