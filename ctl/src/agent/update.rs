use std::{io::Write, path::Path};

use serde::Serialize;
use serde_json::Value;
use tempfile::NamedTempFile;
use troth_core::{
    appraise::AcceptedAlgorithms,
    identity::AgentId,
    policy::TpmPolicy,
    tpm::PcrMask,
    wire::{Enrolment, NodeStatus},
};

use super::{
    add::{self, Enrolled},
    delete,
    identity::Proven,
    node::{Node, State},
    policies::{self, Choice, Policies},
    put, wait_until_gone,
};
use crate::{
    api::{Credentials, Service},
    cli::{AcceptArgs, ContactArgs, Kind, UpdateArgs},
    config::Config,
    error::{Error, Exit},
    output::{Output, now_ms},
    policy::{self, RuntimeText},
};

/// `agent update --json`.
#[derive(Debug, Serialize)]
struct Updated<'a> {
    id: &'a str,
    /// Always `updated`.
    result: &'static str,
    /// `in_place`: only the text of the node's own policy was replaced; `enrolled_anew`: removed
    /// and added, so that counters and IMA position begin again.
    how: &'static str,
    /// URL of the verifier.
    verifier: &'a str,
    #[serde(flatten)]
    enrolled: Option<&'a Enrolled>,
}

/// Runs `trothctl agent update`.
pub(super) async fn run(config: &Config, args: &UpdateArgs, out: &Output) -> Result<Exit, Error> {
    let config = &config.with_ek(&args.ek);
    let given = Policies::read(config, &args.policies).await?;
    let credentials = Credentials::load(config)?;
    let verifier = credentials.verifier(config)?;
    let status: NodeStatus = verifier
        .find(&format!("agents/{}", args.id))
        .await?
        .ok_or_else(|| verifier.unknown(&args.id))?;
    match text_alone(args, &given, &status) {
        Some(text) => in_place(&verifier, &args.id, &text, &status, out).await,
        None => anew(config, &credentials, &verifier, args, given, &status, out).await,
    }
}

/// The new text, if nothing but the text of the node's own runtime policy changes: that policy is
/// no other node's, and the verifier takes it without reading the node's list again.
fn text_alone(args: &UpdateArgs, given: &Policies, status: &NodeStatus) -> Option<RuntimeText> {
    let UpdateArgs {
        accept, contact, ..
    } = args;
    let others_too = given.runtime.name.is_some()
        || given.boot.is_some()
        || given.tpm.is_some()
        || given.keys.is_some()
        || args.no_boot_policy
        || [
            &accept.accept_hash,
            &accept.accept_encryption,
            &accept.accept_signing,
        ]
        .iter()
        .any(|algorithms| !algorithms.is_empty())
        || contact.address.is_some()
        || contact.address_for_verifier.is_some()
        || contact.port.is_some()
        || contact.api_version.is_some();
    // Only Troth's verifier says which policy a node uses.
    let own = status.troth.as_ref()?.runtime_policy.as_deref() == Some(args.id.as_str());
    let Choice { text, key, .. } = given.runtime.clone();
    text.filter(|_| own && !others_too)
        .map(|text| RuntimeText { text, key })
}

async fn in_place(
    verifier: &Service,
    id: &AgentId,
    text: &RuntimeText,
    status: &NodeStatus,
    out: &Output,
) -> Result<Exit, Error> {
    if !policy::replace_runtime(verifier, id.as_str(), text).await? {
        return Err(Error::NoSuchPolicy {
            kind: Kind::Runtime.as_str(),
            name: id.to_string(),
            url: verifier.url.clone(),
        });
    }
    // What failed under the old policy is judged again; who was stopped stays stopped.
    if Node::new(id.as_str(), status, now_ms()).state == State::Failed {
        put(verifier, id, "reactivate").await?;
    }
    let updated = Updated {
        id: id.as_str(),
        result: "updated",
        how: "in_place",
        verifier: &verifier.url,
        enrolled: None,
    };
    out.result(&updated, || {
        format!("Agent {id} is updated: its runtime policy is replaced, all else stays.\n")
    })?;
    Ok(Exit::Success)
}

