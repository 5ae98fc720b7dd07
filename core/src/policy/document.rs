/// What distinguishes two documents.
mod diff;
/// Keys whose signatures of files count.
mod keys;
/// Two documents as one.
mod merge;
/// Names with their allowed digests, sorted.
mod names;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;

pub use self::diff::{Change, ChangeKind, PolicyDiff, SetChange};
pub use self::keys::VerificationKeys;
pub use self::names::DigestNames;
use self::names::NamesBuilder;
use super::schema::{self, Ima, Members, Meta};
use super::{DmPolicy, Excludes, PolicyError};
use crate::time::utc;
use crate::tpm::{Digest, HashAlgorithm};

/// `meta.version` of what is written here.
const VERSION: u64 = 1;
/// `meta.generator` of a policy that was made from a list.
const LEGACY_ALLOW_LIST: u8 = 3;

/// A runtime policy that can be changed and written: Keylime's JSON, version 1, with all its
/// members, those included that the schema does not name.
///
/// Sets are kept sorted and without duplicates, so that equal policies are equal texts. The order
/// of names, digests and patterns has no meaning. [`super::RuntimePolicy`] is the form to judge by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyDocument {
    version: u64,
    generator: u8,
    timestamp: Option<String>,
    release: u64,
    digests: DigestNames,
    excludes: BTreeSet<String>,
    keyrings: DigestNames,
    ignored_keyrings: BTreeSet<String>,
    log_hash_alg: HashAlgorithm,
    /// JSON without white space between its tokens.
    dm_policy: Option<Box<str>>,
    ima_buf: DigestNames,
    verification_keys: VerificationKeys,
    /// Members of `meta`, of `ima` and of the document that the schema does not name.
    other_meta: Members,
    other_ima: Members,
    other: Members,
}

impl PolicyDocument {
    /// Allows nothing yet; `timestamp` is Unix seconds.
    pub fn new(timestamp: u64) -> Self {
        Self {
            version: VERSION,
            generator: LEGACY_ALLOW_LIST,
            timestamp: Some(timestamp_text(timestamp)),
            release: 0,
            digests: DigestNames::default(),
            excludes: BTreeSet::new(),
            keyrings: DigestNames::default(),
            ignored_keyrings: BTreeSet::new(),
            // What kernels print for the template hash, whatever the bank.
            log_hash_alg: HashAlgorithm::Sha1,
            dm_policy: None,
            ima_buf: DigestNames::default(),
            verification_keys: VerificationKeys::default(),
            other_meta: Members::default(),
            other_ima: Members::default(),
            other: Members::default(),
        }
    }

    /// Reads Keylime's runtime policy JSON (version 1), whoever signed it: no envelope.
    ///
    /// # Errors
    /// Those of [`super::RuntimePolicy::compile`], an unknown member that occurs twice, and
    /// `verification-keys` that are not Keylime's.
    pub fn parse(json: &[u8]) -> Result<Self, PolicyError> {
        let read = schema::read::<NamesBuilder, Members>(json)?;
        Excludes::compile(read.excludes.iter().map(String::as_str))?;
        let schema::Document { meta, ima, .. } = read;
        let Meta {
            version,
            generator,
            timestamp,
            other: other_meta,
        } = meta;
        let Ima {
            ignored_keyrings,
            log_hash_alg,
            dm_policy,
            other: other_ima,
        } = ima;
        if let Some(json) = &dm_policy {
            DmPolicy::compile(json)?;
        }
        Ok(Self {
            version,
            generator,
            timestamp,
            release: read.release,
            digests: read.digests,
            excludes: read.excludes.into_iter().collect(),
            keyrings: read.keyrings,
            ignored_keyrings: ignored_keyrings.into_iter().collect(),
            log_hash_alg,
            dm_policy,
            ima_buf: read.ima_buf,
            verification_keys: VerificationKeys::parse(&read.verification_keys)?,
            other_meta,
            other_ima,
            other: read.other,
        })
    }

    /// Allows `digest` for the name `name` of an IMA list; whether it was new.
    ///
    /// # Errors
    /// [`PolicyError::Digest`] unless the digest has 20 to 64 bytes.
    pub fn add_digest(&mut self, name: &str, digest: Digest) -> Result<bool, PolicyError> {
        self.digests.add(name, digest)
    }

    /// Allows `digest` for the file `path`, under the name that the kernel writes for it.
    ///
    /// # Errors
    /// As [`Self::add_digest`].
    pub fn add_file(&mut self, path: &str, digest: Digest) -> Result<bool, PolicyError> {
        self.digests.add(&measured_name(path), digest)
    }

    /// Allows a key with this digest in `keyring`; whether it was new.
    ///
    /// # Errors
    /// As [`Self::add_digest`].
    pub fn add_keyring(&mut self, keyring: &str, digest: Digest) -> Result<bool, PolicyError> {
        self.keyrings.add(keyring, digest)
    }

    /// Allows `digest` for the measured buffer `name`; whether it was new.
    ///
    /// # Errors
    /// As [`Self::add_digest`].
    pub fn add_buffer(&mut self, name: &str, digest: Digest) -> Result<bool, PolicyError> {
        self.ima_buf.add(name, digest)
    }

