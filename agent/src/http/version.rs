use std::{fmt, str::FromStr};

use crate::tpm::KeyKind;

/// A version of the agent's REST API.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ApiVersion {
    major: u32,
    minor: u32,
}

impl ApiVersion {
    /// Every version that can be served, ascending.
    pub const ALL: [Self; 6] = [
        Self::v2(1),
        Self::v2(2),
        Self::v2(3),
        Self::v2(4),
        Self::v2(5),
        Self::v2(6),
    ];

    /// Version 2.`minor`.
    pub const fn v2(minor: u32) -> Self {
        Self { major: 2, minor }
    }

    /// How this version spells a key's algorithm: explicit since 2.5.
    pub fn key_name(self, kind: KeyKind) -> &'static str {
        if self >= Self::v2(5) {
            kind.name()
        } else {
            kind.short_name()
        }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Text that is not `MAJOR.MINOR`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a version")]
pub struct NotAVersion;

impl FromStr for ApiVersion {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            // A number that does not fit is a version all the same, and none that exists.
            digits
                .then(|| text.parse().unwrap_or(u32::MAX))
                .ok_or(NotAVersion)
        };
        let (major, minor) = text.split_once('.').ok_or(NotAVersion)?;
        Ok(Self {
            major: number(major)?,
            minor: number(minor)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!("2.10".parse::<ApiVersion>().unwrap() > ApiVersion::v2(9));
        for text in ["2", "2.", ".1", "2.x", "2.1.0", "+2.1", ""] {
            assert_eq!(text.parse::<ApiVersion>(), Err(NotAVersion), "{text}");
        }
    }

    #[test]
    fn key_names_are_explicit_since_2_5() {
        assert_eq!(ApiVersion::v2(4).key_name(KeyKind::Rsa2048), "rsa");
        assert_eq!(ApiVersion::v2(5).key_name(KeyKind::Rsa2048), "rsa2048");
        assert_eq!(ApiVersion::v2(4).key_name(KeyKind::EccP256), "ecc");
        assert_eq!(ApiVersion::v2(1).key_name(KeyKind::EccP384), "ecc384");
    }
}
