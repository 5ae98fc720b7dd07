//! The agent's life from start to stop, on a simulated TPM and with a registrar that can be told
//! what to answer.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

/// What an agent tells and does for its own host.
mod local;
/// A registrar, a CA, and agents on simulated TPMs.
mod stage;

use std::{
    future::pending,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair};
use serde_json::Value;
use tokio::time::timeout;
use troth_agent::{
    agent::{self, AgentError},
    config::{Config, InvalidConfig},
    http::ApiVersion,
    identity::device::qualifying_data,
    registration::RegistrationError,
    tpm::{
        esys::EsysTpm,
        sim::{Chip, Faults},
    },
};
use troth_core::{
    identity::AgentId,
    tpm::{AttestationKey, Public, check_certification},
};
use troth_daemon::{
    client::Client,
    descriptors::Descriptors,
    shutdown::Shutdown,
    tls::{self, ServerTrust},
};
use troth_tests::tpm::Swtpm;

use stage::{PATIENCE, Running, Stage, authority};

#[tokio::test]
async fn register_serve_stop_and_again() {
    let stage = Stage::new().await;
    let mut first: Option<Value> = None;
    for start in 1..=3 {
        let running = stage.start(stage.config());
        let registration = stage.activated(start).await;
        assert_eq!(stage.chip.loaded(), 1, "the AK; the EK was flushed");
        let client = stage.client(&registration, Some(&stage.authority.leaf));
        let answer = client.get("/v2.6/quotes/identity?nonce=abc").await.unwrap();
        assert_eq!(answer.status, 200);
        running.stop().await;
        assert_eq!(stage.chip.loaded(), 0, "nothing is left in the TPM");
        let first = first.get_or_insert_with(|| registration.clone());
        for kept in ["ek_tpm", "aik_tpm", "ekcert", "mtls_cert"] {
            assert_eq!(registration[kept], first[kept], "{kept}");
        }
    }
    assert_eq!(stage.chip.eks_made(), 3, "once per start");
}

/// Certificate and key as an agent makes them, with an end that is near. `left` of its `life`, in
/// seconds, are left.
fn ending(key: &KeyPair, id: &str, left: u64, life: u64) -> String {
    let names = ["localhost", "127.0.0.1", "::1"].map(Into::into);
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, id);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let end = now + Duration::from_secs(left);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end;
    params.not_before = params.not_after - Duration::from_secs(life);
    params.is_ca = IsCa::ExplicitNoCa;
    params.self_signed(key).unwrap().pem()
}

/// The certificate that a new connection sees, PEM.
async fn shown(stage: &Stage, registration: &Value) -> Vec<u8> {
    let pem = registration["mtls_cert"].as_str().unwrap();
    let pinned = tls::certificates_from_pem(pem.as_bytes()).unwrap();
    let trust = ServerTrust::Pinned(pinned[0].clone());
    let config = tls::client_config(trust, Some(&stage.authority.leaf)).unwrap();
    let port = u16::try_from(registration["port"].as_u64().unwrap()).unwrap();
    tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let name = "localhost".try_into().unwrap();
        let mut connection = rustls::ClientConnection::new(config, name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut stream).unwrap();
        }
        connection.peer_certificates().unwrap()[0].to_vec()
    })
    .await
    .unwrap()
}

