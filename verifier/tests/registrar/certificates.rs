use std::{fs, path::Path};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SubjectPublicKeyInfo, date_time_ymd,
};
use serde_json::{Value, json};
use troth_core::tpm::Public;
use troth_verifier::{
    config::{MalformedCertAction, RegistrarConfig, TpmIdentity},
    server::{RegistrarServer, StartError},
};

use super::{
    common::{SoftTpm, ecdsa_public},
    start, start_with,
};

/// tcg-kp-EKCertificate and tcg-kp-AIKCertificate.
const EK: &[u64] = &[2, 23, 133, 8, 1];
const AIK: &[u64] = &[2, 23, 133, 8, 3];

/// A manufacturer of TPMs and devices: a root CA and an issuing CA.
struct Maker {
    root: String,
    ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Maker {
    fn new() -> Self {
        let mut root = named("Maker Root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_key = KeyPair::generate().unwrap();
        let root_certificate = root.self_signed(&root_key).unwrap();
        let root = Issuer::new(root, root_key);
        let mut ca = named("Maker CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca_certificate = ca.signed_by(&ca_key, &root).unwrap();
        Self {
            root: root_certificate.pem(),
            ca: ca_certificate.pem(),
            issuer: Issuer::new(ca, ca_key),
        }
    }

    /// Puts the root's certificate into the store of a registrar.
    fn trusted_in(&self, state_dir: &Path) {
        let store = state_dir.join("tpm_cert_store");
        fs::create_dir_all(&store).unwrap();
        fs::write(store.join("maker.pem"), &self.root).unwrap();
    }

    /// PEM of a key's certificate and of the issuing CA's.
    fn chain(&self, key: &str, purpose: Option<&[u64]>, usage: KeyUsagePurpose) -> String {
        self.chain_until(key, purpose, usage, 4096)
    }

    fn chain_until(
        &self,
        key: &str,
        purpose: Option<&[u64]>,
        usage: KeyUsagePurpose,
        year: i32,
    ) -> String {
        let public = Public::from_tpm2b(&STANDARD.decode(key).unwrap()).unwrap();
        let key = SubjectPublicKeyInfo::from_der(&public.to_spki_der()).unwrap();
        let mut params = named("device");
        params.key_usages = vec![usage];
        params.not_after = date_time_ymd(year, 1, 1);
        let purpose = purpose.map(|oid| ExtendedKeyUsagePurpose::Other(oid.to_vec()));
        params.extended_key_usages = purpose.into_iter().collect();
        let own = params.signed_by(&key, &self.issuer).unwrap();
        format!("{}{}", own.pem(), self.ca)
    }

    fn ek_chain(&self, tpm: &SoftTpm) -> String {
        self.chain(&tpm.ek_tpm(), Some(EK), KeyUsagePurpose::KeyEncipherment)
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// base64 DER of the PEM certificates of a text.
pub(super) fn ders(pem: &str) -> Vec<String> {
    pem.split("-----BEGIN CERTIFICATE-----")
        .skip(1)
        .map(|rest| rest.split("-----END").next().unwrap())
        .map(|body| body.split_whitespace().collect())
        .collect()
}

/// The registration of a TPM whose device has an identity.
fn device_registration(tpm: &SoftTpm, maker: &Maker, id: &str) -> Value {
    let pair = || EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let (iak, idevid) = (pair(), pair());
    let iak_tpm = ecdsa_public(&iak, 0x0005_00f2);
    let idevid_tpm = ecdsa_public(&idevid, 0x0004_00f2);
    let signs = KeyUsagePurpose::DigitalSignature;
    let [attest, signature] = tpm.certified_by(&iak, id);
    let mut body = tpm.registration();
    body["iak_cert"] = json!(maker.chain(&iak_tpm, Some(AIK), signs));
    body["idevid_cert"] = json!(maker.chain(&idevid_tpm, None, signs));
    body["iak_tpm"] = json!(iak_tpm);
    body["idevid_tpm"] = json!(idevid_tpm);
    body["iak_attest"] = json!(attest);
    body["iak_sign"] = json!(signature);
    body
}

fn config(state_dir: &Path) -> RegistrarConfig {
    RegistrarConfig {
        state_dir: state_dir.into(),
        ..RegistrarConfig::default()
    }
}

#[tokio::test]
async fn an_ek_certificate_comes_back_as_it_was_whatever_form_it_came_in() {
    let root = tempfile::tempdir().unwrap();
    let server = start_with(config(root.path())).await;
    let (tpm, maker) = (SoftTpm::new(), Maker::new());
    let chain = maker.ek_chain(&tpm);
    let own = &ders(&chain)[0];
    let der = STANDARD.decode(own).unwrap();
    let length = u16::try_from(der.len()).unwrap().to_be_bytes();
    let wrapped = [&[0x04, 0x82], &length[..], &der].concat();
    let padded = [&der[..], &[0xff; 300]].concat();
    let forms = [
        json!(chain),
        json!(own),
        json!(STANDARD.encode(wrapped)),
        json!(STANDARD.encode(padded)),
        json!(own.trim_end_matches('=')),
    ];
    for (n, form) in forms.into_iter().enumerate() {
        let id = format!("node-{n}");
        let mut body = tpm.registration();
        body["ekcert"] = form;
        server.enrol(&id, &tpm, body).await;
        let record = &server.show(&id).await.1["results"];
        assert_eq!(record["ekcert"], json!(own), "{id}");
        let cas = (n == 0).then(|| json!([ders(&chain)[1]]));
        assert_eq!(record.get("ekcert_chain"), cas.as_ref(), "{id}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_ek_certificate_leads_to_the_store_where_that_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let (tpm, maker) = (SoftTpm::new(), Maker::new());
    maker.trusted_in(root.path());
    let strict = RegistrarConfig {
        require_ek_cert: true,
        accept_expired_tpm_certs: false,
        ..config(root.path())
    };
    let server = start_with(strict.clone()).await;
    let with = |ekcert: &str| {
        let mut body = tpm.registration();
        body["ekcert"] = json!(ekcert);
        body
    };
    let chain = maker.ek_chain(&tpm);
    let stranger = Maker::new().ek_chain(&tpm);
    let tls = maker.chain(&tpm.ek_tpm(), None, KeyUsagePurpose::DigitalSignature);
    let expired = maker.chain_until(
        &tpm.ek_tpm(),
        Some(EK),
        KeyUsagePurpose::KeyEncipherment,
        2020,
    );
    for (ekcert, reason) in [
        ("", "ekcert is missing"),
        (
            &ders(&chain)[0],
            "its issuer (CN=Maker CA) is neither in the store",
        ),
        (&stranger, "was not signed by the key of CN=Maker Root"),
        (&tls, "is not an EK certificate"),
        (&expired, "has expired on 2020-01-01"),
    ] {
        let (status, answer) = server.register("a", with(ekcert)).await;
        let text = answer["status"].as_str().unwrap();
        assert!(status == 400 && text.contains(reason), "{status} {text}");
    }
    server.enrol("a", &tpm, with(&chain)).await;
    // A manufacturer that vouches for the device does as well, by default.
    let (_, answer) = server
        .register("b", device_registration(&tpm, &maker, "b"))
        .await;
    assert_eq!(answer["code"], 200, "{answer}");
    server.stop().await;

    let server = start_with(RegistrarConfig {
        tpm_identity: TpmIdentity::EkCert,
        accept_expired_tpm_certs: true,
        ..strict
    })
    .await;
    let (status, _) = server
        .register("b", device_registration(&tpm, &maker, "b"))
        .await;
    assert_eq!(status, 400);
    assert_eq!(server.register("b", with(&expired)).await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_device_identity_is_checked_to_the_store() {
    let root = tempfile::tempdir().unwrap();
    let (tpm, maker) = (SoftTpm::new(), Maker::new());
    maker.trusted_in(root.path());
    let server = start_with(RegistrarConfig {
        tpm_identity: TpmIdentity::IakIdevid,
        ..config(root.path())
    })
    .await;
    let good = device_registration(&tpm, &maker, "a");
    let with = |member: &str, value: Value| {
        let mut body = good.clone();
        body[member] = value;
        body
    };
    let foreign = device_registration(&tpm, &Maker::new(), "a");
    let other_id = device_registration(&tpm, &maker, "b");
    for (body, reason) in [
        (tpm.registration(), "iak_tpm is missing"),
        (with("idevid_tpm", json!(null)), "idevid_tpm is missing"),
        (with("iak_cert", json!("")), "iak_cert is missing"),
        (with("idevid_cert", json!(null)), "idevid_cert is missing"),
        (with("iak_attest", json!(null)), "iak_attest is missing"),
        (with("iak_sign", json!("*")), "iak_sign is neither base64"),
        (
            with("iak_tpm", good["idevid_tpm"].clone()),
            "iak_tpm: IAK has the wrong",
        ),
        (
            with("idevid_tpm", good["iak_tpm"].clone()),
            "idevid_tpm: IDevID has the wrong",
        ),
        (
            with("iak_cert", good["idevid_cert"].clone()),
            "iak_cert: CN=device: is not the cert",
        ),
        (
            with("iak_sign", foreign["iak_sign"].clone()),
            "iak_attest: signature",
        ),
        (other_id, "iak_attest: extraData"),
        (foreign, "was not signed by the key of CN=Maker Root"),
    ] {
        let (status, answer) = server.register("a", body).await;
        let text = answer["status"].as_str().unwrap();
        assert!(
            status == 400 && text.contains(reason),
            "{reason}: {status} {text}"
        );
    }
    // It does not take the place of the challenge, and is not shown.
    server.enrol("a", &tpm, good.clone()).await;
    let (_, answer) = server.show("a").await;
    assert_eq!(answer["results"].get("iak_tpm"), None);
    // Another IAK of the same TPM is no other identity; another TPM is, with or without one.
    let again = device_registration(&tpm, &maker, "a");
    assert_ne!(again["iak_tpm"], good["iak_tpm"]);
    server.enrol("a", &tpm, again).await;
    let thief = SoftTpm::new();
    let (status, _) = server
        .register("a", device_registration(&thief, &maker, "a"))
        .await;
    assert_eq!(status, 403);
    server.stop().await;
}

#[tokio::test]
async fn a_device_identity_without_a_store_is_refused_and_not_ignored() {
    let root = tempfile::tempdir().unwrap();
    let server = start_with(config(root.path())).await;
    let (tpm, maker) = (SoftTpm::new(), Maker::new());
    let body = device_registration(&tpm, &maker, "a");
    let (status, answer) = server.register("a", body).await;
    let text = answer["status"].as_str().unwrap();
    assert!(
        status == 400 && text.contains("neither in the store"),
        "{text}"
    );
    server.stop().await;
    // Where it is needed, the registrar does not start without one.
    for strict in [
        RegistrarConfig {
            require_ek_cert: true,
            ..config(root.path())
        },
        RegistrarConfig {
            tpm_cert_store: Some(root.path().join("missing")),
            ..config(root.path())
        },
    ] {
        let error = RegistrarServer::start(&strict).await.unwrap_err();
        assert!(matches!(error, StartError::CertStore(_)), "{error}");
    }
}

#[tokio::test]
async fn malformed_certificates_are_taken_as_configured() {
    let (tpm, maker) = (SoftTpm::new(), Maker::new());
    let der = STANDARD.decode(&ders(&maker.ek_chain(&tpm))[0]).unwrap();
    // The outer length in three octets where two would do, as some provisioning tools write it.
    let long = [&[0x30, 0x83, 0x00], &der[2..]].concat();
    let mut body = tpm.registration();
    body["ekcert"] = json!(STANDARD.encode(&long));
    for (action, expected) in [
        (MalformedCertAction::Warn, 200),
        (MalformedCertAction::Ignore, 200),
        (MalformedCertAction::Reject, 400),
    ] {
        let root = tempfile::tempdir().unwrap();
        let server = start_with(RegistrarConfig {
            malformed_cert_action: action,
            ..config(root.path())
        })
        .await;
        let (status, answer) = server.register("a", body.clone()).await;
        assert_eq!(status, expected, "{action:?}: {answer}");
        if status == 200 {
            server.enrol("a", &tpm, body.clone()).await;
            let record = &server.show("a").await.1["results"];
            assert_eq!(record["ekcert"], body["ekcert"]);
        } else {
            let text = answer["status"].as_str().unwrap();
            assert!(text.contains("ekcert is not strict DER"), "{text}");
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn a_tpm_has_one_id_where_that_is_asked_for() {
    for one_id_per_tpm in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let server = start_with(RegistrarConfig {
            one_id_per_tpm,
            ..config(root.path())
        })
        .await;
        let tpm = SoftTpm::new();
        // Registered side by side: the first to answer has the id.
        let mut challenges = Vec::new();
        for id in ["a", "b"] {
            let (status, answer) = server.register(id, tpm.registration()).await;
            assert_eq!(status, 200, "{answer}");
            let blob = answer["results"]["blob"].as_str().unwrap();
            challenges.push((id, tpm.auth_tag(id, blob)));
        }
        let mut statuses = Vec::new();
        for (id, tag) in &challenges {
            statuses.push(server.activate(id, tag).await.0);
        }
        let (late, answer) = server.register("c", tpm.registration()).await;
        if one_id_per_tpm {
            assert_eq!((&statuses[..], late), (&[200, 403][..], 403));
            let text = answer["status"].as_str().unwrap();
            assert!(text.contains("another agent id"), "{text}");
        } else {
            assert_eq!((&statuses[..], late), (&[200, 200][..], 200));
        }
        server.enrol("a", &tpm, tpm.registration()).await;
        server.stop().await;
    }
}

/// Anybody may have thousands of registrations wait: what is kept of each is bounded.
#[tokio::test]
async fn of_a_tls_certificate_the_first_is_kept_and_none_that_is_too_large() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let tpm = SoftTpm::new();
    let pem = |names: usize| {
        let names: Vec<_> = (0..names)
            .map(|n| format!("name-{n}.node.example"))
            .collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        params.self_signed(&key).unwrap().pem()
    };
    let with = |member: &str, text: &str| {
        let mut body = tpm.registration();
        body[member] = json!(text);
        body
    };
    // As agents send it, alone; with its issuers; and with other line ends and much else.
    let own = pem(3);
    let issuers: String = (0..60).map(|_| pem(1)).collect();
    let odd = format!(
        "subject=x\n{}{}",
        own.replace('\n', "\r\n"),
        "y".repeat(10_000)
    );
    for text in [&own, &format!("{own}{issuers}"), &odd] {
        server.enrol("a", &tpm, with("mtls_cert", text)).await;
        assert_eq!(server.show("a").await.1["results"]["mtls_cert"], own);
    }
    let ca = pem(200);
    for (member, text, limit) in [
        ("mtls_cert", &ca, "mtls_cert: "),
        ("ekcert", &ca, "ekcert: "),
        ("iak_cert", &ca, "iak_cert: "),
    ] {
        let mut body = with(member, text);
        if member == "iak_cert" {
            for key in ["iak_tpm", "idevid_tpm"] {
                body[key] = json!(tpm.ak_tpm());
            }
        }
        let (status, answer) = server.register("a", body).await;
        let told = answer["status"].as_str().unwrap();
        assert_eq!(status, 400, "{told}");
        assert!(told.contains(limit) && told.contains("4096"), "{told}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_ek_certificate_may_be_left_out_and_never_changed() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let (maker, tpm) = (Maker::new(), SoftTpm::new());
    let with = |ekcert: Value| {
        let mut body = tpm.registration();
        body["ekcert"] = ekcert;
        body
    };
    let own = maker.ek_chain(&tpm);
    server.enrol("a", &tpm, with(json!(own))).await;
    let shown = server.show("a").await.1["results"]["ekcert"].clone();
    assert_eq!(shown, json!(ders(&own)[0]));
    for left_out in [Value::Null, json!("")] {
        server.enrol("a", &tpm, with(left_out)).await;
        assert_eq!(server.show("a").await.1["results"]["ekcert"], shown);
    }
    // Of the same EK, by whomever.
    let (status, _) = server
        .register("a", with(json!(maker.ek_chain(&tpm))))
        .await;
    assert_eq!(status, 403);
    server.stop().await;
}
