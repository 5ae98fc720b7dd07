use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use troth_core::{
    bundle::policy_digest,
    identity::{Expiry, Trust, TrustAnchors},
    policy::{
        BootEngine, BootPolicy, Envelope, PolicyError, RuntimePolicy, SigningKey, SigningKeyError,
    },
};

use crate::{
    config::PolicySigners,
    store::{NewPolicy, PolicyKind},
};

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
    /// A runtime policy.
    Runtime {
        /// base64 of its JSON text, or of a DSSE envelope around that.
        policy: String,
        /// base64 of the PEM of the key that must have signed it.
        key: Option<String>,
    },
    /// A boot policy's JSON text.
    Boot(String),
}

impl SentPolicy {
    pub(super) fn kind(&self) -> PolicyKind {
        match self {
            Self::Runtime { .. } => PolicyKind::Runtime,
            Self::Boot(_) => PolicyKind::Boot,
        }
    }
}

/// A policy of a name, ready to judge by.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    /// Hex SHA-256 of its text.
    digest: Arc<str>,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Runtime(Arc<RuntimePolicy>),
    Boot(BootPolicy),
}

impl Compiled {
    pub(super) fn runtime(digest: &str, policy: Arc<RuntimePolicy>) -> Self {
        Self {
            digest: digest.into(),
            form: Form::Runtime(policy),
        }
    }

    pub(super) fn boot(digest: &str, policy: BootPolicy) -> Self {
        Self {
            digest: digest.into(),
            form: Form::Boot(policy),
        }
    }
}

/// The policies of one node that have names.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) runtime: Option<Arc<RuntimePolicy>>,
    pub(super) boot: BootPolicy,
    /// Hex SHA-256 of the text of each.
    pub(super) runtime_digest: Option<Arc<str>>,
    pub(super) boot_digest: Option<Arc<str>>,
}

impl Named {
    /// No policy of either kind.
    pub(super) const NONE: Self = Self {
        runtime: None,
        boot: BootPolicy::None,
        runtime_digest: None,
        boot_digest: None,
    };

    /// The same with `policy` in its place.
    pub(super) fn with(self, policy: Compiled) -> Self {
        let Compiled { digest, form } = policy;
        match form {
            Form::Runtime(policy) => Self {
                runtime: Some(policy),
                runtime_digest: Some(digest),
                ..self
            },
            Form::Boot(boot) => Self {
                boot,
                boot_digest: Some(digest),
                ..self
            },
        }
    }

    /// Does the other one judge by the same policies?
    pub(super) fn same(&self, other: &Self) -> bool {
        let runtime = |named: &Self| named.runtime.as_ref().map(Arc::as_ptr);
        runtime(self) == runtime(other) && self.boot == other.boot
    }
}

/// Whose signatures runtime policies need.
#[derive(Debug)]
pub(super) struct Signatures {
    /// Refuse policies that nobody signed.
    pub(super) required: bool,
    /// Who says whose signature counts.
    pub(super) signers: PolicySigners,
    /// The key of policies that come without one.
    pub(super) key: Option<SigningKey>,
    /// CAs of those whose certificates count where that key does.
    pub(super) anchors: TrustAnchors,
}

impl Signatures {
    /// Is there anybody whose signature counts?
    pub(super) fn can_be_made(&self) -> bool {
        self.signers == PolicySigners::Request || self.is_configured()
    }

    fn is_configured(&self) -> bool {
        self.key.is_some() || !self.anchors.is_empty()
    }

    /// Checks a policy that an operator sent, with the key that came along.
    fn check(&self, text: &str, key: Option<&str>) -> Result<(), SignatureError> {
        let given = key.filter(|key| !key.is_empty()).map(|key| {
            let pem = STANDARD.decode(key);
            SigningKey::parse(&pem.unwrap_or_default()).map_err(SignatureError::Key)
        });
        let given = given.transpose()?;
        let envelope = Envelope::parse(text.as_bytes()).map_err(|error| match error {
            PolicyError::NotJson(reason) => SignatureError::NotJson(reason),
            error => SignatureError::Envelope(error),
        })?;
        let anybody = given.is_some() || self.is_configured();
        match (envelope, &given) {
            _ if self.required && !anybody => Err(SignatureError::NoKey),
            // Who names a key expects it to be looked at.
            (Some(envelope), Some(key)) if !envelope.is_signed_by(key) => {
                Err(SignatureError::Wrong)
            }
            (None, Some(_)) => Err(SignatureError::NotSigned),
            (None, None) if self.required => Err(SignatureError::NotSigned),
            (Some(_), Some(_)) if self.signers == PolicySigners::Request => Ok(()),
            (Some(envelope), _) if self.is_configured() => self.check_configured(&envelope),
            _ => Ok(()),
        }
    }

