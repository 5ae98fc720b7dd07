use std::collections::HashSet;

use super::digests::DigestTableBuilder;
use super::schema::{self, Ignored};
use super::{DigestTable, DmPolicy, Envelope, Excludes, PolicyDocument, PolicyError};
use crate::ima::{BOOT_AGGREGATE, Keyring, VerifiedSignatures};
use crate::tpm::{Digest, HashAlgorithm};

/// `generator` of the policy that stands for "no policy".
const EMPTY_ALLOWLIST: u8 = 1;

/// A runtime policy compiled once per content digest and shared by all nodes (`Arc`).
#[derive(Debug)]
pub struct RuntimePolicy {
    digests: DigestTable,
    keyrings: DigestTable,
    ima_buf: DigestTable,
    excludes: Excludes,
    ignored_keyrings: HashSet<String>,
    log_hash_alg: HashAlgorithm,
    dm_policy: Option<DmPolicy>,
    generator: u8,
    verification_keys: Keyring,
    verified: VerifiedSignatures,
    content_digest: Digest,
}

impl RuntimePolicy {
    /// Compiles Keylime's runtime policy JSON (version 1).
    ///
    /// # Errors
    /// A missing or malformed key is named, with line and column; so is an exclude pattern that
    /// is no regular expression. A name that occurs twice is an error: parsers disagree on which
    /// of the two counts.
    pub fn compile(json: &[u8]) -> Result<Self, PolicyError> {
        let document = schema::read::<DigestTableBuilder, Ignored>(json)?;
        let dm_policy = document.ima.dm_policy;
        Ok(Self {
            digests: document.digests,
            keyrings: document.keyrings,
            ima_buf: document.ima_buf,
            excludes: Excludes::compile(document.excludes.iter().map(String::as_str))?,
            ignored_keyrings: document.ima.ignored_keyrings.into_iter().collect(),
            log_hash_alg: document.ima.log_hash_alg,
            dm_policy: dm_policy.as_deref().map(DmPolicy::compile).transpose()?,
            generator: document.meta.generator,
            verification_keys: Keyring::from_json(&document.verification_keys)
                .map_err(|error| PolicyError::VerificationKeys(error.to_string()))?,
            verified: VerifiedSignatures::default(),
            content_digest: HashAlgorithm::Sha256.digest(&[json]),
        })
    }

    /// Compiles a policy, or the one inside a DSSE envelope. Who signed it is another question:
    /// [`Envelope::is_signed_by`].
    ///
    /// # Errors
    /// As [`Self::compile`], and those of [`Envelope::parse`].
    pub fn compile_text(text: &[u8]) -> Result<Self, PolicyError> {
        match Envelope::parse(text)? {
            Some(envelope) => Self::compile(envelope.payload()),
            None => Self::compile(text),
        }
    }

    /// Runtime policy JSON from a flat allowlist and an exclude file:
    /// [`PolicyDocument::from_allowlist`] as text.
    ///
    /// # Errors
    /// As there.
    pub fn json_from_allowlist(
        allowlist: &str,
        excludes: &str,
        timestamp: u64,
    ) -> Result<String, PolicyError> {
        PolicyDocument::from_allowlist(allowlist, excludes, timestamp).map(|made| made.to_json())
    }

    /// Runtime policy JSON from an IMA list: [`PolicyDocument::from_ima_list`] as text.
    ///
    /// # Errors
    /// As there.
    pub fn json_from_ima_list(list: &str, timestamp: u64) -> Result<String, PolicyError> {
        PolicyDocument::from_ima_list(list, timestamp).map(|made| made.to_json())
    }

    /// Files by path, and `boot_aggregate`.
    pub fn digests(&self) -> &DigestTable {
        &self.digests
    }

    /// Keys by keyring.
    pub fn keyrings(&self) -> &DigestTable {
        &self.keyrings
    }

    /// Measured buffers by name.
    pub fn ima_buf(&self) -> &DigestTable {
        &self.ima_buf
    }

    /// Paths that are not judged.
    pub fn excludes(&self) -> &Excludes {
        &self.excludes
    }

    /// Are the keys of `keyring` accepted unseen (listed in `ima.ignored_keyrings`, or `*` is)?
    pub fn ignores_keyring(&self, keyring: &str) -> bool {
        self.ignored_keyrings.contains("*") || self.ignored_keyrings.contains(keyring)
    }

    /// Which hash the list's template hashes are made with.
    pub fn log_hash_alg(&self) -> HashAlgorithm {
        self.log_hash_alg
    }

    /// What may be set up with the device mapper; `None`: its entries are buffers as others are.
    pub fn dm_policy(&self) -> Option<&DmPolicy> {
        self.dm_policy.as_ref()
    }

    /// Keylime's `meta.generator`: 0 unknown, 1 empty, 2 converted, 3 made from a legacy list.
    pub fn generator(&self) -> u8 {
        self.generator
    }

    /// Must the quote cover PCR 10, and the kernel have measured? Not for the empty policy, which stands for "no policy".
    pub fn requires_ima(&self) -> bool {
        let empty = self.digests.is_empty()
            && self.keyrings.is_empty()
            && self.ima_buf.is_empty()
            && self.excludes.is_empty()
            && self.verification_keys.is_empty()
            && self.dm_policy.is_none();
        !(empty && self.generator <= EMPTY_ALLOWLIST)
    }

    /// Does it list any file, key or buffer beside `boot_aggregate`, or keys for files?
    pub fn lists_files(&self) -> bool {
        let aggregate = usize::from(self.digests.get(BOOT_AGGREGATE).is_some());
        self.digests.len() > aggregate
            || !self.keyrings.is_empty()
            || !self.ima_buf.is_empty()
            || !self.verification_keys.is_empty()
    }

    /// Keys whose signatures stand in for digests.
    pub fn verification_keys(&self) -> &Keyring {
        &self.verification_keys
    }

    /// Signatures that were found good under this policy, on any node.
    pub(crate) fn verified_signatures(&self) -> &VerifiedSignatures {
        &self.verified
    }

    /// SHA-256 of the JSON text it was compiled from.
    pub fn content_digest(&self) -> &Digest {
        &self.content_digest
    }
}

#[cfg(test)]
mod tests;
