//! Makes this host known to the registrar: version, registration, activation.
//!
//! Activation proves that AK and EK are in the same TPM: only that TPM can decrypt the registrar's
//! challenge (TPM 2.0 Part 1, 24 "Credential protection").

/// Registrations of an agent that runs, when somebody asks for one.
mod on_request;
/// Waits between tries.
mod retry;

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::Method;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use troth_core::{
    identity::{AgentId, activation_tag},
    tpm::{CredentialBlob, CredentialError},
    wire::{Activation, Envelope, Registration, RegistrationChallenge, ServerVersion},
};
use troth_daemon::client::{Answer, Client, ClientError};

use crate::{
    http::ApiVersion,
    identity::device::qualifying_data,
    tpm::{DeviceKey, KeyKind, Tpm, TpmError, TpmHandle},
};
pub use on_request::{Attempts, NotRegistered, Outcome, RegistrarHandle, Requests, requests};
pub use retry::Backoff;
use retry::spread;

/// Longest wait for an activation: an RSA EK may have to be made again first, seconds on some chips.
const ACTIVATE_DEADLINE: Duration = Duration::from_secs(120);

/// Longest wait for the IAK to be made and to certify the AK.
const CERTIFY_DEADLINE: Duration = Duration::from_secs(120);

/// Longest wait for the TPM to flush a key.
const RELEASE_DEADLINE: Duration = Duration::from_secs(30);

/// Bounds of what a registrar may ask for: never a storm of requests, never silence for days.
const SHORTEST_RETRY_AFTER: Duration = Duration::from_secs(1);
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// The newest version that a registrar without `/version` speaks; that came with 2.3.
const BEFORE_NEGOTIATION: ApiVersion = ApiVersion::v2(2);

/// What makes this host known.
#[derive(Debug)]
pub struct Registrar {
    /// The connection; TLS or not was decided once, by the configuration.
    pub client: Client,
    /// Agent id.
    pub id: AgentId,
    /// Kind of the EK, to load it for the activation.
    pub kind: KeyKind,
    /// API versions that may be used, ascending.
    pub versions: Vec<ApiVersion>,
    /// The body of the registration, without what certifies the AK.
    pub body: Registration,
    /// What certifies the AK, on a host that has a device identity.
    pub iak: Option<DeviceKey>,
}

/// Why the registrar does not know this host yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistrationError {
    /// The registrar cannot be reached, or broke off.
    #[error("{}{}", .0, advice(.0))]
    Client(#[from] ClientError),
    /// The registrar refuses this host for good.
    #[error(
        "the registrar refuses this host: {reason}. Another TPM is registered under this agent id; \
         if this host may replace it, run `trothctl registrar remove` with the id"
    )]
    Forbidden {
        /// The registrar's text.
        reason: String,
    },
    /// The registrar answered with an error.
    #[error("the registrar answers {what} with status {status}: {reason}")]
    Refused {
        /// The request.
        what: &'static str,
        /// HTTP status.
        status: u16,
        /// The registrar's text, or what is wrong with its answer.
        reason: String,
        /// How long an overloaded registrar asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// Nothing in common.
    #[error("the registrar speaks {offered}; this agent registers with {enabled} (api_versions)")]
    NoCommonVersion {
        /// The registrar's versions.
        offered: String,
        /// This agent's.
        enabled: String,
    },
    /// The challenge is not one.
    #[error("the registrar's challenge: {0}")]
    Challenge(#[from] CredentialError),
    /// The challenge is not base64.
    #[error("the registrar's challenge is not base64: {0}")]
    ChallengeText(#[from] base64::DecodeError),
    /// The TPM could not certify the AK or answer the challenge.
    #[error("the TPM has no proof for the registrar: {0}")]
    Tpm(#[from] TpmError),
}

fn advice(error: &ClientError) -> &'static str {
    match error {
        ClientError::WrongName { .. } => {
            ". Nothing was sent: somebody else with a certificate of that CA may answer there. If \
             it is the registrar, set registrar_tls_name to a name of its certificate, or give it \
             one for this name (cert_subject_alternative_names in registrar.toml)"
        }
        _ => "",
    }
}

impl RegistrationError {
    /// Would the same request fail in the same way, until somebody intervenes?
    pub fn is_final(&self) -> bool {
        match self {
            Self::Forbidden { .. } => true,
            Self::Tpm(error) => error.is_final(),
            _ => false,
        }
    }

    /// The wait that the registrar asked for, within bounds.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => {
                retry_after.map(|wait| wait.clamp(SHORTEST_RETRY_AFTER, LONGEST_RETRY_AFTER))
            }
            _ => None,
        }
    }
}

