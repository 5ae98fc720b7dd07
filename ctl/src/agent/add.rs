use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::Method;
use rand::distr::{Alphanumeric, SampleString};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde_json::Value;
use tokio::time::sleep;
use troth_core::{
    appraise::{self, AcceptedAlgorithms},
    identity,
    policy::TpmPolicy,
    tpm::{AttestationKey, PcrMask, Public},
    wire::{AgentVersion, Enrolment, QuoteResponse, RegistrarRecord},
};
use troth_daemon::{client::ClientError, tls};

use crate::{
    api::{self, Credentials, Endpoint, Service},
    cli::{AddArgs, Global},
    error::{Error, Exit},
    output::{Output, clean},
    policy::{self, RuntimeSource},
};

/// Characters of a nonce, as Keylime's tenant sends them.
const NONCE_LENGTH: usize = 20;
/// Minor versions of API 2 that an agent may choose from.
const MINORS: std::ops::RangeInclusive<u32> = 1..=6;
/// Pauses before an agent that is just starting, or whose TPM is busy, is asked again.
const RETRIES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

/// `agent add --json`.
#[derive(Debug, Serialize)]
struct Added {
    id: String,
    /// Always `added`.
    result: &'static str,
    /// URL of the verifier that attests the node from now on.
    verifier: String,
    /// URL of the agent.
    agent: String,
    /// API version agreed on with the agent.
    api_version: String,
    /// Name of the AK that signed the identity quote, hex.
    ak_name: String,
    /// `matches`: there is an EK certificate, and it is for the registered EK; `absent`: there is
    /// none.
    ek_certificate: &'static str,
    tpm_policy: Value,
    has_runtime_policy: bool,
    has_boot_policy: bool,
    /// What an operator should know about this enrolment.
    warnings: Vec<String>,
}

/// Policies of the enrolment, read and checked before anything is sent.
struct Policies {
    tpm: String,
    runtime: Option<String>,
    boot: Option<String>,
}

impl Policies {
    fn read(args: &AddArgs) -> Result<Self, Error> {
        let runtime = RuntimeSource::from_options(
            args.runtime_policy.as_ref(),
            args.allowlist.as_ref(),
            args.exclude.as_ref(),
            args.ima_list.as_ref(),
        )
        .map(RuntimeSource::json)
        .transpose()?;
        let (boot, boot_policy) = policy::boot(args.boot_policy.as_deref())?;
        let mut mask = boot_policy.mask();
        if runtime.is_some() {
            mask = mask.union(PcrMask::default().with(10));
        }
        let tpm = TpmPolicy::from_operator(&args.tpm_policy)
            .map_err(|source| Error::Policy {
                what: "--tpm-policy".to_owned(),
                source,
            })?
            .with_mask(mask)
            .to_json();
        Ok(Self { tpm, runtime, boot })
    }
}

/// Keys of the registrar's record, parsed and checked.
struct Keys {
    ak: AttestationKey,
    ak_name: String,
    ek_certificate: &'static str,
}

