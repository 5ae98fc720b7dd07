use hyper::{Method, StatusCode, body::Incoming};
use serde::{Deserialize, Serialize};
use troth_daemon::server::read_body;

use crate::{
    poll::{Fleet, PolicyChangeError},
    rest::{self, Refusal, Reply},
    store::percent_decoded,
};

/// Longest name of a policy in bytes, as in Keylime's database.
const MAX_NAME: usize = 255;

/// `results` of the list, under Keylime's name.
#[derive(Serialize)]
struct Names {
    #[serde(rename = "runtimepolicy names")]
    names: Vec<String>,
}

/// `results` of one policy.
#[derive(Serialize)]
struct Policy<'a> {
    name: &'a str,
    /// Keylime's spelling; always null there too.
    tmp_policy: Option<&'a str>,
    /// The text itself, although it is sent as base64.
    runtime_policy: String,
}

/// What is sent to store a policy. Keylime's `tpm_policy` is of no effect there, and not read here.
#[derive(Deserialize)]
struct Change {
    runtime_policy: Option<String>,
    runtime_policy_key: Option<String>,
}

/// What a method does to the list, or with `one` to a policy; it names the missing authority.
pub(super) fn action(method: &Method, one: bool) -> Result<&'static str, Refusal> {
    match (method.as_str(), one) {
        ("GET", false) => Ok("list_runtime_policies"),
        ("GET", true) => Ok("read_runtime_policy"),
        ("POST", true) => Ok("create_runtime_policy"),
        ("PUT", true) => Ok("update_runtime_policy"),
        ("DELETE", true) => Ok("delete_runtime_policy"),
        _ => Err(rest::wrong_method()),
    }
}

/// The name in the last segment of a path.
pub(super) fn name(segment: &str) -> Result<String, Refusal> {
    String::from_utf8(percent_decoded(segment))
        .ok()
        .filter(|name| !name.is_empty() && name.len() <= MAX_NAME)
        .filter(|name| !name.contains(char::is_control))
        .ok_or_else(|| {
            Refusal::bad_request(format!(
                "policy name: 1 to {MAX_NAME} bytes of UTF-8 without control characters"
            ))
        })
}

/// Names of all policies.
pub(super) async fn list(fleet: &Fleet) -> Reply {
    match fleet.policy_names().await {
        Ok(names) => Ok(rest::success(Names { names })),
        Err(error) => Err(Refusal::internal(&error)),
    }
}

/// One policy: reads, stores, replaces or removes it for administrator `who`.
pub(super) async fn serve(
    fleet: &Fleet,
    method: &Method,
    name: &str,
    who: &str,
    body: Incoming,
    limit: usize,
) -> Reply {
    match method.as_str() {
        "POST" => {
            let policy = sent(&read_body(body, limit).await?)?;
            fleet.add_policy(name, policy).await.map_err(refusal)?;
        }
        "PUT" => {
            let policy = sent(&read_body(body, limit).await?)?;
            fleet.replace_policy(name, policy).await.map_err(refusal)?;
        }
        "DELETE" => fleet.remove_policy(name).await.map_err(refusal)?,
        _ => return read(fleet, name).await,
    }
    tracing::info!(policy = name, admin = who, %method, "runtime policy changed");
    Ok(match method.as_str() {
        "DELETE" => rest::no_content(),
        _ => rest::created(),
    })
}

async fn read(fleet: &Fleet, name: &str) -> Reply {
    let text = fleet.policy_text(name).await;
    let runtime_policy = text
        .map_err(|error| Refusal::internal(&error))?
        .ok_or_else(|| refusal(PolicyChangeError::NotFound(name.to_owned())))?;
    Ok(rest::success(Policy {
        name,
        tmp_policy: None,
        runtime_policy,
    }))
}

/// The policy in a request body, still base64.
fn sent(body: &[u8]) -> Result<String, Refusal> {
    if body.is_empty() {
        return Err(Refusal::bad_request("Expected non zero content length"));
    }
    let change: Change = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("body: {error}")))?;
    if change.runtime_policy_key.is_some_and(|key| !key.is_empty()) {
        return Err(Refusal::bad_request(
            "runtime_policy_key is not supported by this verifier; leave it out",
        ));
    }
    change
        .runtime_policy
        .filter(|policy| !policy.is_empty())
        .ok_or_else(|| Refusal::bad_request("runtime_policy is missing"))
}

fn refusal(error: PolicyChangeError) -> Refusal {
    let status = match &error {
        PolicyChangeError::Exists(_) | PolicyChangeError::InUse(_) => StatusCode::CONFLICT,
        PolicyChangeError::NotFound(_) | PolicyChangeError::Unknown(_) => StatusCode::NOT_FOUND,
        PolicyChangeError::Encoding
        | PolicyChangeError::Malformed(_)
        | PolicyChangeError::Node { .. } => StatusCode::BAD_REQUEST,
        _ => return Refusal::internal(&error),
    };
    Refusal::new(status, error.to_string())
}
