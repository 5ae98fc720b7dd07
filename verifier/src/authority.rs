//! Who may do what: the one place where a request becomes a principal.
//!
//! Each route is in a table with the class of those who may use it; what is in no table is not
//! served. The class is checked before a route's work begins, and its body is read.

use std::fmt;

use hyper::{Method, Request, header};
use troth_daemon::server::Peer;

use crate::rest::{self, Refusal};

/// Who may use a route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Class {
    /// Anybody.
    Public,
    /// Administrators, and an agent that asks about itself.
    AgentOrAdmin,
    /// Administrators.
    Admin,
}

/// Who is at the other end, as far as that was proved. An agent proves itself by a token, of
/// which none are issued in the pull model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Principal {
    /// Nobody in particular.
    Anyone,
    /// The commonName of a client certificate of our CA.
    Administrator(String),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::Administrator(name) => f.write_str(name),
        }
    }
}

/// Lets a request pass that may do `action`, which is named in refusals as Keylime names it.
///
/// An `Authorization` header is an agent's: it never falls back to the certificate.
pub(crate) fn authorize<B>(
    request: &Request<B>,
    peer: &Peer,
    class: Class,
    action: &str,
) -> Result<Principal, Refusal> {
    if let Some(header) = request.headers().get(header::AUTHORIZATION) {
        return Err(Refusal::unauthorized(match is_bearer(header) {
            true => "Invalid authentication token",
            false => "Invalid Authorization header format",
        }));
    }
    let missing = match class {
        Class::Public => return Ok(Principal::Anyone),
        Class::AgentOrAdmin => "authentication",
        Class::Admin => "admin authentication (mTLS certificate)",
    };
    if !peer.tls {
        return Err(Refusal::bad_request(format!(
            "action {action} is served over HTTPS only"
        )));
    }
    peer.common_name()
        .filter(|name| !name.is_empty())
        .map(Principal::Administrator)
        .ok_or_else(|| Refusal::forbidden(format!("Action {action} requires {missing}")))
}

fn is_bearer(header: &header::HeaderValue) -> bool {
    let scheme = header.to_str().ok().and_then(|text| text.split_once(' '));
    scheme.is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
}

/// A row of a server's table: what a method on a path does, and who may.
#[derive(Debug)]
pub(crate) struct Route<E> {
    method: Method,
    /// Segments after the version; [`ANY`] stands for one of them.
    path: &'static [&'static str],
    class: Class,
    action: &'static str,
    endpoint: E,
}

/// A segment that the endpoint reads.
pub(crate) const ANY: &str = "*";

impl<E: Copy> Route<E> {
    pub(crate) const fn new(
        method: Method,
        path: &'static [&'static str],
        class: Class,
        action: &'static str,
        endpoint: E,
    ) -> Self {
        Self {
            method,
            path,
            class,
            action,
            endpoint,
        }
    }

    fn parameter<'s>(&self, segments: &[&'s str]) -> Option<&'s str> {
        if self.path.len() != segments.len() {
            return None;
        }
        let mut parameter = "";
        for (expected, segment) in self.path.iter().zip(segments) {
            match *expected {
                ANY => parameter = segment,
                expected if expected == *segment => {}
                _ => return None,
            }
        }
        Some(parameter)
    }
}