fn der(registration: &Value) -> Vec<u8> {
    let pem = registration["mtls_cert"].as_str().unwrap();
    tls::certificates_from_pem(pem.as_bytes()).unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_certificate_that_ends_is_renewed_while_the_agent_serves() {
    const ID: &str = "renewed";
    let stage = Stage::new().await;
    stage.registrar.0.lock().unwrap().id = Some(ID.into());
    let config = Config {
        uuid: ID.into(),
        ..stage.config()
    };
    let key = KeyPair::generate().unwrap();
    let file = config.state_dir.join("server-cert.crt");
    std::fs::create_dir_all(&config.state_dir).unwrap();
    std::fs::write(
        config.state_dir.join("server-private.pem"),
        key.serialize_pem(),
    )
    .unwrap();
    // Due when a third of its life is left, which is soon.
    std::fs::write(&file, ending(&key, ID, 38, 90)).unwrap();
    let running = stage.start(config);
    let old = stage.activated(1).await;
    assert_eq!(
        shown(&stage, &old).await,
        der(&old),
        "served until it is due"
    );
    let client = stage.client(&old, Some(&stage.authority.leaf));
    assert_eq!(client.get("/version").await.unwrap().status, 200);

    // The registrar is in trouble first; the agent serves meanwhile and comes back.
    stage.registrar.0.lock().unwrap().refusals = vec![503, 500];
    let new = stage.activated(2).await;
    assert!(stage.registrar.0.lock().unwrap().refusals.is_empty());
    assert_ne!(der(&new), der(&old));
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        new["mtls_cert"],
        "kept for the next start"
    );
    for kept in ["ek_tpm", "aik_tpm", "ip", "port"] {
        assert_eq!(new[kept], old[kept], "{kept}");
    }
    // Pinned to the key, peers see the agent that they know: `shown` and `client` have the old
    // certificate.
    assert_eq!(shown(&stage, &old).await, der(&new));
    let answer = client.get("/v2.6/quotes/identity?nonce=abc").await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(stage.chip.loaded(), 1, "the AK; the EK was flushed");
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_of_the_administrator_is_read_again_and_never_replaced() {
    let stage = Stage::new().await;
    let (certificate, key) = (stage.path("site.crt"), stage.path("site.pem"));
    let supply = |name: &str| {
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.into()]).unwrap();
        params.not_after = params.not_before + Duration::from_secs(3600);
        let text = params.self_signed(&pair).unwrap().pem();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        std::fs::write(&certificate, &text).unwrap();
        text
    };
    let first = supply("one.example");
    let running = stage.start(Config {
        server_cert: Some(certificate.clone()),
        server_key: Some(key.clone()),
        ..stage.config()
    });
    let registration = stage.activated(1).await;
    assert_eq!(registration["mtls_cert"], first);
    assert_eq!(shown(&stage, &registration).await, der(&registration));

    let second = supply("two.example");
    let registration = stage.activated(2).await;
    assert_eq!(registration["mtls_cert"], second);
    assert_eq!(shown(&stage, &registration).await, der(&registration));
    assert_eq!(std::fs::read_to_string(&certificate).unwrap(), second);
    running.stop().await;
}

/// IAK and IDevID are in a TPM that is not simulated.
#[tokio::test]
async fn the_iak_certifies_the_ak_for_the_registrars_version() {
    for version in [ApiVersion::v2(6), ApiVersion::v2(3)] {
        let stage = Stage::new().await;
        let swtpm = Swtpm::manufacture(&stage.path("tpm")).unwrap();
        let id = AgentId::new("d432fbb3-d2f1-4a97-9ef7-75bd81c00000").unwrap();
        let text = version.to_string();
        {
            let mut book = stage.registrar.0.lock().unwrap();
            book.version = Some(text.clone().leak());
            book.id = Some(id.to_string());
        }
        let config = Config {
            uuid: id.to_string(),
            api_versions: Some(vec![text]),
            enable_iak_idevid: true,
            iak_idevid_template: Some("H-2".into()),
            ..stage.config()
        };
        let tcti = swtpm.tcti();
        let open = Box::new(move || Ok(Box::new(EsysTpm::open(&tcti)?) as Box<_>));
        let (trigger, shutdown) = Shutdown::new();
        let task = tokio::spawn(agent::run_with(
            config,
            Descriptors::default(),
            open,
            |_| pending(),
            shutdown,
        ));
        let registration = stage.activated(1).await;
        let bytes = |name: &str| {
            STANDARD
                .decode(registration[name].as_str().unwrap())
                .unwrap()
        };
        let key = |name: &str| Public::from_tpm2b(&bytes(name)).unwrap();
        check_certification(
            &AttestationKey::new(&key("iak_tpm")).unwrap(),
            &bytes("iak_attest"),
            &bytes("iak_sign"),
            &key("aik_tpm").name(),
            &[&qualifying_data(&id, version)],
        )
        .unwrap();
        assert_eq!(key("idevid_tpm").enc_alg(), "ecc256");
        for certificate in ["iak_cert", "idevid_cert"] {
            assert_eq!(registration[certificate], Value::Null, "there is none");
        }
        Running { trigger, task }.stop().await;
        assert_eq!(swtpm.client().loaded_objects().unwrap(), [0; 0]);
    }
}

