use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::Method;
use serde_json::{Value, json};
use troth_core::identity::{AgentId, activation_tag};
use troth_core::tpm::Public;
use troth_daemon::tls::{Identity, ServerTrust, certificates_from_pem, client_config};
use troth_tests::api::Api;

use super::{Registrar, Tpm, VICTIM};
use crate::forge::{AK_ATTRIBUTES, Ak};
use crate::raw;

/// Another TPM under the victim's id, at either path.
///
/// Check: `verifier/src/store/registrar.rs`: `AND NOT (ek_tpm = $2 AND aik_tpm = $6`
#[test]
fn another_tpm_takes_the_id() {
    let (registrar, victim, before) = Registrar::with_victim();
    let reply = registrar.register(VICTIM, &Tpm::new().registration());
    assert_eq!(reply.status, 403, "{reply:?}");
    registrar.assert_untouched(&victim, &before);
}

/// Check: `verifier/src/store/registrar.rs`: `AND NOT (ek_tpm = $2 AND aik_tpm = $6`
#[test]
fn another_tpm_takes_the_id_in_the_body() {
    let (registrar, victim, before) = Registrar::with_victim();
    let mut body = Tpm::new().registration();
    body["agent_id"] = json!(VICTIM);
    let reply = registrar
        .anyone
        .send(Method::POST, "/v2.6/agents", Some(&body))
        .unwrap();
    assert_eq!(reply.status, 403, "{reply:?}");
    registrar.assert_untouched(&victim, &before);
}

/// The victim's own EK with an AK of the intruder.
///
/// Check: `verifier/src/store/registrar.rs`: `self.aik_tpm == other.aik_tpm`
#[test]
fn another_ak_takes_the_id() {
    let (registrar, victim, before) = Registrar::with_victim();
    let mut body = victim.registration();
    body["aik_tpm"] = json!(Ak::generate().public());
    assert_eq!(registrar.register(VICTIM, &body).status, 403);
    registrar.assert_untouched(&victim, &before);
}

/// The victim's AK with an EK that answers for the intruder.
///
/// Check: `verifier/src/store/registrar.rs`: `self.ek_tpm == other.ek_tpm`
#[test]
fn another_ek_takes_the_id() {
    let (registrar, victim, before) = Registrar::with_victim();
    let mut body = Tpm::new().registration();
    body["aik_tpm"] = json!(victim.ak.public());
    assert_eq!(registrar.register(VICTIM, &body).status, 403);
    registrar.assert_untouched(&victim, &before);
}

/// Another certificate for the victim's EK.
///
/// Check: `verifier/src/store/registrar.rs`: `(Some(a), Some(b)) => a == b`
#[test]
fn another_ek_certificate() {
    let (registrar, victim, before) = Registrar::with_victim();
    let mut other = victim.ek.certificate.clone();
    *other.last_mut().unwrap() ^= 1;
    let mut body = victim.registration();
    body["ekcert"] = json!(BASE64_STANDARD.encode(other));
    assert_eq!(registrar.register(VICTIM, &body).status, 403);
    registrar.assert_untouched(&victim, &before);
}

/// A wrong answer on an active registration.
///
/// Check: `verifier/src/registrar/exchange.rs`: `activation_tag_matches(&pending.challenge`
#[test]
fn a_failed_activation_of_an_active_registration() {
    let (registrar, victim, before) = Registrar::with_victim();
    assert_eq!(registrar.activate(VICTIM, &"0".repeat(96)).status, 400);
    assert_eq!(
        registrar.register(VICTIM, &victim.registration()).status,
        200
    );
    assert_eq!(registrar.activate(VICTIM, &"0".repeat(96)).status, 400);
    registrar.assert_untouched(&victim, &before);
}

/// The intruder's own registration gives him a good tag, for his own id and challenge.
///
/// Check: `core/src/identity/activation.rs`: `hmac::verify`
#[test]
fn the_tag_of_another_agent() {
    let (registrar, victim, before) = Registrar::with_victim();
    let intruder = Tpm::new();
    let challenge = registrar.register("intruder", &intruder.registration());
    assert_eq!(
        registrar.register(VICTIM, &victim.registration()).status,
        200
    );
    for id in ["intruder", VICTIM] {
        let tag = intruder.tag(id, &challenge);
        assert_eq!(registrar.activate(VICTIM, &tag).status, 400);
    }
    registrar.assert_untouched(&victim, &before);
}

