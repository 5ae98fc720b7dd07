use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use aws_lc_rs::digest::{SHA256, digest};
use troth_core::policy::{PolicyError, RuntimePolicy};

/// Compiled runtime policies by content. A policy lives as long as a node uses it.
#[derive(Debug, Default)]
pub(super) struct PolicyCache {
    compiled: Mutex<HashMap<String, Weak<RuntimePolicy>>>,
}

impl PolicyCache {
    /// The compiled form of `text`, whose digest is `digest`. May take a while: call it on a
    /// worker thread.
    pub(super) fn compile(
        &self,
        digest: &str,
        text: &str,
    ) -> Result<Arc<RuntimePolicy>, PolicyError> {
        if let Some(policy) = self.get(digest) {
            return Ok(policy);
        }
        // Not under the lock: another policy must not wait. The loser of a race is dropped.
        let compiled = Arc::new(RuntimePolicy::compile(text.as_bytes())?);
        let mut map = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        map.retain(|_, policy| policy.strong_count() > 0);
        if let Some(policy) = map.get(digest).and_then(Weak::upgrade) {
            return Ok(policy);
        }
        map.insert(digest.to_owned(), Arc::downgrade(&compiled));
        Ok(compiled)
    }

    /// The compiled form, if some node uses it already.
    pub(super) fn get(&self, digest: &str) -> Option<Arc<RuntimePolicy>> {
        let map = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(digest).and_then(Weak::upgrade)
    }
}

/// Hex SHA-256 of a policy's text.
pub(super) fn content_digest(text: &str) -> String {
    hex::encode(digest(&SHA256, text.as_bytes()))
}
