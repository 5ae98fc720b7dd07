use serde::Serialize;
use troth_core::finding::catalog::{self, Context, Host, Kind};

use crate::{
    error::{Error, Exit},
    output::{Output, Tone, clean},
};

/// Width of what is written to be read, beside its label.
const PROSE_WIDTH: usize = 80;

/// Runs `trothctl explain`: what is known of findings with this id, without any server. Without an
/// id: all that exist.
pub(crate) fn run(id: Option<&str>, out: &Output) -> Result<Exit, Error> {
    match id {
        Some(id) => {
            let kind =
                catalog::find(id).ok_or_else(|| Error::NoSuchFinding { id: id.to_owned() })?;
            let entry = Entry::new(id, kind);
            out.result(&entry, || entry.text(kind, out))?;
        }
        None => {
            let entries: Vec<_> = catalog::all()
                .map(|kind| Entry::new(kind.id, kind))
                .collect();
            out.result(&Catalogue { findings: &entries }, || table(out))?;
        }
    }
    Ok(Exit::Success)
}

/// `explain --json` without an id.
#[derive(Serialize)]
struct Catalogue<'a> {
    findings: &'a [Entry<'a>],
}

/// `explain ID --json`.
#[derive(Serialize)]
struct Entry<'a> {
    id: &'a str,
    #[serde(flatten)]
    known: Known,
    next: Vec<Command>,
}

/// What the catalogue says of an id.
#[derive(Debug, Serialize)]
pub(crate) struct Known {
    /// The id as the catalogue has it.
    pub(crate) kind: &'static str,
    pub(crate) origin: String,
    pub(crate) component: String,
    pub(crate) title: &'static str,
    pub(crate) meaning: &'static str,
    pub(crate) causes: &'static [&'static str],
}

/// A command to run next.
#[derive(Debug, Serialize)]
pub(crate) struct Command {
    /// `operator`: where trothctl is used; `node`; `verifier`.
    host: &'static str,
    command: String,
    #[serde(skip)]
    remark: String,
}

impl Command {
    /// One on the verifier's host.
    pub(crate) fn at_verifier(command: &str) -> Self {
        Self {
            host: "verifier",
            command: command.to_owned(),
            remark: Host::Verifier.to_string(),
        }
    }
}

impl Known {
    pub(crate) fn new(kind: &'static Kind) -> Self {
        Self {
            kind: kind.id,
            origin: kind.origin.to_string(),
            component: kind.component.to_string(),
            title: kind.title,
            meaning: kind.meaning,
            causes: kind.causes,
        }
    }
}

/// The commands of a kind of finding, with its words filled in.
pub(crate) fn commands(kind: &Kind, id: &str, context: &Context<'_>) -> Vec<Command> {
    let filled = kind.commands(id, context).into_iter();
    filled
        .map(|(host, command)| Command {
            host: match host {
                Host::Operator => "operator",
                Host::Node => "node",
                Host::Verifier => "verifier",
            },
            command,
            remark: host.to_string(),
        })
        .collect()
}

/// Commands under each other, each with where it is run.
pub(crate) fn command_lines(commands: &[Command]) -> String {
    let width = commands.iter().map(|next| next.command.chars().count());
    let width = width.max().unwrap_or(0);
    let lines = commands.iter().map(|next| {
        let command = clean(&next.command);
        format!("{command:width$}  # {}", next.remark)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Prose in lines of at most 80 characters; a longer word stays whole.
pub(crate) fn prose(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= PROSE_WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

/// Items under each other, each with its dash.
pub(crate) fn list(items: &[&str]) -> String {
    let items: Vec<_> = items
        .iter()
        .map(|item| format!("- {}", prose(item).replace('\n', "\n  ")))
        .collect();
    items.join("\n")
}

impl<'a> Entry<'a> {
    fn new(id: &'a str, kind: &'static Kind) -> Self {
        Self {
            id,
            known: Known::new(kind),
            next: commands(kind, id, &Context::default()),
        }
    }

    fn text(&self, kind: &Kind, out: &Output) -> String {
        let heading = format!("{}: {}", clean(self.id), kind.title);
        let mut text = format!("{}\n", out.paint(Tone::Strong, &heading));
        text.push_str(&out.fields(&[
            ("Component", self.known.component.clone()),
            ("Made by", self.known.origin.clone()),
            ("Why it matters", prose(kind.meaning)),
            ("Usual causes", list(kind.causes)),
            ("Run next", command_lines(&self.next)),
        ]));
        text
    }
}

fn table(out: &Output) -> String {
    let rows = catalog::all().map(|kind| {
        vec![
            (Tone::Strong, kind.id.to_owned()),
            (Tone::Dim, kind.origin.to_string()),
            (Tone::Plain, kind.title.to_owned()),
        ]
    });
    out.table(&["FINDING", "MADE BY", "WHAT IT SAYS"], rows.collect())
}
