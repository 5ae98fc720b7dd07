use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use troth_core::{
    ima::{
        Anomalies, AnomalyKind, BOOT_AGGREGATE, Entry, ImaSignature, SignatureScope, log_hash,
        unverified_entries, unverified_replay,
    },
    tpm::HashAlgorithm,
};

use super::device_mapper::DmView;
use crate::{
    cli::ImaArgs,
    error::{Error, Exit},
    output::{Output, Tone, clean},
    policy::read_ima_list,
};

/// Problems that the text form lists; JSON has all that core keeps.
const PROBLEMS_SHOWN: usize = 20;
const BANKS: [HashAlgorithm; 4] = [
    HashAlgorithm::Sha1,
    HashAlgorithm::Sha256,
    HashAlgorithm::Sha384,
    HashAlgorithm::Sha512,
];

/// An IMA list, in the shape of `inspect ima --json`.
#[derive(Debug, Serialize)]
struct View<'l> {
    /// Lines that are entries.
    entries: usize,
    /// Template name to entries.
    templates: BTreeMap<&'static str, usize>,
    /// Different files, keyrings and buffers.
    names: usize,
    /// Hash of the printed template hashes.
    log_hash: &'static str,
    /// Digest of the first `boot_aggregate` entry, `algorithm:hex`.
    boot_aggregate: Option<String>,
    /// Bank to the value of PCR 10 after the whole list, hex.
    pcr10: BTreeMap<&'static str, String>,
    /// Entries with a signature.
    signed: usize,
    /// Entries measured while the file was being written (ToMToU, open writers).
    violations: Vec<Violation<'l>>,
    /// Events of the device mapper.
    device_mapper: Vec<DmView>,
    /// Lines with something wrong; the first thousand.
    problems: Vec<Problem>,
    problems_total: u64,
    /// Every entry, with --entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<Vec<EntryView<'l>>>,
}

#[derive(Debug, Serialize)]
struct Violation<'l> {
    /// 1-based.
    line: u64,
    name: &'l str,
}

#[derive(Debug, Serialize)]
struct Problem {
    /// 1-based.
    line: u64,
    name: Option<String>,
    problem: String,
}

#[derive(Debug, Serialize)]
struct EntryView<'l> {
    /// 1-based.
    line: u64,
    pcr: u32,
    template: &'static str,
    /// `algorithm:hex`.
    digest: String,
    name: &'l str,
    violation: bool,
    /// The signature of the file, where the list has one. It is not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<SignatureView>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum SignatureView {
    Readable {
        /// 2 is over the file's digest, 3 over fs-verity's.
        version: u8,
        /// The key that it asks for, 8 hex digits.
        key_id: String,
        /// Name of the hash algorithm; `None`: one that is not supported.
        hash: Option<&'static str>,
    },
    /// What no verifier takes for a signature.
    Unusable {
        /// Why.
        fault: String,
    },
}

/// Runs `trothctl inspect ima`.
pub(crate) fn run(args: &ImaArgs, out: &Output) -> Result<Exit, Error> {
    let malformed = |reason| Error::Malformed {
        path: args.file.clone(),
        reason,
    };
    let list = read_ima_list(&args.file)?;
    let hash = log_hash(&list);
    let entries: Vec<_> = unverified_entries(&list, 0, hash)
        .filter_map(Result::ok)
        .collect();
    if entries.is_empty() {
        let error = unverified_entries(&list, 0, hash).find_map(Result::err);
        return Err(malformed(match error {
            Some(error) => format!("not an IMA list: {error}"),
            None => "the file is empty".to_owned(),
        }));
    }
    let view = View::new(&list, hash, &entries, args.entries);
    out.result(&view, || view.describe(out))?;
    Ok(if view.problems_total == 0 {
        Exit::Success
    } else {
        Exit::Untrusted
    })
}

