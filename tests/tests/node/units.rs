use troth_tests::node::Host;

use crate::dropin;

/// The exposure that docs/units.md promises, in tenths.
const EXPOSURE: [(&str, &str); 5] = [
    ("troth-actiond.service", "9"),
    ("troth-agent.service", "14"),
    ("troth-ca-init.service", "9"),
    ("troth-registrar.service", "11"),
    ("troth-verifier.service", "11"),
];

/// The agent's with the drop-in for systemd 252.
const EXPOSURE_WITH_CAPABILITY: &str = "17";

/// What a boot makes of the install tree.
const DIRECTORIES: [(&str, &str); 2] = [
    ("/run/troth", "755 root:root"),
    ("/var/lib/troth", "700 troth:troth"),
];

#[test]
fn systemd_finds_nothing_to_correct_and_little_exposed() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::without_tpm(directory.path(), "units", &[]).unwrap();
    let os = host.os();
    let list = "cd /usr/lib/systemd/system && ls -d troth*";
    let units = os.output(&["sh", "-c", list]).unwrap();
    let units: Vec<_> = units.lines().filter(|unit| !unit.ends_with(".d")).collect();
    assert!(units.len() >= 4, "{units:?}");
    let verified = os.run(&[&["systemd-analyze", "verify"][..], &units].concat());
    let verified = verified.unwrap().success().unwrap();
    assert_eq!(
        (verified.stdout.as_str(), verified.stderr.as_str()),
        ("", "")
    );

    let groups = os.output(&["id", "--name", "--groups", "troth"]).unwrap();
    assert_eq!(groups.trim_end(), "troth tss");
    for (directory, owner) in DIRECTORIES {
        let stat = os
            .output(&["stat", "--format=%a %U:%G", directory])
            .unwrap();
        assert_eq!(stat.trim_end(), owner, "{directory}");
    }
    let list = "cd /usr/lib/systemd/system && grep --directories=skip -l '^WantedBy=' troth*";
    let installable = os.output(&["sh", "-c", list]).unwrap();
    os.output(&["systemctl", "preset-all"]).unwrap();
    for unit in installable.lines() {
        let enabled = os.run(&["systemctl", "is-enabled", unit]).unwrap();
        assert_eq!(enabled.stdout, "disabled\n", "{unit}");
    }

    let analyze = ["systemd-analyze", "security", "--no-pager", "--offline=yes"];
    let exposed_less = |unit: &str, limit: &str| {
        let limit = format!("--threshold={limit}");
        os.output(&[&analyze[..], &[&limit, unit]].concat())
            .unwrap();
    };
    for (unit, limit) in EXPOSURE {
        exposed_less(unit, limit);
    }

    // The drop-ins that administrators copy.
    for name in ["any-tpm.conf", "tpm2-abrmd.conf", "systemd-252.conf"] {
        let (path, content) = dropin(name);
        os.write(&path, content).unwrap();
        let verified = os
            .run(&["systemd-analyze", "verify", "troth-agent.service"])
            .unwrap();
        let verified = verified.success().unwrap();
        assert_eq!(verified.stderr, "", "{name}");
    }
    exposed_less("troth-agent.service", EXPOSURE_WITH_CAPABILITY);
}
