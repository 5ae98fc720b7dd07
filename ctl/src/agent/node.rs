use std::fmt;

use serde::Serialize;
use serde_json::Value;
use troth_core::{
    finding::severity::LABELS,
    wire::{BootQuirk, NodeStatus, RatedFinding},
};

use crate::{
    error::Exit,
    output::{Output, Tone, clean, span, utc},
};

/// Findings that `agent status` prints; JSON has all that the verifier sent.
const FINDINGS_SHOWN: usize = 20;

/// The verdict over a node, as the verifier has it now.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// The last attestation passed every check, and it is recent.
    Trusted,
    /// A check failed.
    Failed,
    /// The agent does not answer.
    Unreachable,
    /// The last verdict is too old to count.
    Stale,
    /// Not attested yet.
    Pending,
    /// Attestation is stopped by an operator.
    Stopped,
    /// Being removed, or removed while it was watched.
    Removed,
    /// A state that this program does not know.
    Unknown,
}

impl State {
    fn of(status: &NodeStatus) -> Self {
        if let Some(troth) = &status.troth {
            return match troth.state.as_str() {
                "trusted" => Self::Trusted,
                "failed" => Self::Failed,
                "unreachable" => Self::Unreachable,
                "stale" => Self::Stale,
                "pending" => Self::Pending,
                "stopped" => Self::Stopped,
                "removed" => Self::Removed,
                _ => Self::Unknown,
            };
        }
        // Keylime's operational states; 7 is "failed", which there means that retries were used up.
        match status.operational_state {
            Some(3..=6) if status.attestation_count > 0 => Self::Trusted,
            Some(0..=6) => Self::Pending,
            Some(7) => Self::Unreachable,
            Some(8) => Self::Removed,
            Some(9) => Self::Failed,
            Some(10) => Self::Stopped,
            _ => match status.attestation_status.as_str() {
                "PASS" => Self::Trusted,
                "FAIL" => Self::Failed,
                "TIMEOUT" => Self::Unreachable,
                "PENDING" => Self::Pending,
                _ => Self::Unknown,
            },
        }
    }

    /// The exit status of `agent status`.
    pub(crate) fn exit(self) -> Exit {
        match self {
            Self::Trusted => Exit::Success,
            Self::Failed => Exit::Untrusted,
            Self::Unreachable | Self::Stale => Exit::NodeUnreachable,
            Self::Pending | Self::Stopped | Self::Removed => Exit::Pending,
            Self::Unknown => Exit::Error,
        }
    }

    /// How a terminal shows it.
    pub(crate) fn tone(self) -> Tone {
        match self {
            Self::Trusted => Tone::Good,
            Self::Failed => Tone::Bad,
            Self::Unreachable | Self::Stale | Self::Unknown => Tone::Warn,
            Self::Pending | Self::Stopped | Self::Removed => Tone::Dim,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trusted => "trusted",
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
            Self::Stale => "stale",
            Self::Pending => "pending",
            Self::Stopped => "stopped",
            Self::Removed => "removed",
            Self::Unknown => "unknown",
        })
    }
}