#[tokio::test]
async fn nobody_gets_in_without_a_certificate_of_the_client_ca() {
    let stage = Stage::new().await;
    let running = stage.start(stage.config());
    let registration = stage.activated(1).await;
    let stranger = authority(stage.directory.path(), "stranger.crt");
    for identity in [None, Some(&stranger.leaf)] {
        let client = stage.client(&registration, identity);
        assert!(client.get("/version").await.is_err());
    }
    let client = stage.client(&registration, Some(&stage.authority.leaf));
    assert_eq!(client.get("/version").await.unwrap().status, 200);
    running.stop().await;
}

#[tokio::test]
async fn without_mtls_the_registrar_is_told_so() {
    let stage = Stage::new().await;
    let config = Config {
        enable_agent_mtls: false,
        trusted_client_ca: None,
        contact_ip: Some("localhost".into()),
        contact_port: Some(7),
        ..stage.config()
    };
    let running = stage.start(config.clone());
    let registration = stage.activated(1).await;
    assert_eq!(registration["mtls_cert"], "disabled");
    assert_eq!(registration["ip"], "localhost");
    assert_eq!(registration["port"], 7);
    running.stop().await;

    // Anybody may ask, in plain text.
    let running = stage.start(Config {
        contact_port: None,
        ..config
    });
    let port = stage.activated(2).await["port"].as_u64().unwrap();
    let client = Client::new("localhost", u16::try_from(port).unwrap(), None, PATIENCE);
    let answer = client.get("/v2.6/quotes/identity?nonce=abc").await.unwrap();
    assert_eq!(answer.status, 200);
    running.stop().await;
}

#[tokio::test]
async fn a_registrar_in_trouble_is_asked_again() {
    let stage = Stage::new().await;
    stage.registrar.0.lock().unwrap().refusals = vec![500, 429, 400, 503];
    stage.chip.set_faults(Faults {
        open: 2,
        load: 1,
        ..Faults::default()
    });
    let running = stage.start(stage.config());
    stage.activated(1).await;
    running.stop().await;
}

