use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use troth_core::{
    appraise::NodeState,
    bundle,
    wire::{AgentVersion, Envelope},
};
use troth_daemon::client::{Answer, Client, ClientError, LARGE_ANSWER};

use super::{
    judge::{self, Workers, judge},
    last_boot::Remembered,
    rules::Rules,
    state::Outcome,
};
use crate::{evidence::Keep, rest::VERSIONS};

/// Length of a nonce, which Keylime's agents expect to be alphanumeric: 119 bits.
const NONCE_LENGTH: usize = 20;
/// What Keylime's agents answer, with status 400, to a version they do not serve.
const VERSION_NOT_SUPPORTED: &str = "API version not supported";

/// Findings that an agent makes by changing between two questions: another NK than the one known,
/// which PCR 16 is bound to, or another form of its answers.
const OF_A_CHANGE: [&str; 6] = [
    "pcr_validation.invalid_pcr_16",
    "qoute_validation.no_pubkey",
    "qoute_validation.invalid_data",
    "qoute_validation.invalid_hash_alg",
    "qoute_validation.invalid_enc_alg",
    "qoute_validation.invalid_sign_alg",
];

/// What one question depends on.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) rules: Arc<Rules>,
    pub(super) state: NodeState,
    pub(super) boots: Remembered,
    pub(super) version: String,
    /// Any attestation so far? Then the API version must not go down.
    pub(super) attested: bool,
    /// Ask for the NK too (`partial=0`).
    pub(super) full: bool,
    /// Does the agent send systemd's log? `None`: not known yet.
    pub(super) userspace_log: Option<bool>,
    /// Which answers are wanted for a bundle.
    pub(super) keep: Option<Keep>,
}

/// The outcome, how the agent was asked for it, and what a bundle needs.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) outcome: Outcome,
    pub(super) version: String,
    pub(super) userspace_log: Option<bool>,
    pub(super) exchange: Option<Exchange>,
}

/// What an agent says that it serves.
struct Offer {
    /// The highest version that both sides speak.
    version: &'static str,
    userspace_log: bool,
}

/// A question that was answered and judged, for a bundle.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) nonce: String,
    /// What was known of the node before.
    pub(super) state: NodeState,
    /// The answer's body.
    pub(super) body: Bytes,
    pub(super) outcome: bundle::Outcome,
}

/// What came of one question, and the exchange if it may be kept.
type Judged = (Outcome, Option<Exchange>);

/// Asks a node; once more when its agent may have changed since it was last asked.
///
/// An agent that was upgraded or restarted may have dropped the API version, and may have made a
/// new NK, which it sends only when it is asked for it. Neither is a failed attestation. What
/// counts is the second answer: it is judged in full, against a nonce of its own.
pub(super) async fn ask(client: &Client, workers: &Workers, mut question: Question) -> Reply {
    if question.userspace_log.is_none() && wants_userspace_log(&question) {
        // Where nothing was learned, the question itself will say why.
        let offer = offer(client).await;
        question.userspace_log = offer.ok().map(|offer| offer.userspace_log);
    }
    let mut answer = ask_once(client, workers, &question).await;
    if is_explained_by_a_change(&answer, question.full) {
        // It is not the answer that counts, and may be large.
        if let Ok((_, exchange)) = &mut answer {
            *exchange = None;
        }
        let offer = offer(client).await;
        if let Ok(offer) = &offer {
            question.userspace_log = Some(offer.userspace_log);
        }
        let common = offer.map(|offer| offer.version);
        let higher = |common: &str| rank(common) > rank(&question.version);
        let (current, attested) = (question.version.as_str(), question.attested);
        let version = match (&answer, common) {
            // Once a node was attested, nobody can talk the two down.
            (Err(OtherVersion), Ok(common)) if attested && !higher(common) => Err(format!(
                "the agent no longer serves API version {current}, only {common}"
            )),
            (Err(OtherVersion), common) => common.map(str::to_owned),
            (Ok(_), Ok(common)) if higher(common) => Ok(common.to_owned()),
            (Ok(_), _) => Ok(current.to_owned()),
        };
        answer = match version {
            Ok(version) => {
                question.version = version;
                question.full = true;
                ask_once(client, workers, &question).await
            }
            Err(reason) => Ok((Outcome::NoAnswer { reason }, None)),
        };
    }
    let version = question.version;
    let (outcome, exchange) = answer.unwrap_or_else(|OtherVersion| {
        let reason = format!("the agent offers API version {version}, but does not serve it");
        (Outcome::NoAnswer { reason }, None)
    });
    // The next boot may bring another agent.
    let rebooted = matches!(outcome, Outcome::Rebooted { .. });
    Reply {
        outcome,
        version,
        userspace_log: question.userspace_log.filter(|_| !rebooted),
        exchange,
    }
}

