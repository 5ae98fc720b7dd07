//! The registrar: binds an AK to the TPM of an EK by a challenge that only that TPM can answer.
//!
//! Whatever an agent sends is *pending* until its challenge is answered. No anonymous request
//! changes, hides or removes an active record: a wrong answer burns the challenge and nothing
//! else.

/// What a registration must be before it gets a challenge.
mod candidate;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use serde::Deserialize;
use troth_core::{
    identity::{AgentId, activation_tag_matches},
    tpm::make_credential,
    wire::{Activation, RegistrarList, RegistrarRecord, Registration, RegistrationChallenge},
};
use troth_daemon::server::{Body, Handler, Peer, read_body};
use zeroize::Zeroizing;

use self::candidate::Candidate;
pub(crate) use self::candidate::is_host;
use crate::{
    authority::{Class, Principal, authorize},
    config::RegistrarConfig,
    limit::SourceLimit,
    messages,
    rest::{self, Empty, Path, Refusal, Reply},
    store::{Agent, Pending, Promotion, Store},
};

/// A registration with RSA-4096 keys and a chain of certificates is below 20 KiB.
const BODY_LIMIT: usize = 64 * 1024;
/// Bytes of a challenge: fits every EK name algorithm from SHA-256 on.
const CHALLENGE_SIZE: usize = 32;

const OTHER_IDENTITY: &str =
    "Agent re-registration with different TPM identity is forbidden for security reasons";

/// The registrar's REST interface.
#[derive(Clone, Debug)]
pub struct Registrar(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    challenge_lifetime: Duration,
    max_pending: u32,
    limit: SourceLimit,
}

