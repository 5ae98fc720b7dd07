use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use troth_core::policy::RuntimePolicy;
use troth_core::tpm::{Digest, HashAlgorithm, PcrMask, PcrValues, Quote};
use troth_daemon::shutdown::{Shutdown, Trigger};
use troth_daemon::tls::{ClientAuth, Identity, certificates_from_pem, server_config};

pub(crate) const SHA256: HashAlgorithm = HashAlgorithm::Sha256;
/// The agent's transport key, as far as the verifier looks at it.
pub(crate) const PUBKEY: &str = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";

/// TPM_GENERATED_VALUE (TPM 2.0 Part 2, 6.2).
const GENERATED: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE.
const ATTEST_QUOTE: u16 = 0x8018;
/// TPM_ALG_ECDSA and TPM_ALG_SHA256.
const ECDSA_SHA256: [u8; 4] = [0, 0x18, 0, 0x0b];
/// Attributes of an AK: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign.
pub(crate) const AK_ATTRIBUTES: u32 = 0x0005_0072;

/// An AK (ECC P-256) that no TPM knows of.
pub(crate) struct Ak(EcdsaKeyPair);

impl Ak {
    pub(crate) fn generate() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    /// TPMT_PUBLIC with these object attributes.
    pub(crate) fn tpmt(&self, attributes: u32) -> Vec<u8> {
        let point = self.0.public_key().as_ref();
        let mut tpmt = hex::decode("0023000b").unwrap();
        tpmt.extend(attributes.to_be_bytes());
        tpmt.extend(hex::decode("000000100018000b00030010").unwrap());
        for coordinate in [&point[1..33], &point[33..65]] {
            tpmt.extend(sized(coordinate));
        }
        tpmt
    }

    /// base64 of TPM2B_PUBLIC, as registrations and enrolments have it.
    pub(crate) fn public(&self) -> String {
        BASE64_STANDARD.encode(sized(&self.tpmt(AK_ATTRIBUTES)))
    }

    /// Signs the SHA-256 of `message`: r and s.
    fn sign(&self, message: &[u8]) -> [Vec<u8>; 2] {
        let signature = self.0.sign(&SystemRandom::new(), message).unwrap();
        let (r, s) = signature.as_ref().split_at(32);
        [r.to_vec(), s.to_vec()]
    }
}

/// A TPM2B: the size in two bytes, then the bytes.
pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).unwrap();
    [&size.to_be_bytes(), bytes].concat()
}

/// An entry of template `ima-ng`: its line, and the data that PCR 10 is extended with.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) line: String,
    template: Vec<u8>,
}

impl Entry {
    /// A program at `path`; its content is its path.
    pub(crate) fn of(path: &str) -> Self {
        let content = SHA256.digest(&[path.as_bytes()]);
        let mut template = 40_u32.to_le_bytes().to_vec();
        template.extend(b"sha256:\0");
        template.extend(content.as_bytes());
        template.extend(u32::try_from(path.len() + 1).unwrap().to_le_bytes());
        template.extend(path.as_bytes());
        template.push(0);
        let hash = HashAlgorithm::Sha1.digest(&[&template]);
        let line = format!("10 {hash} ima-ng sha256:{content} {path}\n");
        Self { line, template }
    }
}

/// PCR 10 of bank SHA-256 after `entries`.
pub(crate) fn ima_pcr(entries: &[Entry]) -> Digest {
    entries.iter().fold(Digest::zero(SHA256), |pcr, entry| {
        pcr.extend(SHA256, SHA256.digest(&[&entry.template]).as_bytes())
    })
}

/// What the host says of its boot.
#[derive(Clone)]
pub(crate) struct Clock {
    /// Milliseconds; every quote is 10 ms later than the last one.
    pub(crate) milliseconds: u64,
    pub(crate) resets: u32,
    pub(crate) restarts: u32,
    pub(crate) safe: bool,
}

