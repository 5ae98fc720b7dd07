use std::cell::OnceCell;

use self::devices::Devices;
use super::boot::{self, Boot};
use super::{Finding, Policies, Tomtou};
use crate::eventlog::BootAggregate;
use crate::finding::Findings;
use crate::ima::{
    self, BOOT_AGGREGATE, DeviceStates, DmEvent, Entry, IMA_PCR, ImaKey, ImaPosition, ImaSignature,
    Keyring, LearnedKeys, MeasuredKey, SignatureFault,
};
use crate::policy::{AllowedDigests, ExcludesBudget, RuntimePolicy};
use crate::tpm::{Digest, HashAlgorithm, VerifiedQuote};
use crate::wire::QuoteResponse;

/// Devices of the device mapper against its policy.
mod devices;
/// What is wrong with a list or an entry, in words.
mod findings;

/// Entries whose names are looked up together.
const BATCH: usize = 8;

/// The part of an answer that is about IMA.
pub(super) struct Answer<'a> {
    pub(super) evidence: &'a QuoteResponse,
    /// First entry asked for.
    pub(super) asked_entry: u64,
    pub(super) quote: &'a VerifiedQuote,
    /// What the boot log tells of `boot_aggregate`.
    pub(super) boot: &'a Boot,
}

/// The IMA list, if the quote covers PCR 10. Returns where the next check resumes: at the first
/// entry with a finding, as far as the quote vouches for what is before it; at entry 0 when it
/// does not, or the finding is about the list as a whole.
pub(super) fn check(
    answer: &Answer<'_>,
    policies: &Policies<'_>,
    state: &ImaPosition,
    findings: &mut Findings,
) -> ImaPosition {
    let Some(quoted) = answer.quote.pcrs().get(IMA_PCR) else {
        return state.clone();
    };
    let evidence = answer.evidence;
    let start = match evidence.ima_measurement_list_entry.unwrap_or(0) {
        0 => ImaPosition::default(),
        entry if entry == answer.asked_entry && entry == state.next_entry => state.clone(),
        entry => {
            findings.push(|| findings::wrong_entry(entry, answer.asked_entry));
            return ImaPosition::default();
        }
    };
    let list = match &evidence.ima_measurement_list {
        Some(list) => list.as_str(),
        // Without a list there may still be nothing new.
        None if start.pcr.as_ref() == Some(quoted) => "",
        None => {
            findings.push(findings::missing_list);
            return ImaPosition::default();
        }
    };
    let policy = policies.runtime;
    let log_hash = policy.map_or(HashAlgorithm::Sha1, RuntimePolicy::log_hash_alg);
    let replay = ima::replay(list, &start, log_hash, answer.quote);
    let kept = u64::try_from(replay.anomalies.first.len()).unwrap_or(u64::MAX);
    for anomaly in &replay.anomalies.first {
        findings.push(|| findings::anomalous(anomaly));
    }
    findings.count(replay.anomalies.total - kept);
    let list = match replay.outcome {
        Ok(list) => list,
        Err(mismatch) => {
            findings.push(|| findings::mismatched(&mismatch, &start));
            return ImaPosition::default();
        }
    };
    let dm_policy = policy.and_then(RuntimePolicy::dm_policy);
    let devices = match start.next_entry {
        0 => dm_policy.map(Devices::new),
        _ => dm_policy.and_then(|policy| Devices::resume(policy, start.devices.as_ref())),
    };
    // The policy is new: its events are judged when the list comes as a whole, next time.
    let unread = dm_policy.is_some() && devices.is_none();
    let mut judge = Judge {
        policies,
        answer,
        other_aggregates: OnceCell::new(),
        budget: ExcludesBudget::default(),
        findings,
        keyring: keyring(policies),
        first: replay.anomalies.first.first().map(|anomaly| anomaly.entry),
        learned: start.keys.clone(),
        devices,
        kept: None,
        parsed: Vec::new(),
        files: start.next_entry > 0 && !start.no_files,
    };
    let mut entries = list.entries().fuse();
    loop {
        let batch: [_; BATCH] = std::array::from_fn(|_| entries.next());
        let names = batch
            .each_ref()
            .map(|entry| entry.map_or("", |entry| entry.name));
        let listed = policy.map_or([None; BATCH], |policy| policy.digests().get_each(names));
        for (entry, listed) in batch.iter().zip(listed) {
            if let Some(entry) = entry {
                judge.entry(entry, listed);
            }
        }
        if batch.iter().any(Option::is_none) {
            break;
        }
    }
    let Judge {
        first,
        files,
        learned,
        devices,
        kept,
        ..
    } = judge;
    let before = findings.total();
    if !list.made_progress(&start) {
        findings.push(|| findings::no_progress(&list, &start));
    }
    let entries = list.position().next_entry;
    if !files && policy.is_some_and(|policy| expects(policy, entries)) {
        findings.push(|| findings::nothing_measured(entries));
    }
    // Where an entry has a finding, what follows it is judged again.
    if let (Some(devices), None) = (&devices, first) {
        for fault in devices.lacks() {
            findings.push(|| findings::device(&fault, None));
        }
    }
    if unread || findings.total() > before {
        return ImaPosition::default();
    }
    let position = match first {
        None => list.position(),
        Some(entry) => list.position_before(entry),
    };
    let kept = kept.unwrap_or_else(|| Kept {
        learned,
        devices: devices.map(|devices| devices.states),
        files,
    });
    ImaPosition {
        no_files: position.next_entry > 0 && !kept.files,
        keys: kept.learned,
        devices: kept.devices,
        ..position
    }
}

