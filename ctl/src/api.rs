use std::{fmt, net::Ipv6Addr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::Method;
use rustls::pki_types::CertificateDer;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use troth_core::wire::Envelope;
use troth_daemon::{
    client::Client,
    tls::{self, Identity, ServerTrust},
};

use crate::{
    cli::Global,
    error::{AGENT_ADDRESS, Error},
};

/// Version of the paths at verifier and registrar. All 2.x answers are the same there, so the
/// oldest that Keylime 6.4 and later serve is the one that fits most servers.
const API: &str = "/v2.1";
/// A verifier's list of some ten thousand nodes fits.
const BODY_LIMIT: usize = 128 * 1024 * 1024;
/// Of one request to verifier or registrar.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);
/// Of one request to an agent, whose TPM may need seconds for a quote.
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
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
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("{port:?} is not a port"))?,
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
        if host.is_empty() || !host.chars().all(valid) {
            return Err(format!("{host:?} is not a host name or address"));
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

/// The operator's certificate and the CA, from `--ca-dir`.
pub(crate) struct Credentials {
    identity: Identity,
    roots: Vec<CertificateDer<'static>>,
}

impl Credentials {
    /// Reads `cacert.crt`, `client-cert.crt` and `client-private.pem`.
    pub(crate) fn load(ca_dir: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Credentials { source };
        Ok(Self {
            identity: Identity::load(
                &ca_dir.join("client-cert.crt"),
                &ca_dir.join("client-private.pem"),
            )
            .map_err(failed)?,
            roots: tls::load_certificates(&ca_dir.join("cacert.crt")).map_err(failed)?,
        })
    }

    fn server(
        &self,
        service: &'static str,
        option: &'static str,
        endpoint: &Endpoint,
    ) -> Result<Service, Error> {
        let trust = ServerTrust::Roots(self.roots.clone());
        let config = tls::client_config(trust, Some(&self.identity))
            .map_err(|source| Error::Credentials { source })?;
        Ok(Service::new(
            service,
            option,
            endpoint,
            Some(config),
            SERVER_TIMEOUT,
        ))
    }

    /// The verifier.
    pub(crate) fn verifier(&self, global: &Global) -> Result<Service, Error> {
        self.server(
            "verifier",
            "--verifier (or TROTH_VERIFIER)",
            &global.verifier,
        )
    }

    /// The registrar.
    pub(crate) fn registrar(&self, global: &Global) -> Result<Service, Error> {
        self.server(
            "registrar",
            "--registrar (or TROTH_REGISTRAR)",
            &global.registrar,
        )
    }

    /// An agent, known by the certificate it registered; `None`: plain HTTP.
    pub(crate) fn agent(
        &self,
        endpoint: &Endpoint,
        certificate: Option<CertificateDer<'static>>,
    ) -> Result<Service, Error> {
        let config = certificate
            .map(|pinned| tls::client_config(ServerTrust::Pinned(pinned), Some(&self.identity)))
            .transpose()
            .map_err(|source| Error::Credentials { source })?;
        Ok(Service::new(
            "agent",
            AGENT_ADDRESS,
            endpoint,
            config,
            AGENT_TIMEOUT,
        ))
    }
}

/// A server of Keylime's REST API, and how to name it in errors.
pub(crate) struct Service {
    /// verifier, registrar or agent.
    pub(crate) name: &'static str,
    /// Its URL.
    pub(crate) url: String,
    option: &'static str,
    client: Client,
}

impl Service {
    fn new(
        name: &'static str,
        option: &'static str,
        endpoint: &Endpoint,
        tls: Option<Arc<rustls::ClientConfig>>,
        timeout: Duration,
    ) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        Self {
            name,
            url: format!("{scheme}://{endpoint}"),
            option,
            client: Client::new(&endpoint.host, endpoint.port, tls, timeout).body_limit(BODY_LIMIT),
        }
    }

    /// `results` of GET; `None` for 404.
    pub(crate) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Error> {
        let reply = self.call(Method::GET, path, None).await?;
        match reply.status {
            404 => Ok(None),
            200 => self.results(path, &reply.body).map(Some),
            _ => Err(self.refused(&Method::GET, path, &reply)),
        }
    }

    /// `results` of GET.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let reply = self.call(Method::GET, path, None).await?;
        match reply.status {
            200 => self.results(path, &reply.body),
            _ => Err(self.refused(&Method::GET, path, &reply)),
        }
    }

    /// POST or DELETE: the status, whatever it is, and the body.
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
        self.call(method, path, body).await
    }

    /// The error for a status that the caller does not expect.
    pub(crate) fn refused(&self, method: &Method, path: &str, reply: &Reply) -> Error {
        Error::Refused {
            service: self.name,
            url: self.url.clone(),
            method: method.to_string(),
            path: without_query(path),
            status: reply.status,
            reason: reason(reply.status, &reply.body),
        }
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
            path: without_query(path),
            reason,
        }
    }
}

/// An answer of any status.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// Path of a node, or of all nodes, at verifier and registrar.
pub(crate) fn agents_path(id: Option<&str>) -> String {
    match id {
        Some(id) => format!("{API}/agents/{id}"),
        None => format!("{API}/agents/"),
    }
}

fn without_query(path: &str) -> String {
    path.split('?').next().unwrap_or(path).to_owned()
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