/// The victim's tag, overheard and sent again: it activates nothing a second time.
///
/// Check: `verifier/src/store/registrar.rs`: `RETURNING {COLUMNS}`
#[test]
fn a_replayed_tag() {
    let registrar = Registrar::new();
    let victim = Tpm::new();
    let challenge = registrar.register(VICTIM, &victim.registration());
    let tag = victim.tag(VICTIM, &challenge);
    assert_eq!(registrar.activate(VICTIM, &tag).status, 200);
    let before = registrar.record(VICTIM);
    assert_eq!(registrar.activate(VICTIM, &tag).status, 400);
    assert_eq!(
        registrar.record(VICTIM),
        before,
        "no further activation is counted"
    );
    registrar.assert_untouched(&victim, &before);
}

/// The tag of an earlier challenge on a later registration, which has the intruder's address.
///
/// Check: `verifier/src/registrar/exchange.rs`: `aws_lc_rs::rand::fill(&mut challenge)`
#[test]
fn the_tag_of_an_earlier_challenge() {
    let registrar = Registrar::new();
    let victim = Tpm::new();
    let challenge = registrar.register(VICTIM, &victim.registration());
    let tag = victim.tag(VICTIM, &challenge);
    assert_eq!(registrar.activate(VICTIM, &tag).status, 200);
    let before = registrar.record(VICTIM);
    let mut body = victim.registration();
    body["ip"] = json!("192.0.2.66");
    assert_eq!(registrar.register(VICTIM, &body).status, 200);
    assert_eq!(registrar.activate(VICTIM, &tag).status, 400);
    registrar.assert_untouched(&victim, &before);
}

/// Guesses: none is right, and the first one spends the challenge, so that there are no others.
///
/// Check: `verifier/src/store/registrar.rs`: `RETURNING {COLUMNS}`
#[test]
fn guessed_tags() {
    let registrar = Registrar::new();
    let victim = Tpm::new();
    for guess in [
        "",
        "00",
        &"0".repeat(96),
        &"f".repeat(98),
        "é",
        &"A".repeat(40_000),
    ] {
        let challenge = registrar.register(VICTIM, &victim.registration());
        let tag = victim.tag(VICTIM, &challenge);
        assert_eq!(registrar.activate(VICTIM, guess).status, 400, "{guess:?}");
        assert_eq!(registrar.activate(VICTIM, &tag).status, 404, "{guess:?}");
    }
    assert_eq!(registrar.record(VICTIM), Value::Null);
    registrar.take_in(VICTIM, &victim);
}

/// Somebody at another address wants the victim never to finish: he registers its id again and
/// again, with its keys and with others, and answers wrongly, between challenge and answer.
///
/// Check: `verifier/src/store/registrar.rs`: `ON CONFLICT (agent_id, source)`
#[test]
fn the_challenge_of_another_address_is_spent() {
    let registrar = Registrar::new();
    let port = registrar.stage.fleet.registrar_port();
    let victim = Tpm::new();
    let challenge = registrar.register(VICTIM, &victim.registration());
    let elsewhere = |line: &str, body: &Value| {
        let request = raw::request(line, "", &body.to_string());
        raw::status_from([127, 0, 0, 66].into(), port, None, &request)
    };
    let (post, put) = ("POST /v2.6/agents/victim", "PUT /v2.6/agents/victim");
    let wrong = json!({ "auth_tag": "0".repeat(96) });
    assert_eq!(elsewhere(put, &wrong), Some(404));
    for body in [victim.registration(), Tpm::new().registration()] {
        for _ in 0..3 {
            assert_eq!(elsewhere(post, &body), Some(200));
        }
        assert_eq!(elsewhere(put, &wrong), Some(400));
        assert_eq!(elsewhere(put, &wrong), Some(404));
    }
    let activated = registrar.activate(VICTIM, &victim.tag(VICTIM, &challenge));
    assert_eq!(activated.status, 200, "{activated:?}");
    let before = registrar.record(VICTIM);
    registrar.assert_untouched(&victim, &before);
}

/// An agent that has another address by the time of its answer is in all the same.
///
/// Check: `verifier/src/registrar/exchange.rs`: `self.store.pending_of(id.as_str())`
#[test]
fn an_answer_from_another_address() {
    let registrar = Registrar::new();
    let port = registrar.stage.fleet.registrar_port();
    let victim = Tpm::new();
    let challenge = registrar.register(VICTIM, &victim.registration());
    let body = json!({ "auth_tag": victim.tag(VICTIM, &challenge) }).to_string();
    let request = raw::request("PUT /v2.6/agents/victim", "", &body);
    let answer = || raw::status_from([127, 0, 0, 66].into(), port, None, &request);
    assert_eq!(answer(), Some(200));
    assert_eq!(answer(), Some(400), "it is spent");
    assert_eq!(registrar.record(VICTIM)["regcount"], 1);
}

