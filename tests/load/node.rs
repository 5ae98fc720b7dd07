use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use tokio::net::TcpListener;
use troth_core::{
    ima::IMA_PCR,
    tpm::{BIND_PCR, Digest, HashAlgorithm, PcrMask, PcrValues},
    wire::{AgentVersion, Envelope, QuoteResponse},
};
use troth_daemon::{
    server::{Body, Handler, Limits, json, read_body, serve},
    shutdown::Shutdown,
    tls::{ClientAuth, Identity, server_config},
};
use troth_tests::{ima_list::ImaList, software_ak::SoftwareAk};

/// Boot time of every node, Unix seconds.
const BOOT_TIME: u64 = 1_700_000_000;
/// Largest body that a verifier sends (its half of the payload key).
const BODY_LIMIT: usize = 64 * 1024;

/// What nodes have in common.
#[derive(Debug)]
pub(crate) struct Common {
    /// Each node uses one of them. They are few, as an RSA key takes long to make.
    pub(crate) aks: Vec<SoftwareAk>,
    pub(crate) list: Mutex<ImaList>,
    pub(crate) tampered: Mutex<ImaList>,
    /// Entries that a node's list grows by before each quote.
    pub(crate) new_entries: usize,
    /// Integrity quotes made so far, by all nodes.
    pub(crate) quotes: AtomicU64,
    pub(crate) shutdown: Shutdown,
}

/// A node: what an agent on a host with a TPM would answer.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) port: u16,
    /// PEM, as it would be registered.
    pub(crate) certificate: String,
    ak: usize,
    tampered: bool,
    common: Arc<Common>,
    /// Integrity quotes made so far.
    pub(crate) quotes: AtomicU64,
    /// IMA entries measured so far.
    entries: Mutex<usize>,
}

/// Which of the nodes, and where it listens.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) id: String,
    pub(crate) number: usize,
    pub(crate) ip: IpAddr,
    /// 0: any free port.
    pub(crate) port: u16,
    pub(crate) tampered: bool,
}

impl Node {
    /// Makes a node's TLS key and certificate, and serves it to clients of `authorities`.
    pub(crate) async fn start(
        common: &Arc<Common>,
        place: Place,
        authorities: &[CertificateDer<'static>],
    ) -> Result<Arc<Self>> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new([place.ip.to_string(), "localhost".to_owned()])?;
        params
            .distinguished_name
            .push(DnType::CommonName, place.id.as_str());
        let certificate = params.self_signed(&key)?.pem();
        let identity = Identity::from_pem(certificate.as_bytes(), key.serialize_pem().as_bytes())?;
        let tls = server_config(&identity, ClientAuth::Required(authorities.to_vec()))?;
        let listener = TcpListener::bind((place.ip, place.port))
            .await
            .with_context(|| format!("cannot listen on {}:{}", place.ip, place.port))?;
        let node = Arc::new(Self {
            id: place.id,
            port: listener.local_addr()?.port(),
            certificate,
            ak: place.number % common.aks.len(),
            tampered: place.tampered,
            common: Arc::clone(common),
            quotes: AtomicU64::new(0),
            entries: Mutex::new(0),
        });
        let limits = Limits {
            anonymous: 8,
            authenticated: 8,
            // A verifier may ask once a day; whether it keeps the connection is its business.
            idle_timeout: Duration::from_secs(86_400),
            ..Limits::default()
        };
        let (front_door, shutdown) = (FrontDoor(Arc::clone(&node)), common.shutdown.clone());
        tokio::spawn(serve(listener, Some(tls), limits, front_door, shutdown));
        Ok(node)
    }

    pub(crate) fn ak(&self) -> &SoftwareAk {
        &self.common.aks[self.ak]
    }

    /// PCR 16 is bound to the hash of this text and nothing else is done with it here, so that it
    /// need not be a key of its own.
    fn transport_key(&self) -> String {
        self.ak().public().to_spki_pem()
    }