/// Does the boot policy look at PCRs that user space goes on extending?
fn wants_userspace_log(question: &Question) -> bool {
    let mask = question.rules.named.boot.mask();
    [9, 11, 15].into_iter().any(|pcr| mask.contains(pcr))
}

/// The agent does not serve the API version.
struct OtherVersion;

/// Could an agent that changed, but is honest, have answered so? `full`: it was asked for its key.
fn is_explained_by_a_change(answer: &Result<Judged, OtherVersion>, full: bool) -> bool {
    match answer {
        Err(OtherVersion) => true,
        Ok((Outcome::Failed { findings, .. }, _)) if !full => findings
            .iter()
            .all(|finding| OF_A_CHANGE.contains(&&*finding.id)),
        Ok(_) => false,
    }
}

async fn ask_once(
    client: &Client,
    workers: &Workers,
    question: &Question,
) -> Result<Judged, OtherVersion> {
    let no_answer = |reason| Ok((Outcome::NoAnswer { reason }, None));
    let Some(nonce) = nonce() else {
        return no_answer(String::from("this host has no random numbers for a nonce"));
    };
    let mut path = format!(
        "/v{}/quotes/integrity?nonce={nonce}&mask={}&partial={}&ima_ml_entry={}",
        question.version,
        question.rules.tpm.mask(),
        u8::from(!question.full),
        question.state.ima.next_entry,
    );
    if question.userspace_log == Some(true) && wants_userspace_log(question) {
        path.push_str("&userspace_ml=1");
    }
    let answer = match client.get(&path).await {
        Ok(answer) => answer,
        Err(error @ ClientError::BodyTooLarge { .. }) => {
            return Ok((judge::invalid(error.to_string()), None));
        }
        Err(error @ ClientError::Tls { .. }) => {
            return no_answer(format!(
                "{error}; if the agent has a new TLS key, `trothctl agent update` takes it over"
            ));
        }
        Err(error) => return no_answer(error.to_string()),
    };
    if answer.status != 200 {
        let text = status_text(&answer);
        if answer.status == 400 && text.contains(VERSION_NOT_SUPPORTED) {
            return Err(OtherVersion);
        }
        return no_answer(format!("the agent answered {}: {text}", answer.status));
    }
    // The body moves along: a large one counts as in memory until it is judged.
    let Answer { body, .. } = answer;
    let (rules, state) = (Arc::clone(&question.rules), question.state.clone());
    let boots = question.boots.clone();
    let size = body.len();
    let keep = question.keep;
    let work = move || {
        let (outcome, kept) = judge(&rules, &nonce, &state, &boots, &body, keep);
        let exchange = kept.map(|outcome| Exchange {
            nonce,
            state,
            // The body of a large answer holds a turn, which ends here.
            body: match body.len() > LARGE_ANSWER {
                true => Bytes::copy_from_slice(&body),
                false => body,
            },
            outcome,
        });
        (outcome, exchange)
    };
    let judged = workers.check(size, work).await;
    Ok(judged.unwrap_or_else(|error| (judge::broken(&error), None)))
}

/// Asks the agent for its versions and extensions.
async fn offer(client: &Client) -> Result<Offer, String> {
    let answer = client
        .get("/version")
        .await
        .map_err(|error| error.to_string())?;
    let offered: Envelope<AgentVersion> = answer.json().map_err(|error| error.to_string())?;
    let offered = offered
        .results
        .ok_or("the agent's /version has no `results`")?;
    let mut extensions = offered.extensions.iter();
    let userspace_log = extensions.any(|name| name == AgentVersion::USERSPACE_LOG);
    let mut versions = offered.supported_versions;
    if versions.is_empty() {
        versions.push(offered.supported_version);
    }
    let common = VERSIONS
        .into_iter()
        .rev()
        .find(|ours| versions.iter().any(|theirs| theirs == ours));
    let offer = common.map(|version| Offer {
        version,
        userspace_log,
    });
    offer.ok_or_else(|| {
        format!(
            "no common API version: the agent offers {}",
            printable(&versions.join(", "))
        )
    })
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
