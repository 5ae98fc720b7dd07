use std::{sync::Arc, time::Duration};

use troth_core::{identity::AgentId, policy::PolicyError, wire::Enrolment};

use super::{Fleet, FleetError, warn};
use crate::{
    poll::{
        judge::WorkerError,
        node::{Enrolled, Node},
        policies::{
            Compiled, Named, PolicyName, PolicyNameError, SentPolicy, SignatureError, TextError,
        },
        rules::{NodeError, rules},
        state::NodeRecord,
    },
    rest::{CURRENT_VERSION, VERSIONS},
    store::{Enrolled as Inserted, NewNode, PolicyChoice, PolicyChoices, PolicyKind, StoreError},
};

impl Fleet {
    /// Checks an enrolment, stores it and asks the node at once.
    pub async fn enrol(&self, id: AgentId, mut enrolment: Enrolment) -> Result<(), EnrolError> {
        if self.node(id.as_str()).is_some() {
            return Err(EnrolError::NodeExists(id));
        }
        let _unchanged = self.policy_change.read().await;
        let (choices, named) = self.choose_policies(&id, &mut enrolment).await?;
        let version = match enrolment.supported_version.as_deref() {
            Some(version) if VERSIONS.contains(&version) => version.to_owned(),
            _ => CURRENT_VERSION.to_owned(),
        };
        let mut generation = [0; 8];
        aws_lc_rs::rand::fill(&mut generation).map_err(|_| EnrolError::Random)?;
        // The databases have signed integers.
        let generation = u64::from_be_bytes(generation) >> 1;
        let (policies, identity) = (Arc::clone(&self.policies), Arc::clone(&self.identity));
        let site = self.site;
        let check = move || {
            let rules = rules(&enrolment, named, &policies, &identity, site)?;
            Ok::<_, NodeError>((enrolment, rules))
        };
        let (enrolment, rules) = self.shared.workers.run(check).await??;
        let record = NodeRecord::new(version);
        let text = |value: Result<String, _>| value.map_err(EnrolError::Encode);
        let new = NewNode {
            agent_id: id.as_str().to_owned(),
            generation,
            verifier_id: self.verifier_id.clone(),
            enrolment: text(serde_json::to_string(&enrolment))?.into(),
            operational_state: record.operational,
            record: text(serde_json::to_string(&record))?,
        };
        let _change = self.change.lock().await;
        match self.store.insert_node(&new, &choices).await? {
            Inserted::Done => {}
            Inserted::NodeExists => return Err(EnrolError::NodeExists(id)),
            Inserted::PolicyExists(kind) => {
                let name = choices.of(kind).name().unwrap_or_default().to_owned();
                return Err(EnrolError::PolicyExists { kind, name });
            }
        }
        warn(&id, &rules);
        let enrolled = Enrolled {
            id,
            generation,
            enrolment,
        };
        self.spawn(Node::new(enrolled, rules, record), Duration::ZERO);
        Ok(())
    }

    /// The policies of an enrolment, whose texts are taken out of it: the database has them once.
    async fn choose_policies(
        &self,
        id: &AgentId,
        enrolment: &mut Enrolment,
    ) -> Result<(PolicyChoices, Named), EnrolError> {
        let key = enrolment.runtime_policy_key.clone();
        let runtime = enrolment.runtime_policy.take();
        let runtime = runtime.filter(|text| !text.trim().is_empty());
        if runtime.is_none() && key.as_deref().is_some_and(|key| !key.is_empty()) {
            return Err(NodeError::Alone("runtime_policy_key").into());
        }
        let runtime = runtime.map(|policy| SentPolicy::Runtime { policy, key });
        // Not blank here: `{}` is a policy.
        let boot = enrolment.mb_policy.take();
        let boot = boot.filter(|text| !matches!(text.trim(), "" | "null"));
        let boot = boot.map(SentPolicy::Boot);

        let name = enrolment.runtime_policy_name.as_deref();
        let (runtime, one) = self.choose(PolicyKind::Runtime, id, name, runtime).await?;
        let name = enrolment.mb_policy_name.as_deref();
        let (boot, other) = self.choose(PolicyKind::Boot, id, name, boot).await?;
        let compiled = [one, other].into_iter().flatten();
        let named = compiled.fold(Named::NONE, Named::with);
        Ok((PolicyChoices { runtime, boot }, named))
    }

    /// A policy under a name is new, a name alone is of a stored policy, a policy alone gets the
    /// agent's id as its name. Without either, a stored policy of that name applies if there is
    /// one: an operator has put it there for this node.
    async fn choose(
        &self,
        kind: PolicyKind,
        id: &AgentId,
        name: Option<&str>,
        sent: Option<SentPolicy>,
    ) -> Result<(PolicyChoice, Option<Compiled>), EnrolError> {
        let given = name.filter(|name| !name.is_empty());
        let name = PolicyName::new(given.unwrap_or(id.as_str()))?;
        if let Some(sent) = sent {
            let policies = Arc::clone(&self.policies);
            let receive = move || policies.receive(&name, sent);
            let (new, policy) = match self.shared.workers.run(receive).await? {
                Ok(received) => received,
                Err(TextError::Encoding) => return Err(EnrolError::PolicyEncoding),
                Err(TextError::Signature(error)) => return Err(error.into()),
                Err(TextError::Policy(source)) => {
                    return Err(EnrolError::Malformed { kind, source });
                }
            };
            return Ok((PolicyChoice::New(new), Some(policy)));
        }
        let name = name.as_str();
        match self.store.policy_digest(kind, name).await? {
            Some(digest) => {
                let policy = self.stored_policy(kind, &digest).await?;
                Ok((PolicyChoice::Named(name.to_owned()), Some(policy)))
            }
            None if given.is_some() => Err(EnrolError::NoSuchPolicy {
                kind,
                name: name.to_owned(),
            }),
            None => Ok((PolicyChoice::None, None)),
        }
    }
}

/// What Keylime's texts at enrolment call a policy.
fn called(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::Runtime => "IMA policy",
        PolicyKind::Boot => "mb_policy",
    }
}

/// Why a node was not enrolled. The texts are Keylime's where it has one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// The record cannot be written as JSON.
    #[error("enrolment cannot be stored: {0}")]
    Encode(serde_json::Error),
    /// A policy is not one.
    #[error("{kind} is malformatted: {source}")]
    Malformed {
        /// Which.
        kind: PolicyKind,
        /// The reason.
        source: PolicyError,
    },
    /// The enrolment itself.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The id is in use.
    #[error("Agent of uuid {0} already exists. Please use delete or update.")]
    NodeExists(AgentId),
    /// The name is unknown.
    #[error("Could not find {} with name {name}!", called(*kind))]
    NoSuchPolicy {
        /// Of which kind.
        kind: PolicyKind,
        /// The name.
        name: String,
    },
    /// Not base64 of UTF-8 text.
    #[error("runtime_policy is not base64 of a JSON text")]
    PolicyEncoding,
    /// The name is in use.
    #[error(
        "{} with name {name} already exists. Please use a different name or delete the policy \
         from the verifier.",
        called(*kind)
    )]
    PolicyExists {
        /// Of which kind.
        kind: PolicyKind,
        /// The name.
        name: String,
    },
    /// No name for a policy.
    #[error(transparent)]
    PolicyName(#[from] PolicyNameError),
    /// The runtime policy is not signed as it has to be.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The system gave no random numbers.
    #[error("no random numbers from the system")]
    Random,
    /// A stored policy cannot be used.
    #[error(transparent)]
    Stored(#[from] FleetError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A worker ended.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}
