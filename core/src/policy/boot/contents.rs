use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::BootPolicy;
use super::keys::Key;
use super::refstate::{self, Digests, Refstate};
use super::rules::{BootRules, named};
use crate::policy::ChangeKind;

/// What a boot policy says, thing by thing, for people.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct BootContents {
    /// What it is.
    pub form: BootForm,
    /// Single values by JSON pointer (RFC 6901), as JSON texts.
    pub members: BTreeMap<String, String>,
    /// What it speaks of, as it stands there.
    pub entries: Vec<BootEntry>,
    /// Names of the events of a PCR, in their order.
    pub order: BTreeMap<u8, Vec<String>>,
}

/// Forms of a boot policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BootForm {
    /// None: the boot log is not looked at.
    None,
    /// `{}`: the log must replay.
    Replay,
    /// Keylime's reference state.
    Refstate,
    /// One of ours.
    Rules,
    /// All boots fail.
    Reject,
}

/// One thing that a boot policy speaks of: a component, a list of keys, command lines.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct BootEntry {
    /// Its name; of what is no component, the key in the policy.
    pub name: String,
    /// Where it is measured, ascending.
    pub pcrs: Vec<u8>,
    /// TCG names of the types of events that it may be; none: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// It may be whatever it is.
    #[serde(skip_serializing_if = "is_false")]
    pub any: bool,
    /// Allowed digests, `hash:hex`, ascending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<String>,
    /// Patterns that the whole text must match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
    /// Keys, or signers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Of a refstate, alternatives of several parts each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<String>,
    /// How often it is measured, where the policy says that: at least and at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<(u32, Option<u32>)>,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// What distinguishes a boot policy from an older one. Notes are for people, and no difference.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct BootDiff {
    /// What became of what they speak of, by PCR and name.
    pub entries: BTreeMap<String, BootChange>,
    /// Where the order of a PCR's events begins to differ.
    pub order: BTreeMap<u8, OrderChange>,
    /// Single values by JSON pointer, each as the JSON texts of before and after.
    pub members: BTreeMap<String, [Option<String>; 2]>,
}

/// What became of one thing in a boot policy.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct BootChange {
    /// What became of it.
    pub kind: ChangeKind,
    /// What of it is gone, ascending.
    pub removed: Vec<String>,
    /// What of it is new, ascending.
    pub added: Vec<String>,
}

/// The first place at which the order of a PCR's events differs.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct OrderChange {
    /// From 1.
    pub event: usize,
    /// What is there before and after; `None`: it has ended, or there is no order.
    pub names: [Option<String>; 2],
    /// How many events there are before and after.
    pub events: [usize; 2],
}

impl BootDiff {
    /// Do they judge alike?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl BootPolicy {
    /// What it says.
    pub fn contents(&self) -> BootContents {
        let empty = |form| BootContents {
            form,
            members: BTreeMap::new(),
            entries: Vec::new(),
            order: BTreeMap::new(),
        };
        match self {
            Self::None => empty(BootForm::None),
            Self::Replay | Self::AcceptAll => empty(BootForm::Replay),
            Self::RejectAll => empty(BootForm::Reject),
            Self::Refstate(state) => BootContents {
                members: [member("/has_secureboot", &state.secure_boot)].into(),
                entries: of_refstate(state),
                ..empty(BootForm::Refstate)
            },
            Self::Rules(rules) => BootContents {
                members: members(rules),
                entries: of_rules(rules),
                order: rules.order.clone(),
                ..empty(BootForm::Rules)
            },
        }
    }

    /// What distinguishes `new` from this one. A refstate is compared with a policy of ours as the
    /// policy of ours that [`Refstate::to_rules`] makes of it.
    pub fn diff(&self, new: &Self) -> BootDiff {
        let of = |one: &Self, other: &Self| match (one, other) {
            (Self::Refstate(state), Self::Rules(_)) => match state.to_rules() {
                Ok(converted) => Self::Rules(converted.rules.into()).contents(),
                // One that allows no boot at all.
                Err(_) => one.contents(),
            },
            _ => one.contents(),
        };
        let (before, after) = (of(self, new), of(new, self));
        let mut diff = before.diff(&after);
        let forms = [self, new].map(|one| one.contents().form);
        if forms[0] != forms[1] {
            let texts = forms.map(|form| serde_json::to_string(&form).ok());
            diff.members.insert("/form".to_owned(), texts);
        }
        diff
    }
}

