//! How much a finding matters: Keylime's `severity_labels` and `severity_policy`.
//!
//! Severity is rated outside of a finding: the same finding may stop the attestation of one fleet
//! and be a remark in another. It never makes a node trusted.

use std::collections::BTreeSet;

use fancy_regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::policy::{Scope, python_pattern};

/// Keylime's labels, lowest first: those of syslog.
pub const LABELS: [&str; 7] = [
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
];
/// Most labels: the API has a level as a small number.
const MAX_LABELS: usize = 100;
/// Most rules.
const MAX_RULES: usize = 1_000;
/// Compiled size of a rule's pattern, in bytes.
const SIZE_LIMIT: usize = 1 << 20;
/// Steps of the backtracking engine, which only patterns with look-around or back-references need.
const BACKTRACK_LIMIT: usize = 10_000;

/// An element of `severity_policy`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SeverityRule {
    /// Regular expression, as Python has them, that a finding's whole id must match.
    pub event_id: String,
    /// The label of findings that do.
    pub severity_label: String,
}

impl SeverityRule {
    /// Keylime's policy by default: everything is an emergency.
    pub fn defaults() -> Vec<Self> {
        vec![Self {
            event_id: ".*".to_owned(),
            severity_label: "emergency".to_owned(),
        }]
    }
}

/// How much a finding matters: a place in the list of labels.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Severity(u8);

impl Severity {
    /// Keylime's number: 0 is the lowest label.
    pub fn level(self) -> u8 {
        self.0
    }
}

/// Compiled labels and rules.
#[derive(Debug)]
pub struct Severities {
    labels: Vec<String>,
    rules: Vec<(Regex, Severity)>,
    unknown: Vec<String>,
}

impl Severities {
    /// Compiles `labels` (lowest first) and `policy` (the first rule that matches wins).
    ///
    /// A rule with a label that is not in the list rates the highest, as Keylime has it; see
    /// [`Severities::unknown_labels`].
    ///
    /// # Errors
    /// Labels that are no list of names, too many rules, or a pattern that is none.
    pub fn compile(labels: &[String], policy: &[SeverityRule]) -> Result<Self, SeverityError> {
        let distinct: BTreeSet<_> = labels.iter().filter(|label| !label.is_empty()).collect();
        if labels.is_empty() || labels.len() > MAX_LABELS || distinct.len() != labels.len() {
            return Err(SeverityError::Labels);
        }
        if policy.len() > MAX_RULES {
            return Err(SeverityError::Rules(policy.len()));
        }
        let mut severities = Self {
            labels: labels.to_vec(),
            rules: Vec::with_capacity(policy.len()),
            unknown: Vec::new(),
        };
        for (index, rule) in policy.iter().enumerate() {
            let fail = |reason| SeverityError::Pattern {
                rule: index + 1,
                pattern: rule.event_id.clone(),
                reason,
            };
            let translated = python_pattern(&rule.event_id, Scope::Whole).map_err(fail)?;
            let anchored = format!(r"\A(?:{translated})\z");
            let regex = RegexBuilder::new(&anchored)
                .backtrack_limit(BACKTRACK_LIMIT)
                .delegate_size_limit(SIZE_LIMIT)
                .build()
                .map_err(|error| fail(error.to_string()))?;
            let known = labels.iter().position(|l| *l == rule.severity_label);
            let level = known.and_then(|level| u8::try_from(level).ok());
            if level.is_none() {
                severities.unknown.push(rule.severity_label.clone());
            }
            let severity = level.map_or_else(|| severities.highest(), Severity);
            severities.rules.push((regex, severity));
        }
        Ok(severities)
    }

    /// How much a finding matters. One that stopped the check early always rates the highest, and
    /// so does one that no rule is about.
    pub fn rate(&self, id: &str, recoverable: bool) -> Severity {
        if !recoverable {
            return self.highest();
        }
        for (regex, severity) in &self.rules {
            match regex.is_match(id) {
                Ok(true) => return *severity,
                Ok(false) => {}
                // What cannot be told is taken seriously.
                Err(_) => break,
            }
        }
        self.highest()
    }

    /// The highest label: what has it ends the attestation of a node.
    pub fn highest(&self) -> Severity {
        Severity(u8::try_from(self.labels.len() - 1).unwrap_or(u8::MAX))
    }

