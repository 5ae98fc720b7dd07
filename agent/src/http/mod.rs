//! The pull API: Keylime's agent REST interface, versions 2.1 to 2.6 from one table of routes.

/// Answers, as HTTP has them.
mod answer;
/// The payload key's shares.
mod keys;
/// Query parameters and their checks.
mod query;
/// The table of routes, and what is answered outside it.
mod routes;
/// API versions.
mod version;

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use hyper::{Request, Response, StatusCode, body::Incoming, header, http::request};
use serde_json::json;
use troth_core::{identity::AgentId, tpm::PcrMask, wire::AgentVersion};
use troth_daemon::server::{Body, BodyError, Handler, Peer, read_body};

use crate::{
    evidence::{self, Collector},
    payload::Shares,
};
use answer::{error, success};
use query::{Query, QueryError};
use routes::{Endpoint, Lookup};
pub use version::ApiVersion;

/// Largest request body: a share has 344 characters, a payload may have some MiB.
const BODY_LIMIT: usize = 8 * 1024 * 1024;

/// The HTTP front door. Clones share one state.
#[derive(Clone, Debug)]
pub struct Api(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: AgentId,
    versions: Vec<ApiVersion>,
    collector: Arc<Collector>,
    shares: Shares,
}

impl Api {
    /// Serves evidence of agent `id` in the API versions `versions` (ascending, at least one).
    pub fn new(id: AgentId, versions: Vec<ApiVersion>, collector: Arc<Collector>) -> Self {
        let shares = Shares::new(id.clone());
        Self(Arc::new(Shared {
            id,
            versions,
            collector,
            shares,
        }))
    }

    /// Answers one request. `body` is polled only for endpoints that take one.
    async fn answer(
        &self,
        head: &request::Parts,
        body: impl Future<Output = Result<Bytes, BodyError>>,
    ) -> Response<Body> {
        let (method, path, query) = (&head.method, head.uri.path(), head.uri.query());
        let (endpoint, version) = match routes::find(&self.0.versions, method, path) {
            Lookup::Found(endpoint, version) => (endpoint, version),
            Lookup::Refused(refusal) => return refusal.into_response(),
        };
        match endpoint {
            Endpoint::Version => self.version(),
            Endpoint::Info => self.info(version),
            Endpoint::PublicKey => {
                success(&json!({ "pubkey": self.0.collector.transport().public_pem() }))
            }
            Endpoint::IdentityQuote => self.quote(version, identity(query), head).await,
            Endpoint::IntegrityQuote => self.quote(version, integrity(query), head).await,
            Endpoint::VerifyKey => keys::verify(&self.0.shares, query),
            Endpoint::UShare => keys::take_u(&self.0, &head.headers, body).await,
            Endpoint::VShare => keys::take_v(&self.0, &head.headers, body).await,
            Endpoint::Revocation => keys::take_revocation(&head.headers, body).await,
        }
    }

    fn version(&self) -> Response<Body> {
        let versions: Vec<String> = self.0.versions.iter().map(ToString::to_string).collect();
        success(&AgentVersion {
            supported_version: versions.last().cloned().unwrap_or_default(),
            supported_versions: versions,
            extensions: vec![AgentVersion::USERSPACE_LOG.to_owned()],
        })
    }

    fn info(&self, version: ApiVersion) -> Response<Body> {
        let ak = self.0.collector.template();
        success(&json!({
            "agent_uuid": self.0.id.as_str(),
            "tpm_hash_alg": ak.hash.name(),
            "tpm_enc_alg": version.key_name(ak.kind),
            "tpm_sign_alg": ak.scheme.name(),
            "ak_handle": AK_HANDLE,
        }))
    }

    async fn quote(
        &self,
        version: ApiVersion,
        request: Result<evidence::Request, QueryError>,
        head: &request::Parts,
    ) -> Response<Body> {
        let request = match request {
            Ok(request) => request,
            Err(reason) => return error(StatusCode::BAD_REQUEST, &reason.to_string()),
        };
        let peer = head.extensions.get::<Peer>();
        let client = peer.map_or_else(String::new, |peer| peer.address.ip().to_string());
        match self.0.collector.answer(request, version, client).await {
            Ok(answer) => answer::evidence(answer),
            Err(reason) => {
                // 500 means "later" to a verifier; anything else would fail this host for good.
                tracing::warn!("no quote: {reason}");
                let reason = format!("Unable to retrieve quote: {reason}");
                error(StatusCode::INTERNAL_SERVER_ERROR, &reason)
            }
        }
    }
}

fn identity(query: Option<&str>) -> Result<evidence::Request, QueryError> {
    Ok(evidence::Request {
        nonce: Query::parse(query)?.only_nonce()?,
        mask: PcrMask::default(),
        with_key: true,
        logs_from: None,
        with_userspace_log: false,
    })
}

fn integrity(query: Option<&str>) -> Result<evidence::Request, QueryError> {
    let query = Query::parse(query)?;
    Ok(evidence::Request {
        nonce: query.nonce()?,
        mask: query.mask()?,
        with_key: !query.partial()?,
        logs_from: Some(query.ima_entry()),
        with_userspace_log: query.userspace_log(),
    })
}

/// Reported for the AK. Peers make nothing of it; the first transient handle is what a TPM without
/// resource manager gives.
const AK_HANDLE: u32 = 0x8000_0000;

impl Handler for Api {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let mut answer = self.answer(&head, read_body(body, BODY_LIMIT)).await;
        if let Some(id) = head.headers.get("x-request-id").and_then(request_id) {
            answer.headers_mut().insert("x-request-id", id);
        }
        answer
    }
}

/// The caller's request id, safe to repeat.
fn request_id(value: &header::HeaderValue) -> Option<header::HeaderValue> {
    let text: String = value
        .to_str()
        .ok()?
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
        .take(36)
        .collect();
    (!text.is_empty()).then(|| header::HeaderValue::from_str(&text).ok())?
}

#[cfg(test)]
mod tests;
