use troth_core::{
    policy::{BootPolicy, TpmPolicy},
    tpm::PcrMask,
};

use crate::{
    cli::PolicyArgs,
    config::Config,
    error::Error,
    policy::{self, RuntimeOptions, RuntimeText},
};

/// A runtime or boot policy of an enrolment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Choice {
    /// Its text; `None`: the verifier has it under `name`, or there is none.
    pub(super) text: Option<String>,
    /// The name that the verifier has it under, or shall keep `text` under.
    pub(super) name: Option<String>,
    /// base64 of the PEM of the key that signed `text`; `None`: it is not signed.
    pub(super) key: Option<String>,
}

impl Choice {
    /// Is there a policy at all?
    pub(super) fn is_some(&self) -> bool {
        self.text.is_some() || self.name.is_some()
    }
}

/// The policies of an enrolment, read and checked before anything is sent.
#[derive(Debug)]
pub(super) struct Policies {
    pub(super) runtime: Choice,
    pub(super) boot: Choice,
    /// The operator's JSON, without a mask.
    pub(super) tpm: Option<TpmPolicy>,
    /// Keylime's JSON of the keys whose signatures of files count.
    pub(super) keys: Option<String>,
}

impl Policies {
    /// Reads what the options name.
    pub(super) async fn read(config: &Config, args: &PolicyArgs) -> Result<Self, Error> {
        let options = RuntimeOptions {
            json: args.runtime_policy.as_ref(),
            url: args.runtime_policy_url.as_ref(),
            checksum: args.runtime_policy_checksum.as_ref(),
            allowlist: args.allowlist.as_ref(),
            exclude: args.exclude.as_ref(),
            ima_list: args.ima_list.as_ref(),
            sig_key: args.runtime_policy_sig_key.as_ref(),
        };
        let runtime = options.read(config).await?;
        let (text, key) = match runtime {
            Some(RuntimeText { text, key }) => (Some(text), key),
            None => (None, None),
        };
        let boot = args
            .boot_policy
            .as_deref()
            .map(|argument| policy::boot(argument, config))
            .transpose()?;
        let tpm = match &args.tpm_policy {
            Some(argument) => Some(tpm_policy(&policy::tpm_text(argument)?)?),
            None => None,
        };
        Ok(Self {
            runtime: Choice {
                text,
                name: args.runtime_policy_name.clone(),
                key,
            },
            boot: Choice {
                text: boot,
                name: args.boot_policy_name.clone(),
                key: None,
            },
            tpm,
            keys: policy::verification_keys(&args.verification_key)?,
        })
    }

    /// The JSON text for the verifier: PCR values, and a mask with what the other policies need
    /// and with `more`.
    pub(super) fn tpm_json(&self, more: PcrMask) -> Result<String, Error> {
        let tpm = match &self.tpm {
            Some(tpm) => tpm.clone(),
            None => tpm_policy("{}")?,
        };
        let mut mask = more;
        if self.runtime.is_some() {
            mask = mask.union(runtime_mask());
        }
        if self.boot.is_some() {
            mask = mask.union(boot_mask());
        }
        Ok(tpm.with_mask(mask).to_json())
    }
}

/// PCRs that a runtime policy needs.
pub(super) fn runtime_mask() -> PcrMask {
    PcrMask::default().with(10)
}

/// PCRs that a boot policy needs.
pub(super) fn boot_mask() -> PcrMask {
    BootPolicy::Replay.mask()
}

fn tpm_policy(json: &str) -> Result<TpmPolicy, Error> {
    TpmPolicy::from_operator(json).map_err(|source| Error::Policy {
        what: "--tpm-policy".to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_has_the_pcrs_of_every_policy() {
        let named = |name: &str| Choice {
            text: None,
            name: Some(name.to_owned()),
            key: None,
        };
        let mut policies = Policies {
            runtime: Choice::default(),
            boot: Choice::default(),
            tpm: None,
            keys: None,
        };
        let json = |policies: &Policies| policies.tpm_json(PcrMask::default()).unwrap();
        assert_eq!(json(&policies), r#"{"mask": "0x0"}"#);
        policies.runtime = named("base");
        assert_eq!(json(&policies), r#"{"mask": "0x400"}"#);
        policies.boot = named("grub");
        assert_eq!(json(&policies), r#"{"mask": "0xffff"}"#);
        policies.boot = Choice::default();
        policies.tpm = Some(tpm_policy(r#"{"22": "AB"}"#).unwrap());
        assert_eq!(json(&policies), r#"{"22": ["ab"], "mask": "0x400400"}"#);
    }
}
