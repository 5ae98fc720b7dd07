use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::Method;
use serde::Serialize;
use serde_json::Value;
use troth_core::{
    appraise::AcceptedAlgorithms,
    tpm::PcrMask,
    wire::{Enrolment, SecretText},
};

use super::{ek::EkFindings, identity::Proven, policies::Policies};
use crate::{
    api::{Credentials, Endpoint, Service},
    cli::{AcceptArgs, AddArgs},
    config::Config,
    error::{Error, Exit},
    output::{Output, clean},
};

/// `agent add --json`, and what `agent update --json` has of it.
#[derive(Debug, Serialize)]
pub(super) struct Enrolled {
    /// URL of the agent.
    agent: String,
    /// API version agreed on with the agent.
    api_version: String,
    /// Name of the AK that signed the identity quote, hex.
    ak_name: String,
    #[serde(flatten)]
    ek: EkFindings,
    tpm_policy: Value,
    has_runtime_policy: bool,
    has_boot_policy: bool,
    /// What an operator should know about this enrolment.
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Added {
    id: String,
    /// Always `added`.
    result: &'static str,
    /// URL of the verifier that attests the node from now on.
    verifier: String,
    #[serde(flatten)]
    enrolled: Enrolled,
}

/// Runs `trothctl agent add`.
pub(super) async fn run(config: &Config, args: &AddArgs, out: &Output) -> Result<Exit, Error> {
    let id = &args.id;
    let config = &config.with_ek(&args.ek);
    let policies = Policies::read(config, &args.policies).await?;
    let accept = accepted(config, &args.accept);
    let credentials = Credentials::load(config)?;
    let proven = Proven::check(config, &credentials, id, &args.contact, &accept, out).await?;
    let verifier = credentials.verifier(config)?;
    let tpm_policy = policies.tpm_json(PcrMask::default())?;
    let (enrolled, enrolment) = enrolment(proven, policies, tpm_policy, accept, config.verifier()?);
    post(&verifier, id.as_str(), &enrolment).await?;
    let added = Added {
        id: id.to_string(),
        result: "added",
        verifier: verifier.url,
        enrolled,
    };
    added.enrolled.warn(out);
    out.result(&added, || {
        format!(
            "Agent {id} is added.\n{}Watch it with: trothctl agent watch {id} --until trusted\n",
            added.enrolled.describe(&added.verifier, out)
        )
    })?;
    Ok(Exit::Success)
}

/// The options, and what is configured where there are none.
pub(super) fn accepted(config: &Config, args: &AcceptArgs) -> AcceptedAlgorithms {
    let or = |given: &[String], configured: &[String]| {
        if given.is_empty() { configured } else { given }.to_vec()
    };
    AcceptedAlgorithms {
        hash: or(&args.accept_hash, &config.accept_tpm_hash_algs),
        encryption: or(&args.accept_encryption, &config.accept_tpm_encryption_algs),
        signing: or(&args.accept_signing, &config.accept_tpm_signing_algs),
    }
}

/// The body of the enrolment at `verifier`, and what is told about it. Names and texts that do not exist are sent
/// as Keylime's tenant sends them.
pub(super) fn enrolment(
    proven: Proven,
    policies: Policies,
    tpm_policy: String,
    accept: AcceptedAlgorithms,
    verifier: Endpoint,
) -> (Enrolled, Enrolment) {
    let Policies {
        runtime,
        boot,
        keys,
        ..
    } = policies;
    let enrolled = Enrolled {
        agent: proven.url,
        api_version: proven.api_version.clone(),
        ak_name: proven.ak_name,
        ek: proven.ek,
        tpm_policy: serde_json::from_str(&tpm_policy).unwrap_or(Value::Null),
        has_runtime_policy: runtime.is_some(),
        has_boot_policy: boot.is_some(),
        warnings: proven.warnings,
    };
    let encoded = runtime.text.map(|json| BASE64_STANDARD.encode(json));
    let enrolment = Enrolment {
        v: None,
        cloudagent_ip: Some(proven.contact.host),
        cloudagent_port: Some(proven.contact.port),
        verifier_ip: Some(verifier.host),
        verifier_port: Some(verifier.port),
        tpm_policy,
        metadata: "{}".to_owned(),
        runtime_policy: Some(encoded.unwrap_or_default()),
        runtime_policy_name: runtime.name,
        runtime_policy_key: runtime.key,
        mb_policy: boot.text,
        mb_policy_name: boot.name,
        ima_sign_verification_keys: Some(keys.unwrap_or_default()),
        revocation_key: Some(SecretText::default()),
        accept_tpm_hash_algs: accept.hash,
        accept_tpm_encryption_algs: accept.encryption,
        accept_tpm_signing_algs: accept.signing,
        ak_tpm: proven.record.aik_tpm,
        mtls_cert: proven.record.mtls_cert,
        supported_version: Some(proven.api_version),
    };
    (enrolled, enrolment)
}

/// Enrols.
pub(super) async fn post(verifier: &Service, id: &str, enrolment: &Enrolment) -> Result<(), Error> {
    let path = format!("agents/{id}");
    let reply = verifier.send(Method::POST, &path, Some(enrolment)).await?;
    match reply.status {
        200 | 201 => Ok(()),
        // A policy that exists already is 409 as well; the text says which of the two.
        409 if verifier.find::<Value>(&path).await?.is_some() => Err(Error::AlreadyEnrolled {
            id: id.to_owned(),
            url: verifier.url.clone(),
        }),
        _ => Err(verifier.refused(&Method::POST, &path, &reply)),
    }
}

impl Enrolled {
    /// Prints the warnings where people see them.
    pub(super) fn warn(&self, out: &Output) {
        for warning in &self.warnings {
            out.note(&format!("warning: {warning}"));
        }
    }

    pub(super) fn describe(&self, verifier: &str, out: &Output) -> String {
        let which = |has: bool, what: &str| format!("{} {what}", if has { "a" } else { "no" });
        let mask = self
            .tpm_policy
            .get("mask")
            .and_then(Value::as_str)
            .unwrap_or("none");
        out.fields(&[
            (
                "Identity",
                format!("quote signed by the registered AK {}", self.ak_name),
            ),
            ("TPM", self.ek.describe()),
            (
                "Agent",
                format!("{} (API {})", clean(&self.agent), self.api_version),
            ),
            ("Verifier", verifier.to_owned()),
            (
                "Policies",
                format!(
                    "PCR mask {mask}, {}, {}",
                    which(self.has_runtime_policy, "runtime policy"),
                    which(self.has_boot_policy, "boot policy")
                ),
            ),
        ])
    }
}
