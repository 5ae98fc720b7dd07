use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use troth_core::policy::{PolicyError, RuntimePolicy};

use crate::store::NewPolicy;

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

    /// Takes in a policy as the API carries it, base64 of its text. Call it on a worker thread.
    pub(super) fn receive(
        &self,
        name: String,
        encoded: &str,
    ) -> Result<(NewPolicy, Arc<RuntimePolicy>), TextError> {
        let body = STANDARD
            .decode(encoded)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or(TextError::Encoding)?;
        let digest = content_digest(&body);
        let policy = self.compile(&digest, &body)?;
        Ok((NewPolicy { name, digest, body }, policy))
    }

    /// The compiled form, if some node uses it already.
    pub(super) fn get(&self, digest: &str) -> Option<Arc<RuntimePolicy>> {
        let map = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(digest).and_then(Weak::upgrade)
    }
}

/// A policy that cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub(super) enum TextError {
    /// Not base64 of UTF-8 text.
    #[error("runtime_policy is not base64 of a JSON text")]
    Encoding,
    /// Not a policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Hex SHA-256 of a policy's text.
fn content_digest(text: &str) -> String {
    hex::encode(digest(&SHA256, text.as_bytes()))
}
