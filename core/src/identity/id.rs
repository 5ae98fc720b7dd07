use serde::{Deserialize, Serialize};

use super::IdentityError;
use crate::tpm::{HashAlgorithm, Public};

/// Longest agent id, in characters; Keylime's databases hold no more.
const MAX_AGENT_ID: usize = 80;

/// An agent id: 1 to 80 characters of `[A-Za-z0-9._-]`, the first not a dot.
///
/// Safe as a URL path segment, a file name, and in a log line.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String")]
pub struct AgentId(String);

impl AgentId {
    /// Checks the alphabet and length.
    pub fn new(id: &str) -> Result<Self, IdentityError> {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=MAX_AGENT_ID).contains(&id.len()) && id.bytes().all(safe) && !id.starts_with('.') {
            Ok(Self(id.to_owned()))
        } else {
            Err(IdentityError::AgentId(
                id.chars().take(MAX_AGENT_ID).collect(),
            ))
        }
    }

    /// Keylime's `hash_ek`: hex SHA-256 of the EK's SubjectPublicKeyInfo PEM text.
    pub fn hash_ek(ek: &Public) -> Self {
        Self(
            HashAlgorithm::Sha256
                .digest(&[ek.to_spki_pem().as_bytes()])
                .to_string(),
        )
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for AgentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for AgentId {
    type Err = IdentityError;
    fn from_str(id: &str) -> Result<Self, IdentityError> {
        Self::new(id)
    }
}

impl TryFrom<String> for AgentId {
    type Error = IdentityError;
    fn try_from(id: String) -> Result<Self, IdentityError> {
        Self::new(&id)
    }
}