#[tokio::test]
async fn a_registrar_that_does_not_know_its_version_is_an_old_one() {
    for status in [400, 404, 405] {
        let stage = Stage::new().await;
        stage.registrar.0.lock().unwrap().no_version = Some(status);
        let running = stage.start(stage.config());
        stage.activated(1).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn an_overloaded_registrar_says_when_to_come_back() {
    let stage = Stage::new().await;
    {
        let mut book = stage.registrar.0.lock().unwrap();
        (book.refusals, book.retry_after) = (vec![503], Some("1"));
    }
    let config = Config {
        exponential_backoff_initial_delay: 60_000,
        exponential_backoff_max_delay: 60_000,
        ..stage.config()
    };
    let start = std::time::Instant::now();
    let running = stage.start(config);
    stage.activated(1).await;
    assert!(start.elapsed() >= Duration::from_secs(1), "not before");
    running.stop().await;
}

#[tokio::test]
async fn the_administrators_versions_are_those_of_registration() {
    for (no_version, version) in [(None, "2.3"), (Some(404), "2.1")] {
        let stage = Stage::new().await;
        {
            let mut book = stage.registrar.0.lock().unwrap();
            (book.no_version, book.version) = (no_version, Some(version));
        }
        let config = Config {
            api_versions: Some(vec!["2.1".into(), "2.3".into()]),
            ..stage.config()
        };
        let running = stage.start(config);
        stage.activated(1).await;
        running.stop().await;
    }
    let stage = Stage::new().await;
    stage.registrar.0.lock().unwrap().no_version = Some(404);
    let config = Config {
        api_versions: Some(vec!["2.4".into()]),
        exponential_backoff_max_retries: Some(0),
        ..stage.config()
    };
    let error = stage.run(config).await.to_string();
    assert!(
        error.contains("2.4") && error.contains("api_versions"),
        "{error}"
    );
}

#[tokio::test]
async fn a_refused_identity_is_final() {
    let stage = Stage::new().await;
    stage.registrar.0.lock().unwrap().refusals = vec![403];
    let error = stage.run(stage.config()).await;
    let forbidden = RegistrationError::Forbidden {
        reason: "told to".into(),
    };
    assert_eq!(error.to_string(), forbidden.to_string());
    assert_eq!(error.exit_status(), agent::EX_NOPERM);
    assert_eq!(stage.chip.loaded(), 0);
}

#[tokio::test]
async fn retries_end_when_the_administrator_says_so() {
    let stage = Stage::new().await;
    let config = Config {
        // Nobody listens on port 1.
        registrar_port: Some(1),
        exponential_backoff_max_retries: Some(2),
        ..stage.config()
    };
    let error = stage.run(config).await;
    assert!(
        matches!(
            error,
            AgentError::Registration(RegistrationError::Client(_))
        ),
        "{error}"
    );
    assert_eq!(error.exit_status(), 1);
    assert_eq!(stage.chip.loaded(), 0);
}

#[tokio::test]
async fn a_stop_while_the_registrar_is_away_is_clean() {
    let stage = Stage::new().await;
    let config = Config {
        registrar_port: Some(1),
        exponential_backoff_initial_delay: 60_000,
        exponential_backoff_max_delay: 60_000,
        ..stage.config()
    };
    let running = stage.start(config);
    timeout(PATIENCE, async {
        while !stage.path("state/server-cert.crt").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    running.stop().await;
    assert_eq!(stage.chip.loaded(), 0);
}

#[tokio::test]
async fn registration_over_tls_checks_the_registrar_and_never_falls_back() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(directory.path(), "ca.crt");
    let stage = Stage::with_registrar(Some(&ca)).await;
    std::fs::write(stage.path("registrar.crt"), &ca.certificate).unwrap();
    let config = Config {
        registrar_tls: true,
        registrar_tls_ca: Some(stage.path("registrar.crt")),
        ..stage.config()
    };
    let running = stage.start(config.clone());
    stage.activated(1).await;
    running.stop().await;

    // The right CA, and another name.
    let misled = Config {
        registrar_tls_name: Some("registrar.example".to_owned()),
        exponential_backoff_max_retries: Some(1),
        ..config.clone()
    };
    let error = stage.run(misled).await.to_string();
    for part in ["not for registrar.example", "registrar_tls_name"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let nameless = Config {
        registrar_tls_name: Some("no name".to_owned()),
        ..config.clone()
    };
    let error = stage.run(nameless).await;
    assert_eq!(error.exit_status(), agent::EX_CONFIG, "{error}");

    // Another CA: no registration, however often.
    let distrustful = Config {
        registrar_tls_ca: Some(stage.path("clients.crt")),
        exponential_backoff_max_retries: Some(3),
        ..config.clone()
    };
    let error = stage.run(distrustful).await;
    assert!(error.to_string().contains("TLS"), "{error}");

    // A plain registrar behind a TLS configuration stays unheard, although it would say yes.
    let plain = Stage::new().await;
    let betrayed = Config {
        registrar_port: Some(plain.registrar_port),
        exponential_backoff_max_retries: Some(3),
        ..config
    };
    let error = stage.run(betrayed).await;
    assert!(error.to_string().contains("TLS"), "{error}");
    assert!(plain.registrar.0.lock().unwrap().registrations.is_empty());
}

/// Otherwise a host that moves would become another one for good.
#[tokio::test]
async fn a_named_file_of_keylimes_agent_that_is_missing_ends_the_start() {
    let stage = Stage::new().await;
    let named = |path: &str| Config {
        agent_data_path: Some(path.into()),
        ..stage.config()
    };
    let error = stage.run(named("agent_data.jsn")).await;
    assert_eq!(error.exit_status(), agent::EX_CONFIG);
    let text = error.to_string();
    assert!(
        text.contains("agent_data.jsn") && text.contains("agent_data_path"),
        "{text}"
    );
    assert!(stage.registrar.0.lock().unwrap().registrations.is_empty());
    let running = stage.start(named(""));
    stage.activated(1).await;
    running.stop().await;
    // It has an AK of its own from now on, whatever the option says.
    let running = stage.start(named("agent_data.jsn"));
    stage.activated(2).await;
    running.stop().await;
}

#[tokio::test]
async fn a_missing_ca_file_is_a_configuration_error_that_names_it() {
    let stage = Stage::new().await;
    let config = Config {
        trusted_client_ca: Some(vec![stage.path("clients.crt"), stage.path("absent.crt")]),
        ..stage.config()
    };
    let error = stage.run(config).await;
    assert!(
        matches!(error, AgentError::Config(InvalidConfig::ClientCa { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("absent.crt"), "{error}");
    assert_eq!(error.exit_status(), agent::EX_CONFIG);
    assert_eq!(stage.chip.eks_made(), 0, "told before the TPM was touched");

    let config = Config {
        registrar_tls: true,
        registrar_tls_ca: Some(stage.path("absent.crt")),
        ..stage.config()
    };
    let error = stage.run(config).await;
    assert!(error.to_string().contains("absent.crt"), "{error}");
    assert_eq!(error.exit_status(), agent::EX_CONFIG);
}

#[tokio::test]
async fn the_product_uuid_is_the_id_and_needed_when_asked_for() {
    let stage = Stage::new().await;
    let config = Config {
        uuid: "dmidecode".into(),
        dmi_product_uuid_path: stage.path("product_uuid"),
        ..stage.config()
    };
    let error = stage.run(config.clone()).await;
    assert_eq!(error.exit_status(), agent::EX_CONFIG);
    assert!(error.to_string().contains("product_uuid"), "{error}");

    let uuid = "4c4c4544-0042-3510-8052-b4c04f564433";
    std::fs::write(stage.path("product_uuid"), uuid.to_ascii_uppercase()).unwrap();
    stage.registrar.0.lock().unwrap().id = Some(uuid.into());
    let running = stage.start(config);
    stage.activated(1).await;
    running.stop().await;
}

#[tokio::test]
async fn an_ak_of_another_tpm_ends_the_agent_with_advice() {
    let mut stage = Stage::new().await;
    let running = stage.start(stage.config());
    stage.activated(1).await;
    running.stop().await;
    stage.chip = Chip::manufacture().unwrap();
    let error = stage.run(stage.config()).await;
    assert_eq!(error.exit_status(), agent::EX_CONFIG);
    assert!(error.to_string().contains("ak.json"), "{error}");
    assert_eq!(stage.registrar.0.lock().unwrap().registrations.len(), 1);
}

#[tokio::test]
async fn key_files_that_cannot_work_are_configuration_errors_that_name_them() {
    for (file, others) in [
        ("payload-private.pem", &[][..]),
        ("server-private.pem", &["server-cert.crt"][..]),
    ] {
        let stage = Stage::new().await;
        let state = stage.config().state_dir;
        std::fs::create_dir_all(&state).unwrap();
        for name in others.iter().chain([&file]) {
            std::fs::write(state.join(name), "not a key").unwrap();
        }
        let error = stage.run(stage.config()).await;
        assert!(error.to_string().contains(file), "{error}");
        assert_eq!(error.exit_status(), agent::EX_CONFIG, "{error}");
        assert!(stage.registrar.0.lock().unwrap().registrations.is_empty());
    }
}
