//! IMA lists of any length, the PCR 10 that belongs to each of their entries, and the runtime
//! policy that allows them.

use serde_json::{Value, json};
use troth_core::tpm::{Digest, HashAlgorithm};

/// A list of `ima-ng` entries that grows as it is read: entry `n` is file `n` modulo the number of
/// files.
#[derive(Debug)]
pub struct ImaList {
    files: usize,
    /// Measured before all others, in no policy.
    unlisted: bool,
    text: String,
    /// Where in `text` each entry ends.
    ends: Vec<usize>,
    /// PCR 10 (bank SHA-256) after each entry.
    pcr: Vec<Digest>,
}

impl ImaList {
    /// A list over `files` files.
    pub fn new(files: usize) -> Self {
        Self {
            files: files.max(1),
            unlisted: false,
            text: String::new(),
            ends: Vec::new(),
            pcr: Vec::new(),
        }
    }

    /// The same of a host on which another program ran first, one that no policy knows.
    pub fn tampered(files: usize) -> Self {
        Self {
            unlisted: true,
            ..Self::new(files)
        }
    }

    /// Entries `from` up to `to`, one per line.
    pub fn entries(&mut self, from: usize, to: usize) -> &str {
        self.grow(to);
        &self.text[self.end(from)..self.end(to)]
    }

    /// PCR 10 when `count` entries are measured.
    pub fn pcr(&mut self, count: usize) -> Digest {
        self.grow(count);
        match count.checked_sub(1) {
            None => Digest::zero(HashAlgorithm::Sha256),
            Some(last) => self.pcr[last],
        }
    }

    fn end(&self, count: usize) -> usize {
        count.checked_sub(1).map_or(0, |last| self.ends[last])
    }

    fn grow(&mut self, count: usize) {
        while self.ends.len() < count {
            let entry = self.ends.len();
            let (path, digest) = if self.unlisted && entry == 0 {
                let path = "/usr/local/bin/unlisted".to_owned();
                let digest = HashAlgorithm::Sha256.digest(&[path.as_bytes()]);
                (path, digest)
            } else {
                file(entry % self.files)
            };
            let template = template_data(&path, &digest);
            let sha1 = HashAlgorithm::Sha1.digest(&[&template]);
            let line = format!("10 {sha1} ima-ng sha256:{digest} {path}\n");
            self.text.push_str(&line);
            self.ends.push(self.text.len());
            let hash = HashAlgorithm::Sha256.digest(&[&template]);
            let before = self.pcr.last().copied();
            let before = before.unwrap_or_else(|| Digest::zero(HashAlgorithm::Sha256));
            let after = before.extend(HashAlgorithm::Sha256, hash.as_bytes());
            self.pcr.push(after);
        }
    }
}

/// A runtime policy that allows the first `files` files, with two excludes.
pub fn policy(files: usize) -> Value {
    let digests: serde_json::Map<_, _> = (0..files)
        .map(file)
        .map(|(path, digest)| (path, json!([digest.to_string()])))
        .collect();
    json!({
        "meta": {"version": 1, "generator": 3}, "release": 0, "digests": digests,
        "excludes": ["/tmp/.*", "/var/log/.*"], "keyrings": {},
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null},
        "ima-buf": {}, "verification-keys": "",
    })
}

/// Template data (`ima-ng`: d-ng and n-ng, each with its little-endian length) of file `n`.
pub fn template(n: usize) -> Vec<u8> {
    let (path, digest) = file(n);
    template_data(&path, &digest)
}

/// File number `n`: its path and digest.
fn file(n: usize) -> (String, Digest) {
    let path = format!(
        "/usr/lib/x86_64-linux-gnu/package-{}/component-{n}.so",
        n % 997
    );
    let digest = HashAlgorithm::Sha256.digest(&[path.as_bytes()]);
    (path, digest)
}

fn template_data(path: &str, digest: &Digest) -> Vec<u8> {
    let mut data = vec![40, 0, 0, 0];
    data.extend_from_slice(b"sha256:\0");
    data.extend_from_slice(digest.as_bytes());
    let length = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(path.as_bytes());
    data.push(0);
    data
}
