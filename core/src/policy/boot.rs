use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{MAX_SMALL_POLICY, PolicyError};
use crate::tpm::PcrMask;

/// What a policy says, for people, and what distinguishes two.
mod contents;
/// A policy of ours from a reference state.
mod convert;
/// Policies of both forms from a boot log.
mod create;
/// A policy of ours as it is written.
pub(crate) mod document;
/// Unknown keys and the nearest that are known.
mod hint;
/// Keys of a policy, and how those of a log are found among them.
pub(crate) mod keys;
/// Two policies as one.
mod merge;
/// Keylime's reference state, as its engine `example` judges it.
pub(crate) mod refstate;
/// A policy of ours, compiled.
pub(crate) mod rules;

pub use contents::{BootChange, BootContents, BootDiff, BootEntry, BootForm, OrderChange};
pub use convert::Converted;
pub use create::CreateError;
pub use merge::MergedBoot;
pub use refstate::Refstate;
pub use rules::BootRules;

/// PCRs of a measured boot: 0 to 9 and 11 to 15.
const MEASURED_BOOT: u32 = 0xfbff;

/// What the boot log must show. A copy shares the compiled policy.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BootPolicy {
    /// No measured boot: the log is not looked at.
    None,
    /// `{}`: the log must replay to the quoted PCRs; its content is accepted.
    Replay,
    /// A refstate of any form under [`BootEngine::AcceptAll`]: as [`BootPolicy::Replay`].
    AcceptAll,
    /// A policy of any form under [`BootEngine::RejectAll`]: every boot fails.
    RejectAll,
    /// Keylime's reference state, judged as its engine `example` does.
    Refstate(Arc<Refstate>),
    /// A policy of ours.
    Rules(Arc<BootRules>),
}

/// What judges a refstate: Keylime's option `measured_boot_policy_name`. A policy of ours says
/// itself how it is judged, and `{}` means the same under each.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootEngine {
    /// Keylime's `example`.
    #[default]
    Example,
    /// Nothing: the log must replay, its content is accepted.
    AcceptAll,
    /// Nothing passes, policies of ours neither.
    RejectAll,
}

impl BootPolicy {
    /// From the API's `mb_policy` text, under the default engine ([`BootEngine::Example`]).
    ///
    /// # Errors
    /// As [`Self::parse_for`].
    pub fn parse(text: Option<&str>) -> Result<Self, PolicyError> {
        Self::parse_for(text, BootEngine::default())
    }

    /// From the API's `mb_policy` text: null and `""` are [`BootPolicy::None`], `{}` is
    /// [`BootPolicy::Replay`], an object with content is what `engine` makes of it.
    ///
    /// # Errors
    /// What is no policy of any form, with the key and the reason.
    pub fn parse_for(text: Option<&str>, engine: BootEngine) -> Result<Self, PolicyError> {
        let text = text.unwrap_or_default().trim();
        if text.is_empty() || text == "null" {
            return Ok(Self::None);
        }
        PolicyError::check_size(text.len(), MAX_SMALL_POLICY)?;
        let value: Value = serde_json::from_str(text).map_err(|e| PolicyError::from_json(&e))?;
        let Value::Object(members) = value else {
            return Err(PolicyError::BootPolicy(text.chars().take(60).collect()));
        };
        if members.is_empty() {
            return Ok(Self::Replay);
        }
        let ours = members.contains_key("version") && !members.contains_key("scrtm_and_bios");
        if ours && engine != BootEngine::RejectAll {
            return BootRules::from_json(text).map(|rules| Self::Rules(rules.into()));
        }
        match engine {
            BootEngine::Example => Refstate::parse(text).map(|state| Self::Refstate(state.into())),
            BootEngine::AcceptAll => Ok(Self::AcceptAll),
            BootEngine::RejectAll => Ok(Self::RejectAll),
        }
    }

    /// PCRs the quote must cover for it: 0 to 9 and 11 to 15 (mask 0xfbff) where the whole log is
    /// replayed, 0 to 9 and 14 for a refstate, or none.
    pub fn mask(&self) -> PcrMask {
        match self {
            Self::None | Self::RejectAll => PcrMask::default(),
            Self::Replay | Self::AcceptAll => pcrs(MEASURED_BOOT),
            Self::Refstate(_) => pcrs(refstate::PCRS),
            Self::Rules(rules) if rules.others => pcrs(rules.listed),
            Self::Rules(_) => pcrs(MEASURED_BOOT),
        }
    }

    /// PCRs whose quoted values the firmware's log must explain; `logged` are those that it always
    /// must. A policy of ours that speaks of a PCR that systemd goes on extending wants it
    /// explained as well; where it speaks of none of them, a log that cannot explain them fails
    /// nobody.
    pub(crate) fn explained(&self, logged: PcrMask) -> PcrMask {
        match self {
            Self::None | Self::RejectAll => PcrMask::default(),
            Self::Replay | Self::AcceptAll => logged,
            Self::Refstate(_) => self.mask(),
            Self::Rules(rules) => pcrs(rules.listed).union(logged),
        }
    }
}

/// The PCRs of 0 to 15 whose bits are set.
fn pcrs(bits: u32) -> PcrMask {
    (0..16)
        .filter(|pcr| bits >> pcr & 1 == 1)
        .fold(PcrMask::default(), PcrMask::with)
}
