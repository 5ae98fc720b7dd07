use troth_tests::boot::Machine;
use troth_tests::node::{Container, Network, Setup, TCTI, trixie};
use troth_tests::tpm::Bank;

#[test]
fn a_container_boots_with_the_machines_tpm_and_shuts_down() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::booted(&directory.path().join("machine")).unwrap();
    let network = Network::new(directory.path()).unwrap();
    assert_eq!(machine.tpm().serve_in(&network, 2321).unwrap(), TCTI);
    let mut os = Container::boot(&Setup {
        name: "stage",
        directory: &directory.path().join("container"),
        network: &network,
        layers: &[&trixie().unwrap()],
        mounts: &[],
        files: &[("/etc/stage.conf", "there before the boot\n")],
    })
    .unwrap();
    let version = os.output(&["systemctl", "--version"]).unwrap();
    assert!(version.starts_with("systemd 257 "), "{version}");
    assert_eq!(
        os.output(&["systemctl", "is-system-running"]).unwrap(),
        "running\n"
    );
    assert_eq!(os.output(&["hostname"]).unwrap(), "stage\n");
    assert_eq!(
        os.output(&["cat", "/etc/stage.conf"]).unwrap(),
        "there before the boot\n"
    );
    assert!(os.output(&["false"]).is_err());

    let read = os
        .output(&["tpm2_pcrread", "--tcti", TCTI, "sha256:10"])
        .unwrap();
    let pcr = machine.tpm().client().read(Bank::Sha256, 10).unwrap();
    assert!(read.to_lowercase().contains(&hex::encode(pcr)), "{read}");
    assert!(os.power_off().unwrap().success());
}
