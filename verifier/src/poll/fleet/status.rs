use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
};

use troth_core::{
    policy::{BootPolicy, RuntimePolicy},
    tpm::AttestationKey,
    wire::NodeStatus,
};

use super::Fleet;
use crate::poll::{keep::policy_name, node::Node, rules::Rules, state::now};

/// What is shown of nodes.
impl Fleet {
    /// Ids of all nodes, sorted.
    pub fn ids(&self) -> Vec<String> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.keys().cloned().collect()
    }

    /// The AK of a node, unless its enrolment cannot be judged by.
    pub fn attestation_key(&self, id: &str) -> Option<Arc<AttestationKey>> {
        let rules = self.node(id)?.rules().ok()?;
        Some(Arc::clone(&rules.ak))
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
        let rules = node.rules().ok();
        let named = rules.as_deref().map(|rules| &rules.named);
        let boot = named.is_some_and(|named| named.boot != BootPolicy::None);
        let runtime = named.and_then(|named| named.runtime.as_deref());
        let record = node.shown();
        let now = now();
        let mut troth = record.status(now, timing);
        let name = |given| policy_name(&node.enrolled, given);
        troth.runtime_policy = runtime.map(|_| name(&enrolment.runtime_policy_name));
        troth.boot_policy = boot.then(|| name(&enrolment.mb_policy_name));
        if let Some(warning) = rules.as_deref().and_then(Rules::warning) {
            troth.reason = format!("{}; warning: {warning}", troth.reason);
        }
        let seconds = timing.interval.as_secs();
        NodeStatus {
            operational_state: Some(record.operational),
            v: enrolment.v.clone(),
            ip: enrolment.cloudagent_ip.clone(),
            port: enrolment.cloudagent_port,
            tpm_policy: enrolment.tpm_policy.clone(),
            meta_data: enrolment.metadata.clone(),
            has_mb_refstate: u8::from(boot),
            has_runtime_policy: u8::from(runtime.is_some_and(RuntimePolicy::requires_ima)),
            accept_tpm_hash_algs: enrolment.accept_tpm_hash_algs.clone(),
            accept_tpm_encryption_algs: enrolment.accept_tpm_encryption_algs.clone(),
            accept_tpm_signing_algs: enrolment.accept_tpm_signing_algs.clone(),
            hash_alg: record.algorithms.hash.clone(),
            enc_alg: record.algorithms.encryption.clone(),
            sign_alg: record.algorithms.signing.clone(),
            verifier_id: self.verifier_id.clone(),
            verifier_ip: enrolment
                .verifier_ip
                .clone()
                .unwrap_or_else(|| self.address.ip().to_string()),
            verifier_port: enrolment
                .verifier_port
                .unwrap_or_else(|| self.address.port()),
            severity_level: record.severity_level,
            last_event_id: record.last_event_id.clone(),
            attestation_count: record.attestation_count,
            last_received_quote: record.last_received_quote,
            last_successful_attestation: record.last_successful_attestation,
            attestation_status: record.attestation_status(now, timing).to_owned(),
            attestation_period: format!("{seconds}s"),
            maximum_attestation_interval: format!("{}s", timing.stale_after().as_secs()),
            troth: Some(troth),
        }
    }
}
