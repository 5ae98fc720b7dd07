use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::{Mutex, RwLock as AsyncRwLock, mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use troth_core::{
    identity::AgentId,
    policy::{BootPolicy, PolicyError, RuntimePolicy},
    wire::{Enrolment, NodeStatus},
};
use troth_daemon::{client::LargeAnswers, tls::Identity};

use super::{
    judge::{WorkerError, Workers},
    node::{Command, Enrolled, Node, NodeError, Shared, is_blank, rules},
    policies::{PolicyCache, TextError},
    state::{NodeRecord, Timing, now},
    writer::Writer,
};
use crate::{
    config::VerifierConfig,
    rest::{CURRENT_VERSION, VERSIONS},
    store::{
        Enrolled as Inserted, NewNode, NewPolicy, NodeRow, PolicyChoice, Removed, Store, StoreError,
    },
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
    shared: Shared,
    store: Store,
    policies: Arc<PolicyCache>,
    identity: Arc<Identity>,
    writing: Mutex<Option<JoinHandle<()>>>,
    verifier_id: String,
    mtls_only: bool,
}

/// Dropping an entry ends the node's task.
#[derive(Debug)]
struct Entry {
    node: Arc<Node>,
    commands: mpsc::Sender<Command>,
}

impl Fleet {
    /// Loads the nodes of this verifier and begins to ask them, spread over one interval.
    /// `identity` is what agents see of the verifier.
    pub async fn start(
        store: Store,
        config: &VerifierConfig,
        identity: Identity,
    ) -> Result<Self, FleetError> {
        let (writer, writing) = Writer::start(store.clone());
        let shared = Shared {
            timing: Timing::new(config),
            workers: Workers::new(config.max_workers),
            writer,
            request_timeout: config.request_timeout.0,
            max_answer_size: config.max_answer_size,
            large_answers: LargeAnswers::new(config.max_large_answers),
        };
        let fleet = Self {
            nodes: RwLock::default(),
            change: Mutex::new(()),
            policy_change: AsyncRwLock::new(()),
            shared,
            store,
            policies: Arc::default(),
            identity: Arc::new(identity),
            writing: Mutex::new(Some(writing)),
            verifier_id: config.uuid.clone(),
            mtls_only: config.enable_agent_mtls,
        };
        fleet.load().await?;
        Ok(fleet)
    }

    async fn load(&self) -> Result<(), FleetError> {
        let rows = self.store.nodes(&self.verifier_id).await?;
        // Held here, so that each text is read and compiled once for all its nodes.
        let mut policies: HashMap<String, Arc<RuntimePolicy>> = HashMap::new();
        let mut loaded = 0_usize;
        for row in rows {
            let policy = match &row.policy_digest {
                None => Ok(None),
                Some(digest) => match policies.get(digest) {
                    Some(policy) => Ok(Some(Arc::clone(policy))),
                    None => self.stored_policy(digest).await.map(|policy| {
                        policies.insert(digest.clone(), Arc::clone(&policy));
                        Some(policy)
                    }),
                },
            };
            let Ok(id) = AgentId::new(&row.agent_id) else {
                tracing::error!(node_id = row.agent_id, "stored agent id is not one");
                continue;
            };
            let interval = self.shared.timing.interval;
            self.spawn(
                self.restore(id, row, policy),
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

    async fn stored_policy(&self, digest: &str) -> Result<Arc<RuntimePolicy>, FleetError> {
        if let Some(policy) = self.policies.get(digest) {
            return Ok(policy);
        }
        let text = self.store.policy_text(digest).await?;
        let text = text.ok_or_else(|| FleetError::PolicyMissing(digest.to_owned()))?;
        let (policies, digest) = (Arc::clone(&self.policies), digest.to_owned());
        let compile = move || policies.compile(&digest, &text);
        Ok(self.shared.workers.run(compile).await??)
    }

    /// A stored node; one that cannot be judged any more stays visible with the reason.
    fn restore(
        &self,
        id: AgentId,
        row: NodeRow,
        policy: Result<Option<Arc<RuntimePolicy>>, FleetError>,
    ) -> Node {
        let content = |what, source| StoreError::Content {
            what,
            id: row.agent_id.clone(),
            source,
        };
        let record = serde_json::from_str::<NodeRecord>(&row.record)
            .map_err(|error| FleetError::from(content("record", error)));
        let enrolment = serde_json::from_str::<Enrolment>(&row.enrolment)
            .map_err(|error| FleetError::from(content("enrolment", error)));
        let enrolled = Enrolled {
            id,
            generation: row.generation,
            enrolment: enrolment.as_ref().cloned().unwrap_or_default(),
        };
        let checked = enrolment
            .and_then(|enrolment| Ok(rules(&enrolment, policy?, &self.identity, self.mtls_only)?));
        let error = match (checked, record) {
            (Ok(rules), Ok(mut record)) => {
                record.resume();
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

    /// Checks an enrolment, stores it and asks the node at once.
    pub async fn enrol(&self, id: AgentId, mut enrolment: Enrolment) -> Result<(), EnrolError> {
        if self.node(id.as_str()).is_some() {
            return Err(EnrolError::NodeExists(id));
        }
        let _unchanged = self.policy_change.read().await;
        let (choice, policy) = self.choose_policy(&id, &mut enrolment).await?;
        let version = match enrolment.supported_version.as_deref() {
            Some(version) if VERSIONS.contains(&version) => version.to_owned(),
            _ => CURRENT_VERSION.to_owned(),
        };
        let mut generation = [0; 8];
        aws_lc_rs::rand::fill(&mut generation).map_err(|_| EnrolError::Random)?;
        // The databases have signed integers.
        let generation = u64::from_be_bytes(generation) >> 1;
        let identity = Arc::clone(&self.identity);
        let mtls_only = self.mtls_only;
        let check = move || {
            let rules = rules(&enrolment, policy, &identity, mtls_only)?;
            Ok::<_, NodeError>((enrolment, rules))
        };
        let (enrolment, rules) = self.shared.workers.run(check).await??;
        let record = NodeRecord::new(version);
        let text = |value: Result<String, _>| value.map_err(EnrolError::Encode);
        let new = NewNode {
            agent_id: id.as_str().to_owned(),
            generation,
            verifier_id: self.verifier_id.clone(),
            enrolment: text(serde_json::to_string(&enrolment))?,
            operational_state: record.operational,
            record: text(serde_json::to_string(&record))?,
        };
        let _change = self.change.lock().await;
        match self.store.insert_node(&new, &choice).await? {
            Inserted::Done => {}
            Inserted::NodeExists => return Err(EnrolError::NodeExists(id)),
            Inserted::PolicyExists => {
                return Err(EnrolError::PolicyExists(match choice {
                    PolicyChoice::New(policy) => policy.name,
                    _ => String::new(),
                }));
            }
        }
        tracing::info!(node_id = %id, "enrolled");
        let enrolled = Enrolled {
            id,
            generation,
            enrolment,
        };
        self.spawn(Node::new(enrolled, rules, record), Duration::ZERO);
        Ok(())
    }

    async fn choose_policy(
        &self,
        id: &AgentId,
        enrolment: &mut Enrolment,
    ) -> Result<(PolicyChoice, Option<Arc<RuntimePolicy>>), EnrolError> {
        if !is_blank(enrolment.runtime_policy_key.as_deref()) {
            return Err(NodeError::Unsupported("runtime_policy_key").into());
        }
        let encoded = enrolment
            .runtime_policy
            .take()
            .filter(|text| !text.is_empty());
        let name = enrolment
            .runtime_policy_name
            .clone()
            .filter(|name| !name.is_empty());
        let Some(encoded) = encoded else {
            let Some(name) = name else {
                return Ok((PolicyChoice::None, None));
            };
            let Some(digest) = self.store.policy_digest(&name).await? else {
                return Err(EnrolError::NoSuchPolicy(name));
            };
            let policy = self.stored_policy(&digest).await?;
            return Ok((PolicyChoice::Named(name), Some(policy)));
        };
        let name = name.unwrap_or_else(|| id.as_str().to_owned());
        let policies = Arc::clone(&self.policies);
        let receive = move || policies.receive(name, &encoded);
        let (new, policy) = match self.shared.workers.run(receive).await? {
            Ok(received) => received,
            Err(TextError::Encoding) => return Err(EnrolError::PolicyEncoding),
            Err(TextError::Policy(source)) => {
                let member = "runtime_policy";
                return Err(NodeError::Policy { member, source }.into());
            }
        };
        Ok((PolicyChoice::New(new), Some(policy)))
    }

    /// Names of all runtime policies, sorted.
    pub async fn policy_names(&self) -> Result<Vec<String>, StoreError> {
        self.store.policy_names().await
    }

    /// Text of the runtime policy of this name.
    pub async fn policy_text(&self, name: &str) -> Result<Option<String>, StoreError> {
        let _unchanged = self.policy_change.read().await;
        match self.store.policy_digest(name).await? {
            Some(digest) => self.store.policy_text(&digest).await,
            None => Ok(None),
        }
    }

    /// Stores a new runtime policy; `encoded` is base64 of its text.
    pub async fn add_policy(&self, name: &str, encoded: String) -> Result<(), PolicyChangeError> {
        let (new, _) = self.receive_policy(name, encoded).await?;
        let _policies = self.policy_change.write().await;
        let _change = self.change.lock().await;
        if !self.store.insert_policy(&new).await? {
            return Err(PolicyChangeError::Exists(new.name));
        }
        Ok(())
    }

    /// Gives a runtime policy another text. Its nodes are judged by that from their next question
    /// on, and go on where they are in their lists.
    pub async fn replace_policy(
        &self,
        name: &str,
        encoded: String,
    ) -> Result<(), PolicyChangeError> {
        let (new, compiled) = self.receive_policy(name, encoded).await?;
        let _policies = self.policy_change.write().await;
        let _change = self.change.lock().await;
        let mut changed = Vec::new();
        for id in self.store.policy_users(name).await? {
            // Not here: the node of another verifier on this database.
            let Some(node) = self.node(&id) else {
                continue;
            };
            if let Ok(rules) = node.rules() {
                match rules.with_runtime(Arc::clone(&compiled)) {
                    Ok(rules) => changed.push((node, rules)),
                    Err(source) => return Err(PolicyChangeError::Node { id, source }),
                }
            }
        }
        if !self.store.replace_policy(&new).await? {
            return Err(PolicyChangeError::Unknown(new.name));
        }
        for (node, rules) in changed {
            node.adopt(rules);
        }
        Ok(())
    }

    /// Removes a runtime policy that no node uses.
    pub async fn remove_policy(&self, name: &str) -> Result<(), PolicyChangeError> {
        let _policies = self.policy_change.write().await;
        let _change = self.change.lock().await;
        match self.store.delete_policy(name).await? {
            Removed::Done => Ok(()),
            Removed::Unknown => Err(PolicyChangeError::NotFound(name.to_owned())),
            Removed::InUse(id) => Err(PolicyChangeError::InUse(id)),
        }
    }

    async fn receive_policy(
        &self,
        name: &str,
        encoded: String,
    ) -> Result<(NewPolicy, Arc<RuntimePolicy>), PolicyChangeError> {
        let (policies, name) = (Arc::clone(&self.policies), name.to_owned());
        let receive = move || policies.receive(name, &encoded);
        match self.shared.workers.run(receive).await? {
            Ok(received) => Ok(received),
            Err(TextError::Encoding) => Err(PolicyChangeError::Encoding),
            Err(TextError::Policy(source)) => Err(PolicyChangeError::Malformed(source)),
        }
    }

    /// Forgets a node. `false`: it was not enrolled.
    pub async fn remove(&self, id: &str) -> Result<bool, StoreError> {
        let _change = self.change.lock().await;
        // The row first: when that fails the node goes on as before.
        let deleted = self.store.delete_node(id).await?;
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        Ok(nodes.remove(id).is_some() || deleted)
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

    /// Ids of all nodes, sorted.
    pub fn ids(&self) -> Vec<String> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.keys().cloned().collect()
    }

    /// How many nodes are in which state, for people.
    pub fn summary(&self) -> String {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in nodes.values() {
            let state = entry.node.shown().shown_state(now, &self.shared.timing);
            *counts.entry(state).or_default() += 1;
        }
        if counts.is_empty() {
            return String::from("No nodes enrolled");
        }
        let counts: Vec<_> = counts
            .iter()
            .map(|(state, n)| format!("{n} {state}"))
            .collect();
        format!("Nodes: {}", counts.join(", "))
    }

    /// The status of a node, as of now.
    pub fn status(&self, id: &str) -> Option<NodeStatus> {
        self.node(id).map(|node| self.status_of(&node))
    }

    fn status_of(&self, node: &Node) -> NodeStatus {
        let timing = &self.shared.timing;
        let enrolment = &node.enrolled.enrolment;
        let (boot, runtime) = node.rules().map_or((false, false), |rules| {
            (rules.boot != BootPolicy::None, rules.runtime.is_some())
        });
        let record = node.shown();
        let troth = record.status(now(), timing);
        // Keylime's PASS must not outlive what Troth itself would say.
        let attestation_status = match (record.operational, troth.state.as_str()) {
            (3, "trusted") => "PASS",
            (7 | 9 | 10, _) => "FAIL",
            (_, "stale") => "TIMEOUT",
            _ => "PENDING",
        };
        let seconds = timing.interval.as_secs();
        NodeStatus {
            operational_state: Some(record.operational),
            v: enrolment.v.clone(),
            ip: enrolment.cloudagent_ip.clone(),
            port: enrolment.cloudagent_port,
            tpm_policy: enrolment.tpm_policy.clone(),
            meta_data: enrolment.metadata.clone(),
            has_mb_refstate: u8::from(boot),
            has_runtime_policy: u8::from(runtime),
            accept_tpm_hash_algs: enrolment.accept_tpm_hash_algs.clone(),
            accept_tpm_encryption_algs: enrolment.accept_tpm_encryption_algs.clone(),
            accept_tpm_signing_algs: enrolment.accept_tpm_signing_algs.clone(),
            hash_alg: record.algorithms.hash.clone(),
            enc_alg: record.algorithms.encryption.clone(),
            sign_alg: record.algorithms.signing.clone(),
            verifier_id: self.verifier_id.clone(),
            verifier_ip: String::new(),
            verifier_port: 0,
            severity_level: record.severity_level,
            last_event_id: record.last_event_id.clone(),
            attestation_count: record.attestation_count,
            last_received_quote: record.last_received_quote,
            last_successful_attestation: record.last_successful_attestation,
            attestation_status: attestation_status.to_owned(),
            attestation_period: format!("{seconds}s"),
            maximum_attestation_interval: format!("{}s", timing.stale_after().as_secs()),
            troth: Some(troth),
        }
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
        let writing = self.writing.lock().await.take();
        if let Some(writing) = writing {
            writing.abort();
        }
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

/// Why a runtime policy was not stored, replaced or removed. The texts are Keylime's where it has
/// one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyChangeError {
    /// Not base64 of UTF-8 text.
    #[error("runtime_policy is not base64 of a JSON text")]
    Encoding,
    /// The name is in use.
    #[error("Runtime policy with name {0} already exists")]
    Exists(String),
    /// A node would be left without a policy.
    #[error("Can't delete allowlist as it's currently in use by agent {0}")]
    InUse(String),
    /// Not a policy.
    #[error("Runtime policy is malformatted: {0}")]
    Malformed(PolicyError),
    /// A node that uses the policy could not be judged by the new text.
    #[error("agent {id} uses this policy: {source}")]
    Node {
        /// The node's agent id.
        id: String,
        /// The reason.
        source: NodeError,
    },
    /// Nothing to remove.
    #[error("Runtime policy {0} not found")]
    NotFound(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing to replace.
    #[error("Runtime policy {0} does not already exist, use POST to create")]
    Unknown(String),
    /// A worker ended.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// Why nodes cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// A stored enrolment that is no longer accepted.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A stored policy that does not compile any more.
    #[error("stored runtime policy: {0}")]
    Policy(#[from] PolicyError),
    /// A policy that nodes refer to, but which is not there.
    #[error("no stored runtime policy has digest {0}")]
    PolicyMissing(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A worker ended.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// Why a node was not enrolled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// The record cannot be written as JSON.
    #[error("enrolment cannot be stored: {0}")]
    Encode(serde_json::Error),
    /// The enrolment itself.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The id is in use.
    #[error("Agent of uuid {0} already exists. Please use delete or update.")]
    NodeExists(AgentId),
    /// The name is unknown.
    #[error("Could not find IMA policy with name {0}!")]
    NoSuchPolicy(String),
    /// Not base64 of UTF-8 text.
    #[error("runtime_policy is not base64 of a JSON text")]
    PolicyEncoding,
    /// The name is in use.
    #[error("Runtime policy with name {0} already exists.")]
    PolicyExists(String),
    /// The system gave no random numbers.
    #[error("no random numbers from the system")]
    Random,
    /// A stored policy cannot be used.
    #[error(transparent)]
    Stored(#[from] FleetError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A worker ended.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}
