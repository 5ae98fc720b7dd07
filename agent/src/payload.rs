//! The key that the operator's tenant and the verifier bring in two shares.
//!
//! The tenant hands over U, and the verifier V once this host is trusted; K = U xor V exists only
//! here. The tag over the agent id tells which shares belong together.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use troth_core::identity::AgentId;
use zeroize::Zeroizing;

/// Shares of each kind that are kept while they wait for their other half; the oldest goes first.
const WAITING: usize = 8;

/// Bytes of an HMAC-SHA-384.
const TAG: usize = 48;

/// Shares that came, and the key they gave.
#[derive(Debug)]
pub struct Shares {
    id: AgentId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    u: VecDeque<UShare>,
    v: VecDeque<Zeroizing<Vec<u8>>>,
    key: Option<Zeroizing<Vec<u8>>>,
}

/// Key material is never printed.
impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("u", &self.u.len())
            .field("v", &self.v.len())
            .field("key", &self.key.is_some())
            .finish()
    }
}

struct UShare {
    share: Zeroizing<Vec<u8>>,
    tag: [u8; TAG],
}

/// A share that is not taken; the texts are Keylime's.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// Not as long as an AES key.
    #[error("invalid AES key size: {0}")]
    Length(usize),
    /// The tag is not hexadecimal.
    #[error("auth tag is not hexadecimal")]
    TagHex,
    /// The tag has another length.
    #[error("auth tag length {0} does not correspond to valid SHA-384 HMAC")]
    TagLength(usize),
}

impl Shares {
    /// No share yet.
    pub fn new(id: AgentId) -> Self {
        Self {
            id,
            state: Mutex::default(),
        }
    }

    /// Takes the tenant's share with the hex tag of the key that it belongs to. Returns whether a
    /// key came of it.
    pub fn add_u(&self, share: Zeroizing<Vec<u8>>, tag: &str) -> Result<bool, ShareError> {
        check_length(&share)?;
        let tag = hex::decode(tag).map_err(|_| ShareError::TagHex)?;
        let tag = tag
            .try_into()
            .map_err(|tag: Vec<u8>| ShareError::TagLength(tag.len()))?;
        Ok(self.add(|state| push(&mut state.u, UShare { share, tag })))
    }

    /// Takes the verifier's share. Returns whether a key came of it.
    pub fn add_v(&self, share: Zeroizing<Vec<u8>>) -> Result<bool, ShareError> {
        check_length(&share)?;
        Ok(self.add(|state| push(&mut state.v, share)))
    }

    /// Hex HMAC-SHA-384 of `challenge` under the key; `None` while there is no key.
    pub fn prove(&self, challenge: &str) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let key = hmac::Key::new(hmac::HMAC_SHA384, state.key.as_ref()?);
        Some(hex::encode(hmac::sign(&key, challenge.as_bytes())))
    }

    fn add(&self, change: impl FnOnce(&mut State)) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let found = state.u.iter().find_map(|u| {
            let mut keys = state.v.iter().filter_map(|v| combine(&u.share, v));
            keys.find(|key| belongs(key, &u.tag, &self.id))
        });
        let Some(key) = found else { return false };
        *state = State {
            key: Some(key),
            ..State::default()
        };
        true
    }
}

fn check_length(share: &[u8]) -> Result<(), ShareError> {
    match share.len() {
        16 | 32 => Ok(()),
        other => Err(ShareError::Length(other)),
    }
}

fn push<T>(shares: &mut VecDeque<T>, share: T) {
    if shares.len() == WAITING {
        shares.pop_front();
    }
    shares.push_back(share);
}

fn combine(u: &[u8], v: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    (u.len() == v.len()).then(|| Zeroizing::new(u.iter().zip(v).map(|(u, v)| u ^ v).collect()))
}

fn belongs(key: &[u8], tag: &[u8; TAG], id: &AgentId) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA384, key);
    let expected = hmac::sign(&key, id.as_str().as_bytes());
    verify_slices_are_equal(expected.as_ref(), tag).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The vector of Keylime's key derivation: K = 00 01 .. 1f, V = 32 times a5.
    const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000";
    const TAG_HEX: &str = "74216909e21c5a1a5fb9e0ad23881f6f1693d01b5469c4d12dfe4ea151ab3334\
                           690966790c8e3b4a358b1be3ca443e2d";
    const PROOF: &str = "43d857a74942cfd63a4aafb043877027fc0b80b9be128b53f63d49b82d023615\
                         e42510fae97d611806debf13e22a5a67";

    fn shares() -> Shares {
        Shares::new(AgentId::new(ID).unwrap())
    }

    fn v() -> Zeroizing<Vec<u8>> {
        Zeroizing::new(vec![0xA5; 32])
    }

    fn u() -> Zeroizing<Vec<u8>> {
        Zeroizing::new((0..32).map(|byte| byte ^ 0xA5).collect())
    }

    #[test]
    fn the_key_comes_of_both_shares_in_either_order() {
        for u_first in [true, false] {
            let shares = shares();
            assert_eq!(shares.prove("abcdefghij0123456789"), None);
            if u_first {
                assert!(!shares.add_u(u(), TAG_HEX).unwrap());
                assert!(shares.add_v(v()).unwrap());
            } else {
                assert!(!shares.add_v(v()).unwrap());
                assert!(shares.add_u(u(), &TAG_HEX.to_uppercase()).unwrap());
            }
            assert_eq!(shares.prove("abcdefghij0123456789").unwrap(), PROOF);
        }
    }

    #[test]
    fn a_share_of_another_key_does_no_harm() {
        let shares = shares();
        assert!(!shares.add_v(Zeroizing::new(vec![1; 32])).unwrap());
        assert!(!shares.add_v(Zeroizing::new(vec![1; 16])).unwrap());
        assert!(!shares.add_u(u(), &"0".repeat(96)).unwrap());
        assert!(!shares.add_u(u(), TAG_HEX).unwrap());
        assert!(shares.add_v(v()).unwrap());
    }

    #[test]
    fn shares_that_wait_are_bounded() {
        let shares = shares();
        for _ in 0..100 {
            shares.add_v(Zeroizing::new(vec![1; 32])).unwrap();
        }
        assert_eq!(shares.state.lock().unwrap().v.len(), WAITING);
        assert!(!format!("{shares:?}").contains("165"), "V is a5 = 165");
    }

    #[test]
    fn malformed_shares_are_refused() {
        let shares = shares();
        let short = || Zeroizing::new(vec![0; 31]);
        assert_eq!(shares.add_v(short()), Err(ShareError::Length(31)));
        assert_eq!(shares.add_u(short(), TAG_HEX), Err(ShareError::Length(31)));
        assert_eq!(shares.add_u(u(), "zz"), Err(ShareError::TagHex));
        assert_eq!(shares.add_u(u(), "00"), Err(ShareError::TagLength(1)));
    }
}
