use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Display;

use serde_json::{Map, Value};

use super::document::{self, AnyOr, Component, Document, Phases, SecureBoot};
use super::keys::Key;
use super::refstate::Refstate;
use super::rules::{self, BootRules, named};
use super::{BootPolicy, MAX_SMALL_POLICY, PolicyError};

/// A boot policy that allows what either of two allows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MergedBoot {
    /// Its JSON.
    pub json: String,
    /// What it allows or demands other than the two, a sentence each.
    pub told: Vec<String>,
}

impl BootPolicy {
    /// One policy of two of one form, given as JSON: alternatives of both, each once. Components
    /// are the same if they have one place and content, or else one PCR and name; one that is in
    /// one of them alone may be absent. The order of events counts where it is the same in both.
    ///
    /// # Errors
    /// As [`Self::parse`]; [`PolicyError::BootMerge`] names all that one policy cannot say.
    pub fn merge(one: &str, other: &str) -> Result<MergedBoot, PolicyError> {
        let merged = match (Self::parse(Some(one))?, Self::parse(Some(other))?) {
            (Self::Rules(one), Self::Rules(other)) => merge_rules(&one, &other)?,
            (Self::Refstate(mine), Self::Refstate(theirs)) => {
                merge_refstates(one, other, [mine.secure_boot, theirs.secure_boot])?
            }
            (mine, theirs) if mine == theirs => MergedBoot {
                json: one.to_owned(),
                told: Vec::new(),
            },
            (mine, theirs) => {
                let forms = [mine, theirs].map(|policy| policy.form());
                let reason = format!("one is {}, the other {}", forms[0], forms[1]);
                return Err(PolicyError::BootMerge(vec![reason]));
            }
        };
        PolicyError::check_size(merged.json.len(), MAX_SMALL_POLICY)?;
        Ok(merged)
    }

    fn form(&self) -> &'static str {
        match self {
            Self::None => "none at all",
            Self::Replay | Self::AcceptAll => "{}, which accepts every boot that replays",
            Self::RejectAll => "one that rejects every boot",
            Self::Refstate(_) => {
                "a refstate (`policy convert --to boot-toml` makes a policy of it)"
            }
            Self::Rules(_) => "a policy of components",
        }
    }
}

fn merge_rules(one: &BootRules, other: &BootRules) -> Result<MergedBoot, PolicyError> {
    let mut merge = Merge::default();
    let document = merge.documents(one, other);
    let Merge { told, wrong } = merge;
    if !wrong.is_empty() {
        return Err(PolicyError::BootMerge(wrong));
    }
    let json = BootRules::compile(document)?.to_json();
    Ok(MergedBoot { json, told })
}

/// What came of merging so far.
#[derive(Default)]
struct Merge {
    told: Vec<String>,
    /// What contradicts.
    wrong: Vec<String>,
}

/// A component as it is written, and as it is judged.
struct Part<'p> {
    document: &'p Component,
    rule: &'p rules::Component,
}

/// Names of the second policy's components, where they have another in the merged one.
type Renamed = HashMap<(u32, String), String>;

impl Merge {
    fn documents(&mut self, one: &BootRules, other: &BootRules) -> Document {
        let (component, renamed) = self.components(&parts(one), &parts(other));
        let (mine, theirs) = (&one.document, &other.document);
        if mine.others != theirs.others {
            self.wrong
                .push("`others` is deny in one and allow in the other".to_owned());
        }
        if one.others && other.others {
            let alone = one.listed ^ other.listed;
            if alone != 0 {
                self.told.push(format!(
                    "PCR {} may hold anything by one of them, and is judged now",
                    numbers(alone)
                ));
            }
        }
        Document {
            version: mine.version,
            note: joined(&mine.note, &theirs.note),
            others: mine.others,
            partition_table: {
                let tables = [&mine.partition_table, &theirs.partition_table];
                self.both("partition_table", tables.map(Option::as_ref))
                    .map(|tables| self.any_or("partition_table", tables))
            },
            command_line: {
                let lines = [&mine.command_line, &theirs.command_line];
                self.both("command_line", lines.map(Option::as_ref))
                    .map(|[mine, theirs]| union(mine, theirs, String::clone))
            },
            secure_boot: {
                let tables = [&mine.secure_boot, &theirs.secure_boot];
                let tables = self.both("[secure_boot]", tables.map(Option::as_ref));
                let merged = tables.map(|tables| self.secure_boot(tables));
                merged.map(|merged| SecureBoot {
                    authorities: self.authorities([mine, theirs], &component),
                    ..merged
                })
            },
            mok: self.mok(&mine.mok, &theirs.mok),
            phases: {
                let phases = [&mine.phases, &theirs.phases];
                self.both("[phases]", phases.map(Option::as_ref))
                    .and_then(|phases| self.phases(phases))
            },
            order: self.order(one, other, &renamed),
            component,
        }
    }

