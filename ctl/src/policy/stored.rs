use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use troth_core::tpm::HashAlgorithm;

use super::{RuntimeOptions, RuntimeText, boot};
use crate::{
    api::{self, Credentials, Service},
    cli::{ImportCommand, Kind, PolicyRef, RemovePolicyArgs},
    config::Config,
    error::{Error, Exit},
    output::{Output, Tone},
};

/// `results` of either list. The names are Keylime's.
#[derive(Deserialize)]
struct Names {
    #[serde(alias = "runtimepolicy names", alias = "mbpolicy names")]
    names: Vec<String>,
    /// The same with what Troth's verifier knows about them; Keylime's has no such member.
    #[serde(default)]
    policies: Vec<About>,
}

/// What a verifier says about a policy in its list.
#[derive(Clone, Deserialize)]
struct About {
    name: String,
    /// SHA-256 of the text, hex.
    sha256: String,
    bytes: u64,
    /// How many nodes use it.
    nodes: u64,
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
    /// SHA-256 of the text, hex; this and what follows is null if the verifier does not say.
    sha256: Option<String>,
    bytes: Option<u64>,
    /// How many nodes use it.
    nodes: Option<u64>,
}

/// `--json` of `policy import` and `policy remove`.
#[derive(Serialize)]
struct Done<'a> {
    kind: &'static str,
    name: &'a str,
    /// `imported`, `replaced` or `removed`.
    result: &'static str,
    /// Other names that the verifier keeps the same text under.
    same_as: Vec<String>,
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
        for name in names.names {
            let about = names.policies.iter().find(|about| about.name == name);
            policies.push(Listed {
                kind: kind.as_str(),
                name,
                sha256: about.map(|about| about.sha256.clone()),
                bytes: about.map(|about| about.bytes),
                nodes: about.map(|about| about.nodes),
            });
        }
    }
    let list = List { policies };
    out.result(&list, || {
        if list.policies.is_empty() {
            return "The verifier keeps no policy by name. Store one with `trothctl policy \
                    import`.\n"
                .to_owned();
        }
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let row = |policy: &Listed| {
            let sha256 = policy.sha256.as_deref().unwrap_or("-");
            vec![
                (Tone::Plain, policy.name.clone()),
                (Tone::Plain, policy.kind.to_owned()),
                (Tone::Plain, number(policy.nodes)),
                (Tone::Plain, number(policy.bytes)),
                (Tone::Dim, out.digest(sha256)),
            ]
        };
        out.table(
            &["NAME", "KIND", "NODES", "BYTES", "SHA-256"],
            list.policies.iter().map(row).collect(),
        )
    })?;
    Ok(Exit::Success)
}

/// Checks a policy here and stores it.
pub(super) async fn import(
    config: &Config,
    command: &ImportCommand,
    out: &Output,
) -> Result<Exit, Error> {
    let (kind, name, replace, body, text) = match command {
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
            (Kind::Runtime, &args.name, args.replace, body, policy.text)
        }
        ImportCommand::Boot(args) => {
            let text = boot(&args.policy, config)?;
            let body = json!({ "mb_policy": text });
            (Kind::Boot, &args.name, args.replace, body, text)
        }
    };
    let verifier = Credentials::load(config)?.verifier(config)?;
    let result = if replace && self::replace(&verifier, kind, name, &body).await? {
        "replaced"
    } else {
        create(&verifier, kind, name, &body).await?;
        "imported"
    };
    // A remark: the policy is stored, whatever becomes of this.
    let same_as = same_text(&verifier, kind, name, &text).await;
    let same_as = same_as.unwrap_or_default();
    report(out, kind, name, result, same_as)
}

/// Other names that the verifier keeps this text under, as far as it says.
async fn same_text(
    verifier: &Service,
    kind: Kind,
    name: &str,
    text: &str,
) -> Result<Vec<String>, Error> {
    let names: Names = verifier.get(&format!("{}/", collection(kind))).await?;
    let sha256 = HashAlgorithm::Sha256.digest(&[text.as_bytes()]).to_string();
    let same = |about: &About| about.sha256 == sha256 && about.name != name;
    let same = names.policies.into_iter().filter(same);
    Ok(same.map(|about| about.name).collect())
}

/// Removes a policy that no node uses.
pub(super) async fn remove(
    config: &Config,
    args: &RemovePolicyArgs,
    out: &Output,
) -> Result<Exit, Error> {
    let Some(PolicyRef::Stored(kind, name)) = args.policy.with_name(args.name.as_deref()) else {
        return Err(Error::Usage {
            option: "POLICY",
            reason: format!("{} is not runtime:NAME or boot:NAME", args.policy),
        });
    };
    let name = name.as_str();
    let verifier = Credentials::load(config)?.verifier(config)?;
    let path = path(kind, name);
    let reply = verifier.send(Method::DELETE, &path, None::<&Value>).await?;
    match reply.status {
        200..=299 => report(out, kind, name, "removed", Vec::new()),
        404 => Err(unknown(&verifier, kind, name)),
        _ => Err(verifier.refused(&Method::DELETE, &path, &reply)),
    }
}

fn report(
    out: &Output,
    kind: Kind,
    name: &str,
    result: &'static str,
    same_as: Vec<String>,
) -> Result<Exit, Error> {
    let kind = kind.as_str();
    let done = Done {
        kind,
        name,
        result,
        same_as,
    };
    let name = crate::output::clean(name);
    out.result(&done, || {
        let mut text = format!("The {kind} policy {name} is {result}.\n");
        if !done.same_as.is_empty() {
            let names = crate::output::clean(&done.same_as.join(", "));
            text += &format!("The verifier has the same policy as {names}, and keeps it once.\n");
        }
        text
    })?;
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

pub(super) fn unknown(verifier: &Service, kind: Kind, name: &str) -> Error {
    Error::NoSuchPolicy {
        kind: kind.as_str(),
        name: name.to_owned(),
        url: verifier.url.clone(),
    }
}
