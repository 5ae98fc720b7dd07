use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::StatusCode;
use troth_core::{
    identity::{AgentId, activation_tag_matches},
    tpm::make_credential,
    wire::{Activation, Registration, RegistrationChallenge},
};
use troth_daemon::server::Peer;
use zeroize::Zeroizing;

use super::{Inner, candidate::Candidate, not_registered, parse};
use crate::{
    messages,
    rest::{self, Empty, Refusal, Reply},
    store::{Agent, Pending, Promotion},
};

/// Bytes of a challenge: fits every EK name algorithm from SHA-256 on.
const CHALLENGE_SIZE: usize = 32;

const OTHER_IDENTITY: &str =
    "Agent re-registration with different TPM identity is forbidden for security reasons";
const OTHER_ID: &str = "This TPM is registered under another agent id";

impl Inner {
    pub(super) async fn register(&self, id: &AgentId, body: &[u8], peer: &Peer) -> Reply {
        let registration: Registration = parse(body)?;
        let candidate = Candidate::check(id, registration, &self.rules).map_err(|error| {
            tracing::warn!(node_id = %id, source = %peer.address, %error, "registration refused");
            Refusal::bad_request(format!(
                "Could not register agent with invalid data: {error}"
            ))
        })?;
        let internal = |error| Refusal::internal(&error);
        let active = self.store.agent(id.as_str()).await.map_err(internal)?;
        if active.is_some_and(|active| !active.same_identity(&candidate.agent)) {
            return Err(other_identity(id, peer));
        }
        let other = self.store.agent_of_same_tpm(&candidate.agent).await;
        if let Some(other) = other.map_err(internal)? {
            if self.one_id_per_tpm {
                return Err(other_id(id, &other, peer));
            }
            tracing::warn!(node_id = %id, other_node = other, "the same TPM has another agent id");
        }
        let mut challenge = Zeroizing::new(vec![0; CHALLENGE_SIZE]);
        aws_lc_rs::rand::fill(&mut challenge).map_err(|error| Refusal::internal(&error))?;
        let blob = make_credential(&candidate.ek, &candidate.ak_name, &challenge)
            .map_err(|error| Refusal::bad_request(format!("no challenge for this EK: {error}")))?;
        let now = unix_seconds();
        let pending = Pending {
            agent: candidate.agent,
            challenge,
            created_at: now,
        };
        let oldest = now.saturating_sub(self.challenge_lifetime.as_secs());
        let pushed_out = self
            .store
            .put_pending(&pending, oldest, self.max_pending)
            .await
            .map_err(internal)?;
        if pushed_out > 0 {
            tracing::warn!(
                node_id = %id, source = %peer.address,
                "too many unanswered challenges: the oldest was dropped"
            );
        }
        tracing::debug!(node_id = %id, source = %peer.address, "registration pending");
        Ok(rest::success(RegistrationChallenge {
            blob: STANDARD.encode(blob.to_bytes()),
        }))
    }

    pub(super) async fn activate(&self, id: &AgentId, body: &[u8], peer: &Peer) -> Reply {
        // Parsed first: a request that carries no answer does not burn the challenge.
        let activation: Activation = parse(body)?;
        let internal = |error| Refusal::internal(&error);
        let Some(pending) = self
            .store
            .take_pending(id.as_str())
            .await
            .map_err(internal)?
        else {
            let known = self
                .store
                .agent(id.as_str())
                .await
                .map_err(internal)?
                .is_some();
            return Err(if known {
                Refusal::bad_request("no registration of this agent waits for its activation")
            } else {
                not_registered(id)
            });
        };
        // A challenge from the future was made before the clock was set back: its age is not known.
        let age = unix_seconds().abs_diff(pending.created_at);
        if age > self.challenge_lifetime.as_secs() {
            return Err(Refusal::bad_request(
                "the challenge has expired; register again",
            ));
        }
        if !activation_tag_matches(&pending.challenge, id, &activation.auth_tag) {
            tracing::warn!(
                node_id = %id, source = %peer.address,
                "wrong activation tag: the challenge is spent, an active registration stays"
            );
            return Err(Refusal::bad_request(
                "auth_tag does not match; register again",
            ));
        }
        let agent = pending.agent;
        match self
            .store
            .promote(&agent, unix_seconds(), self.one_id_per_tpm)
            .await
            .map_err(internal)?
        {
            Promotion::Done => {}
            Promotion::OtherIdentity => return Err(other_identity(id, peer)),
            Promotion::OtherId => return Err(other_id(id, "registered meanwhile", peer)),
        }
        let Agent {
            ip,
            port,
            ekcert,
            device,
            ..
        } = &agent;
        tracing::info!(
            message_id = messages::REGISTERED,
            node_id = %id,
            address = %format_args!("{ip}:{port}"),
            ek_certificate = ekcert.is_some(),
            device_identity = device.is_some(),
            "agent {id} registered: its AK is held by the TPM of its EK"
        );
        Ok(rest::success(Empty {}))
    }
}

fn other_identity(id: &AgentId, peer: &Peer) -> Refusal {
    tracing::warn!(
        message_id = messages::IDENTITY_CONFLICT,
        node_id = %id,
        source = %peer.address,
        "registration refused: {id} belongs to another TPM; an administrator must remove it first"
    );
    Refusal::new(StatusCode::FORBIDDEN, OTHER_IDENTITY)
}

fn other_id(id: &AgentId, other: &str, peer: &Peer) -> Refusal {
    tracing::warn!(
        message_id = messages::IDENTITY_CONFLICT,
        node_id = %id,
        source = %peer.address,
        other_node = other,
        "registration refused: its TPM has another agent id; an administrator must remove that first"
    );
    // The other id is not named: whoever asks need not be the owner of the TPM.
    Refusal::new(StatusCode::FORBIDDEN, OTHER_ID)
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
