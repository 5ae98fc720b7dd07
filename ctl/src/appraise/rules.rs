use serde::Serialize;
use troth_core::{
    appraise::{AcceptedAlgorithms, Tomtou},
    bundle::Criteria,
    ima::{Keyring, KeyringError},
    policy::{BootEngine, VerificationKeys},
    tpm::AttestationKey,
};

use crate::cli::AppraiseArgs;

/// What is judged by beside the policies. A bundle says this too, but nobody signed that: it
/// counts where the operator takes the bundle's own rules (`--embedded-policies`).
pub(super) struct Rules {
    pub(super) engine: BootEngine,
    pub(super) tomtou: Tomtou,
    pub(super) keys: Option<Keyring>,
    pub(super) accept: AcceptedAlgorithms,
    pub(super) told: Told,
}

/// What the report says of them.
#[derive(Debug, Serialize)]
pub(super) struct Told {
    boot_engine: Rule<BootEngine>,
    tomtou: Rule<Tomtou>,
    /// The JSON of the keys that count for files' signatures.
    ima_keys: Rule<Option<String>>,
    accept: Rule<AcceptedAlgorithms>,
    /// What the bundle says and what is not counted, for people.
    #[serde(skip)]
    pub(super) ignored: Vec<String>,
}

/// A rule, and where it is from.
#[derive(Debug, Serialize)]
struct Rule<T> {
    value: T,
    from: Origin,
}

/// Where a rule is from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Origin {
    Given,
    Bundle,
    Default,
}

impl<T> Rule<T> {
    /// The operator's, else the bundle's, else the default.
    fn choose(given: Option<T>, bundle: Option<T>, default: T) -> Self {
        match (given, bundle) {
            (Some(value), _) => Self {
                value,
                from: Origin::Given,
            },
            (None, Some(value)) => Self {
                value,
                from: Origin::Bundle,
            },
            (None, None) => Self {
                value: default,
                from: Origin::Default,
            },
        }
    }
}

impl Rules {
    /// The rules for a bundle with these criteria that `ak` signed. `ima_keys` is the JSON of the
    /// keys that the operator named.
    ///
    /// # Errors
    /// Keys that count and are none.
    pub(super) fn choose(
        args: &AppraiseArgs,
        ima_keys: Option<&str>,
        criteria: Option<&Criteria>,
        ak: &AttestationKey,
    ) -> Result<Self, KeyringError> {
        let counted = criteria.filter(|_| args.embedded_policies);
        let engine = Rule::choose(
            args.boot_engine.map(Into::into),
            counted.map(|criteria| criteria.boot_engine),
            BootEngine::default(),
        );
        let tomtou = Rule::choose(
            args.tomtou.map(Into::into),
            counted.map(|criteria| criteria.tomtou),
            Tomtou::default(),
        );
        let accept = Rule::choose(
            None,
            counted.map(|criteria| criteria.accept.clone()),
            AcceptedAlgorithms::of(ak),
        );
        let keys = match (ima_keys, counted) {
            (Some(json), _) => Some(Keyring::from_json(json)?),
            (None, counted) => counted.map(Criteria::keyring).transpose()?,
        };
        let ima_keys = Rule::choose(
            ima_keys.map(|json| Some(json.to_owned())),
            counted.map(|criteria| criteria.ima_keys.clone()),
            None,
        );
        let mut ignored = Vec::new();
        if let Some(criteria) = criteria {
            if criteria.boot_engine != engine.value {
                ignored.push(format!("boot engine {}", word(criteria.boot_engine)));
            }
            if criteria.tomtou != tomtou.value {
                ignored.push(format!("tomtou {}", word(criteria.tomtou)));
            }
            let keys = [&criteria.ima_keys, &ima_keys.value].map(Option::as_deref);
            if !same_keys(keys) && has_keys(keys[0]) {
                ignored.push("keys for the signatures of files".to_owned());
            }
        }
        Ok(Self {
            engine: engine.value,
            tomtou: tomtou.value,
            keys,
            accept: accept.value.clone(),
            told: Told {
                boot_engine: engine,
                tomtou,
                ima_keys,
                accept,
                ignored,
            },
        })
    }
}

impl Told {
    /// Those that are the bundle's, for people.
    pub(super) fn chosen_by_bundle(&self) -> Vec<String> {
        let mut told = Vec::new();
        if self.boot_engine.from == Origin::Bundle {
            told.push(format!("boot engine {}", word(self.boot_engine.value)));
        }
        if self.tomtou.from == Origin::Bundle {
            told.push(format!("tomtou {}", word(self.tomtou.value)));
        }
        if self.ima_keys.from == Origin::Bundle {
            told.push(match has_keys(self.ima_keys.value.as_deref()) {
                true => "keys for the signatures of files (--json has them)".to_owned(),
                false => "no keys for the signatures of files".to_owned(),
            });
        }
        if self.accept.from == Origin::Bundle {
            let AcceptedAlgorithms {
                hash,
                encryption,
                signing,
            } = &self.accept.value;
            let names = [hash.join(" "), encryption.join(" "), signing.join(" ")];
            told.push(format!("algorithms {}", names.join(" ")));
        }
        told
    }
}

/// Are these the same keys, whatever their order and form?
fn same_keys(texts: [Option<&str>; 2]) -> bool {
    let keys = texts.map(|text| VerificationKeys::parse(text.unwrap_or_default()));
    match &keys {
        [Ok(one), Ok(other)] => one.iter().eq(other.iter()),
        _ => texts[0] == texts[1],
    }
}

/// Is there a key in this JSON? What is no JSON is told too.
fn has_keys(json: Option<&str>) -> bool {
    let keys = Keyring::from_json(json.unwrap_or_default());
    keys.map_or(true, |keys| !keys.is_empty())
}

/// The word that a rule's value has in a configuration.
fn word(value: impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}
