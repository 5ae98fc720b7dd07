use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use rand::distr::{Alphanumeric, SampleString};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::sleep;
use troth_core::{
    appraise::{self, AcceptedAlgorithms},
    identity::{self, AgentId},
    tpm::{AttestationKey, Public},
    wire::{QuoteResponse, RegistrarRecord},
};
use troth_daemon::{client::ClientError, tls};

use super::ek::{Ek, EkFindings};
use crate::{
    api::{Credentials, Endpoint, Service},
    cli::ContactArgs,
    config::Config,
    error::Error,
    output::{Output, span},
};

/// Characters of a nonce, as Keylime's tenant sends them.
const NONCE_LENGTH: usize = 20;

/// A registered node that has proved to be who it is: its AK signed a fresh quote.
pub(super) struct Proven {
    /// The registrar's record.
    pub(super) record: RegistrarRecord,
    /// Where the verifier finds the agent.
    pub(super) contact: Endpoint,
    /// Where this program found it.
    pub(super) url: String,
    /// API version agreed on with the agent.
    pub(super) api_version: String,
    /// Name of the AK that signed the identity quote, hex.
    pub(super) ak_name: String,
    /// What is known about its EK.
    pub(super) ek: EkFindings,
    /// What an operator should know about this node.
    pub(super) warnings: Vec<String>,
}

impl Proven {
    /// The tenant's steps, from the registrar's record to the identity quote.
    pub(super) async fn check(
        config: &Config,
        credentials: &Credentials,
        id: &AgentId,
        args: &ContactArgs,
        accept: &AcceptedAlgorithms,
        out: &Output,
    ) -> Result<Self, Error> {
        let registrar = credentials.registrar(config)?;
        let Registered {
            record,
            provider_keys,
        } = registrar
            .find(&format!("agents/{id}"))
            .await?
            .ok_or_else(|| registrar.unknown(id))?;
        let id = id.as_str();
        let ek = registered_key(id, "EK", &record.ek_tpm)?;
        let ak = registered_key(id, "AK", &record.aik_tpm)?;
        let refused = |source| Error::Identity {
            id: id.to_owned(),
            what: "AK",
            source,
        };
        identity::check_ak(&ak).map_err(refused)?;
        identity::check_distinct(&ek, &ak).map_err(refused)?;
        let ak_name = hex::encode(ak.name().as_bytes());
        let ak = AttestationKey::new(&ak)?;
        let ek = Ek::check(config, id, &record, ek)?;
        let mut warnings = Vec::new();
        let host = args.address.as_ref().unwrap_or(&record.ip).clone();
        let port = args.port.unwrap_or(record.port);
        let certificate = match record.mtls_cert.as_deref() {
            None => return Err(Error::AgentTooOld { id: id.to_owned() }),
            Some("disabled") => {
                warnings
                    .push("the agent runs without TLS: anybody on the path reads its logs".into());
                None
            }
            Some(pem) => Some(registered_certificate(id, pem)?),
        };
        let mut agent = credentials.agent(
            &Endpoint {
                host: host.clone(),
                port,
            },
            certificate,
        )?;
        if let Some(version) = &args.api_version {
            agent.set_version(version);
        }
        check_quote(config, id, &agent, &ak, accept, out).await?;
        let script = ek.ask(config, &provider_keys, out).await?;
        let (ek, more) = ek.findings(script);
        warnings.extend(more);
        Ok(Self {
            contact: Endpoint {
                host: args.address_for_verifier.clone().unwrap_or(host),
                port,
            },
            api_version: agent.version().await?.to_owned(),
            url: agent.url,
            record,
            ak_name,
            ek,
            warnings,
        })
    }
}

/// The registrar's record, with what Keylime's registrar has in it for some agents.
#[derive(Deserialize)]
struct Registered {
    #[serde(flatten)]
    record: RegistrarRecord,
    /// Keys that a cloud provider vouches for; for `ek_check_script` only.
    #[serde(default = "no_keys")]
    provider_keys: Value,
}

fn no_keys() -> Value {
    Value::Object(serde_json::Map::new())
}

/// A key of the registrar's record: base64 TPM2B_PUBLIC.
fn registered_key(id: &str, what: &'static str, text: &str) -> Result<Public, Error> {
    let malformed = |reason: String| Error::RegisteredKey {
        id: id.to_owned(),
        what,
        reason,
    };
    let bytes = BASE64_STANDARD
        .decode(text)
        .map_err(|error| malformed(error.to_string()))?;
    Public::from_tpm2b(&bytes).map_err(|error| malformed(error.to_string()))
}

/// The one certificate of the registrar's record.
fn registered_certificate(id: &str, pem: &str) -> Result<CertificateDer<'static>, Error> {
    let malformed = |reason: String| Error::RegisteredKey {
        id: id.to_owned(),
        what: "mTLS certificate",
        reason,
    };
    tls::certificates_from_pem(pem.as_bytes())
        .map_err(|error| malformed(error.to_string()))?
        .into_iter()
        .next()
        .ok_or_else(|| malformed("no certificate".to_owned()))
}

/// Has the agent quote PCR 16 over a fresh nonce, and checks that quote.
async fn check_quote(
    config: &Config,
    id: &str,
    agent: &Service,
    ak: &AttestationKey,
    accept: &AcceptedAlgorithms,
    out: &Output,
) -> Result<(), Error> {
    let nonce = Alphanumeric.sample_string(&mut rand::rng(), NONCE_LENGTH);
    let path = format!("quotes/identity?nonce={nonce}");
    let mut pauses = config.pauses();
    let evidence: QuoteResponse = loop {
        let error = match agent.get(&path).await {
            Ok(evidence) => break evidence,
            Err(error) => error,
        };
        let Some(pause) = pauses.next().filter(|_| passes(&error)) else {
            return Err(error);
        };
        out.note(&format!("{error}; trying again in {}", in_words(pause)));
        sleep(pause).await;
    };
    appraise::appraise_identity(ak, &nonce, &evidence, accept)
        .map(drop)
        .map_err(|findings| Error::IdentityQuote {
            id: id.to_owned(),
            findings,
        })
}

/// Is it the kind of error that ends by itself: an agent that is just starting, or whose TPM is
/// busy?
fn passes(error: &Error) -> bool {
    match error {
        Error::Refused { status, .. } => matches!(status, 408 | 429 | 500 | 503 | 504),
        Error::Unreachable { source, .. } => match source {
            ClientError::Connect { .. } => true,
            // A TLS alert is for good.
            ClientError::Http { reason, .. } => !reason.contains("fatal alert"),
            _ => false,
        },
        _ => false,
    }
}

fn in_words(pause: Duration) -> String {
    span(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX))
}
