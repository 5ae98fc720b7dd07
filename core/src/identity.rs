//! Who a node is. See stubs; the implementer completes this module.
use crate::tpm::Public;

/// An agent id: 1 to 80 characters of `[A-Za-z0-9._-]`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Serialize)]
pub struct AgentId(String);
impl AgentId {
    /// Checks the alphabet and length.
    pub fn new(_id: &str) -> Result<Self, IdentityError> { todo!() }
    /// Keylime's `hash_ek`: hex SHA-256 of the EK's SubjectPublicKeyInfo PEM text.
    pub fn hash_ek(_ek: &Public) -> Self { todo!() }
    /// The text.
    pub fn as_str(&self) -> &str { &self.0 }
}
impl std::fmt::Display for AgentId { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) } }
/// Refuses an AK whose attributes would let the host forge quotes.
pub fn check_ak(_ak: &Public) -> Result<(), IdentityError> { todo!() }
/// Refuses an EK that does not follow a TCG template.
pub fn check_ek(_ek: &Public) -> Result<(), IdentityError> { todo!() }
/// An EK certificate as read from NV or the wire (PEM, base64 DER, padded, OCTET STRING-wrapped): the DER cut to length, or `None` when empty.
pub fn normalise_ek_certificate(_bytes: &[u8]) -> Result<Option<Vec<u8>>, IdentityError> { todo!() }
/// Is the certificate's SubjectPublicKeyInfo the EK's?
pub fn certificate_matches_key(_certificate_der: &[u8], _key: &Public) -> Result<bool, IdentityError> { todo!() }
/// HMAC-SHA-384 activation tag, lower-case hex: key = base64 text of the challenge, message = agent id.
pub fn activation_tag(_challenge: &[u8], _id: &AgentId) -> String { todo!() }
/// Compares an activation tag in constant time.
pub fn activation_tag_matches(_challenge: &[u8], _id: &AgentId, _tag: &str) -> bool { todo!() }
/// Why an identity is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// An agent id outside the alphabet or length.
    #[error("agent id {0:?} is not 1 to 80 characters of [A-Za-z0-9._-]")]
    AgentId(String),
}
