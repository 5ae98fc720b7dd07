use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;
use troth_core::{
    bundle::{Bundle, PolicyReference, policy_digest},
    policy::{BootEngine, BootPolicy, PolicyError, RuntimePolicy, TpmPolicy},
};

use crate::{
    cli::AppraiseArgs,
    error::Error,
    policy::{self, read_text},
};

/// The policies that the command line names.
pub(super) struct Given {
    runtime: Policies<Arc<RuntimePolicy>>,
    /// Texts: what they mean, the verifier's engine says.
    boot: Policies<String>,
    tpm: Option<TpmPolicy>,
    /// Those that came along count too.
    embedded: bool,
}

/// The policies of one option.
struct Policies<P> {
    option: &'static str,
    named: Vec<Named<P>>,
}

/// A policy with the word that named it.
struct Named<P> {
    name: String,
    sha256: String,
    policy: P,
}

/// What one bundle is judged by.
pub(super) struct Chosen {
    pub(super) runtime: Option<Arc<RuntimePolicy>>,
    pub(super) boot: BootPolicy,
    pub(super) tpm: TpmPolicy,
    pub(super) sources: Sources,
}

/// Where each policy is from.
#[derive(Debug, Serialize)]
pub(super) struct Sources {
    pub(super) runtime_policy: Source,
    pub(super) boot_policy: Source,
    pub(super) tpm_policy: Source,
}

/// Where a policy is from.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub(super) enum Source {
    /// There is none.
    None,
    /// The command line.
    Given {
        name: String,
        sha256: String,
        /// Is it the one that the bundle says was judged by? null: it does not say.
        as_recorded: Option<bool>,
    },
    /// The bundle.
    Bundle { name: String, sha256: String },
}

impl Given {
    /// Reads what the options name.
    pub(super) fn read(args: &AppraiseArgs) -> Result<Self, Error> {
        let runtime = |path: &PathBuf| {
            let text = read_text(path)?;
            let name = path.display().to_string();
            named(name, "runtime policy", &text, |text| {
                RuntimePolicy::compile_text(text.as_bytes()).map(Arc::new)
            })
        };
        let boot = |argument: &String| -> Result<_, Error> {
            let text = match argument {
                text if text.trim_start().starts_with('{') => text.clone(),
                path => read_text(Path::new(path))?,
            };
            let unusable = |source| Error::Policy {
                what: format!("boot policy {argument}"),
                source,
            };
            // As the verifier has it. What JSON means, the engine says.
            let text = match text.trim_start().starts_with('{') {
                true => text,
                false => policy::boot_json(&text).map_err(unusable)?,
            };
            Ok(Named {
                name: argument.clone(),
                sha256: policy_digest(text.as_bytes()),
                policy: text,
            })
        };
        let tpm = |argument: &String| {
            let text = policy::tpm_text(argument)?;
            let parsed = TpmPolicy::parse(&text).or_else(|_| TpmPolicy::from_operator(&text));
            parsed.map_err(|source| Error::Policy {
                what: "--tpm-policy".to_owned(),
                source,
            })
        };
        Ok(Self {
            runtime: Policies {
                option: "--policy",
                named: args.policy.iter().map(runtime).collect::<Result<_, _>>()?,
            },
            boot: Policies {
                option: "--boot-policy",
                named: args
                    .boot_policy
                    .iter()
                    .map(boot)
                    .collect::<Result<_, _>>()?,
            },
            tpm: args.tpm_policy.as_ref().map(tpm).transpose()?,
            embedded: args.embedded_policies,
        })
    }

