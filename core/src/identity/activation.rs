use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::AgentId;

/// HMAC-SHA-384 activation tag, lower-case hex: key = base64 text of the challenge, message =
/// agent id.
pub fn activation_tag(challenge: &[u8], id: &AgentId) -> String {
    hex::encode(hmac::sign(
        &activation_key(challenge),
        id.as_str().as_bytes(),
    ))
}

/// Compares an activation tag, hex of either case, in constant time.
pub fn activation_tag_matches(challenge: &[u8], id: &AgentId, tag: &str) -> bool {
    let mut bytes = [0; 48];
    hex::decode_to_slice(tag, &mut bytes).is_ok()
        && hmac::verify(&activation_key(challenge), id.as_str().as_bytes(), &bytes).is_ok()
}

/// The key is the base64 text itself: that is what Keylime's registrar stores.
fn activation_key(challenge: &[u8]) -> hmac::Key {
    let text = zeroize::Zeroizing::new(STANDARD.encode(challenge));
    hmac::Key::new(hmac::HMAC_SHA384, text.as_bytes())
}
