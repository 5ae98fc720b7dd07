use super::{MAX_SMALL_POLICY, PolicyError};
use crate::tpm::PcrMask;

/// PCRs of a measured boot: 0 to 9 and 11 to 15.
const MEASURED_BOOT: u32 = 0xfbff;

/// What the boot log must show.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BootPolicy {
    /// No measured boot: the log is not looked at.
    None,
    /// `{}`: the log must replay to the quoted PCRs; its content is accepted.
    Replay,
}

impl BootPolicy {
    /// From the API's `mb_policy` text: null and `""` are [`BootPolicy::None`], `{}` is
    /// [`BootPolicy::Replay`].
    ///
    /// # Errors
    /// Anything else, with what is possible instead.
    pub fn parse(text: Option<&str>) -> Result<Self, PolicyError> {
        let text = text.unwrap_or_default().trim();
        if text.is_empty() || text == "null" {
            return Ok(Self::None);
        }
        PolicyError::check_size(text.len(), MAX_SMALL_POLICY)?;
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|e| PolicyError::from_json(&e))?;
        if value.as_object().is_some_and(serde_json::Map::is_empty) {
            return Ok(Self::Replay);
        }
        Err(PolicyError::BootPolicy(text.chars().take(60).collect()))
    }

    /// PCRs the quote must cover for it: 0 to 9 and 11 to 15 (mask 0xfbff), or none.
    pub fn mask(&self) -> PcrMask {
        match self {
            Self::None => PcrMask::default(),
            Self::Replay => (0..16)
                .filter(|pcr| MEASURED_BOOT >> pcr & 1 == 1)
                .fold(PcrMask::default(), PcrMask::with),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_empty_mean_no_measured_boot() {
        for text in [None, Some(""), Some(" "), Some("null")] {
            assert_eq!(BootPolicy::parse(text).unwrap(), BootPolicy::None);
        }
        assert!(BootPolicy::None.mask().is_empty());
    }

    #[test]
    fn empty_object_means_replay() {
        let policy = BootPolicy::parse(Some(" { } ")).unwrap();
        assert_eq!(policy, BootPolicy::Replay);
        assert_eq!(policy.mask().bits(), 0xfbff);
    }

    #[test]
    fn a_refstate_is_refused_with_a_hint() {
        let error = BootPolicy::parse(Some(r#"{"kernels": []}"#)).unwrap_err();
        assert!(error.to_string().contains("use {}"), "{error}");
        assert!(matches!(
            BootPolicy::parse(Some("{")),
            Err(PolicyError::NotJson(_))
        ));
    }
}
