use std::{
    sync::atomic::Ordering,
    time::{SystemTime, UNIX_EPOCH},
};

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
    store::{Agent, Offer, Pending, Promotion},
};

/// Bytes of a challenge: fits every EK name algorithm from SHA-256 on.
const CHALLENGE_SIZE: usize = 32;
/// What waits may be over its bound by one in this many.
const TIDY_SHARE: u32 = 256;
/// It is looked after at least once in so many registrations.
const TIDY_AT_LEAST: u32 = 64;

const OTHER_IDENTITY: &str =
    "Agent re-registration with different TPM identity is forbidden for security reasons";
const OTHER_ID: &str = "This TPM is registered under another agent id";

impl Inner {
    pub(super) async fn register(&self, id: &AgentId, body: &[u8], peer: &Peer) -> Reply {
        let registration: Registration = parse(body)?;
        let candidate = Candidate::check(id, registration, &self.rules).map_err(|error| {
            tracing::warn!(
                message_id = messages::REGISTRATION_REFUSED,
                node_id = %id,
                source = %peer.address,
                %error,
                "registration of {id} refused"
            );
            Refusal::bad_request(format!(
                "Could not register agent with invalid data: {error}"
            ))
        })?;
        let mut challenge = Zeroizing::new(vec![0; CHALLENGE_SIZE]);
        aws_lc_rs::rand::fill(&mut challenge).map_err(|error| Refusal::internal(&error))?;
        let blob = make_credential(&candidate.ek, &candidate.ak_name, &challenge)
            .map_err(|error| Refusal::bad_request(format!("no challenge for this EK: {error}")))?;
        let pending = Pending {
            agent: candidate.agent,
            challenge,
            created_at: unix_seconds(),
            source: source(peer),
        };
        let offer = self.store.put_pending(&pending, self.one_id_per_tpm).await;
        match offer.map_err(|error| Refusal::internal(&error))? {
            Offer::Kept { other: None } => {}
            Offer::Kept { other: Some(other) } => {
                tracing::warn!(
                    node_id = %id, other_node = other,
                    "{id} registers with the TPM of {other}"
                );
            }
            Offer::OtherIdentity => return Err(other_identity(id, peer)),
            Offer::OtherId(other) => return Err(other_id(id, &other, peer)),
        }
        self.tidy(id, peer).await?;
        tracing::debug!(node_id = %id, source = %peer.address, "registration pending");
        Ok(rest::success(RegistrationChallenge {
            blob: STANDARD.encode(blob.to_bytes()),
        }))
    }

    pub(super) async fn activate(&self, id: &AgentId, body: &[u8], peer: &Peer) -> Reply {
        // Parsed first: a request that carries no answer does not burn the challenge.
        let activation: Activation = parse(body)?;
        let internal = |error| Refusal::internal(&error);
        let agent = self.answered(id, &activation.auth_tag, peer).await?;
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

impl Inner {
    /// The registration whose challenge `tag` answers. A wrong answer spends the challenge that was
    /// made for its own source, and no other.
    async fn answered(&self, id: &AgentId, tag: &str, peer: &Peer) -> Result<Agent, Refusal> {
        let internal = |error| Refusal::internal(&error);
        let own = self.store.take_pending(id.as_str(), &source(peer)).await;
        if let Some(pending) = own.map_err(internal)? {
            if !self.is_fresh(&pending) {
                return Err(Refusal::bad_request(
                    "the challenge has expired; register again",
                ));
            }
            if !activation_tag_matches(&pending.challenge, id, tag) {
                tracing::warn!(
                    message_id = messages::REGISTRATION_REFUSED,
                    node_id = %id,
                    source = %peer.address,
                    "registration of {id} refused: wrong activation tag; the challenge is spent, an \
                     active registration stays"
                );
                return Err(Refusal::bad_request(
                    "auth_tag does not match; register again",
                ));
            }
            return Ok(pending.agent);
        }
        // The agent may have another address by now.
        let others = self.store.pending_of(id.as_str()).await;
        for other in others.map_err(internal)? {
            if !self.is_fresh(&other) || !activation_tag_matches(&other.challenge, id, tag) {
                continue;
            }
            let taken = self.store.take_pending(id.as_str(), &other.source).await;
            if let Some(taken) = taken.map_err(internal)?
                && taken.challenge == other.challenge
            {
                return Ok(taken.agent);
            }
        }
        let known = self.store.agent(id.as_str()).await.map_err(internal)?;
        Err(match known {
            Some(_) => {
                Refusal::bad_request("no registration of this agent waits for its activation")
            }
            None => not_registered(id),
        })
    }

    /// A challenge from the future was made before the clock was set back: its age is not known.
    fn is_fresh(&self, pending: &Pending) -> bool {
        let age = unix_seconds().abs_diff(pending.created_at);
        age <= self.challenge_lifetime.as_secs()
    }

    /// Keeps what waits within its bound, each so many registrations: a statement for each would
    /// be most of their cost.
    async fn tidy(&self, id: &AgentId, peer: &Peer) -> Result<(), Refusal> {
        let every = (self.max_pending / TIDY_SHARE).clamp(1, TIDY_AT_LEAST);
        let count = self.registrations.fetch_add(1, Ordering::Relaxed);
        if !count.is_multiple_of(every) {
            return Ok(());
        }
        let lifetime = self.challenge_lifetime.as_secs();
        let tidied = self
            .store
            .tidy_pending(unix_seconds(), lifetime, self.max_pending);
        if tidied.await.map_err(|error| Refusal::internal(&error))? > 0 {
            tracing::warn!(
                node_id = %id, source = %peer.address,
                "too many unanswered challenges: the oldest was dropped"
            );
        }
        Ok(())
    }
}

/// Whose challenge it is: the address, without the port, which changes with each connection.
fn source(peer: &Peer) -> String {
    peer.address.ip().to_canonical().to_string()
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
