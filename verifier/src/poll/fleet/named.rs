use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use troth_core::{policy::PolicyError, wire::Enrolment};

use super::{Fleet, FleetError};
use crate::{
    poll::{
        judge::WorkerError,
        policies::{Compiled, PolicyName, SentPolicy, SignatureError, TextError},
        rules::{NodeError, can_follow},
    },
    store::{NewPolicy, PolicyKind, PolicySummary, Removed, StoreError},
};

/// Policies by name.
impl Fleet {
    /// All policies of a kind, sorted by name.
    pub async fn policy_summaries(
        &self,
        kind: PolicyKind,
    ) -> Result<Vec<PolicySummary>, StoreError> {
        self.store.policy_summaries(kind).await
    }

    /// Text of the policy of this name.
    pub async fn policy_text(
        &self,
        kind: PolicyKind,
        name: &PolicyName,
    ) -> Result<String, PolicyChangeError> {
        let _unchanged = self.policy_change.read().await;
        let digest = self.store.policy_digest(kind, name.as_str()).await?;
        let text = match digest {
            Some(digest) => self.store.policy_text(&digest).await?,
            None => None,
        };
        text.ok_or_else(|| PolicyChangeError::NotFound {
            kind,
            name: name.as_str().to_owned(),
        })
    }

    /// Stores a new policy.
    pub async fn add_policy(
        &self,
        name: &PolicyName,
        sent: SentPolicy,
    ) -> Result<(), PolicyChangeError> {
        let kind = sent.kind();
        let (new, _) = self.receive_policy(name, sent).await?;
        let _policies = self.policy_change.write().await;
        let _change = self.change.lock().await;
        if !self.store.insert_policy(kind, &new).await? {
            let name = new.name;
            return Err(PolicyChangeError::Exists { kind, name });
        }
        Ok(())
    }

    /// Gives a policy another text. Its nodes are judged by that from their next question on, and
    /// go on where they are in their lists.
    pub async fn replace_policy(
        &self,
        name: &PolicyName,
        sent: SentPolicy,
    ) -> Result<(), PolicyChangeError> {
        let kind = sent.kind();
        let (new, compiled) = self.receive_policy(name, sent).await?;
        let _policies = self.policy_change.write().await;
        let _change = self.change.lock().await;
        let mut changed = Vec::new();
        for id in self.store.policy_users(kind, name.as_str()).await? {
            let Some(node) = self.node(&id) else {
                self.check_elsewhere(id, compiled.clone()).await?;
                continue;
            };
            if let Ok(rules) = node.rules() {
                match rules.with(rules.named.clone().with(compiled.clone())) {
                    Ok(rules) => changed.push((node, rules)),
                    Err(source) => return Err(PolicyChangeError::Node { id, source }),
                }
            }
        }
        if !self.store.replace_policy(kind, &new).await? {
            let name = new.name;
            return Err(PolicyChangeError::Unknown { kind, name });
        }
        for (node, rules) in changed {
            node.adopt(rules);
        }
        Ok(())
    }

    /// Could a node of another verifier on this database be judged by the policy? That verifier
    /// takes it over by [`Fleet::follow_policies`].
    async fn check_elsewhere(&self, id: String, policy: Compiled) -> Result<(), PolicyChangeError> {
        let Some(enrolment) = self.store.enrolment(&id).await? else {
            return Ok(());
        };
        // One that does not parse is not judged there either.
        let Ok(enrolment) = serde_json::from_str::<Enrolment>(enrolment.expose()) else {
            return Ok(());
        };
        can_follow(&enrolment, policy).map_err(|source| PolicyChangeError::Node { id, source })
    }