impl<'l> View<'l> {
    fn new(list: &str, log_hash: HashAlgorithm, entries: &[Entry<'l>], all: bool) -> Self {
        let replayed = BANKS.map(|bank| (bank, unverified_replay(list, log_hash, bank)));
        let pcr10 = replayed
            .iter()
            .map(|(bank, (value, _))| (bank.name(), value.to_string()));
        let mut templates = BTreeMap::new();
        for entry in entries {
            *templates.entry(entry.template.name()).or_default() += 1;
        }
        let anomalies = &replayed[0].1.1;
        Self {
            entries: entries.len(),
            templates,
            names: entries
                .iter()
                .map(|entry| entry.name)
                .collect::<BTreeSet<_>>()
                .len(),
            log_hash: log_hash.name(),
            boot_aggregate: entries
                .iter()
                .find(|entry| entry.name == BOOT_AGGREGATE)
                .map(digest),
            pcr10: pcr10.collect(),
            signed: entries
                .iter()
                .filter(|entry| entry.signature().is_some())
                .count(),
            violations: entries
                .iter()
                .filter(|entry| entry.is_violation())
                .map(|entry| Violation {
                    line: entry.index + 1,
                    name: entry.name,
                })
                .collect(),
            device_mapper: entries.iter().filter_map(DmView::of).collect(),
            problems: problems(anomalies),
            problems_total: anomalies.total,
            list: all.then(|| entries.iter().map(EntryView::new).collect()),
        }
    }

    fn describe(&self, out: &Output) -> String {
        let mut text = String::new();
        if let Some(list) = &self.list {
            let rows = list.iter().map(|entry| {
                let (tone, name) = if entry.violation {
                    (Tone::Warn, format!("{} (violation)", entry.name))
                } else {
                    (Tone::Plain, entry.name.to_owned())
                };
                let signature = entry.signature.as_ref().map(SignatureView::describe);
                vec![
                    (Tone::Dim, entry.line.to_string()),
                    (Tone::Plain, entry.template.to_owned()),
                    (Tone::Dim, out.digest(&entry.digest)),
                    (Tone::Dim, signature.unwrap_or_default()),
                    (tone, name),
                ]
            });
            let head = ["LINE", "TEMPLATE", "DIGEST", "SIGNATURE", "NAME"];
            text.push_str(&out.table(&head, rows.collect()));
            text.push('\n');
        }
        if !self.device_mapper.is_empty() {
            text.push_str(&DmView::table(&self.device_mapper, out));
            text.push('\n');
        }
        let templates: Vec<_> = self
            .templates
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let mut fields = vec![
            (
                "Entries",
                format!("{} ({})", self.entries, templates.join(", ")),
            ),
            ("Names", format!("{} different", self.names)),
            ("Signed", format!("{} entries", self.signed)),
            (
                "Aggregate",
                self.boot_aggregate
                    .as_deref()
                    .map_or_else(|| "no boot_aggregate".to_owned(), clean),
            ),
        ];
        for (bank, value) in &self.pcr10 {
            fields.push(("PCR 10", format!("{bank:<6} {value}")));
        }
        let violations: Vec<_> = self
            .violations
            .iter()
            .take(PROBLEMS_SHOWN)
            .map(|violation| format!("line {}: {}", violation.line, clean(violation.name)))
            .chain(more(self.violations.len() as u64))
            .collect();
        if violations.is_empty() {
            fields.push(("Violations", "none".to_owned()));
        } else {
            fields.push(("Violations", violations.join("\n")));
        }
        let problems: Vec<_> = self
            .problems
            .iter()
            .take(PROBLEMS_SHOWN)
            .map(|problem| {
                let name = problem
                    .name
                    .as_deref()
                    .map(|name| format!(" ({})", clean(name)));
                format!(
                    "line {}: {}{}",
                    problem.line,
                    problem.problem,
                    name.unwrap_or_default()
                )
            })
            .chain(more(self.problems_total))
            .map(|line| out.paint(Tone::Bad, &line))
            .collect();
        if problems.is_empty() {
            fields.push(("Problems", "none".to_owned()));
        } else {
            fields.push(("Problems", problems.join("\n")));
        }
        text.push_str(&out.fields(&fields));
        text
    }
}

/// The line that counts what is not shown.
fn more(total: u64) -> Option<String> {
    let rest = total
        .checked_sub(PROBLEMS_SHOWN as u64)
        .filter(|rest| *rest > 0)?;
    Some(format!("and {rest} more (--json has the first thousand)"))
}

fn problems(anomalies: &Anomalies) -> Vec<Problem> {
    let problem = |kind: &AnomalyKind| match kind {
        AnomalyKind::Unparsable(reason) => format!("no entry: {reason}"),
        AnomalyKind::Pcr(pcr) => format!("extends PCR {pcr} instead of PCR 10"),
        AnomalyKind::TemplateHash { expected, printed } => {
            format!("template hash is {printed}, the fields hash to {expected}")
        }
        AnomalyKind::TooManyEntries => "too many entries: the rest is not looked at".to_owned(),
        other => format!("{other:?}"),
    };
    anomalies
        .first
        .iter()
        .map(|anomaly| Problem {
            line: anomaly.entry + 1,
            name: anomaly.name.clone(),
            problem: problem(&anomaly.kind),
        })
        .collect()
}

impl<'l> EntryView<'l> {
    fn new(entry: &Entry<'l>) -> Self {
        Self {
            line: entry.index + 1,
            pcr: entry.pcr,
            template: entry.template.name(),
            digest: digest(entry),
            name: entry.name,
            violation: entry.is_violation(),
            signature: entry.signature().map(|blob| SignatureView::new(&blob)),
        }
    }
}

impl SignatureView {
    fn new(blob: &[u8]) -> Self {
        match ImaSignature::parse(blob) {
            Ok(signature) => Self::Readable {
                version: match signature.scope {
                    SignatureScope::File => 2,
                    SignatureScope::Verity => 3,
                },
                key_id: format!("{:08x}", signature.key_id),
                hash: signature.hash_name(),
            },
            Err(fault) => Self::Unusable {
                fault: fault.to_string(),
            },
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Readable {
                version,
                key_id,
                hash,
            } => format!("v{version} {key_id} {}", hash.unwrap_or("unknown hash")),
            Self::Unusable { .. } => "unusable".to_owned(),
        }
    }
}

/// `algorithm:hex`; template `ima` names no algorithm.
fn digest(entry: &Entry<'_>) -> String {
    if entry.algorithm.is_empty() {
        entry.digest.to_string()
    } else {
        format!("{}:{}", entry.algorithm, entry.digest)
    }
}
