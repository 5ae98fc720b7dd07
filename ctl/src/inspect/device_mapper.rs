use serde::{Serialize, Serializer};
use serde_json::Value;
use troth_core::ima::{DmEvent, DmNames, DmTarget, Entry};

use crate::output::{Output, Tone};

/// An event of the device mapper that a list has, in the shape of `inspect ima --json`.
#[derive(Debug, Serialize)]
pub(super) struct DmView {
    /// 1-based.
    line: u64,
    /// The kernel's name of the event.
    event: String,
    /// What it says of the device, by the kernel's names.
    fields: Fields,
    /// The targets of a table, or the one that changed; all that it says of each.
    targets: Vec<Fields>,
    /// Why it cannot be read, or be believed.
    problem: Option<String>,
}

/// Names and values in the kernel's order; an object in JSON.
#[derive(Debug, Default)]
struct Fields(Vec<(String, Value)>);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl Fields {
    fn describe(&self) -> String {
        let fields = self.0.iter().map(|(name, value)| match value {
            Value::Null => format!("{name}: none"),
            Value::String(text) => format!("{name}: {text}"),
            value => format!("{name}: {value}"),
        });
        fields.collect::<Vec<_>>().join(", ")
    }
}

impl DmView {
    /// `None` for an entry of something else.
    pub(super) fn of(entry: &Entry<'_>) -> Option<Self> {
        if !entry.is_buffer() || !DmEvent::is_named(entry.name) {
            return None;
        }
        let mut view = Self {
            line: entry.index + 1,
            event: entry.name.to_owned(),
            fields: Fields::default(),
            targets: Vec::new(),
            problem: None,
        };
        match DmEvent::parse(entry.name, &entry.buffer()) {
            Ok(event) => view.take(event),
            Err(reason) => view.problem = Some(reason),
        }
        if entry.buffer_matches_digest() == Some(false) {
            view.problem = Some("is not what the entry's digest is of".to_owned());
        }
        Some(view)
    }

    fn take(&mut self, event: DmEvent) {
        match event {
            DmEvent::TableLoad { device, targets } => {
                self.names("", &device.names);
                for (name, number) in [
                    ("major", device.major),
                    ("minor", device.minor),
                    ("minor_count", device.minor_count),
                    ("num_targets", device.num_targets),
                ] {
                    self.field(name, number);
                }
                self.targets = targets.iter().map(attributes).collect();
            }
            DmEvent::DeviceResume { names, active } => {
                self.names("", &names);
                self.field(
                    "active_table_hash",
                    active.map(|hash| format!("sha256:{hash}")),
                );
            }
            DmEvent::DeviceRemove { names } => self.names("", &names),
            DmEvent::TableClear { names, inactive } => {
                self.names("", &names);
                self.field(
                    "inactive_table_hash",
                    inactive.map(|hash| format!("sha256:{hash}")),
                );
            }
            DmEvent::DeviceRename { old, new } => {
                if let Some(old) = old {
                    self.names("", &old);
                }
                self.names("new_", &new);
            }
            DmEvent::TargetUpdate { names, target } => {
                self.names("", &names);
                self.targets = vec![attributes(&target)];
            }
        }
    }

    fn names(&mut self, prefix: &str, names: &DmNames) {
        self.field(&format!("{prefix}name"), names.name.as_str());
        self.field(&format!("{prefix}uuid"), names.uuid.as_str());
    }

    fn field(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.0.push((name.to_owned(), value.into()));
    }

    /// A table of events, a row for each and for each of their targets.
    pub(super) fn table(events: &[Self], out: &Output) -> String {
        let rows = events.iter().flat_map(Self::rows).collect();
        out.table(&["LINE", "EVENT", "FIELDS"], rows)
    }

    fn rows(&self) -> Vec<Vec<(Tone, String)>> {
        let first = |tone, text| {
            vec![
                (Tone::Dim, self.line.to_string()),
                (Tone::Plain, self.event.clone()),
                (tone, text),
            ]
        };
        if let Some(problem) = &self.problem {
            return vec![first(Tone::Bad, problem.clone())];
        }
        let targets = self.targets.iter().map(|target| {
            let none = || (Tone::Plain, String::new());
            vec![none(), none(), (Tone::Dim, target.describe())]
        });
        [first(Tone::Plain, self.fields.describe())]
            .into_iter()
            .chain(targets)
            .collect()
    }
}

fn attributes(target: &DmTarget) -> Fields {
    let attributes = target.attributes();
    Fields(
        attributes
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect(),
    )
}