    fn quote(&self, query: &str, integrity: bool) -> Result<QuoteResponse> {
        let parameter = |name: &str| {
            query.split('&').find_map(|pair| {
                let (key, value) = pair.split_once('=')?;
                (key == name).then_some(value)
            })
        };
        let nonce = parameter("nonce").context("no nonce")?;
        let mask = match parameter("mask") {
            Some(mask) if integrity => PcrMask::from_hex(mask)?,
            _ => PcrMask::default(),
        };
        let key = self.transport_key();
        let mut pcrs = PcrValues::new(HashAlgorithm::Sha256);
        for pcr in mask.iter() {
            pcrs.set(pcr, Digest::zero(HashAlgorithm::Sha256));
        }
        let bound = HashAlgorithm::Sha256.digest(&[key.as_bytes()]);
        let zero = Digest::zero(HashAlgorithm::Sha256);
        pcrs.set(
            BIND_PCR,
            zero.extend(HashAlgorithm::Sha256, bound.as_bytes()),
        );

        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answer = QuoteResponse {
            hash_alg: "sha256".to_owned(),
            enc_alg: self.ak().public().enc_alg(),
            sign_alg: match self.ak().public().parms().scheme() {
                Some((scheme, _)) => scheme.name().to_owned(),
                None => bail!("the AK has no scheme"),
            },
            boottime: Some(BOOT_TIME),
            ..QuoteResponse::default()
        };
        if !integrity || parameter("partial") == Some("0") {
            answer.pubkey = Some(key);
        }
        if mask.contains(IMA_PCR) {
            *entries += self.common.new_entries;
            let from = parameter("ima_ml_entry").unwrap_or("0").parse()?;
            // As an agent whose list is shorter than the verifier believes.
            let from = if from > *entries { 0 } else { from };
            let list = if self.tampered {
                &self.common.tampered
            } else {
                &self.common.list
            };
            let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
            pcrs.set(IMA_PCR, list.pcr(*entries));
            answer.ima_measurement_list = Some(list.entries(from, *entries).to_owned());
            answer.ima_measurement_list_entry = Some(u64::try_from(from)?);
        }
        // One clock for all: it advances from quote to quote.
        let clock = self
            .common
            .quotes
            .fetch_add(u64::from(integrity), Ordering::Relaxed);
        answer.quote = self.ak().quote(nonce.as_bytes(), &pcrs, clock + 1)?;
        drop(entries);
        self.quotes
            .fetch_add(u64::from(integrity), Ordering::Relaxed);
        Ok(answer)
    }
}

/// The routes of an agent that verifiers and tenants use.
#[derive(Clone)]
struct FrontDoor(Arc<Node>);

impl Handler for FrontDoor {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let uri = request.uri().clone();
        let path = uri.path().trim_matches('/');
        let query = uri.query().unwrap_or_default();
        // What follows the version.
        let route = path.split_once('/').map_or(path, |(_, route)| route);
        let result = match (request.method(), route) {
            (&Method::GET, "version") => return success(&version()),
            (&Method::GET, "quotes/integrity") => self.0.quote(query, true),
            (&Method::GET, "quotes/identity") => self.0.quote(query, false),
            (&Method::POST, "keys/vkey") => {
                // No payload was ever sent, so there is nothing that the key would open.
                let body = read_body(request.into_body(), BODY_LIMIT).await;
                return match body {
                    Ok(_) => success(&()),
                    Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
                };
            }
            _ => return refuse(StatusCode::NOT_FOUND, "no such route"),
        };
        match result {
            Ok(answer) => success(&answer),
            Err(error) => refuse(StatusCode::BAD_REQUEST, &format!("{error:#}")),
        }
    }
}

fn version() -> AgentVersion {
    let versions = ["2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6"];
    AgentVersion {
        supported_version: "2.6".to_owned(),
        supported_versions: versions.map(str::to_owned).to_vec(),
        extensions: Vec::new(),
    }
}

fn success<T: Serialize>(results: &T) -> Response<Body> {
    let answer = Envelope {
        code: 200,
        status: "Success".to_owned(),
        results: Some(results),
    };
    json(StatusCode::OK, &answer)
}

fn refuse(status: StatusCode, reason: &str) -> Response<Body> {
    let answer = Envelope {
        code: status.as_u16(),
        status: reason.to_owned(),
        results: Some(serde_json::Map::new()),
    };
    json(status, &answer)
}
