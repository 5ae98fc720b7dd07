use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde_json::{Value, json};

use crate::tpm::{Bank, Swtpm, TpmClient};

/// The PCR that Linux extends for IMA.
const IMA_PCR: u32 = 10;

/// The PCR that systemd extends with the phases of a boot.
const PHASES_PCR: u32 = 11;

/// EV_NO_ACTION (TCG PC Client Platform Firmware Profile, 10.4.1): logged, never extended.
const EV_NO_ACTION: u32 = 3;

/// A machine with a captured boot: its TPM holds what the logs say, and the logs lie in files as
/// the kernel and systemd would show them.
///
/// The parsers here are the stage's own and know no more than the captured logs need: what is
/// tested must not be its own judge.
#[derive(Debug)]
pub struct Machine {
    directory: PathBuf,
    tpm: Swtpm,
    boots: u32,
}

/// What a boot put into the TPM.
#[derive(Clone, Copy, Debug)]
pub struct BootSummary {
    /// Events of the firmware, the boot loader and the kernel's stub.
    pub boot_events: usize,
    /// Measurements that systemd made in user space.
    pub userspace_events: usize,
    /// Entries of the IMA list.
    pub ima_entries: usize,
}

impl Machine {
    /// A new machine with a new TPM in `directory`, switched on, nothing booted yet.
    pub fn manufacture(directory: &Path) -> Result<Self> {
        let tpm = Swtpm::manufacture(&directory.join("tpm"))?;
        Ok(Self {
            directory: directory.to_owned(),
            tpm,
            boots: 0,
        })
    }

    /// As most tests need it: manufactured and booted.
    pub fn booted(directory: &Path) -> Result<Self> {
        let mut machine = Self::manufacture(directory)?;
        machine.boot()?;
        Ok(machine)
    }

    /// Boots as captured in `fixtures/boots/uki`; a second boot is a reboot.
    pub fn boot(&mut self) -> Result<BootSummary> {
        if self.boots > 0 {
            self.tpm.power_cycle()?;
        }
        self.boots += 1;
        let captured = fixtures().join("boots/uki");
        for (from, to) in [
            ("binary_bios_measurements", self.boot_log()),
            ("tpm2-measure.log", self.userspace_log()),
            ("ima-ascii_runtime_measurements", self.ima_list()),
        ] {
            // Not fs::copy: the fixtures may be read-only, and the IMA list will grow.
            fs::write(&to, read(&captured.join(from))?)?;
        }

        let tpm = self.tpm.client();
        let boot_events = replay_boot_log(&read(&self.boot_log())?, &tpm)?;
        let userspace_events = replay_userspace_log(&read_text(&self.userspace_log())?, &tpm)?;
        let ima_entries = replay_ima_lists(&captured, &tpm)?;
        Ok(BootSummary {
            boot_events,
            userspace_events,
            ima_entries,
        })
    }

    /// The machine's TPM.
    pub fn tpm(&self) -> &Swtpm {
        &self.tpm
    }

    /// The machine's TPM, to be switched off or held.
    pub fn tpm_mut(&mut self) -> &mut Swtpm {
        &mut self.tpm
    }

    /// Where its logs are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The kernel's `binary_bios_measurements`.
    pub fn boot_log(&self) -> PathBuf {
        self.directory.join("binary_bios_measurements")
    }

    /// systemd's `tpm2-measure.log`.
    pub fn userspace_log(&self) -> PathBuf {
        self.directory.join("tpm2-measure.log")
    }

    /// The kernel's `ascii_runtime_measurements`.
    pub fn ima_list(&self) -> PathBuf {
        self.directory.join("ascii_runtime_measurements")
    }

    /// Does what the kernel does when a program is executed for the first time: an `ima-ng` entry
    /// in the list, then its template hash into PCR 10 of every bank. Returns the file's SHA-256
    /// in hexadecimal.
    pub fn run_program(&self, path: &str, content: &[u8]) -> Result<String> {
        let entry = Entry::new(path, content)?;
        let mut list = File::options().append(true).open(self.ima_list())?;
        list.write_all(entry.line(path).as_bytes())?;
        self.measure(&entry)?;
        Ok(entry.sha256)
    }

    /// As [`Machine::run_program`] on a machine whose intruder keeps the entry out of the list: he
    /// cannot keep it out of the TPM.
    pub fn run_program_unseen(&self, path: &str, content: &[u8]) -> Result<()> {
        self.measure(&Entry::new(path, content)?)
    }