/// A node, in the shape of `agent status --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Node {
    /// Agent id.
    pub(crate) id: String,
    /// The verdict.
    pub(crate) state: State,
    /// One sentence: why this state.
    pub(crate) reason: String,
    /// Since when it is in this state, Unix milliseconds; 0: the verifier does not say.
    pub(crate) since_ms: u64,
    /// When the last verdict was given, Unix milliseconds; 0: never.
    pub(crate) judged_at_ms: u64,
    /// When the node was last found trusted, Unix milliseconds; 0: never.
    pub(crate) last_trusted_ms: u64,
    /// When the next attestation is due, Unix milliseconds; null: not known or not planned.
    pub(crate) due_at_ms: Option<u64>,
    /// Time between two attestations as the verifier states it, e.g. `2s`.
    pub(crate) period: String,
    /// Successful attestations.
    pub(crate) attestation_count: u64,
    /// IMA entries judged since boot; null: the verifier does not say.
    pub(crate) ima_entries: Option<u64>,
    /// Where the verifier contacts the agent, `HOST:PORT`.
    pub(crate) address: Option<String>,
    /// Severity of the last failure; a verifier that does not say is taken to use Keylime's labels.
    pub(crate) severity: Option<String>,
    /// Event id of the last failure.
    pub(crate) last_event: Option<String>,
    /// The TPM policy with its mask.
    pub(crate) tpm_policy: Value,
    /// Is there a runtime policy?
    pub(crate) has_runtime_policy: bool,
    /// Its name; null: there is none, or the verifier does not say.
    pub(crate) runtime_policy: Option<String>,
    /// Is there a boot policy?
    pub(crate) has_boot_policy: bool,
    /// Its name; null: there is none, or the verifier does not say.
    pub(crate) boot_policy: Option<String>,
    /// PCRs that the boot log explains only with a known quirk of the firmware.
    pub(crate) boot_quirks: Vec<BootQuirk>,
    /// Hash algorithm of the last quote, `""` before.
    pub(crate) hash_algorithm: String,
    /// AK algorithm of the last quote.
    pub(crate) encryption_algorithm: String,
    /// Scheme of the last quote.
    pub(crate) signing_algorithm: String,
    /// Which verifier.
    pub(crate) verifier: String,
    /// Is the verifier Keylime's, which has no findings?
    #[serde(skip)]
    pub(crate) is_keylimes: bool,
    /// Findings of the last failed verdict, the most severe first, as many as the verifier keeps.
    pub(crate) findings: Vec<RatedFinding>,
    /// All findings of that verdict.
    pub(crate) findings_total: u64,
}

impl Node {
    /// From the verifier's answer. `now` (Unix milliseconds) is for words in `reason` only.
    pub(crate) fn new(id: &str, status: &NodeStatus, now: u64) -> Self {
        let state = State::of(status);
        let last_trusted_ms = match &status.troth {
            // The one verdict, with the better clock.
            Some(troth) if troth.judged_at_ms / 1000 == status.last_successful_attestation => {
                troth.judged_at_ms
            }
            _ => status.last_successful_attestation.saturating_mul(1000),
        };
        let address = status.ip.as_ref().map(|ip| match status.port {
            Some(port) if ip.contains(':') => format!("[{ip}]:{port}"),
            Some(port) => format!("{ip}:{port}"),
            None => ip.clone(),
        });
        let troth = status.troth.as_ref();
        let severity = status.severity_level.map(|level| {
            let known = LABELS.get(usize::from(level)).map(ToString::to_string);
            let said = troth.and_then(|troth| troth.severity.clone());
            said.or(known).unwrap_or_else(|| level.to_string())
        });
        Self {
            id: id.to_owned(),
            state,
            reason: troth.map_or_else(|| reason(state, status, now), |troth| troth.reason.clone()),
            since_ms: troth.map_or(0, |troth| troth.since_ms),
            judged_at_ms: troth.map_or_else(
                || status.last_received_quote.saturating_mul(1000),
                |troth| troth.judged_at_ms,
            ),
            last_trusted_ms,
            due_at_ms: troth.map(|troth| troth.due_at_ms).filter(|due| *due != 0),
            period: status.attestation_period.clone(),
            attestation_count: status.attestation_count,
            ima_entries: troth.map(|troth| troth.ima_entries),
            address,
            severity,
            last_event: status
                .last_event_id
                .clone()
                .filter(|event| !event.is_empty()),
            tpm_policy: serde_json::from_str(&status.tpm_policy).unwrap_or(Value::Null),
            has_runtime_policy: status.has_runtime_policy != 0,
            runtime_policy: troth.and_then(|troth| troth.runtime_policy.clone()),
            has_boot_policy: status.has_mb_refstate != 0,
            boot_policy: troth.and_then(|troth| troth.boot_policy.clone()),
            boot_quirks: troth
                .map(|troth| troth.boot_quirks.clone())
                .unwrap_or_default(),
            hash_algorithm: status.hash_alg.clone(),
            encryption_algorithm: status.enc_alg.clone(),
            signing_algorithm: status.sign_alg.clone(),
            verifier: format!(
                "{} at {}:{}",
                status.verifier_id, status.verifier_ip, status.verifier_port
            ),
            is_keylimes: troth.is_none(),
            findings: troth
                .map(|troth| troth.findings.clone())
                .unwrap_or_default(),
            findings_total: troth.map_or(0, |troth| troth.findings_total),
        }
    }

