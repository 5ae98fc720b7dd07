use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use super::pattern::{Pattern, PatternBudget};
use super::{MAX_SMALL_POLICY, PolicyError};
use crate::ima::DmNames;
use crate::tpm::{Digest, HashAlgorithm};

/// Most rules, and most targets of one.
const MOST: usize = 256;

/// What may be set up with the kernel's device mapper: `ima.dm_policy` of a runtime policy.
#[derive(Debug)]
pub struct DmPolicy {
    match_on: MatchOn,
    rules: Vec<(String, DmRule)>,
    content_digest: Digest,
}

/// What tells devices apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum MatchOn {
    Name,
    Uuid,
}

/// What may become of the devices that one rule is about.
#[derive(Debug)]
pub(crate) struct DmRule {
    pub(crate) required: bool,
    pub(crate) resume_required: bool,
    pub(crate) allow_removal: bool,
    pub(crate) allow_clear: bool,
    pub(crate) allow_multiple_loads: bool,
    pub(crate) valid_name: Allowed,
    pub(crate) valid_uuid: Allowed,
    pub(crate) name: Allowed,
    pub(crate) uuid: Allowed,
    pub(crate) major: Allowed,
    pub(crate) minor: Allowed,
    pub(crate) minor_count: Allowed,
    /// Attributes of each target by name, in the order of the table.
    pub(crate) targets: Vec<Vec<(String, Allowed)>>,
}

/// What a value may be.
#[derive(Debug)]
pub(crate) enum Allowed {
    Anything,
    Flag(bool),
    Number(i64),
    Text(Pattern),
}

impl DmPolicy {
    /// Compiles its JSON.
    ///
    /// # Errors
    /// [`PolicyError::DeviceMapper`] names the member, or the rule with what is wrong in it.
    pub(super) fn compile(json: &str) -> Result<Self, PolicyError> {
        PolicyError::check_size(json.len(), MAX_SMALL_POLICY)?;
        let fail = PolicyError::DeviceMapper;
        let document: Document =
            serde_json::from_str(json).map_err(|error| fail(error.to_string()))?;
        if document.version != 1 {
            return Err(fail(format!("version {} is not 1", document.version)));
        }
        if document.rules.0.len() > MOST {
            return Err(fail(format!("more than {MOST} rules")));
        }
        let mut budget = PatternBudget::default();
        let mut rules = Vec::new();
        for (name, rule) in document.rules.0 {
            let rule = DmRule::compile(rule, document.match_on, &mut budget)
                .map_err(|reason| fail(format!("rule {name:?}: {reason}")))?;
            rules.push((name, rule));
        }
        Ok(Self {
            match_on: document.match_on,
            rules,
            content_digest: HashAlgorithm::Sha256.digest(&[json.as_bytes()]),
        })
    }

    /// What tells a device apart: its name or UUID.
    pub(crate) fn key<'n>(&self, names: &'n DmNames) -> &'n str {
        match self.match_on {
            MatchOn::Name => &names.name,
            MatchOn::Uuid => &names.uuid,
        }
    }

    /// The first rule that is about a device, and its place.
    pub(crate) fn rule_for(&self, names: &DmNames) -> Option<(usize, &DmRule)> {
        let mut rules = self.rules.iter().map(|(_, rule)| rule).enumerate();
        rules.find(|(_, rule)| match self.match_on {
            MatchOn::Name => rule.name.allows(&names.name),
            MatchOn::Uuid => rule.uuid.allows(&names.uuid),
        })
    }

    /// All rules by name.
    pub(crate) fn rules(&self) -> &[(String, DmRule)] {
        &self.rules
    }

    /// SHA-256 of the JSON text without white space.
    pub(crate) fn content_digest(&self) -> &Digest {
        &self.content_digest
    }
}

impl DmRule {
    fn compile(rule: Rule, match_on: MatchOn, budget: &mut PatternBudget) -> Result<Self, String> {
        let load = rule.table_load;
        let mut allowed = |name: &str, value: &Value| {
            Allowed::compile(value, budget).map_err(|reason| format!("`{name}` {reason}"))
        };
        if usize::try_from(load.num_targets).ok() != Some(load.targets.len()) {
            return Err(format!(
                "`num_targets` is {}, but `targets` has {}",
                load.num_targets,
                load.targets.len()
            ));
        }
        if load.targets.len() > MOST {
            return Err(format!("more than {MOST} targets"));
        }
        let mut targets = Vec::new();
        for target in load.targets {
            let attributes = target.0.iter();
            let attributes =
                attributes.map(|(name, value)| Ok((name.clone(), allowed(name, value)?)));
            targets.push(attributes.collect::<Result<_, String>>()?);
        }
        let compiled = Self {
            required: rule.required,
            resume_required: rule.device_resume_required,
            allow_removal: rule.device_remove.allow_removal,
            allow_clear: rule.allow_clear,
            allow_multiple_loads: load.allow_multiple_loads,
            valid_name: allowed("valid_name", &rule.device_rename.valid_name)?,
            valid_uuid: allowed("valid_uuid", &rule.device_rename.valid_uuid)?,
            name: allowed("name", &load.name)?,
            uuid: allowed("uuid", &load.uuid)?,
            major: allowed("major", &load.major)?,
            minor: allowed("minor", &load.minor)?,
            minor_count: allowed("minor_count", &load.minor_count)?,
            targets,
        };
        let (name, key) = match match_on {
            MatchOn::Name => ("name", &compiled.name),
            MatchOn::Uuid => ("uuid", &compiled.uuid),
        };
        match key {
            Allowed::Text(_) => Ok(compiled),
            _ => Err(format!("`{name}` tells devices apart and must be a text")),
        }
    }
}

