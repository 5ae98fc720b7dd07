//! The verifier's REST interface (Keylime API 2.x), over mTLS.

/// Policies by name.
mod policies;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use serde::Serialize;
use troth_core::{
    identity::AgentId,
    wire::{Enrolment, NodeStatus},
};
use troth_daemon::server::{Body, Handler, Peer, read_body};

use crate::{
    poll::{CommandError, EnrolError, Fleet},
    rest::{self, Empty, Path, Refusal, Reply},
};

/// The verifier's routes over a fleet.
#[derive(Clone, Debug)]
pub struct VerifierApi(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fleet: Arc<Fleet>,
    verifier_id: String,
    address: SocketAddr,
    max_upload_size: usize,
}

/// `results` of the list: database rows in Keylime, one-element arrays here.
#[derive(Serialize)]
struct Uuids {
    uuids: Vec<[String; 1]>,
}

impl VerifierApi {
    /// Serves `fleet`; `address` is what operators are told to reach this verifier by.
    pub fn new(
        fleet: Arc<Fleet>,
        verifier_id: String,
        address: SocketAddr,
        max_upload_size: usize,
    ) -> Self {
        Self(Arc::new(Inner {
            fleet,
            verifier_id,
            address,
            max_upload_size,
        }))
    }
}

impl Handler for VerifierApi {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let id = rest::request_id(&request);
        rest::finish(id, self.0.route(request).await)
    }
}

impl Inner {
    async fn route(&self, request: Request<Incoming>) -> Reply {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(rest::unknown_path());
        };
        let path = request.uri().path().to_owned();
        let segments = match Path::parse(&path) {
            Path::Version if request.method() == Method::GET => return Ok(rest::version()),
            Path::Version => return Err(rest::wrong_method()),
            Path::Unknown => return Err(rest::unknown_path()),
            Path::Api(segments) => segments,
        };
        let admin = |action| rest::require_admin(&request, &peer, action);
        match (request.method().clone(), segments.as_slice()) {
            (Method::GET, []) => Ok(rest::success(Empty {})),
            (Method::GET, ["agents"]) => {
                admin("list_agents")?;
                Ok(self.list(request.uri().query().unwrap_or_default()))
            }
            (Method::GET, ["agents", id]) => {
                admin("read_agent")?;
                let id = agent_id(id)?;
                let status = self.fleet.status(id.as_str()).ok_or_else(not_found)?;
                Ok(rest::success(self.with_address(status)))
            }
            (Method::POST, ["agents", id]) => {
                admin("create_agent")?;
                let id = agent_id(id)?;
                let body = read_body(request.into_body(), self.max_upload_size).await?;
                self.enrol(id, &body).await
            }
            (Method::DELETE, ["agents", id]) => {
                let who = admin("delete_agent")?;
                let id = agent_id(id)?;
                let removed = self.fleet.remove(id.as_str()).await;
                if !removed.map_err(|error| Refusal::internal(&error))? {
                    return Err(not_found());
                }
                tracing::info!(node_id = %id, admin = who, "removed");
                Ok(rest::success(Empty {}))
            }
            (Method::PUT, ["agents", id, "reactivate"]) => {
                admin("reactivate_agent")?;
                told(self.fleet.reactivate(agent_id(id)?.as_str()).await)
            }
            (Method::PUT, ["agents", id, "stop"]) => {
                admin("stop_agent")?;
                told(self.fleet.stop(agent_id(id)?.as_str()).await)
            }
            (method, [first, name @ ..])
                if name.len() <= 1
                    && let Some(kind) = policies::kind(first) =>
            {
                let who = admin(policies::action(kind, &method, !name.is_empty())?)?;
                let Some(name) = name.first() else {
                    return policies::list(&self.fleet, kind).await;
                };
                let name = policies::name(name)?;
                let limit = self.max_upload_size;
                let body = request.into_body();
                policies::serve(&self.fleet, kind, &method, &name, &who, body, limit).await
            }
            (_, [] | ["agents"] | ["agents", _] | ["agents", _, "reactivate" | "stop"]) => {
                Err(rest::wrong_method())
            }
            _ => Err(rest::unknown_path()),
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
            let status = |id: String| {
                let status = self.fleet.status(&id)?;
                Some((id, self.with_address(status)))
            };
            let all: BTreeMap<String, NodeStatus> = ids.into_iter().filter_map(status).collect();
            return rest::success(all);
        }
        rest::success(Uuids {
            uuids: ids.into_iter().map(|id| [id]).collect(),
        })
    }

    async fn enrol(&self, id: AgentId, body: &[u8]) -> Reply {
        if body.is_empty() {
            return Err(Refusal::bad_request("Expected non zero content length"));
        }
        let enrolment: Enrolment = serde_json::from_slice(body)
            .map_err(|error| Refusal::bad_request(format!("body: {error}")))?;
        match self.fleet.enrol(id, enrolment).await {
            Ok(()) => Ok(rest::success(Empty {})),
            Err(error) => Err(match &error {
                EnrolError::NodeExists(_) | EnrolError::PolicyExists { .. } => {
                    Refusal::new(StatusCode::CONFLICT, error.to_string())
                }
                EnrolError::NoSuchPolicy { .. } => Refusal::not_found(error.to_string()),
                EnrolError::Malformed { .. }
                | EnrolError::Node(_)
                | EnrolError::PolicyEncoding
                | EnrolError::PolicyName(_) => Refusal::bad_request(error.to_string()),
                _ => Refusal::internal(&error),
            }),
        }
    }

    fn with_address(&self, status: NodeStatus) -> NodeStatus {
        NodeStatus {
            verifier_ip: self.address.ip().to_string(),
            verifier_port: self.address.port(),
            ..status
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

fn told(result: Result<(), CommandError>) -> Reply {
    match result {
        Ok(()) => Ok(rest::success(Empty {})),
        Err(CommandError::Unknown) => Err(not_found()),
        Err(error @ CommandError::Broken(_)) => {
            Err(Refusal::new(StatusCode::CONFLICT, error.to_string()))
        }
    }
}
