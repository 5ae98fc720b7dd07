//! The verifier's REST interface (Keylime API 2.x), over mTLS.

/// Evidence that is kept.
mod evidence;
/// Policies by name.
mod policies;
/// Paths, who may use them, and what they are for.
mod routes;
/// Checks on demand, for anybody.
mod verify;

use std::{collections::BTreeMap, sync::Arc};

use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use serde::Serialize;
use troth_core::{
    identity::AgentId,
    wire::{Enrolment, NodeStatus},
};
use troth_daemon::server::{Body, Handler, Peer, read_body};

use self::{
    evidence::Evidence,
    routes::{Endpoint, ROUTES},
    verify::OnDemand,
};
use crate::{
    authority::{Principal, find},
    config::VerifierConfig,
    messages,
    poll::{CommandError, EnrolError, Fleet, RemoveError},
    rest::{self, Empty, Path, Refusal, Reply},
};

/// The verifier's routes over a fleet.
#[derive(Clone, Debug)]
pub struct VerifierApi(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fleet: Arc<Fleet>,
    verifier_id: String,
    max_upload_size: usize,
    on_demand: OnDemand,
    evidence: Evidence,
}

/// `results` of the list: database rows in Keylime, one-element arrays here.
#[derive(Serialize)]
struct Uuids {
    uuids: Vec<[String; 1]>,
}

impl VerifierApi {
    /// Serves `fleet`.
    pub fn new(fleet: Arc<Fleet>, config: &VerifierConfig) -> Self {
        Self(Arc::new(Inner {
            fleet,
            verifier_id: config.uuid.clone(),
            max_upload_size: config.max_upload_size,
            on_demand: OnDemand::new(config),
            evidence: Evidence::new(config),
        }))
    }
}

impl Handler for VerifierApi {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let id = rest::request_id(&request);
        // In a task of its own, because hyper drops the work for a client that goes away: half of
        // an enrolment is a node in the database that nobody asks.
        let inner = Arc::clone(&self.0);
        let reply = tokio::spawn(async move { inner.route(request).await }).await;
        let reply = reply.unwrap_or_else(|error| Err(Refusal::internal(&error)));
        rest::finish(id, reply)
    }
}