    /// What both have. In one of them alone it is a contradiction: it cannot be left out by halves.
    fn both<'a, T>(&mut self, what: &str, values: [Option<&'a T>; 2]) -> Option<[&'a T; 2]> {
        match values {
            [Some(mine), Some(theirs)] => Some([mine, theirs]),
            [None, None] => None,
            _ => {
                self.wrong.push(format!("{what} is in one of them alone"));
                None
            }
        }
    }

    fn any_or(&mut self, what: &str, values: [&AnyOr; 2]) -> AnyOr {
        match values {
            [AnyOr::Digests(mine), AnyOr::Digests(theirs)] => {
                AnyOr::Digests(union(mine, theirs, |digest| normal(digest)))
            }
            [AnyOr::Any, AnyOr::Any] => AnyOr::Any,
            _ => {
                self.anything(what);
                AnyOr::Any
            }
        }
    }

    fn anything(&mut self, what: impl Display) {
        self.told.push(format!(
            "{what} may be anything by one of them, and so it may now"
        ));
    }

    fn secure_boot(&mut self, [mine, theirs]: [&SecureBoot; 2]) -> SecureBoot {
        if mine.enabled != theirs.enabled {
            self.wrong
                .push("`secure_boot.enabled` is true in one and false in the other".to_owned());
        }
        let mut keys = |name: &str, lists: [&Option<Vec<document::Key>>; 2]| match lists {
            [Some(mine), Some(theirs)] => Some(union(mine, theirs, key)),
            [None, None] => None,
            _ => {
                self.anything(format!("secure_boot.{name}"));
                None
            }
        };
        let demanded =
            [mine, theirs].map(|table| table.dbx_at_least.iter().map(key).collect::<HashSet<_>>());
        let merged = SecureBoot {
            enabled: mine.enabled,
            pk: keys("pk", [&mine.pk, &theirs.pk]),
            kek: keys("kek", [&mine.kek, &theirs.kek]),
            db: keys("db", [&mine.db, &theirs.db]),
            dbx: keys("dbx", [&mine.dbx, &theirs.dbx]),
            authorities: None,
            dbx_at_least: {
                let both = mine.dbx_at_least.iter();
                both.filter(|one| demanded[1].contains(&key(one)))
                    .cloned()
                    .collect()
            },
            sbat: {
                let both = mine.sbat.iter();
                both.filter_map(|(name, generation)| {
                    let other = theirs.sbat.get(name)?;
                    Some((name.clone(), *generation.min(other)))
                })
                .collect()
            },
        };
        let dropped = demanded[0].symmetric_difference(&demanded[1]).count();
        if dropped > 0 {
            self.told.push(format!(
                "{dropped} revocations of `dbx_at_least` are demanded by one of them alone, and not \
                 any more"
            ));
        }
        if merged.sbat != mine.sbat || merged.sbat != theirs.sbat {
            self.told.push(
                "of `sbat` the lower generations are demanded, of what both of them name"
                    .to_owned(),
            );
        }
        merged
    }

    /// Whose signatures may have let an image run: the authorities and signers of both. A policy
    /// that names neither is content with whom the variables allow, which cannot be said beside
    /// signers. `merged` are the components of both.
    fn authorities(
        &mut self,
        documents: [&Document; 2],
        merged: &[Component],
    ) -> Option<Vec<document::Key>> {
        let listed = documents.map(|document| document.secure_boot.as_ref()?.authorities.as_ref());
        let signers = documents.map(|document| signers_of(&document.component));
        let kept = signers_of(merged);
        let open = [0, 1].map(|at| listed[at].is_none() && signers[at].is_empty());
        match open {
            [false, false] => {}
            [true, true] => return None,
            _ if kept.is_empty() => {
                self.anything("secure_boot.authorities");
                return None;
            }
            _ => {
                self.wrong.push(
                    "one has no `secure_boot.authorities` and lets anybody sign whom the \
                     variables allow, the other has `signers`: list the authorities of the former"
                        .to_owned(),
                );
                return None;
            }
        }
        // A component that may be anything now has no signers any more.
        let kept: HashSet<_> = kept.iter().map(key).collect();
        let mut lost = signers.concat();
        lost.retain(|one| !kept.contains(&key(one)));
        let needed = listed.iter().any(Option::is_some) || !lost.is_empty();
        let listed: Vec<_> = listed.into_iter().flatten().flatten().cloned().collect();
        needed.then(|| union(&listed, &lost, key))
    }

    fn mok(
        &mut self,
        mine: &BTreeMap<String, AnyOr>,
        theirs: &BTreeMap<String, AnyOr>,
    ) -> BTreeMap<String, AnyOr> {
        let names: BTreeSet<_> = mine.keys().chain(theirs.keys()).collect();
        let mut merged = BTreeMap::new();
        for name in names {
            let what = format!("mok.{name}");
            if let Some(values) = self.both(&what, [mine.get(name), theirs.get(name)]) {
                merged.insert(name.clone(), self.any_or(&what, values));
            }
        }
        merged
    }

    fn phases(&mut self, [mine, theirs]: [&Phases; 2]) -> Option<Phases> {
        let longer = match mine.chain.len() < theirs.chain.len() {
            true => &theirs.chain,
            false => &mine.chain,
        };
        if !longer.starts_with(&mine.chain) || !longer.starts_with(&theirs.chain) {
            self.wrong
                .push("`phases.chain`: neither is the beginning of the other".to_owned());
            return None;
        }
        let lasts = |phases: &Phases, phase: &String| match phases.last.is_empty() {
            true => phases.chain.contains(phase),
            false => phases.last.contains(phase),
        };
        let last = longer.iter();
        let last: Vec<_> = last
            .filter(|phase| lasts(mine, phase) || lasts(theirs, phase))
            .cloned()
            .collect();
        Some(Phases {
            chain: longer.clone(),
            last: match last.len() == longer.len() {
                true => Vec::new(),
                false => last,
            },
        })
    }

    /// The order of a PCR's events where it is one, in the names of the merged policy.
    fn order(
        &mut self,
        one: &BootRules,
        other: &BootRules,
        renamed: &Renamed,
    ) -> BTreeMap<String, Vec<String>> {
        let mut order = BTreeMap::new();
        let mut dropped = 0;
        let pcrs: BTreeSet<_> = one.order.keys().chain(other.order.keys()).collect();
        for pcr in pcrs {
            let theirs = other.order.get(pcr).map(|names| {
                let names = names.iter().map(|name| {
                    let renamed = renamed.get(&(1 << pcr, name.clone()));
                    renamed.unwrap_or(name).clone()
                });
                names.collect::<Vec<_>>()
            });
            match (one.order.get(pcr), theirs) {
                (Some(mine), Some(theirs)) if *mine == theirs => {
                    order.insert(pcr.to_string(), theirs);
                }
                _ => dropped |= 1 << pcr,
            }
        }
        if dropped != 0 {
            self.told.push(format!(
                "the events of PCR {} have not one order in both, and may come in any",
                numbers(dropped)
            ));
        }
        order
    }

    /// The components of both, and what those of the second are called now.
    fn components(&mut self, mine: &[Part<'_>], theirs: &[Part<'_>]) -> (Vec<Component>, Renamed) {
        let pairs = pairs(mine, theirs);
        let mut merged: Vec<_> = mine.iter().map(|part| part.document.clone()).collect();
        let mut names: HashSet<_> = mine.iter().map(Part::key).collect();
        let mut alone: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let paired: HashSet<_> = pairs.iter().flatten().copied().collect();
        for (index, part) in mine.iter().enumerate() {
            if !paired.contains(&index) {
                alone
                    .entry(part.rule.pcrs)
                    .or_default()
                    .extend(part.required());
                if let Some(place) = merged.get_mut(index) {
                    *place = part.perhaps();
                }
            }
        }
        let mut renamed = Renamed::new();
        for (part, pair) in theirs.iter().zip(&pairs) {
            let pair = pair.and_then(|index| Some((mine.get(index)?, merged.get_mut(index)?)));
            let name = match pair {
                Some((other, place)) => {
                    *place = self.united(other, part);
                    place.name.clone()
                }
                None => {
                    let (pcrs, base) = part.key();
                    let mut name = base.clone();
                    let mut number = 1;
                    while !names.insert((pcrs, name.clone())) {
                        number += 1;
                        name = format!("{base}-{number}");
                    }
                    let mut component = part.perhaps();
                    // The name may have told the kind.
                    if component.kind.is_none() && name != base && rules::is_kind(&base) {
                        component.kind = Some(base);
                    }
                    component.name.clone_from(&name);
                    merged.push(component);
                    let required = part.required().map(|_| name.clone());
                    alone.entry(pcrs).or_default().extend(required);
                    name
                }
            };
            renamed.insert(part.key(), name);
        }
        for (pcrs, names) in alone.into_iter().filter(|(_, names)| !names.is_empty()) {
            self.told.push(format!(
                "PCR {}: in one of them alone, and may be absent now: {}",
                numbers(pcrs),
                names.join(", ")
            ));
        }
        (merged, renamed)
    }

    fn united(&mut self, mine: &Part<'_>, theirs: &Part<'_>) -> Component {
        let (one, other) = (mine.document, theirs.document);
        let place = format!("PCR {}: {}", numbers(mine.rule.pcrs), one.name);
        if mine.rule.events != theirs.rule.events {
            self.wrong
                .push(format!("{place} is an event of another type in either"));
        }
        let any = one.any || other.any;
        if one.any != other.any {
            self.anything(&place);
        }
        let min = mine.rule.min.min(theirs.rule.min);
        let max = mine.rule.max.max(theirs.rule.max);
        let as_written = (one.min, one.max) == (other.min, other.max)
            && [mine, theirs]
                .iter()
                .all(|part| (part.rule.min, part.rule.max) == (min, max));
        Component {
            name: one.name.clone(),
            kind: one.kind.clone(),
            pcr: one.pcr,
            event: one.event.clone(),
            note: joined(&one.note, &other.note),
            digests: match any {
                true => Vec::new(),
                false => union(&one.digests, &other.digests, |digest| normal(digest)),
            },
            text: match any {
                true => Vec::new(),
                false => union(&one.text, &other.text, String::clone),
            },
            signers: match any {
                true => Vec::new(),
                false => union(&one.signers, &other.signers, key),
            },
            any,
            min: if as_written { one.min } else { Some(min) },
            max: if as_written { one.max } else { Some(max) },
        }
    }
}

