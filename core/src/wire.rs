//! Keylime's REST bodies. Unknown members are ignored on reading; `null` and absence are the same.

/// What an operator says of a node to the verifier.
mod enrolment;
/// Key material on its way.
mod secret;

use serde::{Deserialize, Serialize};

pub use enrolment::{Enrolment, EnrolmentError};
pub use secret::SecretText;

use crate::eventlog::Quirk;
use crate::finding::Finding;

/// The envelope of every 2.x answer.
///
/// An error's `results` is `{}`, which most `T` are not: look at `code` with
/// `Envelope<serde::de::IgnoredAny>` first, or at the HTTP status.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Envelope<T> {
    /// Equal to the HTTP status.
    pub code: u16,
    /// `Success`, or a text for people.
    pub status: String,
    /// The data; `{}` on errors, `null` or `{}` on success without data.
    #[serde(default = "Option::default")]
    pub results: Option<T>,
}

/// `GET /version` of an agent.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AgentVersion {
    /// The newest version served.
    pub supported_version: String,
    /// All versions served, ascending.
    #[serde(default)]
    pub supported_versions: Vec<String>,
    /// What it serves beyond Keylime's API; other agents serve nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<String>,
}

impl AgentVersion {
    /// The extension by which a quote comes with systemd's log of what user space measured.
    pub const USERSPACE_LOG: &str = "userspace_ml";
}

/// `GET /version` of a registrar or verifier.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ServerVersion {
    /// The version clients should speak.
    pub current_version: String,
    /// All versions served, ascending.
    pub supported_versions: Vec<String>,
}

/// `POST /v2.x/agents/{id}` at the registrar.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Registration {
    /// base64 TPM2B_PUBLIC of the EK.
    pub ek_tpm: Option<String>,
    /// EK certificate: PEM text, base64 DER, `""` or null.
    pub ekcert: Option<String>,
    /// base64 TPM2B_PUBLIC of the AK.
    pub aik_tpm: Option<String>,
    /// base64 DER or null; always present.
    pub iak_cert: Option<String>,
    /// base64 DER or null; always present.
    pub idevid_cert: Option<String>,
    /// base64 TPM2B_PUBLIC of the IAK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iak_tpm: Option<String>,
    /// base64 TPM2B_PUBLIC of the IDevID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idevid_tpm: Option<String>,
    /// base64 TPMS_ATTEST: the AK, certified by the IAK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iak_attest: Option<String>,
    /// base64 TPMT_SIGNATURE over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iak_sign: Option<String>,
    /// Contact address: name, IPv4 or IPv6.
    pub ip: Option<String>,
    /// Contact port; a number or text.
    #[serde(default, deserialize_with = "port_or_text")]
    pub port: Option<u16>,
    /// PEM, or `disabled`.
    pub mtls_cert: Option<String>,
}

/// Answer to a registration: base64 of the challenge blob.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RegistrationChallenge {
    /// base64 of [`crate::tpm::CredentialBlob`].
    pub blob: String,
}

/// `PUT /v2.x/agents/{id}`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Activation {
    /// Hex HMAC-SHA-384.
    pub auth_tag: String,
}

/// `GET /v2.x/agents/{id}` at the registrar.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RegistrarRecord {
    /// Agent id.
    #[serde(default)]
    pub agent_id: Option<String>,
    /// base64 TPM2B_PUBLIC.
    pub ek_tpm: String,
    /// base64 DER.
    pub ekcert: Option<String>,
    /// base64 DER of the CAs' certificates that the agent sent with `ekcert`; other registrars keep
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ekcert_chain: Vec<String>,
    /// base64 TPM2B_PUBLIC.
    pub aik_tpm: String,
    /// Contact address.
    pub ip: String,
    /// Contact port.
    pub port: u16,
    /// PEM or `disabled`.
    pub mtls_cert: Option<String>,
    /// Registrations so far.
    pub regcount: u64,
}

