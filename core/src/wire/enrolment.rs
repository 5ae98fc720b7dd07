use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{SecretText, port_or_text};

/// Members that must be there, if only as null or `""`: with one that was forgotten, a node would
/// be judged by less than its operator thinks.
const REQUIRED: [&str; 13] = [
    "cloudagent_ip",
    "cloudagent_port",
    "tpm_policy",
    "metadata",
    "runtime_policy",
    "mb_policy",
    "mb_policy_name",
    "ima_sign_verification_keys",
    "revocation_key",
    "accept_tpm_hash_algs",
    "accept_tpm_encryption_algs",
    "accept_tpm_signing_algs",
    "ak_tpm",
];

/// `POST /v2.x/agents/{id}` at the verifier (enrol).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Enrolment {
    /// base64 V share.
    #[serde(default)]
    pub v: Option<SecretText>,
    /// Agent address.
    #[serde(default)]
    pub cloudagent_ip: Option<String>,
    /// Agent port; Keylime sends a string or a number.
    #[serde(default, deserialize_with = "port_or_text")]
    pub cloudagent_port: Option<u16>,
    /// Where operators are to find the verifier; by default, where it listens.
    #[serde(default)]
    pub verifier_ip: Option<String>,
    /// Its port.
    #[serde(default, deserialize_with = "port_or_text")]
    pub verifier_port: Option<u16>,
    /// TPM policy, JSON text with `mask`.
    pub tpm_policy: String,
    /// JSON text.
    pub metadata: String,
    /// base64 policy JSON, or `""`.
    pub runtime_policy: Option<String>,
    /// Name of a stored policy, or the name to store this one under.
    #[serde(default)]
    pub runtime_policy_name: Option<String>,
    /// base64 PEM public key.
    #[serde(default)]
    pub runtime_policy_key: Option<String>,
    /// Boot policy, JSON text; null: no measured boot.
    pub mb_policy: Option<String>,
    /// Name of a stored boot policy.
    pub mb_policy_name: Option<String>,
    /// Keyring JSON text or `""`.
    pub ima_sign_verification_keys: Option<String>,
    /// PEM of a private key, or `""`.
    pub revocation_key: Option<SecretText>,
    /// Accepted hash algorithms.
    pub accept_tpm_hash_algs: Vec<String>,
    /// Accepted AK algorithms.
    pub accept_tpm_encryption_algs: Vec<String>,
    /// Accepted schemes.
    pub accept_tpm_signing_algs: Vec<String>,
    /// base64 TPM2B_PUBLIC of the AK.
    pub ak_tpm: String,
    /// PEM or `disabled`.
    pub mtls_cert: Option<String>,
    /// Agent API version.
    #[serde(default)]
    pub supported_version: Option<String>,
}

impl Enrolment {
    /// From a request's body.
    ///
    /// # Errors
    /// Names the member that is missing, or says where the JSON is not as expected.
    pub fn from_json(body: &[u8]) -> Result<Self, EnrolmentError> {
        let mut seen = Seen::default();
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = Watching(&mut seen)
            .deserialize(&mut json)
            .and_then(|enrolment| json.end().map(|()| enrolment));
        // What is wrong further on is not known of a member that was not come to.
        if seen.all
            && let Some(name) = seen.missing()
        {
            return Err(EnrolmentError::Missing(name));
        }
        Ok(read?)
    }
}

/// An enrolment that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolmentError {
    /// A member that must be there. Clients of Keylime know the beginning of the text.
    #[error("Exception error: '{0}' is missing from the enrolment")]
    Missing(&'static str),
    /// Not JSON, or a member of another type.
    #[error("body: {0}")]
    Json(#[from] serde_json::Error),
}

/// Which of the required members an object has.
#[derive(Default)]
struct Seen {
    present: [bool; REQUIRED.len()],
    /// Was the object read to its end?
    all: bool,
}

impl Seen {
    fn missing(&self) -> Option<&'static str> {
        let mut members = REQUIRED.into_iter().zip(self.present);
        members.find_map(|(name, present)| (!present).then_some(name))
    }
}

/// Reads an enrolment, and keeps in mind which members it has.
struct Watching<'a>(&'a mut Seen);

impl<'de> DeserializeSeed<'de> for Watching<'_> {
    type Value = Enrolment;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Enrolment, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Watching<'_> {
    type Value = Enrolment;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an enrolment")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Enrolment, A::Error> {
        let watched = Watched { map, seen: self.0 };
        Enrolment::deserialize(MapAccessDeserializer::new(watched))
    }
}

struct Watched<'a, A> {
    map: A,
    seen: &'a mut Seen,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Watched<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Some(key) = self.map.next_key::<String>()? else {
            self.seen.all = true;
            return Ok(None);
        };
        for (name, present) in REQUIRED.iter().zip(&mut self.seen.present) {
            *present |= key == *name;
        }
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: &Value) -> Result<Enrolment, EnrolmentError> {
        Enrolment::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn a_tenants_enrolment_is_read() {
        let enrolment = read(&json!({
            "v": "AAAA", "cloudagent_ip": "10.0.0.7", "cloudagent_port": "9002",
            "verifier_ip": "127.0.0.1", "verifier_port": 8881,
            "tpm_policy": "{\"mask\": \"0x408400\"}", "metadata": "{}", "runtime_policy": "",
            "runtime_policy_name": null, "runtime_policy_key": "", "mb_policy": null,
            "mb_policy_name": "", "ima_sign_verification_keys": "", "revocation_key": "",
            "accept_tpm_hash_algs": ["sha256"], "accept_tpm_encryption_algs": ["ecc", "rsa"],
            "accept_tpm_signing_algs": ["ecschnorr", "rsassa"], "ak_tpm": "ARgAAQ==",
            "mtls_cert": "disabled", "supported_version": "2.6"
        }))
        .unwrap();
        assert_eq!(enrolment.cloudagent_port, Some(9002));
        assert_eq!(enrolment.verifier_port, Some(8881));
        assert_eq!(enrolment.mb_policy, None);
    }

    #[test]
    fn keys_are_carried_and_never_shown() {
        let mut body = serde_json::to_value(Enrolment::default()).unwrap();
        body["v"] = json!("c2hhcmUgVg==");
        body["revocation_key"] = json!("-----BEGIN PRIVATE KEY-----");
        let enrolment = read(&body).unwrap();
        assert_eq!(serde_json::to_value(&enrolment).unwrap(), body);
        let shown = format!("{:?}", enrolment.clone());
        assert!(
            !shown.contains("c2hh") && !shown.contains("PRIVATE"),
            "{shown}"
        );
        for wrong in [json!(987_654), json!({"key": "c2hh"})] {
            body["v"] = wrong;
            let error = read(&body).unwrap_err().to_string();
            assert!(
                !error.contains("9876") && !error.contains("c2hh"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_member_that_was_forgotten_is_named_and_null_is_not_forgotten() {
        let written = serde_json::to_value(Enrolment::default()).unwrap();
        read(&written).unwrap();
        for name in REQUIRED {
            let mut body = written.clone();
            body.as_object_mut().unwrap().remove(name);
            let error = read(&body).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("Exception error: '{name}'")),
                "{error}"
            );
        }
        let error = read(&json!([])).unwrap_err().to_string();
        assert!(error.contains("an enrolment"), "{error}");
    }
}
