use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// What a text is, by its members alone: whether it can be used is for its reader to say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PolicyFormat {
    /// A DSSE envelope around a runtime policy.
    Signed,
    /// A runtime policy of any version, JSON allow lists included.
    Runtime,
    /// PCR values.
    Tpm,
    /// A boot policy: `{}`, a refstate, or one of ours, in JSON or TOML.
    Boot,
    /// An IMA measurement list.
    ImaList,
    /// A flat allowlist.
    Allowlist,
}

impl PolicyFormat {
    /// Looks at the names of the outermost members, or at the first line of what is not JSON.
    /// `{}` is a boot policy. `None`: nothing that is known.
    pub fn of(text: &str) -> Option<Self> {
        let start = text.trim_start();
        if start.starts_with('{') {
            let mut members = serde_json::Deserializer::from_str(start);
            return Members::deserialize(&mut members).ok().map(Members::format);
        }
        let mut lines = text.lines().map(str::trim);
        let line = lines.find(|line| !line.is_empty() && !line.starts_with('#'))?;
        // TOML begins with a heading, `[name]`, or with `name = value`.
        let heading = line
            .strip_prefix('[')
            .is_some_and(|rest| rest.starts_with(char::is_alphabetic));
        let named = line.split_once('=').is_some_and(|(name, _)| {
            name.trim()
                .chars()
                .all(|c| c.is_alphanumeric() || "_-.".contains(c))
        });
        if heading || named {
            return Some(Self::Boot);
        }
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?;
        let second = words.next()?;
        let hex = |text: &str, size: usize| {
            text.len() >= size && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        match words.next() {
            Some(_) if first.len() <= 2 && hex(first, 1) && hex(second, 32) => Some(Self::ImaList),
            _ if hex(first, 40) => Some(Self::Allowlist),
            _ => None,
        }
    }
}

/// What the outermost members tell.
#[derive(Default)]
struct Members {
    payload: bool,
    runtime: bool,
    tpm: bool,
}

impl Members {
    fn format(self) -> PolicyFormat {
        match self {
            Self { payload: true, .. } => PolicyFormat::Signed,
            Self { runtime: true, .. } => PolicyFormat::Runtime,
            Self { tpm: true, .. } => PolicyFormat::Tpm,
            _ => PolicyFormat::Boot,
        }
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
            match name.as_str() {
                "payload" | "payloadType" => self.payload = true,
                "digests" | "hashes" | "excludes" | "verification-keys" => self.runtime = true,
                "mask" => self.tpm = true,
                pcr => self.tpm |= !pcr.is_empty() && pcr.bytes().all(|b| b.is_ascii_digit()),
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_known_by_their_content() {
        let digest = "ab".repeat(32);
        for (text, expected) in [
            (
                r#"{"payload": "", "payloadType": ""}"#,
                PolicyFormat::Signed,
            ),
            (r#"{"meta": {}, "digests": {}}"#, PolicyFormat::Runtime),
            (r#" {"hashes": {}}"#, PolicyFormat::Runtime),
            (r#"{"mask": "0x0"}"#, PolicyFormat::Tpm),
            (r#"{"15": "aa"}"#, PolicyFormat::Tpm),
            ("{}", PolicyFormat::Boot),
            (r#"{"kernels": []}"#, PolicyFormat::Boot),
            ("# of web1\nversion = 1\n", PolicyFormat::Boot),
            ("[secure_boot]\n", PolicyFormat::Boot),
            (
                &format!("# list\n\n{digest}  /bin/a b"),
                PolicyFormat::Allowlist,
            ),
            (
                &format!("10 {digest} ima-ng sha256:{digest} /a"),
                PolicyFormat::ImaList,
            ),
        ] {
            assert_eq!(PolicyFormat::of(text), Some(expected), "{text}");
        }
        for text in ["", "{", "[]", "hello world", "lonely", "a b = c"] {
            assert_eq!(PolicyFormat::of(text), None, "{text}");
        }
    }
}
