//! The agent's TPM code on a TPM 2.0: swtpm, without resource manager, so that every handle left
//! behind is seen. Needs the packages swtpm and swtpm-tools (`cargo xtask setup`).

#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

use std::{
    collections::BTreeSet,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use troth_agent::{
    identity::{
        agent_data::Candidate,
        ak::{self, AkError, Keys},
        saved::Problem,
    },
    tpm::{Actor, AkTemplate, Endorsement, KeyKind, QuoteRequest, Tpm, TpmError, esys::EsysTpm},
};
use troth_core::{
    identity::{AgentId, check_ak, check_ek},
    tpm::{
        AttestationKey, Digest, Expected, HashAlgorithm, PcrMask, Public, Quote, SignatureScheme,
        VerifiedQuote, make_credential,
    },
};
use troth_tests::tpm::{Bank, Swtpm};

const BANK: HashAlgorithm = HashAlgorithm::Sha256;
const NONCE: &[u8] = b"Ab0123456789cdefghij";
const DEADLINE: Duration = Duration::from_secs(60);

const KINDS: [KeyKind; 5] = [
    KeyKind::Rsa2048,
    KeyKind::Rsa3072,
    KeyKind::EccP256,
    KeyKind::EccP384,
    KeyKind::EccP521,
];

struct Host {
    directory: TempDir,
    swtpm: Swtpm,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::manufacture(&directory.path().join("tpm"))
            .expect("swtpm is needed: install the packages swtpm and swtpm-tools");
        Self { directory, swtpm }
    }

    fn open(&self) -> EsysTpm {
        EsysTpm::open(&self.swtpm.tcti()).unwrap()
    }

    fn actor(&self) -> Actor {
        let tcti = self.swtpm.tcti();
        let open = move || Ok(Box::new(EsysTpm::open(&tcti)?) as Box<dyn Tpm>);
        Actor::start(Box::new(open)).unwrap()
    }

    fn open_with(&self, ek_handle: Option<u32>, auth: &[u8]) -> EsysTpm {
        let auth = auth.to_vec().into();
        let endorsement = Endorsement { ek_handle, auth };
        EsysTpm::open_with(&self.swtpm.tcti(), &endorsement).unwrap()
    }

    /// Runs a program of tpm2-tools on this TPM, in this host's directory.
    fn tool(&self, command: &str) {
        let mut words = command.split_whitespace();
        let output = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.directory.path())
            .env("TPM2TOOLS_TCTI", self.swtpm.tcti())
            .output()
            .expect("tpm2-tools is needed: run `cargo xtask setup`");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
    }

    fn loaded(&self) -> Vec<u32> {
        self.swtpm.client().loaded_objects().unwrap()
    }
}

fn template(kind: KeyKind) -> AkTemplate {
    AkTemplate {
        kind,
        hash: BANK,
        scheme: kind.default_scheme(),
    }
}

fn keys(tpm: &mut dyn Tpm, kind: KeyKind, directory: &Path) -> Result<Keys, AkError> {
    ak::load_or_create(tpm, &template(kind), &directory.join(ak::FILE), &[])
}

/// What is wrong with the saved AK.
fn problem(error: AkError) -> Problem {
    match error {
        AkError::Saved(saved) => saved.problem,
        other => panic!("{other}"),
    }
}

fn request(mask: u32) -> QuoteRequest {
    QuoteRequest {
        nonce: NONCE.to_vec(),
        bank: BANK,
        mask: PcrMask::from_bits(mask).unwrap(),
        binding: BANK.digest(&[b"transport key"]),
    }
}

fn verify(text: &str, ak: &Public, mask: u32) -> VerifiedQuote {
    let expected = Expected {
        nonce: NONCE,
        hash: BANK,
        mask: PcrMask::from_bits(mask | 1 << 16).unwrap(),
    };
    let key = AttestationKey::new(ak).unwrap();
    let verified = Quote::parse(text).unwrap().verify(&key, &expected).unwrap();
    let digest = BANK.digest(&[b"transport key"]);
    let bound = Digest::zero(BANK).extend(BANK, digest.as_bytes());
    assert_eq!(
        verified.pcrs().get(16),
        Some(&bound),
        "PCR 16 binds the transport key"
    );
    verified
}

