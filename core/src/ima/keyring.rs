use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{ImaKey, KeyFault};
use crate::tpm::Digest;

/// Longest JSON text of a keyring, in bytes.
const MAX_TEXT: usize = 1 << 20;
/// Most keys in a keyring.
pub(crate) const MAX_KEYS: usize = 256;
/// Most keys learned from one list, and bytes of them. A distribution has some ten.
const MAX_LEARNED: usize = 64;
const MAX_LEARNED_BYTES: usize = 16 << 10;
/// Longest name of a keyring that is remembered, in bytes.
const MAX_NAME: usize = 255;

/// Keys that an operator trusts to sign files, by id.
#[derive(Debug, Default)]
pub struct Keyring(Vec<ImaKey>);

/// Keylime's JSON of a keyring.
#[derive(Deserialize)]
struct Document {
    pubkeys: Vec<String>,
    #[serde(default)]
    keyids: Vec<Option<u32>>,
}

/// A keyring that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// Too long a text, or too many keys.
    #[error("a keyring has at most {MAX_KEYS} keys and 1 MiB")]
    TooLarge,
    /// Not the expected JSON; the text says where.
    #[error("not JSON with the lists `pubkeys` and `keyids`: {0}")]
    Json(String),
    /// A key that is none, by its place in `pubkeys`.
    #[error("pubkeys[{index}] cannot be used: {fault}")]
    Key {
        /// From 0.
        index: usize,
        /// Why.
        fault: KeyFault,
    },
}

impl Keyring {
    /// From Keylime's JSON: `pubkeys` with base64 of SubjectPublicKeyInfos in DER, and their
    /// `keyids`; an id that is missing, null or 0 is made of the key. No text, `null` and `{}` are a
    /// keyring without keys; a JSON string with JSON in it is that.
    ///
    /// # Errors
    /// Names what is wrong, and the key.
    pub fn from_json(text: &str) -> Result<Self, KeyringError> {
        let text = text.trim();
        if matches!(text, "" | "null" | "{}" | "[]") {
            return Ok(Self::default());
        }
        if text.len() > MAX_TEXT {
            return Err(KeyringError::TooLarge);
        }
        if text.starts_with('"') {
            let inner: String = parse(text)?;
            let inner = inner.trim();
            // Once only: there is no end of quotes else.
            return if inner.starts_with('"') {
                Err(KeyringError::Json("quoted more than once".to_owned()))
            } else {
                Self::from_json(inner)
            };
        }
        let document: Document = parse(text)?;
        if document.pubkeys.len() > MAX_KEYS {
            return Err(KeyringError::TooLarge);
        }
        let mut keys: Vec<ImaKey> = Vec::new();
        for (index, key) in document.pubkeys.iter().enumerate() {
            let fail = |fault| KeyringError::Key { index, fault };
            let der = STANDARD.decode(key).map_err(|_| fail(KeyFault::NotAKey))?;
            let id = document.keyids.get(index).copied().flatten();
            let key = ImaKey::from_spki(&der, id).map_err(fail)?;
            match keys.iter_mut().find(|other| other.id() == key.id()) {
                Some(other) => *other = key,
                None => keys.push(key),
            }
        }
        Ok(Self(keys))
    }

    /// The key of an id.
    pub fn get(&self, id: u32) -> Option<&ImaKey> {
        self.0.iter().find(|key| key.id() == id)
    }

    /// No keys?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, KeyringError> {
    serde_json::from_str(text).map_err(|error| KeyringError::Json(error.to_string()))
}

/// Keys learned from a list: each was measured when it was added to a keyring, and allowed. They
/// are part of the position that they were learned up to.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(transparent)]
pub struct LearnedKeys(Vec<LearnedKey>);

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct LearnedKey {
    keyring: String,
    /// Of what was measured, a key or a certificate: what a policy allows it by. `None`, where it
    /// was not recorded: nothing allows it, and the list is read again.
    #[serde(default)]
    digest: Option<Digest>,
    id: u32,
    /// SubjectPublicKeyInfo.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    key: Vec<u8>,
}

impl LearnedKeys {
    /// Adds a key, which was measured with `digest`. False: there are as many as are kept of one
    /// node.
    pub(crate) fn learn(&mut self, keyring: &str, digest: &Digest, key: &ImaKey) -> bool {
        let learned = LearnedKey {
            keyring: keyring.to_owned(),
            digest: Some(*digest),
            id: key.id(),
            key: key.spki().to_owned(),
        };
        let of_ring = |other: &LearnedKey| other.keyring == keyring;
        let place = self
            .0
            .iter()
            .position(|other| of_ring(other) && other.id == key.id());
        let replaced = place.and_then(|place| self.0.get(place));
        let replaced = replaced.map_or(0, |other| other.key.len());
        let bytes: usize = self.0.iter().map(|other| other.key.len()).sum();
        if bytes - replaced + learned.key.len() > MAX_LEARNED_BYTES {
            return false;
        }
        if let Some(place) = place {
            self.0[place] = learned;
            return true;
        }
        if keyring.len() > MAX_NAME || self.0.len() >= MAX_LEARNED {
            return false;
        }
        // A keyring's keys stay together: the first keyring with an id is the one that counts.
        let place = self
            .0
            .iter()
            .rposition(of_ring)
            .map_or(self.0.len(), |last| last + 1);
        self.0.insert(place, learned);
        true
    }

    /// The key of an id: the first one that is `allowed`, by its keyring and digest.
    pub(crate) fn get(
        &self,
        id: u32,
        mut allowed: impl FnMut(&str, &Digest) -> bool,
    ) -> Option<ImaKey> {
        let mut keys = self.0.iter();
        let mut counts = |key: &LearnedKey| {
            let digest = key.digest.as_ref();
            digest.is_some_and(|digest| allowed(&key.keyring, digest))
        };
        let learned = keys.find(|key| key.id == id && counts(key))?;
        ImaKey::from_spki(&learned.key, Some(id)).ok()
    }

    /// Is it known of each by what a policy allows it?
    pub(crate) fn are_whole(&self) -> bool {
        self.0.iter().all(|key| key.digest.is_some())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn to_base64<S: Serializer>(key: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(key))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    use super::*;
    use crate::tpm::HashAlgorithm;

    #[test]
    fn keys_that_take_the_place_of_smaller_ones_are_bounded_too() {
        let small = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let small = small.public_key().as_der().unwrap();
        let large = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let large = large.public_key().as_der().unwrap();
        let mut keys = LearnedKeys::default();
        let mut learn = |spki: &[u8], id| {
            let key = ImaKey::from_spki(spki, Some(id)).unwrap();
            keys.learn(".ima", &Digest::zero(HashAlgorithm::Sha256), &key)
        };
        assert!((1..=64).all(|id| learn(small.as_ref(), id)));
        assert!(learn(large.as_ref(), 1));
        assert!(!(2..=64).all(|id| learn(large.as_ref(), id)));
        let bytes: usize = keys.0.iter().map(|key| key.key.len()).sum();
        assert!(bytes <= MAX_LEARNED_BYTES, "{bytes}");
    }
}
