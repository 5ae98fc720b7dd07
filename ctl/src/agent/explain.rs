use std::fmt::Write as _;

use serde::Serialize;
use troth_core::{
    appraise::{Finding, Place},
    finding::catalog::{self, Context},
    identity::AgentId,
    wire::RatedFinding,
};

use super::{
    fetch,
    node::{Node, State},
};
use crate::{
    api::Credentials,
    cli::ExplainArgs,
    config::Config,
    error::{Error, Exit},
    explain::{Command, Known, command_lines, commands, list, prose},
    output::{Output, Tone, clean, now_ms, place, span, utc},
};

/// Findings of one id that are shown without `--all`.
const FINDINGS_SHOWN: usize = 3;
/// Further places that are named in one line.
const PLACES_SHOWN: usize = 5;
/// Values of `expected` that are shown without `--all`.
const EXPECTED_SHOWN: usize = 4;
/// Keylime's event of a node that does not answer.
const NOT_REACHABLE: &str = "internal.verifier.not_reachable";

/// Runs `trothctl agent explain`.
pub(super) async fn run(config: &Config, args: &ExplainArgs, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
    let id: &AgentId = &args.id;
    let node = fetch(&verifier, id.as_str())
        .await?
        .ok_or_else(|| verifier.unknown(id))?;
    out.result(&Explanation::new(&node), || {
        Explanation::new(&node).text(&node, args.all, out, now_ms())
    })?;
    Ok(node.state.exit())
}

/// `agent explain --json`.
#[derive(Debug, Serialize)]
struct Explanation<'a> {
    id: &'a str,
    state: State,
    reason: &'a str,
    /// Unix milliseconds since when it is in this state; 0: the verifier does not say.
    since_ms: u64,
    judged_at_ms: u64,
    due_at_ms: Option<u64>,
    severity: Option<&'a str>,
    last_event: Option<&'a str>,
    findings_total: u64,
    groups: Vec<Group<'a>>,
}

/// All findings of one id.
#[derive(Debug, Serialize)]
struct Group<'a> {
    id: &'a str,
    severity: Option<&'a str>,
    #[serde(flatten)]
    known: Option<Known>,
    findings: Vec<Explained<'a>>,
    /// Commands for the group where there is no finding to have its own.
    next: Vec<Command>,
}

#[derive(Debug, Serialize)]
struct Explained<'a> {
    /// Where, in words.
    r#where: String,
    #[serde(flatten)]
    finding: &'a Finding,
    next: Vec<Command>,
}

