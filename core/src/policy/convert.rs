use std::fmt::Write;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::schema::Members;
use super::{DigestNames, MAX_RUNTIME_POLICY, PolicyDocument, PolicyError};
use crate::ima;
use crate::tpm::Digest;

/// `meta.generator` of a policy that was brought to the present version.
const COMPATIBLE_ALLOW_LIST: u8 = 2;
/// `meta.generator` of converted lists.
const LEGACY_ALLOW_LIST: u8 = 3;
/// Present `meta.version`.
const VERSION: u64 = 1;

impl PolicyDocument {
    /// From a flat allowlist (`<hex> <path>` lines; `%keyring:<name>` for keyrings; `#` comments)
    /// and an exclude file ([`Self::add_exclude_file`]); `timestamp` is Unix seconds.
    ///
    /// # Errors
    /// Names the line, or the pattern that is no regular expression.
    pub fn from_allowlist(
        allowlist: &str,
        excludes: &str,
        timestamp: u64,
    ) -> Result<Self, PolicyError> {
        let mut document = Self::new(timestamp);
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
            let digest = Digest::from_hex(hex)
                .filter(|digest| digest.as_bytes().len() >= 20)
                .ok_or_else(|| fail("the first word is not a digest of 40 to 128 hex digits"))?;
            let path = path.trim_start();
            match path.strip_prefix(KEYRING) {
                Some(keyring) => document.add_keyring(keyring, digest)?,
                None => document.add_file(path, digest)?,
            };
        }
        document.add_exclude_file(excludes)?;
        Ok(document)
    }

    /// Leaves out what an exclude file names: one regular expression a line, `#` comments.
    ///
    /// # Errors
    /// As [`Self::add_excludes`].
    pub fn add_exclude_file(&mut self, excludes: &str) -> Result<(), PolicyError> {
        let lines = excludes.lines().map(str::trim);
        self.add_excludes(lines.filter(|line| !line.is_empty() && !line.starts_with('#')))
    }

    /// The files, keys and buffers of an IMA list, and no more; `timestamp` is Unix seconds.
    /// Violations allow nothing.
    ///
    /// # Errors
    /// Names the entry that does not parse.
    pub fn from_ima_list(list: &str, timestamp: u64) -> Result<Self, PolicyError> {
        let mut document = Self::new(timestamp);
        let log_hash = ima::log_hash(list);
        document.set_log_hash_alg(log_hash);
        for entry in ima::unverified_entries(list, 0, log_hash) {
            let entry = entry?;
            if entry.is_violation() {
                continue;
            }
            let (name, digest) = (entry.name, entry.digest);
            let added = match (entry.is_buffer(), entry.key()) {
                (_, Some(_)) => document.add_keyring(name, digest),
                (true, None) => document.add_buffer(name, digest),
                (false, None) => document.add_digest(name, digest),
            };
            if let Err(PolicyError::Digest { .. }) = added {
                let reason = "an MD5 digest cannot be written into a runtime policy";
                return Err(ima::EntryError {
                    entry: entry.index,
                    reason,
                }
                .into());
            }
        }
        Ok(document)
    }

    /// Reads a runtime policy of the present version, or brings an older one to it: version 0, and
    /// Keylime's JSON allow lists, whose digests stand under `hashes`. `timestamp` (Unix seconds) is
    /// when that is done.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_any_version(json: &[u8], timestamp: u64) -> Result<Self, PolicyError> {
        PolicyError::check_size(json.len(), MAX_RUNTIME_POLICY)?;
        let shape = serde_json::from_slice(json);
        // What is no policy is named by the strict reader.
        let generator = match shape.unwrap_or_default() {
            Shape {
                hashes: Some(_),
                digests: None,
                ..
            } => LEGACY_ALLOW_LIST,
            Shape {
                meta: Some(Version { version: 0 }),
                ..
            } => COMPATIBLE_ALLOW_LIST,
            _ => return Self::parse(json),
        };
        let mut old: Members =
            serde_json::from_slice(json).map_err(|e| PolicyError::from_json(&e))?;
        let hashes = old.0.remove("hashes");
        if generator == LEGACY_ALLOW_LIST {
            old.0
                .extend(hashes.map(|hashes| ("digests".to_owned(), hashes)));
        }
        let mut document = Self::parse(upgraded(old, generator)?.as_bytes())?;
        document.set_timestamp(timestamp);
        if generator == LEGACY_ALLOW_LIST {
            document.rename_as_measured()?;
        }
        Ok(document)
    }

    /// A flat allowlist of its files and keyrings, as [`Self::from_allowlist`] reads it. Buffers,
    /// keys and patterns have no place in one.
    pub fn to_allowlist(&self) -> String {
        let mut out = String::new();
        let mut lines = |prefix: &str, names: &DigestNames| {
            for (name, digests) in names.iter() {
                for digest in digests {
                    // Writing to a string does not fail.
                    let _ = writeln!(out, "{digest}  {prefix}{name}");
                }
            }
        };
        lines("", self.digests());
        lines(KEYRING, self.keyrings());
        out
    }
}

