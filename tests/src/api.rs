use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hyper::Method;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::runtime::Runtime;
use troth_daemon::client::Client;
use troth_daemon::tls::{Identity, ServerTrust, certificates_from_pem, client_config};

/// A client of one server's REST interface, for what is asked without any tool.
#[derive(Debug)]
pub struct Api {
    client: Client,
    runtime: Runtime,
}

/// Status and body of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The body; null when it is empty or no JSON.
    pub body: Value,
}

impl Api {
    /// With the operator's certificate of the CA in `ca_dir`, at `port` of 127.0.0.1.
    pub fn operator(port: u16, ca_dir: &Path) -> Result<Self> {
        let identity = Identity::load(
            &ca_dir.join("client-cert.crt"),
            &ca_dir.join("client-private.pem"),
        )?;
        Self::over_tls(port, ca_dir, Some(&identity))
    }

    /// Without any certificate.
    pub fn anonymous(port: u16, ca_dir: &Path) -> Result<Self> {
        Self::over_tls(port, ca_dir, None)
    }

    /// Over plain HTTP.
    pub fn plain(port: u16) -> Result<Self> {
        Self::over(port, None)
    }

    /// With another client certificate, or without.
    pub fn over_tls(port: u16, ca_dir: &Path, identity: Option<&Identity>) -> Result<Self> {
        let ca = certificates_from_pem(&std::fs::read(ca_dir.join("cacert.crt"))?)?;
        let tls = client_config(ServerTrust::Roots(ca), identity)?;
        Self::over(port, Some(tls))
    }

    /// `tls` `None`: plain HTTP.
    pub fn over(port: u16, tls: Option<Arc<ClientConfig>>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let patience = Duration::from_secs(20);
        Ok(Self {
            client: Client::new("127.0.0.1", port, tls, patience),
            runtime,
        })
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.send(Method::GET, path, None)
    }

    /// Any method, with a JSON body or none.
    pub fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Reply> {
        let body = body.map(Value::to_string);
        self.send_text(method, path, body.as_deref())
    }

    /// Any method, with a body that may be no JSON, or none.
    pub fn send_text(&self, method: Method, path: &str, body: Option<&str>) -> Result<Reply> {
        let body = body.map(|body| body.to_owned().into());
        let answer = self
            .runtime
            .block_on(self.client.send(method, path, body))?;
        Ok(Reply {
            status: answer.status,
            body: serde_json::from_slice(&answer.body).unwrap_or_default(),
        })
    }
}