impl<'a> Explanation<'a> {
    fn new(node: &'a Node) -> Self {
        let mut groups: Vec<Group<'a>> = Vec::new();
        for rated in &node.findings {
            let id = rated.finding.id.as_str();
            let index = groups.iter().position(|group| group.id == id);
            let index = index.unwrap_or_else(|| {
                groups.push(Group::new(id, rated.severity.as_deref()));
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(index) {
                group.findings.push(Explained::new(node, rated));
            }
        }
        // Keylime's verifier has no more than the id of its last event.
        let event = match (node.state, node.last_event.as_deref()) {
            (State::Unreachable, _) => Some(NOT_REACHABLE),
            (State::Failed, event) => event,
            _ => None,
        };
        if let Some(event) = event.filter(|_| groups.is_empty()) {
            let mut group = Group::new(event, node.severity.as_deref());
            if let Some(kind) = catalog::find(event) {
                group.next = commands(kind, event, &context(node, None));
            }
            if node.is_keylimes {
                group
                    .next
                    .push(Command::at_verifier("journalctl -u keylime_verifier -n 50"));
            }
            groups.push(group);
        }
        Self {
            id: &node.id,
            state: node.state,
            reason: &node.reason,
            since_ms: node.since_ms,
            judged_at_ms: node.judged_at_ms,
            due_at_ms: node.due_at_ms,
            severity: node.severity.as_deref(),
            last_event: node.last_event.as_deref(),
            findings_total: node.findings_total,
            groups,
        }
    }

    fn text(&self, node: &Node, all: bool, out: &Output, now: u64) -> String {
        let mut text = format!(
            "{} {}{}: {}\n",
            out.paint(Tone::Strong, &clean(self.id)),
            out.paint(self.state.tone(), &self.state.to_string()),
            match self.since_ms {
                0 => String::new(),
                since => format!(
                    " since {} ({} ago)",
                    utc(since / 1000),
                    span(now.saturating_sub(since))
                ),
            },
            clean(self.reason)
        );
        text.push_str(&out.fields(&[
            ("Attested", node.attested(now)),
            ("Asked on", self.asked_on(node)),
        ]));
        for group in &self.groups {
            text.push('\n');
            group.text(&mut text, all, out);
        }
        let shown = node.findings.len() as u64;
        if self.findings_total > shown {
            let _ = writeln!(
                text,
                "\n{} more findings were counted; the verifier keeps the first {shown}.",
                self.findings_total - shown
            );
        }
        text
    }

    /// What the verifier goes on doing.
    fn asked_on(&self, node: &Node) -> String {
        let id = clean(self.id);
        match self.state {
            State::Failed if self.due_at_ms.is_some() => "yes: it is trusted again as soon as an \
                 answer passes every check"
                .to_owned(),
            State::Failed if node.is_keylimes => format!(
                "only if Keylime's severity_policy says so; `trothctl agent reactivate {id}` has \
                 it asked again"
            ),
            State::Failed => {
                format!("no: when the cause is mended, run `trothctl agent reactivate {id}`")
            }
            State::Stopped => format!("no, until `trothctl agent reactivate {id}`"),
            State::Removed => "no: it is being removed".to_owned(),
            State::Trusted | State::Unreachable | State::Stale | State::Pending => "yes".to_owned(),
            State::Unknown => "not known: this trothctl is older than the verifier".to_owned(),
        }
    }
}

impl<'a> Group<'a> {
    fn new(id: &'a str, severity: Option<&'a str>) -> Self {
        Self {
            id,
            severity,
            known: catalog::find(id).map(Known::new),
            findings: Vec::new(),
            next: Vec::new(),
        }
    }

    fn text(&self, text: &mut String, all: bool, out: &Output) {
        let title = self
            .known
            .as_ref()
            .map_or("a finding that is not in this catalogue", |known| {
                known.title
            });
        let count = match self.findings.len() {
            0 | 1 => String::new(),
            count => format!(", {count} times"),
        };
        let severity = self.severity.map(|label| format!("[{}] ", clean(label)));
        let heading = format!("{}{title}{count}", severity.unwrap_or_default());
        let _ = writeln!(text, "{}", out.paint(Tone::Bad, &heading));
        let mut fields = vec![("Id", clean(self.id))];
        if let Some(known) = &self.known {
            fields.push(("Component", known.component.clone()));
            fields.push(("Why it matters", prose(known.meaning)));
            fields.push(("Usual causes", list(known.causes)));
        }
        if !self.next.is_empty() {
            fields.push(("Run next", command_lines(&self.next)));
        }
        text.push_str(&out.fields(&fields));
        let shown = if all {
            self.findings.len()
        } else {
            FINDINGS_SHOWN
        };
        for explained in self.findings.iter().take(shown) {
            text.push('\n');
            text.push_str(&out.fields(&explained.fields(all)));
        }
        let rest = self.findings.get(shown..).unwrap_or_default();
        if !rest.is_empty() {
            let named: Vec<_> = rest
                .iter()
                .take(PLACES_SHOWN)
                .map(|e| e.r#where.as_str())
                .collect();
            let more = match rest.len().saturating_sub(PLACES_SHOWN) {
                0 => String::new(),
                more => format!("\nand {more} more"),
            };
            let value = format!("{}{more}\n--all shows each", named.join("\n"));
            text.push('\n');
            text.push_str(&out.fields(&[("The same at", value)]));
        }
    }
}

impl<'a> Explained<'a> {
    fn new(node: &'a Node, rated: &'a RatedFinding) -> Self {
        let finding = &rated.finding;
        let next = catalog::find(&finding.id)
            .map(|kind| commands(kind, &finding.id, &context(node, Some(&finding.place))));
        Self {
            r#where: place(&finding.place),
            finding,
            next: next.unwrap_or_default(),
        }
    }

    fn fields(&self, all: bool) -> Vec<(&'static str, String)> {
        let Finding {
            recoverable,
            expected,
            got,
            explanation,
            action,
            ..
        } = self.finding;
        let mut place = self.r#where.clone();
        if let Place::ImaEntry { entry, .. } = &self.finding.place {
            let _ = write!(
                place,
                ", line {} of ascii_runtime_measurements",
                entry.saturating_add(1)
            );
        }
        let mut fields = vec![("Where", place)];
        if !expected.is_empty() {
            let shown = if all { expected.len() } else { EXPECTED_SHOWN };
            let mut values: Vec<_> = expected
                .iter()
                .take(shown)
                .map(|value| clean(value))
                .collect();
            if expected.len() > shown {
                values.push(format!("and {} more", expected.len() - shown));
            }
            fields.push(("Expected", values.join("\n")));
        } else if self.finding.id.ends_with(".not_in_allowlist") {
            fields.push(("Expected", "a name that the policy lists".to_owned()));
        }
        if let Some(got) = got {
            fields.push(("Got", clean(got)));
        }
        fields.push(("Explanation", prose(&clean(explanation))));
        if !recoverable {
            fields.push((
                "Check",
                "stopped here: what follows was not looked at".to_owned(),
            ));
        }
        fields.push(("What to do", prose(&clean(action))));
        if !self.next.is_empty() {
            fields.push(("Run next", command_lines(&self.next)));
        }
        fields
    }
}

fn context<'a>(node: &'a Node, place: Option<&'a Place>) -> Context<'a> {
    // A policy without a name of its own is stored under the node's id.
    let name =
        |name: &'a Option<String>, has: bool| has.then(|| name.as_deref().unwrap_or(&node.id));
    Context {
        node: Some(&node.id),
        place,
        runtime_policy: name(&node.runtime_policy, node.has_runtime_policy),
        boot_policy: name(&node.boot_policy, node.has_boot_policy),
    }
}

#[cfg(test)]
mod tests;