/// Removes and adds the node. Everything that can be refused is checked before.
async fn anew(
    config: &Config,
    credentials: &Credentials,
    verifier: &Service,
    args: &UpdateArgs,
    mut policies: Policies,
    status: &NodeStatus,
    out: &Output,
) -> Result<Exit, Error> {
    let id = &args.id;
    let troth = status.troth.as_ref();
    let kept = PolicyKeeper {
        verifier,
        id: id.as_str(),
    };
    let mut rescued = None;
    if args.no_runtime_policy {
        policies.runtime = Choice::default();
    } else if policies.runtime.is_some() {
        kept.check_name(Kind::Runtime, &policies.runtime).await?;
    } else if status.has_runtime_policy != 0 {
        let name = troth.and_then(|troth| troth.runtime_policy.as_deref());
        policies.runtime = kept.policy(Kind::Runtime, name).await?;
        rescued = policies.runtime.text.as_deref().map(rescue).transpose()?;
    }
    if args.no_boot_policy {
        policies.boot = Choice::default();
    } else if policies.boot.is_some() {
        kept.check_name(Kind::Boot, &policies.boot).await?;
    } else if status.has_mb_refstate != 0 {
        let name = troth.and_then(|troth| troth.boot_policy.as_deref());
        policies.boot = kept.policy(Kind::Boot, name).await?;
    }
    let old = TpmPolicy::parse(&status.tpm_policy).map_err(|source| Error::Policy {
        what: format!("TPM policy that the verifier has for {id}"),
        source,
    })?;
    let mask = own_mask(&old, status);
    if policies.tpm.is_none() {
        policies.tpm = Some(without_mask(&status.tpm_policy, id)?);
    }
    let accept = accepted(&args.accept, status);
    let proven = Proven::check(config, credentials, id, &args.contact, &accept, out).await?;

    let tpm_policy = policies.tpm_json(mask)?;
    let (enrolled, mut enrolment) =
        add::enrolment(proven, policies, tpm_policy, accept, config.verifier()?);
    keep_contact(&args.contact, status, &mut enrolment);
    if !status.verifier_ip.is_empty() {
        enrolment.verifier_ip = Some(status.verifier_ip.clone());
        enrolment.verifier_port = Some(status.verifier_port);
    }
    enrolment.metadata.clone_from(&status.meta_data);
    enrolment.v.clone_from(&status.v);
    let gone = delete(verifier, id).await?;
    if let Err(source) = add_again(verifier, id.as_str(), gone, &enrolment).await {
        return Err(Error::UpdateLost {
            id: id.to_string(),
            policy: rescued
                .and_then(|file| file.keep().ok())
                .map(|(_, path)| path),
            source: Box::new(source),
        });
    }

    let updated = Updated {
        id: id.as_str(),
        result: "updated",
        how: "enrolled_anew",
        verifier: &verifier.url,
        enrolled: Some(&enrolled),
    };
    enrolled.warn(out);
    out.result(&updated, || {
        format!(
            "Agent {id} is updated, and attested from the start.\n{}",
            enrolled.describe(&verifier.url, out)
        )
    })?;
    Ok(Exit::Success)
}

/// The text of a node's own policy, which the verifier removes with the node, in a file that only
/// this user can read. It goes when the node is enrolled again; it stays when this program is
/// killed before.
fn rescue(policy: &str) -> Result<NamedTempFile, Error> {
    let unwritable = |path: &Path, source| Error::WriteFile {
        path: path.to_owned(),
        source,
    };
    let mut file = tempfile::Builder::new()
        .prefix("trothctl-runtime-policy-")
        .suffix(".json")
        .tempfile()
        .map_err(|source| unwritable(&std::env::temp_dir(), source))?;
    file.write_all(policy.as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .map_err(|source| unwritable(file.path(), source))?;
    Ok(file)
}

/// Enrols a node that is removed, or will be when its running attestation has ended.
async fn add_again(
    verifier: &Service,
    id: &str,
    gone: bool,
    enrolment: &Enrolment,
) -> Result<(), Error> {
    if !gone {
        wait_until_gone(verifier, id).await?;
    }
    add::post(verifier, id, enrolment).await
}

/// Policies that a node keeps while it is removed and added.
struct PolicyKeeper<'a> {
    verifier: &'a Service,
    id: &'a str,
}