/// One answer with evidence, true until a lie changes it.
#[derive(Clone)]
pub(crate) struct Evidence {
    pub(crate) magic: u32,
    pub(crate) kind: u16,
    pub(crate) nonce: Vec<u8>,
    pub(crate) clock: Clock,
    /// TPM_ALG_ID of the bank, and PCRs.
    pub(crate) selection: Vec<(u16, PcrMask)>,
    /// The values that are quoted.
    pub(crate) pcrs: PcrValues,
    /// The values that the PCR blob shows, if others.
    pub(crate) shown: Option<PcrValues>,
    pub(crate) signer: Arc<Ak>,
    /// TPM_ALG_IDs of scheme and hash as the signature names them.
    pub(crate) scheme: [u8; 4],
    /// Members beside `quote`.
    pub(crate) results: Value,
}

impl Evidence {
    /// The lines of the IMA list, to be changed.
    pub(crate) fn change_list(&mut self, change: impl FnOnce(&mut Vec<String>)) {
        let list = self.results["ima_measurement_list"].as_str().unwrap();
        let mut lines: Vec<_> = list.split_inclusive('\n').map(str::to_owned).collect();
        change(&mut lines);
        self.results["ima_measurement_list"] = json!(lines.concat());
    }

    fn attest(&self) -> Vec<u8> {
        let Clock {
            milliseconds,
            resets,
            restarts,
            safe,
        } = self.clock;
        let mut attest = self.magic.to_be_bytes().to_vec();
        attest.extend(self.kind.to_be_bytes());
        // qualifiedSigner: nobody looks at it.
        attest.extend(sized(&[]));
        attest.extend(sized(&self.nonce));
        attest.extend(milliseconds.to_be_bytes());
        attest.extend(resets.to_be_bytes());
        attest.extend(restarts.to_be_bytes());
        attest.push(u8::from(safe));
        attest.extend([0; 8]);
        if self.kind != ATTEST_QUOTE {
            // TPMS_CERTIFY_INFO: name and qualified name.
            let name = [&[0, 0x0b][..], &[7; 32]].concat();
            attest.extend(sized(&name));
            attest.extend(sized(&name));
            return attest;
        }
        attest.extend(u32::try_from(self.selection.len()).unwrap().to_be_bytes());
        for (bank, mask) in &self.selection {
            attest.extend(bank.to_be_bytes());
            attest.push(3);
            attest.extend(&mask.bits().to_le_bytes()[..3]);
        }
        attest.extend(sized(self.pcrs.digest().as_bytes()));
        attest
    }

    pub(crate) fn quote(&self) -> String {
        let attest = self.attest();
        let mut signature = self.scheme.to_vec();
        for half in self.signer.sign(&attest) {
            signature.extend(sized(&half));
        }
        Quote::encode(
            &attest,
            &signature,
            self.shown.as_ref().unwrap_or(&self.pcrs),
        )
    }

    /// The body of an answer.
    pub(crate) fn body(&self) -> Value {
        let mut results = self.results.clone();
        results["quote"] = json!(self.quote());
        json!({"code": 200, "status": "Success", "results": results})
    }
}

/// One question of a verifier.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Path and query.
    pub(crate) target: String,
    pub(crate) nonce: String,
    pub(crate) mask: PcrMask,
    pub(crate) ima_entry: usize,
    full: bool,
}

impl Asked {
    fn parse(target: &str) -> Self {
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        Self {
            target: target.to_owned(),
            nonce: parameter("nonce").unwrap_or_default().to_owned(),
            mask: PcrMask::from_hex(parameter("mask").unwrap_or("0x0")).unwrap(),
            ima_entry: parameter("ima_ml_entry").map_or(0, |n| n.parse().unwrap()),
            full: parameter("partial") == Some("0"),
        }
    }
}

/// What is sent back.
pub(crate) enum Reply {
    /// Status 200.
    Evidence(Box<Evidence>),
    /// A body with any status.
    Body(u16, String),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// `start`, then `again` at this pace until the other side closes.
    Endless {
        start: String,
        again: Vec<u8>,
        pause: Duration,
    },
}

type Lie = dyn Fn(&Asked, Box<Evidence>) -> Reply + Send + Sync;

