use std::{fmt, net::Ipv6Addr, ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::Method;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::OnceCell;
use troth_core::{
    identity::AgentId,
    wire::{AgentVersion, Envelope, ServerVersion},
};
use troth_daemon::{
    client::Client,
    tls::{self, Identity, ServerTrust, TlsError},
};

use crate::{
    config::Config,
    error::{AGENT_ADDRESS, Error},
};

/// Minor versions of API 2 that verifiers and registrars may serve.
const SERVER_MINORS: RangeInclusive<u32> = 0..=6;
/// Minor versions of API 2 that agents may serve: 2.0 has no mTLS.
const AGENT_MINORS: RangeInclusive<u32> = 1..=6;
/// What a server speaks that does not say: 410 on `/version` is a verifier in push mode.
const SERVER_FALLBACK: &str = "2.6";
/// A verifier's list of some ten thousand nodes fits.
const BODY_LIMIT: usize = 128 * 1024 * 1024;
/// Characters of a server's error text that are shown.
const REASON_SHOWN: usize = 500;

/// Host and port of a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Endpoint {
    /// Name, IPv4 or IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Endpoint {
    /// From `https://HOST[:PORT]`, with or without the scheme. Management is only served over
    /// TLS, so any other scheme is an error.
    pub(crate) fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        let rest = match text.split_once("://") {
            Some(("https", rest)) => rest,
            Some((scheme, _)) => return Err(format!("scheme {scheme:?} is not https")),
            None => text,
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
            let (host, port) = bracketed
                .split_once(']')
                .ok_or("missing ] after an IPv6 address")?;
            host.parse::<Ipv6Addr>()
                .map_err(|_| format!("{host:?} is not an IPv6 address"))?;
            (
                host,
                if port.is_empty() {
                    Some("")
                } else {
                    port.strip_prefix(':')
                },
            )
        } else if authority.parse::<Ipv6Addr>().is_ok() {
            (authority, Some(""))
        } else {
            match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, Some("")),
            }
        };
        let port = match port.ok_or("expected :PORT after the address")? {
            "" => default_port,
            port => port
                .parse()
                .map_err(|_| format!("{port:?} is not a port"))?,
        };
        Self::new(host, port)
    }

    /// From a name or address without brackets.
    pub(crate) fn new(host: &str, port: u16) -> Result<Self, String> {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
        if host.is_empty() || !host.chars().all(valid) {
            return Err(format!("{host:?} is not a host name or address"));
        }
        if port == 0 {
            return Err("0 is not a port".to_owned());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The operator's certificate, and the CAs of the servers.
pub(crate) struct Credentials {
    identity: Identity,
    roots: Vec<CertificateDer<'static>>,
    timeout: Duration,
}

impl Credentials {
    /// Reads the files that the configuration names.
    pub(crate) fn load(config: &Config) -> Result<Self, Error> {
        let failed = |source| Error::Credentials { source };
        let identity = Identity::load_encrypted(
            &config.client_cert(),
            &config.client_key(),
            &config.client_key_password,
        );
        let mut credentials = Self {
            identity: identity.map_err(failed)?,
            roots: Vec::new(),
            timeout: config.request_timeout.0,
        };
        for path in config.trusted_server_ca() {
            let mut authorities = tls::load_certificates(&path).map_err(failed)?;
            credentials.roots.append(&mut authorities);
        }
        Ok(credentials)
    }

    /// The verifier.
    pub(crate) fn verifier(&self, config: &Config) -> Result<Service, Error> {
        let server = Server {
            name: "verifier",
            option: "--verifier (or TROTH_VERIFIER, or verifier_ip)",
            tls_name: config.verifier_tls_name.as_deref(),
            tls_option: "verifier_tls_name",
        };
        self.server(&server, &config.verifier()?)
    }

    /// The registrar.
    pub(crate) fn registrar(&self, config: &Config) -> Result<Service, Error> {
        let server = Server {
            name: "registrar",
            option: "--registrar (or TROTH_REGISTRAR, or registrar_ip)",
            tls_name: config.registrar_tls_name.as_deref(),
            tls_option: "registrar_tls_name",
        };
        self.server(&server, &config.registrar()?)
    }

    /// A registrar beside the configured one, whose certificate is issued by the same CAs.
    pub(crate) fn other_registrar(
        &self,
        endpoint: &Endpoint,
        tls_name: Option<&str>,
    ) -> Result<Service, Error> {
        let server = Server {
            name: "registrar",
            option: "the URL to compare with",
            tls_name,
            tls_option: "--tls-name",
        };
        self.server(&server, endpoint)
    }

    /// An agent, known by the certificate it registered; `None`: plain HTTP.
    pub(crate) fn agent(
        &self,
        endpoint: &Endpoint,
        certificate: Option<CertificateDer<'static>>,
    ) -> Result<Service, Error> {
        let tls = certificate
            .map(|pinned| tls::client_config(ServerTrust::Pinned(pinned), Some(&self.identity)))
            .transpose()
            .map_err(|source| Error::Credentials { source })?;
        Ok(self.service("agent", AGENT_ADDRESS, endpoint, tls))
    }

    fn server(&self, server: &Server<'_>, endpoint: &Endpoint) -> Result<Service, Error> {
        let authorities = self.roots.clone();
        let trust = match server.tls_name.map(str::to_owned) {
            None => ServerTrust::Roots(authorities),
            Some(name) => ServerTrust::Named { authorities, name },
        };
        let tls =
            tls::client_config(trust, Some(&self.identity)).map_err(|source| match source {
                TlsError::ServerName(_) => Error::Option {
                    option: server.tls_option,
                    reason: source.to_string(),
                },
                source => Error::Credentials { source },
            })?;
        Ok(self.service(server.name, server.option, endpoint, Some(tls)))
    }

    fn service(
        &self,
        name: &'static str,
        option: &'static str,
        endpoint: &Endpoint,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> Service {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let client = Client::new(&endpoint.host, endpoint.port, tls, self.timeout);
        Service {
            name,
            url: format!("{scheme}://{endpoint}"),
            option,
            version: OnceCell::new(),
            client: client.body_limit(BODY_LIMIT),
        }
    }
}

/// Which server is meant, and the options that say where it is.
struct Server<'a> {
    name: &'static str,
    option: &'static str,
    tls_name: Option<&'a str>,
    tls_option: &'static str,
}

/// A server of Keylime's REST API, and how to name it in errors.
///
/// Paths are given without the version, which is agreed on at the first request.
pub(crate) struct Service {
    /// verifier, registrar or agent.
    pub(crate) name: &'static str,
    /// Its URL.
    pub(crate) url: String,
    option: &'static str,
    /// e.g. `2.6`.
    version: OnceCell<String>,
    client: Client,
}

impl Service {
    /// Speaks this version instead of the highest that both know.
    pub(crate) fn set_version(&mut self, version: &str) {
        self.version = OnceCell::new_with(Some(version.to_owned()));
    }

    /// The version that both speak.
    pub(crate) async fn version(&self) -> Result<&str, Error> {
        let version = self.version.get_or_try_init(|| self.negotiate()).await?;
        Ok(version)
    }

    /// `results` of GET; `None` for 404.
    pub(crate) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Error> {
        let reply = self.send(Method::GET, path, None::<&Value>).await?;
        match reply.status {
            404 => Ok(None),
            200 => self.results(path, &reply.body).map(Some),
            _ => Err(self.refused(&Method::GET, path, &reply)),
        }
    }

    /// `results` of GET.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let reply = self.send(Method::GET, path, None::<&Value>).await?;
        match reply.status {
            200 => self.results(path, &reply.body),
            _ => Err(self.refused(&Method::GET, path, &reply)),
        }
    }

    /// Any method: the status, whatever it is, and the body.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Reply, Error> {
        let body = body
            .map(serde_json::to_vec)
            .transpose()
            .map_err(|error| self.bad_answer(path, error.to_string()))?
            .map(Bytes::from);
        let path = format!("/v{}/{path}", self.version().await?);
        self.call(method, &path, body).await
    }

    /// The error for a status that the caller does not expect.
    pub(crate) fn refused(&self, method: &Method, path: &str, reply: &Reply) -> Error {
        Error::Refused {
            service: self.name,
            url: self.url.clone(),
            method: method.to_string(),
            path: self.shown(path),
            status: reply.status,
            reason: reason(reply.status, &reply.body),
        }
    }

    /// The error for a node that it does not know.
    pub(crate) fn unknown(&self, id: &AgentId) -> Error {
        Error::NotFound {
            id: id.to_string(),
            service: self.name,
            url: self.url.clone(),
        }
    }

    /// The highest version below 3.0 that the peer and this program speak.
    async fn negotiate(&self) -> Result<String, Error> {
        const PATH: &str = "/version";
        let is_agent = self.name == "agent";
        let reply = self.call(Method::GET, PATH, None).await?;
        let offered = match reply.status {
            200 => self.results::<Versions>(PATH, &reply.body),
            _ => Err(self.refused(&Method::GET, PATH, &reply)),
        };
        let offered = match offered {
            Ok(versions) => versions.all(),
            Err(_) if !is_agent => return Ok(SERVER_FALLBACK.to_owned()),
            Err(error) => return Err(error),
        };
        let minors = if is_agent {
            AGENT_MINORS
        } else {
            SERVER_MINORS
        };
        highest_common(&offered, &minors).ok_or_else(|| Error::NoCommonVersion {
            service: self.name,
            url: self.url.clone(),
            offered: offered.join(", "),
            spoken: format!("2.{} to 2.{}", minors.start(), minors.end()),
        })
    }

    async fn call(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Reply, Error> {
        match self.client.send(method, path, body).await {
            Ok(answer) => Ok(Reply {
                status: answer.status,
                body: answer.body,
            }),
            Err(source) => Err(Error::Unreachable {
                service: self.name,
                url: self.url.clone(),
                option: self.option,
                source,
            }),
        }
    }

    fn results<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, Error> {
        let envelope: Envelope<T> = serde_json::from_slice(body)
            .map_err(|error| self.bad_answer(path, error.to_string()))?;
        envelope
            .results
            .ok_or_else(|| self.bad_answer(path, "member \"results\" is missing".to_owned()))
    }

    fn bad_answer(&self, path: &str, reason: String) -> Error {
        Error::BadAnswer {
            service: self.name,
            url: self.url.clone(),
            path: self.shown(path),
            reason,
        }
    }

    /// A path as it was asked for, without its query.
    fn shown(&self, path: &str) -> String {
        let path = path.split('?').next().unwrap_or(path);
        match self.version.get() {
            Some(version) if !path.starts_with('/') => format!("/v{version}/{path}"),
            _ => path.to_owned(),
        }
    }
}

/// `GET /version` of any of the three.
#[derive(Deserialize)]
#[serde(untagged)]
enum Versions {
    Agent(AgentVersion),
    Server(ServerVersion),
}

impl Versions {
    fn all(self) -> Vec<String> {
        match self {
            Self::Agent(agent) if agent.supported_versions.is_empty() => {
                vec![agent.supported_version]
            }
            Self::Agent(agent) => agent.supported_versions,
            Self::Server(server) => server.supported_versions,
        }
    }
}

fn highest_common(offered: &[String], minors: &RangeInclusive<u32>) -> Option<String> {
    offered
        .iter()
        .filter_map(|version| version.strip_prefix("2.")?.parse::<u32>().ok())
        .filter(|minor| minors.contains(minor))
        .max()
        .map(|minor| format!("2.{minor}"))
}

/// An answer of any status.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// A name as one segment of a path (RFC 3986, 2.1).
pub(crate) fn segment(name: &str) -> String {
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

/// Why a server refused, from whichever error body it sent: Keylime's envelope, JSON:API errors,
/// or none at all.
fn reason(status: u16, body: &[u8]) -> String {
    let from_json = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|value| {
            let text = value
                .get("status")
                .or_else(|| value.pointer("/errors/0/detail"))?
                .as_str()?;
            (!text.is_empty()).then(|| text.chars().take(REASON_SHOWN).collect())
        });
    from_json.unwrap_or_else(|| match status {
        400 => "the request is malformed (no reason given)".to_owned(),
        403 => "not allowed (no reason given)".to_owned(),
        404 => "no such path or object (no reason given)".to_owned(),
        500..=599 => "the server failed (no reason given; see its log)".to_owned(),
        _ => "no reason given".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_names_and_addresses_of_both_families() {
        for (text, host, port) in [
            ("https://127.0.0.1:8881", "127.0.0.1", 8881),
            ("https://verifier.example.org/", "verifier.example.org", 1),
            ("verifier:99", "verifier", 99),
            ("https://[::1]:7", "::1", 7),
            ("[fe80::1]", "fe80::1", 1),
            ("::1", "::1", 1),
        ] {
            let endpoint = Endpoint::parse(text, 1).unwrap();
            assert_eq!(
                (endpoint.host.as_str(), endpoint.port),
                (host, port),
                "{text}"
            );
        }
        assert_eq!(Endpoint::parse("::1", 9).unwrap().to_string(), "[::1]:9");
    }

    #[test]
    fn endpoints_refuse_what_would_be_another_request() {
        for text in [
            "http://h",
            "https://",
            "https://h:0",
            "https://h:x",
            "https://h/p",
            "[::1",
            "a b",
            "u@h",
        ] {
            assert!(Endpoint::parse(text, 1).is_err(), "{text}");
        }
    }

    #[test]
    fn the_highest_common_version_is_taken_by_number() {
        let pick = |versions: &[&str], minors: &RangeInclusive<u32>| {
            let versions: Vec<_> = versions.iter().map(ToString::to_string).collect();
            highest_common(&versions, minors)
        };
        let agent = |versions: &[&str]| pick(versions, &AGENT_MINORS);
        assert_eq!(agent(&["2.1", "2.6", "2.5"]).as_deref(), Some("2.6"));
        let newer = agent(&["2.5", "2.10", "3.0"]);
        assert_eq!(newer.as_deref(), Some("2.5"), "2.10 is not ours");
        assert_eq!(agent(&["1.0", "2.0", "3.0"]), None);
        assert_eq!(agent(&["2.x", "", "2.-1"]), None);
        let server = pick(&["1.0", "2.0"], &SERVER_MINORS);
        assert_eq!(server.as_deref(), Some("2.0"));
    }

    #[test]
    fn a_name_is_one_segment() {
        assert_eq!(segment("web_1.0-x~"), "web_1.0-x~");
        assert_eq!(segment("a/../b?c d%"), "a%2F..%2Fb%3Fc%20d%25");
        assert_eq!(segment("ü"), "%C3%BC");
    }

    #[test]
    fn every_error_body_yields_a_reason() {
        assert_eq!(
            reason(409, br#"{"code":409,"status":"exists","results":{}}"#),
            "exists"
        );
        let errors = br#"{"errors":[{"status":"403","title":"Forbidden","detail":"no admin"}]}"#;
        assert_eq!(reason(403, errors), "no admin");
        assert!(reason(500, b"").contains("log"));
        assert!(reason(400, b"<html>").contains("malformed"));
    }
}
