use troth_core::policy::PolicyError;

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
    for policy in &args.policies {
        let next = Input::read(config, policy).await?;
        if let Content::Runtime {
            envelope: Some(_), ..
        } = next.content
        {
            out.note(&format!(
                "{} is signed; nobody has looked at its signatures, and they are left out",
                next.place
            ));
        }
        merged = Some(match merged {
            None => next,
            Some(merged) => merge(merged, next)?,
        });
    }
    let text = match merged.map(|merged| merged.content) {
        Some(Content::Runtime { document, .. }) => document.to_json(),
        Some(Content::Tpm(policy)) => policy.to_json() + "\n",
        Some(Content::Boot(policy)) => format!("{policy}\n"),
        // clap demands two.
        None => String::new(),
    };
    write_output(args.output.as_deref(), &text, out)?;
    Ok(Exit::Success)
}

fn merge(merged: Input, next: Input) -> Result<Input, Error> {
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
        (Content::Boot(policy), Content::Boot(more)) if *policy == more => Content::Boot(more),
        (Content::Boot(_), Content::Boot(_)) => {
            return Err(Error::BootPoliciesDiffer {
                places: [merged.place, next.place],
            });
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
