use std::collections::BTreeMap;
use std::fmt::Write;

use super::quoted;
use crate::policy::PolicyError;
use crate::policy::digests::ArenaFull;
use crate::policy::schema::TableBuilder;
use crate::tpm::Digest;

/// Names (paths, keyrings, buffers) with their allowed digests, both sorted.
///
/// 300,000 names with a digest of SHA-256 each take some 60 MiB.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DigestNames(BTreeMap<Box<str>, Vec<Digest>>);

impl DigestNames {
    /// Number of names.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// No names?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The digests allowed for `name`, ascending; none if it is not listed.
    pub fn get(&self, name: &str) -> &[Digest] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Names, ascending, with their digests.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &[Digest])> {
        self.0
            .iter()
            .map(|(name, digests)| (&**name, digests.as_slice()))
    }

    pub(super) fn add(&mut self, name: &str, digest: Digest) -> Result<bool, PolicyError> {
        let bytes = digest.as_bytes().len();
        if !(20..=64).contains(&bytes) {
            let name = name.to_owned();
            return Err(PolicyError::Digest { name, bytes });
        }
        let digests = match self.0.get_mut(name) {
            Some(digests) => digests,
            None => self.0.entry(name.into()).or_default(),
        };
        Ok(insert(digests, digest))
    }

    /// Adds what `other` allows.
    pub(super) fn merge(&mut self, other: Self) {
        for (name, digests) in other.0 {
            let mine = self.0.entry(name).or_default();
            if mine.is_empty() {
                *mine = digests;
            } else if *mine != digests {
                mine.extend(digests);
                sort(mine);
            }
        }
    }

    pub(super) fn write(&self, out: &mut String) {
        out.push('{');
        for (index, (name, digests)) in self.iter().enumerate() {
            out.push_str(if index == 0 { "\n" } else { ",\n" });
            out.push_str(&quoted(name));
            out.push_str(": [");
            for (index, digest) in digests.iter().enumerate() {
                let separator = if index == 0 { "" } else { ", " };
                // Writing to a string does not fail.
                let _ = write!(out, "{separator}\"{digest}\"");
            }
            out.push(']');
        }
        out.push_str(if self.is_empty() { "}" } else { "\n}" });
    }
}

/// Puts `digest` at its place; whether it was new.
fn insert(digests: &mut Vec<Digest>, digest: Digest) -> bool {
    let order = |other: &Digest| other.as_bytes().cmp(digest.as_bytes());
    match digests.binary_search_by(order) {
        Ok(_) => false,
        Err(at) => {
            reserve(digests);
            digests.insert(at, digest);
            true
        }
    }
}

/// Room for one more. Nearly all names have one digest, and growth by doubling begins with four.
fn reserve(digests: &mut Vec<Digest>) {
    if digests.is_empty() {
        digests.reserve_exact(1);
    }
}

fn sort(digests: &mut Vec<Digest>) {
    digests.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    digests.dedup();
}

/// Collects names as they are read.
#[derive(Debug, Default)]
pub(in crate::policy) struct NamesBuilder(Vec<(Box<str>, Vec<Digest>)>);

impl TableBuilder for NamesBuilder {
    type Table = DigestNames;

    fn name(&mut self, name: &str) -> Result<(), ArenaFull> {
        self.0.push((name.into(), Vec::new()));
        Ok(())
    }

    fn digest(&mut self, digest: &[u8]) {
        if let (Some((_, digests)), Some(digest)) = (self.0.last_mut(), Digest::from_slice(digest))
        {
            reserve(digests);
            digests.push(digest);
        }
    }

    fn build(mut self) -> Result<DigestNames, String> {
        self.0.sort_by(|(a, _), (b, _)| a.cmp(b));
        for pair in self.0.windows(2) {
            if let [(name, _), (next, _)] = pair
                && name == next
            {
                return Err(name.to_string());
            }
        }
        for (_, digests) in &mut self.0 {
            sort(digests);
        }
        Ok(DigestNames(self.0.into_iter().collect()))
    }
}
