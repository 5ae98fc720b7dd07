use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::Value;
use troth_core::{
    policy::{
        BootContents, BootEntry, BootForm, BootPolicy, Envelope, EnvelopeSignature, PolicyDocument,
    },
    tpm::HashAlgorithm,
};

use super::{
    input::{self, Content},
    verify::key_id,
    write_output,
};
use crate::{
    ca::CertificateView,
    cli::{PolicyRef, ShowArgs},
    config::Config,
    error::{Error, Exit},
    output::{Output, Tone, clean},
};

/// Alternatives of a boot policy's component that the text form lists.
const ALLOWED_SHOWN: usize = 8;

/// `policy show --json`.
#[derive(Serialize)]
struct View<'a> {
    /// `runtime`, `TPM` or `boot`; of one that the verifier keeps it is what it is kept as.
    kind: &'static str,
    /// Its name at the verifier, else null.
    name: Option<&'a str>,
    /// The file, else null.
    file: Option<String>,
    bytes: usize,
    /// SHA-256 of the text, hex.
    sha256: String,
    /// Why it cannot be used.
    problem: Option<String>,
    /// What a runtime policy or a boot policy holds.
    summary: Option<Holds>,
    /// Who is said to have signed it; nobody has checked.
    signatures: Vec<Claim>,
    /// The policy as it stands there, or its text where that is not JSON.
    #[serde(serialize_with = "as_json")]
    policy: &'a str,
}

/// What a policy holds.
#[derive(Serialize)]
#[serde(untagged)]
enum Holds {
    Runtime(Summary),
    Boot(BootContents),
}

/// What a runtime policy holds.
#[derive(Serialize)]
struct Summary {
    version: u64,
    generator: u8,
    timestamp: Option<String>,
    files: usize,
    /// Digests of files by their length in bits.
    digests: BTreeMap<usize, usize>,
    boot_aggregates: usize,
    excludes: usize,
    keyrings: usize,
    ignored_keyrings: Vec<String>,
    buffers: usize,
    /// Ids of keys whose signatures of files count, hex.
    verification_keys: Vec<String>,
    log_hash_alg: &'static str,
}

/// What a signature says about its key.
#[derive(Serialize)]
struct Claim {
    keyid: String,
    certificate: Option<CertificateView>,
}

/// Runs `trothctl policy show`.
pub(super) async fn run(config: &Config, args: &ShowArgs, out: &Output) -> Result<Exit, Error> {
    let Some(policy) = args.policy.with_name(args.name.as_deref()) else {
        return Err(Error::Usage {
            option: "NAME",
            reason: format!("{} is neither runtime nor boot", args.policy),
        });
    };
    let text = input::text(config, &policy).await?;
    if let Some(path) = &args.output {
        write_output(Some(path), &text, out)?;
        return Ok(Exit::Success);
    }
    let view = View::new(&policy, &text);
    out.result(&view, || view.describe(&policy, out))?;
    Ok(if view.problem.is_some() {
        Exit::Error
    } else {
        Exit::Success
    })
}

impl<'a> View<'a> {
    fn new(policy: &'a PolicyRef, text: &'a str) -> Self {
        let (content, problem) = match Content::of(text) {
            Ok(Some(content)) => (Some(content), None),
            Ok(None) => (None, Some("it is no policy of any kind".to_owned())),
            Err(error) => (None, Some(error.to_string())),
        };
        let (kept, name, file) = match policy {
            PolicyRef::Stored(kind, name) => (Some(kind.as_str()), Some(name.as_str()), None),
            PolicyRef::File(path) => (None, None, Some(path.display().to_string())),
        };
        let kind = kept.or_else(|| content.as_ref().map(Content::kind));
        let (summary, signatures) = match &content {
            Some(Content::Runtime { document, envelope }) => (
                Some(Holds::Runtime(Summary::of(document))),
                envelope.as_ref().map(claims).unwrap_or_default(),
            ),
            Some(Content::Boot(policy)) => {
                let policy = BootPolicy::parse(Some(&policy.to_string())).ok();
                let contents = policy.map(|policy| Holds::Boot(policy.contents()));
                (contents, Vec::new())
            }
            _ => (None, Vec::new()),
        };
        Self {
            kind: kind.unwrap_or("unknown"),
            name,
            file,
            bytes: text.len(),
            sha256: HashAlgorithm::Sha256.digest(&[text.as_bytes()]).to_string(),
            problem,
            summary,
            signatures,
            policy: text,
        }
    }

