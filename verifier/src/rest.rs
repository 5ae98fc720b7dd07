//! What the REST interfaces of registrar and verifier share (Keylime API 2.x): versions in the
//! path, and the answer envelope.

use hyper::{Request, Response, StatusCode, header};
use serde::Serialize;
use troth_core::wire::{Envelope, ServerVersion};
use troth_daemon::server::{Body, BodyError, full, json};

/// API versions of both servers, ascending. All of them answer alike.
pub(crate) const VERSIONS: [&str; 7] = ["2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6"];
/// The version of the push model. Clients of 2.x pass it over: they take the current version, or
/// the highest common one below 3.
pub(crate) const VERSION_3: &str = "3.0";
/// The version that clients should speak.
pub(crate) const CURRENT_VERSION: &str = "2.6";

/// Where its paths begin.
const CURRENT_ROOT: &str = "/v2.6/";

/// An object without members.
#[derive(Debug, Serialize)]
pub(crate) struct Empty {}

/// The answer to a request, or why there is none.
pub(crate) type Reply = Result<Response<Body>, Refusal>;

/// A request that is not served: status and a reason for people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) reason: String,
    form: Form,
}

/// Errors have two shapes in Keylime's API.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    /// `{"code", "status", "results"}`.
    Envelope,
    /// `{"errors": [{"status", "title", "detail"}]}`: missing authority.
    Errors,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
            form: Form::Envelope,
        }
    }

    pub(crate) fn bad_request(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    pub(crate) fn not_found(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason)
    }

    /// Something of ours failed: logged in full, answered without detail.
    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal error, see the server's log",
        )
    }

    /// Who asks is known to be somebody else than they say.
    pub(crate) fn unauthorized(reason: &str) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            reason: reason.to_owned(),
            form: Form::Errors,
        }
    }

    /// Who asks may not.
    pub(crate) fn forbidden(reason: String) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            reason,
            form: Form::Errors,
        }
    }

    fn into_response(self) -> Response<Body> {
        match self.form {
            Form::Envelope => envelope(self.status, &self.reason, Empty {}),
            Form::Errors => {
                #[derive(Serialize)]
                struct Errors {
                    errors: [Item; 1],
                }
                #[derive(Serialize)]
                struct Item {
                    status: String,
                    title: &'static str,
                    detail: String,
                }
                let item = Item {
                    status: self.status.as_u16().to_string(),
                    title: self.status.canonical_reason().unwrap_or("Error"),
                    detail: self.reason,
                };
                json(self.status, &Errors { errors: [item] })
            }
        }
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        let status = match error {
            BodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

/// `results` with any status.
pub(crate) fn envelope<T: Serialize>(status: StatusCode, text: &str, results: T) -> Response<Body> {
    let envelope = Envelope {
        code: status.as_u16(),
        status: text.to_owned(),
        results: Some(results),
    };
    json(status, &envelope)
}

/// 200 with `results`.
pub(crate) fn success<T: Serialize>(results: T) -> Response<Body> {
    envelope(StatusCode::OK, "Success", results)
}

/// 201 without results.
pub(crate) fn created() -> Response<Body> {
    envelope(StatusCode::CREATED, "Created", Empty {})
}

/// 204, which has no body.
pub(crate) fn no_content() -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The answer to `GET /version`: [`VERSIONS`], and those that one server has beside them.
pub(crate) fn version(more: &[&str]) -> Response<Body> {
    let versions = VERSIONS.iter().chain(more);
    success(ServerVersion {
        current_version: CURRENT_VERSION.to_owned(),
        supported_versions: versions.map(|&version| version.to_owned()).collect(),
    })
}

/// The answer to `GET /`: where the current version begins.
pub(crate) fn to_current_version() -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let location = header::HeaderValue::from_static(CURRENT_ROOT);
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// Completes an answer: errors get their body, `X-Request-ID` comes back.
pub(crate) fn finish(request_id: Option<String>, reply: Reply) -> Response<Body> {
    let mut response = reply.unwrap_or_else(Refusal::into_response);
    if response.status() == StatusCode::TOO_MANY_REQUESTS
        || response.status() == StatusCode::SERVICE_UNAVAILABLE
    {
        let seconds = header::HeaderValue::from_static("5");
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    if let Some(id) = request_id.and_then(|id| header::HeaderValue::from_str(&id).ok()) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// The request's `X-Request-ID`, cut to 36 word characters.
pub(crate) fn request_id<B>(request: &Request<B>) -> Option<String> {
    let id = request.headers().get("x-request-id")?.to_str().ok()?;
    Some(
        id.chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
            .take(36)
            .collect(),
    )
}

/// A request path, taken apart. Nothing is percent-decoded: ids need no escapes.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Path<'a> {
    /// `/`.
    Root,
    /// `/version` or `/versions`.
    Version,
    /// What follows `/v2` or `/v2.N`.
    Api(Vec<&'a str>),
    /// What follows `/v3` or `/v3.0`.
    Api3(Vec<&'a str>),
    /// No version that is served.
    Unknown,
}

impl<'a> Path<'a> {
    pub(crate) fn parse(path: &'a str) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut segments = path.split('/');
        match segments.next() {
            Some("") if segments.next().is_none() => Self::Root,
            Some("version" | "versions") if segments.next().is_none() => Self::Version,
            Some(first) => match first.strip_prefix('v') {
                Some(v) if v == "2" || VERSIONS.contains(&v) => Self::Api(segments.collect()),
                Some("3" | VERSION_3) => Self::Api3(segments.collect()),
                _ => Self::Unknown,
            },
            None => Self::Unknown,
        }
    }
}

/// No route of this name.
pub(crate) fn unknown_path() -> Refusal {
    Refusal::not_found("no such path, or no such API version; see /version")
}

/// The path exists, the method does not.
pub(crate) fn wrong_method() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method not allowed on this path",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_version_and_nothing_else_is_routed() {
        assert_eq!(Path::parse("/version"), Path::Version);
        assert_eq!(Path::parse("/v2/agents/"), Path::Api(vec!["agents"]));
        assert_eq!(
            Path::parse("/v2.6/agents/x"),
            Path::Api(vec!["agents", "x"])
        );
        assert_eq!(Path::parse("/v2.1//agents"), Path::Api(vec!["", "agents"]));
        assert_eq!(Path::parse("/v3.0/agents"), Path::Api3(vec!["agents"]));
        assert_eq!(Path::parse("/v3/"), Path::Api3(vec![]));
        assert_eq!(Path::parse("/"), Path::Root);
        assert_eq!(
            Path::parse(CURRENT_ROOT),
            Path::parse(&format!("/v{CURRENT_VERSION}"))
        );
        for path in [
            "/v1.0/agents",
            "/v2.7/agents",
            "/v3.1/agents",
            "/v2.10/agents",
            "/agents",
            "/v",
        ] {
            assert_eq!(Path::parse(path), Path::Unknown, "{path}");
        }
    }

    #[test]
    fn request_ids_come_back_harmless() {
        let request = Request::builder()
            .header("x-request-id", "ab1\t; <x>")
            .body(())
            .unwrap();
        assert_eq!(request_id(&request).as_deref(), Some("ab1x"));
    }
}