/// The operator's keys: those sent with the node where there are some, else the policy's.
fn keyring<'a>(policies: &Policies<'a>) -> Option<&'a Keyring> {
    let node = policies.ima.keys.filter(|keys| !keys.is_empty());
    node.or_else(|| policies.runtime.map(RuntimePolicy::verification_keys))
}

/// Does `policy` ask for more than a list of that many entries without a file or a buffer? Where
/// even `boot_aggregate` is missing, the kernel runs without IMA.
fn expects(policy: &RuntimePolicy, entries: u64) -> bool {
    if entries == 0 {
        policy.requires_ima()
    } else {
        policy.lists_files()
    }
}

/// Judges the covered entries, one after the other.
struct Judge<'a, 'f> {
    policies: &'a Policies<'a>,
    answer: &'a Answer<'a>,
    /// What `boot_aggregate` may be in other banks than the quoted one, once somebody asked.
    other_aggregates: OnceCell<Vec<BootAggregate>>,
    budget: ExcludesBudget,
    findings: &'f mut Findings,
    /// The operator's keys.
    keyring: Option<&'a Keyring>,
    /// The first entry with a finding.
    first: Option<u64>,
    /// Keys learned so far, and devices.
    learned: LearnedKeys,
    devices: Option<Devices<'a>>,
    /// Was anything but `boot_aggregate` measured?
    files: bool,
    /// All three as before the first entry with a finding.
    kept: Option<Kept>,
    /// Learned keys that a signature asked for, by id.
    parsed: Vec<(u32, ImaKey)>,
}

/// What the entries up to one have left behind.
struct Kept {
    learned: LearnedKeys,
    devices: Option<DeviceStates>,
    files: bool,
}

impl Judge<'_, '_> {
    /// An entry against the policy. Violations have no digest to judge.
    fn entry(&mut self, entry: &Entry<'_>, listed: Option<AllowedDigests<'_>>) {
        // A line that could not be used was found before any entry is judged.
        if self.first.is_some_and(|first| first <= entry.index) {
            self.keep();
        }
        self.judge(entry, listed);
        self.files |= entry.name != BOOT_AGGREGATE;
    }

    /// `listed`: the digests that the policy lists for the entry's name.
    fn judge(&mut self, entry: &Entry<'_>, listed: Option<AllowedDigests<'_>>) {
        if entry.is_violation() {
            if self.policies.ima.tomtou == Tomtou::Fail {
                self.push(entry, || findings::violation(entry));
            }
            return;
        }
        if self.is_boot_aggregate(entry) {
            return;
        }
        let Some(policy) = self.policies.runtime else {
            if !matches!(self.signature(entry), Some(Ok(()))) {
                self.push(entry, || {
                    findings::not_listed(entry, "runtime policy", true)
                });
            }
            return;
        };
        if entry.is_buffer() {
            self.buffer(entry, policy);
        } else {
            self.digest(entry, listed, "digests", policy);
        }
    }

    /// Is it the `boot_aggregate` of the boot that quote and boot log tell of?
    fn is_boot_aggregate(&self, entry: &Entry<'_>) -> bool {
        if entry.name != BOOT_AGGREGATE || entry.is_buffer() {
            return false;
        }
        let Answer {
            boot,
            evidence,
            quote,
            ..
        } = self.answer;
        let has = |aggregates: &[BootAggregate]| {
            let mut aggregates = aggregates.iter();
            aggregates.any(|aggregate| aggregate.digest == entry.digest)
        };
        let others = || boot::other_aggregates(evidence, quote.pcrs().bank());
        has(&boot.aggregates)
            || (boot.of_other_banks && has(self.other_aggregates.get_or_init(others)))
    }

