use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use troth_daemon::client::Client;
use troth_daemon::server::{Body, Handler, Limits, full, read_body, serve};
use troth_daemon::shutdown::{Shutdown, Trigger};
use troth_daemon::tls::{
    ClientAuth, Identity, ServerTrust, certificates_from_pem, client_config, server_config,
};

use crate::fleet::Agent;

/// What is changed on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lie {
    /// Nothing.
    #[default]
    None,
    /// The agent's TPM gets another nonce than the verifier's.
    Nonce,
    /// Two PCR values change places in the answer.
    SwappedPcrs,
    /// The list lacks its last entry.
    TruncatedList,
    /// The first two entries of the list change places.
    ReorderedList,
    /// The agent's public key is another one.
    TransportKey,
}

/// A verifier's view of an agent, with a man in between who has the agent's TLS key: certificates
/// are no protection against him, only the TPM is.
#[derive(Debug)]
pub struct LyingAgent {
    lie: Arc<Mutex<Lie>>,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Trigger,
    thread: Option<JoinHandle<()>>,
}

impl LyingAgent {
    /// Listens on `port` as `shown` would, and passes everything on to `real`, as a client of the
    /// CA in `ca_dir`. The two may be different agents: then the verifier gets quotes of another
    /// TPM.
    pub fn start(port: u16, shown: &Agent, real: &Agent, ca_dir: &Path) -> Result<Self> {
        let (certificate, key) = shown.tls_files();
        let ca = std::fs::read(ca_dir.join("cacert.crt"))?;
        let server = server_config(
            &Identity::load(&certificate, &key)?,
            ClientAuth::Required(certificates_from_pem(&ca)?),
        )?;
        let pinned = certificates_from_pem(&std::fs::read(real.tls_files().0)?)?;
        let pinned = pinned
            .into_iter()
            .next()
            .context("an agent without a certificate")?;
        let client = client_config(
            ServerTrust::Pinned(pinned),
            Some(&Identity::load(
                &ca_dir.join("client-cert.crt"),
                &ca_dir.join("client-private.pem"),
            )?),
        )?;
        let lie = Arc::new(Mutex::new(Lie::None));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let handler = Middle {
            agent: Arc::new(Client::new(
                "127.0.0.1",
                real.address().port(),
                Some(client),
                Duration::from_secs(10),
            )),
            lie: Arc::clone(&lie),
            asked: Arc::clone(&asked),
        };

        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, shutdown) = Shutdown::new();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                if let Ok(listener) = TcpListener::from_std(listener) {
                    serve(listener, Some(server), Limits::default(), handler, shutdown).await;
                }
            });
        });
        Ok(Self {
            lie,
            asked,
            stop,
            thread: Some(thread),
        })
    }

    /// From the next request on, `lie` is told.
    pub fn tell(&self, lie: Lie) {
        *self.lie.lock().unwrap_or_else(PoisonError::into_inner) = lie;
    }

    /// Paths and queries of the requests since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for LyingAgent {
    fn drop(&mut self) {
        self.stop.fire();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Clone, Debug)]
struct Middle {
    agent: Arc<Client>,
    lie: Arc<Mutex<Lie>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Handler for Middle {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let lie = *self.lie.lock().unwrap_or_else(PoisonError::into_inner);
        let (head, body) = request.into_parts();
        let mut target = head
            .uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string);
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(target.clone());
        if lie == Lie::Nonce {
            target = with_another_nonce(&target);
        }
        let Ok(body) = read_body(body, 1 << 20).await else {
            return answer(StatusCode::BAD_REQUEST, Vec::new());
        };
        let body = (!body.is_empty()).then_some(body);
        let Ok(got) = self.agent.send(head.method, &target, body).await else {
            return answer(StatusCode::BAD_GATEWAY, Vec::new());
        };
        let status = StatusCode::from_u16(got.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let told = falsify(lie, &got.body).unwrap_or_else(|| got.body.to_vec());
        answer(status, told)
    }
}

fn answer(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, json);
    response
}

fn with_another_nonce(target: &str) -> String {
    match target.split_once("nonce=") {
        Some((before, after)) => {
            let rest = after.find('&').map_or("", |end| &after[end..]);
            format!("{before}nonce=00000000000000000000{rest}")
        }
        None => target.to_owned(),
    }
}

/// The changed answer; `None` when this answer has nothing to change.
fn falsify(lie: Lie, body: &[u8]) -> Option<Vec<u8>> {
    if matches!(lie, Lie::None | Lie::Nonce) {
        return None;
    }
    let mut answer: Value = serde_json::from_slice(body).ok()?;
    let results = answer.get_mut("results")?;
    match lie {
        Lie::None | Lie::Nonce => {}
        Lie::SwappedPcrs => {
            let swapped = swap_pcrs(results.get("quote")?.as_str()?)?;
            results["quote"] = Value::String(swapped);
        }
        Lie::TransportKey => {
            let key = results.get("pubkey")?.as_str()?.replacen("MII", "MIJ", 1);
            results["pubkey"] = Value::String(key);
        }
        Lie::TruncatedList => change_list(results, |lines| {
            lines.pop();
        })?,
        Lie::ReorderedList => change_list(results, |lines| {
            if lines.len() > 1 {
                lines.swap(0, 1);
            }
        })?,
    }
    serde_json::to_vec(&answer).ok()
}

fn change_list(results: &mut Value, change: impl FnOnce(&mut Vec<&str>)) -> Option<()> {
    let list = results.get("ima_measurement_list")?.as_str()?.to_owned();
    let mut lines: Vec<_> = list.split_inclusive('\n').collect();
    change(&mut lines);
    results["ima_measurement_list"] = Value::String(lines.concat());
    Some(())
}

/// Swaps the first two values in the third part of a quote string, the PCR blob: after 132 bytes
/// of selections and the count, lists of eight TPM2B_DIGEST in 66 bytes each.
fn swap_pcrs(quote: &str) -> Option<String> {
    const FIRST: usize = 136 + 4;
    const EACH: usize = 2 + 64;
    let (rest, blob) = quote.rsplit_once(':')?;
    let mut blob = BASE64_STANDARD.decode(blob).ok()?;
    let (first, others) = blob.get_mut(FIRST..)?.split_at_mut_checked(EACH)?;
    first.swap_with_slice(others.get_mut(..EACH)?);
    Some(format!("{rest}:{}", BASE64_STANDARD.encode(blob)))
}