#[tokio::test]
async fn keys_of_every_kind_activate_and_quote() {
    let host = Host::new();
    for kind in KINDS {
        let actor = host.actor();
        let tpm = actor.handle();
        let directory = host.directory.path().join(kind.name());
        let keys = tpm
            .call("keys", DEADLINE, move |tpm| {
                Ok(keys(tpm, kind, &directory).unwrap())
            })
            .await
            .unwrap();
        check_ek(&keys.ek).unwrap();
        check_ak(&keys.ak).unwrap();
        assert_eq!(keys.ak.enc_alg(), kind.name());

        let blob = make_credential(&keys.ek, &keys.ak.name(), b"the challenge").unwrap();
        let challenge = tpm
            .call("activation", DEADLINE, move |tpm| tpm.activate(&blob))
            .await;
        assert_eq!(
            challenge.unwrap().as_slice(),
            b"the challenge",
            "{}",
            kind.name()
        );

        // All 24 PCRs take three TPM2_PCR_Read commands.
        for mask in [0, 1 << 10, 0xFF_FFFF] {
            let quoted = tpm.quote(request(mask)).await.unwrap();
            verify(&quoted.encode(), &keys.ak, mask);
        }
        actor.stop();
        assert_eq!(host.loaded(), [0; 0], "{}", kind.name());
    }
}

#[test]
fn an_rsa_ak_may_be_restricted_to_pss() {
    let host = Host::new();
    let mut tpm = host.open();
    let template = AkTemplate {
        scheme: SignatureScheme::RsaPss,
        ..template(KeyKind::Rsa2048)
    };
    let path = host.directory.path().join("pss");
    let keys = ak::load_or_create(&mut tpm, &template, &path, &[]).unwrap();
    let mask = PcrMask::from_bits(1).unwrap();
    let raw = tpm.quote(NONCE, BANK, mask).unwrap();
    let pcrs = tpm.pcr_read(BANK, mask).unwrap();
    let quote = Quote::from_parts(&raw.attest, &raw.signature, pcrs).unwrap();
    let expected = Expected {
        nonce: NONCE,
        hash: BANK,
        mask,
    };
    quote
        .verify(&AttestationKey::new(&keys.ak).unwrap(), &expected)
        .unwrap();
}

#[tokio::test]
async fn quotes_agree_with_their_values_while_pcr_10_is_extended() {
    let host = Host::new();
    let actor = host.actor();
    let tpm = actor.handle();
    let directory = host.directory.path().to_owned();
    let keys = tpm
        .call("keys", DEADLINE, move |tpm| {
            Ok(keys(tpm, KeyKind::EccP256, &directory).unwrap())
        })
        .await
        .unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let kernel = std::thread::spawn({
        let (client, stop) = (host.swtpm.client(), Arc::clone(&stop));
        move || {
            for extended in 0u32.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let digest = BANK.digest(&[&extended.to_be_bytes()]).as_bytes().to_vec();
                client.extend(10, &[(Bank::Sha256, digest)]).unwrap();
                std::thread::sleep(Duration::from_micros(u64::from(extended % 7) * 700));
            }
        }
    });
    // A busy machine may quote faster than the "kernel" extends, or slower: go on until enough
    // quotes of a moving PCR were seen.
    let mut values = BTreeSet::new();
    let mut busy = 0;
    while values.len() < 20 {
        match tpm.quote(request(1 << 10)).await {
            Ok(quoted) => {
                let verified = verify(&quoted.encode(), &keys.ak, 1 << 10);
                values.insert(verified.pcrs().get(10).unwrap().to_string());
            }
            Err(TpmError::Busy { .. }) => busy += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(busy < 200, "never a quiet moment");
    }
    stop.store(true, Ordering::Relaxed);
    kernel.join().unwrap();
    actor.stop();
}

#[test]
fn the_ak_survives_restarts_and_nothing_is_left_behind() {
    let host = Host::new();
    let mut first = None;
    // swtpm has room for three objects: the third start fails if anything leaks.
    for start in 0..5 {
        let mut tpm = host.open();
        let keys = keys(&mut tpm, KeyKind::Rsa2048, host.directory.path()).unwrap();
        assert_eq!(keys.created, start == 0);
        assert_eq!(*first.get_or_insert_with(|| keys.ak.clone()), keys.ak);
        drop(tpm);
        assert_eq!(host.loaded(), [0; 0], "start {start}");
    }
}

#[test]
fn the_ak_survives_a_reboot_of_the_tpm() {
    let mut host = Host::new();
    let before = keys(&mut host.open(), KeyKind::EccP256, host.directory.path()).unwrap();
    host.swtpm.power_cycle().unwrap();
    let after = keys(&mut host.open(), KeyKind::EccP256, host.directory.path()).unwrap();
    assert!(!after.created);
    assert_eq!(before.ak, after.ak);
}