/// The wait before the next try: what the registrar asked for, else the next of `backoff`.
pub fn wait_after(error: &NotRegistered, backoff: &mut Backoff) -> Duration {
    let delay = backoff.next_delay();
    error.retry_after.map_or(delay, spread)
}

impl Registrar {
    /// One attempt, from the version to the activation. The EK is not loaded afterwards.
    pub async fn register(&self, tpm: &TpmHandle) -> Result<ApiVersion, RegistrationError> {
        let result = self.attempt(tpm).await;
        if result.is_err() {
            // It may take hours until the next: the EK's slot belongs to others meanwhile.
            let flush = |tpm: &mut dyn Tpm| {
                tpm.flush_ek();
                Ok(())
            };
            if let Err(error) = tpm.call("releasing the EK", RELEASE_DEADLINE, flush).await {
                tracing::warn!("{error}");
            }
        }
        result
    }

    async fn attempt(&self, tpm: &TpmHandle) -> Result<ApiVersion, RegistrationError> {
        let version = self.negotiate().await?;
        let path = format!("/v{version}/agents/{}", self.id);
        let body = self.body(version, tpm).await?;
        let answer = self
            .client
            .send(Method::POST, &path, Some(encode(&body)))
            .await?;
        let challenge: RegistrationChallenge = results("the registration", &answer)?;
        let blob = CredentialBlob::parse(&STANDARD.decode(challenge.blob)?)?;
        let kind = self.kind;
        let challenge = tpm
            .call("activation", ACTIVATE_DEADLINE, move |tpm| {
                tpm.load_ek(kind)?;
                let challenge = tpm.activate(&blob);
                tpm.flush_ek();
                challenge
            })
            .await?;
        let proof = Activation {
            auth_tag: activation_tag(&challenge, &self.id),
        };
        let answer = self
            .client
            .send(Method::PUT, &path, Some(encode(&proof)))
            .await?;
        accepted("the activation", &answer)?;
        Ok(version)
    }

    /// The body for a registrar of this version.
    async fn body(
        &self,
        version: ApiVersion,
        tpm: &TpmHandle,
    ) -> Result<Registration, RegistrationError> {
        let mut body = self.body.clone();
        if let Some(iak) = self.iak.clone() {
            let id = qualifying_data(&self.id, version);
            let certified = tpm
                .call("certifying the AK", CERTIFY_DEADLINE, move |tpm| {
                    tpm.certify_ak(&iak, &id)
                })
                .await?;
            body.iak_attest = Some(STANDARD.encode(certified.attest));
            body.iak_sign = Some(STANDARD.encode(certified.signature));
        }
        Ok(body)
    }

    /// The registrar's preferred version if it is enabled here, else the newest that both know.
    async fn negotiate(&self) -> Result<ApiVersion, RegistrationError> {
        let answer = self.client.get("/version").await?;
        if matches!(answer.status, 400 | 404 | 405) {
            let old = |version: &&ApiVersion| **version <= BEFORE_NEGOTIATION;
            let newest = self.versions.iter().rev().find(old);
            return newest.copied().ok_or_else(|| {
                self.nothing_in_common(format!("{BEFORE_NEGOTIATION} or older, having no /version"))
            });
        }
        let offered: ServerVersion = results("the version request", &answer)?;
        choose(&offered, &self.versions).ok_or_else(|| {
            let offered = offered.supported_versions.join(", ");
            self.nothing_in_common(offered.escape_debug().take(300).collect())
        })
    }

    fn nothing_in_common(&self, offered: String) -> RegistrationError {
        let enabled: Vec<String> = self.versions.iter().map(ToString::to_string).collect();
        RegistrationError::NoCommonVersion {
            offered,
            enabled: enabled.join(", "),
        }
    }
}