    /// The label of a severity.
    pub fn label(&self, severity: Severity) -> &str {
        let label = self.labels.get(usize::from(severity.0));
        label.map_or("", String::as_str)
    }

    /// Labels of rules that are not in the list.
    pub fn unknown_labels(&self) -> &[String] {
        &self.unknown
    }
}

/// Why there is no telling how much findings matter. The names are those of the options.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SeverityError {
    /// No labels, too many, or one twice or empty.
    #[error("severity_labels must be 1 to {MAX_LABELS} different names, lowest first")]
    Labels,
    /// Not a regular expression.
    #[error(
        "severity_policy: event_id {pattern:?} of rule {rule} is no regular expression: {reason}"
    )]
    Pattern {
        /// 1 is the first.
        rule: usize,
        /// Its `event_id`.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many rules.
    #[error("severity_policy has {0} rules; at most {MAX_RULES} are taken")]
    Rules(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(event_id: &str, severity_label: &str) -> SeverityRule {
        SeverityRule {
            event_id: event_id.to_owned(),
            severity_label: severity_label.to_owned(),
        }
    }

    fn labels() -> Vec<String> {
        LABELS.map(str::to_owned).to_vec()
    }

    fn compile(policy: &[SeverityRule]) -> Severities {
        Severities::compile(&labels(), policy).unwrap()
    }

    #[test]
    fn the_first_rule_that_matches_the_whole_id_wins() {
        let severities = compile(&[
            rule(r"ima\.validation\..*", "warning"),
            rule(r"ima\..*", "error"),
            rule("pcr_validation", "info"),
            rule(r"measured_boot\.(?!policy_).*", "notice"),
        ]);
        for (id, label) in [
            ("ima.validation.ima_hash", "warning"),
            ("ima.pcr_mismatch", "error"),
            // Not the whole id.
            ("pcr_validation.invalid_pcr_7", "emergency"),
            ("measured_boot.missing_log", "notice"),
            ("measured_boot.policy_x", "emergency"),
            ("xima.pcr_mismatch", "emergency"),
            ("ima.pcr_mismatch\n", "emergency"),
        ] {
            assert_eq!(severities.label(severities.rate(id, true)), label, "{id:?}");
            let stopped = severities.rate(id, false);
            assert_eq!(stopped, severities.highest(), "{id:?} stopped the check");
        }
    }

    #[test]
    fn by_default_everything_is_an_emergency_and_nothing_is_ever_below_a_label() {
        let severities = compile(&SeverityRule::defaults());
        let severity = severities.rate("ima.pcr_mismatch", true);
        assert_eq!(
            (severity.level(), severities.label(severity)),
            (6, "emergency")
        );
        let nothing = compile(&[]);
        assert_eq!(nothing.rate("ima.pcr_mismatch", true), nothing.highest());
        let one = Severities::compile(&["bad".to_owned()], &[]).unwrap();
        assert_eq!(
            (one.highest().level(), one.label(one.highest())),
            (0, "bad")
        );
    }

    #[test]
    fn an_unknown_label_is_the_highest_and_told() {
        let severities = compile(&[rule(".*", "warn")]);
        assert_eq!(
            severities.rate("ima.pcr_mismatch", true),
            severities.highest()
        );
        assert_eq!(severities.unknown_labels(), ["warn"]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let error = |labels: &[&str], policy: &[SeverityRule]| {
            let labels: Vec<_> = labels.iter().map(|&label| label.to_owned()).collect();
            Severities::compile(&labels, policy).unwrap_err()
        };
        for labels in [&[][..], &["a", "a"], &["a", ""], &["x"; 101]] {
            assert_eq!(error(labels, &[]), SeverityError::Labels);
        }
        let bad = error(&["a"], &[rule("ima", "a"), rule("ima.(", "a")]).to_string();
        assert!(bad.contains(r#"event_id "ima.(" of rule 2"#), "{bad}");
        let rules = vec![rule("a", "a"); MAX_RULES + 1];
        assert_eq!(error(&["a"], &rules), SeverityError::Rules(1_001));
    }

    #[test]
    fn a_pattern_that_takes_for_ever_rates_the_highest() {
        let severities = compile(&[rule(r"(?:(a+)+\1)b", "info")]);
        let id = "a".repeat(64);
        assert_eq!(severities.rate(&id, true), severities.highest());
    }
}
