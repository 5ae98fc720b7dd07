use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use rustls::ClientConfig;
use troth_daemon::tls::{Identity, ServerTrust, certificates_from_pem, client_config};
use troth_tests::api::Api;
use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions};
use troth_tests::process::PATIENCE;

use crate::{Stage, raw};

/// The three doors: what a client sees that asks the verifier, the registrar and an agent.
#[derive(Debug, PartialEq)]
struct Seen {
    verifier: Option<u16>,
    registrar: Option<u16>,
    agent: Option<u16>,
}

/// Turned away in the handshake.
const NO_CONNECTION: Seen = Seen {
    verifier: None,
    registrar: None,
    agent: None,
};

/// A fleet with an agent, which needs no boot for this.
struct Doors {
    agent: Agent,
    // Dropped from the top: the agent before its TPM, everything before the files.
    _machine: Machine,
    stage: Stage,
}

impl Doors {
    fn new() -> Self {
        let stage = Stage::new();
        let machine = Machine::manufacture(&stage.path().join("machine")).unwrap();
        let agent = Agent::start(
            &stage.programs,
            &stage.path().join("agent"),
            &machine,
            stage.fleet.registrar_port(),
            &stage.fleet.ca_dir(),
            &AgentOptions::with_id("guarded"),
        )
        .unwrap();
        stage.fleet.wait_registered("guarded").unwrap();
        Self {
            agent,
            _machine: machine,
            stage,
        }
    }

    fn ca_dir(&self) -> std::path::PathBuf {
        self.stage.fleet.ca_dir()
    }

    fn seen_by(&self, identity: Option<&Identity>) -> Seen {
        let ca = fs::read(self.ca_dir().join("cacert.crt")).unwrap();
        let ca = ServerTrust::Roots(certificates_from_pem(&ca).unwrap());
        let servers: Arc<ClientConfig> = client_config(ca, identity).unwrap();
        let agent = self.agent_tls(identity);
        let list = raw::request("GET /v2.6/agents/", "", "");
        let quote = raw::request(
            "GET /v2.6/quotes/identity?nonce=abcdefghij0123456789",
            "",
            "",
        );
        let fleet = &self.stage.fleet;
        Seen {
            verifier: raw::status(fleet.verifier_port(), Some(Arc::clone(&servers)), &list),
            registrar: raw::status(fleet.registrar_tls_port(), Some(servers), &list),
            agent: raw::status(self.agent.address().port(), Some(agent), &quote),
        }
    }

    /// TLS towards the agent.
    fn agent_tls(&self, identity: Option<&Identity>) -> Arc<ClientConfig> {
        let certificate = fs::read(self.agent.tls_files().0).unwrap();
        let certificate = certificates_from_pem(&certificate).unwrap().remove(0);
        client_config(ServerTrust::Pinned(certificate), identity).unwrap()
    }

    /// What the bearer of a certificate sees that the CA issued with `change`; the honest one is
    /// let in everywhere, or the case would prove nothing.
    fn seen_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Seen {
        let honest = self.seen_by(Some(&issued(&self.ca_dir(), |_| {})));
        let everywhere = Seen {
            verifier: Some(200),
            registrar: Some(200),
            agent: Some(200),
        };
        assert_eq!(honest, everywhere);
        self.seen_by(Some(&issued(&self.ca_dir(), change)))
    }
}

/// A client certificate of the CA in `ca_dir`.
pub(crate) fn issued(ca_dir: &Path, change: impl FnOnce(&mut CertificateParams)) -> Identity {
    issued_by(&issuer(ca_dir), change)
}

fn issuer(ca_dir: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pem(&fs::read_to_string(ca_dir.join("ca-private.pem")).unwrap());
    let certificate = fs::read_to_string(ca_dir.join("cacert.crt")).unwrap();
    Issuer::from_ca_cert_pem(&certificate, key.unwrap()).unwrap()
}

fn issued_by(
    issuer: &Issuer<'_, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut parameters = parameters();
    change(&mut parameters);
    let certificate = parameters.signed_by(&key, issuer).unwrap().pem();
    Identity::from_pem(certificate.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
}

fn parameters() -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters
        .distinguished_name
        .push(DnType::CommonName, "operator");
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    parameters
}

/// No certificate: the servers have routes for everybody, an agent has none.
///
/// Check: `verifier/src/authority.rs`: `peer.common_name()`
#[test]
fn without_a_certificate() {
    let seen = Doors::new().seen_by(None);
    let forbidden = Seen {
        verifier: Some(403),
        registrar: Some(403),
        agent: None,
    };
    assert_eq!(seen, forbidden);
}

/// Check: `daemon/src/tls/clients.rs`: `.verify_client_cert(end_entity, intermediates, now)`
#[test]
fn with_an_expired_certificate() {
    let seen = Doors::new().seen_with(|certificate| {
        certificate.not_after = date_time_ymd(2020, 1, 1);
    });
    assert_eq!(seen, NO_CONNECTION);
}

/// Check: `daemon/src/tls/clients.rs`: `.verify_client_cert(end_entity, intermediates, now)`
#[test]
fn with_a_certificate_of_the_future() {
    let seen = Doors::new().seen_with(|certificate| {
        certificate.not_before = date_time_ymd(2150, 1, 1);
    });
    assert_eq!(seen, NO_CONNECTION);
}

