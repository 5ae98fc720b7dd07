use std::future::Future;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderMap},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use troth_daemon::server::{Body, BodyError};
use zeroize::Zeroizing;

use super::{
    Shared,
    answer::{done, error, success},
    query::Query,
};
use crate::payload::Shares;

/// `POST keys/ukey`: the tenant's share.
#[derive(Deserialize)]
struct UKey {
    encrypted_key: String,
    auth_tag: String,
    #[serde(default)]
    payload: Option<String>,
}

/// `POST keys/vkey`: the verifier's share.
#[derive(Deserialize)]
struct VKey {
    encrypted_key: String,
}

/// `POST notifications/revocation`: another agent has failed.
#[derive(Deserialize)]
struct Revocation {
    msg: String,
    #[serde(rename = "signature")]
    _signature: String,
}

/// A refusal's text, for status 400.
type Refusal = String;

pub(super) async fn take_u(
    agent: &Shared,
    headers: &HeaderMap,
    body: impl Future<Output = Result<Bytes, BodyError>>,
) -> Response<Body> {
    let taken = json_body::<UKey>(headers, body).await.and_then(|request| {
        if let Some(payload) = request.payload.filter(|payload| !payload.is_empty()) {
            let payload = STANDARD
                .decode(payload)
                .map_err(|error| format!("Invalid base64 encoding in payload: {error}"))?;
            tracing::warn!(
                "a payload of {} bytes is ignored: no secure mount",
                payload.len()
            );
        }
        let share = decrypt(agent, &request.encrypted_key)?;
        agent
            .shares
            .add_u(share, &request.auth_tag)
            .map_err(|error| match error {
                length @ crate::payload::ShareError::Length(_) => {
                    format!("Invalid decrypted key: {length}")
                }
                other => other.to_string(),
            })
    });
    answer(agent, taken)
}

pub(super) async fn take_v(
    agent: &Shared,
    headers: &HeaderMap,
    body: impl Future<Output = Result<Bytes, BodyError>>,
) -> Response<Body> {
    let taken = json_body::<VKey>(headers, body).await.and_then(|request| {
        let share = decrypt(agent, &request.encrypted_key)?;
        agent
            .shares
            .add_v(share)
            .map_err(|error| format!("Decrypted key is invalid: {error}"))
    });
    answer(agent, taken)
}

/// Accepted, as the verifier expects it, and not acted upon.
pub(super) async fn take_revocation(
    headers: &HeaderMap,
    body: impl Future<Output = Result<Bytes, BodyError>>,
) -> Response<Body> {
    match json_body::<Revocation>(headers, body).await {
        Ok(Revocation { msg, .. }) => {
            let length = msg.len();
            tracing::warn!("a revocation of {length} bytes is ignored: this agent has no actions");
            done()
        }
        Err(reason) => error(StatusCode::BAD_REQUEST, &reason),
    }
}

pub(super) fn verify(shares: &Shares, query: Option<&str>) -> Response<Body> {
    let proof = Query::parse(query).and_then(|query| query.challenge().map(str::to_owned));
    let refused = |reason: &str| error(StatusCode::BAD_REQUEST, reason);
    match proof {
        Err(reason) => refused(&reason.to_string()),
        Ok(challenge) if challenge.is_empty() => refused("No challenge provided."),
        Ok(challenge) => match shares.prove(&challenge) {
            Some(proof) => success(&json!({ "hmac": proof })),
            None => refused("Bootstrap key not yet available."),
        },
    }
}

async fn json_body<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: impl Future<Output = Result<Bytes, BodyError>>,
) -> Result<T, Refusal> {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err("Content type error".into());
    }
    let body = body.await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| format!("Json deserialize error: {error}"))
}

fn decrypt(agent: &Shared, encrypted: &str) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let ciphertext = STANDARD
        .decode(encrypted)
        .map_err(|error| format!("Invalid base64 encoding in encrypted_key: {error}"))?;
    agent
        .collector
        .transport()
        .decrypt(&ciphertext)
        .map_err(|error| format!("Failed to decrypt encrypted_key: {error}"))
}

/// A share that was stored is answered alike whether its other half is there or not.
fn answer(agent: &Shared, taken: Result<bool, Refusal>) -> Response<Body> {
    match taken {
        Ok(complete) => {
            if complete {
                tracing::info!("the payload key is complete");
                agent.collector.reporter().payload_key_is_complete();
            }
            done()
        }
        Err(reason) => error(StatusCode::BAD_REQUEST, &reason),
    }
}