/// `GET /v2.x/agents` at the registrar.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RegistrarList {
    /// Agent ids.
    pub uuids: Vec<String>,
}

/// `results` of an identity or integrity quote.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct QuoteResponse {
    /// The quote string.
    pub quote: String,
    /// PCR bank and signature hash.
    #[serde(default)]
    pub hash_alg: String,
    /// AK algorithm.
    #[serde(default)]
    pub enc_alg: String,
    /// AK scheme.
    #[serde(default)]
    pub sign_alg: String,
    /// NK as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pubkey: Option<String>,
    /// IMA list from `ima_measurement_list_entry` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ima_measurement_list: Option<String>,
    /// Index of its first entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ima_measurement_list_entry: Option<u64>,
    /// base64 of the boot log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mb_measurement_list: Option<String>,
    /// base64 of systemd's log of what user space measured: Troth's own, asked for with
    /// `userspace_ml=1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userspace_measurement_list: Option<String>,
    /// Boot time, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boottime: Option<u64>,
}

/// What some databases of Keylime's verifier have as null.
fn null_is_default<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(d).map(Option::unwrap_or_default)
}

/// A port as a number or as decimal text; `null` and `""` are absence.
fn port_or_text<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u16>, D::Error> {
    struct Port;
    impl<'de> serde::de::Visitor<'de> for Port {
        type Value = Option<u16>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a port, 0 to 65535, as a number or text")
        }
        fn visit_unit<E: serde::de::Error>(self) -> Result<Option<u16>, E> {
            Ok(None)
        }
        fn visit_none<E: serde::de::Error>(self) -> Result<Option<u16>, E> {
            Ok(None)
        }
        fn visit_some<D: serde::Deserializer<'de>>(self, d: D) -> Result<Option<u16>, D::Error> {
            d.deserialize_any(Self)
        }
        fn visit_u64<E: serde::de::Error>(self, port: u64) -> Result<Option<u16>, E> {
            let unexpected = serde::de::Unexpected::Unsigned(port);
            u16::try_from(port)
                .map(Some)
                .map_err(|_| E::invalid_value(unexpected, &self))
        }
        fn visit_i64<E: serde::de::Error>(self, port: i64) -> Result<Option<u16>, E> {
            let unexpected = serde::de::Unexpected::Signed(port);
            u16::try_from(port)
                .map(Some)
                .map_err(|_| E::invalid_value(unexpected, &self))
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Option<u16>, E> {
            // parse alone would take a sign.
            match text {
                "" => Ok(None),
                digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                    let unexpected = serde::de::Unexpected::Str(text);
                    digits
                        .parse()
                        .map(Some)
                        .map_err(|_| E::invalid_value(unexpected, &self))
                }
                _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
            }
        }
    }
    d.deserialize_any(Port)
}

/// `GET /v2.x/agents/{id}` at the verifier.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeStatus {
    /// Keylime's number: 1 start, 3 attested periodically, 7 no answer, 9 failed, 10 stopped.
    pub operational_state: Option<u8>,
    /// base64 V.
    #[serde(default)]
    pub v: Option<SecretText>,
    /// Agent address.
    pub ip: Option<String>,
    /// Agent port.
    pub port: Option<u16>,
    /// JSON text.
    pub tpm_policy: String,
    /// JSON text.
    pub meta_data: String,
    /// 0 or 1.
    pub has_mb_refstate: u8,
    /// 0 or 1.
    pub has_runtime_policy: u8,
    /// Accepted hash algorithms.
    pub accept_tpm_hash_algs: Vec<String>,
    /// Accepted AK algorithms.
    pub accept_tpm_encryption_algs: Vec<String>,
    /// Accepted schemes.
    pub accept_tpm_signing_algs: Vec<String>,
    /// From the last quote, `""` before.
    #[serde(default, deserialize_with = "null_is_default")]
    pub hash_alg: String,
    /// From the last quote, `""` before.
    #[serde(default, deserialize_with = "null_is_default")]
    pub enc_alg: String,
    /// From the last quote, `""` before.
    #[serde(default, deserialize_with = "null_is_default")]
    pub sign_alg: String,
    /// Which verifier.
    pub verifier_id: String,
    /// Its address.
    #[serde(default, deserialize_with = "null_is_default")]
    pub verifier_ip: String,
    /// Its port.
    #[serde(default, deserialize_with = "null_is_default")]
    pub verifier_port: u16,
    /// Severity of the last failure.
    pub severity_level: Option<u8>,
    /// Event id of the last failure.
    pub last_event_id: Option<String>,
    /// Successful attestations.
    pub attestation_count: u64,
    /// Unix seconds, 0 = never.
    pub last_received_quote: u64,
    /// Unix seconds, 0 = never.
    pub last_successful_attestation: u64,
    /// `PASS`, `FAIL`, `PENDING`, `TIMEOUT`.
    pub attestation_status: String,
    /// `"<n>s"`.
    #[serde(default)]
    pub attestation_period: String,
    /// `"<n>s"`.
    #[serde(default)]
    pub maximum_attestation_interval: String,
    /// Troth's own view; other verifiers have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub troth: Option<TrothStatus>,
}