#[tokio::test]
async fn a_tpm_that_was_reset_under_the_agent_gets_the_same_ak_again() {
    let mut host = Host::new();
    let actor = host.actor();
    let tpm = actor.handle();
    let directory = host.directory.path().to_owned();
    let keys = tpm
        .call("keys", DEADLINE, move |tpm| {
            Ok(keys(tpm, KeyKind::EccP256, &directory).unwrap())
        })
        .await
        .unwrap();
    tpm.keep_loaded(KeyKind::EccP256, keys.blobs.clone())
        .await
        .unwrap();
    tpm.quote(request(1)).await.unwrap();
    host.swtpm.power_cycle().unwrap();
    let quoted = tpm.quote(request(1)).await.unwrap();
    verify(&quoted.encode(), &keys.ak, 1);
    actor.stop();
    assert_eq!(host.loaded(), [0; 0]);
}

#[test]
fn an_ak_of_another_tpm_is_refused_and_kept() {
    let (host, other) = (Host::new(), Host::new());
    let directory = host.directory.path();
    keys(&mut host.open(), KeyKind::EccP256, directory).unwrap();
    let file = directory.join(ak::FILE);
    let before = std::fs::read_to_string(&file).unwrap();
    let error = keys(&mut other.open(), KeyKind::EccP256, directory).unwrap_err();
    // Even with the other EK's name in the file, the TPM refuses the key, and it stays.
    let (found, saved) = match problem(error) {
        Problem::OtherEk { found, saved } => (found, saved),
        other => panic!("{other}"),
    };
    let forged = before.replace(&saved, &found);
    std::fs::write(&file, &forged).unwrap();
    let error = keys(&mut other.open(), KeyKind::EccP256, directory).unwrap_err();
    assert!(!error.is_transient(), "{error}");
    assert!(matches!(problem(error), Problem::Refused(_)));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), forged);
    assert_eq!(other.loaded(), [0; 0]);
}

#[test]
fn a_tpm_that_was_cleared_or_has_a_new_ek_is_told_and_gets_no_new_ak() {
    let host = Host::new();
    let directory = host.directory.path();
    let start = || keys(&mut host.open(), KeyKind::EccP256, directory);
    start().unwrap();
    let before = std::fs::read(directory.join(ak::FILE)).unwrap();
    for (command, told) in [
        ("tpm2_clear -c p", "cleared"),
        ("tpm2_changeeps", "another EK"),
    ] {
        host.tool(command);
        let error = start().unwrap_err();
        assert!(!error.is_transient(), "{error}");
        let text = error.to_string();
        assert!(text.contains(told) && text.contains("ak.json"), "{text}");
        assert_eq!(std::fs::read(directory.join(ak::FILE)).unwrap(), before);
        assert_eq!(host.loaded(), [0; 0]);
    }
}

#[test]
fn the_ak_of_keylimes_agent_is_taken_over() {
    for (kind, scheme) in [(KeyKind::Rsa2048, "RsaSsa"), (KeyKind::EccP384, "EcDsa")] {
        let (host, other) = (Host::new(), Host::new());
        let mut tpm = host.open();
        let ek = Public::from_tpmt(&tpm.load_ek(kind).unwrap()).unwrap();
        let blobs = tpm.create_ak(&template(kind)).unwrap();
        drop(tpm);
        let data = serde_json::json!({
            "ak_hash_alg": "Sha256",
            "ak_sign_alg": scheme,
            "ak_public": blobs.public,
            "ak_private": blobs.private,
            "ek_hash": AgentId::hash_ek(&ek).as_str().as_bytes(),
        });
        let left = [Candidate {
            path: host.directory.path().join("agent_data.json"),
            named: true,
        }];
        let start = |host: &Host, data: &serde_json::Value, files: &[Candidate]| {
            if let [file] = files {
                let text = serde_json::to_string_pretty(data).unwrap();
                std::fs::write(&file.path, text).unwrap();
            }
            let path = host.directory.path().join(ak::FILE);
            ak::load_or_create(&mut host.open(), &template(kind), &path, files)
        };
        let keys = start(&host, &data, &left).unwrap();
        assert!(!keys.created);
        assert_eq!(keys.ak.as_tpmt(), blobs.public);
        assert_eq!(start(&host, &data, &[]).unwrap().ak, keys.ak, "saved");
        assert_eq!(host.loaded(), [0; 0]);

        // On another host it is refused: by the hash of the EK, and with a forged one by the TPM.
        let error = start(&other, &data, &left).unwrap_err();
        assert!(matches!(problem(error), Problem::OtherEk { .. }));
        let foreign = Public::from_tpmt(&other.open().load_ek(kind).unwrap()).unwrap();
        let mut forged = data.clone();
        forged["ek_hash"] = AgentId::hash_ek(&foreign).as_str().as_bytes().into();
        let error = start(&other, &forged, &left).unwrap_err();
        assert!(matches!(problem(error), Problem::Refused(_)));
        assert!(!other.directory.path().join(ak::FILE).exists());
        assert_eq!(other.loaded(), [0; 0]);
    }
}