impl Inner {
    async fn route(&self, request: Request<Incoming>) -> Reply {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(rest::unknown_path());
        };
        let path = request.uri().path().to_owned();
        let segments = match Path::parse(&path) {
            Path::Root if request.method() == Method::GET => return Ok(rest::to_current_version()),
            Path::Version if request.method() == Method::GET => return Ok(rest::version(&[])),
            Path::Root | Path::Version => return Err(rest::wrong_method()),
            Path::Api3(_) | Path::Unknown => return Err(rest::unknown_path()),
            Path::Api(segments) => segments,
        };
        let (endpoint, parameter, who) = find(ROUTES, &segments, &request, &peer)?;
        match endpoint {
            Endpoint::VersionRoot => Ok(rest::success(Empty {})),
            Endpoint::Nodes => Ok(self.list(request.uri().query().unwrap_or_default())),
            Endpoint::Node => {
                let id = agent_id(parameter)?;
                let status = self.fleet.status(id.as_str()).ok_or_else(not_found)?;
                Ok(rest::success(status))
            }
            Endpoint::Enrol => {
                let id = agent_id(parameter)?;
                let body = read_body(request.into_body(), self.max_upload_size).await?;
                self.enrol(id, &body, &who).await
            }
            Endpoint::Remove => {
                let id = agent_id(parameter)?;
                let removed = self.fleet.remove(id.as_str()).await;
                removed.map_err(|error| match &error {
                    RemoveError::Elsewhere | RemoveError::Unknown => {
                        Refusal::not_found(error.to_string())
                    }
                    _ => Refusal::internal(&error),
                })?;
                tracing::info!(
                    message_id = messages::REMOVED,
                    node_id = %id,
                    admin = %who,
                    "node {id} removed by {who}"
                );
                Ok(rest::success(Empty {}))
            }
            Endpoint::Reactivate => {
                let id = agent_id(parameter)?;
                told(self.fleet.reactivate(id.as_str()).await)?;
                tracing::info!(
                    message_id = messages::REACTIVATED,
                    node_id = %id,
                    admin = %who,
                    "node {id} reactivated by {who}"
                );
                Ok(rest::success(Empty {}))
            }
            Endpoint::Stop => {
                let id = agent_id(parameter)?;
                told(self.fleet.stop(id.as_str()).await)?;
                tracing::info!(
                    message_id = messages::STOPPED,
                    node_id = %id,
                    admin = %who,
                    "attestation of node {id} stopped by {who}"
                );
                Ok(rest::success(Empty {}))
            }
            Endpoint::VerifyIdentity => {
                let (source, query) = (peer.address.ip(), request.uri().query());
                let key = |id: &str| self.fleet.attestation_key(id);
                let query = query.unwrap_or_default();
                self.on_demand.identity(source, query, key).await
            }
            Endpoint::VerifyEvidence => {
                let source = peer.address.ip();
                self.on_demand.evidence(source, request.into_body()).await
            }
            Endpoint::Evidence => {
                let query = request.uri().query().unwrap_or_default();
                self.evidence.serve(agent_id(parameter)?, query).await
            }
            Endpoint::Policies(kind) => policies::list(&self.fleet, kind).await,
            Endpoint::Policy(kind) => {
                let name = policies::name(parameter)?;
                let method = request.method().clone();
                let limit = self.max_upload_size;
                let body = request.into_body();
                policies::serve(&self.fleet, kind, &method, &name, &who, body, limit).await
            }
        }
    }

    fn list(&self, query: &str) -> Response<Body> {
        let parameter = |name: &str| {
            query.split('&').find_map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (key == name).then_some(value)
            })
        };
        let of_another =
            parameter("verifier").is_some_and(|id| !id.is_empty() && id != self.verifier_id);
        let ids = if of_another {
            Vec::new()
        } else {
            self.fleet.ids()
        };
        if parameter("bulk").is_some() {
            let status = |id: String| self.fleet.status(&id).map(|status| (id, status));
            let all: BTreeMap<String, NodeStatus> = ids.into_iter().filter_map(status).collect();
            return rest::success(all);
        }
        rest::success(Uuids {
            uuids: ids.into_iter().map(|id| [id]).collect(),
        })
    }

    async fn enrol(&self, id: AgentId, body: &[u8], who: &Principal) -> Reply {
        if body.is_empty() {
            return Err(Refusal::bad_request("Expected non zero content length"));
        }
        let enrolment =
            Enrolment::from_json(body).map_err(|error| Refusal::bad_request(error.to_string()))?;
        match self.fleet.enrol(id.clone(), enrolment).await {
            Ok(()) => {
                tracing::info!(
                    message_id = messages::ENROLLED,
                    node_id = %id,
                    admin = %who,
                    "node {id} enrolled by {who}"
                );
                Ok(rest::success(Empty {}))
            }
            Err(error) => Err(match &error {
                EnrolError::NodeExists(_) | EnrolError::PolicyExists { .. } => {
                    Refusal::new(StatusCode::CONFLICT, error.to_string())
                }
                EnrolError::Signature(unsigned) if unsigned.is_unauthorized() => {
                    Refusal::new(StatusCode::UNAUTHORIZED, error.to_string())
                }
                EnrolError::NoSuchPolicy { .. } => Refusal::not_found(error.to_string()),
                EnrolError::Malformed { .. }
                | EnrolError::Node(_)
                | EnrolError::PolicyEncoding
                | EnrolError::PolicyName(_)
                | EnrolError::Signature(_) => Refusal::bad_request(error.to_string()),
                _ => Refusal::internal(&error),
            }),
        }
    }
}

fn agent_id(text: &str) -> Result<AgentId, Refusal> {
    // Keylime's text, the second "not" included: scripts look for it.
    AgentId::new(text)
        .map_err(|error| Refusal::bad_request(format!("agent_id not not valid: {error}")))
}

fn not_found() -> Refusal {
    Refusal::not_found("agent id not found")
}

fn told(result: Result<(), CommandError>) -> Result<(), Refusal> {
    result.map_err(|error| match error {
        CommandError::Unknown => not_found(),
        CommandError::Broken(_) => Refusal::new(StatusCode::CONFLICT, error.to_string()),
    })
}