/// What Troth's verifier says beyond Keylime's fields.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct TrothStatus {
    /// trusted, failed, unreachable, stale, pending, stopped.
    pub state: String,
    /// One sentence: why this state.
    pub reason: String,
    /// Unix milliseconds since when the node is in this state, 0 = not known.
    #[serde(default)]
    pub since_ms: u64,
    /// Unix milliseconds of the last verdict, 0 = never.
    pub judged_at_ms: u64,
    /// When the next attestation is due, Unix milliseconds.
    pub due_at_ms: u64,
    /// IMA entries judged since boot.
    pub ima_entries: u64,
    /// Name of the node's runtime policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_policy: Option<String>,
    /// Name of the node's boot policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_policy: Option<String>,
    /// PCRs of the last judged boot log that only a quirk of the firmware explains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boot_quirks: Vec<BootQuirk>,
    /// Label of `severity_level`, as this verifier is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// Findings of the last failed verdict, the most severe first (bounded; `findings_total` counts
    /// all).
    pub findings: Vec<RatedFinding>,
    /// All findings of that verdict.
    pub findings_total: u64,
}

/// A PCR whose quoted value the boot log explains only together with what the firmware is known to
/// log otherwise than it measures.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BootQuirk {
    /// The PCR.
    pub pcr: u8,
    /// [`Quirk::id`].
    pub id: String,
    /// What it is, and why it is no sign of an attack.
    pub reason: String,
}

impl BootQuirk {
    /// Of an appraisal's.
    pub fn new(pcr: u8, quirk: Quirk) -> Self {
        Self {
            pcr,
            id: quirk.id().to_owned(),
            reason: quirk.reason().to_owned(),
        }
    }
}

/// One line, for people.
impl std::fmt::Display for BootQuirk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pcr, id, reason } = self;
        write!(f, "PCR {pcr}: {id} ({reason})")
    }
}