    /// The text of `agent status`; `now` in Unix milliseconds.
    pub(crate) fn describe(&self, out: &Output, now: u64) -> String {
        let mut text = format!(
            "{} {}: {}\n",
            out.paint(Tone::Strong, &clean(&self.id)),
            out.paint(self.state.tone(), &self.state.to_string()),
            clean(&self.reason)
        );
        text.push_str(&out.fields(&self.fields(now)));
        for (index, finding) in self.findings.iter().take(FINDINGS_SHOWN).enumerate() {
            let total = usize::try_from(self.findings_total)
                .unwrap_or(usize::MAX)
                .max(self.findings.len());
            text.push('\n');
            text.push_str(&out.finding(
                index,
                total,
                &finding.finding,
                finding.severity.as_deref(),
            ));
        }
        let shown = self.findings.len().min(FINDINGS_SHOWN) as u64;
        if self.findings_total > shown {
            text.push_str(&format!(
                "\n{} more findings; --json prints the {} that the verifier keeps.\n",
                self.findings_total - shown,
                self.findings.len()
            ));
        }
        if matches!(self.state, State::Failed | State::Unreachable) {
            text.push_str(&format!(
                "\n`trothctl agent explain {}` says why this matters and what to run next.\n",
                clean(&self.id)
            ));
        }
        text
    }

    /// When it was attested, and when it will be.
    pub(crate) fn attested(&self, now: u64) -> String {
        let mut attested = ago(self.judged_at_ms, now);
        let ended = matches!(self.state, State::Failed | State::Stopped | State::Removed);
        if ended && self.due_at_ms.is_none() {
            attested.push_str(", no further attestation is due");
        } else if !self.period.is_empty() {
            attested.push_str(&format!(", due every {}", clean(&self.period)));
        }
        if let Some(due) = self.due_at_ms {
            attested.push_str(&match due.checked_sub(now) {
                Some(wait) => format!(", next in {}", span(wait)),
                None => format!(", overdue by {}", span(now.saturating_sub(due))),
            });
        }
        attested
    }

    fn fields(&self, now: u64) -> Vec<(&'static str, String)> {
        let mut fields = vec![("Attested", self.attested(now))];
        let mut trusted = ago(self.last_trusted_ms, now);
        if self.attestation_count > 0 {
            trusted.push_str(&format!("; {} in all", self.attestation_count));
        }
        fields.push(("Trusted", trusted));
        if let Some(severity) = &self.severity {
            let event = self.last_event.as_deref().unwrap_or("no event id");
            fields.push((
                "Severity",
                format!("{} ({})", clean(severity), clean(event)),
            ));
        }
        if let Some(entries) = self.ima_entries {
            fields.push(("IMA list", format!("{entries} entries judged since boot")));
        }
        let mask = self
            .tpm_policy
            .get("mask")
            .and_then(Value::as_str)
            .unwrap_or("none");
        fields.push((
            "Policies",
            format!(
                "PCR mask {}, {}, {}",
                clean(mask),
                self.which(
                    "runtime policy",
                    self.has_runtime_policy,
                    &self.runtime_policy
                ),
                self.which("boot policy", self.has_boot_policy, &self.boot_policy)
            ),
        ));
        for quirk in &self.boot_quirks {
            fields.push(("Firmware", clean(&quirk.to_string())));
        }
        if !self.hash_algorithm.is_empty() {
            fields.push((
                "Quote",
                format!(
                    "{}, {}, {}",
                    clean(&self.hash_algorithm),
                    clean(&self.encryption_algorithm),
                    clean(&self.signing_algorithm)
                ),
            ));
        }
        if let Some(address) = &self.address {
            fields.push(("Agent", clean(address)));
        }
        fields.push(("Verifier", clean(&self.verifier)));
        fields
    }
}