/// A server's certificate, such as every server of the site may have.
///
/// Check: `daemon/src/tls/clients.rs`: `.verify_client_cert(end_entity, intermediates, now)`
#[test]
fn with_a_certificate_for_servers() {
    let seen = Doors::new().seen_with(|certificate| {
        certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert_eq!(seen, NO_CONNECTION);
}

/// The right CA, and nobody in particular. Agents know no administrators: whoever the CA certifies
/// as a client may ask for evidence.
///
/// Check: `verifier/src/authority.rs`: `.filter(|name| !name.is_empty())`
#[test]
fn with_an_empty_common_name() {
    let seen = Doors::new().seen_with(|certificate| {
        certificate.distinguished_name.push(DnType::CommonName, "");
    });
    let nobody = Seen {
        verifier: Some(403),
        registrar: Some(403),
        agent: Some(200),
    };
    assert_eq!(seen, nobody);
}

/// Check: `verifier/src/authority.rs`: `peer.common_name()`
#[test]
fn without_any_name() {
    let seen = Doors::new().seen_with(|certificate| {
        certificate.distinguished_name.remove(DnType::CommonName);
    });
    assert_eq!((seen.verifier, seen.registrar), (Some(403), Some(403)));
}

/// Check: `daemon/src/tls/clients.rs`: `.verify_client_cert(end_entity, intermediates, now)`
#[test]
fn with_a_self_signed_certificate() {
    let key = KeyPair::generate().unwrap();
    let certificate = parameters().self_signed(&key).unwrap().pem();
    let identity = Identity::from_pem(certificate.as_bytes(), key.serialize_pem().as_bytes());
    assert_eq!(
        Doors::new().seen_by(Some(&identity.unwrap())),
        NO_CONNECTION
    );
}

/// A CA of the same name with another key.
///
/// Check: `daemon/src/tls/clients.rs`: `.verify_client_cert(end_entity, intermediates, now)`
#[test]
fn with_a_certificate_of_another_ca() {
    let doors = Doors::new();
    let key = KeyPair::generate().unwrap();
    let ours = fs::read_to_string(doors.ca_dir().join("cacert.crt")).unwrap();
    let theirs = Issuer::from_ca_cert_pem(&ours, key).unwrap();
    assert_eq!(
        doors.seen_by(Some(&issued_by(&theirs, |_| {}))),
        NO_CONNECTION
    );
}

/// A client of the CA issues a certificate itself, and shows its own along.
///
/// Check: `daemon/src/tls/clients.rs`: `.verify_client_cert(end_entity, intermediates, now)`
#[test]
fn with_a_certificate_that_a_client_issued() {
    let doors = Doors::new();
    let read = |name| fs::read_to_string(doors.ca_dir().join(name)).unwrap();
    let client = read("client-cert.crt");
    let mut claimed = CertificateParams::default();
    claimed.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::from_pem(&read("client-private.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&client, key).unwrap();
    let leaf = KeyPair::generate().unwrap();
    let chain = parameters().signed_by(&leaf, &issuer).unwrap().pem() + &client;
    let identity = Identity::from_pem(chain.as_bytes(), leaf.serialize_pem().as_bytes());
    assert_eq!(doors.seen_by(Some(&identity.unwrap())), NO_CONNECTION);
}

/// A key that was lost, and whose certificate its CA has revoked since. Who has it is connected
/// already.
///
/// Check: `daemon/src/tls/clients.rs`: `lists.revoke_any(&certificates)`
#[test]
fn with_a_revoked_certificate() {
    let doors = Doors::new();
    let lost = SerialNumber::from(77);
    let identity = issued(&doors.ca_dir(), |certificate| {
        certificate.serial_number = Some(lost.clone());
    });
    let thief = Api::over_tls(
        doors.stage.fleet.verifier_port(),
        &doors.ca_dir(),
        Some(&identity),
    )
    .unwrap();
    assert_eq!(thief.get("/v2.6/agents/").unwrap().status, 200);
    let tls = doors.agent_tls(Some(&identity));
    let reading = Api::over(doors.agent.address().port(), Some(tls)).unwrap();
    let evidence = "/v2.6/quotes/identity?nonce=abcdefghij0123456789";
    assert_eq!(reading.get(evidence).unwrap().status, 200);
    fs::write(
        doors.ca_dir().join("cacrl.pem"),
        revoking(&doors.ca_dir(), lost),
    )
    .unwrap();
    let start = Instant::now();
    while doors.seen_by(Some(&identity)) != NO_CONNECTION {
        assert!(start.elapsed() < PATIENCE, "the list was not read");
        std::thread::sleep(Duration::from_millis(100));
    }
    thief.get("/v2.6/agents/").unwrap_err();
    reading.get(evidence).unwrap_err();
    // Nobody else is.
    let status = |api: &Api| api.get("/v2.6/agents/").unwrap().status;
    assert_eq!(status(&doors.stage.operator.verifier), 200);
    assert_eq!(status(&doors.stage.operator.registrar), 200);
}

/// The CA's list of revoked certificates, PEM.
fn revoking(ca_dir: &Path, serial_number: SerialNumber) -> String {
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2150, 1, 1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number,
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer(ca_dir)).unwrap().pem().unwrap()
}

/// What an agent has for its own server opens nothing, its own door included.
///
/// Check: `daemon/src/tls/clients.rs`: `.verify_client_cert(end_entity, intermediates, now)`
#[test]
fn with_the_agents_own_certificate() {
    let doors = Doors::new();
    let (certificate, key) = doors.agent.tls_files();
    let identity = Identity::load(&certificate, &key).unwrap();
    assert_eq!(doors.seen_by(Some(&identity)), NO_CONNECTION);
}