/// The host behind the agent.
struct Host {
    ak: Arc<Ak>,
    entries: Vec<Entry>,
    clock: Clock,
    boottime: u64,
    lie: Arc<Lie>,
    asked: Vec<String>,
}

impl Host {
    /// The truth.
    fn evidence(&mut self, asked: &Asked) -> Evidence {
        self.clock.milliseconds += 10;
        let zero = Digest::zero(SHA256);
        let mut pcrs = PcrValues::new(SHA256);
        for pcr in asked.mask.iter() {
            pcrs.set(pcr, zero);
        }
        pcrs.set(
            16,
            zero.extend(SHA256, SHA256.digest(&[PUBKEY.as_bytes()]).as_bytes()),
        );
        let mut results = json!({
            "hash_alg": "sha256", "enc_alg": "ecc256", "sign_alg": "ecdsa",
            "boottime": self.boottime,
        });
        if asked.mask.contains(10) {
            pcrs.set(10, ima_pcr(&self.entries));
            // As Keylime's agents do: the whole list when it has become shorter.
            let first = if asked.ima_entry > self.entries.len() {
                0
            } else {
                asked.ima_entry
            };
            let lines: String = self.entries[first..]
                .iter()
                .map(|entry| entry.line.as_str())
                .collect();
            results["ima_measurement_list"] = json!(lines);
            results["ima_measurement_list_entry"] = json!(first);
        }
        if asked.full {
            results["pubkey"] = json!(PUBKEY);
        }
        Evidence {
            magic: GENERATED,
            kind: ATTEST_QUOTE,
            nonce: asked.nonce.as_bytes().to_vec(),
            clock: self.clock.clone(),
            selection: vec![(SHA256.id(), pcrs.mask())],
            pcrs,
            shown: None,
            signer: Arc::clone(&self.ak),
            scheme: ECDSA_SHA256,
            results,
        }
    }
}

