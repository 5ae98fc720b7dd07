/// Taking nodes in.
mod enrol;
/// Policies by name, and the nodes that use them.
mod named;
/// What is shown of nodes.
mod status;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    sync::{Mutex, RwLock as AsyncRwLock, mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use troth_core::{
    finding::severity::{Severities, SeverityError},
    identity::{AgentId, TrustAnchors},
    policy::{PolicyError, SigningKey},
    wire::Enrolment,
};
use troth_daemon::{
    client::LargeAnswers,
    tls::{self, Identity},
};

pub use self::{enrol::EnrolError, named::PolicyChangeError};
use super::{
    judge::{WorkerError, Workers},
    node::{Command, Enrolled, Node, Shared},
    policies::{Compiled, Named, PolicyCache, Signatures},
    rules::{NodeError, Rules, Site, rules},
    state::{NodeRecord, Timing},
    writer::Writer,
};
use crate::{
    config::{Evaluate, VerifierConfig},
    evidence::{Keeper, Retention},
    rest::CURRENT_VERSION,
    store::{NodeRow, PolicyDigests, PolicyKind, Store, StoreError},
};

/// Commands that a node's task may have waiting.
const COMMANDS: usize = 8;
/// How long the last verdicts may take into the database at a stop.
const LAST_WRITE: Duration = Duration::from_secs(10);

/// All nodes of this verifier, each with its running task.
#[derive(Debug)]
pub struct Fleet {
    nodes: RwLock<BTreeMap<String, Entry>>,
    /// One enrolment or removal at a time, so that database and map agree.
    change: Mutex<()>,
    /// Held for writing while a policy changes, for reading from the choice of a policy until the
    /// node that uses it runs: no node misses a change. Taken before `change`.
    policy_change: AsyncRwLock<()>,
    /// Of the policies that the nodes are judged by.
    policy_generation: AtomicU64,
    shared: Shared,
    store: Store,
    policies: Arc<PolicyCache>,
    identity: Arc<Identity>,
    writing: Mutex<Option<JoinHandle<()>>>,
    verifier_id: String,
    /// Where operators reach this verifier, unless an enrolment says otherwise.
    address: SocketAddr,
    site: Site,
}

/// Dropping an entry ends the node's task.
#[derive(Debug)]
struct Entry {
    node: Arc<Node>,
    commands: mpsc::Sender<Command>,
}

impl Fleet {
    /// Loads the nodes of this verifier and begins to ask them, spread over one interval.
    /// `identity` is what agents see of the verifier, `address` where operators reach it.
    pub async fn start(
        store: Store,
        config: &VerifierConfig,
        identity: Identity,
        address: SocketAddr,
    ) -> Result<Self, FleetError> {
        let signatures = Signatures {
            required: config.require_allow_list_signatures,
            signers: config.runtime_policy_signers,
            key: config
                .runtime_policy_key
                .as_deref()
                .map(signing_key)
                .transpose()?,
            anchors: signing_cas(&config.runtime_policy_ca)?,
        };
        if !signatures.can_be_made() {
            return Err(FleetError::NoSigner);
        }
        // Before the policies themselves: none that is replaced meanwhile is missed.
        let generation = store.policy_generation().await?;
        let (writer, writing) = Writer::start(store.clone());
        let shared = Shared {
            timing: Timing::new(config),
            severities: Arc::new(severities(config)?),
            workers: Workers::new(config.max_workers),
            writer,
            store: store.clone(),
            request_timeout: config.request_timeout.0,
            max_answer_size: config.max_answer_size,
            large_answers: LargeAnswers::new(config.max_large_answers),
            boot_engine: config.measured_boot_policy_name,
            keeper: Retention::new(config)
                .map(|retention| Keeper::start(config.evidence_keep, retention))
                .transpose()
                .map_err(FleetError::Thread)?,
            judge_again: config.measured_boot_evaluate == Evaluate::Always,
        };
        let fleet = Self {
            nodes: RwLock::default(),
            change: Mutex::new(()),
            policy_change: AsyncRwLock::new(()),
            policy_generation: AtomicU64::new(generation),
            shared,
            store,
            policies: Arc::new(PolicyCache::new(
                signatures,
                config.measured_boot_policy_name,
            )),
            identity: Arc::new(identity),
            writing: Mutex::new(Some(writing)),
            verifier_id: config.uuid.clone(),
            address,
            site: Site {
                mtls_only: config.enable_agent_mtls,
                tomtou: config.tomtou,
            },
        };
        fleet.load().await?;
        Ok(fleet)
    }