/// For each of the second policy's components the one of the first that is the same: by place and
/// content, of several the one of its name; else by PCR and name.
fn pairs(mine: &[Part<'_>], theirs: &[Part<'_>]) -> Vec<Option<usize>> {
    let mut by_name = HashMap::new();
    let mut by_content: HashMap<_, Vec<usize>> = HashMap::new();
    for (index, part) in mine.iter().enumerate() {
        by_name.insert(part.key(), index);
        by_content.entry(part.content()).or_default().push(index);
    }
    let mut taken = HashSet::new();
    let mut pairs = vec![None; theirs.len()];
    let mut pair = |slot: &mut Option<usize>, index: Option<usize>| {
        *slot = index
            .filter(|index| slot.is_none() && taken.insert(*index))
            .or(*slot);
    };
    let same = |part: &Part<'_>| by_content.get(&part.content()).cloned().unwrap_or_default();
    for (part, slot) in theirs.iter().zip(&mut pairs) {
        let named = by_name.get(&part.key()).copied();
        pair(slot, named.filter(|index| same(part).contains(index)));
    }
    for (part, slot) in theirs.iter().zip(&mut pairs) {
        same(part)
            .into_iter()
            .for_each(|index| pair(slot, Some(index)));
    }
    for (part, slot) in theirs.iter().zip(&mut pairs) {
        pair(slot, by_name.get(&part.key()).copied());
    }
    pairs
}