    /// Takes over the policies that another verifier on this database has replaced.
    pub async fn follow_policies(&self) -> Result<(), StoreError> {
        let generation = self.store.policy_generation().await?;
        if self.policy_generation.load(Ordering::Relaxed) == generation {
            return Ok(());
        }
        let _policies = self.policy_change.write().await;
        let mut held = HashMap::new();
        for (id, digests) in self.store.node_policies(&self.verifier_id).await? {
            let Some(node) = self.node(&id) else {
                continue;
            };
            let Ok(rules) = node.rules() else {
                continue;
            };
            // What has no name stays as it is.
            let named = rules.named.clone();
            let named = self.stored_policies(named, &digests, &mut held).await;
            match named.and_then(|named| Ok((named.same(&rules.named), rules.with(named)?))) {
                Ok((true, _)) => {}
                Ok((false, rules)) => node.adopt(rules),
                Err(FleetError::Store(error)) => return Err(error),
                Err(error) => {
                    tracing::error!(node_id = id, %error, "the node's new policy is not usable");
                }
            }
        }
        self.policy_generation.store(generation, Ordering::Relaxed);
        Ok(())
    }

    /// Removes a policy that no node uses.
    pub async fn remove_policy(
        &self,
        kind: PolicyKind,
        name: &PolicyName,
    ) -> Result<(), PolicyChangeError> {
        let _policies = self.policy_change.write().await;
        let _change = self.change.lock().await;
        match self.store.delete_policy(kind, name.as_str()).await? {
            Removed::Done => Ok(()),
            Removed::Unknown => Err(PolicyChangeError::NotFound {
                kind,
                name: name.as_str().to_owned(),
            }),
            Removed::InUse(id) => Err(PolicyChangeError::InUse { kind, id }),
        }
    }

    async fn receive_policy(
        &self,
        name: &PolicyName,
        sent: SentPolicy,
    ) -> Result<(NewPolicy, Compiled), PolicyChangeError> {
        let kind = sent.kind();
        let (policies, name) = (Arc::clone(&self.policies), name.clone());
        let receive = move || policies.receive(&name, sent);
        match self.shared.workers.run(receive).await? {
            Ok(received) => Ok(received),
            Err(TextError::Encoding) => Err(PolicyChangeError::Encoding),
            Err(TextError::Signature(error)) => Err(error.into()),
            Err(TextError::Policy(source)) => Err(PolicyChangeError::Malformed { kind, source }),
        }
    }
}

/// What Keylime calls a policy that cannot be removed.
fn called(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::Runtime => "allowlist",
        PolicyKind::Boot => "mb_policy",
    }
}

/// Why a policy was not shown, stored, replaced or removed. The texts are Keylime's where it has
/// one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyChangeError {
    /// Not base64 of UTF-8 text.
    #[error("runtime_policy is not base64 of a JSON text")]
    Encoding,
    /// The name is in use.
    #[error("{kind} with name {name} already exists")]
    Exists {
        /// Of which kind.
        kind: PolicyKind,
        /// The name.
        name: String,
    },
    /// A node would be left without a policy.
    #[error("Can't delete {} as it's currently in use by agent {id}", called(*kind))]
    InUse {
        /// Of which kind.
        kind: PolicyKind,
        /// The node's agent id.
        id: String,
    },
    /// Not a policy.
    #[error("{kind} is malformatted: {source}")]
    Malformed {
        /// Of which kind.
        kind: PolicyKind,
        /// The reason.
        source: PolicyError,
    },
    /// A node that uses the policy could not be judged by the new text.
    #[error("agent {id} uses this policy: {source}")]
    Node {
        /// The node's agent id.
        id: String,
        /// The reason.
        source: NodeError,
    },
    /// Nothing to show or remove.
    #[error("{kind} {name} not found")]
    NotFound {
        /// Of which kind.
        kind: PolicyKind,
        /// The name.
        name: String,
    },
    /// Not signed as it has to be.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing to replace.
    #[error("{kind} with name {name} does not already exist, use POST to create")]
    Unknown {
        /// Of which kind.
        kind: PolicyKind,
        /// The name.
        name: String,
    },
    /// A worker ended.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}