    /// Does what systemd-pcrextend does when a phase of the boot is reached: PCR 11 of every bank,
    /// then a record in its log, which is locked meanwhile.
    pub fn reach_phase(&self, phase: &str) -> Result<()> {
        let mut log = File::options().append(true).open(self.userspace_log())?;
        log.lock()?;
        let digests = Bank::ALL.map(|bank| (bank, hash(bank, phase.as_bytes())));
        self.tpm.client().extend(PHASES_PCR, &digests)?;
        let digests = digests
            .map(|(bank, digest)| json!({"hashAlg": bank.name(), "digest": hex::encode(digest)}));
        let record = json!({
            "pcr": PHASES_PCR, "digests": digests, "content_type": "systemd",
            "content": {"string": phase, "eventType": "phase"},
        });
        log.write_all(format!("\u{1e}{record}\n").as_bytes())?;
        Ok(())
    }

    fn measure(&self, entry: &Entry) -> Result<()> {
        let hashes = Bank::ALL.map(|bank| (bank, hash(bank, &entry.template)));
        self.tpm.client().extend(IMA_PCR, &hashes)
    }

    /// A runtime policy (Keylime's JSON, version 1) that allows all that is in the list now.
    pub fn runtime_policy(&self) -> Result<Value> {
        let list = read_text(&self.ima_list())?;
        let mut digests = BTreeMap::<&str, Vec<&str>>::new();
        for line in list.lines() {
            let entry = ImaLine::parse(line)?;
            if entry.is_violation() {
                continue;
            }
            let known = digests.entry(entry.path).or_default();
            if !known.contains(&entry.digest) {
                known.push(entry.digest);
            }
        }
        Ok(json!({
            "meta": {"version": 1, "generator": 3, "timestamp": "2026-11-01 00:00:00.000000"},
            "release": 0,
            "digests": digests,
            "excludes": [],
            "keyrings": {},
            "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null},
            "ima-buf": {},
            "verification-keys": "",
        }))
    }

    /// [`Machine::runtime_policy`] in a file.
    pub fn write_runtime_policy(&self) -> Result<PathBuf> {
        let path = self.directory.join("runtime-policy.json");
        fs::write(&path, serde_json::to_vec(&self.runtime_policy()?)?)?;
        Ok(path)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    Ok(String::from_utf8(read(path)?)?)
}

/// The captured logs and messages that tests share.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// One line of an ASCII list whose template begins with digest and path.
#[derive(Debug)]
struct ImaLine<'a> {
    template_hash: &'a str,
    digest: &'a str,
    path: &'a str,
}

impl<'a> ImaLine<'a> {
    fn parse(line: &'a str) -> Result<Self> {
        let mut words = line.split(' ').skip(1);
        let (Some(template_hash), Some(_), Some(digest), Some(path)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            bail!("not a line of an IMA list: {line:?}");
        };
        let digest = digest.split_once(':').map_or(digest, |(_, digest)| digest);
        Ok(Self {
            template_hash,
            digest,
            path,
        })
    }

    /// Violations are logged with a hash of zeros.
    fn is_violation(&self) -> bool {
        self.template_hash.bytes().all(|byte| byte == b'0')
    }

    /// What goes into the PCR.
    fn extended(&self, bank: Bank) -> Result<Vec<u8>> {
        if self.is_violation() {
            Ok(vec![0xff; bank.size()])
        } else {
            Ok(hex::decode(self.template_hash)?)
        }
    }
}

/// A measurement to come, with the template `ima-ng`.
struct Entry {
    sha256: String,
    template: Vec<u8>,
}

impl Entry {
    fn new(path: &str, content: &[u8]) -> Result<Self> {
        let sha256 = hex::encode(hash(Bank::Sha256, content));
        let template = ima_ng_template(&sha256, path)?;
        Ok(Self { sha256, template })
    }

    fn line(&self, path: &str) -> String {
        let hash = hex::encode(hash(Bank::Sha1, &self.template));
        format!("{IMA_PCR} {hash} ima-ng sha256:{} {path}\n", self.sha256)
    }
}

