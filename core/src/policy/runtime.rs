use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::digests::DigestTableBuilder;
use super::{DigestTable, Envelope, Excludes, MAX_RUNTIME_POLICY, PolicyError, convert};
use crate::ima::BOOT_AGGREGATE;
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
    generator: u8,
    verification_keys: bool,
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
        PolicyError::check_size(json.len(), MAX_RUNTIME_POLICY)?;
        let document: Document =
            serde_json::from_slice(json).map_err(|e| PolicyError::from_json(&e))?;
        Ok(Self {
            digests: document.digests,
            keyrings: document.keyrings,
            ima_buf: document.ima_buf,
            excludes: Excludes::compile(document.excludes.iter().map(String::as_str))?,
            ignored_keyrings: document.ima.ignored_keyrings.into_iter().collect(),
            log_hash_alg: document.ima.log_hash_alg,
            generator: document.meta.generator,
            verification_keys: document.verification_keys,
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

    /// Runtime policy JSON from a flat allowlist (`<hex> <path>` lines; `%keyring:<name>` for
    /// keyrings) and an exclude file (one regular expression a line, `#` comments); `timestamp`
    /// is Unix seconds.
    ///
    /// # Errors
    /// Names the line, or the pattern that is no regular expression.
    pub fn json_from_allowlist(
        allowlist: &str,
        excludes: &str,
        timestamp: u64,
    ) -> Result<String, PolicyError> {
        convert::from_allowlist(allowlist, excludes, timestamp)
    }

    /// Runtime policy JSON that allows exactly the files, keys and buffers of an IMA list;
    /// `timestamp` is Unix seconds. Violations allow nothing.
    ///
    /// # Errors
    /// Names the entry that does not parse.
    pub fn json_from_ima_list(list: &str, timestamp: u64) -> Result<String, PolicyError> {
        convert::from_ima_list(list, timestamp)
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

    /// Keylime's `meta.generator`: 0 unknown, 1 empty, 2 converted, 3 made from a legacy list.
    pub fn generator(&self) -> u8 {
        self.generator
    }

    /// Must the quote cover PCR 10, and the kernel have measured? Not for the empty policy, which stands for "no policy".
    pub fn requires_ima(&self) -> bool {
        let empty = self.digests.is_empty()
            && self.keyrings.is_empty()
            && self.ima_buf.is_empty()
            && self.excludes.is_empty();
        !(empty && self.generator <= EMPTY_ALLOWLIST)
    }

    /// Does it list any file, key or buffer beside `boot_aggregate`?
    pub fn lists_files(&self) -> bool {
        let aggregate = usize::from(self.digests.get(BOOT_AGGREGATE).is_some());
        self.digests.len() > aggregate || !self.keyrings.is_empty() || !self.ima_buf.is_empty()
    }

    /// Does it name keys whose signatures stand in for digests?
    pub fn has_verification_keys(&self) -> bool {
        self.verification_keys
    }

    /// SHA-256 of the JSON text it was compiled from.
    pub fn content_digest(&self) -> &Digest {
        &self.content_digest
    }
}

/// The JSON document; the big maps go straight into their arenas.
struct Document {
    meta: Meta,
    digests: DigestTable,
    keyrings: DigestTable,
    ima_buf: DigestTable,
    excludes: Vec<String>,
    ima: Ima,
    verification_keys: bool,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(rename = "version")]
    _version: u64,
    #[serde(deserialize_with = "generator")]
    generator: u8,
    #[serde(rename = "timestamp", default)]
    _timestamp: Option<String>,
}

fn generator<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    match u8::deserialize(deserializer)? {
        generator @ 0..=3 => Ok(generator),
        other => Err(D::Error::custom(format!(
            "meta.generator {other} is not 0, 1, 2 or 3"
        ))),
    }
}

#[derive(Deserialize)]
struct Ima {
    ignored_keyrings: Vec<String>,
    #[serde(deserialize_with = "log_hash_alg")]
    log_hash_alg: HashAlgorithm,
    #[serde(rename = "dm_policy", default, deserialize_with = "no_dm_policy")]
    _dm_policy: (),
}

fn log_hash_alg<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HashAlgorithm, D::Error> {
    let name = String::deserialize(deserializer)?;
    HashAlgorithm::from_name(&name).ok_or_else(|| {
        D::Error::custom(format!(
            "ima.log_hash_alg {name:?} is not sha1, sha256, sha384 or sha512"
        ))
    })
}

