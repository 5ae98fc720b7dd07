use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A boot policy of ours as it is written, in TOML or JSON.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    /// 1.
    pub(crate) version: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
    #[serde(default)]
    pub(crate) others: Others,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) partition_table: Option<AnyOr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) command_line: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secure_boot: Option<SecureBoot>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) mok: BTreeMap<String, AnyOr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) phases: Option<Phases>,
    /// PCR, as text in JSON and TOML alike, to the names of its events.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) order: BTreeMap<String, Vec<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) component: Vec<Component>,
}

/// What may be in PCRs that no rule speaks of.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Others {
    /// Nothing.
    #[default]
    Deny,
    /// Anything that replays.
    Allow,
}

/// Secure Boot: its state, its keys, and what they let run.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecureBoot {
    pub(crate) enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pk: Option<Vec<Key>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kek: Option<Vec<Key>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) db: Option<Vec<Key>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dbx: Option<Vec<Key>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) dbx_at_least: Vec<Key>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) authorities: Option<Vec<Key>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sbat: BTreeMap<String, u64>,
}

/// One component of the boot, by what was measured of it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Component {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pcr: Option<u8>,
    /// TCG name of the event's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) event: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) digests: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) text: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) signers: Vec<Key>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) any: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) min: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max: Option<u32>,
}

/// Phases of the boot that systemd measures into PCR 11.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Phases {
    /// All of them, in order.
    pub(crate) chain: Vec<String>,
    /// Which of them may be the last that was measured; all, if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) last: Vec<String>,
}

/// A key of a Secure Boot variable: `"sha256:HEX"`, or a table with what must be true of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Key {
    pub(crate) owner: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) sha256: Option<String>,
    pub(crate) subject: Option<String>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct KeyTable {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
}

/// `"any"`, or a list of digests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum AnyOr {
    Any,
    Digests(Vec<String>),
}

fn is_false(value: &bool) -> bool {
    !value
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;

        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key: \"sha256:HEX\", or a table with owner, type, sha256, subject")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Key, E> {
                Ok(Key {
                    sha256: Some(text.to_owned()),
                    ..Key::default()
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Key, A::Error> {
                let table = KeyTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Key {
                    owner: table.owner,
                    kind: table.kind,
                    sha256: table.sha256,
                    subject: table.subject,
                })
            }
        }

        deserializer.deserialize_any(KeyVisitor)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self {
                owner: None,
                kind: None,
                sha256: Some(text),
                subject: None,
            } => serializer.serialize_str(text),
            key => KeyTable {
                owner: key.owner.clone(),
                kind: key.kind.clone(),
                sha256: key.sha256.clone(),
                subject: key.subject.clone(),
            }
            .serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for AnyOr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyOrVisitor;

        impl<'de> Visitor<'de> for AnyOrVisitor {
            type Value = AnyOr;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"any\" or a list of digests")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<AnyOr, E> {
                match text {
                    "any" => Ok(AnyOr::Any),
                    _ => Err(E::custom("neither \"any\" nor a list of digests")),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<AnyOr, A::Error> {
                let mut digests = Vec::new();
                while let Some(digest) = items.next_element()? {
                    digests.push(digest);
                }
                Ok(AnyOr::Digests(digests))
            }
        }

        deserializer.deserialize_any(AnyOrVisitor)
    }
}

impl Serialize for AnyOr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("any"),
            Self::Digests(digests) => digests.serialize(serializer),
        }
    }
}
