use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use toml::{Table, Value};

/// The options that are set, by their names as in `ca.cert_organization`. Of their values, which
/// may be secrets, only digests are kept.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Options(BTreeMap<String, Vec<u8>>);

impl Options {
    pub(super) fn of(table: &Table) -> Self {
        let mut all = Self::default();
        all.collect("", table);
        all
    }

    fn collect(&mut self, prefix: &str, table: &Table) {
        for (key, value) in table {
            let name = format!("{prefix}{key}");
            match value {
                Value::Table(inner) => self.collect(&format!("{name}."), inner),
                value => {
                    let value = zeroize::Zeroizing::new(value.to_string());
                    let digest = digest(&SHA256, value.as_bytes());
                    self.0.insert(name, digest.as_ref().to_vec());
                }
            }
        }
    }

    /// Names of the options that are set otherwise than in `before`, or in one of the two only.
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        let names = self.0.keys().chain(before.0.keys());
        let mut changed: Vec<_> = names
            .filter(|name| self.0.get(*name) != before.0.get(*name))
            .cloned()
            .collect();
        changed.sort();
        changed.dedup();
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_changed_and_removed_is_named() {
        let options = |text: &str| Options::of(&text.parse().unwrap());
        let before = options("port = 1\nlog = 'info'\nca.name = 'a'\nca.unit = 'b'\nold = 1");
        let after = options("port = 1\nlog = 'debug'\nca.name = 'c'\nca.unit = 'b'\nnew = [1]");
        assert_eq!(
            after.changed_since(&before),
            ["ca.name", "log", "new", "old"]
        );
        assert_eq!(after.changed_since(&after), [""; 0]);
    }

    #[test]
    fn values_are_not_shown() {
        let options = Options::of(&"password = 'hunter2'".parse().unwrap());
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
