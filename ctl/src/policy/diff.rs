use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use serde::Serialize;
use serde_json::Value;
use troth_core::{
    policy::{
        BootChange, BootDiff, BootPolicy, Change, ChangeKind, OrderChange, PolicyDiff, SetChange,
        TpmPolicy,
    },
    tpm::Digest,
};

use super::input::{Content, Input};
use crate::{
    cli::DiffArgs,
    config::Config,
    error::{Error, Exit},
    output::{Output, Tone, clean},
};

/// `policy diff --json`.
#[derive(Debug, Serialize)]
struct View {
    old: String,
    new: String,
    kind: &'static str,
    /// Do they judge alike? The time at which they were made plays no part.
    same: bool,
    #[serde(flatten)]
    diff: PolicyDiff,
    /// Values of PCRs, by number.
    pcrs: BTreeMap<String, Change>,
    /// What boot policies speak of, by PCR and name.
    components: BTreeMap<String, BootChange>,
    /// Where the order of a PCR's events begins to differ.
    order: BTreeMap<u8, OrderChange>,
}

/// Runs `trothctl policy diff`.
pub(super) async fn run(config: &Config, args: &DiffArgs, out: &Output) -> Result<Exit, Error> {
    let read = async {
        let old = Input::read(config, &args.old).await?;
        let new = Input::read(config, &args.new).await?;
        View::new(&old, &new)
    };
    let view = read
        .await
        .map_err(|error| Error::NotCompared(error.into()))?;
    out.result(&view, || view.describe(out))?;
    Ok(if view.same {
        Exit::Success
    } else {
        Exit::Error
    })
}

impl View {
    fn new(old: &Input, new: &Input) -> Result<Self, Error> {
        let mut pcrs = BTreeMap::new();
        let mut boot = BootDiff::default();
        let diff = match (&old.content, &new.content) {
            (Content::Runtime { document, .. }, Content::Runtime { document: new, .. }) => {
                document.diff(new)
            }
            (Content::Tpm(old), Content::Tpm(new)) => {
                pcrs = pcrs_between(old, new);
                let masks = [old, new].map(|tpm| Some(format!("\"{:#x}\"", tpm.mask().bits())));
                let differ = masks[0] != masks[1];
                PolicyDiff {
                    members: differ
                        .then(|| ("/mask".to_owned(), masks))
                        .into_iter()
                        .collect(),
                    ..PolicyDiff::default()
                }
            }
            (Content::Boot(before), Content::Boot(after)) => {
                let parse = |one: &Input, policy: &Value| {
                    let policy = BootPolicy::parse(Some(&policy.to_string()));
                    policy.map_err(|source| Error::Policy {
                        what: format!("policy from {}", one.place),
                        source,
                    })
                };
                boot = parse(old, before)?.diff(&parse(new, after)?);
                PolicyDiff {
                    members: std::mem::take(&mut boot.members),
                    ..PolicyDiff::default()
                }
            }
            _ => {
                return Err(Error::PolicyKinds {
                    kinds: [old, new]
                        .map(|one| format!("{} is a {} policy", one.place, one.content.kind())),
                });
            }
        };
        Ok(Self {
            old: old.place.clone(),
            new: new.place.clone(),
            kind: old.content.kind(),
            same: diff.is_time_alone() && pcrs.is_empty() && boot.is_empty(),
            diff,
            pcrs,
            components: boot.entries,
            order: boot.order,
        })
    }

    fn describe(&self, out: &Output) -> String {
        let mut text = String::new();
        let diff = &self.diff;
        if !self.same {
            let _ = writeln!(text, "--- {}\n+++ {}", clean(&self.old), clean(&self.new));
        }
        for (heading, names) in [
            ("PCRs", &self.pcrs),
            ("Files", &diff.digests),
            ("Keyrings", &diff.keyrings),
            ("Buffers", &diff.ima_buf),
        ] {
            describe_names(&mut text, heading, names, out);
        }
        describe_names(&mut text, "Components", &self.components, out);
        for (heading, set) in [
            ("Excludes", &diff.excludes),
            ("Ignored keyrings", &diff.ignored_keyrings),
            ("Verification keys", &diff.verification_keys),
        ] {
            describe_set(&mut text, heading, set, out);
        }
        for (pcr, change) in &self.order {
            let heading = format!("Order of PCR {pcr}, from event {} on", change.event);
            let _ = writeln!(text, "{}", out.paint(Tone::Strong, &heading));
            let sides = change.names.iter().zip(change.events);
            for ((name, events), (sign, tone)) in sides.zip([('-', Tone::Bad), ('+', Tone::Good)]) {
                let name = clean(name.as_deref().unwrap_or("nothing"));
                let line = format!("{sign} {name} ({events} events in all)");
                let _ = writeln!(text, "{}", out.paint(tone, &line));
            }
        }
        if !diff.members.is_empty() {
            let _ = writeln!(text, "{}", out.paint(Tone::Strong, "Other members"));
            for (pointer, [old, new]) in &diff.members {
                let shown = |value: &Option<String>| clean(value.as_deref().unwrap_or("nothing"));
                let _ = writeln!(
                    text,
                    "  {}: {} -> {}",
                    clean(pointer),
                    shown(old),
                    shown(new)
                );
            }
        }
        text
    }
}

