use std::{
    fs::{self, File},
    io::Read,
    os::fd::OwnedFd,
};

use rustix::fs::{SealFlags, fcntl_get_seals};
use tokio::time::timeout;
use troth_agent::{config::Config, local::LocalAgent, tpm::sim::Faults};
use troth_core::{
    appraise::{AcceptedAlgorithms, ImaRules, Policies, Verdict},
    bundle::Bundle,
    policy::{BootPolicy, RuntimePolicy, TpmPolicy},
    tpm::{AttestationKey, Digest, Expected, HashAlgorithm, PcrMask, PcrValues, Public, Quote},
};
use troth_ipc::agent::{Agent, Event, OperationError, PayloadState, QuoteRequest, State, Status};

use crate::stage::{PATIENCE, Running, Stage};

/// An agent that is registered, and let in as a local caller is.
async fn attesting(stage: &Stage, config: Config) -> (Running, LocalAgent) {
    let (running, agent) = stage.start_locally(config).await;
    until(&agent, |status| status.state == State::Attesting).await;
    (running, agent)
}

async fn until(agent: &LocalAgent, wanted: impl FnMut(&Status) -> bool) -> Status {
    let mut status = agent.status();
    let reached = timeout(PATIENCE, status.wait_for(wanted)).await;
    reached.unwrap().unwrap().clone()
}

fn request(nonce: &[u8], pcr_mask: u32) -> QuoteRequest {
    QuoteRequest {
        nonce: nonce.to_vec(),
        pcr_mask,
    }
}

/// `count` entries of an IMA list, which the chip measures.
fn measured(stage: &Stage, count: usize) -> String {
    let entry = |n: usize| {
        let digest = HashAlgorithm::Sha256.digest(&[&n.to_be_bytes()]);
        let name = format!("/usr/bin/tool{n}\0");
        let mut data = Vec::new();
        let mut field = |content: &[u8]| {
            data.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
            data.extend_from_slice(content);
        };
        field(&[b"sha256:\0", digest.as_bytes()].concat());
        field(name.as_bytes());
        let template = HashAlgorithm::Sha1.digest(&[&data]);
        stage.chip.extend(10, &data);
        format!("10 {template} ima-ng sha256:{digest} /usr/bin/tool{n}\n")
    };
    (0..count).map(entry).collect()
}

