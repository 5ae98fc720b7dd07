use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use serde::Serialize;
use serde_json::Value;
use troth_core::{
    policy::{Change, ChangeKind, PolicyDiff, SetChange, TpmPolicy},
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
            (Content::Boot(old), Content::Boot(new)) => PolicyDiff {
                members: values_between(old, new),
                ..PolicyDiff::default()
            },
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
            same: diff.is_time_alone() && pcrs.is_empty(),
            diff,
            pcrs,
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
        for (heading, set) in [
            ("Excludes", &diff.excludes),
            ("Ignored keyrings", &diff.ignored_keyrings),
            ("Verification keys", &diff.verification_keys),
        ] {
            describe_set(&mut text, heading, set, out);
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

fn describe_names(
    text: &mut String,
    heading: &str,
    names: &BTreeMap<String, Change>,
    out: &Output,
) {
    if names.is_empty() {
        return;
    }
    let count = |kind| names.values().filter(|change| change.kind == kind).count();
    let counts = format!(
        "{heading}: {} added, {} removed, {} changed",
        count(ChangeKind::Added),
        count(ChangeKind::Removed),
        count(ChangeKind::Changed)
    );
    let _ = writeln!(text, "{}", out.paint(Tone::Strong, &counts));
    for (name, change) in names {
        let (sign, tone) = match change.kind {
            ChangeKind::Added => ('+', Tone::Good),
            ChangeKind::Removed => ('-', Tone::Bad),
            ChangeKind::Changed => ('~', Tone::Warn),
        };
        let _ = writeln!(
            text,
            "{}",
            out.paint(tone, &format!("{sign} {}", clean(name)))
        );
        for (sign, digests) in [('-', &change.removed), ('+', &change.added)] {
            for digest in digests {
                let _ = writeln!(text, "    {sign} {digest}");
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

/// What differs in two JSON texts, by JSON pointer.
fn values_between(old: &Value, new: &Value) -> BTreeMap<String, [Option<String>; 2]> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    leaves(String::new(), old, &mut before);
    leaves(String::new(), new, &mut after);
    let pointers: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    pointers
        .into_iter()
        .map(|pointer| (pointer, [before.get(pointer), after.get(pointer)]))
        .filter(|(_, [before, after])| before != after)
        .map(|(pointer, values)| (pointer.clone(), values.map(Option::<&String>::cloned)))
        .collect()
}

fn leaves(pointer: String, value: &Value, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                leaves(format!("{pointer}/{name}"), value, found);
            }
        }
        Value::Array(values) if !values.is_empty() => {
            for (index, value) in values.iter().enumerate() {
                leaves(format!("{pointer}/{index}"), value, found);
            }
        }
        value => {
            found.insert(pointer, value.to_string());
        }
    }
}