/// What became of a name, in words.
trait Changed {
    fn kind(&self) -> ChangeKind;
    fn removed(&self) -> Vec<String>;
    fn added(&self) -> Vec<String>;
}

impl Changed for Change {
    fn kind(&self) -> ChangeKind {
        self.kind
    }

    fn removed(&self) -> Vec<String> {
        self.removed.iter().map(Digest::to_string).collect()
    }

    fn added(&self) -> Vec<String> {
        self.added.iter().map(Digest::to_string).collect()
    }
}

impl Changed for BootChange {
    fn kind(&self) -> ChangeKind {
        self.kind
    }

    fn removed(&self) -> Vec<String> {
        self.removed.clone()
    }

    fn added(&self) -> Vec<String> {
        self.added.clone()
    }
}

fn describe_names(
    text: &mut String,
    heading: &str,
    names: &BTreeMap<String, impl Changed>,
    out: &Output,
) {
    if names.is_empty() {
        return;
    }
    let count = |kind| {
        names
            .values()
            .filter(|change| change.kind() == kind)
            .count()
    };
    let counts = format!(
        "{heading}: {} added, {} removed, {} changed",
        count(ChangeKind::Added),
        count(ChangeKind::Removed),
        count(ChangeKind::Changed)
    );
    let _ = writeln!(text, "{}", out.paint(Tone::Strong, &counts));
    for (name, change) in names {
        let (sign, tone) = match change.kind() {
            ChangeKind::Added => ('+', Tone::Good),
            ChangeKind::Removed => ('-', Tone::Bad),
            ChangeKind::Changed => ('~', Tone::Warn),
        };
        let _ = writeln!(
            text,
            "{}",
            out.paint(tone, &format!("{sign} {}", clean(name)))
        );
        for (sign, values) in [('-', change.removed()), ('+', change.added())] {
            for value in values {
                let _ = writeln!(text, "    {sign} {}", clean(&value));
            }
        }
    }
}

fn describe_set(text: &mut String, heading: &str, set: &SetChange, out: &Output) {
    if set.is_empty() {
        return;
    }
    let _ = writeln!(text, "{}", out.paint(Tone::Strong, heading));
    for (sign, tone, entries) in [
        ('-', Tone::Bad, &set.removed),
        ('+', Tone::Good, &set.added),
    ] {
        for entry in entries {
            let _ = writeln!(
                text,
                "{}",
                out.paint(tone, &format!("{sign} {}", clean(entry)))
            );
        }
    }
}

fn pcrs_between(old: &TpmPolicy, new: &TpmPolicy) -> BTreeMap<String, Change> {
    let values = |policy: &TpmPolicy| -> BTreeMap<u8, Vec<Digest>> {
        policy
            .allowed()
            .map(|(pcr, values)| (pcr, values.to_vec()))
            .collect()
    };
    let (old, new) = (values(old), values(new));
    let mut changes = BTreeMap::new();
    let pcrs: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for pcr in pcrs {
        let none = Vec::new();
        let (before, after) = (old.get(pcr), new.get(pcr));
        let kind = match (before, after) {
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Removed,
            _ => ChangeKind::Changed,
        };
        let (before, after) = (before.unwrap_or(&none), after.unwrap_or(&none));
        let without = |values: &[Digest], others: &[Digest]| -> Vec<_> {
            values
                .iter()
                .filter(|value| !others.contains(value))
                .copied()
                .collect()
        };
        let change = Change {
            kind,
            removed: without(before, after),
            added: without(after, before),
        };
        if !(change.removed.is_empty() && change.added.is_empty()) {
            changes.insert(pcr.to_string(), change);
        }
    }
    changes
}
