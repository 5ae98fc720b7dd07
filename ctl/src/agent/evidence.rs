use std::path::{Path, PathBuf};

use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use troth_core::{
    bundle::{PolicyReference, Word, policy_digest},
    identity::AgentId,
};

use crate::{
    api::{Credentials, Service},
    bundle,
    cli::{EvidenceArgs, Kind},
    config::Config,
    error::{Error, Exit},
    output::{Output, Tone, now_ms, span, utc},
    policy,
};

/// `results` of the list.
#[derive(Deserialize)]
struct Kept {
    evidence: Vec<Entry>,
}

/// A bundle that the verifier keeps, and where it is saved.
#[derive(Deserialize, Serialize)]
struct Entry {
    sequence: u64,
    time_ms: u64,
    verdict: Word,
    /// Size at the verifier.
    bytes: u64,
    #[serde(skip_deserializing)]
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
}

/// `agent evidence --json`.
#[derive(Serialize)]
struct View<'a> {
    id: &'a AgentId,
    evidence: &'a [Entry],
}

/// Lists the evidence of a node that the verifier keeps, or saves it.
pub(super) async fn run(config: &Config, args: &EvidenceArgs, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
    let path = format!("agents/{}/evidence", args.id);
    let mut kept = verifier.get::<Kept>(&path).await?.evidence;
    if let Some(last) = args.last {
        kept.drain(..kept.len().saturating_sub(last));
    }
    if let Some(directory) = &args.output {
        std::fs::create_dir_all(directory).map_err(|source| Error::WriteFile {
            path: directory.clone(),
            source,
        })?;
        for entry in &mut kept {
            let file = directory.join(format!(
                "{}-{:010}-{}.evidence.gz",
                args.id,
                entry.sequence,
                entry.verdict.as_str()
            ));
            let path = format!("{path}?sequence={}", entry.sequence);
            let reply = verifier.send(Method::GET, &path, None::<&Value>).await?;
            if reply.status != 200 {
                return Err(verifier.refused(&Method::GET, &path, &reply));
            }
            let bytes = match args.with_policies {
                true => with_policies(&verifier, &file, reply.body.to_vec(), out).await?,
                false => reply.body.to_vec(),
            };
            policy::write_private(&file, &bytes)?;
            entry.file = Some(file);
        }
    }
    let view = View {
        id: &args.id,
        evidence: &kept,
    };
    out.result(&view, || view.describe(out))?;
    Ok(Exit::Success)
}

/// The bundle with the texts of the policies that it names, as far as the verifier still has them.
async fn with_policies(
    verifier: &Service,
    file: &Path,
    zipped: Vec<u8>,
    out: &Output,
) -> Result<Vec<u8>, Error> {
    let unreadable = |source| Error::ReadFile {
        path: file.to_owned(),
        source,
    };
    let bytes = bundle::plain(zipped).map_err(unreadable)?;
    let mut bundle = bundle::parse(file, &bytes)?;
    let criteria = bundle.head.criteria.clone();
    let (runtime, boot) = criteria.map_or((None, None), |criteria| {
        (criteria.runtime_policy, criteria.boot_policy)
    });
    let runtime = policy_text(verifier, Kind::Runtime, runtime, out).await?;
    let boot = policy_text(verifier, Kind::Boot, boot, out).await?;
    bundle.runtime_policy = runtime.as_deref().map(str::as_bytes);
    bundle.boot_policy = boot.as_deref().map(str::as_bytes);
    let written = bundle.to_bytes();
    let written = written.map_err(|source| bundle::malformed(file, source))?;
    bundle::gzipped(&written).map_err(unreadable)
}

/// The text that was judged by; `None`, with a note, if it was replaced since.
async fn policy_text(
    verifier: &Service,
    kind: Kind,
    reference: Option<PolicyReference>,
    out: &Output,
) -> Result<Option<String>, Error> {
    let Some(PolicyReference { name, sha256 }) = reference else {
        return Ok(None);
    };
    let text = policy::text(verifier, kind, &name).await?;
    let text = text.filter(|text| policy_digest(text.as_bytes()) == sha256);
    if text.is_none() {
        out.note(&format!(
            "the {} policy {name:?} was replaced or removed since: the verifier has no text of \
             SHA-256 {sha256} under this name",
            kind.as_str()
        ));
    }
    Ok(text)
}

impl View<'_> {
    fn describe(&self, out: &Output) -> String {
        if self.evidence.is_empty() {
            return format!("The verifier keeps no evidence of {}.\n", self.id);
        }
        let now = now_ms();
        let row = |entry: &Entry| {
            let tone = match entry.verdict {
                Word::Trusted => Tone::Good,
                Word::Failed => Tone::Bad,
                Word::Rebooted => Tone::Warn,
            };
            let age = span(now.saturating_sub(entry.time_ms));
            let file = entry.file.as_ref();
            vec![
                (Tone::Plain, entry.sequence.to_string()),
                (Tone::Plain, utc(entry.time_ms / 1000)),
                (Tone::Plain, format!("{age} ago")),
                (tone, entry.verdict.as_str().to_owned()),
                (Tone::Plain, format!("{} bytes", entry.bytes)),
                (
                    Tone::Plain,
                    file.map_or_else(|| "-".to_owned(), |file| file.display().to_string()),
                ),
            ]
        };
        out.table(
            &["BUNDLE", "ANSWERED", "AGE", "VERDICT", "SIZE", "FILE"],
            self.evidence.iter().map(row).collect(),
        )
    }
}
