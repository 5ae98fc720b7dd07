use troth_tests::vm::{BootLoader, Cable, Guest};

use crate::{
    ID, IMA_LIST, WARM_UP, assert_that_a_change_is_named, configure_host, configure_server, greet,
    restored, wait_for_trust,
};

const SERVER: &str = "10.77.0.1";
const HOST: &str = "10.77.0.2";

/// Gives a guest of the same image an address of its own.
fn plug_in(guest: &Guest, address: &str) {
    let last = address.rsplit('.').next().unwrap();
    let script = "ip link set eth0 address \"52:54:00:77:00:$0\"
                  ip address add \"$1/24\" dev eth0
                  ip link set eth0 up";
    guest
        .output(&["sh", "-ec", script, &format!("{last:0>2}"), address])
        .unwrap();
}

#[test]
fn a_host_is_attested_by_another_over_their_own_cable() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (directory.path().join("one"), directory.path().join("other"));
    let cable = |here, there| Some(Cable { here, there });
    let server = restored(
        directory.path(),
        "server",
        BootLoader::Stub,
        cable(&one, &other),
    );
    let host = restored(
        directory.path(),
        "host",
        BootLoader::Stub,
        cable(&other, &one),
    );
    plug_in(&server, SERVER);
    plug_in(&host, HOST);
    configure_server(&server, "0.0.0.0", host.ek_issuer());
    server
        .output(&["systemctl", "start", "troth-registrar", "troth-verifier"])
        .unwrap();
    let ca = server
        .output(&["cat", "/var/lib/troth-ca/cacert.crt"])
        .unwrap();
    configure_host(&host, "0.0.0.0", SERVER, &ca);
    host.output(&["systemctl", "start", "troth-agent"]).unwrap();
    let shown = host.property("troth-agent", "StatusText").unwrap();
    assert_eq!(shown, format!("Attesting as {ID} on 0.0.0.0:9002"));

    greet(&host, "hello");
    host.sh(WARM_UP).unwrap();
    let create = [
        "trothctl",
        "policy",
        "create",
        "runtime",
        "--ima-list",
        IMA_LIST,
    ];
    let policy = host.output(&create).unwrap();
    server.write("/tmp/policy.json", &policy).unwrap();
    let add = ["trothctl", "agent", "add", ID, "--boot-policy", "{}"];
    let add = [&add[..], &["--runtime-policy", "/tmp/policy.json"]].concat();
    server.output(&add).unwrap();
    wait_for_trust(&server);
    assert_that_a_change_is_named(&host, &server);
}