impl BootContents {
    fn diff(&self, new: &Self) -> BootDiff {
        let (before, after) = (self.by_place(), new.by_place());
        let places: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        let none = BTreeSet::new();
        let change = |place: &String| {
            let (old, new) = (before.get(place), after.get(place));
            let kind = match (old, new) {
                (None, _) => ChangeKind::Added,
                (_, None) => ChangeKind::Removed,
                _ => ChangeKind::Changed,
            };
            let (old_values, new_values) = (old.unwrap_or(&none), new.unwrap_or(&none));
            let change = BootChange {
                kind,
                removed: old_values.difference(new_values).cloned().collect(),
                added: new_values.difference(old_values).cloned().collect(),
            };
            (old != new).then(|| (place.clone(), change))
        };
        let pcrs: BTreeSet<_> = self.order.keys().chain(new.order.keys()).collect();
        let order = |pcr: &u8| {
            let orders = [self, new].map(|one| one.order.get(pcr).map_or(&[][..], Vec::as_slice));
            Some((*pcr, OrderChange::between(orders)?))
        };
        let names: BTreeSet<_> = self.members.keys().chain(new.members.keys()).collect();
        let member = |name: &String| {
            let values = [self, new].map(|one| one.members.get(name).cloned());
            (values[0] != values[1]).then(|| (name.clone(), values))
        };
        BootDiff {
            entries: places.into_iter().filter_map(change).collect(),
            order: pcrs.into_iter().filter_map(order).collect(),
            members: names.into_iter().filter_map(member).collect(),
        }
    }

    /// What is said of each thing.
    fn by_place(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for entry in &self.entries {
            all.entry(entry.place()).or_default().extend(entry.said());
        }
        all
    }
}

impl BootEntry {
    /// `PCR 8, 12: command_line`.
    pub fn place(&self) -> String {
        let pcrs: Vec<_> = self.pcrs.iter().map(u8::to_string).collect();
        format!("PCR {}: {}", pcrs.join(", "), self.name)
    }

    /// What may be measured, a text for each alternative; then what else is demanded of it.
    pub fn said(&self) -> Vec<String> {
        let mut said = self.allowed();
        let events = self.events.iter().map(|event| format!("type {event}"));
        said.extend(events);
        if let Some((min, max)) = self.times {
            said.push(match max {
                Some(max) if max == min => format!("times {min}"),
                Some(max) => format!("times {min} to {max}"),
                None => format!("times {min} or more"),
            });
        }
        said
    }

    /// What may be measured, a text for each alternative.
    pub fn allowed(&self) -> Vec<String> {
        let any = self.any.then(|| "anything".to_owned());
        let texts = self.texts.iter().map(|text| format!("text {text}"));
        let keys = self.keys.iter().map(|key| format!("key {key}"));
        let digests = self.digests.iter().chain(&self.alternatives).cloned();
        any.into_iter()
            .chain(digests)
            .chain(texts)
            .chain(keys)
            .collect()
    }
}

impl OrderChange {
    fn between([old, new]: [&[String]; 2]) -> Option<Self> {
        let same = old.iter().zip(new).take_while(|(old, new)| old == new);
        let at = same.count();
        (old != new).then(|| Self {
            event: at + 1,
            names: [old.get(at).cloned(), new.get(at).cloned()],
            events: [old.len(), new.len()],
        })
    }
}

fn members(rules: &BootRules) -> BTreeMap<String, String> {
    let document = &rules.document;
    let mut members = BTreeMap::from([member("/others", &document.others)]);
    if let Some(secure_boot) = &document.secure_boot {
        members.extend([member("/secure_boot/enabled", &secure_boot.enabled)]);
        let sbat = secure_boot.sbat.iter();
        members.extend(sbat.map(|(name, generation)| {
            let name = name.replace('~', "~0").replace('/', "~1");
            member(&format!("/secure_boot/sbat/{name}"), generation)
        }));
    }
    if let Some(phases) = &rules.phases {
        members.extend([
            member("/phases/chain", &phases.chain),
            member("/phases/last", &phases.last),
        ]);
    }
    members
}

