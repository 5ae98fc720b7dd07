use std::{
    convert::Infallible,
    future::pending,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{Request, Response, StatusCode, body::Incoming};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};
use troth_agent::{
    agent::{self, AgentError},
    config::Config,
    local::LocalAgent,
    tpm::sim::Chip,
};
use troth_core::{
    identity::{AgentId, activation_tag, check_ak},
    tpm::{Public, make_credential},
};
use troth_daemon::{
    client::Client,
    descriptors::Descriptors,
    server::{self, Body, Handler, Limits, json},
    shutdown::{Shutdown, Trigger},
    tls::{self, ClientAuth, Identity, ServerTrust},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const CHALLENGE: &[u8] = b"T7qA2mZk9Xw0LrB5cVnE8sYd1HgJ4uPf";

/// A registrar that answers from a script, then properly.
#[derive(Clone, Default)]
pub(crate) struct Registrar(pub(crate) Arc<Mutex<Book>>);

#[derive(Default)]
pub(crate) struct Book {
    /// Statuses for the next registrations.
    pub(crate) refusals: Vec<u16>,
    /// Retry-After of the refusals.
    pub(crate) retry_after: Option<&'static str>,
    /// The version of the API, if not 2.6.
    pub(crate) version: Option<&'static str>,
    /// Status of `/version`, for a registrar that has none.
    pub(crate) no_version: Option<u16>,
    /// The id that the host must come with, if not the EK's hash.
    pub(crate) id: Option<String>,
    /// Bodies of registrations and activations, in order of arrival.
    pub(crate) registrations: Vec<Value>,
    pub(crate) activated: Vec<String>,
}

impl Handler for Registrar {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = server::read_body(body, 1 << 20).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mut book = self.0.lock().unwrap();
        let version = match book.no_version {
            None => book.version.unwrap_or("2.6"),
            Some(_) => book.version.unwrap_or("2.2"),
        };
        let path = format!("/v{version}/agents/");
        let id = head.uri.path().strip_prefix(&path).unwrap_or_default();
        let envelope = |results| json!({ "code": 200, "status": "Success", "results": results });
        match head.method.as_str() {
            "GET" => {
                if let Some(status) = book.no_version {
                    return json(StatusCode::from_u16(status).unwrap(), &json!({}));
                }
                let versions = json!({
                    "current_version": "2.6",
                    "supported_versions": ["2.1", "2.2", "2.3", "2.6"],
                });
                json(StatusCode::OK, &envelope(versions))
            }
            "POST" => {
                if !book.refusals.is_empty() {
                    let status = StatusCode::from_u16(book.refusals.remove(0)).unwrap();
                    let code = status.as_u16();
                    let text = json!({ "code": code, "status": "told to", "results": {} });
                    let mut answer = json(status, &text);
                    if let Some(wait) = book.retry_after {
                        let headers = answer.headers_mut();
                        headers.insert("retry-after", wait.parse().unwrap());
                    }
                    return answer;
                }
                let key = |name: &str| {
                    let bytes = STANDARD.decode(body[name].as_str().unwrap()).unwrap();
                    Public::from_tpm2b(&bytes).unwrap()
                };
                let (ek, ak) = (key("ek_tpm"), key("aik_tpm"));
                check_ak(&ak).unwrap();
                if book.id.is_none() {
                    assert_eq!(AgentId::hash_ek(&ek).as_str(), id);
                }
                assert_eq!(book.id.as_deref().unwrap_or(id), id);
                let blob = make_credential(&ek, &ak.name(), CHALLENGE).unwrap();
                book.registrations.push(body);
                let blob = STANDARD.encode(blob.to_bytes());
                json(StatusCode::OK, &envelope(json!({ "blob": blob })))
            }
            "PUT" => {
                let expected = activation_tag(CHALLENGE, &AgentId::new(id).unwrap());
                assert_eq!(body["auth_tag"], expected);
                book.activated.push(id.to_owned());
                json(StatusCode::OK, &envelope(json!({})))
            }
            other => panic!("{other}"),
        }
    }
}

/// A CA with one certificate of its own making: what `cv_ca` holds.
pub(crate) struct Authority {
    pub(crate) certificate: String,
    pub(crate) leaf: Identity,
}

