use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Excludes, PolicyError};
use crate::ima::{self, Template};
use crate::tpm::HashAlgorithm;

/// `meta.generator` of converted lists.
const LEGACY_ALLOW_LIST: u8 = 3;

type Names = BTreeMap<String, BTreeSet<String>>;

#[derive(Serialize)]
struct Document<'a> {
    meta: Meta,
    release: u8,
    digests: Names,
    excludes: Vec<&'a str>,
    keyrings: Names,
    ima: Ima,
    #[serde(rename = "ima-buf")]
    ima_buf: Names,
    #[serde(rename = "verification-keys")]
    verification_keys: &'static str,
}

#[derive(Serialize)]
struct Meta {
    version: u8,
    generator: u8,
    timestamp: String,
}

#[derive(Serialize)]
struct Ima {
    ignored_keyrings: [&'static str; 0],
    log_hash_alg: &'static str,
    dm_policy: Option<()>,
}

impl Document<'_> {
    fn new(timestamp: u64) -> Self {
        let meta = Meta {
            version: 1,
            generator: LEGACY_ALLOW_LIST,
            timestamp: date_time(timestamp),
        };
        let log_hash_alg = HashAlgorithm::Sha1.name();
        Self {
            meta,
            release: 0,
            digests: Names::new(),
            excludes: Vec::new(),
            keyrings: Names::new(),
            ima: Ima {
                ignored_keyrings: [],
                log_hash_alg,
                dm_policy: None,
            },
            ima_buf: Names::new(),
            verification_keys: "",
        }
    }

    fn to_json(&self) -> Result<String, PolicyError> {
        serde_json::to_string(self).map_err(|e| PolicyError::from_json(&e))
    }
}

/// See [`super::RuntimePolicy::json_from_allowlist`].
pub(super) fn from_allowlist(
    allowlist: &str,
    excludes: &str,
    timestamp: u64,
) -> Result<String, PolicyError> {
    let mut document = Document::new(timestamp);
    for (index, line) in allowlist.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fail = |reason| PolicyError::Allowlist {
            line: index + 1,
            reason,
        };
        let (hex, path) = line
            .split_once(char::is_whitespace)
            .ok_or_else(|| fail("a digest without a path"))?;
        let digits = (40..=128).contains(&hex.len()) && hex.len() % 2 == 0;
        if !digits || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(fail(
                "the first word is not a digest of 40 to 128 hex digits",
            ));
        }
        let path = path.trim_start();
        let (names, name) = match path.strip_prefix("%keyring:") {
            Some(keyring) => (&mut document.keyrings, keyring.to_owned()),
            // The kernel writes a space in a path as an underscore.
            None => (&mut document.digests, path.replace(' ', "_")),
        };
        names
            .entry(name)
            .or_default()
            .insert(hex.to_ascii_lowercase());
    }
    document.excludes = excludes
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    Excludes::compile(document.excludes.iter().copied())?;
    document.to_json()
}

/// See [`super::RuntimePolicy::json_from_ima_list`].
pub(super) fn from_ima_list(list: &str, timestamp: u64) -> Result<String, PolicyError> {
    let mut document = Document::new(timestamp);
    for entry in ima::unverified_entries(list, 0) {
        let entry = entry?;
        if let Some(algorithm) = ima::hash_of_size(entry.template_hash.as_bytes().len()) {
            document.ima.log_hash_alg = algorithm.name();
        }
        if entry.is_violation() {
            continue;
        }
        let names = match entry.template {
            Template::ImaBuf if entry.key().is_some() => &mut document.keyrings,
            Template::ImaBuf => &mut document.ima_buf,
            Template::Ima | Template::ImaNg | Template::ImaSig => &mut document.digests,
        };
        let digest = entry.digest.to_string();
        if digest.len() < 40 {
            let reason = "an MD5 digest cannot be written into a runtime policy";
            return Err(ima::EntryError {
                entry: entry.index,
                reason,
            }
            .into());
        }
        names
            .entry(entry.name.to_owned())
            .or_default()
            .insert(digest);
    }
    document.to_json()
}

/// `YYYY-MM-DD HH:MM:SS.000000` in UTC.
fn date_time(timestamp: u64) -> String {
    let (days, seconds) = (timestamp / 86_400, timestamp % 86_400);
    // Civil date from days, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.000000")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::policy::RuntimePolicy;

    #[test]
    fn dates_are_utc() {
        assert_eq!(date_time(0), "1970-01-01 00:00:00.000000");
        assert_eq!(date_time(951_782_400), "2000-02-29 00:00:00.000000");
        assert_eq!(date_time(1_795_456_568), "2026-11-23 17:56:08.000000");
    }

    #[test]
    fn a_flat_allowlist_becomes_a_policy() {
        let (a, b) = ("Aa".repeat(32), "bb".repeat(20));
        let allowlist = format!(
            "{a}  /opt/my file\n\n{b} /opt/my_file\n{a}\tboot_aggregate\r\n{a} %keyring:.ima\n"
        );
        let json = RuntimePolicy::json_from_allowlist(&allowlist, "# tmp\n/tmp/.*\n\n", 0).unwrap();
        let value: Value = serde_json::from_str(&json).unwrap();
        let lower = "aa".repeat(32);
        assert_eq!(
            value["digests"]["/opt/my_file"],
            serde_json::json!([lower, b])
        );
        assert_eq!(
            value["digests"]["boot_aggregate"],
            serde_json::json!([lower])
        );
        assert_eq!(value["keyrings"][".ima"], serde_json::json!([lower]));
        assert_eq!(value["excludes"], serde_json::json!(["/tmp/.*"]));
        assert_eq!(value["meta"]["generator"], 3);
        RuntimePolicy::compile(json.as_bytes()).unwrap();
    }

    #[test]
    fn a_bad_line_or_pattern_is_named() {
        let good = format!("{} /a\n", "aa".repeat(32));
        for bad in ["zz /b", "aa /b", "lonely"] {
            let error =
                RuntimePolicy::json_from_allowlist(&format!("{good}{bad}\n"), "", 0).unwrap_err();
            assert!(error.to_string().contains("line 2"), "{error}");
        }
        let error = RuntimePolicy::json_from_allowlist(&good, "/x(\n", 0).unwrap_err();
        assert!(error.to_string().contains("/x("), "{error}");
    }
}