/// Template data of `ima-ng`: d-ng and n-ng, each with its length before it.
fn ima_ng_template(sha256: &str, path: &str) -> Result<Vec<u8>> {
    let mut digest_field = b"sha256:\0".to_vec();
    digest_field.extend_from_slice(&hex::decode(sha256)?);
    let mut name_field = path.as_bytes().to_vec();
    name_field.push(0);
    let mut template = Vec::new();
    for field in [digest_field, name_field] {
        template.extend_from_slice(&u32::try_from(field.len())?.to_le_bytes());
        template.extend_from_slice(&field);
    }
    Ok(template)
}

fn hash(bank: Bank, data: &[u8]) -> Vec<u8> {
    let algorithm = match bank {
        Bank::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
        Bank::Sha256 => &SHA256,
    };
    digest::digest(algorithm, data).as_ref().to_vec()
}

/// The kernel keeps one list per bank since 6.10: their template hashes are what it extended.
fn replay_ima_lists(captured: &Path, tpm: &TpmClient) -> Result<usize> {
    let sha1 = read_text(&captured.join("ima-ascii_runtime_measurements"))?;
    let sha256 = read_text(&captured.join("ima-ascii_runtime_measurements_sha256"))?;
    let mut entries = 0;
    for (sha1, sha256) in sha1.lines().zip(sha256.lines()) {
        let digests = [
            (Bank::Sha1, ImaLine::parse(sha1)?.extended(Bank::Sha1)?),
            (
                Bank::Sha256,
                ImaLine::parse(sha256)?.extended(Bank::Sha256)?,
            ),
        ];
        tpm.extend(IMA_PCR, &digests)?;
        entries += 1;
    }
    Ok(entries)
}

/// systemd's log: JSON-SEQ (RFC 7464), one record per measurement.
fn replay_userspace_log(log: &str, tpm: &TpmClient) -> Result<usize> {
    let mut events = 0;
    for record in log.split('\x1e').filter(|record| !record.trim().is_empty()) {
        let record: Value = serde_json::from_str(record)?;
        let pcr = u32::try_from(record["pcr"].as_u64().context("a record without pcr")?)?;
        let mut digests = Vec::new();
        for digest in record["digests"]
            .as_array()
            .context("a record without digests")?
        {
            let bank = Bank::ALL
                .into_iter()
                .find(|bank| digest["hashAlg"] == bank.name());
            let value = digest["digest"]
                .as_str()
                .context("a digest without a value")?;
            if let Some(bank) = bank {
                digests.push((bank, hex::decode(value)?));
            }
        }
        tpm.extend(pcr, &digests)?;
        events += 1;
    }
    Ok(events)
}

/// A crypto-agile log (TCG PC Client Platform Firmware Profile, 10.2).
fn replay_boot_log(log: &[u8], tpm: &TpmClient) -> Result<usize> {
    let mut log = Cursor(log);
    // TCG_PCClientPCREvent with the TCG_EfiSpecIDEvent: PCR, type, SHA-1 of zeros, size, data.
    log.take(4 + 4 + 20)?;
    let size = log.u32()?;
    log.take(usize::try_from(size)?)?;
    let mut events = 0;
    while !log.0.is_empty() {
        let (pcr, kind, count) = (log.u32()?, log.u32()?, log.u32()?);
        let mut digests = Vec::new();
        for _ in 0..count {
            let id = u16::from_le_bytes(log.take(2)?.try_into()?);
            let bank = Bank::from_id(id).context("a bank that no captured boot has")?;
            digests.push((bank, log.take(bank.size())?.to_vec()));
        }
        let size = log.u32()?;
        log.take(usize::try_from(size)?)?;
        if kind != EV_NO_ACTION {
            tpm.extend(pcr, &digests)?;
        }
        events += 1;
    }
    Ok(events)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        ensure!(length <= self.0.len(), "the boot log ends within an event");
        let (head, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(head)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_hash_is_the_kernels() {
        // An entry of the captured list, with the `sig` field that `ima-sig` adds: empty here.
        let captured =
            fs::read_to_string(fixtures().join("boots/uki/ima-ascii_runtime_measurements"))
                .unwrap();
        let entry = ImaLine::parse(captured.lines().nth(1).unwrap()).unwrap();
        let mut template = ima_ng_template(entry.digest, entry.path).unwrap();
        template.extend_from_slice(&[0; 4]);
        assert_eq!(
            hex::encode(hash(Bank::Sha1, &template)),
            entry.template_hash
        );
    }
}
