use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use troth_core::policy::{BootPolicy, PolicyError, RuntimePolicy};

use crate::store::{NewPolicy, PolicyKind};

/// Longest name of a policy in bytes, as in Keylime's database.
const MAX_NAME: usize = 255;

/// The name that a policy is kept under: 1 to 255 bytes of UTF-8 without control characters.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyName(String);

impl PolicyName {
    /// Checks a name.
    pub fn new(name: impl Into<String>) -> Result<Self, PolicyNameError> {
        let name = name.into();
        let good = (1..=MAX_NAME).contains(&name.len()) && !name.contains(char::is_control);
        good.then_some(Self(name)).ok_or(PolicyNameError)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no name for a policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("policy name: 1 to {MAX_NAME} bytes of UTF-8 without control characters")]
pub struct PolicyNameError;

/// A policy as operators send it.
#[derive(Clone, Debug)]
pub enum SentPolicy {
    /// base64 of a runtime policy's JSON text.
    Runtime(String),
    /// A boot policy's JSON text.
    Boot(String),
}

impl SentPolicy {
    pub(super) fn kind(&self) -> PolicyKind {
        match self {
            Self::Runtime(_) => PolicyKind::Runtime,
            Self::Boot(_) => PolicyKind::Boot,
        }
    }
}

/// A policy of a name, ready to judge by.
#[derive(Clone, Debug)]
pub(super) enum Compiled {
    Runtime(Arc<RuntimePolicy>),
    Boot(BootPolicy),
}

/// The policies of one node that have names.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) runtime: Option<Arc<RuntimePolicy>>,
    pub(super) boot: BootPolicy,
}

impl Named {
    /// No policy of either kind.
    pub(super) const NONE: Self = Self {
        runtime: None,
        boot: BootPolicy::None,
    };

    /// The same with `policy` in its place.
    pub(super) fn with(self, policy: Compiled) -> Self {
        match policy {
            Compiled::Runtime(policy) => Self {
                runtime: Some(policy),
                ..self
            },
            Compiled::Boot(boot) => Self { boot, ..self },
        }
    }
}

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
        kind: PolicyKind,
        digest: &str,
        text: &str,
    ) -> Result<Compiled, PolicyError> {
        match kind {
            PolicyKind::Runtime => self.runtime(digest, text).map(Compiled::Runtime),
            PolicyKind::Boot => BootPolicy::parse(Some(text)).map(Compiled::Boot),
        }
    }

    fn runtime(&self, digest: &str, text: &str) -> Result<Arc<RuntimePolicy>, PolicyError> {
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

    /// Takes in a policy that an operator sent. Call it on a worker thread.
    pub(super) fn receive(
        &self,
        name: &PolicyName,
        sent: SentPolicy,
    ) -> Result<(NewPolicy, Compiled), TextError> {
        let kind = sent.kind();
        let body = match sent {
            SentPolicy::Boot(text) => text,
            SentPolicy::Runtime(encoded) => STANDARD
                .decode(encoded)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or(TextError::Encoding)?,
        };
        let digest = content_digest(&body);
        let policy = self.compile(kind, &digest, &body)?;
        if matches!(policy, Compiled::Boot(BootPolicy::None)) {
            return Err(PolicyError::BootPolicy(body).into());
        }
        let new = NewPolicy {
            name: name.as_str().to_owned(),
            digest,
            body,
        };
        Ok((new, policy))
    }

    /// The compiled runtime policy, if some node uses it already.
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