impl Registrar {
    /// Serves from `store`.
    pub fn new(store: Store, config: &RegistrarConfig) -> Self {
        Self(Arc::new(Inner {
            store,
            challenge_lifetime: config.challenge_lifetime.0,
            max_pending: config.max_pending,
            limit: SourceLimit::new(config.source_rate_limit),
        }))
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

impl Inner {
    async fn route(&self, request: Request<Incoming>) -> Reply {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(rest::unknown_path());
        };
        let path = request.uri().path().to_owned();
        let segments = match Path::parse(&path) {
            Path::Root if request.method() == Method::GET => return Ok(rest::to_current_version()),
            Path::Version if request.method() == Method::GET => return Ok(rest::version()),
            Path::Root | Path::Version => return Err(rest::wrong_method()),
            Path::Unknown => return Err(rest::unknown_path()),
            Path::Api(segments) => segments,
        };
        match (request.method().clone(), segments.as_slice()) {
            (Method::GET, []) => Ok(rest::success(Empty {})),
            (Method::GET, ["agents"]) => {
                authorize(&request, &peer, Class::Admin, "list_registrations")?;
                self.list().await
            }
            (Method::GET, ["agents", id]) => {
                authorize(&request, &peer, Class::Admin, "read_registration")?;
                self.show(&agent_id(id)?).await
            }
            (Method::DELETE, ["agents", id]) => {
                let admin = authorize(&request, &peer, Class::Admin, "delete_registration")?;
                self.delete(&agent_id(id)?, &admin).await
            }
            (Method::POST, ["agents"]) => {
                self.limit.take(peer.address.ip())?;
                let body = read_body(request.into_body(), BODY_LIMIT).await?;
                let id: WithId = parse(&body)?;
                self.register(&agent_id(&id.agent_id)?, &body, &peer).await
            }
            (Method::POST, ["agents", id]) => {
                self.limit.take(peer.address.ip())?;
                let id = agent_id(id)?;
                let body = read_body(request.into_body(), BODY_LIMIT).await?;
                self.register(&id, &body, &peer).await
            }
            (Method::PUT, ["agents", id])
            | (Method::PUT | Method::POST, ["agents", id, "activate"]) => {
                self.limit.take(peer.address.ip())?;
                let id = agent_id(id)?;
                let body = read_body(request.into_body(), BODY_LIMIT).await?;
                self.activate(&id, &body, &peer).await
            }
            (_, [] | ["agents"] | ["agents", _] | ["agents", _, "activate"]) => {
                Err(rest::wrong_method())
            }
            _ => Err(rest::unknown_path()),
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
        tracing::info!(node_id = %id, %admin, "registration removed by an administrator");
        Ok(rest::success(Empty {}))
    }

    async fn register(&self, id: &AgentId, body: &[u8], peer: &Peer) -> Reply {
        let registration: Registration = parse(body)?;
        let candidate = Candidate::check(id, registration).map_err(|error| {
            tracing::warn!(node_id = %id, source = %peer.address, %error, "registration refused");
            Refusal::bad_request(format!(
                "Could not register agent with invalid data: {error}"
            ))
        })?;
        let internal = |error| Refusal::internal(&error);
        let active = self.store.agent(id.as_str()).await.map_err(internal)?;
        if active.is_some_and(|active| !active.same_identity(&candidate.agent)) {
            return Err(other_identity(id, peer));
        }
        let aik = &candidate.agent.aik_tpm;
        if let Some(other) = self
            .store
            .agent_with_ak(aik, id.as_str())
            .await
            .map_err(internal)?
        {
            tracing::warn!(node_id = %id, other_node = other, "the same AK has another agent id");
        }
        let mut challenge = Zeroizing::new(vec![0; CHALLENGE_SIZE]);
        aws_lc_rs::rand::fill(&mut challenge).map_err(|error| Refusal::internal(&error))?;
        let blob = make_credential(&candidate.ek, &candidate.ak_name, &challenge)
            .map_err(|error| Refusal::bad_request(format!("no challenge for this EK: {error}")))?;
        let now = unix_seconds();
        let pending = Pending {
            agent: candidate.agent,
            challenge,
            created_at: now,
        };
        let oldest = now.saturating_sub(self.challenge_lifetime.as_secs());
        let pushed_out = self
            .store
            .put_pending(&pending, oldest, self.max_pending)
            .await
            .map_err(internal)?;
        if pushed_out > 0 {
            tracing::warn!(
                node_id = %id, source = %peer.address,
                "too many unanswered challenges: the oldest was dropped"
            );
        }
        tracing::debug!(node_id = %id, source = %peer.address, "registration pending");
        Ok(rest::success(RegistrationChallenge {
            blob: STANDARD.encode(blob.to_bytes()),
        }))
    }

    async fn activate(&self, id: &AgentId, body: &[u8], peer: &Peer) -> Reply {
        // Parsed first: a request that carries no answer does not burn the challenge.
        let activation: Activation = parse(body)?;
        let internal = |error| Refusal::internal(&error);
        let Some(pending) = self
            .store
            .take_pending(id.as_str())
            .await
            .map_err(internal)?
        else {
            let known = self
                .store
                .agent(id.as_str())
                .await
                .map_err(internal)?
                .is_some();
            return Err(if known {
                Refusal::bad_request("no registration of this agent waits for its activation")
            } else {
                not_registered(id)
            });
        };
        let age = unix_seconds().saturating_sub(pending.created_at);
        if age > self.challenge_lifetime.as_secs() {
            return Err(Refusal::bad_request(
                "the challenge has expired; register again",
            ));
        }
        if !activation_tag_matches(&pending.challenge, id, &activation.auth_tag) {
            tracing::warn!(
                node_id = %id, source = %peer.address,
                "wrong activation tag: the challenge is spent, an active registration stays"
            );
            return Err(Refusal::bad_request(
                "auth_tag does not match; register again",
            ));
        }
        let agent = pending.agent;
        match self
            .store
            .promote(&agent, unix_seconds())
            .await
            .map_err(internal)?
        {
            Promotion::Done => {}
            Promotion::OtherIdentity => return Err(other_identity(id, peer)),
        }
        let Agent {
            ip, port, ekcert, ..
        } = &agent;
        tracing::info!(
            message_id = messages::REGISTERED,
            node_id = %id,
            address = %format_args!("{ip}:{port}"),
            ek_certificate = ekcert.is_some(),
            "agent {id} registered: its AK is held by the TPM of its EK"
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

fn other_identity(id: &AgentId, peer: &Peer) -> Refusal {
    tracing::warn!(
        message_id = messages::IDENTITY_CONFLICT,
        node_id = %id,
        source = %peer.address,
        "registration refused: {id} belongs to another TPM; an administrator must remove it first"
    );
    Refusal::new(StatusCode::FORBIDDEN, OTHER_IDENTITY)
}

fn parse<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad_request(format!("body: {error}")))
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
