use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use troth_core::tpm::{Digest, HashAlgorithm, PcrValues};

use super::keys::{Key, Keys};

/// The quoted bank.
const BANK: HashAlgorithm = HashAlgorithm::Sha256;

type Names = BTreeMap<String, BTreeSet<String>>;

/// A host, and what its policy says.
pub(super) struct Host<'k> {
    pub(super) keys: &'k Keys,
    pub(super) random: StdRng,
    list: String,
    pcr: Digest,
    pub(super) digests: Names,
    pub(super) keyrings: Names,
    pub(super) buffers: Names,
    pub(super) excludes: Vec<String>,
    pub(super) ignored_keyrings: Vec<String>,
    /// `*` is not among them, whoever added it.
    pub(super) no_wildcard: bool,
    pub(super) dm_policy: Value,
    /// Text that stands for the whole policy.
    pub(super) other_policy: Option<String>,
    /// Files so far.
    files: u32,
}

impl<'k> Host<'k> {
    pub(super) fn new(keys: &'k Keys, random: StdRng) -> Self {
        let mut host = Self {
            keys,
            random,
            list: String::new(),
            pcr: Digest::zero(BANK),
            digests: Names::new(),
            keyrings: Names::new(),
            buffers: Names::new(),
            excludes: Vec::new(),
            ignored_keyrings: Vec::new(),
            no_wildcard: false,
            dm_policy: Value::Null,
            other_policy: None,
            files: 0,
        };
        // A policy that lists files wants a kernel that measures: one difference on purpose.
        let (path, content) = host.file();
        let digest = host.digest(&content);
        host.allow(&path, &digest);
        host.measure("ima-ng", &digest, &path, None);
        host
    }

    /// A new file: its path and content.
    pub(super) fn file(&mut self) -> (String, Vec<u8>) {
        self.files += 1;
        let path = format!("/usr/bin/program-{}", self.files);
        let content = self.random.random::<[u8; 16]>().to_vec();
        (path, content)
    }

    /// Digest in the algorithm that the kernel measures files with.
    pub(super) fn digest(&self, content: &[u8]) -> String {
        format!("sha256:{}", HashAlgorithm::Sha256.digest(&[content]))
    }

    /// The policy allows the digest (`algorithm:hex`) for the file.
    pub(super) fn allow(&mut self, path: &str, digest: &str) {
        let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
        let listed = self.digests.entry(path.to_owned()).or_default();
        listed.insert(hex.to_ascii_lowercase());
    }

    /// An entry as the kernel makes it, and the extend of PCR 10. `extra` is the last field of
    /// templates that have one.
    pub(super) fn measure(
        &mut self,
        template: &str,
        digest: &str,
        name: &str,
        extra: Option<&[u8]>,
    ) {
        let data = template_data(template, digest, name, extra);
        let hash = HashAlgorithm::Sha1.digest(&[&data]).to_string();
        let line = line("10", &hash, template, digest, name, extra);
        self.append(&line, BANK.digest(&[&data]).as_bytes());
    }

    /// Any line, and what PCR 10 was extended with.
    pub(super) fn append(&mut self, line: &str, extended: &[u8]) {
        self.list.push_str(line);
        self.list.push('\n');
        self.extend(extended);
    }

    /// An extend of PCR 10 that no line tells of.
    pub(super) fn extend(&mut self, digest: &[u8]) {
        self.pcr = self.pcr.extend(BANK, digest);
    }

    /// Somebody edits the list.
    pub(super) fn edit(&mut self, change: impl FnOnce(&mut Vec<String>)) {
        let mut lines = self.list.lines().map(str::to_owned).collect();
        change(&mut lines);
        self.list = lines.join("\n") + "\n";
    }

    pub(super) fn list(&self) -> &str {
        &self.list
    }

    /// PCRs 0 to 9, as of a host that measured nothing at boot, and 10.
    pub(super) fn pcrs(&self) -> PcrValues {
        let mut pcrs = PcrValues::new(BANK);
        for pcr in 0..10 {
            pcrs.set(pcr, Digest::zero(BANK));
        }
        pcrs.set(10, self.pcr);
        pcrs
    }

    /// What the kernel's `boot_aggregate` is after that boot, over so many PCRs.
    pub(super) fn boot_aggregate(&self, pcrs: usize) -> String {
        let zeros = vec![0; BANK.size() * pcrs];
        format!("sha256:{}", BANK.digest(&[&zeros]))
    }

    pub(super) fn policy(&self) -> String {
        if let Some(text) = &self.other_policy {
            return text.clone();
        }
        let ignored: Vec<_> = self
            .ignored_keyrings
            .iter()
            .filter(|name| !(self.no_wildcard && *name == "*"))
            .collect();
        let ids: Vec<_> = self.keys.site.iter().map(|key| key.id).collect();
        let public = |key: &Key| BASE64_STANDARD.encode(&key.public);
        let keys: Vec<_> = self.keys.site.iter().map(public).collect();
        let keys = json!({"meta": {"version": 1}, "keyids": ids, "pubkeys": keys});
        json!({
            "meta": {"version": 1, "generator": 3}, "release": 0, "digests": self.digests,
            "excludes": self.excludes, "keyrings": self.keyrings,
            "ima": {
                "ignored_keyrings": ignored, "log_hash_alg": "sha1",
                "dm_policy": self.dm_policy
            },
            "ima-buf": self.buffers, "verification-keys": keys.to_string(),
        })
        .to_string()
    }

    /// All of it for Keylime.
    pub(super) fn question(&self) -> Value {
        let hex = |pcrs| self.boot_aggregate(pcrs).replace("sha256:", "");
        json!({
            "list": self.list, "policy": self.policy(), "pcr": self.pcr.to_string(),
            "bank": "sha256", "aggregates": {"sha256": [hex(8), hex(10)]},
        })
    }
}

/// A line of the list.
pub(super) fn line(
    pcr: &str,
    hash: &str,
    template: &str,
    digest: &str,
    name: &str,
    extra: Option<&[u8]>,
) -> String {
    let mut line = format!("{pcr} {hash} {template} {digest} {name}");
    if let Some(extra) = extra {
        line.push(' ');
        line.push_str(&hex::encode(extra));
    }
    line
}

/// What the kernel hashes: fields with their lengths, but for the template `ima`.
pub(super) fn template_data(
    template: &str,
    digest: &str,
    name: &str,
    extra: Option<&[u8]>,
) -> Vec<u8> {
    let (algorithm, hex) = digest.split_once(':').unwrap_or(("", digest));
    let digest = hex::decode(hex).unwrap();
    if template == "ima" {
        let mut data = digest.clone();
        data.extend_from_slice(name.as_bytes());
        data.resize(digest.len() + 256, 0);
        return data;
    }
    let mut data = Vec::new();
    let mut field = |parts: &[&[u8]]| {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        data.extend_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        data.extend(parts.concat());
    };
    field(&[algorithm.as_bytes(), b":\0", &digest]);
    field(&[name.as_bytes(), b"\0"]);
    if let Some(extra) = extra {
        field(&[extra]);
    }
    data
}
