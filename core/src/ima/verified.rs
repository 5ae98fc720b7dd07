use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};

use super::ImaKey;

/// Signatures remembered, at most; 32 bytes and some each. Twice that for a while.
const MOST: usize = 64 << 10;

/// Signatures that were found to be good: which key made which signature over which digest. Each is
/// known by a SHA-256 over the three. All nodes of a policy share one, as they run the same files.
///
/// What is found in it was checked before with the same result; it makes answers faster, never
/// others.
#[derive(Default)]
pub(crate) struct VerifiedSignatures(Mutex<Generations>);

/// When the younger one is full, it becomes the older one.
#[derive(Default)]
struct Generations {
    young: HashSet<[u8; 32]>,
    old: HashSet<[u8; 32]>,
}

impl VerifiedSignatures {
    /// `check`s, unless that was done before.
    pub(super) fn check<E>(
        &self,
        key: &ImaKey,
        (hash, signed): (&str, &[u8]),
        signature: &[u8],
        check: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut whole = Vec::with_capacity(192 + signature.len());
        whole.extend_from_slice(key.fingerprint());
        // Each part has its length before it, or is of one length, or is the last.
        for part in [hash.as_bytes(), signed] {
            whole.extend_from_slice(&part.len().to_le_bytes());
            whole.extend_from_slice(part);
        }
        whole.extend_from_slice(signature);
        let mut id = [0; 32];
        id.copy_from_slice(digest(&SHA256, &whole).as_ref());
        if self.lock().contains(&id) {
            return Ok(());
        }
        check()?;
        self.lock().insert(id);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn contains(&mut self, id: &[u8; 32]) -> bool {
        if self.young.contains(id) {
            return true;
        }
        let found = self.old.remove(id);
        if found {
            self.insert(*id);
        }
        found
    }

    fn insert(&mut self, id: [u8; 32]) {
        if self.young.len() >= MOST {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id);
    }
}

impl fmt::Debug for VerifiedSignatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedSignatures").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    use super::*;

    /// A key pair's two halves; all have the same id.
    fn key() -> (EcdsaKeyPair, ImaKey) {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let key = ImaKey::from_spki(spki.as_ref(), Some(1)).unwrap();
        (pair, key)
    }

    fn sign(pair: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
        let signature = pair.sign(&SystemRandom::new(), message).unwrap();
        signature.as_ref().to_owned()
    }

    fn sha256(message: &[u8]) -> Vec<u8> {
        digest(&SHA256, message).as_ref().to_owned()
    }

    /// Is it good, and was it verified anew?
    fn asked(
        verified: &VerifiedSignatures,
        key: &ImaKey,
        (hash, digest): (&str, &[u8]),
        signature: &[u8],
    ) -> (bool, bool) {
        let mut anew = false;
        let check = || {
            anew = true;
            let good = key.verifies(hash, digest, signature) == Some(true);
            good.then_some(()).ok_or(())
        };
        let good = verified
            .check(key, (hash, digest), signature, check)
            .is_ok();
        (good, anew)
    }

    #[test]
    fn a_hit_needs_the_same_key_digest_and_signature() {
        let verified = VerifiedSignatures::default();
        let ((pair, key), (_, other)) = (key(), key());
        let (digest, signature) = (sha256(b"file"), sign(&pair, b"file"));
        let ask = |key, digest: &[u8], signature: &[u8]| {
            asked(&verified, key, ("sha256", digest), signature)
        };
        assert_eq!(ask(&key, &digest, &signature), (true, true));
        assert_eq!(ask(&key, &digest, &signature), (true, false), "known now");
        let mut flipped = signature.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for (what, key, digest, signature) in [
            ("key", &other, &digest, &signature),
            ("digest", &key, &sha256(b"other"), &signature),
            ("signature", &key, &digest, &flipped),
            ("signature cut", &key, &digest, &signature[..8].to_owned()),
            ("no signature", &key, &digest, &Vec::new()),
            ("no digest", &key, &Vec::new(), &signature),
        ] {
            assert_eq!(ask(key, digest, signature), (false, true), "another {what}");
        }
        // Bytes that move from one part to the next are other parts.
        let (moved, rest) = signature.split_at(1);
        let longer = [&digest, moved].concat();
        assert!(ask(&key, &longer, rest).1, "moved from signature to digest");
        let hash = asked(&verified, &key, ("sha512", &digest), &signature);
        assert!(hash.1, "the name of the hash is part of it");
        assert_eq!(ask(&key, &digest, &signature), (true, false), "still known");
    }

    #[test]
    fn what_failed_is_verified_every_time() {
        let verified = VerifiedSignatures::default();
        let (pair, key) = key();
        let signature = sign(&pair, b"another file");
        for _ in 0..3 {
            let failed = asked(&verified, &key, ("sha256", &sha256(b"file")), &signature);
            assert_eq!(failed, (false, true));
        }
        let known = verified.lock();
        assert!(known.young.is_empty() && known.old.is_empty());
    }

    #[test]
    fn as_many_are_remembered_as_are_said() {
        let verified = VerifiedSignatures::default();
        let (_, key) = key();
        let ask = |number: usize| {
            let mut anew = false;
            let check = || {
                anew = true;
                Ok::<_, ()>(())
            };
            let signature = number.to_le_bytes();
            verified
                .check(&key, ("sha256", &[7; 32]), &signature, check)
                .unwrap();
            anew
        };
        // The first one is in use all the time, and is never forgotten.
        for number in 0..MOST * 3 {
            assert!(ask(number), "{number} was never seen");
            assert!(!ask(number));
            assert!(!ask(0), "forgotten after {number}");
            let known = verified.lock();
            assert!(known.young.len() <= MOST && known.old.len() <= MOST);
        }
        assert!(ask(1), "the oldest ones are forgotten");
        assert!(!ask(MOST * 3 - 1));
    }
}