fn choose(offered: &ServerVersion, enabled: &[ApiVersion]) -> Option<ApiVersion> {
    let known = |text: &str| {
        text.parse::<ApiVersion>()
            .ok()
            .filter(|version| enabled.contains(version))
    };
    known(&offered.current_version).or_else(|| {
        offered
            .supported_versions
            .iter()
            .filter_map(|text| known(text))
            .max()
    })
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    // Only types of troth_core::wire get here: structs of strings and numbers.
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

fn results<T: DeserializeOwned>(
    what: &'static str,
    answer: &Answer,
) -> Result<T, RegistrationError> {
    accepted(what, answer)?;
    let envelope: Envelope<T> = answer.json()?;
    envelope.results.ok_or_else(|| RegistrationError::Refused {
        what,
        status: answer.status,
        reason: "the answer has no results".into(),
        retry_after: None,
    })
}

fn accepted(what: &'static str, answer: &Answer) -> Result<(), RegistrationError> {
    if answer.status == 200 {
        return Ok(());
    }
    let reason = reason(answer);
    if answer.status == 403 {
        return Err(RegistrationError::Forbidden { reason });
    }
    Err(RegistrationError::Refused {
        what,
        status: answer.status,
        reason,
        retry_after: answer
            .retry_after
            .filter(|_| matches!(answer.status, 429 | 503)),
    })
}

/// The text of an error answer; some registrars send none.
fn reason(answer: &Answer) -> String {
    #[derive(Deserialize)]
    struct Status {
        status: String,
    }
    match answer.json::<Status>() {
        Ok(body) if !body.status.is_empty() => body.status.escape_debug().take(300).collect(),
        _ => "no reason given".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(current: &str, all: &[&str]) -> ServerVersion {
        ServerVersion {
            current_version: current.into(),
            supported_versions: all.iter().map(|&text| text.into()).collect(),
        }
    }

    #[test]
    fn the_registrars_preference_wins_if_known() {
        assert_eq!(
            choose(&offered("2.3", &["2.1", "2.3", "2.6"]), &ApiVersion::ALL),
            Some(ApiVersion::v2(3))
        );
        assert_eq!(
            choose(
                &offered("3.0", &["1.0", "2.6", "2.5", "3.0"]),
                &ApiVersion::ALL
            ),
            Some(ApiVersion::v2(6))
        );
        assert_eq!(choose(&offered("3.0", &["3.0"]), &ApiVersion::ALL), None);
    }

    #[test]
    fn only_enabled_versions_are_used() {
        let offered = offered("2.6", &["2.1", "2.2", "2.3", "2.6"]);
        let enabled = [ApiVersion::v2(1), ApiVersion::v2(2)];
        assert_eq!(choose(&offered, &enabled), Some(ApiVersion::v2(2)));
        assert_eq!(choose(&offered, &[ApiVersion::v2(5)]), None);
    }

    #[test]
    fn an_overloaded_registrar_is_obeyed_within_bounds() {
        let wait = |status, seconds| {
            let answer = Answer {
                status,
                retry_after: Some(Duration::from_secs(seconds)),
                body: Bytes::new(),
            };
            let wait = accepted("x", &answer).unwrap_err().retry_after();
            wait.map(|wait| wait.as_secs())
        };
        assert_eq!(wait(429, 120), Some(120));
        assert_eq!(wait(503, 0), Some(1));
        assert_eq!(wait(503, u64::MAX), Some(3600));
        assert_eq!(wait(500, 120), None, "says nothing about load");
    }

    #[test]
    fn an_identity_conflict_is_final_and_other_refusals_are_not() {
        let answer = |status, body: &'static str| Answer {
            status,
            retry_after: None,
            body: Bytes::from(body),
        };
        let conflict = answer(403, r#"{"code":403,"status":"different TPM","results":{}}"#);
        let error = accepted("x", &conflict).unwrap_err();
        assert!(error.is_final() && error.to_string().contains("different TPM"));
        // A wrong password is not tried again: the TPM counts.
        let (option, command) = ("iak_password", "TPM2_Certify");
        assert!(RegistrationError::Tpm(TpmError::KeyAuth { option, command }).is_final());
        let error = accepted("x", &answer(400, "")).unwrap_err();
        assert!(!error.is_final() && error.to_string().contains("no reason given"));
    }
}