fn member(pointer: &str, value: &impl Serialize) -> (String, String) {
    let value = serde_json::to_value(value).unwrap_or(Value::Null);
    (pointer.to_owned(), value.to_string())
}

fn of_rules(rules: &BootRules) -> Vec<BootEntry> {
    let document = &rules.document;
    let mut entries = Vec::new();
    if let Some(secure_boot) = &rules.secure_boot {
        let mut list = |name: &str, keys: &[Key]| {
            entries.push(BootEntry {
                name: format!("secure_boot.{name}"),
                pcrs: vec![7],
                keys: keys.iter().map(Key::full).collect(),
                ..BootEntry::default()
            });
        };
        for (name, keys) in &secure_boot.allowed {
            list(&name.to_ascii_lowercase(), keys.list());
        }
        if !secure_boot.dbx_at_least.is_empty() {
            list("dbx_at_least", secure_boot.dbx_at_least.list());
        }
        if let Some(authorities) = &secure_boot.authorities {
            list("authorities", authorities.list());
        }
    }
    let own = rules.components.len() - document.component.len();
    for (index, component) in rules.components.iter().enumerate() {
        let written = index
            .checked_sub(own)
            .and_then(|index| document.component.get(index));
        let name = match (written, component.name.as_str()) {
            (Some(_), name) => name.to_owned(),
            (None, "partition-table") => "partition_table".to_owned(),
            (None, "command-line") => "command_line".to_owned(),
            (None, name) => format!("mok.{name}"),
        };
        let kinds = component.events.iter();
        entries.push(BootEntry {
            name,
            pcrs: (0..16)
                .filter(|pcr| component.pcrs >> pcr & 1 == 1)
                .collect(),
            events: match written {
                Some(_) => kinds.map(|kind| kind.to_string()).collect(),
                None => Vec::new(),
            },
            any: component.allowed.any,
            digests: sorted(component.allowed.digests.iter().map(named)),
            texts: {
                let patterns = component.allowed.text.iter();
                patterns.map(|text| text.source().to_owned()).collect()
            },
            keys: {
                let signers = component.allowed.signers.iter();
                signers.map(Key::full).collect()
            },
            alternatives: Vec::new(),
            times: written.map(|_| {
                let most = (component.max != u32::MAX).then_some(component.max);
                (component.min, most)
            }),
            note: written.map_or_else(String::new, |written| written.note.clone()),
        });
    }
    entries
}

fn of_refstate(state: &Refstate) -> Vec<BootEntry> {
    let mut entries = vec![BootEntry {
        name: "scrtm_and_bios".to_owned(),
        pcrs: vec![0],
        alternatives: state.firmware.iter().map(firmware).collect(),
        ..BootEntry::default()
    }];
    for (name, keys) in [
        ("pk", &state.pk),
        ("kek", &state.kek),
        ("db", &state.db),
        ("dbx", &state.dbx),
        ("vendor_db", &state.vendor_db),
    ] {
        entries.push(BootEntry {
            name: name.to_owned(),
            pcrs: vec![7],
            keys: keys.iter().map(refstate::Key::describe).collect(),
            ..BootEntry::default()
        });
    }
    for (name, digests) in [("mokdig", &state.mok), ("mokxdig", &state.mokx)] {
        entries.push(BootEntry {
            name: name.to_owned(),
            pcrs: vec![14],
            digests: sorted(digests.iter().map(banks)),
            ..BootEntry::default()
        });
    }
    entries.push(BootEntry {
        name: "kernels".to_owned(),
        pcrs: vec![4, 8, 9],
        alternatives: state.kernels.iter().map(kernel).collect(),
        ..BootEntry::default()
    });
    entries
}

fn firmware(one: &refstate::Firmware) -> String {
    let blobs: Vec<_> = one.blobs.iter().map(banks).collect();
    format!(
        "version {}; parts {}",
        banks(&one.scrtm),
        match blobs.is_empty() {
            true => "none".to_owned(),
            false => blobs.join(", "),
        }
    )
}

fn kernel(one: &refstate::Kernel) -> String {
    let command_line = one.cmdline.source();
    let command_line = command_line.strip_prefix(refstate::KERNEL_CMDLINE);
    format!(
        "shim {}; GRUB {}; kernel {}; initrd {}; command line {}",
        named(&one.shim),
        named(&one.grub),
        named(&one.kernel),
        named(&one.initrd),
        command_line.unwrap_or_default()
    )
}