    async fn load(&self) -> Result<(), FleetError> {
        let rows = self.store.nodes(&self.verifier_id).await?;
        // Held here, so that each text is read and compiled once for all its nodes.
        let mut policies = HashMap::new();
        let mut loaded = 0_usize;
        for row in rows {
            let named = self
                .stored_policies(Named::NONE, &row.policies, &mut policies)
                .await;
            let Ok(id) = AgentId::new(&row.agent_id) else {
                tracing::error!(node_id = row.agent_id, "stored agent id is not one");
                continue;
            };
            let interval = self.shared.timing.interval;
            self.spawn(
                self.restore(id, row, named),
                interval.mul_f64(rand::random::<f64>()),
            );
            loaded += 1;
        }
        if loaded > 0 {
            tracing::info!(
                nodes = loaded,
                "resumed the attestation of all enrolled nodes"
            );
        }
        Ok(())
    }

    /// `named` with the policies of a stored node; `held` has those of others.
    async fn stored_policies(
        &self,
        mut named: Named,
        digests: &PolicyDigests,
        held: &mut HashMap<(PolicyKind, String), Compiled>,
    ) -> Result<Named, FleetError> {
        for (kind, digest) in [
            (PolicyKind::Runtime, &digests.runtime),
            (PolicyKind::Boot, &digests.boot),
        ] {
            let Some(digest) = digest else {
                continue;
            };
            let key = (kind, digest.clone());
            let policy = match held.get(&key) {
                Some(policy) => policy.clone(),
                None => {
                    let policy = self.stored_policy(kind, digest).await?;
                    held.insert(key, policy.clone());
                    policy
                }
            };
            named = named.with(policy);
        }
        Ok(named)
    }

    async fn stored_policy(&self, kind: PolicyKind, digest: &str) -> Result<Compiled, FleetError> {
        if kind == PolicyKind::Runtime
            && let Some(policy) = self.policies.get(digest)
        {
            return Ok(Compiled::runtime(digest, policy));
        }
        let text = self.store.policy_text(digest).await?;
        let text = text.ok_or_else(|| FleetError::PolicyMissing(digest.to_owned()))?;
        let (policies, digest) = (Arc::clone(&self.policies), digest.to_owned());
        let compile = move || policies.compile(kind, &digest, &text);
        let compiled = self.shared.workers.run(compile).await?;
        compiled.map_err(|source| FleetError::Policy { kind, source })
    }

    /// A stored node; one that cannot be judged any more stays visible with the reason.
    fn restore(&self, id: AgentId, row: NodeRow, named: Result<Named, FleetError>) -> Node {
        let content = |what, source| StoreError::Content {
            what,
            id: row.agent_id.clone(),
            source,
        };
        let record = serde_json::from_str::<NodeRecord>(&row.record)
            .map_err(|error| FleetError::from(content("record", error)));
        let enrolment = serde_json::from_str::<Enrolment>(row.enrolment.expose())
            .map_err(|error| FleetError::from(content("enrolment", error)));
        let enrolled = Enrolled {
            id,
            generation: row.generation,
            enrolment: enrolment.as_ref().cloned().unwrap_or_default(),
        };
        let checked = enrolment.and_then(|enrolment| {
            Ok(rules(
                &enrolment,
                named?,
                &self.policies,
                &self.identity,
                self.site,
            )?)
        });
        let error = match (checked, record) {
            (Ok(rules), Ok(mut record)) => {
                record.resume();
                warn(&enrolled.id, &rules);
                return Node::new(enrolled, rules, record);
            }
            (Err(error), Ok(record)) => (error, record),
            (_, Err(error)) => (error, NodeRecord::new(CURRENT_VERSION.to_owned())),
        };
        let (error, record) = error;
        tracing::error!(node_id = %enrolled.id, %error, "stored node cannot be attested");
        Node::broken(enrolled, error.to_string(), record)
    }

    fn spawn(&self, node: Node, first_wait: Duration) {
        let node = Arc::new(node);
        let (commands, receiver) = mpsc::channel(COMMANDS);
        tokio::spawn(Arc::clone(&node).run(self.shared.clone(), receiver, first_wait));
        let id = node.enrolled.id.as_str().to_owned();
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(id, Entry { node, commands });
    }

    /// Forgets a node.
    pub async fn remove(&self, id: &str) -> Result<(), RemoveError> {
        let _change = self.change.lock().await;
        if self.node(id).is_none() {
            return Err(match self.store.node_exists(id).await? {
                true => RemoveError::Elsewhere,
                false => RemoveError::Unknown,
            });
        }
        // The row first: when that fails the node goes on as before.
        self.store.delete_node(id).await?;
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.remove(id);
        Ok(())
    }

    /// Stops asking a node until it is reactivated.
    pub async fn stop(&self, id: &str) -> Result<(), CommandError> {
        self.command(id, Command::Stop).await
    }