pub(crate) fn authority(directory: &Path, name: &str) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().pem();
    std::fs::write(directory.join(name), &certificate).unwrap();
    let leaf_key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(params, key);
    let leaf = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])
        .unwrap()
        .signed_by(&leaf_key, &issuer)
        .unwrap();
    let leaf = Identity::from_pem(leaf.pem().as_bytes(), leaf_key.serialize_pem().as_bytes());
    Authority {
        certificate,
        leaf: leaf.unwrap(),
    }
}

pub(crate) struct Stage {
    pub(crate) directory: TempDir,
    pub(crate) chip: Chip,
    pub(crate) registrar: Registrar,
    pub(crate) registrar_port: u16,
    pub(crate) authority: Authority,
    _registrar: Trigger,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with_registrar(None).await
    }

    /// `tls`: whether the registrar speaks TLS, with a certificate of this authority.
    pub(crate) async fn with_registrar(tls: Option<&Authority>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(directory.path(), "clients.crt");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registrar_port = listener.local_addr().unwrap().port();
        let registrar = Registrar::default();
        let (trigger, shutdown) = Shutdown::new();
        let tls = tls.map(|ca| tls::server_config(&ca.leaf, ClientAuth::None).unwrap());
        let handler = registrar.clone();
        tokio::spawn(server::serve(
            listener,
            tls,
            Limits::default(),
            handler,
            shutdown,
        ));
        Self {
            directory,
            chip: Chip::manufacture().unwrap(),
            registrar,
            registrar_port,
            authority,
            _registrar: trigger,
        }
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            state_dir: self.directory.path().join("state"),
            port: 0,
            registrar_port: Some(self.registrar_port),
            trusted_client_ca: Some(vec![self.path("clients.crt")]),
            tpm_encryption_alg: "ecc256".into(),
            ima_ml_path: self.path("ima"),
            measuredboot_ml_path: self.path("boot"),
            exponential_backoff_initial_delay: 5,
            exponential_backoff_max_delay: 20,
            ..Config::default()
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn start(&self, config: Config) -> Running {
        self.start_with_doors(config, |_| pending())
    }

    /// Starts it, and is let in as a local caller is.
    pub(crate) async fn start_locally(&self, config: Config) -> (Running, LocalAgent) {
        let (enter, agent) = oneshot::channel();
        let running = self.start_with_doors(config, |agent| {
            enter.send(agent).unwrap();
            pending()
        });
        (running, agent.await.unwrap())
    }

    fn start_with_doors<D: Future<Output = Infallible> + Send + 'static>(
        &self,
        config: Config,
        doors: impl FnOnce(LocalAgent) -> D + Send + 'static,
    ) -> Running {
        let (trigger, shutdown) = Shutdown::new();
        let chip = self.chip.clone();
        let open = Box::new(move || Ok(Box::new(chip.open()?) as Box<_>));
        let task = tokio::spawn(agent::run_with(
            config,
            Descriptors::default(),
            open,
            doors,
            shutdown,
        ));
        Running { trigger, task }
    }

    /// Runs to the end, without a stop.
    pub(crate) async fn run(&self, config: Config) -> AgentError {
        let running = self.start(config);
        timeout(PATIENCE, running.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap_err()
    }

    pub(crate) async fn activated(&self, times: usize) -> Value {
        let last = || {
            let book = self.registrar.0.lock().unwrap();
            (book.activated.len() == times)
                .then(|| book.registrations.last().cloned())
                .flatten()
        };
        let poll = async {
            loop {
                match last() {
                    Some(registration) => return registration,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        timeout(PATIENCE, poll).await.unwrap()
    }

    pub(crate) fn client(&self, registration: &Value, identity: Option<&Identity>) -> Client {
        let pem = registration["mtls_cert"].as_str().unwrap();
        let pinned = tls::certificates_from_pem(pem.as_bytes())
            .unwrap()
            .remove(0);
        let tls = tls::client_config(ServerTrust::Pinned(pinned), identity).unwrap();
        let port = u16::try_from(registration["port"].as_u64().unwrap()).unwrap();
        Client::new(
            registration["ip"].as_str().unwrap(),
            port,
            Some(tls),
            PATIENCE,
        )
    }
}

pub(crate) struct Running {
    pub(crate) trigger: Trigger,
    pub(crate) task: JoinHandle<Result<(), AgentError>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.trigger.fire();
        timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