fn read(file: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn the_status_says_what_the_agent_is_and_does() {
    let stage = Stage::new().await;
    stage.registrar.0.lock().unwrap().refusals = vec![500, 500];
    let config = Config {
        tcti: Some("device:/dev/tpm7".into()),
        ..stage.config()
    };
    let (running, agent) = stage.start_locally(config).await;
    let first = agent.status().borrow().clone();
    assert_eq!(first.state, State::Starting);
    assert_eq!(first.agent_id, None);
    let early = agent.quote(request(b"n", 0)).await.unwrap_err();
    assert_eq!(
        early,
        OperationError::NotReady("Waiting for the TPM".into())
    );
    until(&agent, |status| status.state == State::Attesting).await;
    let status = agent.status().borrow().clone();
    let id = status.agent_id.unwrap();
    assert_eq!(stage.registrar.0.lock().unwrap().activated, [&*id]);
    assert!(
        status.detail.starts_with(&format!("Attesting as {id} on ")),
        "{}",
        status.detail
    );
    let port = stage.registrar_port;
    assert_eq!(status.registrar, format!("127.0.0.1:{port}"));
    assert_eq!(status.tcti, "device:/dev/tpm7");
    assert_eq!(status.tpm_vendor, "simulated");
    assert_eq!(status.hash_algorithms, ["sha1", "sha256"]);
    assert_eq!((status.quote_count, status.last_quote_usec), (0, 0));
    assert_eq!(status.payload_state, PayloadState::None);
    assert_eq!(status.secure_mount, None, "no tmpfs here");
    running.stop().await;
}

#[tokio::test]
async fn quotes_for_verifiers_count_like_those_for_the_host() {
    let stage = Stage::new().await;
    let list = measured(&stage, 3);
    fs::write(stage.path("ima"), &list).unwrap();
    let (running, agent) = attesting(&stage, stage.config()).await;
    let mut events = agent.events();
    let registration = stage.activated(1).await;
    let client = stage.client(&registration, Some(&stage.authority.leaf));
    let path = "/v2.6/quotes/integrity?nonce=abc&mask=0x400&partial=1&ima_ml_entry=1";
    assert_eq!(client.get(path).await.unwrap().status, 200);
    agent.quote(request(b"n", 1 << 10)).await.unwrap();
    let served = |client: &str, ima_entries| Event::QuoteServed {
        client: client.into(),
        ima_entries,
    };
    assert_eq!(events.recv().await.unwrap(), served("127.0.0.1", 2));
    assert_eq!(events.recv().await.unwrap(), served("local", 0));
    let status = agent.status().borrow().clone();
    assert_eq!((status.quote_count, status.ima_entries), (2, 3));
    assert!(status.last_quote_usec > 1_700_000_000_000_000);

    // A list that does not fit into one piece counts when all of it was sent.
    let list = measured(&stage, 2000);
    fs::write(stage.path("ima"), &list).unwrap();
    let path = "/v2.6/quotes/integrity?nonce=abc&mask=0x400&partial=1&ima_ml_entry=0";
    assert_eq!(client.get(path).await.unwrap().status, 200);
    assert_eq!(events.recv().await.unwrap(), served("127.0.0.1", 2000));
    assert_eq!(agent.status().borrow().ima_entries, 2000);
    running.stop().await;
}

#[tokio::test]
async fn a_local_quote_is_signed_over_nonce_and_pcrs() {
    let stage = Stage::new().await;
    stage.chip.extend(7, b"secure boot");
    let (running, agent) = attesting(&stage, stage.config()).await;
    let nonce = [0xA5; 64];
    let quote = agent.quote(request(&nonce, 1 << 7)).await.unwrap();
    let ak = Public::from_tpm2b(&quote.ak).unwrap();
    let key = AttestationKey::new(&ak).unwrap();
    assert_eq!(quote.hash_algorithm, "sha256");
    assert_eq!(
        quote.pcrs.iter().map(|(pcr, _)| *pcr).collect::<Vec<_>>(),
        [7, 16],
        "16 binds the agent's key in each quote"
    );
    let mut values = PcrValues::new(HashAlgorithm::Sha256);
    for (pcr, value) in &quote.pcrs {
        let value = Digest::from_slice(value).unwrap();
        values.set(u8::try_from(*pcr).unwrap(), value);
    }
    let text = Quote::encode(&quote.message, &quote.signature, &values);
    let expected = Expected {
        nonce: &nonce,
        hash: HashAlgorithm::Sha256,
        mask: PcrMask::from_bits(1 << 7 | 1 << 16).unwrap(),
    };
    let parsed = Quote::parse(&text).unwrap();
    parsed.verify(&key, &expected).unwrap();
    running.stop().await;
}

#[tokio::test]
async fn arguments_that_cannot_be_used_are_told_by_name() {
    let stage = Stage::new().await;
    let (running, agent) = attesting(&stage, stage.config()).await;
    let argument = |error| match error {
        OperationError::InvalidArgument { argument, .. } => argument,
        other => panic!("{other}"),
    };
    for nonce in [&[][..], &[0; 65]] {
        let error = agent.quote(request(nonce, 0)).await.unwrap_err();
        assert_eq!(argument(error), "nonce");
    }
    let error = agent.quote(request(b"n", 1 << 24)).await.unwrap_err();
    assert_eq!(argument(error), "pcr_mask");
    for nonce in ["a b", "\n", "ä", &"x".repeat(65)] {
        let error = agent.collect_evidence(nonce.to_owned()).await.unwrap_err();
        assert_eq!(argument(error), "nonce", "{nonce:?}");
    }
    assert_eq!(agent.status().borrow().quote_count, 0);
    running.stop().await;
}

#[tokio::test]
async fn pcrs_that_never_rest_are_a_busy_tpm() {
    let stage = Stage::new().await;
    let (running, agent) = attesting(&stage, stage.config()).await;
    stage.chip.set_faults(Faults {
        pcr_moves: 5,
        ..Faults::default()
    });
    let error = agent.quote(request(b"n", 1 << 10)).await.unwrap_err();
    assert!(matches!(error, OperationError::TpmBusy(_)), "{error}");
    agent.quote(request(b"n", 1 << 10)).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn a_bundle_is_evidence_that_is_judged_like_a_verifiers() {
    let stage = Stage::new().await;
    let (running, agent) = attesting(&stage, stage.config()).await;
    // In one piece, and in several.
    for count in [3, 2000] {
        let known = fs::read_to_string(stage.path("ima")).unwrap_or_default();
        let list = known + &measured(&stage, count);
        fs::write(stage.path("ima"), &list).unwrap();
        let file = agent.collect_evidence("of-mine".into()).await.unwrap();
        let seals = fcntl_get_seals(&file).unwrap();
        assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::SEAL));
        let bytes = read(file);
        let bundle = Bundle::parse(&bytes).unwrap();
        assert_eq!(
            Some(bundle.head.node.as_str()),
            agent.status().borrow().agent_id.as_deref()
        );
        let verdict = |runtime: &str, nonce: &str| {
            let ak = bundle.attestation_key().unwrap();
            let runtime = RuntimePolicy::compile_text(runtime.as_bytes()).unwrap();
            let policies = Policies {
                tpm: &TpmPolicy::from_operator("{}").unwrap(),
                runtime: Some(&runtime),
                boot: &BootPolicy::None,
                accept: &AcceptedAlgorithms::of(&ak),
                ima: ImaRules::default(),
            };
            bundle.appraise(&ak, nonce, &policies).verdict
        };
        let anything = r#"{
            "meta": {"version": 1, "generator": 1}, "release": 0, "digests": {},
            "excludes": ["/usr/.*"], "keyrings": {}, "ima-buf": {}, "verification-keys": "",
            "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null}
        }"#;
        match verdict(anything, "of-mine") {
            Verdict::Trusted(trusted) => {
                assert_eq!(trusted.ima_entries(), list.lines().count() as u64);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(verdict(anything, "another"), Verdict::Failed(_)));
    }
    let nonce = async || {
        let bytes = read(agent.collect_evidence(String::new()).await.unwrap());
        Bundle::parse(&bytes).unwrap().head.nonce
    };
    let nonces = [nonce().await, nonce().await];
    assert_ne!(nonces[0], nonces[1]);
    assert_eq!(nonces[0].len(), 64);
    running.stop().await;
}