    fn describe(&self, policy: &PolicyRef, out: &Output) -> String {
        let signed = if self.signatures.is_empty() {
            ""
        } else {
            ", signed"
        };
        let mut fields = vec![
            ("Kind", format!("{} policy{signed}", self.kind)),
            ("Size", format!("{} bytes", self.bytes)),
            ("SHA-256", self.sha256.clone()),
        ];
        if let Some(problem) = &self.problem {
            let verdict = out.paint(Tone::Bad, "NOT usable");
            fields.push(("Policy", format!("{verdict}: {}", clean(problem))));
        }
        let mut tables = String::new();
        match &self.summary {
            Some(Holds::Runtime(summary)) => fields.extend(summary.fields()),
            Some(Holds::Boot(contents)) => {
                fields.extend(boot_fields(contents));
                tables = boot_tables(contents, out);
            }
            None => {
                let text: String = self.policy.trim().chars().take(500).collect();
                fields.push(("Policy", clean(&text)));
            }
        }
        for claim in &self.signatures {
            let key = key_id(&claim.keyid, claim.certificate.as_ref());
            fields.push(("Said to be by", key));
        }
        if !self.signatures.is_empty() {
            fields.push((
                "",
                "`trothctl policy verify` checks signatures; nobody has yet".to_owned(),
            ));
        }
        let heading = self.name.map_or_else(|| policy.to_string(), str::to_owned);
        format!(
            "{}\n{}{tables}",
            out.paint(Tone::Strong, &clean(&heading)),
            out.fields(&fields)
        )
    }
}

fn boot_fields(contents: &BootContents) -> Vec<(&'static str, String)> {
    let form = match contents.form {
        BootForm::None => "none: the boot log is not looked at",
        BootForm::Replay => "{}: the boot log must replay, and may tell of anything",
        BootForm::Refstate => "Keylime's refstate",
        BootForm::Rules => "components",
        BootForm::Reject => "every boot fails",
    };
    let mut fields = vec![("Form", form.to_owned())];
    let value = |pointer: &str| contents.members.get(pointer).map(String::as_str);
    let secure_boot = value("/secure_boot/enabled").or_else(|| value("/has_secureboot"));
    if let Some(enabled) = secure_boot {
        let state = if enabled == "true" { "on" } else { "off" };
        fields.push(("Secure Boot", state.to_owned()));
    }
    let sbat: Vec<_> = contents
        .members
        .iter()
        .filter_map(|(pointer, least)| {
            let name = pointer.strip_prefix("/secure_boot/sbat/")?;
            Some(clean(&format!("{name} {least} or later")))
        })
        .collect();
    if !sbat.is_empty() {
        fields.push(("SBAT", sbat.join(", ")));
    }
    for (label, pointer) in [("Phases", "/phases/chain"), ("Last phase", "/phases/last")] {
        if let Some(phases) = value(pointer) {
            fields.push((label, clean(phases)));
        }
    }
    if let Some(others) = value("/others") {
        let others = match others {
            "\"deny\"" => "must hold nothing",
            _ => "may hold anything",
        };
        fields.push(("Other PCRs", others.to_owned()));
    }
    fields
}

/// What a boot policy speaks of, and the order of events.
fn boot_tables(contents: &BootContents, out: &Output) -> String {
    if contents.entries.is_empty() {
        return String::new();
    }
    let rows = contents
        .entries
        .iter()
        .flat_map(|entry| boot_rows(entry, out));
    let heading = ["PCR", "NAME", "TIMES", "ALLOWED"];
    let mut text = format!("\n{}", out.table(&heading, rows.collect()));
    if !contents.order.is_empty() {
        let orders: Vec<_> = contents
            .order
            .iter()
            .map(|(pcr, names)| format!("PCR {pcr}: {}", clean(&names.join(", "))))
            .collect();
        text.push('\n');
        text.push_str(&out.fields(&[("In this order", orders.join("\n"))]));
    }
    text
}