/// An agent over real mTLS whose host is in memory: honest until it is told otherwise.
pub(crate) struct Liar {
    host: Arc<Mutex<Host>>,
    port: u16,
    certificate: String,
    stop: Trigger,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    /// Listens for clients of the CA in `ca_dir`.
    pub(crate) fn start(ca_dir: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["agent".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap()
            .pem();
        Self::start_as(ca_dir, 0, &certificate, &key.serialize_pem())
    }

    /// On `port`, with this certificate and key.
    pub(crate) fn start_as(ca_dir: &Path, port: u16, certificate: &str, key: &str) -> Self {
        let identity = Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let ca = std::fs::read(ca_dir.join("cacert.crt")).unwrap();
        let clients = ClientAuth::Required(certificates_from_pem(&ca).unwrap());
        let acceptor = TlsAcceptor::from(Arc::clone(
            server_config(&identity, clients).unwrap().config(),
        ));
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = Arc::new(Mutex::new(Host {
            ak: Arc::new(Ak::generate()),
            entries: ["/usr/bin/a", "/usr/bin/b", "/usr/bin/c"]
                .map(Entry::of)
                .into(),
            clock: Clock {
                milliseconds: 1_000_000,
                resets: 5,
                restarts: 5,
                safe: true,
            },
            boottime: 1_700_000_000,
            lie: Arc::new(|_, evidence| Reply::Evidence(evidence)),
            asked: Vec::new(),
        }));
        let (stop, shutdown) = Shutdown::new();
        let served = Arc::clone(&host);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, acceptor, served) => {}
                    () = shutdown.wait() => {}
                }
            });
        });
        Self {
            host,
            port,
            certificate: certificate.to_owned(),
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From the next question on, the answer is what `lie` makes of the truth.
    pub(crate) fn lie(&self, lie: impl Fn(&Asked, Box<Evidence>) -> Reply + Send + Sync + 'static) {
        self.host.lock().unwrap().lie = Arc::new(lie);
    }

    /// From the next question on, evidence is changed by `change`.
    pub(crate) fn falsify(&self, change: impl Fn(&mut Evidence) + Send + Sync + 'static) {
        self.lie(move |_, mut evidence| {
            change(&mut evidence);
            Reply::Evidence(evidence)
        });
    }

    /// From the next question on, the truth.
    pub(crate) fn repent(&self) {
        self.lie(|_, evidence| Reply::Evidence(evidence));
    }

    /// What a program does when it is run for the first time.
    pub(crate) fn run(&self, path: &str) {
        self.run_all([path.to_owned()]);
    }

    /// As [`Liar::run`], all of them between two answers.
    pub(crate) fn run_all(&self, paths: impl IntoIterator<Item = String>) {
        let mut host = self.host.lock().unwrap();
        host.entries
            .extend(paths.into_iter().map(|path| Entry::of(&path)));
    }

    /// Boots the host: the list starts again.
    pub(crate) fn reboot(&self) {
        let mut host = self.host.lock().unwrap();
        host.clock.resets += 1;
        host.boottime += 1_000;
    }

    /// Paths and queries of the questions since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.host.lock().unwrap().asked)
    }

    /// The runtime policy that allows what has run so far.
    pub(crate) fn policy(&self) -> String {
        let host = self.host.lock().unwrap();
        let list: String = host.entries.iter().map(|e| e.line.as_str()).collect();
        RuntimePolicy::json_from_ima_list(&list, 1_700_000_000).unwrap()
    }

    /// An enrolment with PCR 0, the IMA list, and a policy of what has run so far.
    pub(crate) fn enrolment(&self) -> Value {
        let zero = Digest::zero(SHA256);
        json!({
            "v": null,
            "cloudagent_ip": "127.0.0.1",
            "cloudagent_port": self.port,
            "tpm_policy": format!("{{\"0\": [\"{zero}\"], \"mask\": \"0x401\"}}"),
            "metadata": "{}",
            "runtime_policy": BASE64_STANDARD.encode(self.policy()),
            "runtime_policy_name": "", "runtime_policy_key": "",
            "mb_policy": null, "mb_policy_name": "",
            "ima_sign_verification_keys": "", "revocation_key": "",
            "accept_tpm_hash_algs": ["sha256"],
            "accept_tpm_encryption_algs": ["ecc"],
            "accept_tpm_signing_algs": ["ecdsa"],
            "ak_tpm": self.host.lock().unwrap().ak.public(),
            "mtls_cert": self.certificate,
            "supported_version": "2.6",
        })
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.fire();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, host: Arc<Mutex<Host>>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, host) = (tls.clone(), Arc::clone(&host));
        tokio::spawn(async move {
            if let Ok(mut stream) = tls.accept(stream).await {
                // The verifier hangs up on some lies.
                let _ = serve(&mut stream, &host).await;
                let _ = stream.shutdown().await;
            }
        });
    }
}

async fn serve(
    stream: &mut TlsStream<TcpStream>,
    host: &Mutex<Host>,
) -> Result<(), std::io::Error> {
    while let Some(target) = request(stream).await? {
        let asked = Asked::parse(&target);
        let (lie, evidence) = {
            let mut host = host.lock().unwrap();
            host.asked.push(target);
            (Arc::clone(&host.lie), Box::new(host.evidence(&asked)))
        };
        match lie(&asked, evidence) {
            Reply::Evidence(evidence) => {
                let body = evidence.body().to_string();
                stream.write_all(response(200, &body).as_bytes()).await?;
            }
            Reply::Body(status, body) => {
                stream.write_all(response(status, &body).as_bytes()).await?;
            }
            Reply::Raw(bytes) => {
                stream.write_all(&bytes).await?;
                return Ok(());
            }
            Reply::Endless {
                start,
                again,
                pause,
            } => {
                stream.write_all(start.as_bytes()).await?;
                loop {
                    stream.write_all(&again).await?;
                    stream.flush().await?;
                    tokio::time::sleep(pause).await;
                }
            }
        }
        stream.flush().await?;
    }
    Ok(())
}

/// A response with its length.
pub(crate) fn response(status: u16, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Any\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         \r\n{body}"
    )
}

/// Path and query of the next request (a GET without a body); `None` at the end.
async fn request(stream: &mut TlsStream<TcpStream>) -> Result<Option<String>, std::io::Error> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    Ok(head.split(' ').nth(1).map(str::to_owned))
}