    /// Asks a node now, from the first entry of its list.
    pub async fn reactivate(&self, id: &str) -> Result<(), CommandError> {
        self.command(id, Command::Reactivate).await
    }

    async fn command(
        &self,
        id: &str,
        command: impl FnOnce(oneshot::Sender<()>) -> Command,
    ) -> Result<(), CommandError> {
        let (sender, rules) = {
            let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
            let entry = nodes.get(id).ok_or(CommandError::Unknown)?;
            (entry.commands.clone(), entry.node.rules())
        };
        if let Err(reason) = rules {
            return Err(CommandError::Broken(reason));
        }
        let (done, stored) = oneshot::channel();
        // A task that is gone means that the node was removed meanwhile.
        sender
            .send(command(done))
            .await
            .map_err(|_| CommandError::Unknown)?;
        stored.await.map_err(|_| CommandError::Unknown)
    }

    fn node(&self, id: &str) -> Option<Arc<Node>> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(id).map(|entry| Arc::clone(&entry.node))
    }

    /// Ends all tasks; what they recorded is in the database when this returns, unless the
    /// database takes nothing: a stop does not wait for that for ever.
    pub async fn close(&self) {
        {
            let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
            nodes.clear();
        }
        if timeout(LAST_WRITE, self.shared.writer.flush())
            .await
            .is_err()
        {
            tracing::error!("the last verdicts were not written: their nodes are judged again");
        }
        if let Some(keeper) = &self.shared.keeper
            && timeout(LAST_WRITE, keeper.flush()).await.is_err()
        {
            tracing::warn!("the last evidence was not written");
        }
        let writing = self.writing.lock().await.take();
        if let Some(writing) = writing {
            writing.abort();
        }
    }
}

/// How much findings matter here.
fn severities(config: &VerifierConfig) -> Result<Severities, SeverityError> {
    let severities = Severities::compile(&config.severity_labels, &config.severity_policy)?;
    for label in severities.unknown_labels() {
        tracing::warn!(
            "severity_policy: {label:?} is not among severity_labels; findings of that rule rate \
             the highest"
        );
    }
    Ok(severities)
}

/// The configured key of signed runtime policies.
fn signing_key(path: &Path) -> Result<SigningKey, FleetError> {
    let unusable = |reason| FleetError::SigningKey {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    SigningKey::parse(&bytes).map_err(|error| unusable(error.to_string()))
}

/// The configured CAs of those who sign runtime policies.
fn signing_cas(paths: &[PathBuf]) -> Result<TrustAnchors, FleetError> {
    let mut anchors = TrustAnchors::default();
    for path in paths {
        let unusable = |reason| FleetError::SigningCa {
            path: path.clone(),
            reason,
        };
        let certificates =
            tls::load_certificates(path).map_err(|error| unusable(error.to_string()))?;
        for certificate in certificates {
            anchors
                .add(&certificate)
                .map_err(|error| unusable(error.to_string()))?;
        }
    }
    Ok(anchors)
}

/// Tells of what the operator may take for granted, but is not judged.
fn warn(id: &AgentId, rules: &Rules) {
    if let Some(warning) = rules.warning() {
        tracing::warn!(node_id = %id, "{warning}");
    }
}

/// Why a node was not told what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// Its stored enrolment cannot be judged by any more.
    #[error("the node cannot be attested: {0}; remove it and enrol it again")]
    Broken(String),
    /// It is not enrolled.
    #[error("agent id not found")]
    Unknown,
}

/// Why a node was not removed. The texts are Keylime's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// Another verifier asks it, and alone may forget it.
    #[error("agent id associated to this verifier")]
    Elsewhere,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not enrolled.
    #[error("agent id not found")]
    Unknown,
}

/// Why nodes cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// A stored enrolment that is no longer accepted.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A stored policy that does not compile any more.
    #[error("stored {kind}: {source}")]
    Policy {
        /// Of which kind.
        kind: PolicyKind,
        /// The reason.
        source: PolicyError,
    },
    /// A policy that nodes refer to, but which is not there.
    #[error("no stored policy has digest {0}")]
    PolicyMissing(String),
    /// The configured severities.
    #[error(transparent)]
    Severity(#[from] SeverityError),
    /// The configured key of signed policies.
    #[error("runtime_policy_ca: {}: {reason}", path.display())]
    SigningCa {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No signed policy would be taken.
    #[error(
        "runtime_policy_signers is configured: name a runtime_policy_key or a runtime_policy_ca"
    )]
    NoSigner,
    /// The configured key is none.
    #[error("runtime_policy_key: {}: {reason}", path.display())]
    SigningKey {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No thread that keeps evidence.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A worker ended.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}