/// Runs `trothctl agent add`.
pub(super) async fn run(global: &Global, args: &AddArgs, out: &Output) -> Result<Exit, Error> {
    let id = args.id.as_str();
    let policies = Policies::read(args)?;
    let accept = AcceptedAlgorithms {
        hash: args.accept_hash.clone(),
        encryption: args.accept_encryption.clone(),
        signing: args.accept_signing.clone(),
    };
    let credentials = Credentials::load(&global.ca_dir)?;
    let mut warnings = Vec::new();

    let registrar = credentials.registrar(global)?;
    let record: RegistrarRecord = registrar
        .find(&api::agents_path(Some(id)))
        .await?
        .ok_or_else(|| Error::NotFound {
            id: id.to_owned(),
            service: registrar.name,
            url: registrar.url.clone(),
        })?;
    let keys = check_keys(id, &record)?;
    if keys.ek_certificate == "absent" {
        warnings.push(
            "the node has no EK certificate: nothing but its registration says that its TPM is \
             genuine"
                .to_owned(),
        );
    }

    let endpoint = Endpoint {
        host: args.address.clone().unwrap_or_else(|| record.ip.clone()),
        port: args.port.unwrap_or(record.port),
    };
    let certificate = match record.mtls_cert.as_deref() {
        None => return Err(Error::AgentTooOld { id: id.to_owned() }),
        Some("disabled") => {
            warnings.push("the agent runs without TLS: anybody on the path reads its logs".into());
            None
        }
        Some(pem) => Some(registered_certificate(id, pem)?),
    };
    let agent = credentials.agent(&endpoint, certificate)?;
    let api_version = negotiate(id, &agent).await?;
    check_identity(id, &agent, &api_version, &keys.ak, &accept).await?;

    let enrolment = Enrolment {
        v: None,
        cloudagent_ip: Some(endpoint.host.clone()),
        cloudagent_port: Some(endpoint.port),
        tpm_policy: policies.tpm.clone(),
        metadata: "{}".to_owned(),
        runtime_policy: Some(
            policies
                .runtime
                .as_ref()
                .map(|json| BASE64_STANDARD.encode(json))
                .unwrap_or_default(),
        ),
        runtime_policy_name: None,
        runtime_policy_key: None,
        mb_policy: policies.boot.clone(),
        mb_policy_name: None,
        ima_sign_verification_keys: Some(String::new()),
        revocation_key: Some(String::new()),
        accept_tpm_hash_algs: accept.hash,
        accept_tpm_encryption_algs: accept.encryption,
        accept_tpm_signing_algs: accept.signing,
        ak_tpm: record.aik_tpm,
        mtls_cert: record.mtls_cert,
        supported_version: Some(api_version.clone()),
    };
    let verifier = credentials.verifier(global)?;
    let path = api::agents_path(Some(id));
    let reply = verifier.send(Method::POST, &path, Some(&enrolment)).await?;
    match reply.status {
        200 | 201 => {}
        409 => {
            return Err(Error::AlreadyEnrolled {
                id: id.to_owned(),
                url: verifier.url.clone(),
            });
        }
        _ => return Err(verifier.refused(&Method::POST, &path, &reply)),
    }

    let added = Added {
        id: id.to_owned(),
        result: "added",
        verifier: verifier.url.clone(),
        agent: agent.url.clone(),
        api_version,
        ak_name: keys.ak_name,
        ek_certificate: keys.ek_certificate,
        tpm_policy: serde_json::from_str(&policies.tpm).unwrap_or(Value::Null),
        has_runtime_policy: policies.runtime.is_some(),
        has_boot_policy: policies.boot.is_some(),
        warnings,
    };
    for warning in &added.warnings {
        out.note(&format!("warning: {warning}"));
    }
    out.result(&added, || added.describe(out))?;
    Ok(Exit::Success)
}

impl Added {
    fn describe(&self, out: &Output) -> String {
        let mut text = format!("Agent {} is added.\n", self.id);
        let ek = match self.ek_certificate {
            "absent" => "no EK certificate",
            _ => "the EK certificate is for the registered EK (its issuer is not checked)",
        };
        let which = |has: bool, what: &str| format!("{} {what}", if has { "a" } else { "no" });
        let mask = self
            .tpm_policy
            .get("mask")
            .and_then(Value::as_str)
            .unwrap_or("none");
        text.push_str(&out.fields(&[
            (
                "Identity",
                format!("quote signed by the registered AK {}", self.ak_name),
            ),
            ("TPM", ek.to_owned()),
            (
                "Agent",
                format!("{} (API {})", clean(&self.agent), self.api_version),
            ),
            ("Verifier", self.verifier.clone()),
            (
                "Policies",
                format!(
                    "PCR mask {mask}, {}, {}",
                    which(self.has_runtime_policy, "runtime policy"),
                    which(self.has_boot_policy, "boot policy")
                ),
            ),
        ]));
        text.push_str(&format!(
            "Watch it with: trothctl agent watch {} --until trusted\n",
            self.id
        ));
        text
    }
}