    /// What a bundle is judged by: of several policies the one that it names, one alone in any
    /// case. A bundle that names one is not judged without.
    pub(super) fn choose(
        &self,
        path: &Path,
        bundle: &Bundle<'_>,
        engine: BootEngine,
    ) -> Result<Chosen, Error> {
        let criteria = bundle.head.criteria.as_ref();
        let unusable = |what: &str, source| Error::Policy {
            what: format!("{}: {what}", path.display()),
            source,
        };
        let recorded = criteria.and_then(|criteria| criteria.runtime_policy.as_ref());
        let embedded = bundle.runtime_policy.filter(|_| self.embedded);
        let (runtime, runtime_source) =
            match self.runtime.pick(path, criteria.is_some(), recorded)? {
                Some((policy, source)) => (Some(Arc::clone(policy)), source),
                None => match (embedded, recorded) {
                    (Some(text), _) => {
                        let policy = RuntimePolicy::compile_text(text);
                        let policy =
                            policy.map_err(|error| unusable("its runtime policy", error))?;
                        (Some(Arc::new(policy)), embedded_source(text, recorded))
                    }
                    (None, None) => (None, Source::None),
                    (None, Some(recorded)) => {
                        return Err(needed(path, "runtime", "--policy", recorded));
                    }
                },
            };
        let recorded = criteria.and_then(|criteria| criteria.boot_policy.as_ref());
        let embedded = bundle.boot_policy.filter(|_| self.embedded);
        let (text, boot_source) = match self.boot.pick(path, criteria.is_some(), recorded)? {
            Some((text, source)) => (Some(Cow::from(text)), source),
            None => match (embedded, recorded) {
                (Some(text), _) => (
                    Some(String::from_utf8_lossy(text)),
                    embedded_source(text, recorded),
                ),
                (None, None) => (None, Source::None),
                (None, Some(recorded)) => {
                    return Err(needed(path, "boot", "--boot-policy", recorded));
                }
            },
        };
        let boot = BootPolicy::parse_for(text.as_deref(), engine);
        let boot = boot.map_err(|error| unusable("its boot policy", error))?;
        let (tpm, tpm_source) = match (&self.tpm, criteria) {
            (Some(tpm), criteria) => {
                let recorded = criteria.map(|criteria| TpmPolicy::parse(&criteria.tpm_policy));
                let same = |recorded: TpmPolicy| recorded.allowed().eq(tpm.allowed());
                let source = Source::Given {
                    name: "--tpm-policy".to_owned(),
                    sha256: policy_digest(tpm.to_json().as_bytes()),
                    as_recorded: recorded.map(|recorded| recorded.is_ok_and(same)),
                };
                (tpm.clone(), source)
            }
            (None, Some(criteria)) => {
                let text = &criteria.tpm_policy;
                let policy = TpmPolicy::parse(text);
                let policy = policy.map_err(|error| unusable("its TPM policy", error))?;
                let source = match policy.allowed().next() {
                    None => Source::None,
                    Some(_) => Source::Bundle {
                        name: text.clone(),
                        sha256: policy_digest(text.as_bytes()),
                    },
                };
                (policy, source)
            }
            (None, None) => {
                let nothing = TpmPolicy::from_operator("{}");
                let nothing = nothing.map_err(|error| unusable("no TPM policy", error))?;
                (nothing, Source::None)
            }
        };
        Ok(Chosen {
            runtime,
            boot,
            tpm,
            sources: Sources {
                runtime_policy: runtime_source,
                boot_policy: boot_source,
                tpm_policy: tpm_source,
            },
        })
    }
}

fn named<P>(
    name: String,
    what: &str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<P, PolicyError>,
) -> Result<Named<P>, Error> {
    let policy = parse(text).map_err(|source| Error::Policy {
        what: format!("{what} {name}"),
        source,
    })?;
    Ok(Named {
        name,
        sha256: policy_digest(text.as_bytes()),
        policy,
    })
}

impl<P> Policies<P> {
    /// Of the policies that were given, the one that the bundle names, or the only one. `judged`:
    /// the bundle says by what it was judged.
    fn pick(
        &self,
        path: &Path,
        judged: bool,
        recorded: Option<&PolicyReference>,
    ) -> Result<Option<(&P, Source)>, Error> {
        let is_recorded = |named: &&Named<P>| recorded.is_some_and(|r| r.sha256 == named.sha256);
        let named = match (self.named.iter().find(is_recorded), &self.named[..]) {
            (Some(named), _) => named,
            (None, [one]) => one,
            (None, []) => return Ok(None),
            (None, several) => {
                let wanted = recorded.map_or_else(
                    || "the bundle names none: give one".to_owned(),
                    |recorded| format!("the bundle names {}", recorded.sha256),
                );
                return Err(Error::Usage {
                    option: self.option,
                    reason: format!(
                        "{}: which of the {} policies? {wanted}",
                        path.display(),
                        several.len()
                    ),
                });
            }
        };
        let source = Source::Given {
            name: named.name.clone(),
            sha256: named.sha256.clone(),
            as_recorded: judged.then(|| is_recorded(&named)),
        };
        Ok(Some((&named.policy, source)))
    }
}

fn embedded_source(text: &[u8], recorded: Option<&PolicyReference>) -> Source {
    Source::Bundle {
        name: recorded.map_or_else(|| "-".to_owned(), |recorded| recorded.name.clone()),
        sha256: policy_digest(text),
    }
}

fn needed(
    path: &Path,
    kind: &'static str,
    option: &'static str,
    recorded: &PolicyReference,
) -> Error {
    Error::PolicyNeeded {
        path: path.to_owned(),
        kind,
        option,
        name: recorded.name.clone(),
        sha256: recorded.sha256.clone(),
    }
}
