use std::fs;

use serde_json::Value;
use troth_tests::fleet::AgentOptions;
use troth_tests::keylime::{Servers, Tenant};
use troth_tests::process::output_of;

use crate::Stage;

const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00007";

/// What Keylime's verifier asks of a policy that is stored: is the file signed by the key?
const THEIR_CHECK: &str = "\
import sys
from keylime.ima import ima
text, key = (open(name, 'rb').read() for name in sys.argv[1:3])
try:
    ima.verify_runtime_policy(text, key, True)
except ima.ImaValidationError as error:
    sys.exit(error.message)
";

/// Without a key, what it makes of the certificate in the signature.
const THEIR_CERTIFICATE_CHECK: &str = "\
import sys
from keylime import signing
sys.exit(0 if signing.verify_dsse_envelope(open(sys.argv[1], 'rb').read(), None) else 1)
";

/// Keylime's own program for signing.
const THEIR_SIGNER: &str = "from keylime.cmd.sign_runtime_policy import main; main()";

/// Runs `trothctl policy ...`, which succeeds.
fn policy(stage: &Stage, line: &str) -> Value {
    let words: Vec<_> = ["--json", "policy"]
        .into_iter()
        .chain(line.split(' '))
        .collect();
    let answer = stage.fleet.trothctl(&words).unwrap().success().unwrap();
    serde_json::from_str(&answer.stdout).unwrap_or_default()
}

/// Signed policies of either side at the other, and at a verifier of ours by Keylime's tenant.
#[test]
fn signed_policies_are_understood_on_both_sides() {
    let stage = Stage::new();
    let ca_dir = stage.fleet.ca_dir();
    let servers = Servers {
        verifier_port: stage.fleet.verifier_port(),
        registrar_tls_port: stage.fleet.registrar_tls_port(),
        ca_dir: &ca_dir,
    };
    let place = stage.path().join("tenant");
    let tenant = Tenant::new(&place, servers, &stage.machine.tpm().ek_issuer()).unwrap();
    let file = |name: &str| stage.path().join(name).to_str().unwrap().to_owned();
    let plain = stage.policy();
    let plain = plain.to_str().unwrap();

    // Ours at theirs, with either backend.
    let [ecdsa, x509, key, public, certificate] = [
        "ours.json",
        "ours-x509.json",
        "key.pem",
        "key.pub",
        "own.crt",
    ]
    .map(file);
    let told = policy(&stage, &format!("sign {plain} --new-key {key} -o {ecdsa}"));
    fs::write(&public, told["public_key"].as_str().unwrap()).unwrap();
    let more = format!("--key {key} --cert-out {certificate}");
    policy(&stage, &format!("sign {plain} {more} -o {x509}"));
    for signed in [&ecdsa, &x509] {
        tenant.python(THEIR_CHECK, &[signed, &public]).unwrap();
    }
    tenant.python(THEIR_CERTIFICATE_CHECK, &[&x509]).unwrap();
    let forged = file("forged.json");
    let text = fs::read_to_string(&ecdsa).unwrap();
    fs::write(
        &forged,
        text.replacen("\"payload\":\"e", "\"payload\":\"f", 1),
    )
    .unwrap();
    assert!(tenant.python(THEIR_CHECK, &[&forged, &public]).is_err());

    // Theirs at ours: a key of their making, one of P-384, and a certificate.
    let [their_key, p384] = ["their.pem", "p384.pem"].map(file);
    let mut openssl = std::process::Command::new("openssl");
    let words = "ecparam -genkey -name secp384r1 -noout -out".split(' ');
    output_of(openssl.args(words).arg(&p384)).unwrap();
    for (name, options, key) in [
        ("their.json", ["-b", "ecdsa", "-p", &their_key], &their_key),
        ("their-384.json", ["-b", "ecdsa", "-k", &p384], &p384),
        (
            "their-x509.json",
            ["-b", "x509", "-k", &their_key],
            &their_key,
        ),
    ] {
        let signed = file(name);
        let crt = file("their.crt");
        let files = ["-r", plain, "-o", &signed, "-c", &crt];
        let arguments: Vec<_> = files.into_iter().chain(options).collect();
        tenant.python(THEIR_SIGNER, &arguments).unwrap();
        let public = file("their.pub");
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["ec", "-in", key, "-pubout", "-out", &public]);
        output_of(&mut openssl).unwrap();
        let verified = policy(&stage, &format!("verify {signed} --key {public}"));
        assert_eq!(verified["verified"], true, "{name}: {verified:#}");
        if name == "their-x509.json" {
            let verified = policy(&stage, &format!("verify {signed} --key {crt}"));
            assert!(
                verified["signatures"][0]["certificate"].is_object(),
                "{verified:#}"
            );
        }
    }

    // Keylime's tenant enrols a node with what we signed, and checks it before.
    let _agent = stage.agent(&AgentOptions::with_id(ID));
    let options = [
        "--runtime-policy",
        &x509,
        "--runtime-policy-sig-key",
        &public,
    ];
    let add = [&["-c", "add", "-u", ID][..], &options].concat();
    tenant.run(&add).unwrap();
    let node = tenant.wait_for_attestations(ID, 2).unwrap();
    assert_eq!(node["operational_state"], 3, "{node:#}");
    let shown = policy(&stage, &format!("show runtime:{ID}"));
    assert_eq!(shown["summary"]["version"], 1, "{shown:#}");
    assert_eq!(shown["signatures"].as_array().unwrap().len(), 1);
    let same = policy(&stage, &format!("diff runtime:{ID} {plain}"));
    assert_eq!(same["same"], true, "{same:#}");
}