impl Node {
    /// `no boot policy`, `a boot policy`, or `boot policy "NAME"` if it is not the node's own.
    fn which(&self, what: &str, has: bool, name: &Option<String>) -> String {
        match name {
            Some(name) if *name != self.id => format!("{what} \"{}\"", clean(name)),
            _ if has => format!("a {what}"),
            _ => format!("no {what}"),
        }
    }
}

/// `3.5 s ago (2026-11-23 17:56:08 UTC)`, or `never`.
fn ago(at: u64, now: u64) -> String {
    match at {
        0 => "never".to_owned(),
        at => format!("{} ago ({})", span(now.saturating_sub(at)), utc(at / 1000)),
    }
}

/// Words for a state of a verifier that gives none.
fn reason(state: State, status: &NodeStatus, now: u64) -> String {
    let last = match status.last_successful_attestation {
        0 => "never attested successfully".to_owned(),
        at => {
            format!(
                "last successful attestation {} ago",
                span(now.saturating_sub(at * 1000))
            )
        }
    };
    match (state, &status.last_event_id) {
        (State::Failed | State::Unreachable, Some(event)) if !event.is_empty() => event.clone(),
        _ => last,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;
    use troth_core::eventlog::Quirk;

    use super::*;

    /// An answer of Keylime's verifier.
    fn keylime() -> Value {
        json!({
            "operational_state": 3, "v": null, "ip": "127.0.0.1", "port": 9002,
            "tpm_policy": "{\"mask\": \"0x400\"}", "meta_data": "{}",
            "has_mb_refstate": 0, "has_runtime_policy": 1,
            "accept_tpm_hash_algs": ["sha256"], "accept_tpm_encryption_algs": ["rsa"],
            "accept_tpm_signing_algs": ["rsassa"],
            "hash_alg": "sha256", "enc_alg": "rsa", "sign_alg": "rsassa",
            "verifier_id": "default", "verifier_ip": "127.0.0.1", "verifier_port": 8881,
            "severity_level": null, "last_event_id": null, "attestation_count": 12,
            "last_received_quote": 1_795_456_568, "last_successful_attestation": 1_795_456_568,
            "attestation_status": "PASS", "attestation_period": "2s",
            "maximum_attestation_interval": "10s"
        })
    }

    /// A failed node with one finding, as Troth's verifier answers.
    pub(in crate::agent) fn failed() -> NodeStatus {
        let mut value = keylime();
        value["operational_state"] = json!(9);
        value["attestation_status"] = json!("FAIL");
        value["severity_level"] = json!(6);
        value["last_event_id"] = json!("ima.validation.ima-ng.not_in_allowlist");
        value["troth"] = json!({
            "state": "failed", "reason": "1 finding", "judged_at_ms": 1_795_456_570_000_u64,
            "due_at_ms": 0, "ima_entries": 1641, "findings_total": 1,
            "findings": [{
                "id": "ima.validation.ima-ng.not_in_allowlist", "recoverable": true,
                "severity": "emergency", "place": {"ima_entry": {"entry": 1640, "path": "/usr/bin/evil"}},
                "expected": [], "got": "sha256:ab", "explanation": "Not in the policy.",
                "action": "Find out who put it there."
            }]
        });
        serde_json::from_value(value).unwrap()
    }

    /// The same node before it failed.
    pub(in crate::agent) fn trusted() -> NodeStatus {
        let mut status = failed();
        status.operational_state = Some(3);
        status.severity_level = None;
        status.last_event_id = None;
        if let Some(troth) = &mut status.troth {
            troth.state = "trusted".to_owned();
            troth.reason = "every check passed".to_owned();
            troth.due_at_ms = 1_795_456_572_000;
            troth.findings.clear();
            troth.findings_total = 0;
        }
        status
    }

    const NOW: u64 = 1_795_456_571_500;

    #[test]
    fn a_failed_node_shows_its_findings() {
        let node = Node::new("node-1", &failed(), NOW);
        assert_eq!(
            node.describe(&Output::plain(), NOW),
            "node-1 failed: 1 finding
    Attested: 1.5 s ago (2026-11-23 17:56:10 UTC), no further attestation is due
     Trusted: 3.5 s ago (2026-11-23 17:56:08 UTC); 12 in all
    Severity: emergency (ima.validation.ima-ng.not_in_allowlist)
    IMA list: 1641 entries judged since boot
    Policies: PCR mask 0x400, a runtime policy, no boot policy
       Quote: sha256, rsa, rsassa
       Agent: 127.0.0.1:9002
    Verifier: default at 127.0.0.1:8881

Finding 1 of 1: /usr/bin/evil (IMA list entry 1640) \
             [ima.validation.ima-ng.not_in_allowlist, emergency]
       Found: sha256:ab
  Policy has: nothing for it
         Why: Not in the policy.
  What to do: Find out who put it there.

`trothctl agent explain node-1` says why this matters and what to run next.
"
        );
        assert_eq!(node.state.exit(), Exit::Untrusted);
    }

    #[test]
    fn the_json_shape_is_the_documented_one() {
        let value = serde_json::to_value(Node::new("node-1", &failed(), NOW)).unwrap();
        let keys: Vec<_> = value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            keys,
            [
                "address",
                "attestation_count",
                "boot_policy",
                "boot_quirks",
                "due_at_ms",
                "encryption_algorithm",
                "findings",
                "findings_total",
                "has_boot_policy",
                "has_runtime_policy",
                "hash_algorithm",
                "id",
                "ima_entries",
                "judged_at_ms",
                "last_event",
                "last_trusted_ms",
                "period",
                "reason",
                "runtime_policy",
                "severity",
                "signing_algorithm",
                "since_ms",
                "state",
                "tpm_policy",
                "verifier"
            ]
        );
        assert_eq!(value["state"], "failed");
        assert_eq!(value["tpm_policy"]["mask"], "0x400");
        assert_eq!(
            value["findings"][0]["place"]["ima_entry"]["path"],
            "/usr/bin/evil"
        );
    }

    #[test]
    fn a_trusted_node_says_when_the_next_attestation_is_due() {
        let node = Node::new("node-1", &trusted(), NOW);
        let text = node.describe(&Output::plain(), NOW);
        assert!(
            text.starts_with("node-1 trusted: every check passed\n"),
            "{text}"
        );
        assert!(text.contains("due every 2s, next in 0.5 s"), "{text}");
        let late = node.describe(&Output::plain(), NOW + 3_000);
        assert!(late.contains("overdue by 2.5 s"), "{late}");
    }

    #[test]
    fn a_quirk_of_the_firmware_is_told_of() {
        let text = Node::new("node-1", &trusted(), NOW).describe(&Output::plain(), NOW);
        assert!(!text.contains("Firmware"), "{text}");
        let mut status = trusted();
        let quirk = BootQuirk::new(0, Quirk::StartupLocalityMissing);
        status.troth.as_mut().unwrap().boot_quirks.push(quirk);
        let node = Node::new("node-1", &status, NOW);
        let text = node.describe(&Output::plain(), NOW);
        let line = "Firmware: PCR 0: startup-locality-missing (PCR 0 starts with the locality";
        assert!(text.contains(line), "{text}");
        let value = serde_json::to_value(node).unwrap();
        assert_eq!(value["boot_quirks"][0]["id"], "startup-locality-missing");
    }

    #[test]
    fn a_state_of_keylimes_verifier_is_mapped() {
        let state = |number: Value, count: u64, status: &str| {
            let mut value = keylime();
            value["operational_state"] = number;
            value["attestation_count"] = json!(count);
            value["attestation_status"] = json!(status);
            State::of(&serde_json::from_value(value).unwrap())
        };
        assert_eq!(state(json!(3), 12, "PASS"), State::Trusted);
        assert_eq!(state(json!(3), 0, "PASS"), State::Pending, "no verdict yet");
        assert_eq!(state(json!(1), 12, "PENDING"), State::Pending);
        assert_eq!(state(json!(7), 12, "FAIL"), State::Unreachable);
        assert_eq!(state(json!(9), 12, "FAIL"), State::Failed);
        assert_eq!(state(json!(10), 12, "FAIL"), State::Stopped);
        assert_eq!(state(Value::Null, 0, "TIMEOUT"), State::Unreachable);
        assert_eq!(state(Value::Null, 3, "PASS"), State::Trusted);
    }
}
