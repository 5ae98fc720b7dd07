use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use troth_core::{
    policy::{Envelope, RuntimePolicy},
    tpm::HashAlgorithm,
};

use super::{RuntimeOptions, RuntimeText, boot, write_file};
use crate::{
    api::{self, Credentials, Service},
    cli::{ImportCommand, Kind, ShowArgs},
    config::Config,
    error::{Error, Exit},
    output::{Output, Tone},
};

/// `results` of either list. The names are Keylime's.
#[derive(Deserialize)]
struct Names {
    #[serde(alias = "runtimepolicy names", alias = "mbpolicy names")]
    names: Vec<String>,
}

/// `results` of one policy of either kind.
#[derive(Deserialize)]
struct Stored {
    /// null where a node was enrolled without a boot policy.
    #[serde(alias = "runtime_policy", alias = "mb_policy")]
    policy: Option<String>,
}

/// `policy list --json`.
#[derive(Serialize)]
struct List {
    policies: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    kind: &'static str,
    name: String,
}

/// `policy show --json`.
#[derive(Serialize)]
struct Show<'a> {
    kind: &'static str,
    name: &'a str,
    /// SHA-256 of the text, hex.
    sha256: String,
    /// The policy, or its text where that is not JSON.
    policy: Value,
}

/// `--json` of `policy import` and `policy remove`.
#[derive(Serialize)]
struct Done<'a> {
    kind: &'static str,
    name: &'a str,
    /// `imported`, `replaced` or `removed`.
    result: &'static str,
}

/// Lists the policies of one kind or of both.
pub(super) async fn list(config: &Config, kind: Option<Kind>, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
    let mut policies = Vec::new();
    let kinds = [Kind::Runtime, Kind::Boot];
    for kind in kinds
        .into_iter()
        .filter(|each| kind.is_none_or(|kind| kind == *each))
    {
        let names: Names = verifier.get(&format!("{}/", collection(kind))).await?;
        policies.extend(names.names.into_iter().map(|name| Listed {
            kind: kind.as_str(),
            name,
        }));
    }
    let list = List { policies };
    out.result(&list, || {
        if list.policies.is_empty() {
            return "The verifier keeps no policy by name. Store one with `trothctl policy \
                    import`.\n"
                .to_owned();
        }
        let row = |policy: &Listed| {
            vec![
                (Tone::Plain, policy.name.clone()),
                (Tone::Plain, policy.kind.to_owned()),
            ]
        };
        out.table(&["NAME", "KIND"], list.policies.iter().map(row).collect())
    })?;
    Ok(Exit::Success)
}

/// Shows one policy, or saves it.
pub(super) async fn show(config: &Config, args: &ShowArgs, out: &Output) -> Result<Exit, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
    let (kind, name) = (args.kind, args.name.as_str());
    let text = text(&verifier, kind, name)
        .await?
        .ok_or_else(|| unknown(&verifier, kind, name))?;
    match args.output.as_deref() {
        Some(path) if path == Path::new("-") => out.text(&text)?,
        Some(path) => write_file(path, &text)?,
        None => {
            let show = Show {
                kind: kind.as_str(),
                name,
                sha256: HashAlgorithm::Sha256.digest(&[text.as_bytes()]).to_string(),
                policy: serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.clone())),
            };
            out.result(&show, || show.describe(kind, &text, out))?;
        }
    }
    Ok(Exit::Success)
}

impl Show<'_> {
    fn describe(&self, kind: Kind, text: &str, out: &Output) -> String {
        let mut fields = vec![
            ("Kind", format!("{} policy", self.kind)),
            ("Size", format!("{} bytes", text.len())),
            ("SHA-256", self.sha256.clone()),
        ];
        match kind {
            Kind::Runtime => fields.extend(self.contents(text)),
            Kind::Boot => fields.push(("Policy", text.chars().take(500).collect())),
        }
        format!(
            "{}\n{}",
            out.paint(Tone::Strong, &crate::output::clean(self.name)),
            out.fields(&fields)
        )
    }

    /// What a runtime policy holds.
    fn contents(&self, text: &str) -> Vec<(&'static str, String)> {
        if let Ok(Some(_)) = Envelope::parse(text.as_bytes()) {
            return vec![(
                "Policy",
                "signed; -o saves it with its signatures".to_owned(),
            )];
        }
        if let Err(error) = RuntimePolicy::compile(text.as_bytes()) {
            return vec![("Policy", format!("NOT usable: {error}"))];
        }
        let size = |member: &str| match self.policy.get(member) {
            Some(Value::Object(members)) => members.len(),
            Some(Value::Array(members)) => members.len(),
            _ => 0,
        };
        vec![
            ("Files", size("digests").to_string()),
            ("Excludes", size("excludes").to_string()),
            ("Keyrings", size("keyrings").to_string()),
            ("ima-buf", size("ima-buf").to_string()),
        ]
    }
}