    /// Leaves out paths that match `patterns`.
    ///
    /// # Errors
    /// Names the pattern that is no regular expression, or the one that makes all of them too
    /// large; nothing is added then.
    pub fn add_excludes<'p>(
        &mut self,
        patterns: impl IntoIterator<Item = &'p str>,
    ) -> Result<(), PolicyError> {
        let mut excludes = self.excludes.clone();
        excludes.extend(patterns.into_iter().map(str::to_owned));
        Excludes::compile(excludes.iter().map(String::as_str))?;
        self.excludes = excludes;
        Ok(())
    }

    /// Accepts the keys of `keyring` unseen, `*` those of all; whether it was new.
    pub fn add_ignored_keyring(&mut self, keyring: &str) -> bool {
        self.ignored_keyrings.insert(keyring.to_owned())
    }

    /// Accepts files that the holder of a key signed: [`VerificationKeys::add`].
    ///
    /// # Errors
    /// As there.
    pub fn add_verification_key(
        &mut self,
        id: Option<u32>,
        spki: &[u8],
    ) -> Result<bool, PolicyError> {
        self.verification_keys.add(id, spki)
    }

    /// Says which hash the list's template hashes are made with.
    pub fn set_log_hash_alg(&mut self, algorithm: HashAlgorithm) {
        self.log_hash_alg = algorithm;
    }

    /// Says when it was made, in Unix seconds.
    pub fn set_timestamp(&mut self, timestamp: u64) {
        self.timestamp = Some(timestamp_text(timestamp));
    }

    /// Gives files the names that the kernel writes for them.
    pub(super) fn rename_as_measured(&mut self) -> Result<(), PolicyError> {
        let digests = std::mem::take(&mut self.digests);
        for (name, digests) in digests.iter() {
            for digest in digests {
                self.add_file(name, *digest)?;
            }
        }
        Ok(())
    }

    /// Files by name, and `boot_aggregate`.
    pub fn digests(&self) -> &DigestNames {
        &self.digests
    }

    /// Keys by keyring.
    pub fn keyrings(&self) -> &DigestNames {
        &self.keyrings
    }

    /// Measured buffers by name.
    pub fn ima_buf(&self) -> &DigestNames {
        &self.ima_buf
    }

    /// Patterns of names that are not judged.
    pub fn excludes(&self) -> impl ExactSizeIterator<Item = &str> {
        self.excludes.iter().map(String::as_str)
    }

    /// Keyrings whose keys are accepted unseen.
    pub fn ignored_keyrings(&self) -> impl ExactSizeIterator<Item = &str> {
        self.ignored_keyrings.iter().map(String::as_str)
    }

    /// Keys whose signatures of files count.
    pub fn verification_keys(&self) -> &VerificationKeys {
        &self.verification_keys
    }

    /// Which hash the list's template hashes are made with.
    pub fn log_hash_alg(&self) -> HashAlgorithm {
        self.log_hash_alg
    }

    /// What may be set up with the device mapper: the JSON text, or `null`.
    pub fn dm_policy(&self) -> &str {
        self.dm_policy.as_deref().unwrap_or("null")
    }

    /// `meta.version`.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Keylime's `meta.generator`: 0 unknown, 1 empty, 2 converted, 3 made from a list.
    pub fn generator(&self) -> u8 {
        self.generator
    }

    /// When it was made, as it is written: `YYYY-MM-DD HH:MM:SS.ffffff`, in UTC if made here.
    pub fn timestamp(&self) -> Option<&str> {
        self.timestamp.as_deref()
    }

    /// The JSON text, which is the same for equal documents: members in the order of Keylime's
    /// schema, then the others; each set sorted, one name a line.
    pub fn to_json(&self) -> String {
        let mut out = String::from("{\n\"meta\": {");
        out += &format!("\"version\": {}, ", self.version);
        out += &format!("\"generator\": {}", self.generator);
        if let Some(timestamp) = &self.timestamp {
            out += &format!(", \"timestamp\": {}", quoted(timestamp));
        }
        write_members(&mut out, ", ", &self.other_meta);
        out += &format!("}},\n\"release\": {},\n\"digests\": ", self.release);
        self.digests.write(&mut out);
        out += ",\n\"excludes\": ";
        write_list(&mut out, &self.excludes);
        out += ",\n\"keyrings\": ";
        self.keyrings.write(&mut out);
        out += ",\n\"ima\": {\"ignored_keyrings\": ";
        write_list(&mut out, &self.ignored_keyrings);
        out += &format!(", \"log_hash_alg\": \"{}\", ", self.log_hash_alg);
        out += &format!("\"dm_policy\": {}", self.dm_policy());
        write_members(&mut out, ", ", &self.other_ima);
        out += "},\n\"ima-buf\": ";
        self.ima_buf.write(&mut out);
        out += ",\n\"verification-keys\": ";
        out += &quoted(&self.verification_keys.to_json());
        write_members(&mut out, ",\n", &self.other);
        out += "\n}\n";
        out
    }
}

/// The name that the kernel writes into the IMA list for a path: spaces become underscores.
pub fn measured_name(path: &str) -> Cow<'_, str> {
    if path.contains(' ') {
        path.replace(' ', "_").into()
    } else {
        path.into()
    }
}

/// `text` as a JSON string.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn write_list(out: &mut String, list: &BTreeSet<String>) {
    out.push('[');
    for (index, text) in list.iter().enumerate() {
        out.push_str(if index == 0 { "\n" } else { ",\n" });
        out.push_str(&quoted(text));
    }
    out.push_str(if list.is_empty() { "]" } else { "\n]" });
}

fn write_members(out: &mut String, separator: &str, members: &Members) {
    for (name, value) in &members.0 {
        // Writing to a string does not fail.
        let _ = write!(out, "{separator}{}: {value}", quoted(name));
    }
}

/// Keylime's form of a time: with microseconds, of which there are none.
fn timestamp_text(timestamp: u64) -> String {
    utc(timestamp) + ".000000"
}

#[cfg(test)]
mod tests;