fn banks(digests: &Digests) -> String {
    let digests: Vec<_> = digests.iter().map(|(_, digest)| named(digest)).collect();
    match digests.is_empty() {
        true => "of no known bank".to_owned(),
        false => digests.join(" or "),
    }
}

fn sorted(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut texts: Vec<_> = texts.collect();
    texts.sort_unstable();
    texts
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(toml: &str) -> BootPolicy {
        BootPolicy::Rules(BootRules::from_toml(toml).unwrap().into())
    }

    fn digest(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    #[test]
    fn components_are_told_apart_by_pcr_and_name_wherever_they_stand() {
        let (a, b, c) = (digest("aa"), digest("bb"), digest("cc"));
        let old = format!(
            "version = 1\ncommand_line = ['a', 'b']\n\
             [[component]]\nname = 'kernel'\ndigests = ['{a}', '{b}']\n\
             [[component]]\nname = 'firmware'\nany = true\n"
        );
        let same = format!(
            "version = 1\ncommand_line = ['b', 'a']\nnote = 'moved'\n\
             [[component]]\nname = 'firmware'\nany = true\n\
             [[component]]\nname = 'kernel'\nnote = 'as before'\npcr = 4\ndigests = ['{}', '{a}']\n",
            "BB".repeat(32)
        );
        assert!(policy(&old).diff(&policy(&same)).is_empty());
        let new = format!(
            "version = 1\nothers = 'allow'\ncommand_line = ['b', 'c']\n\
             [order]\n4 = ['separator']\n\
             [[component]]\nname = 'kernel'\ndigests = ['{b}', '{c}']\nmax = 2\n\
             [[component]]\nname = 'driver'\nany = true\n"
        );
        let diff = policy(&old).diff(&policy(&new));
        let change = |kind, removed: &[&str], added: &[&str]| BootChange {
            kind,
            removed: removed.iter().map(|text| (*text).to_owned()).collect(),
            added: added.iter().map(|text| (*text).to_owned()).collect(),
        };
        let expected = [
            (
                "PCR 0: firmware",
                change(ChangeKind::Removed, &["anything", "times 1 or more"], &[]),
            ),
            (
                "PCR 2: driver",
                change(ChangeKind::Added, &[], &["anything", "times 1 or more"]),
            ),
            (
                "PCR 4: kernel",
                change(ChangeKind::Changed, &[&a, "times 1"], &[&c, "times 1 to 2"]),
            ),
            (
                "PCR 8, 12: command_line",
                change(ChangeKind::Changed, &["text a"], &["text c"]),
            ),
        ];
        let expected = expected.map(|(place, change)| (place.to_owned(), change));
        assert_eq!(diff.entries, BTreeMap::from(expected));
        let order = OrderChange {
            event: 1,
            names: [None, Some("separator".to_owned())],
            events: [0, 1],
        };
        assert_eq!(diff.order, BTreeMap::from([(4, order)]));
        let others = [Some("\"deny\"".to_owned()), Some("\"allow\"".to_owned())];
        assert_eq!(
            diff.members,
            BTreeMap::from([("/others".to_owned(), others)])
        );
    }

    #[test]
    fn keys_are_compared_by_all_that_is_said_of_them() {
        let with = |key: &str| {
            policy(&format!(
                "version = 1\n[secure_boot]\nenabled = true\ndb = [{key}]\n"
            ))
        };
        let (a, upper) = (digest("ab"), format!("sha256:{}", "AB".repeat(32)));
        let plain = with(&format!("'{a}'"));
        assert!(plain.diff(&with(&format!("'{upper}'"))).is_empty());
        let named = with(&format!("{{sha256 = '{a}', subject = 'CN=x'}}"));
        let typed = with(&format!(
            "{{sha256 = '{a}', subject = 'CN=x', type = 'x509'}}"
        ));
        for (one, other) in [(&plain, &named), (&named, &typed)] {
            let diff = one.diff(other);
            let change = &diff.entries["PCR 7: secure_boot.db"];
            assert_eq!((change.removed.len(), change.added.len()), (1, 1));
        }
    }
}
