use troth_tests::node::Host;

/// The ports that Keylime's wiki opens, and ours.
const SERVICES: [(&str, &str); 4] = [
    ("keylime", "8881/tcp 8888/tcp 8890/tcp 8891/tcp 9002/tcp"),
    ("troth-agent", "9002/tcp"),
    ("troth-registrar", "8890/tcp 8891/tcp"),
    ("troth-verifier", "8881/tcp"),
];

#[test]
fn firewalld_opens_what_a_service_needs() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::without_tpm(directory.path(), "walled", &[]).unwrap();
    let os = host.os();
    os.output(&["firewall-offline-cmd", "--check-config"])
        .unwrap();
    os.output(&["systemctl", "start", "firewalld"]).unwrap();
    for (service, ports) in SERVICES {
        os.output(&["firewall-cmd", &format!("--add-service={service}")])
            .unwrap();
        let info = format!("--service={service}");
        let shown = os
            .output(&["firewall-cmd", "--permanent", &info, "--get-ports"])
            .unwrap();
        let mut shown: Vec<_> = shown.split_whitespace().collect();
        shown.sort_unstable();
        assert_eq!(shown.join(" "), ports, "{service}");
    }
    let rules = os.output(&["nft", "list", "ruleset"]).unwrap();
    assert!(rules.contains("tcp dport 9002 accept"), "{rules}");
}
