//! The pull API: Keylime's agent REST interface, versions 2.1 to 2.6 from one table of routes.

/// Answers: the envelope, and evidence whose logs are streamed.
mod answer;
/// Text as it stands in a JSON string.
mod escape;
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
use troth_core::{
    identity::AgentId,
    tpm::PcrMask,
    wire::{AgentVersion, QuoteResponse},
};
use troth_daemon::server::{Body, BodyError, Handler, read_body};

use crate::{
    evidence::{self, Collector},
    payload::Shares,
    tpm::AkTemplate,
};
use answer::{error, evidence_body, success};
use query::Query;
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
    ak: AkTemplate,
    versions: Vec<ApiVersion>,
    collector: Collector,
    shares: Shares,
}

impl Api {
    /// Serves evidence of agent `id` in the API versions `versions` (ascending, at least one).
    pub fn new(
        id: AgentId,
        ak: AkTemplate,
        versions: Vec<ApiVersion>,
        collector: Collector,
    ) -> Self {
        let shares = Shares::new(id.clone());
        Self(Arc::new(Shared {
            id,
            ak,
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
            Endpoint::IdentityQuote => self.identity(version, query).await,
            Endpoint::IntegrityQuote => self.integrity(version, query).await,
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
        success(&json!({
            "agent_uuid": self.0.id.as_str(),
            "tpm_hash_alg": self.0.ak.hash.name(),
            "tpm_enc_alg": version.key_name(self.0.ak.kind),
            "tpm_sign_alg": self.0.ak.scheme.name(),
            "ak_handle": AK_HANDLE,
        }))
    }

    async fn identity(&self, version: ApiVersion, query: Option<&str>) -> Response<Body> {
        let nonce = match Query::parse(query).and_then(|query| query.only_nonce()) {
            Ok(nonce) => nonce,
            Err(reason) => return error(StatusCode::BAD_REQUEST, &reason.to_string()),
        };
        let mask = PcrMask::default();
        self.quote(
            version,
            evidence::Request {
                nonce,
                mask,
                with_key: true,
                logs_from: None,
                with_userspace_log: false,
            },
        )
        .await
    }

    async fn integrity(&self, version: ApiVersion, query: Option<&str>) -> Response<Body> {
        let request = Query::parse(query).and_then(|query| {
            Ok(evidence::Request {
                nonce: query.nonce()?,
                mask: query.mask()?,
                with_key: !query.partial()?,
                logs_from: Some(query.ima_entry()),
                with_userspace_log: query.userspace_log(),
            })
        });
        match request {
            Ok(request) => self.quote(version, request).await,
            Err(reason) => error(StatusCode::BAD_REQUEST, &reason.to_string()),
        }
    }

    async fn quote(&self, version: ApiVersion, request: evidence::Request) -> Response<Body> {
        let snapshot = match self.0.collector.collect(request).await {
            Ok(snapshot) => snapshot,
            Err(reason) => {
                // 500 means "later" to a verifier; anything else would fail this host for good.
                tracing::warn!("no quote: {reason}");
                let reason = format!("Unable to retrieve quote: {reason}");
                return error(StatusCode::INTERNAL_SERVER_ERROR, &reason);
            }
        };
        let head = QuoteResponse {
            quote: snapshot.quote,
            hash_alg: self.0.ak.hash.name().to_owned(),
            enc_alg: version.key_name(self.0.ak.kind).to_owned(),
            sign_alg: self.0.ak.scheme.name().to_owned(),
            pubkey: snapshot.pubkey,
            userspace_measurement_list: snapshot.userspace_log,
            boottime: snapshot.boottime,
            ..QuoteResponse::default()
        };
        evidence_body(&head, snapshot.ima, snapshot.boot_log).await
    }
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
