//! The catalogue: every id that a finding may have, what it means, and what to do next.
//!
//! Ids are stable: monitoring rules and Keylime's clients depend on them. A row is added, never
//! renamed. docs/findings.md is written from these rows.

/// Boot log and boot policy: `measured_boot`.
mod boot;
/// Measured files, keys and buffers: `ima`.
mod files;
/// PCR values: `pcr_validation`.
mod pcrs;
/// Quote and answer as such: `qoute_validation`.
mod quote;
/// What is not about the node's evidence: `internal`, `default`, `tee_attestation`.
mod verifier;

use std::fmt;

use super::Place;

/// What is known of all findings that share an id.
#[derive(Debug)]
pub struct Kind {
    /// The id; what differs is in angle brackets: `<n>` is a PCR number, `<name>` any text, other
    /// words are one segment without dots.
    pub id: &'static str,
    /// Whose id it is, and who makes such findings.
    pub origin: Origin,
    /// What was looked at.
    pub component: Component,
    /// A few words.
    pub title: &'static str,
    /// What it says about the node.
    pub meaning: &'static str,
    /// What usually causes it, the most frequent first.
    pub causes: &'static [&'static str],
    /// Commands to run next, in this order.
    pub next: &'static [Next],
}

/// Whose id it is, and who makes such findings.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Keylime's id, which Troth uses for the same.
    Shared,
    /// Keylime's id, which only Keylime's verifier reports.
    Keylime,
    /// Troth's own.
    Troth,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Component {
    /// The TPM's signed statement, and the answer that it came in.
    Quote,
    /// PCR values against the TPM policy.
    Pcrs,
    /// The boot log and what it tells of.
    Boot,
    /// Files, keys and buffers that the kernel measured (IMA).
    Files,
    /// The connection, and the verifier itself.
    Verifier,
    /// A request to judge evidence on demand.
    Request,
}

/// A command template.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// Where it is run.
    pub host: Host,
    /// The command. `{node}` is the node's agent id, `{file}` the file's path, `{pcr}` the PCR's
    /// number, `{entry}` the number of an entry of the IMA list, `{runtime_policy}` and
    /// `{boot_policy}` the names of the node's policies.
    pub command: &'static str,
}

/// Where a command is run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Host {
    /// Where the operator uses trothctl.
    Operator,
    /// On the node.
    Node,
    /// On the verifier's host.
    Verifier,
}

/// What a command template is filled with; what is not known stays a word in capitals.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// Agent id.
    pub node: Option<&'a str>,
    /// Where the finding is.
    pub place: Option<&'a Place>,
    /// Name of the node's runtime policy.
    pub runtime_policy: Option<&'a str>,
    /// Name of the node's boot policy.
    pub boot_policy: Option<&'a str>,
}

const fn operator(command: &'static str) -> Next {
    let host = Host::Operator;
    Next { host, command }
}

const fn node(command: &'static str) -> Next {
    let host = Host::Node;
    Next { host, command }
}

const fn on_verifier(command: &'static str) -> Next {
    let host = Host::Verifier;
    Next { host, command }
}

/// What the agent said.
const AGENT_JOURNAL: Next = node("journalctl -u troth-agent -n 50");
/// What the verifier said about the node.
const VERIFIER_JOURNAL: Next =
    on_verifier("journalctl -u troth-verifier -n 50 TROTH_NODE_ID={node}");
/// Judge it anew.
const REACTIVATE: Next = operator("trothctl agent reactivate {node}");
/// The policies, and all findings.
const STATUS: Next = operator("trothctl agent status {node}");

/// All rows, in the order of the documentation.
pub fn all() -> impl Iterator<Item = &'static Kind> {
    let rooms = [
        quote::ROWS,
        pcrs::ROWS,
        boot::ROWS,
        files::ROWS,
        verifier::ROWS,
    ];
    rooms.into_iter().flatten()
}

/// The row of a concrete id (`pcr_validation.invalid_pcr_7`). An id that is written out in the
/// table comes before a pattern that it fits.
pub fn find(id: &str) -> Option<&'static Kind> {
    all()
        .find(|kind| kind.id == id)
        .or_else(|| all().find(|kind| fits(kind.id, id)))
}

/// Does `id` fit `pattern`?
fn fits(pattern: &str, id: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('<') else {
        return pattern == id;
    };
    let (Some(id), Some((name, rest))) = (id.strip_prefix(start), rest.split_once('>')) else {
        return false;
    };
    match name {
        "name" => !id.is_empty() && rest.is_empty(),
        "n" => {
            let end = id.bytes().take_while(u8::is_ascii_digit).count();
            (1..=2).contains(&end) && fits(rest, &id[end..])
        }
        _ => {
            let end = id.find('.').unwrap_or(id.len());
            end > 0 && fits(rest, &id[end..])
        }
    }
}

impl Kind {
    /// Does this code make such findings?
    pub fn is_made_here(&self) -> bool {
        self.origin != Origin::Keylime
    }

    /// The commands of [`Kind::next`] for a finding with the id `id`, fit for a shell.
    pub fn commands(&self, id: &str, context: &Context<'_>) -> Vec<(Host, String)> {
        let filled = |next: &Next| (next.host, fill(next.command, id, context));
        self.next.iter().map(filled).collect()
    }
}

fn fill(template: &str, id: &str, context: &Context<'_>) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').unwrap_or((after, ""));
        filled.push_str(before);
        match value(name, id, context) {
            Some(value) => filled.push_str(&quoted(&value)),
            None => filled.push_str(&name.to_ascii_uppercase()),
        }
        rest = after;
    }
    filled.push_str(rest);
    filled
}

fn value(name: &str, id: &str, context: &Context<'_>) -> Option<String> {
    let text = |text: Option<&str>| text.map(str::to_owned);
    match (name, context.place) {
        ("node", _) => text(context.node),
        ("runtime_policy", _) => text(context.runtime_policy),
        ("boot_policy", _) => text(context.boot_policy),
        ("file", Some(Place::ImaEntry { path, .. })) => path.clone(),
        ("entry", Some(Place::ImaEntry { entry, .. })) => Some(entry.to_string()),
        ("pcr", Some(Place::Pcr(pcr) | Place::BootEvent { pcr, .. })) => Some(pcr.to_string()),
        ("pcr", _) => {
            let number = id.rsplit('_').next()?;
            number.parse::<u8>().ok().map(|pcr| pcr.to_string())
        }
        _ => None,
    }
}

/// A word for a POSIX shell: names come from the node, and must stay words.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quote => "TPM quote",
            Self::Pcrs => "PCR values",
            Self::Boot => "measured boot",
            Self::Files => "measured files (IMA)",
            Self::Verifier => "verifier and connection",
            Self::Request => "evidence on demand",
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "Keylime and Troth",
            Self::Keylime => "Keylime only",
            Self::Troth => "Troth",
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "here",
            Self::Node => "on the node",
            Self::Verifier => "on the verifier's host",
        })
    }
}

#[cfg(test)]
mod tests;