    /// Did one of those sign it whom the configuration names?
    fn check_configured(&self, envelope: &Envelope) -> Result<(), SignatureError> {
        let by_key = self.key.as_ref();
        if by_key.is_some_and(|key| envelope.is_signed_by(key)) {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let trust = Trust {
            anchors: &self.anchors,
            at: now.map_or(0, |now| now.as_secs()),
            expired: Expiry::Refuse,
        };
        let mut signatures = envelope.signatures().iter();
        if signatures.any(|one| envelope.certified_signer(one, &trust).is_ok()) {
            return Ok(());
        }
        Err(SignatureError::Wrong)
    }
}

/// Compiled runtime policies by content. A policy lives as long as a node uses it.
#[derive(Debug)]
pub(super) struct PolicyCache {
    signatures: Signatures,
    /// What judges refstates.
    engine: BootEngine,
    compiled: Mutex<HashMap<String, Weak<RuntimePolicy>>>,
}

impl PolicyCache {
    /// Stored policies were checked when they came; `signatures` is about those to come.
    pub(super) fn new(signatures: Signatures, engine: BootEngine) -> Self {
        Self {
            signatures,
            engine,
            compiled: Mutex::default(),
        }
    }

    /// The compiled form of `text`, whose digest is `digest`. May take a while: call it on a
    /// worker thread.
    pub(super) fn compile(
        &self,
        kind: PolicyKind,
        digest: &str,
        text: &str,
    ) -> Result<Compiled, PolicyError> {
        match kind {
            PolicyKind::Runtime => {
                let policy = self.runtime(digest, text)?;
                Ok(Compiled::runtime(digest, policy))
            }
            PolicyKind::Boot => {
                let policy = self.boot(text)?;
                Ok(Compiled::boot(digest, policy))
            }
        }
    }

    /// The boot policy of `text`.
    pub(super) fn boot(&self, text: &str) -> Result<BootPolicy, PolicyError> {
        BootPolicy::parse_for(Some(text), self.engine)
    }

    fn runtime(&self, digest: &str, text: &str) -> Result<Arc<RuntimePolicy>, PolicyError> {
        if let Some(policy) = self.get(digest) {
            return Ok(policy);
        }
        // Not under the lock: another policy must not wait. The loser of a race is dropped.
        let compiled = Arc::new(RuntimePolicy::compile_text(text.as_bytes())?);
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
            SentPolicy::Runtime { policy, key } => {
                let decoded = STANDARD.decode(policy).ok();
                let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
                let text = text.ok_or(TextError::Encoding)?;
                self.signatures.check(&text, key.as_deref())?;
                text
            }
        };
        let digest = policy_digest(body.as_bytes());
        let policy = self.compile(kind, &digest, &body)?;
        if matches!(policy.form, Form::Boot(BootPolicy::None)) {
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
    /// Not signed as it has to be.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

/// A runtime policy whose signature is missing or wrong. The texts are Keylime's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// An envelope, but of no runtime policy.
    #[error(transparent)]
    Envelope(PolicyError),
    /// The key that came along is none.
    #[error("runtime_policy_key: {0}")]
    Key(SigningKeyError),
    /// Neither the request nor the configuration has a key.
    #[error("Runtime policy signature verification required but no key was given!")]
    NoKey,
    /// Not JSON; the text says where.
    #[error("Runtime policy is not valid JSON! {0}")]
    NotJson(String),
    /// A policy without an envelope.
    #[error("Runtime policy is not signed!")]
    NotSigned,
    /// Another key, or another text.
    #[error("Runtime policy failed DSSE signature verification!")]
    Wrong,
}

impl SignatureError {
    /// Is it the signer's authority that is missing, not the form?
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::NoKey | Self::Wrong)
    }
}