/// The AK is made, saved, loaded again and proves itself to a registrar.
fn lives(host: &Host, kind: KeyKind, open: impl Fn() -> EsysTpm) -> Keys {
    let directory = host.directory.path().join("life");
    keys(&mut open(), kind, &directory).unwrap();
    let mut tpm = open();
    let again = keys(&mut tpm, kind, &directory).unwrap();
    assert!(!again.created);
    let blob = make_credential(&again.ek, &again.ak.name(), b"the challenge").unwrap();
    assert_eq!(tpm.activate(&blob).unwrap().as_slice(), b"the challenge");
    tpm.flush_ek();
    tpm.load_ek(kind).unwrap();
    tpm.quote(NONCE, BANK, PcrMask::from_bits(1).unwrap())
        .unwrap();
    drop(tpm);
    assert_eq!(host.loaded(), [0; 0]);
    again
}

#[test]
fn a_persistent_ek_is_used_and_stays() {
    let host = Host::new();
    for (kind, algorithm, handle) in [
        (KeyKind::Rsa2048, "rsa", 0x8101_1001),
        (KeyKind::EccP256, "ecc", 0x8101_1002),
    ] {
        host.tool(&format!(
            "tpm2_createek -c {handle:#x} -G {algorithm} -u {algorithm}.pub"
        ));
        host.tool("tpm2_flushcontext -t");
        let host_directory = host.directory.path().join("life");
        let _ = std::fs::remove_dir_all(host_directory);
        let keys = lives(&host, kind, || host.open_with(Some(handle), b""));
        host.tool(&format!("tpm2_readpublic -c {handle:#x} -n name"));
        let name = std::fs::read(host.directory.path().join("name")).unwrap();
        assert_eq!(keys.ek.name().as_bytes(), name);
    }
}

#[test]
fn what_is_no_ek_at_the_handle_is_refused() {
    let host = Host::new();
    host.tool("tpm2_createek -c 0x81011002 -G ecc -u ek.pub");
    host.tool(
        "tpm2_createprimary -C o -G ecc:ecdsa -c signer.ctx \
         -a sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth",
    );
    host.tool("tpm2_evictcontrol -C o -c signer.ctx 0x81011003");
    host.tool("tpm2_flushcontext -t");
    for (kind, handle, told) in [
        (KeyKind::EccP256, 0x8101_1003, "not an endorsement key"),
        (KeyKind::Rsa2048, 0x8101_1002, "ecc256"),
        (KeyKind::Rsa2048, 0x8101_1077, "0x81011077"),
    ] {
        let mut tpm = host.open_with(Some(handle), b"");
        let error = tpm.load_ek(kind).unwrap_err();
        assert!(
            matches!(error, TpmError::PersistentKey { .. }) && error.is_final(),
            "{error}"
        );
        assert!(error.to_string().contains(told), "{error}");
    }
    assert_eq!(host.loaded(), [0; 0]);
}

#[test]
fn the_endorsement_hierarchy_may_have_a_password() {
    let host = Host::new();
    host.tool("tpm2_createek -c 0x81011001 -G rsa -u ek.pub");
    host.tool("tpm2_flushcontext -t");
    host.tool("tpm2_changeauth -c e hex:00ff10");
    for wrong in [&b""[..], b"wrong"] {
        let error = host.open_with(None, wrong).load_ek(KeyKind::EccP256);
        let error = error.unwrap_err();
        assert!(
            matches!(error, TpmError::EndorsementAuth { .. }) && error.is_final(),
            "{error}"
        );
        // Reading a persistent EK takes no password, using it does.
        let mut tpm = host.open_with(Some(0x8101_1001), wrong);
        tpm.load_ek(KeyKind::Rsa2048).unwrap();
        let error = tpm.create_ak(&template(KeyKind::Rsa2048)).unwrap_err();
        assert!(matches!(error, TpmError::EndorsementAuth { .. }), "{error}");
    }
    assert_eq!(host.loaded(), [0; 0]);
    lives(&host, KeyKind::EccP256, || {
        host.open_with(None, &[0x00, 0xFF, 0x10])
    });
}

#[test]
fn a_bank_that_is_not_there_is_named() {
    let host = Host::new();
    let mut tpm = host.open();
    let error = tpm
        .pcr_read(HashAlgorithm::Sha512, PcrMask::from_bits(1).unwrap())
        .unwrap_err();
    assert!(error.to_string().contains("sha512"), "{error}");
}

#[test]
fn a_tpm_that_is_not_there_is_an_error_that_helps() {
    let error = EsysTpm::open("device:/nonexistent/tpm")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nonexistent/tpm") && error.contains("tss"),
        "{error}"
    );
    let error = EsysTpm::open("no-such-tcti:x").unwrap_err().to_string();
    assert!(error.contains("no-such-tcti"), "{error}");
}