/// What stands before a keyring's name in a flat allowlist.
const KEYRING: &str = "%keyring:";

/// As much of a policy as tells its version.
#[derive(Default, Deserialize)]
struct Shape {
    meta: Option<Version>,
    hashes: Option<IgnoredAny>,
    digests: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

/// The text of an older policy with a new `meta`, and with the schema's empty values where it has
/// none.
fn upgraded(mut policy: Members, generator: u8) -> Result<String, PolicyError> {
    let ima = policy.0.remove("ima").filter(|ima| &**ima != "null");
    let ima: Members = serde_json::from_str(ima.as_deref().unwrap_or("{}"))
        .map_err(|e| PolicyError::Schema(format!("`ima`: {e}")))?;
    let ima = with_defaults(
        ima,
        &[("ignored_keyrings", "[]"), ("log_hash_alg", "\"sha1\"")],
    );
    let meta = format!("{{\"version\":{VERSION},\"generator\":{generator}}}");
    policy.0.insert("meta".to_owned(), meta.into());
    policy.0.insert("ima".to_owned(), ima.to_json().into());
    let empty = [
        ("release", "0"),
        ("digests", "{}"),
        ("excludes", "[]"),
        ("keyrings", "{}"),
        ("ima-buf", "{}"),
        ("verification-keys", "\"\""),
    ];
    Ok(with_defaults(policy, &empty).to_json())
}

fn with_defaults(mut members: Members, defaults: &[(&str, &str)]) -> Members {
    for (name, default) in defaults {
        match members.0.get(*name).map(|value| &**value) {
            None | Some("null") => {
                members.0.insert((*name).to_owned(), (*default).into());
            }
            Some(_) => {}
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::RuntimePolicy;

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

    #[test]
    fn an_allowlist_comes_back_from_its_policy() {
        let (a, b) = ("aa".repeat(32), "bb".repeat(20));
        let list = format!("{a}  /a\n{b}  /b\n{a}  /b\n{a}  %keyring:.ima\n");
        let document = PolicyDocument::from_allowlist(&list, "/tmp/", 0).unwrap();
        let again = PolicyDocument::from_allowlist(&document.to_allowlist(), "/tmp/", 0).unwrap();
        assert_eq!(document, again);
    }

    #[test]
    fn a_json_allow_list_is_brought_to_the_present_version() {
        let old = json!({
            "meta": {"version": 5, "generator": "keylime-legacy-format-upgrade"},
            "release": 0,
            "hashes": {"/opt/my file": ["aa".repeat(20)]},
            "keyrings": {}, "ima": {"ignored_keyrings": ["k"]}, "site": {"b": [1, "x y"]},
        });
        let document =
            PolicyDocument::parse_any_version(old.to_string().as_bytes(), 951_782_400).unwrap();
        let text = document.to_json();
        assert_eq!(PolicyDocument::parse(text.as_bytes()).unwrap(), document);
        let new: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            new,
            json!({
                "meta": {
                    "version": 1, "generator": 3, "timestamp": "2000-02-29 00:00:00.000000",
                },
                "release": 0, "digests": {"/opt/my_file": ["aa".repeat(20)]}, "excludes": [],
                "keyrings": {}, "ima-buf": {}, "verification-keys": "",
                "ima": {"ignored_keyrings": ["k"], "log_hash_alg": "sha1", "dm_policy": null},
                "site": {"b": [1, "x y"]},
            })
        );
    }

    #[test]
    fn a_policy_of_version_0_is_told_from_one_of_today() {
        let policy = |version: u64| {
            json!({
                "meta": {"version": version, "generator": 1},
                "digests": {"/a": ["aa".repeat(20)]}, "excludes": ["/tmp/"],
            })
        };
        let read =
            |policy: Value| PolicyDocument::parse_any_version(policy.to_string().as_bytes(), 0);
        let old = read(policy(0)).unwrap();
        assert_eq!((old.version(), old.generator()), (1, 2));
        assert_eq!(old.excludes().collect::<Vec<_>>(), ["/tmp/"]);
        let error = read(policy(1)).unwrap_err().to_string();
        assert!(error.contains("missing field `release`"), "{error}");
        let error = read(json!({"digests": {}})).unwrap_err().to_string();
        assert!(error.contains("missing field"), "{error}");
    }
}
