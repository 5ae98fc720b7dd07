use hyper::{Method, StatusCode, body::Incoming};
use serde::{Deserialize, Serialize};
use troth_daemon::server::read_body;

use crate::{
    authority::Principal,
    messages,
    poll::{Fleet, PolicyChangeError, PolicyName, SentPolicy},
    rest::{self, Refusal, Reply},
    store::{PolicyKind, PolicySummary, percent_decoded},
};

/// `results` of the lists, under Keylime's names.
#[derive(Serialize)]
enum Names {
    #[serde(rename = "runtimepolicy names")]
    Runtime(Vec<String>),
    #[serde(rename = "mbpolicy names")]
    Boot(Vec<String>),
}

/// `results` of the lists: Keylime's member, and one of ours.
#[derive(Serialize)]
struct List {
    #[serde(flatten)]
    names: Names,
    policies: Vec<About>,
}

/// What is known about a policy.
#[derive(Serialize)]
struct About {
    name: String,
    /// SHA-256 of the text, hex.
    sha256: String,
    bytes: u64,
    /// How many nodes use it.
    nodes: u64,
}

/// `results` of one policy.
#[derive(Serialize)]
#[serde(untagged)]
enum Policy<'a> {
    Runtime {
        name: &'a str,
        /// Keylime's spelling; always null there too.
        tmp_policy: Option<&'a str>,
        /// The text itself, although it is sent as base64.
        runtime_policy: String,
    },
    Boot {
        name: &'a str,
        mb_policy: String,
    },
}

/// What is sent to store a runtime policy. Keylime's `tpm_policy` is of no effect there, and not
/// read here.
#[derive(Deserialize)]
struct RuntimeChange {
    runtime_policy: Option<String>,
    runtime_policy_key: Option<String>,
}

/// What is sent to store a boot policy.
#[derive(Deserialize)]
struct BootChange {
    mb_policy: Option<String>,
}

/// The name in the last segment of a path.
pub(super) fn name(segment: &str) -> Result<PolicyName, Refusal> {
    // What is no UTF-8 is no name either.
    let decoded = String::from_utf8(percent_decoded(segment)).unwrap_or_default();
    PolicyName::new(decoded).map_err(|error| Refusal::bad_request(error.to_string()))
}

/// All policies of a kind.
pub(super) async fn list(fleet: &Fleet, kind: PolicyKind) -> Reply {
    let summaries = fleet.policy_summaries(kind).await;
    let summaries = summaries.map_err(|error| Refusal::internal(&error))?;
    let names = summaries.iter().map(|policy| policy.name.clone()).collect();
    let about = |policy: PolicySummary| About {
        name: policy.name,
        sha256: policy.digest,
        bytes: policy.bytes,
        nodes: policy.nodes,
    };
    Ok(rest::success(List {
        names: match kind {
            PolicyKind::Runtime => Names::Runtime(names),
            PolicyKind::Boot => Names::Boot(names),
        },
        policies: summaries.into_iter().map(about).collect(),
    }))
}

/// One policy: reads, stores, replaces or removes it for administrator `who`.
pub(super) async fn serve(
    fleet: &Fleet,
    kind: PolicyKind,
    method: &Method,
    name: &PolicyName,
    who: &Principal,
    body: Incoming,
    limit: usize,
) -> Reply {
    let reply = match method.as_str() {
        "POST" => {
            let policy = sent(kind, &read_body(body, limit).await?)?;
            fleet.add_policy(name, policy).await.map_err(refusal)?;
            rest::created()
        }
        "PUT" => {
            let policy = sent(kind, &read_body(body, limit).await?)?;
            fleet.replace_policy(name, policy).await.map_err(refusal)?;
            rest::created()
        }
        "DELETE" => {
            fleet.remove_policy(kind, name).await.map_err(refusal)?;
            rest::no_content()
        }
        _ => {
            let text = fleet.policy_text(kind, name).await.map_err(refusal)?;
            let name = name.as_str();
            return Ok(rest::success(match kind {
                PolicyKind::Runtime => Policy::Runtime {
                    name,
                    tmp_policy: None,
                    runtime_policy: text,
                },
                PolicyKind::Boot => Policy::Boot {
                    name,
                    mb_policy: text,
                },
            }));
        }
    };
    tracing::info!(
        message_id = messages::POLICY_CHANGED,
        policy = name.as_str(),
        kind = %kind,
        method = %method,
        admin = %who,
        "{kind} {} changed ({method}) by {who}",
        name.as_str()
    );
    Ok(reply)
}

/// The policy in a request body.
fn sent(kind: PolicyKind, body: &[u8]) -> Result<SentPolicy, Refusal> {
    if body.is_empty() {
        return Err(Refusal::bad_request("Expected non zero content length"));
    }
    let malformed = |error: serde_json::Error| Refusal::bad_request(format!("body: {error}"));
    let missing = |member| Refusal::bad_request(format!("{member} is missing"));
    match kind {
        PolicyKind::Runtime => {
            let change: RuntimeChange = serde_json::from_slice(body).map_err(malformed)?;
            let key = change.runtime_policy_key;
            let policy = change.runtime_policy.filter(|policy| !policy.is_empty());
            policy
                .map(|policy| SentPolicy::Runtime { policy, key })
                .ok_or_else(|| missing("runtime_policy"))
        }
        PolicyKind::Boot => {
            let change: BootChange = serde_json::from_slice(body).map_err(malformed)?;
            let policy = change.mb_policy.filter(|policy| !policy.is_empty());
            policy
                .map(SentPolicy::Boot)
                .ok_or_else(|| missing("mb_policy"))
        }
    }
}

fn refusal(error: PolicyChangeError) -> Refusal {
    let status = match &error {
        // Keylime's two kinds differ here.
        PolicyChangeError::Unknown { kind, .. } => match kind {
            PolicyKind::Runtime => StatusCode::NOT_FOUND,
            PolicyKind::Boot => StatusCode::CONFLICT,
        },
        PolicyChangeError::Exists { .. } | PolicyChangeError::InUse { .. } => StatusCode::CONFLICT,
        PolicyChangeError::NotFound { .. } => StatusCode::NOT_FOUND,
        PolicyChangeError::Signature(error) if error.is_unauthorized() => StatusCode::UNAUTHORIZED,
        PolicyChangeError::Encoding
        | PolicyChangeError::Malformed { .. }
        | PolicyChangeError::Node { .. }
        | PolicyChangeError::Signature(_) => StatusCode::BAD_REQUEST,
        _ => return Refusal::internal(&error),
    };
    Refusal::new(status, error.to_string())
}