/// The endpoint that serves a request, the segment that it reads, and whom it serves.
pub(crate) fn find<'s, 'r, E: Copy + 'r, B>(
    routes: impl IntoIterator<Item = &'r Route<E>>,
    segments: &[&'s str],
    request: &Request<B>,
    peer: &Peer,
) -> Result<(E, &'s str, Principal), Refusal> {
    let mut refusal = rest::unknown_path();
    for route in routes {
        if let Some(parameter) = route.parameter(segments) {
            if route.method == *request.method() {
                let who = authorize(request, peer, route.class, route.action)?;
                return Ok((route.endpoint, parameter, who));
            }
            refusal = rest::wrong_method();
        }
    }
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    const ROUTES: &[Route<u8>] = &[
        Route::new(Method::GET, &["things"], Class::Public, "list_things", 1),
        Route::new(
            Method::GET,
            &["things", ANY],
            Class::AgentOrAdmin,
            "read_thing",
            2,
        ),
        Route::new(
            Method::PUT,
            &["things", ANY, "stop"],
            Class::Admin,
            "stop_thing",
            3,
        ),
    ];

    /// The commonName of the client's certificate; `None`: it has none.
    fn ask(
        method: Method,
        path: &str,
        certificate: Option<&str>,
        authorization: Option<&str>,
    ) -> Result<(u8, String, Principal), Refusal> {
        let mut request = Request::builder().method(method);
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let certificate = certificate.map(|name| {
            let mut parameters = CertificateParams::default();
            parameters.distinguished_name = DistinguishedName::new();
            parameters.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            parameters.self_signed(&key).unwrap().der().clone()
        });
        let peer = Peer {
            address: ([127, 0, 0, 1], 1).into(),
            tls: true,
            certificate,
        };
        let segments: Vec<_> = path.split('/').collect();
        let found = find(ROUTES, &segments, &request.body(()).unwrap(), &peer);
        found.map(|(endpoint, parameter, who)| (endpoint, parameter.to_owned(), who))
    }

    #[test]
    fn what_is_in_no_table_is_not_served() {
        for (method, path, status) in [
            (Method::POST, "things", StatusCode::METHOD_NOT_ALLOWED),
            (Method::GET, "things/a/stop", StatusCode::METHOD_NOT_ALLOWED),
            (Method::GET, "thing", StatusCode::NOT_FOUND),
            (Method::PUT, "things/a/start", StatusCode::NOT_FOUND),
            (Method::GET, "things/a/stop/now", StatusCode::NOT_FOUND),
        ] {
            let refusal = ask(method, path, Some("admin"), None).unwrap_err();
            assert_eq!(refusal.status, status, "{path}");
        }
    }

    #[test]
    fn an_administrator_is_who_has_a_certificate_with_a_name() {
        let anyone = (1, String::new(), Principal::Anyone);
        assert_eq!(ask(Method::GET, "things", None, None), Ok(anyone));
        let admin = Principal::Administrator("ops".into());
        let stopped = (3, "a".to_owned(), admin);
        let stop = |certificate| ask(Method::PUT, "things/a/stop", certificate, None);
        assert_eq!(stop(Some("ops")), Ok(stopped));
        for certificate in [None, Some("")] {
            let refusal = stop(certificate).unwrap_err();
            assert_eq!(refusal.status, StatusCode::FORBIDDEN);
            let reason = "Action stop_thing requires admin authentication (mTLS certificate)";
            assert_eq!(refusal.reason, reason);
        }
        let refusal = ask(Method::GET, "things/a", None, None).unwrap_err();
        let reason = "Action read_thing requires authentication";
        assert_eq!(refusal.reason, reason);
    }

    #[test]
    fn a_token_comes_first_and_never_falls_back_to_the_certificate() {
        for path in ["things", "things/a"] {
            for (header, reason) in [
                ("Bearer abc", "Invalid authentication token"),
                ("bearer abc", "Invalid authentication token"),
                ("Basic abc", "Invalid Authorization header format"),
                ("", "Invalid Authorization header format"),
            ] {
                let refusal = ask(Method::GET, path, Some("ops"), Some(header)).unwrap_err();
                assert_eq!(refusal.status, StatusCode::UNAUTHORIZED);
                assert_eq!(refusal.reason, reason, "{header:?}");
            }
        }
    }

    #[test]
    fn nobody_is_an_administrator_over_plain_http() {
        let peer = Peer {
            address: ([127, 0, 0, 1], 1).into(),
            tls: false,
            certificate: None,
        };
        let request = Request::builder().body(()).unwrap();
        let refusal = authorize(&request, &peer, Class::Admin, "stop_thing").unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
    }
}