    /// A key or another buffer. Unlike a file's, its digest can be checked, and is.
    fn buffer(&mut self, entry: &Entry<'_>, policy: &RuntimePolicy) {
        if entry.buffer_matches_digest() != Some(true) {
            return self.push(entry, || findings::wrong_buffer(entry));
        }
        match entry.key() {
            Some(MeasuredKey::Other) => self.push(entry, || findings::invalid_key(entry)),
            Some(_) if policy.ignores_keyring(entry.name) => {}
            Some(key) => {
                let good =
                    self.digest(entry, policy.keyrings().get(entry.name), "keyrings", policy);
                if let (true, MeasuredKey::Usable(key)) = (good, key) {
                    self.parsed.clear();
                    if !self.learned.learn(entry.name, &entry.digest, &key) {
                        self.push(entry, || findings::too_many_keys(entry));
                    }
                }
            }
            None if policy.dm_policy().is_some() && DmEvent::is_named(entry.name) => {
                self.device(entry);
            }
            None => {
                self.digest(entry, policy.ima_buf().get(entry.name), "ima-buf", policy);
            }
        }
    }

    /// An event of the device mapper.
    fn device(&mut self, entry: &Entry<'_>) {
        if let Some(Err(fault)) = self.devices.as_mut().map(|devices| devices.event(entry)) {
            self.push(entry, || findings::device(&fault, Some(entry)));
        }
    }

    /// Is the file signed by a key that is known? `None`: it is not signed.
    fn signature(&mut self, entry: &Entry<'_>) -> Option<Result<(), SignatureFault>> {
        let blob = entry.signature()?;
        Some(ImaSignature::parse(&blob).and_then(|signature| self.check(&signature, entry)))
    }

    fn check(
        &mut self,
        signature: &ImaSignature<'_>,
        entry: &Entry<'_>,
    ) -> Result<(), SignatureFault> {
        let signed = signature.signed(entry)?;
        let id = signature.key_id;
        let verified = self
            .policies
            .runtime
            .map(RuntimePolicy::verified_signatures);
        if let Some(key) = self.keyring.and_then(|keyring| keyring.get(id)) {
            return signature.check(key, signed, verified);
        }
        if !self.parsed.iter().any(|(parsed, _)| *parsed == id) {
            // The policy may be another one than when the key was learned.
            let allowed = |keyring: &str, digest: &Digest| {
                let policy = self.policies.runtime;
                let policy = policy.filter(|policy| !policy.ignores_keyring(keyring));
                policy.is_some_and(|policy| {
                    let listed = policy.keyrings().get(keyring);
                    listed.is_some_and(|listed| listed.contains(digest.as_bytes()))
                        || policy.excludes().matches(keyring, &mut self.budget)
                })
            };
            // A host can name as many ids as it likes.
            let key = self.learned.get(id, allowed);
            self.parsed
                .push((id, key.ok_or(SignatureFault::NoKey(id))?));
        }
        let key = self.parsed.iter().find(|(parsed, _)| *parsed == id);
        let (_, key) = key.ok_or(SignatureFault::NoKey(id))?;
        signature.check(key, signed, verified)
    }

    /// The digest must be listed for the name, or the name be excluded, or the file be signed. The
    /// table is asked first: it answers faster than the patterns, and these faster than a key.
    /// True: so it is.
    fn digest(
        &mut self,
        entry: &Entry<'_>,
        allowed: Option<AllowedDigests<'_>>,
        key: &'static str,
        policy: &RuntimePolicy,
    ) -> bool {
        if allowed.is_some_and(|allowed| allowed.contains(entry.digest.as_bytes()))
            || policy.excludes().matches(entry.name, &mut self.budget)
        {
            return true;
        }
        let fault = match self.signature(entry) {
            Some(Ok(())) => return true,
            Some(Err(fault)) => Some(fault),
            None => None,
        };
        self.push(entry, || {
            let finding = match allowed {
                None => findings::not_listed(entry, key, false),
                Some(allowed) => findings::wrong_digest(entry, allowed),
            };
            findings::with_fault(finding, fault)
        });
        false
    }

    fn push(&mut self, entry: &Entry<'_>, finding: impl FnOnce() -> Finding) {
        // Anomalies were found before, and may be later in the list.
        self.first = Some(
            self.first
                .map_or(entry.index, |first| first.min(entry.index)),
        );
        self.keep();
        self.findings.push(finding);
    }

    /// Remembers what was learned until now, unless that was done at an earlier entry.
    fn keep(&mut self) {
        if self.kept.is_none() {
            let devices = self.devices.as_ref();
            self.kept = Some(Kept {
                learned: self.learned.clone(),
                devices: devices.map(|devices| devices.states.clone()),
                files: self.files,
            });
        }
    }
}
