//! The registrar: binds an AK to the TPM of an EK by a challenge that only that TPM can answer.
//!
//! Whatever an agent sends is *pending* until its challenge is answered. No anonymous request
//! changes, hides or removes an active record: a wrong answer burns the challenge of its own source
//! address and nothing else.

/// What a registration must be before it gets a challenge.
mod candidate;
/// Registration and activation.
mod exchange;
/// What the administrator asks of registrations.
mod rules;

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use hyper::{Method, Request, Response, body::Incoming};
use serde::Deserialize;
use troth_core::{
    identity::AgentId,
    wire::{RegistrarList, RegistrarRecord},
};
use troth_daemon::{
    cert_store::CertStoreError,
    server::{Body, Handler, Peer, read_body},
};

use self::rules::Rules;
use crate::{
    authority::{ANY, Class, Principal, Route, find},
    config::RegistrarConfig,
    limit::SourceLimit,
    messages,
    rest::{self, Empty, Path, Refusal, Reply},
    store::Store,
};

/// A registration with RSA-4096 keys and a chain of certificates is below 20 KiB.
const BODY_LIMIT: usize = 64 * 1024;
/// The registrar's REST interface.
#[derive(Clone, Debug)]
pub struct Registrar(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    challenge_lifetime: Duration,
    max_pending: u32,
    /// How many got a challenge.
    registrations: AtomicU32,
    limit: SourceLimit,
    rules: Rules,
    one_id_per_tpm: bool,
}

impl Registrar {
    /// Serves from `store`; reads the certificate store.
    pub fn new(store: Store, config: &RegistrarConfig) -> Result<Self, CertStoreError> {
        Ok(Self(Arc::new(Inner {
            store,
            challenge_lifetime: config.challenge_lifetime.0,
            max_pending: config.max_pending,
            registrations: AtomicU32::new(0),
            limit: SourceLimit::new(config.source_rate_limit),
            rules: Rules::new(config)?,
            one_id_per_tpm: config.one_id_per_tpm,
        })))
    }
}

impl Handler for Registrar {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let id = rest::request_id(&request);
        rest::finish(id, self.0.route(request).await)
    }
}

/// Members of a POST without an id in its path.
#[derive(Deserialize)]
struct WithId {
    agent_id: String,
}

#[derive(Clone, Copy, Debug)]
enum Endpoint {
    Root,
    List,
    Show,
    Delete,
    /// The id is in the body.
    Register,
    RegisterAs,
    Activate,
}

/// What API 2.x and 3.0 have in common.
const COMMON: &[Route<Endpoint>] = {
    use Class::{Admin, Public};
    use Endpoint::{Activate, Delete, List, Register, Root, Show};
    &[
        Route::new(Method::GET, &[], Public, "read_root", Root),
        Route::new(Method::GET, AGENTS, Admin, "list_registrations", List),
        Route::new(Method::GET, AGENT, Admin, "read_registration", Show),
        Route::new(Method::DELETE, AGENT, Admin, "delete_registration", Delete),
        Route::new(Method::POST, AGENTS, Public, "register_agent", Register),
        Route::new(Method::POST, ACTIVATE, Public, "activate_agent", Activate),
    ]
};

/// What only API 2.x has.
const ONLY_2: &[Route<Endpoint>] = {
    use Class::Public;
    use Endpoint::{Activate, RegisterAs};
    &[
        Route::new(Method::POST, AGENT, Public, "register_agent", RegisterAs),
        Route::new(Method::PUT, AGENT, Public, "activate_agent", Activate),
        Route::new(Method::PUT, ACTIVATE, Public, "activate_agent", Activate),
    ]
};

const AGENTS: &[&str] = &["agents"];
const AGENT: &[&str] = &["agents", ANY];
const ACTIVATE: &[&str] = &["agents", ANY, "activate"];

impl Inner {
    async fn route(&self, request: Request<Incoming>) -> Reply {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(rest::unknown_path());
        };
        let path = request.uri().path().to_owned();
        let (routes, segments) = match Path::parse(&path) {
            Path::Root if request.method() == Method::GET => return Ok(rest::to_current_version()),
            Path::Version if request.method() == Method::GET => {
                return Ok(rest::version(&[rest::VERSION_3]));
            }
            Path::Root | Path::Version => return Err(rest::wrong_method()),
            Path::Unknown => return Err(rest::unknown_path()),
            Path::Api(segments) => (&[COMMON, ONLY_2][..], segments),
            Path::Api3(segments) => (&[COMMON][..], segments),
        };
        let routes = routes.iter().copied().flatten();
        let (endpoint, id, who) = find(routes, &segments, &request, &peer)?;
        match endpoint {
            Endpoint::Root => Ok(rest::success(Empty {})),
            Endpoint::List => self.list().await,
            Endpoint::Show => self.show(&agent_id(id)?).await,
            Endpoint::Delete => self.delete(&agent_id(id)?, &who).await,
            Endpoint::Register | Endpoint::RegisterAs | Endpoint::Activate => {
                self.limit.take(peer.address.ip())?;
                let body = read_body(request.into_body(), BODY_LIMIT).await?;
                let id = match endpoint {
                    Endpoint::Register => agent_id(&parse::<WithId>(&body)?.agent_id)?,
                    _ => agent_id(id)?,
                };
                match endpoint {
                    Endpoint::Activate => self.activate(&id, &body, &peer).await,
                    _ => self.register(&id, &body, &peer).await,
                }
            }
        }
    }

    async fn list(&self) -> Reply {
        let uuids = self
            .store
            .agent_ids()
            .await
            .map_err(|e| Refusal::internal(&e))?;
        Ok(rest::success(RegistrarList { uuids }))
    }

    async fn show(&self, id: &AgentId) -> Reply {
        let agent = self
            .store
            .agent(id.as_str())
            .await
            .map_err(|e| Refusal::internal(&e))?;
        let agent = agent.ok_or_else(|| not_registered(id))?;
        Ok(rest::success(RegistrarRecord {
            agent_id: Some(agent.agent_id),
            ek_tpm: agent.ek_tpm,
            ekcert: agent.ekcert,
            ekcert_chain: agent.ekcert_chain,
            aik_tpm: agent.aik_tpm,
            ip: agent.ip,
            port: agent.port,
            mtls_cert: agent.mtls_cert,
            regcount: agent.regcount,
        }))
    }

    async fn delete(&self, id: &AgentId, admin: &Principal) -> Reply {
        let deleted = self
            .store
            .delete_agent(id.as_str())
            .await
            .map_err(|e| Refusal::internal(&e))?;
        if !deleted {
            return Err(not_registered(id));
        }
        tracing::info!(
            message_id = messages::REGISTRATION_REMOVED,
            node_id = %id,
            admin = %admin,
            "registration of {id} removed by {admin}"
        );
        Ok(rest::success(Empty {}))
    }
}

fn agent_id(text: &str) -> Result<AgentId, Refusal> {
    AgentId::new(text).map_err(|error| Refusal::bad_request(error.to_string()))
}

fn not_registered(id: &AgentId) -> Refusal {
    Refusal::not_found(format!("agent {id} not found"))
}

fn parse<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad_request(format!("body: {error}")))
}