/// Checks a policy here and stores it.
pub(super) async fn import(
    config: &Config,
    command: &ImportCommand,
    out: &Output,
) -> Result<Exit, Error> {
    let (kind, name, replace, body) = match command {
        ImportCommand::Runtime(args) => {
            let options = RuntimeOptions {
                json: args.file.as_ref(),
                url: args.url.as_ref(),
                checksum: args.checksum.as_ref(),
                allowlist: args.allowlist.as_ref(),
                exclude: args.exclude.as_ref(),
                ima_list: args.ima_list.as_ref(),
                sig_key: args.sig_key.as_ref(),
            };
            // clap demands one of the sources.
            let policy = options.read(config).await?.unwrap_or_default();
            let body = runtime_body(&policy);
            (Kind::Runtime, &args.name, args.replace, body)
        }
        ImportCommand::Boot(args) => {
            let body = json!({"mb_policy": boot(&args.policy, config)?});
            (Kind::Boot, &args.name, args.replace, body)
        }
    };
    let verifier = Credentials::load(config)?.verifier(config)?;
    let result = if replace && self::replace(&verifier, kind, name, &body).await? {
        "replaced"
    } else {
        create(&verifier, kind, name, &body).await?;
        "imported"
    };
    report(out, kind, name, result)
}

/// Removes a policy that no node uses.
pub(super) async fn remove(
    config: &Config,
    kind: Kind,
    name: &str,
    out: &Output,
) -> Result<Exit, Error> {
    let verifier = Credentials::load(config)?.verifier(config)?;
    let path = path(kind, name);
    let reply = verifier.send(Method::DELETE, &path, None::<&Value>).await?;
    match reply.status {
        200..=299 => report(out, kind, name, "removed"),
        404 => Err(unknown(&verifier, kind, name)),
        _ => Err(verifier.refused(&Method::DELETE, &path, &reply)),
    }
}

fn report(out: &Output, kind: Kind, name: &str, result: &'static str) -> Result<Exit, Error> {
    let kind = kind.as_str();
    let done = Done { kind, name, result };
    let name = crate::output::clean(name);
    out.result(&done, || format!("The {kind} policy {name} is {result}.\n"))?;
    Ok(Exit::Success)
}

/// The text of a policy; `None` when the verifier has none of this name.
pub(crate) async fn text(
    verifier: &Service,
    kind: Kind,
    name: &str,
) -> Result<Option<String>, Error> {
    let stored: Option<Stored> = verifier.find(&path(kind, name)).await?;
    Ok(stored.and_then(|stored| stored.policy))
}

/// Replaces the runtime policy `name`; whether there was one.
pub(crate) async fn replace_runtime(
    verifier: &Service,
    name: &str,
    policy: &RuntimeText,
) -> Result<bool, Error> {
    replace(verifier, Kind::Runtime, name, &runtime_body(policy)).await
}

async fn create(verifier: &Service, kind: Kind, name: &str, body: &Value) -> Result<(), Error> {
    let path = path(kind, name);
    let reply = verifier.send(Method::POST, &path, Some(body)).await?;
    match reply.status {
        200..=299 => Ok(()),
        409 => Err(Error::PolicyExists {
            kind: kind.as_str(),
            name: name.to_owned(),
            url: verifier.url.clone(),
        }),
        _ => Err(verifier.refused(&Method::POST, &path, &reply)),
    }
}

/// Whether there was a policy to replace. Keylime says 404 for a runtime policy that does not
/// exist, and 409 for a boot policy.
async fn replace(verifier: &Service, kind: Kind, name: &str, body: &Value) -> Result<bool, Error> {
    let path = path(kind, name);
    let reply = verifier.send(Method::PUT, &path, Some(body)).await?;
    match (reply.status, kind) {
        (200..=299, _) => Ok(true),
        (404, _) => Ok(false),
        (409, Kind::Boot) if text(verifier, kind, name).await?.is_none() => Ok(false),
        _ => Err(verifier.refused(&Method::PUT, &path, &reply)),
    }
}

/// What a runtime policy is stored with. Its TPM policy is of no effect, but Keylime's verifier
/// wants one.
fn runtime_body(policy: &RuntimeText) -> Value {
    json!({
        "runtime_policy": BASE64_STANDARD.encode(&policy.text),
        "runtime_policy_key": policy.key.as_deref().unwrap_or_default(),
        "tpm_policy": "{\"mask\": \"0x400\"}"
    })
}

fn collection(kind: Kind) -> &'static str {
    match kind {
        Kind::Runtime => "allowlists",
        Kind::Boot => "mbpolicies",
    }
}

fn path(kind: Kind, name: &str) -> String {
    format!("{}/{}", collection(kind), api::segment(name))
}

fn unknown(verifier: &Service, kind: Kind, name: &str) -> Error {
    Error::NoSuchPolicy {
        kind: kind.as_str(),
        name: name.to_owned(),
        url: verifier.url.clone(),
    }
}
