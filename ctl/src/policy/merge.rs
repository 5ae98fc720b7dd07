use troth_core::policy::{BootPolicy, MergedBoot, PolicyError};

use super::{
    input::{Content, Input},
    write_output,
};
use crate::{
    cli::MergeArgs,
    config::Config,
    error::{Error, Exit},
    output::Output,
};

/// Runs `trothctl policy merge`.
pub(super) async fn run(config: &Config, args: &MergeArgs, out: &Output) -> Result<Exit, Error> {
    let mut merged: Option<Input> = None;
    let mut told = Vec::new();
    for policy in &args.policies {
        let next = Input::read(config, policy).await?;
        if let Content::Runtime {
            envelope: Some(_), ..
        } = next.content
        {
            told.push(format!(
                "{} is signed; nobody has looked at its signatures, and they are left out",
                next.place
            ));
        }
        merged = Some(match merged {
            None => next,
            Some(merged) => merge(merged, next, &mut told)?,
        });
    }
    let text = match merged.map(|merged| merged.content) {
        Some(Content::Runtime { document, .. }) => document.to_json(),
        Some(Content::Tpm(policy)) => policy.to_json() + "\n",
        Some(Content::Boot(policy)) => written(&policy.to_string())?,
        // clap demands two.
        None => String::new(),
    };
    out.notes(&told);
    write_output(args.output.as_deref(), &text, out)?;
    Ok(Exit::Success)
}

fn merge(merged: Input, next: Input, told: &mut Vec<String>) -> Result<Input, Error> {
    let unusable = |source: PolicyError| Error::Policy {
        what: format!("{} with {}", merged.place, next.place),
        source,
    };
    let content = match (&merged.content, next.content) {
        (Content::Runtime { document, .. }, Content::Runtime { document: more, .. }) => {
            Content::Runtime {
                document: Box::new(document.merge(*more).map_err(unusable)?),
                envelope: None,
            }
        }
        (Content::Tpm(policy), Content::Tpm(more)) => Content::Tpm(policy.merge(&more)),
        (Content::Boot(policy), Content::Boot(more)) => {
            let boot = BootPolicy::merge(&policy.to_string(), &more.to_string());
            let MergedBoot { json, told: more } = boot.map_err(unusable)?;
            let of_both = |told| format!("{} with {}: {told}", merged.place, next.place);
            told.extend(more.into_iter().map(of_both));
            // What was parsed as a policy is JSON.
            Content::Boot(serde_json::from_str(&json).unwrap_or_default())
        }
        (one, other) => {
            return Err(Error::PolicyKinds {
                kinds: [
                    format!("{} is a {} policy", merged.place, one.kind()),
                    format!("{} is a {} policy", next.place, other.kind()),
                ],
            });
        }
    };
    Ok(Input { content, ..merged })
}

/// A boot policy as it is written in a file: ours in TOML.
fn written(json: &str) -> Result<String, Error> {
    let unusable = |source| Error::Policy {
        what: "the merged policy".to_owned(),
        source,
    };
    match BootPolicy::parse(Some(json)).map_err(unusable)? {
        BootPolicy::Rules(rules) => Ok(rules.to_toml()),
        _ => Ok(format!("{json}\n")),
    }
}