/// A finding, and how much it matters to this verifier.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RatedFinding {
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
    /// Its label of `severity_labels`; `None`: it was not rated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde::de::{DeserializeOwned, IgnoredAny};
    use serde_json::{Value, json};

    use super::*;

    fn vectors() -> Value {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/vectors/agent-registrar.json"
        );
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn read<T: DeserializeOwned>(value: &Value) -> T {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn a_keylime_registration_is_read_and_written_alike() {
        let request = vectors()["registration"]["request"].clone();
        let registration: Registration = read(&request);
        assert_eq!(registration.port, Some(39002));
        assert!(
            registration
                .ekcert
                .as_deref()
                .unwrap()
                .starts_with("-----BEGIN CERTIFICATE")
        );
        // Whatever the agent sends as null, ours sends as null too.
        assert_eq!(serde_json::to_value(&registration).unwrap(), request);
    }

    #[test]
    fn absent_null_and_unknown_members_of_a_registration() {
        let registration: Registration =
            read(&json!({"aik_tpm": "AA==", "ekcert": null, "port": "9002", "new": [1]}));
        assert_eq!(registration.port, Some(9002));
        assert_eq!((registration.ekcert, registration.ek_tpm), (None, None));
        let registration: Registration = read(&json!({}));
        assert_eq!((registration.port, registration.ip), (None, None));
    }

    #[test]
    fn ports_are_numbers_or_decimal_text() {
        let port = |value: Value| {
            serde_json::from_value::<Registration>(json!({"port": value})).map(|body| body.port)
        };
        assert_eq!(port(json!(0)).unwrap(), Some(0));
        assert_eq!(port(json!("65535")).unwrap(), Some(65535));
        for none in [json!(null), json!("")] {
            assert_eq!(port(none).unwrap(), None);
        }
        for bad in [
            json!(65536),
            json!(-1),
            json!(1.5),
            json!("+1"),
            json!("http"),
            json!([1]),
        ] {
            port(bad).unwrap_err();
        }
    }

    #[test]
    fn live_quote_answers_are_read_and_written_alike() {
        for vector in vectors()["pull_quotes"].as_array().unwrap() {
            let answer: Envelope<QuoteResponse> = read(&vector["response"]);
            assert_eq!((answer.code, answer.status.as_str()), (200, "Success"));
            assert_eq!(serde_json::to_value(&answer).unwrap(), vector["response"]);
        }
    }

    #[test]
    fn success_without_data_has_three_forms() {
        for text in [
            r#"{"code":200,"status":"Success","results":null}"#,
            r#"{"code":200,"status":"Success","results":{}}"#,
            r#"{"code":200,"status":"Success"}"#,
        ] {
            let answer: Envelope<IgnoredAny> = serde_json::from_str(text).unwrap();
            assert_eq!(answer.code, 200);
        }
        let without: Envelope<QuoteResponse> =
            serde_json::from_str(r#"{"code":200,"status":"Success"}"#).unwrap();
        assert!(without.results.is_none());
    }

    #[test]
    fn a_status_of_keylimes_verifier_may_be_null_in_part() {
        let status: NodeStatus = read(&json!({
            "operational_state": 1, "v": null, "ip": "127.0.0.1", "port": 9002,
            "tpm_policy": "{}", "meta_data": "{}", "has_mb_refstate": 0, "has_runtime_policy": 0,
            "accept_tpm_hash_algs": [], "accept_tpm_encryption_algs": [],
            "accept_tpm_signing_algs": [], "hash_alg": null, "enc_alg": null, "sign_alg": null,
            "verifier_id": "default", "verifier_ip": null, "verifier_port": null,
            "severity_level": null, "last_event_id": null, "attestation_count": 0,
            "last_received_quote": 0, "last_successful_attestation": 0,
            "attestation_status": "PENDING"
        }));
        assert_eq!((status.verifier_ip.as_str(), status.verifier_port), ("", 0));
        assert_eq!(status.hash_alg, "");
    }

    #[test]
    fn versions_of_old_and_new_agents() {
        let new: AgentVersion =
            read(&json!({"supported_version": "2.6", "supported_versions": ["2.1", "2.6"]}));
        assert_eq!(new.supported_versions, ["2.1", "2.6"]);
        let old: AgentVersion = read(&json!({"supported_version": "2.2"}));
        assert!(old.supported_versions.is_empty());
    }

    #[test]
    fn a_registrar_record_of_keylime_is_read() {
        let record: RegistrarRecord = read(&json!({
            "agent_id": "d432fbb3-d2f1-4a97-9ef7-75bd81c00000", "ek_tpm": "AToAAQ==",
            "aik_tpm": "ARgAAQ==", "ip": "127.0.0.1", "port": 9002, "mtls_cert": "disabled",
            "regcount": 1, "provider_keys": {}
        }));
        assert_eq!((record.ekcert, record.regcount), (None, 1));
    }
}
