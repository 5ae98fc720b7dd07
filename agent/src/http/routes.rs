use hyper::{Method, Response, StatusCode, header};
use troth_daemon::server::{Body, full};

use super::{ApiVersion, answer::error};

/// What a request is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Endpoint {
    Version,
    Info,
    IdentityQuote,
    IntegrityQuote,
    PublicKey,
    VerifyKey,
    UShare,
    VShare,
    Revocation,
}

/// A resource below `/vX.Y/`.
struct Route {
    method: Method,
    scope: &'static str,
    child: &'static str,
    since: ApiVersion,
    endpoint: Endpoint,
}

/// Every versioned resource. A version serves the rows that are not younger than itself.
const ROUTES: &[Route] = &[
    Route {
        method: Method::GET,
        scope: "agent",
        child: "info",
        since: ApiVersion::v2(2),
        endpoint: Endpoint::Info,
    },
    Route {
        method: Method::GET,
        scope: "quotes",
        child: "identity",
        since: ApiVersion::v2(1),
        endpoint: Endpoint::IdentityQuote,
    },
    Route {
        method: Method::GET,
        scope: "quotes",
        child: "integrity",
        since: ApiVersion::v2(1),
        endpoint: Endpoint::IntegrityQuote,
    },
    Route {
        method: Method::GET,
        scope: "keys",
        child: "pubkey",
        since: ApiVersion::v2(1),
        endpoint: Endpoint::PublicKey,
    },
    Route {
        method: Method::GET,
        scope: "keys",
        child: "verify",
        since: ApiVersion::v2(1),
        endpoint: Endpoint::VerifyKey,
    },
    Route {
        method: Method::POST,
        scope: "keys",
        child: "ukey",
        since: ApiVersion::v2(1),
        endpoint: Endpoint::UShare,
    },
    Route {
        method: Method::POST,
        scope: "keys",
        child: "vkey",
        since: ApiVersion::v2(1),
        endpoint: Endpoint::VShare,
    },
    Route {
        method: Method::POST,
        scope: "notifications",
        child: "revocation",
        since: ApiVersion::v2(1),
        endpoint: Endpoint::Revocation,
    },
];

/// Where a request leads.
#[derive(Debug)]
pub(super) enum Lookup {
    Found(Endpoint, ApiVersion),
    Refused(Refusal),
}

/// Answers to requests for what is not there; statuses and texts are those of Keylime's agent.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// The phrase "API version not supported" makes a verifier negotiate again.
    Version(String),
    /// Nothing lives at the path.
    NotImplemented(String),
    /// Nothing of that name in the scope.
    NoChild(String),
    /// The method is used nowhere in this place; these are.
    MethodOutside(String),
    /// The resource exists, with another method.
    Method(String),
}

/// Finds the endpoint of a request. `served` is ascending.
pub(super) fn find(served: &[ApiVersion], method: &Method, path: &str) -> Lookup {
    if path == "/version" {
        let newest = served.last().copied().unwrap_or(ApiVersion::v2(1));
        return match *method {
            Method::GET => Lookup::Found(Endpoint::Version, newest),
            _ => Lookup::Refused(Refusal::Method("GET".into())),
        };
    }
    let mut segments = path.strip_prefix('/').unwrap_or(path).splitn(2, '/');
    let version = segments.next().unwrap_or_default();
    let rest = segments.next().unwrap_or_default();
    let Some((version, rest_of_it)) = version.strip_prefix('v').and_then(leading_version) else {
        return Lookup::Refused(outside(served, method));
    };
    if !served.contains(&version) || !rest_of_it.is_empty() {
        return Lookup::Refused(Refusal::Version(format!("v{version}")));
    }
    let routes = || ROUTES.iter().filter(move |route| route.since <= version);
    let (scope, child) = rest.split_once('/').unwrap_or((rest, ""));
    if !routes().any(|route| route.scope == scope) {
        return Lookup::Refused(outside(served, method));
    }
    let siblings = || routes().filter(move |route| route.scope == scope);
    if let Some(found) = siblings().find(|route| route.child == child && route.method == *method) {
        return Lookup::Found(found.endpoint, version);
    }
    let methods: Vec<&str> = siblings()
        .filter(|route| route.child == child)
        .map(|route| route.method.as_str())
        .collect();
    if !methods.is_empty() {
        return Lookup::Refused(Refusal::Method(methods.join(", ")));
    }
    let children: Vec<String> = siblings()
        .filter(|route| route.method == *method)
        .map(|route| format!("/{}", route.child))
        .collect();
    if children.is_empty() {
        let mut methods: Vec<&str> = siblings().map(|route| route.method.as_str()).collect();
        methods.dedup();
        return Lookup::Refused(Refusal::MethodOutside(methods.join(", ")));
    }
    Lookup::Refused(Refusal::NoChild(format!(
        "URI not supported, only {} is supported for {method} in /{scope}/ interface",
        children.join(" or ")
    )))
}

/// `MAJOR.MINOR` at the start of a text, and what follows it.
fn leading_version(text: &str) -> Option<(ApiVersion, &str)> {
    let major = text.bytes().take_while(u8::is_ascii_digit).count();
    let minor = text.get(major + 1..)?;
    let minor = minor.bytes().take_while(u8::is_ascii_digit).count();
    let (version, rest) = text.split_at_checked(major + 1 + minor)?;
    Some((version.parse().ok()?, rest))
}

