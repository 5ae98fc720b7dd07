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