fn no_dm_policy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    match Option::<IgnoredAny>::deserialize(deserializer)? {
        None => Ok(()),
        Some(_) => Err(D::Error::custom("ima.dm_policy must be null")),
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a runtime policy object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let (mut meta, mut ima, mut excludes) = (None, None, None);
        let (mut digests, mut keyrings, mut ima_buf) = (None, None, None);
        let (mut release, mut keys) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "meta" => once(&mut meta, "meta", map.next_value::<Meta>()?)?,
                "release" => once(&mut release, "release", map.next_value::<u64>()?)?,
                "digests" => once(
                    &mut digests,
                    "digests",
                    map.next_value_seed(Table("digests"))?,
                )?,
                "excludes" => once(&mut excludes, "excludes", map.next_value::<Vec<String>>()?)?,
                "keyrings" => {
                    once(
                        &mut keyrings,
                        "keyrings",
                        map.next_value_seed(Table("keyrings"))?,
                    )?;
                }
                "ima" => once(&mut ima, "ima", map.next_value::<Ima>()?)?,
                "ima-buf" => once(
                    &mut ima_buf,
                    "ima-buf",
                    map.next_value_seed(Table("ima-buf"))?,
                )?,
                "verification-keys" => {
                    once(&mut keys, "verification-keys", map.next_value::<String>()?)?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let missing = A::Error::missing_field;
        release.ok_or_else(|| missing("release"))?;
        let keys = keys.ok_or_else(|| missing("verification-keys"))?;
        Ok(Document {
            meta: meta.ok_or_else(|| missing("meta"))?,
            digests: digests.ok_or_else(|| missing("digests"))?,
            keyrings: keyrings.ok_or_else(|| missing("keyrings"))?,
            ima_buf: ima_buf.ok_or_else(|| missing("ima-buf"))?,
            excludes: excludes.ok_or_else(|| missing("excludes"))?,
            ima: ima.ok_or_else(|| missing("ima"))?,
            verification_keys: !keys.is_empty(),
        })
    }
}

fn once<T, E: Error>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), E> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(E::duplicate_field(name)),
    }
}

/// A map from names to non-empty lists of hex digests; the text is the key it stands under.
#[derive(Clone, Copy)]
struct Table(&'static str);

impl<'de> DeserializeSeed<'de> for Table {
    type Value = DigestTable;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<DigestTable, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Table {
    type Value = DigestTable;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map from names to lists of digests in `{}`", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<DigestTable, A::Error> {
        let mut builder = DigestTableBuilder::default();
        while map.next_key_seed(Name(&mut builder))?.is_some() {
            map.next_value_seed(Digests(&mut builder, self.0))?;
        }
        builder
            .build()
            .map_err(|name| A::Error::custom(format!("name {name:?} occurs twice in `{}`", self.0)))
    }
}

struct Name<'b>(&'b mut DigestTableBuilder);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<(), E> {
        self.0
            .name(name)
            .map_err(|_| E::custom("names and digests exceed 4 GiB"))
    }
}

struct Digests<'b>(&'b mut DigestTableBuilder, &'static str);

impl<'de> DeserializeSeed<'de> for Digests<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Digests<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a non-empty list of digests in `{}`", self.1)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut empty = true;
        while list.next_element_seed(HexDigest(self.0, self.1))?.is_some() {
            empty = false;
        }
        if empty {
            Err(A::Error::invalid_length(0, &self))
        } else {
            Ok(())
        }
    }
}

struct HexDigest<'b>(&'b mut DigestTableBuilder, &'static str);

impl<'de> DeserializeSeed<'de> for HexDigest<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for HexDigest<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a digest of 40 to 128 lower-case hex digits in `{}`",
            self.1
        )
    }

    fn visit_str<E: Error>(self, hex: &str) -> Result<(), E> {
        let mut bytes = [0; 64];
        let decoded = bytes
            .get_mut(..hex.len() / 2)
            .filter(|_| hex.len() >= 40 && !hex.bytes().any(|b| b.is_ascii_uppercase()))
            .and_then(|digest| hex::decode_to_slice(hex, digest).ok().map(|()| &*digest));
        let Some(digest) = decoded else {
            let shown: String = hex.chars().take(130).collect();
            return Err(E::invalid_value(serde::de::Unexpected::Str(&shown), &self));
        };
        self.0.digest(digest);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
