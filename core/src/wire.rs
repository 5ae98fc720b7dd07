//! Keylime's REST bodies. Unknown members are ignored on reading; `null` and absence are the same.

use serde::{Deserialize, Serialize};

use crate::appraise::Finding;

/// The envelope of every 2.x answer.
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
    /// Contact address: name, IPv4 or IPv6.
    pub ip: Option<String>,
    /// Contact port.
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
    /// Boot time, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boottime: Option<u64>,
}

/// `POST /v2.x/agents/{id}` at the verifier (enrol).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Enrolment {
    /// base64 V share.
    #[serde(default)]
    pub v: Option<String>,
    /// Agent address.
    #[serde(default)]
    pub cloudagent_ip: Option<String>,
    /// Agent port; Keylime sends a string or a number.
    #[serde(default, deserialize_with = "port_or_text")]
    pub cloudagent_port: Option<u16>,
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
    /// PEM or `""`.
    pub revocation_key: Option<String>,
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
fn port_or_text<'de, D: serde::Deserializer<'de>>(_d: D) -> Result<Option<u16>, D::Error> { todo!() }

/// `GET /v2.x/agents/{id}` at the verifier.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeStatus {
    /// Keylime's number (verifier-tenant spec 1.7).
    pub operational_state: Option<u8>,
    /// base64 V.
    #[serde(default)]
    pub v: Option<String>,
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
    pub hash_alg: String,
    /// From the last quote, `""` before.
    pub enc_alg: String,
    /// From the last quote, `""` before.
    pub sign_alg: String,
    /// Which verifier.
    pub verifier_id: String,
    /// Its address.
    pub verifier_ip: String,
    /// Its port.
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
    /// Unix milliseconds of the last verdict, 0 = never.
    pub judged_at_ms: u64,
    /// When the next attestation is due, Unix milliseconds.
    pub due_at_ms: u64,
    /// IMA entries judged since boot.
    pub ima_entries: u64,
    /// Findings of the last failed verdict (bounded; `findings_total` counts all).
    pub findings: Vec<Finding>,
    /// All findings of that verdict.
    pub findings_total: u64,
}