/// Who knows the victim's public keys registers them with his own address and certificate: without
/// the TPM's proof nothing of that is shown to a verifier.
///
/// Check: `verifier/src/registrar/exchange.rs`: `.put_pending(&pending`
#[test]
fn another_address_without_proof() {
    let (registrar, victim, before) = Registrar::with_victim();
    let mut body = victim.registration();
    body["ip"] = json!("192.0.2.66");
    body["port"] = json!(6666);
    assert_eq!(registrar.register(VICTIM, &body).status, 200);
    registrar.assert_untouched(&victim, &before);
}

/// A challenge is bound to the name of the AK that was registered: malware on the victim's host,
/// which may use the victim's EK, has it answered for the victim's AK only.
///
/// Check: `core/src/tpm/credential.rs`: `name.as_bytes()`
#[test]
fn the_victims_ek_answers_for_a_foreign_ak() {
    let registrar = Registrar::new();
    let victim = Tpm::new();
    let mut body = victim.registration();
    body["aik_tpm"] = json!(Ak::generate().public());
    let challenge = registrar.register("other-id", &body);
    assert_eq!(challenge.status, 200, "{challenge:?}");
    let ak = Public::from_tpmt(&victim.ak.tpmt(AK_ATTRIBUTES)).unwrap();
    let blob = challenge.body["results"]["blob"].as_str().unwrap();
    let blob = BASE64_STANDARD.decode(blob).unwrap();
    if let Ok(opened) = victim.ek.activate(&ak.name(), &blob) {
        // A TPM would have refused: the blob's HMAC is over the name as well.
        let tag = activation_tag(&opened, &AgentId::new("other-id").unwrap());
        assert_eq!(registrar.activate("other-id", &tag).status, 400);
    }
    assert_eq!(registrar.record("other-id"), Value::Null);
}

/// Check: `verifier/src/registrar/mod.rs`: `AGENT, Admin, "delete_registration"`
#[test]
fn removal_without_a_certificate() {
    let (registrar, victim, before) = Registrar::with_victim();
    let fleet = &registrar.stage.fleet;
    let anyone = Api::anonymous(fleet.registrar_tls_port(), &fleet.ca_dir()).unwrap();
    for method in [Method::DELETE, Method::GET] {
        let reply = anyone.send(method, "/v2.6/agents/victim", None).unwrap();
        assert_eq!(reply.status, 403, "{reply:?}");
    }
    registrar.assert_untouched(&victim, &before);
}

/// A token never falls back to anything, not even to the certificate of an administrator.
///
/// Check: `verifier/src/authority.rs`: `header::AUTHORIZATION`
#[test]
fn removal_with_a_token() {
    let (registrar, victim, before) = Registrar::with_victim();
    let fleet = &registrar.stage.fleet;
    let read = |name| std::fs::read(fleet.ca_dir().join(name)).unwrap();
    let identity = Identity::from_pem(&read("client-cert.crt"), &read("client-private.pem"));
    let identity = identity.unwrap();
    for identity in [None, Some(&identity)] {
        for method in ["DELETE", "GET"] {
            for token in ["Bearer AAAA", "bearer", "Basic AAAA", ""] {
                let ca = certificates_from_pem(&read("cacert.crt")).unwrap();
                let tls = client_config(ServerTrust::Roots(ca), identity).unwrap();
                let line = format!("{method} /v2.6/agents/victim");
                let header = format!("authorization: {token}\r\n");
                let request = raw::request(&line, &header, "");
                let status = raw::status(fleet.registrar_tls_port(), Some(tls), &request);
                assert_eq!(status, Some(401), "{method} {token:?}");
            }
        }
    }
    registrar.assert_untouched(&victim, &before);
}

/// Check: `verifier/src/authority.rs`: `!peer.tls`
#[test]
fn removal_over_plain_http() {
    let (registrar, victim, before) = Registrar::with_victim();
    for method in [Method::DELETE, Method::GET] {
        let reply = registrar
            .anyone
            .send(method, "/v2.6/agents/victim", None)
            .unwrap();
        assert_eq!(reply.status, 400, "{reply:?}");
    }
    registrar.assert_untouched(&victim, &before);
}