fn check_keys(id: &str, record: &RegistrarRecord) -> Result<Keys, Error> {
    let refused = |what| {
        move |source| Error::Identity {
            id: id.to_owned(),
            what,
            source,
        }
    };
    let ek = registered_key(id, "EK", &record.ek_tpm)?;
    let ak_public = registered_key(id, "AK", &record.aik_tpm)?;
    identity::check_ek(&ek).map_err(refused("EK"))?;
    identity::check_ak(&ak_public).map_err(refused("AK"))?;
    let certificate = record.ekcert.as_deref().unwrap_or_default();
    let certificate = identity::normalise_ek_certificate(certificate.as_bytes())
        .map_err(refused("EK certificate"))?;
    let ek_certificate = match certificate {
        None => "absent",
        Some(der) => {
            if !identity::certificate_matches_key(&der, &ek).map_err(refused("EK certificate"))? {
                return Err(Error::ForeignEkCertificate { id: id.to_owned() });
            }
            "matches"
        }
    };
    Ok(Keys {
        ak_name: hex::encode(ak_public.name().as_bytes()),
        ak: AttestationKey::new(&ak_public)?,
        ek_certificate,
    })
}

/// A key of the registrar's record: base64 TPM2B_PUBLIC.
pub(crate) fn registered_key(id: &str, what: &'static str, text: &str) -> Result<Public, Error> {
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

/// The highest version below 3.0 that agent and this program speak.
async fn negotiate(id: &str, agent: &Service) -> Result<String, Error> {
    let mut pauses = RETRIES.iter();
    let version: AgentVersion = loop {
        match agent.get("/version").await {
            Err(Error::Unreachable {
                source: ClientError::Connect { .. },
                ..
            }) if let Some(pause) = pauses.next() => {
                sleep(*pause).await;
            }
            other => break other?,
        }
    };
    let offered = if version.supported_versions.is_empty() {
        vec![version.supported_version]
    } else {
        version.supported_versions
    };
    highest_common(&offered).ok_or_else(|| Error::NoCommonVersion {
        id: id.to_owned(),
        url: agent.url.clone(),
        offered: offered.join(", "),
    })
}

fn highest_common(offered: &[String]) -> Option<String> {
    offered
        .iter()
        .filter_map(|version| version.strip_prefix("2.")?.parse::<u32>().ok())
        .filter(|minor| MINORS.contains(minor))
        .max()
        .map(|minor| format!("2.{minor}"))
}

/// Has the agent quote PCR 16 over a fresh nonce, and checks that quote.
async fn check_identity(
    id: &str,
    agent: &Service,
    api_version: &str,
    ak: &AttestationKey,
    accept: &AcceptedAlgorithms,
) -> Result<(), Error> {
    let nonce = Alphanumeric.sample_string(&mut rand::rng(), NONCE_LENGTH);
    let path = format!("/v{api_version}/quotes/identity?nonce={nonce}");
    let mut pauses = RETRIES.iter();
    let evidence: QuoteResponse = loop {
        match agent.get(&path).await {
            Err(Error::Refused {
                status: 408 | 500 | 503 | 504,
                ..
            }) if let Some(pause) = pauses.next() => {
                sleep(*pause).await;
            }
            other => break other?,
        }
    };
    appraise::appraise_identity(ak, &nonce, &evidence, accept)
        .map(|_| ())
        .map_err(|findings| Error::IdentityQuote {
            id: id.to_owned(),
            findings,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_taken_by_number() {
        let pick = |versions: &[&str]| {
            highest_common(&versions.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(pick(&["2.1", "2.6", "2.5"]).as_deref(), Some("2.6"));
        assert_eq!(
            pick(&["2.5", "2.10", "3.0"]).as_deref(),
            Some("2.5"),
            "2.10 is not ours"
        );
        assert_eq!(pick(&["1.0", "2.0", "3.0"]), None);
        assert_eq!(pick(&["2.x", "", "2.-1"]), None);
    }
}