fn parts(rules: &BootRules) -> Vec<Part<'_>> {
    let document = &rules.document.component;
    // Those that are written otherwise come first.
    let own = rules.components.len().saturating_sub(document.len());
    let parts = document.iter().zip(rules.components.iter().skip(own));
    parts
        .map(|(document, rule)| Part { document, rule })
        .collect()
}

impl Part<'_> {
    fn key(&self) -> (u32, String) {
        (self.rule.pcrs, self.rule.name.clone())
    }

    fn content(&self) -> (u32, Vec<u32>, bool, [BTreeSet<String>; 3]) {
        let allowed = &self.rule.allowed;
        let events = self.rule.events.iter().map(|event| event.0).collect();
        let content = [
            allowed.digests.iter().map(named).collect(),
            allowed
                .text
                .iter()
                .map(|text| text.source().to_owned())
                .collect(),
            allowed.signers.iter().map(Key::full).collect(),
        ];
        (self.rule.pcrs, events, allowed.any, content)
    }

    /// Its name, if it must be there.
    fn required(&self) -> Option<String> {
        (self.rule.min > 0).then(|| self.rule.name.clone())
    }

    /// The component, which may be absent.
    fn perhaps(&self) -> Component {
        Component {
            min: Some(0),
            max: (self.rule.max != u32::MAX).then_some(self.rule.max),
            ..self.document.clone()
        }
    }
}

