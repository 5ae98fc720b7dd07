use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::marker::PhantomData;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Value, value::RawValue};

use super::digests::ArenaFull;
use super::{MAX_RUNTIME_POLICY, PolicyError};
use crate::tpm::HashAlgorithm;

/// Collects names with their digests, in the order in which they are read.
pub(super) trait TableBuilder: Default {
    /// What becomes of them.
    type Table;

    /// Starts the record of `name`.
    fn name(&mut self, name: &str) -> Result<(), ArenaFull>;

    /// Adds a digest (20 to 64 bytes) to the record begun last.
    fn digest(&mut self, digest: &[u8]);

    /// The error is a name that occurs twice.
    fn build(self) -> Result<Self::Table, String>;
}

/// What becomes of members that the schema does not name.
pub(super) trait Others: Default {
    /// Takes the value of the member `name`.
    fn read<'de, A: MapAccess<'de>>(&mut self, name: String, map: &mut A) -> Result<(), A::Error>;
}

/// They are passed over.
#[derive(Debug, Default)]
pub(super) struct Ignored;

impl Others for Ignored {
    fn read<'de, A: MapAccess<'de>>(&mut self, _name: String, map: &mut A) -> Result<(), A::Error> {
        map.next_value::<IgnoredAny>().map(|_| ())
    }
}

/// They are kept by name, as JSON without white space between its tokens.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Members(pub(super) BTreeMap<String, Box<str>>);

impl Others for Members {
    fn read<'de, A: MapAccess<'de>>(&mut self, name: String, map: &mut A) -> Result<(), A::Error> {
        let value = compact(map.next_value::<Box<RawValue>>()?.get());
        match self.0.get(&name) {
            Some(_) => Err(A::Error::custom(format!("{name:?} occurs twice"))),
            None => {
                self.0.insert(name, value);
                Ok(())
            }
        }
    }
}

impl Members {
    /// The object.
    pub(super) fn to_json(&self) -> String {
        let mut out = String::from("{");
        for (index, (name, value)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            // Writing to a string does not fail.
            let _ = write!(out, "{separator}{}:{value}", Value::from(name.as_str()));
        }
        out + "}"
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = Members::default();
        while let Some(name) = map.next_key::<String>()? {
            members.read(name, &mut map)?;
        }
        Ok(members)
    }
}

/// JSON without what stands between its tokens.
fn compact(json: &str) -> Box<str> {
    let (mut text, mut escaped) = (false, false);
    let keep = |c: &char| {
        let keep = text || !c.is_ascii_whitespace();
        text ^= *c == '"' && !escaped;
        escaped = text && *c == '\\' && !escaped;
        keep
    };
    json.chars().filter(keep).collect::<String>().into()
}

/// A runtime policy as it is read. The big maps go straight into their tables.
#[derive(Debug)]
pub(super) struct Document<T, O> {
    pub(super) meta: Meta<O>,
    pub(super) release: u64,
    pub(super) digests: T,
    pub(super) excludes: Vec<String>,
    pub(super) keyrings: T,
    pub(super) ima: Ima<O>,
    pub(super) ima_buf: T,
    pub(super) verification_keys: String,
    pub(super) other: O,
}

#[derive(Debug)]
pub(super) struct Meta<O> {
    pub(super) version: u64,
    /// 0 to 3.
    pub(super) generator: u8,
    pub(super) timestamp: Option<String>,
    pub(super) other: O,
}

#[derive(Debug)]
pub(super) struct Ima<O> {
    pub(super) ignored_keyrings: Vec<String>,
    pub(super) log_hash_alg: HashAlgorithm,
    /// JSON without white space between its tokens.
    pub(super) dm_policy: Option<Box<str>>,
    pub(super) other: O,
}

/// Reads a runtime policy (version 1) into tables of `B`.
pub(super) fn read<B: TableBuilder, O: Others>(
    json: &[u8],
) -> Result<Document<B::Table, O>, PolicyError> {
    PolicyError::check_size(json.len(), MAX_RUNTIME_POLICY)?;
    let fail = |error| PolicyError::from_json(&error);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let document = deserializer
        .deserialize_map(DocumentVisitor::<B, O>(PhantomData))
        .map_err(fail)?;
    deserializer.end().map_err(fail)?;
    Ok(document)
}

struct DocumentVisitor<B, O>(PhantomData<(B, O)>);

impl<'de, B: TableBuilder, O: Others> Visitor<'de> for DocumentVisitor<B, O> {
    type Value = Document<B::Table, O>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a runtime policy object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut meta, mut ima, mut excludes) = (None, None, None);
        let (mut digests, mut keyrings, mut ima_buf) = (None, None, None);
        let (mut release, mut verification_keys) = (None, None);
        let mut other = O::default();
        let table = |name| Table::<B>(name, PhantomData);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "meta" => once(&mut meta, "meta", map.next_value()?)?,
                "release" => once(&mut release, "release", map.next_value()?)?,
                "digests" => {
                    let value = map.next_value_seed(table("digests"))?;
                    once(&mut digests, "digests", value)?;
                }
                "excludes" => once(&mut excludes, "excludes", map.next_value()?)?,
                "keyrings" => {
                    let value = map.next_value_seed(table("keyrings"))?;
                    once(&mut keyrings, "keyrings", value)?;
                }
                "ima" => once(&mut ima, "ima", map.next_value()?)?,
                "ima-buf" => {
                    let value = map.next_value_seed(table("ima-buf"))?;
                    once(&mut ima_buf, "ima-buf", value)?;
                }
                "verification-keys" => {
                    let value = map.next_value()?;
                    once(&mut verification_keys, "verification-keys", value)?;
                }
                _ => other.read(key, &mut map)?,
            }
        }
        let missing = A::Error::missing_field;
        Ok(Document {
            meta: meta.ok_or_else(|| missing("meta"))?,
            release: release.ok_or_else(|| missing("release"))?,
            digests: digests.ok_or_else(|| missing("digests"))?,
            excludes: excludes.ok_or_else(|| missing("excludes"))?,
            keyrings: keyrings.ok_or_else(|| missing("keyrings"))?,
            ima: ima.ok_or_else(|| missing("ima"))?,
            ima_buf: ima_buf.ok_or_else(|| missing("ima-buf"))?,
            verification_keys: verification_keys.ok_or_else(|| missing("verification-keys"))?,
            other,
        })
    }
}

