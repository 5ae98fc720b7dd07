/// Two registrars, key by key.
mod compare;

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::Method;
use serde::Serialize;
use serde_json::Value;
use troth_core::{
    identity::{self, AgentId},
    tpm::Public,
    wire::{RegistrarList, RegistrarRecord},
};
use troth_daemon::tls;

use crate::{
    api::Credentials,
    ca::CertificateView,
    cli::{Global, RegistrarCommand},
    config::Config,
    error::{Error, Exit},
    output::{Output, Tone, clean},
};

/// Runs `trothctl registrar ...`.
pub(crate) async fn run(
    global: &Global,
    command: &RegistrarCommand,
    out: &Output,
) -> Result<Exit, Error> {
    let config = &Config::load(global)?;
    match command {
        RegistrarCommand::List => list(config, out).await,
        RegistrarCommand::Show { id } => show(config, id, out).await,
        RegistrarCommand::Compare { with, tls_name } => {
            compare::compare(config, with, tls_name.as_deref(), out).await
        }
        RegistrarCommand::Remove { id } => remove(config, id, out).await,
    }
}

/// `registrar list --json`.
#[derive(Serialize)]
struct List {
    agents: Vec<String>,
}

async fn list(config: &Config, out: &Output) -> Result<Exit, Error> {
    let registrar = Credentials::load(config)?.registrar(config)?;
    let list: RegistrarList = registrar.get("agents/").await?;
    let list = List { agents: list.uuids };
    out.result(&list, || {
        if list.agents.is_empty() {
            return "No agent is registered.\n".to_owned();
        }
        let rows = list
            .agents
            .iter()
            .map(|id| vec![(Tone::Plain, id.clone())])
            .collect();
        out.table(&["AGENT"], rows)
    })?;
    Ok(Exit::Success)
}

/// A registered node, in the shape of `registrar show --json`.
#[derive(Debug, Serialize)]
struct Registered {
    id: String,
    /// Contact address.
    address: String,
    port: u16,
    /// Registrations so far.
    regcount: u64,
    ek: Key,
    ak: Key,
    /// null: none registered.
    ek_certificate: Option<CertificateView>,
    /// Is the EK certificate for the registered EK? null: no certificate, or it does not parse.
    ek_certificate_matches: Option<bool>,
    /// null: none registered, or TLS is disabled.
    mtls_certificate: Option<CertificateView>,
    /// Does the agent run without TLS?
    tls_disabled: bool,
}

/// A registered key.
#[derive(Debug, Serialize)]
struct Key {
    /// e.g. `rsa2048`; null: the key does not parse.
    algorithm: Option<String>,
    /// The TPM's name of it, hex.
    name: Option<String>,
    /// base64 TPM2B_PUBLIC, as registered.
    public: String,
}

impl Key {
    fn new(public: &str) -> (Self, Option<Public>) {
        let parsed = BASE64_STANDARD
            .decode(public)
            .ok()
            .and_then(|b| Public::from_tpm2b(&b).ok());
        let key = Self {
            algorithm: parsed.as_ref().map(Public::enc_alg),
            name: parsed
                .as_ref()
                .map(|key| hex::encode(key.name().as_bytes())),
            public: public.to_owned(),
        };
        (key, parsed)
    }

    fn describe(&self) -> String {
        match (&self.algorithm, &self.name) {
            (Some(algorithm), Some(name)) => format!("{algorithm}, name {name}"),
            _ => "does not parse as TPM2B_PUBLIC".to_owned(),
        }
    }
}

impl Registered {
    fn new(id: &str, record: &RegistrarRecord) -> Self {
        let (ek, ek_public) = Key::new(&record.ek_tpm);
        let (ak, _) = Key::new(&record.aik_tpm);
        let certificate = record.ekcert.as_deref().unwrap_or_default();
        let certificate = identity::normalise_ek_certificate(certificate.as_bytes())
            .ok()
            .flatten();
        let tls_disabled = record.mtls_cert.as_deref() == Some("disabled");
        let mtls = record
            .mtls_cert
            .as_deref()
            .and_then(|pem| tls::certificates_from_pem(pem.as_bytes()).ok())
            .and_then(|chain| chain.into_iter().next());
        Self {
            id: id.to_owned(),
            address: record.ip.clone(),
            port: record.port,
            regcount: record.regcount,
            ek_certificate_matches: certificate
                .as_ref()
                .zip(ek_public.as_ref())
                .and_then(|(der, key)| identity::certificate_matches_key(der, key).ok()),
            ek_certificate: certificate.and_then(|der| CertificateView::new(&der).ok()),
            ek,
            ak,
            mtls_certificate: mtls.and_then(|der| CertificateView::new(&der).ok()),
            tls_disabled,
        }
    }

    fn describe(&self, out: &Output) -> String {
        let mut fields = vec![
            (
                "Address",
                format!("{} port {}", clean(&self.address), self.port),
            ),
            (
                "Registered",
                match self.regcount {
                    1 => "once".to_owned(),
                    count => format!("{count} times"),
                },
            ),
            ("EK", self.ek.describe()),
        ];
        fields.push((
            "EK cert",
            match (&self.ek_certificate, self.ek_certificate_matches) {
                (None, _) => "none".to_owned(),
                (Some(certificate), matches) => format!(
                    "{}\n{}",
                    certificate.summary(),
                    match matches {
                        Some(true) => "is for this EK",
                        Some(false) => "is for ANOTHER key than this EK",
                        None => "cannot be compared with the EK",
                    }
                ),
            },
        ));
        fields.push(("AK", self.ak.describe()));
        fields.push((
            "TLS cert",
            match &self.mtls_certificate {
                Some(certificate) => certificate.summary(),
                None if self.tls_disabled => "none: the agent runs without TLS".to_owned(),
                None => "none".to_owned(),
            },
        ));
        format!(
            "{}\n{}",
            out.paint(Tone::Strong, &clean(&self.id)),
            out.fields(&fields)
        )
    }
}

async fn show(config: &Config, id: &AgentId, out: &Output) -> Result<Exit, Error> {
    let registrar = Credentials::load(config)?.registrar(config)?;
    let record: RegistrarRecord = registrar
        .find(&format!("agents/{id}"))
        .await?
        .ok_or_else(|| registrar.unknown(id))?;
    let registered = Registered::new(id.as_str(), &record);
    out.result(&registered, || registered.describe(out))?;
    Ok(Exit::Success)
}

/// `registrar remove --json`.
#[derive(Serialize)]
struct Removed<'a> {
    id: &'a str,
    result: &'static str,
}

async fn remove(config: &Config, id: &AgentId, out: &Output) -> Result<Exit, Error> {
    let registrar = Credentials::load(config)?.registrar(config)?;
    let path = format!("agents/{id}");
    let reply = registrar
        .send(Method::DELETE, &path, None::<&Value>)
        .await?;
    match reply.status {
        200..=299 => {}
        404 => return Err(registrar.unknown(id)),
        _ => return Err(registrar.refused(&Method::DELETE, &path, &reply)),
    }
    let removed = Removed {
        id: id.as_str(),
        result: "removed",
    };
    out.result(&removed, || {
        format!("Agent {id} is removed from the registrar; the verifier keeps it if it has it.\n")
    })?;
    Ok(Exit::Success)
}