impl Allowed {
    fn compile(value: &Value, budget: &mut PatternBudget) -> Result<Self, String> {
        match value {
            Value::Null => Ok(Self::Anything),
            Value::Bool(flag) => Ok(Self::Flag(*flag)),
            Value::Number(number) => number
                .as_i64()
                .map(Self::Number)
                .ok_or_else(|| format!("is no 64-bit integer: {number}")),
            Value::String(pattern) => Pattern::compile(pattern, budget).map(Self::Text),
            Value::Array(_) | Value::Object(_) => {
                Err("is neither null nor a flag, number or text".to_owned())
            }
        }
    }

    /// Is `value` one of those?
    pub(crate) fn allows(&self, value: &str) -> bool {
        match self {
            Self::Anything => true,
            Self::Flag(flag) => flag_of(value) == Some(*flag),
            Self::Number(number) => value.parse() == Ok(*number),
            Self::Text(pattern) => pattern.matches(value),
        }
    }
}

/// As it is written, for a person.
impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anything => f.write_str("anything"),
            Self::Flag(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(pattern) => f.write_str(pattern.source()),
        }
    }
}

/// What Keylime takes for a flag.
fn flag_of(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "y" | "yes" | "t" | "true" | "on" | "1" => Some(true),
        "n" | "no" | "f" | "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u64,
    match_on: MatchOn,
    rules: Pairs<Rule>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    required: bool,
    device_resume_required: bool,
    device_rename: Rename,
    device_remove: Remove,
    allow_clear: bool,
    table_load: Load,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Rename {
    valid_name: Value,
    valid_uuid: Value,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Remove {
    allow_removal: bool,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    allow_multiple_loads: bool,
    name: Value,
    uuid: Value,
    major: Value,
    minor: Value,
    minor_count: Value,
    num_targets: u64,
    targets: Vec<Pairs<Value>>,
}

/// An object in the order in which it is written; no name twice.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
    type Value = Pairs<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
        let mut pairs: Vec<(String, T)> = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, T>()? {
            if pairs.len() >= MOST {
                return Err(A::Error::custom(format!("more than {MOST} members")));
            }
            if pairs.iter().any(|(other, _)| *other == name) {
                return Err(A::Error::custom(format!("{name:?} occurs twice")));
            }
            pairs.push((name, value));
        }
        Ok(Pairs(pairs))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy() -> Value {
        json!({
            "version": 1, "match_on": "name", "rules": {"root": {
                "required": true, "device_resume_required": true, "allow_clear": false,
                "device_rename": {"valid_name": "a|b", "valid_uuid": null},
                "device_remove": {"allow_removal": false},
                "table_load": {
                    "allow_multiple_loads": false, "name": "root.*", "uuid": null, "major": 253,
                    "minor": null, "minor_count": 1, "num_targets": 1,
                    "targets": [{"target_name": "verity", "check_at_most_once": false}]
                }
            }}
        })
    }

    #[test]
    fn values_are_compared_as_what_the_policy_says() {
        for (allowed, yes, no) in [
            (json!("a.c"), "abc", "abcd"),
            (json!(7), "7", "8"),
            (json!(7), "07", "a"),
            (json!(true), "y", "n"),
            (json!(false), "off", "maybe"),
        ] {
            let compiled = Allowed::compile(&allowed, &mut PatternBudget::default()).unwrap();
            assert!(compiled.allows(yes), "{allowed}: {yes}");
            assert!(!compiled.allows(no), "{allowed}: {no}");
        }
    }

    #[test]
    fn what_cannot_be_judged_is_refused_with_the_rule() {
        for (pointer, value, reason) in [
            ("/version", json!(2), "version 2"),
            ("/match_on", json!("minor"), "minor"),
            ("/rules/root/required", json!(null), "null"),
            ("/rules/root/more", json!(1), "more"),
            ("/rules/root/table_load/name", json!(null), "must be a text"),
            (
                "/rules/root/table_load/name",
                json!("("),
                "`name` is no usable",
            ),
            (
                "/rules/root/table_load/major",
                json!(1.5),
                "rule \"root\": `major`",
            ),
            (
                "/rules/root/table_load/num_targets",
                json!(2),
                "`targets` has 1",
            ),
            (
                "/rules/root/table_load/targets/0/x",
                json!([]),
                "`x` is neither",
            ),
        ] {
            let mut policy = policy();
            let (above, name) = pointer.rsplit_once('/').unwrap();
            policy.pointer_mut(above).unwrap()[name] = value;
            let error = DmPolicy::compile(&policy.to_string())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("ima.dm_policy") && error.contains(reason),
                "{error}"
            );
        }
        let twice = policy()
            .to_string()
            .replacen("\"rules\":{", "\"rules\":{\"root\":{},", 1);
        assert!(DmPolicy::compile(&twice).is_err());
    }
}
