use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{DigestNames, PolicyDocument, VerificationKeys, quoted};
use crate::policy::schema::Members;
use crate::tpm::Digest;

/// What distinguishes a policy from an older one.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct PolicyDiff {
    /// Files.
    pub digests: BTreeMap<String, Change>,
    /// Keyrings.
    pub keyrings: BTreeMap<String, Change>,
    /// Measured buffers.
    pub ima_buf: BTreeMap<String, Change>,
    /// Patterns of names that are not judged.
    pub excludes: SetChange,
    /// Keyrings whose keys are accepted unseen.
    pub ignored_keyrings: SetChange,
    /// Keys whose signatures count: id as eight hex digits, a colon, and SHA-256 of the key's DER
    /// SubjectPublicKeyInfo.
    pub verification_keys: SetChange,
    /// Single values by JSON pointer (RFC 6901), each as the JSON texts of before and after.
    pub members: BTreeMap<String, [Option<String>; 2]>,
}

/// What became of the digests of a name.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Change {
    /// What became of the name.
    pub kind: ChangeKind,
    /// Digests that are no longer allowed, ascending.
    pub removed: Vec<Digest>,
    /// Digests that are allowed now, ascending.
    pub added: Vec<Digest>,
}

/// What became of a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It has other digests.
    Changed,
}

/// What became of a set.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct SetChange {
    /// What is gone, ascending.
    pub removed: Vec<String>,
    /// What is new, ascending.
    pub added: Vec<String>,
}

impl SetChange {
    fn between(old: &BTreeSet<String>, new: &BTreeSet<String>) -> Self {
        Self {
            removed: old.difference(new).cloned().collect(),
            added: new.difference(old).cloned().collect(),
        }
    }

    /// Nothing?
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }
}

impl PolicyDiff {
    /// Is there nothing that distinguishes them?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Is it, if anything, the time at which they were made that distinguishes them?
    pub fn is_time_alone(&self) -> bool {
        let mut rest = self.clone();
        rest.members.remove(TIMESTAMP);
        rest.is_empty()
    }
}

const TIMESTAMP: &str = "/meta/timestamp";

impl PolicyDocument {
    /// What distinguishes `new` from this one.
    pub fn diff(&self, new: &Self) -> PolicyDiff {
        let (before, after) = (self.members(), new.members());
        let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        let members = names
            .into_iter()
            .map(|name| (name, [before.get(name).cloned(), after.get(name).cloned()]))
            .filter(|(_, [before, after])| before != after)
            .map(|(name, values)| (name.clone(), values))
            .collect();
        PolicyDiff {
            digests: names_between(&self.digests, &new.digests),
            keyrings: names_between(&self.keyrings, &new.keyrings),
            ima_buf: names_between(&self.ima_buf, &new.ima_buf),
            excludes: SetChange::between(&self.excludes, &new.excludes),
            ignored_keyrings: SetChange::between(&self.ignored_keyrings, &new.ignored_keyrings),
            verification_keys: SetChange::between(
                &fingerprints(&self.verification_keys),
                &fingerprints(&new.verification_keys),
            ),
            members,
        }
    }

    /// All that is no set.
    fn members(&self) -> BTreeMap<String, String> {
        let mut members = BTreeMap::from([
            ("/meta/version".to_owned(), self.version.to_string()),
            ("/meta/generator".to_owned(), self.generator.to_string()),
            ("/release".to_owned(), self.release.to_string()),
            (
                "/ima/log_hash_alg".to_owned(),
                quoted(self.log_hash_alg.name()),
            ),
            ("/ima/dm_policy".to_owned(), self.dm_policy().to_owned()),
        ]);
        if let Some(timestamp) = &self.timestamp {
            members.insert(TIMESTAMP.to_owned(), quoted(timestamp));
        }
        let mut add = |above: &str, others: &Members| {
            for (name, value) in &others.0 {
                let name = name.replace('~', "~0").replace('/', "~1");
                members.insert(format!("{above}/{name}"), value.to_string());
            }
        };
        add("/meta", &self.other_meta);
        add("/ima", &self.other_ima);
        add("/verification-keys", self.verification_keys.other());
        add("", &self.other);
        members
    }
}

fn names_between(old: &DigestNames, new: &DigestNames) -> BTreeMap<String, Change> {
    let gone = old.iter().filter(|(name, _)| new.get(name).is_empty());
    let gone = gone.map(|(name, digests)| {
        let change = Change {
            kind: ChangeKind::Removed,
            removed: digests.to_vec(),
            added: Vec::new(),
        };
        (name.to_owned(), change)
    });
    let other = new.iter().filter_map(|(name, digests)| {
        let before = old.get(name);
        let change = Change {
            kind: if before.is_empty() {
                ChangeKind::Added
            } else {
                ChangeKind::Changed
            },
            removed: without(before, digests),
            added: without(digests, before),
        };
        (before != digests).then(|| (name.to_owned(), change))
    });
    gone.chain(other).collect()
}

/// Those of `digests` that `others` lacks.
fn without(digests: &[Digest], others: &[Digest]) -> Vec<Digest> {
    let lacks = |digest: &&Digest| {
        let order = |other: &Digest| other.as_bytes().cmp(digest.as_bytes());
        others.binary_search_by(order).is_err()
    };
    digests.iter().filter(lacks).copied().collect()
}

fn fingerprints(keys: &VerificationKeys) -> BTreeSet<String> {
    use crate::tpm::HashAlgorithm::Sha256;
    keys.iter()
        .map(|(id, key)| format!("{id:08x}:{}", Sha256.digest(&[key])))
        .collect()
}