/// Members of a refstate that list what may be, of which one is enough or all are allowed.
const LISTS: [&str; 8] = [
    "scrtm_and_bios",
    "pk",
    "kek",
    "db",
    "vendor_db",
    "mokdig",
    "mokxdig",
    "kernels",
];

fn merge_refstates(
    one: &str,
    other: &str,
    secure_boot: [bool; 2],
) -> Result<MergedBoot, PolicyError> {
    let object = |text: &str| -> Result<Map<String, Value>, PolicyError> {
        serde_json::from_str(text).map_err(|error| PolicyError::from_json(&error))
    };
    let (mut merged, theirs) = (object(one)?, object(other)?);
    let (mut told, mut wrong) = (Vec::new(), Vec::new());
    if secure_boot[0] != secure_boot[1] {
        wrong.push("`has_secureboot` is true in one and false in the other".to_owned());
    }
    let names: BTreeSet<_> = merged.keys().chain(theirs.keys()).cloned().collect();
    for name in names {
        let empty = Value::Array(Vec::new());
        let values = [&merged, &theirs].map(|state| state.get(&name).cloned());
        let lists = values
            .each_ref()
            .map(|value| value.as_ref().unwrap_or(&empty).as_array());
        let value = match (name.as_str(), lists) {
            ("has_secureboot", _) => continue,
            ("dbx", [Some(mine), Some(theirs)]) => {
                let theirs_too: HashSet<_> = theirs.iter().map(Value::to_string).collect();
                let both = mine
                    .iter()
                    .filter(|key| theirs_too.contains(&key.to_string()));
                let both: Vec<_> = both.cloned().collect();
                if both.len() < mine.len().max(theirs.len()) {
                    told.push(
                        "of `dbx` only the revocations that both of them demand are demanded"
                            .to_owned(),
                    );
                }
                Value::Array(both)
            }
            (name, [Some(mine), Some(theirs)]) if LISTS.contains(&name) => {
                // Without Secure Boot the keys of a list that is empty do not matter.
                let any = !secure_boot[0]
                    && ["pk", "kek", "db", "vendor_db"].contains(&name)
                    && (mine.is_empty() || theirs.is_empty());
                if any && mine != theirs {
                    told.push(format!(
                        "`{name}` may have any keys by one of them, and so it may now"
                    ));
                }
                match any {
                    true => empty,
                    false => Value::Array(union(mine, theirs, Value::to_string)),
                }
            }
            (name, _) => match values {
                [Some(mine), Some(theirs)] if mine != theirs => {
                    wrong.push(format!("`{name}` is another in either"));
                    continue;
                }
                [mine, theirs] => mine.or(theirs).unwrap_or(Value::Null),
            },
        };
        merged.insert(name, value);
    }
    if !wrong.is_empty() {
        return Err(PolicyError::BootMerge(wrong));
    }
    let json = Value::Object(merged).to_string();
    Refstate::parse(&json)?;
    Ok(MergedBoot { json, told })
}