#[tokio::test]
async fn registrations_at_the_same_time_are_one() {
    let stage = Stage::new().await;
    let (running, agent) = attesting(&stage, stage.config()).await;
    let all = (agent.register(), agent.register(), agent.register());
    let (one, two, three) = tokio::join!(all.0, all.1, all.2);
    let one = one.unwrap();
    assert_eq!((&two.unwrap(), &three.unwrap()), (&one, &one));
    assert_eq!(one.api_version, "2.6");
    assert_eq!(stage.registrar.0.lock().unwrap().activated.len(), 2);

    stage.registrar.0.lock().unwrap().refusals = vec![403];
    let refused = agent.register().await.unwrap_err();
    assert!(
        matches!(&refused, OperationError::RegistrationFailed(reason) if reason.contains("told to")),
        "{refused}"
    );
    assert_eq!(agent.status().borrow().state, State::Attesting);
    agent.register().await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn who_asks_while_the_agent_waits_is_not_kept_waiting() {
    let stage = Stage::new().await;
    stage.registrar.0.lock().unwrap().refusals = vec![500, 500];
    let config = Config {
        exponential_backoff_initial_delay: 3_600_000,
        exponential_backoff_max_delay: 3_600_000,
        ..stage.config()
    };
    let (running, agent) = stage.start_locally(config).await;
    let waiting = until(&agent, |status| status.state == State::Unregistered).await;
    assert!(waiting.detail.contains("told to"), "{}", waiting.detail);
    let refused = agent.register().await.unwrap_err();
    assert!(
        matches!(refused, OperationError::RegistrationFailed(_)),
        "{refused}"
    );
    agent.register().await.unwrap();
    until(&agent, |status| status.state == State::Attesting).await;
    running.stop().await;
}
