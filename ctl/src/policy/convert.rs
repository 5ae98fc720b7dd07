use troth_core::policy::{BootPolicy, BootRules};

use super::{
    input::{Content, Input},
    read_text,
    verify::Signers,
    write_output,
};
use crate::{
    cli::{ConvertArgs, Target},
    config::Config,
    error::{Error, Exit},
    output::Output,
};

/// Runs `trothctl policy convert`.
pub(super) async fn run(config: &Config, args: &ConvertArgs, out: &Output) -> Result<Exit, Error> {
    let input = Input::read(config, &args.policy).await?;
    let unusable = |source| Error::Policy {
        what: format!("policy from {}", input.place),
        source,
    };
    let kind = input.content.kind();
    let wrong_target = || Error::Usage {
        option: "--to",
        reason: format!("{} is a {kind} policy, which cannot be that", input.place),
    };
    let signers = Signers::load(&args.signers)?;
    let text = match (input.content, args.to) {
        (
            Content::Runtime {
                mut document,
                envelope,
            },
            target,
        ) => {
            let signature = |reason: &str| Error::PolicySignature {
                place: input.place.clone(),
                reason: reason.to_owned(),
            };
            let foreign = |reason: &str| Error::ForeignSigner {
                place: input.place.clone(),
                reason: reason.to_owned(),
            };
            match &envelope {
                Some(_) if signers.is_empty() => {
                    return Err(signature(
                        "the policy is signed: name its signer by --key or --ca",
                    ));
                }
                Some(envelope) if !signers.checked(envelope).iter().any(|one| one.verified()) => {
                    return Err(foreign(
                        "no signature of the policy is by one of these signers",
                    ));
                }
                None if !signers.is_empty() => {
                    return Err(foreign("the policy is not signed"));
                }
                _ => {}
            }
            if let Some(path) = &args.exclude {
                document
                    .add_exclude_file(&read_text(path)?)
                    .map_err(unusable)?;
            }
            match target {
                None | Some(Target::Runtime) => document.to_json(),
                Some(Target::Allowlist) => {
                    let left_out = [
                        (
                            document.excludes().len(),
                            "excludes (--to excludes has them)",
                        ),
                        (document.ima_buf().len(), "buffers"),
                        (document.ignored_keyrings().len(), "ignored keyrings"),
                        (document.verification_keys().len(), "verification keys"),
                    ];
                    for (count, what) in left_out.into_iter().filter(|(count, _)| *count > 0) {
                        out.note(&format!("an allowlist has no place for {count} {what}"));
                    }
                    document.to_allowlist()
                }
                Some(Target::Excludes) => document
                    .excludes()
                    .map(|pattern| format!("{pattern}\n"))
                    .collect(),
                Some(Target::Tpm | Target::Boot | Target::BootToml) => return Err(wrong_target()),
            }
        }
        (Content::Tpm(policy), None | Some(Target::Tpm)) => policy.to_json() + "\n",
        (Content::Boot(policy), None | Some(Target::Boot)) => format!("{policy:#}\n"),
        (Content::Boot(policy), Some(Target::BootToml)) => {
            let json = policy.to_string();
            match BootPolicy::parse(Some(&json)).map_err(unusable)? {
                BootPolicy::Refstate(state) => {
                    let converted = state.to_rules().map_err(unusable)?;
                    for difference in converted.differences {
                        out.note(&format!("other than by the refstate: {difference}"));
                    }
                    converted.rules.to_toml()
                }
                _ => BootRules::from_json(&json).map_err(unusable)?.to_toml(),
            }
        }
        (Content::Tpm(_) | Content::Boot(_), Some(_)) => return Err(wrong_target()),
    };
    write_output(args.output.as_deref(), &text, out)?;
    Ok(Exit::Success)
}