/// What is in either, once; `name` tells what is the same.
fn union<T: Clone>(mine: &[T], theirs: &[T], name: impl Fn(&T) -> String) -> Vec<T> {
    let mut seen = HashSet::new();
    let all = mine.iter().chain(theirs);
    all.filter(|one| seen.insert(name(one))).cloned().collect()
}

/// The signers of all components.
fn signers_of(components: &[Component]) -> Vec<document::Key> {
    let signers = components.iter().flat_map(|component| &component.signers);
    signers.cloned().collect()
}

fn normal(digest: &str) -> String {
    rules::digest(digest).map_or_else(|_| digest.to_owned(), |digest| named(&digest))
}

fn key(key: &document::Key) -> String {
    Key::new(key).map_or_else(|error| error, |key| key.full())
}

/// Both notes, or the one that both have.
fn joined(mine: &str, theirs: &str) -> String {
    match (mine, theirs) {
        (mine, theirs) if mine == theirs || theirs.is_empty() => mine.to_owned(),
        ("", theirs) => theirs.to_owned(),
        (mine, theirs) => format!("{mine}; {theirs}"),
    }
}

/// `4, 9` of the bits of PCRs.
fn numbers(pcrs: u32) -> String {
    let pcrs = (0..16).filter(|pcr| pcrs >> pcr & 1 == 1);
    pcrs.map(|pcr| pcr.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(toml: &str) -> String {
        BootRules::from_toml(toml).unwrap().to_json()
    }

    fn digest(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    fn merged(one: &str, other: &str) -> (BootRules, Vec<String>) {
        let MergedBoot { json, told } = BootPolicy::merge(&json(one), &json(other)).unwrap();
        (BootRules::from_json(&json).unwrap(), told)
    }

    #[test]
    fn alternatives_of_both_are_there_once() {
        let (a, b, c) = (digest("aa"), digest("bb"), digest("cc"));
        let policy = |kernels: &str, line: &str, table: &str, least: &str| {
            format!(
                "version = 1\ncommand_line = ['{line}', 'both']\npartition_table = {table}\n\
                 [secure_boot]\nenabled = true\ndb = ['{a}', '{b}']\ndbx_at_least = [{least}]\n\
                 sbat = {{ shim = 3, {line} = 1 }}\n\
                 [phases]\nchain = ['one', '{line}']\n\
                 [order]\n4 = ['separator', 'kernel']\n\
                 [[component]]\nname = 'kernel'\ndigests = [{kernels}]\n"
            )
        };
        let one = policy(
            &format!("'{a}', '{b}'"),
            "x",
            &format!("['{a}']"),
            &format!("'{a}'"),
        );
        let upper = "BB".repeat(32);
        let other = policy(
            &format!("'{upper}', '{c}'"),
            "x",
            "'any'",
            &format!("'{a}', '{b}'"),
        );
        let (rules, told) = merged(&one, &other);
        let document = &rules.document;
        assert_eq!(document.component.len(), 1);
        assert_eq!(document.component[0].digests, [a.clone(), b.clone(), c]);
        assert_eq!(document.component[0].max, None, "it is still one kernel");
        assert_eq!(document.command_line.as_ref().unwrap(), &["x", "both"]);
        assert_eq!(document.partition_table, Some(AnyOr::Any));
        let secure_boot = document.secure_boot.as_ref().unwrap();
        assert_eq!(secure_boot.db.as_ref().unwrap().len(), 2);
        assert_eq!(secure_boot.dbx_at_least.len(), 1);
        assert_eq!(document.order["4"], ["separator", "kernel"]);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told.iter()
                .any(|one| one.contains("partition_table may be anything"))
        );
        assert!(told.iter().any(|one| one.starts_with("1 revocations")));
        let again = BootPolicy::merge(&rules.to_json(), &rules.to_json()).unwrap();
        assert_eq!((again.json, again.told), (rules.to_json(), Vec::new()));
    }

    #[test]
    fn no_revocation_that_is_dropped_goes_untold() {
        let policy = |least: &[&str]| {
            let least: Vec<_> = least.iter().map(|byte| digest(byte)).collect();
            format!("version = 1\n[secure_boot]\nenabled = true\ndbx_at_least = {least:?}\n")
        };
        for (one, other, dropped) in [
            (&["aa"][..], &["bb"][..], "2 revocations"),
            (&["aa", "bb"], &["bb"], "1 revocations"),
            (&["aa", "bb"], &["cc", "dd", "bb"], "3 revocations"),
        ] {
            let (_, told) = merged(&policy(one), &policy(other));
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].starts_with(dropped), "{told:?}");
        }
    }

    #[test]
    fn signers_of_what_may_be_anything_are_authorities() {
        let (a, b) = (digest("aa"), digest("bb"));
        let policy = |authorities: &str, kernel: &str| {
            format!(
                "version = 1\n[secure_boot]\nenabled = true\n{authorities}\n\
                 [[component]]\nname = 'kernel'\n{kernel}\n"
            )
        };
        let listed = |keys: &str| format!("authorities = [{keys}]");
        let by_a = policy("", &format!("signers = ['{a}']"));
        let any = policy(&listed(&format!("'{b}'")), "any = true");
        for (one, other) in [(&by_a, &any), (&any, &by_a)] {
            let (rules, told) = merged(one, other);
            let document = rules.document;
            assert_eq!(document.component[0].signers, []);
            let authorities = document.secure_boot.unwrap().authorities.unwrap();
            let mut names: Vec<_> = authorities.iter().map(key).collect();
            names.sort_unstable();
            assert_eq!(names, [a.clone(), b.clone()]);
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains("kernel may be anything"), "{told:?}");
        }
        // Whom the variables allow, and none but these.
        let open = policy("", &format!("digests = ['{b}']"));
        let error = BootPolicy::merge(&json(&open), &json(&by_a)).unwrap_err();
        assert!(
            error.to_string().contains("`secure_boot.authorities`"),
            "{error}"
        );
    }

    #[test]
    fn what_is_in_one_alone_may_be_absent_and_is_called_by_a_name_of_its_own() {
        let (a, b, c) = (digest("aa"), digest("bb"), digest("cc"));
        let files = |files: &[&str]| {
            let mut text = "version = 1\n[order]\n9 = [".to_owned();
            let name = |index: usize| match index {
                0 => "file".to_owned(),
                index => format!("file-{}", index + 1),
            };
            (0..files.len()).for_each(|index| text.push_str(&format!("'{}', ", name(index))));
            text.push_str("]\n");
            for (index, digest) in files.iter().enumerate() {
                text.push_str(&format!(
                    "[[component]]\nname = '{}'\nkind = 'file'\ndigests = ['{digest}']\nmax = 1\n",
                    name(index)
                ));
            }
            text
        };
        // One more file before the others, which have other names then.
        let (rules, told) = merged(&files(&[&a, &b]), &files(&[&c, &a, &b]));
        let shown: Vec<_> = rules
            .document
            .component
            .iter()
            .map(|one| (one.name.as_str(), one.digests.clone(), one.min))
            .collect();
        let expected = [
            ("file", vec![a.clone()], None),
            ("file-2", vec![b.clone()], None),
            ("file-3", vec![c.clone()], Some(0)),
        ];
        assert_eq!(shown, expected);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("PCR 9: in one of them alone, and may be absent now: file-3"));
        assert!(told[1].contains("PCR 9 have not one order"));
        // Another file in its place is an alternative.
        let (rules, told) = merged(&files(&[&a, &b]), &files(&[&a, &c]));
        assert_eq!(rules.document.component[1].digests, [b, c]);
        assert_eq!(rules.document.order["9"], ["file", "file-2"]);
        assert_eq!(told, Vec::<String>::new());
    }

    #[test]
    fn all_contradictions_are_told_at_once() {
        let component = "[[component]]\nname = 'x'\npcr = 1\nany = true\n";
        let one = format!(
            "version = 1\ncommand_line = ['x']\n[secure_boot]\nenabled = true\n\
             [phases]\nchain = ['a', 'b']\n{component}event = 'EV_CPU_MICROCODE'\n"
        );
        let other = format!(
            "version = 1\nothers = 'allow'\n[mok]\nMokList = 'any'\n[secure_boot]\nenabled = false\n\
             [phases]\nchain = ['b']\n{component}"
        );
        let error = BootPolicy::merge(&json(&one), &json(&other)).unwrap_err();
        let PolicyError::BootMerge(wrong) = error else {
            panic!("{error}");
        };
        for part in [
            "`others`",
            "command_line is in one",
            "secure_boot.enabled",
            "mok.MokList is in one",
            "phases.chain",
            "PCR 1: x is an event of another type",
        ] {
            assert!(
                wrong.iter().any(|one| one.contains(part)),
                "{part}: {wrong:?}"
            );
        }
        assert_eq!(wrong.len(), 6, "{wrong:?}");
        for (one, other) in [("{}", json(&one)), (json(&other).as_str(), "{}".to_owned())] {
            let error = BootPolicy::merge(one, &other).unwrap_err().to_string();
            assert!(error.contains("accepts every boot"), "{error}");
        }
        assert_eq!(BootPolicy::merge("{}", "{ }").unwrap().json, "{}");
    }

    #[test]
    fn refstates_have_the_alternatives_of_both() {
        let hex = |byte: &str| format!("0x{}", byte.repeat(32));
        let state = |kernel: &str, revoked: &[&str], secure: bool| {
            let kernels = serde_json::json!([{
                "shim_authcode_sha256": hex("aa"), "grub_authcode_sha256": hex("aa"),
                "kernel_authcode_sha256": hex(kernel), "vmlinuz_plain_sha256": hex(kernel),
                "initrd_plain_sha256": hex("aa"), "kernel_cmdline": "quiet"}]);
            let revoked: Vec<_> = revoked
                .iter()
                .map(|byte| {
                    serde_json::json!({
                        "SignatureOwner": "77fa9abd-0359-4d32-bd60-28f4e78f784b",
                        "SignatureData": hex(byte)})
                })
                .collect();
            serde_json::json!({"has_secureboot": secure, "kernels": kernels, "dbx": revoked,
                "scrtm_and_bios": [], "pk": [], "kek": [], "db": [], "mokdig": [], "mokxdig": []})
            .to_string()
        };
        let (one, other) = (
            state("bb", &["01", "02"], true),
            state("cc", &["02", "03"], true),
        );
        let merged = BootPolicy::merge(&one, &other).unwrap();
        let merged_value: Value = serde_json::from_str(&merged.json).unwrap();
        assert_eq!(merged_value["kernels"].as_array().unwrap().len(), 2);
        assert_eq!(merged_value["dbx"].as_array().unwrap().len(), 1);
        assert!(merged.told[0].contains("`dbx`"), "{:?}", merged.told);
        let again = BootPolicy::merge(&merged.json, &one).unwrap();
        let again: Value = serde_json::from_str(&again.json).unwrap();
        assert_eq!(again["kernels"], merged_value["kernels"]);
        let off = state("bb", &[], false);
        let error = BootPolicy::merge(&one, &off).unwrap_err().to_string();
        assert!(error.contains("has_secureboot"), "{error}");
    }
}