fn outside(served: &[ApiVersion], method: &Method) -> Refusal {
    if *method != Method::GET && *method != Method::POST {
        return Refusal::MethodOutside("GET, POST".into());
    }
    let versions: Vec<String> = served.iter().map(|version| format!("/{version}")).collect();
    Refusal::NotImplemented(format!(
        "Not Implemented: Use {} or /version interfaces",
        versions.join(", ")
    ))
}

impl Refusal {
    pub(super) fn into_response(self) -> Response<Body> {
        match self {
            Self::Version(version) => error(
                StatusCode::BAD_REQUEST,
                &format!("API version not supported: {version}"),
            ),
            Self::NotImplemented(text) | Self::NoChild(text) => {
                error(StatusCode::BAD_REQUEST, &text)
            }
            Self::MethodOutside(methods) => {
                let text = "Method is not supported";
                allowing(error(StatusCode::METHOD_NOT_ALLOWED, text), &methods)
            }
            Self::Method(methods) => {
                let mut response = Response::new(full(""));
                *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                allowing(response, &methods)
            }
        }
    }
}

fn allowing(mut response: Response<Body>, methods: &str) -> Response<Body> {
    if let Ok(value) = header::HeaderValue::from_str(methods) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Lookup {
        find(&ApiVersion::ALL, &Method::GET, path)
    }

    fn refusal(method: Method, path: &str) -> Refusal {
        match find(&ApiVersion::ALL, &method, path) {
            Lookup::Refused(refusal) => refusal,
            Lookup::Found(endpoint, _) => panic!("{method} {path} is {endpoint:?}"),
        }
    }

    #[test]
    fn every_version_serves_the_same_table() {
        for version in ApiVersion::ALL {
            for (path, wanted) in [
                ("quotes/identity", Endpoint::IdentityQuote),
                ("quotes/integrity", Endpoint::IntegrityQuote),
                ("keys/pubkey", Endpoint::PublicKey),
            ] {
                match get(&format!("/v{version}/{path}")) {
                    Lookup::Found(found, at) => assert_eq!((found, at), (wanted, version)),
                    Lookup::Refused(refusal) => panic!("v{version} {path}: {refusal:?}"),
                }
            }
        }
        assert!(matches!(
            get("/version"),
            Lookup::Found(Endpoint::Version, _)
        ));
    }

    #[test]
    fn agent_info_came_with_2_2() {
        assert!(matches!(
            get("/v2.2/agent/info"),
            Lookup::Found(Endpoint::Info, _)
        ));
        assert!(matches!(
            refusal(Method::GET, "/v2.1/agent/info"),
            Refusal::NotImplemented(_)
        ));
    }

    #[test]
    fn an_unserved_version_says_so_whatever_follows_and_whatever_the_method() {
        for path in [
            "/v2.0/quotes/identity",
            "/v3.0/agents",
            "/v99.99",
            "/v2.7/",
            "/v4294967296.1/version",
            "/v2.0.1/quotes/identity",
            "/v2.6x/quotes/identity",
        ] {
            for method in [Method::GET, Method::DELETE] {
                assert!(
                    matches!(refusal(method, path), Refusal::Version(_)),
                    "{path}"
                );
            }
        }
        let answer = refusal(Method::GET, "/v2.0/foo").into_response();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn elsewhere_is_not_implemented() {
        for path in [
            "/foo",
            "/",
            "/v2/quotes/identity",
            "/v2.6/foo",
            "/v2.6",
            "/2.6/agent/info",
            "/v",
            "/v2.",
            "/v.6/agent/info",
            "/v2\u{fc}6",
            "//v2.6/agent/info",
        ] {
            match refusal(Method::GET, path) {
                Refusal::NotImplemented(text) => {
                    assert!(
                        text.starts_with("Not Implemented: Use /2.1, /2.2, "),
                        "{text}"
                    );
                    assert!(text.ends_with("/2.6 or /version interfaces"), "{text}");
                }
                other => panic!("{path}: {other:?}"),
            }
            let methods = Refusal::MethodOutside("GET, POST".into());
            assert_eq!(refusal(Method::DELETE, path), methods);
        }
    }

    #[test]
    fn an_unknown_child_is_told_its_siblings() {
        match refusal(Method::GET, "/v2.6/quotes/foo") {
            Refusal::NoChild(text) => {
                assert!(text.contains("/identity or /integrity"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        for (method, path, methods) in [
            (Method::PUT, "/v2.6/quotes/foo", "GET"),
            (Method::POST, "/v2.6/agent/foo", "GET"),
            (Method::GET, "/v2.6/notifications/foo", "POST"),
            (Method::DELETE, "/v2.6/keys/foo", "GET, POST"),
        ] {
            let answer = refusal(method, path).into_response();
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert_eq!(answer.headers()[header::ALLOW], methods, "{path}");
        }
        assert!(matches!(
            refusal(Method::GET, "/v2.6/quotes/identity/x"),
            Refusal::NoChild(_)
        ));
    }

    #[test]
    fn a_wrong_method_on_a_resource_is_405_with_the_right_one() {
        for (path, method, allow) in [
            ("/v2.6/quotes/identity", Method::POST, "GET"),
            ("/v2.6/keys/ukey", Method::GET, "POST"),
            ("/version", Method::POST, "GET"),
        ] {
            let answer = refusal(method, path).into_response();
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(answer.headers()[header::ALLOW], allow);
        }
    }
}