impl<'de, O: Others> Deserialize<'de> for Meta<O> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetaVisitor(PhantomData))
    }
}

struct MetaVisitor<O>(PhantomData<O>);

impl<'de, O: Others> Visitor<'de> for MetaVisitor<O> {
    type Value = Meta<O>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object in `meta`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Meta<O>, A::Error> {
        let (mut version, mut generator, mut timestamp) = (None, None, None);
        let mut other = O::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" => once(&mut version, "version", map.next_value()?)?,
                "generator" => {
                    let Generator(value) = map.next_value()?;
                    once(&mut generator, "generator", value)?;
                }
                "timestamp" => once(&mut timestamp, "timestamp", map.next_value()?)?,
                _ => other.read(key, &mut map)?,
            }
        }
        Ok(Meta {
            version: version.ok_or_else(|| A::Error::missing_field("version"))?,
            generator: generator.ok_or_else(|| A::Error::missing_field("generator"))?,
            timestamp: timestamp.flatten(),
            other,
        })
    }
}

struct Generator(u8);

impl<'de> Deserialize<'de> for Generator {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            generator @ 0..=3 => Ok(Self(generator)),
            other => Err(D::Error::custom(format!(
                "meta.generator {other} is not 0, 1, 2 or 3"
            ))),
        }
    }
}

impl<'de, O: Others> Deserialize<'de> for Ima<O> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ImaVisitor(PhantomData))
    }
}

struct ImaVisitor<O>(PhantomData<O>);

impl<'de, O: Others> Visitor<'de> for ImaVisitor<O> {
    type Value = Ima<O>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object in `ima`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ima<O>, A::Error> {
        let (mut ignored_keyrings, mut log_hash_alg, mut dm_policy) = (None, None, None);
        let mut other = O::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "ignored_keyrings" => {
                    once(&mut ignored_keyrings, "ignored_keyrings", map.next_value()?)?;
                }
                "log_hash_alg" => {
                    let LogHashAlg(value) = map.next_value()?;
                    once(&mut log_hash_alg, "log_hash_alg", value)?;
                }
                "dm_policy" => {
                    let value = map.next_value::<Option<Box<RawValue>>>()?;
                    let value = value.map(|json| compact(json.get()));
                    once(&mut dm_policy, "dm_policy", value)?;
                }
                _ => other.read(key, &mut map)?,
            }
        }
        let missing = A::Error::missing_field;
        Ok(Ima {
            ignored_keyrings: ignored_keyrings.ok_or_else(|| missing("ignored_keyrings"))?,
            log_hash_alg: log_hash_alg.ok_or_else(|| missing("log_hash_alg"))?,
            dm_policy: dm_policy.flatten(),
            other,
        })
    }
}

struct LogHashAlg(HashAlgorithm);

impl<'de> Deserialize<'de> for LogHashAlg {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        HashAlgorithm::from_name(&name).map(Self).ok_or_else(|| {
            D::Error::custom(format!(
                "ima.log_hash_alg {name:?} is not sha1, sha256, sha384 or sha512"
            ))
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
struct Table<B>(&'static str, PhantomData<B>);

impl<'de, B: TableBuilder> DeserializeSeed<'de> for Table<B> {
    type Value = B::Table;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<B::Table, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, B: TableBuilder> Visitor<'de> for Table<B> {
    type Value = B::Table;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map from names to lists of digests in `{}`", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<B::Table, A::Error> {
        let mut builder = B::default();
        while map.next_key_seed(Name(&mut builder))?.is_some() {
            map.next_value_seed(Digests(&mut builder, self.0))?;
        }
        builder
            .build()
            .map_err(|name| A::Error::custom(format!("name {name:?} occurs twice in `{}`", self.0)))
    }
}

struct Name<'b, B>(&'b mut B);

impl<'de, B: TableBuilder> DeserializeSeed<'de> for Name<'_, B> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<B: TableBuilder> Visitor<'_> for Name<'_, B> {
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

struct Digests<'b, B>(&'b mut B, &'static str);

impl<'de, B: TableBuilder> DeserializeSeed<'de> for Digests<'_, B> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, B: TableBuilder> Visitor<'de> for Digests<'_, B> {
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

struct HexDigest<'b, B>(&'b mut B, &'static str);

impl<'de, B: TableBuilder> DeserializeSeed<'de> for HexDigest<'_, B> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<B: TableBuilder> Visitor<'_> for HexDigest<'_, B> {
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
