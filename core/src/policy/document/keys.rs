use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::ima::{ImaKey, MAX_KEYS};
use crate::policy::schema::Members;
use crate::policy::{MAX_SMALL_POLICY, PolicyError};

/// Keys whose signatures of files stand in for digests: Keylime's `verification-keys`, which is
/// JSON inside a string.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct VerificationKeys {
    /// DER SubjectPublicKeyInfo by key id.
    keys: BTreeMap<u32, Box<[u8]>>,
    /// Members that are not Keylime's.
    other: Members,
}

#[derive(Deserialize)]
struct Keyring {
    #[serde(default)]
    keyids: Vec<u32>,
    pubkeys: Vec<String>,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

impl VerificationKeys {
    /// Reads Keylime's JSON of keys, as it is in the member; `""` is no keys. An id that is missing or
    /// 0 is computed.
    ///
    /// # Errors
    /// [`PolicyError::VerificationKeys`] names what is no key.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let fail = |reason: String| PolicyError::VerificationKeys(reason);
        if text.is_empty() {
            return Ok(Self::default());
        }
        PolicyError::check_size(text.len(), MAX_SMALL_POLICY)?;
        let keyring: Keyring =
            serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        if keyring.keyids.len() > keyring.pubkeys.len() {
            return Err(fail("more keyids than pubkeys".to_owned()));
        }
        let mut keys = Self::default();
        for (index, key) in keyring.pubkeys.iter().enumerate() {
            let spki = STANDARD
                .decode(key)
                .map_err(|_| fail(format!("pubkeys[{index}] is not base64")))?;
            let id = keyring.keyids.get(index).copied().filter(|id| *id != 0);
            keys.add(id, &spki)?;
        }
        keys.other.0 = keyring
            .other
            .into_iter()
            .map(|(name, value)| (name, value.to_string().into()))
            .collect();
        Ok(keys)
    }

    /// Adds a key (DER SubjectPublicKeyInfo, RSA or EC); whether it was new. The id is what the
    /// signatures of its holder name: of a certificate the last four bytes of the
    /// SubjectKeyIdentifier, else (`None`) those of SHA-1 over the key.
    ///
    /// # Errors
    /// [`PolicyError::VerificationKeys`] for another kind of key, and for another key of this id.
    pub fn add(&mut self, id: Option<u32>, spki: &[u8]) -> Result<bool, PolicyError> {
        let fail = |reason: String| PolicyError::VerificationKeys(reason);
        let key = ImaKey::from_spki(spki, id).map_err(|fault| fail(fault.to_string()))?;
        let id = key.id();
        match self.keys.get(&id) {
            Some(key) if **key == *spki => Ok(false),
            Some(_) => Err(fail(format!("two keys have the id {id:08x}"))),
            None if self.keys.len() >= MAX_KEYS => Err(fail(format!("more than {MAX_KEYS} keys"))),
            None => {
                self.keys.insert(id, spki.into());
                Ok(true)
            }
        }
    }

    /// The id of a key without a certificate; `None`: no signature of a file can be checked by it.
    pub fn id(spki: &[u8]) -> Option<u32> {
        ImaKey::from_spki(spki, None).ok().map(|key| key.id())
    }

    /// Key ids, ascending, with the keys as DER SubjectPublicKeyInfo.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, &[u8])> {
        self.keys.iter().map(|(id, key)| (*id, &**key))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// No keys?
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn other(&self) -> &Members {
        &self.other
    }

    pub(super) fn other_mut(&mut self) -> &mut Members {
        &mut self.other
    }

    /// Keylime's JSON of the keys; `""` for none.
    pub fn to_json(&self) -> String {
        if self.keys.is_empty() && self.other.0.is_empty() {
            return String::new();
        }
        let ids: Vec<_> = self.keys.keys().map(u32::to_string).collect();
        let keys = self.keys.values();
        let keys: Vec<_> = keys
            .map(|key| format!("\"{}\"", STANDARD.encode(key)))
            .collect();
        let mut out = String::from("{");
        out += &format!("\"keyids\": [{}], ", ids.join(", "));
        out += &format!("\"pubkeys\": [{}]", keys.join(", "));
        super::write_members(&mut out, ", ", &self.other);
        out + "}"
    }
}