impl PolicyKeeper<'_> {
    /// The policy that the node uses, which is known to the verifier as `name`. One under the
    /// node's own id goes with the node, so its text is kept.
    async fn policy(&self, kind: Kind, name: Option<&str>) -> Result<Choice, Error> {
        if let Some(name) = name.filter(|name| *name != self.id) {
            return Ok(Choice {
                name: Some(name.to_owned()),
                ..Choice::default()
            });
        }
        match policy::text(self.verifier, kind, self.id).await? {
            Some(text) => Ok(Choice {
                text: Some(text),
                ..Choice::default()
            }),
            None => Err(Error::KeptPolicyUnknown {
                id: self.id.to_owned(),
                kind: kind.as_str(),
            }),
        }
    }

    /// Refuses what the verifier would refuse after the node was removed.
    async fn check_name(&self, kind: Kind, choice: &Choice) -> Result<(), Error> {
        let Some(name) = &choice.name else {
            return Ok(());
        };
        let exists = policy::text(self.verifier, kind, name).await?.is_some();
        let (kind, name, url) = (kind.as_str(), name.clone(), self.verifier.url.clone());
        match (exists, &choice.text) {
            (false, None) => Err(Error::NoSuchPolicy { kind, name, url }),
            // The node's own goes with the node.
            (true, Some(_)) if name != self.id => Err(Error::PolicyExists { kind, name, url }),
            _ => Ok(()),
        }
    }
}

/// PCRs that were asked for although no policy of the node needs them.
fn own_mask(old: &TpmPolicy, status: &NodeStatus) -> PcrMask {
    let mut mask = old.mask();
    if status.has_runtime_policy != 0 {
        mask = mask.difference(policies::runtime_mask());
    }
    if status.has_mb_refstate != 0 {
        mask = mask.difference(policies::boot_mask());
    }
    old.allowed().fold(mask, |mask, (pcr, _)| {
        mask.difference(PcrMask::default().with(pcr))
    })
}

/// The PCR values of the verifier's JSON text.
fn without_mask(json: &str, id: &AgentId) -> Result<TpmPolicy, Error> {
    let unusable = |source| Error::Policy {
        what: format!("TPM policy that the verifier has for {id}"),
        source,
    };
    // It was parsed before, so it is an object.
    let mut values: Value = serde_json::from_str(json).unwrap_or_default();
    if let Some(values) = values.as_object_mut() {
        values.remove("mask");
    }
    TpmPolicy::from_operator(&values.to_string()).map_err(unusable)
}

/// The options, and what the node has where there are none.
fn accepted(args: &AcceptArgs, status: &NodeStatus) -> AcceptedAlgorithms {
    let or =
        |given: &[String], kept: &[String]| if given.is_empty() { kept } else { given }.to_vec();
    AcceptedAlgorithms {
        hash: or(&args.accept_hash, &status.accept_tpm_hash_algs),
        encryption: or(&args.accept_encryption, &status.accept_tpm_encryption_algs),
        signing: or(&args.accept_signing, &status.accept_tpm_signing_algs),
    }
}

/// The verifier goes on where it found the agent, unless the options say otherwise.
fn keep_contact(args: &ContactArgs, status: &NodeStatus, enrolment: &mut Enrolment) {
    if args.address.is_none() && args.address_for_verifier.is_none() && status.ip.is_some() {
        enrolment.cloudagent_ip.clone_from(&status.ip);
    }
    if args.port.is_none() && status.port.is_some() {
        enrolment.cloudagent_port = status.port;
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::{super::node::tests::trusted, *};

    #[test]
    fn a_policy_that_goes_with_its_node_is_in_a_file_until_the_node_is_back() {
        let file = rescue(r#"{"digests": {}}"#).unwrap();
        let path = file.path().to_owned();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), r#"{"digests": {}}"#);
        drop(file);
        assert!(!path.exists());

        let (_, path) = rescue("{}").unwrap().keep().unwrap();
        let error = Error::UpdateLost {
            id: "n".into(),
            policy: Some(path.clone()),
            source: Box::new(Error::NoEkCertificate { id: "n".into() }),
        };
        let again = format!("agent add n --runtime-policy {}", path.display());
        assert!(error.advice().unwrap().contains(&again));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_mask_keeps_what_no_policy_explains() {
        let mut status = trusted();
        status.has_runtime_policy = 1;
        status.has_mb_refstate = 0;
        let mask = |status: &NodeStatus, text: &str| {
            own_mask(&TpmPolicy::parse(text).unwrap(), status).bits()
        };
        assert_eq!(mask(&status, r#"{"mask": "0x400"}"#), 0);
        assert_eq!(mask(&status, r#"{"mask": "0x480"}"#), 0x80);
        let value = format!(r#"{{"7": ["{}"], "mask": "0x480"}}"#, "ab".repeat(32));
        assert_eq!(mask(&status, &value), 0);
        status.has_mb_refstate = 1;
        assert_eq!(mask(&status, r#"{"mask": "0x40ffff"}"#), 0x40_0000);
    }
}