/// A row for each of the first alternatives.
fn boot_rows(entry: &BootEntry, out: &Output) -> Vec<Vec<(Tone, String)>> {
    let allowed = entry.allowed();
    let mut shown: Vec<_> = allowed.iter().take(ALLOWED_SHOWN).cloned().collect();
    match allowed.len().checked_sub(ALLOWED_SHOWN) {
        None | Some(0) if allowed.is_empty() => shown.push("nothing".to_owned()),
        None | Some(0) => {}
        Some(more) => shown.push(format!("and {more} more (--json has them)")),
    }
    let pcrs: Vec<_> = entry.pcrs.iter().map(u8::to_string).collect();
    let times = match entry.times {
        None => String::new(),
        Some((min, Some(max))) if min == max => min.to_string(),
        Some((min, Some(max))) => format!("{min} to {max}"),
        Some((min, None)) => format!("{min} or more"),
    };
    let first = [pcrs.join(", "), entry.name.clone(), times];
    let rows = shown.iter().enumerate().map(|(index, allowed)| {
        let mut row: Vec<_> = first
            .iter()
            .map(|text| match index {
                0 => (Tone::Plain, text.clone()),
                _ => (Tone::Plain, String::new()),
            })
            .collect();
        let allowed = match allowed.starts_with("sha") && !allowed.contains(' ') {
            true => out.digest(allowed),
            false => allowed.clone(),
        };
        row.push((Tone::Dim, allowed));
        row
    });
    rows.collect()
}

fn as_json<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    match serde_json::from_str::<Value>(text) {
        Ok(value) => value.serialize(serializer),
        Err(_) => text.serialize(serializer),
    }
}

fn claims(envelope: &Envelope) -> Vec<Claim> {
    let claim = |signature: &EnvelopeSignature| Claim {
        keyid: signature.keyid().to_owned(),
        certificate: signature
            .certificate()
            .and_then(|der| CertificateView::new(&der).ok()),
    };
    envelope.signatures().iter().map(claim).collect()
}

impl Summary {
    fn of(document: &PolicyDocument) -> Self {
        let boot_aggregates = document.digests().get("boot_aggregate").len();
        let mut digests = BTreeMap::new();
        let files = document.digests().iter();
        for digest in files
            .filter(|(name, _)| *name != "boot_aggregate")
            .flat_map(|(_, digests)| digests)
        {
            *digests.entry(digest.as_bytes().len() * 8).or_default() += 1;
        }
        Self {
            version: document.version(),
            generator: document.generator(),
            timestamp: document.timestamp().map(str::to_owned),
            files: document.digests().len() - usize::from(boot_aggregates > 0),
            digests,
            boot_aggregates,
            excludes: document.excludes().len(),
            keyrings: document.keyrings().len(),
            ignored_keyrings: document.ignored_keyrings().map(str::to_owned).collect(),
            buffers: document.ima_buf().len(),
            verification_keys: document
                .verification_keys()
                .iter()
                .map(|(id, _)| format!("{id:08x}"))
                .collect(),
            log_hash_alg: document.log_hash_alg().name(),
        }
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let digests: Vec<_> = self
            .digests
            .iter()
            .map(|(bits, count)| format!("{count} of {bits} bits"))
            .collect();
        let mut fields = vec![(
            "Made",
            self.timestamp
                .as_deref()
                .map(clean)
                .unwrap_or_else(|| "it does not say when".to_owned()),
        )];
        fields.push(("Files", self.files.to_string()));
        if !digests.is_empty() {
            fields.push(("Digests", digests.join(", ")));
        }
        if self.boot_aggregates > 0 {
            fields.push(("boot_aggregate", format!("{} values", self.boot_aggregates)));
        }
        fields.push(("Excludes", self.excludes.to_string()));
        fields.push(("Keyrings", self.keyrings.to_string()));
        if !self.ignored_keyrings.is_empty() {
            fields.push(("Ignored", clean(&self.ignored_keyrings.join(", "))));
        }
        fields.push(("ima-buf", self.buffers.to_string()));
        if !self.verification_keys.is_empty() {
            fields.push(("Keys", self.verification_keys.join(", ")));
        }
        fields.push(("Log hash", self.log_hash_alg.to_owned()));
        fields
    }
}
