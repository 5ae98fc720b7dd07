use serde_json::Value;
use troth_core::policy::{Envelope, PolicyDocument, PolicyError, PolicyFormat, TpmPolicy};

use super::{boot::boot_json, read_ima_list, stored};
use crate::{
    api::Credentials,
    cli::{Kind, PolicyRef},
    config::Config,
    error::Error,
    output::now_ms,
};

/// A policy of the command line, read.
#[derive(Debug)]
pub(super) struct Input {
    /// Where it is, for people.
    pub(super) place: String,
    pub(super) content: Content,
}

/// What a policy is, recognised by its content.
#[derive(Debug)]
pub(super) enum Content {
    /// A runtime policy of any version, or one made of a list.
    Runtime {
        document: Box<PolicyDocument>,
        /// What it came in, if it is signed.
        envelope: Option<Envelope>,
    },
    Tpm(TpmPolicy),
    /// A boot policy as JSON.
    Boot(Value),
}

impl Content {
    pub(super) fn of(text: &str) -> Result<Option<Self>, PolicyError> {
        let now = now_ms() / 1000;
        let runtime = |document| Self::Runtime {
            document: Box::new(document),
            envelope: None,
        };
        Ok(Some(match PolicyFormat::of(text) {
            Some(PolicyFormat::Signed) => {
                let Some(envelope) = Envelope::parse(text.as_bytes())? else {
                    return Ok(None);
                };
                Self::Runtime {
                    document: Box::new(PolicyDocument::parse_any_version(envelope.payload(), now)?),
                    envelope: Some(envelope),
                }
            }
            Some(PolicyFormat::Runtime) => {
                runtime(PolicyDocument::parse_any_version(text.as_bytes(), now)?)
            }
            Some(PolicyFormat::Allowlist) => {
                runtime(PolicyDocument::from_allowlist(text, "", now)?)
            }
            Some(PolicyFormat::ImaList) => runtime(PolicyDocument::from_ima_list(text, now)?),
            Some(PolicyFormat::Tpm) => Self::Tpm(TpmPolicy::from_operator(text)?),
            Some(PolicyFormat::Boot) => {
                let json = boot_json(text)?;
                // What was parsed as a policy is JSON.
                Self::Boot(serde_json::from_str(&json).unwrap_or_default())
            }
            None => return Ok(None),
        }))
    }

    /// The word before "policy".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Runtime { .. } => "runtime",
            Self::Tpm(_) => "TPM",
            Self::Boot(_) => "boot",
        }
    }
}

impl Input {
    /// Reads a policy, and says what is wrong with it.
    pub(super) async fn read(config: &Config, policy: &PolicyRef) -> Result<Self, Error> {
        let place = policy.to_string();
        let text = text(config, policy).await?;
        match Content::of(&text) {
            Ok(Some(content)) => Ok(Self { place, content }),
            Ok(None) => Err(Error::NotAPolicy { place }),
            Err(source) => Err(Error::Policy {
                what: format!("policy from {place}"),
                source,
            }),
        }
    }
}

/// The text of a policy, which may not be usable.
pub(super) async fn text(config: &Config, policy: &PolicyRef) -> Result<String, Error> {
    match policy {
        // An IMA list is taken for a policy too, in both of its forms.
        PolicyRef::File(path) => read_ima_list(path),
        PolicyRef::Stored(kind, name) => fetch(config, *kind, name).await,
    }
}

async fn fetch(config: &Config, kind: Kind, name: &str) -> Result<String, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
    stored::text(&verifier, kind, name)
        .await?
        .ok_or_else(|| stored::unknown(&verifier, kind, name))
}
