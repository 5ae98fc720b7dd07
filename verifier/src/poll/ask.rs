use std::sync::Arc;

use serde::Deserialize;
use troth_core::{
    appraise::NodeState,
    wire::{AgentVersion, Envelope},
};
use troth_daemon::client::{Answer, Client, ClientError};

use super::{
    judge::{self, Workers, judge},
    rules::Rules,
    state::Outcome,
};
use crate::rest::VERSIONS;

/// Length of a nonce, which Keylime's agents expect to be alphanumeric: 119 bits.
const NONCE_LENGTH: usize = 20;
/// What Keylime's agents answer, with status 400, to a version they do not serve.
const VERSION_NOT_SUPPORTED: &str = "API version not supported";

/// What one question depends on.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) rules: Arc<Rules>,
    pub(super) state: NodeState,
    pub(super) version: String,
    /// Any attestation so far? Then the API version must not go down.
    pub(super) attested: bool,
    /// Ask for the NK too (`partial=0`).
    pub(super) full: bool,
}

/// The outcome, and the API version that it came with.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) outcome: Outcome,
    pub(super) version: String,
}

/// Asks a node once; when it has changed its API version, once more.
pub(super) async fn ask(client: &Client, workers: &Workers, question: Question) -> Reply {
    let Question {
        rules,
        state,
        mut version,
        attested,
        full,
    } = question;
    let Some(nonce) = nonce() else {
        let reason = String::from("this host has no random numbers for a nonce");
        return Reply {
            outcome: Outcome::NoAnswer { reason },
            version,
        };
    };
    let mut renegotiated = false;
    let answer = loop {
        let path = format!(
            "/v{version}/quotes/integrity?nonce={nonce}&mask={}&partial={}&ima_ml_entry={}",
            rules.tpm.mask(),
            u8::from(!full),
            state.ima.next_entry,
        );
        let answer = match client.get(&path).await {
            Ok(answer) => answer,
            Err(error @ ClientError::BodyTooLarge { .. }) => {
                return Reply {
                    outcome: judge::invalid(error.to_string()),
                    version,
                };
            }
            Err(error) => {
                let reason = error.to_string();
                return Reply {
                    outcome: Outcome::NoAnswer { reason },
                    version,
                };
            }
        };
        let unsupported =
            answer.status == 400 && status_text(&answer).contains(VERSION_NOT_SUPPORTED);
        if !unsupported || renegotiated {
            break answer;
        }
        match negotiate(client, &version, attested).await {
            Ok(common) => version = common,
            Err(reason) => {
                return Reply {
                    outcome: Outcome::NoAnswer { reason },
                    version,
                };
            }
        }
        renegotiated = true;
    };
    if answer.status != 200 {
        let reason = format!(
            "the agent answered {}: {}",
            answer.status,
            status_text(&answer)
        );
        return Reply {
            outcome: Outcome::NoAnswer { reason },
            version,
        };
    }
    // The body moves along: a large one counts as in memory until it is judged.
    let Answer { body, .. } = answer;
    let work = move || judge(&rules, &nonce, &state, &body);
    let outcome = match workers.run(work).await {
        Ok(outcome) => outcome,
        Err(error) => judge::broken(&error),
    };
    Reply { outcome, version }
}

/// The highest version that both sides speak. Once a node was attested it must be a higher one
/// than before, so that nobody can talk the two down.
async fn negotiate(client: &Client, current: &str, attested: bool) -> Result<String, String> {
    let answer = client
        .get("/version")
        .await
        .map_err(|error| error.to_string())?;
    let offered: Envelope<AgentVersion> = answer.json().map_err(|error| error.to_string())?;
    let offered = offered
        .results
        .ok_or("the agent's /version has no `results`")?;
    let mut versions = offered.supported_versions;
    if versions.is_empty() {
        versions.push(offered.supported_version);
    }
    let common = VERSIONS
        .iter()
        .rev()
        .find(|ours| versions.iter().any(|theirs| theirs == *ours))
        .ok_or_else(|| {
            format!(
                "no common API version: the agent offers {}",
                printable(&versions.join(", "))
            )
        })?;
    if attested && rank(common) <= rank(current) {
        return Err(format!(
            "the agent no longer serves API version {current}, only {common}"
        ));
    }
    Ok((*common).to_owned())
}

fn rank(version: &str) -> Option<usize> {
    VERSIONS.iter().position(|known| *known == version)
}

/// `status` of an envelope, or the start of whatever came instead.
fn status_text(answer: &Answer) -> String {
    #[derive(Deserialize)]
    struct Status {
        status: String,
    }
    match answer.json::<Status>() {
        Ok(Status { status }) => printable(&status),
        Err(_) => printable(&String::from_utf8_lossy(
            &answer.body[..answer.body.len().min(200)],
        )),
    }
}

/// Foreign text for logs and statuses: one line, bounded.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect()
}

/// Random alphanumerics, every character equally likely.
fn nonce() -> Option<String> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut nonce = String::with_capacity(NONCE_LENGTH);
    while nonce.len() < NONCE_LENGTH {
        let mut bytes = [0u8; 32];
        aws_lc_rs::rand::fill(&mut bytes).ok()?;
        // 248 is the largest multiple of 62 in a byte: above it, characters would differ.
        let fair = bytes
            .iter()
            .filter(|byte| **byte < 248)
            .map(|byte| usize::from(byte % 62));
        nonce.extend(
            fair.take(NONCE_LENGTH - nonce.len())
                .map(|i| char::from(ALPHABET[i])),
        );
    }
    Some(nonce)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn nonces_are_fresh_alphanumerics_of_keylimes_length() {
        let nonces: HashSet<_> = (0..1000).map(|_| nonce().unwrap()).collect();
        assert_eq!(nonces.len(), 1000);
        let good = |n: &String| n.len() == 20 && n.bytes().all(|b| b.is_ascii_alphanumeric());
        assert!(nonces.iter().all(good));
        let seen: HashSet<_> = nonces.iter().flat_map(|n| n.chars()).collect();
        assert_eq!(seen.len(), 62);
    }
}
