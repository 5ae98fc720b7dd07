use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::eventlog::content::Guid;
use crate::policy::PolicyError;
use crate::policy::pattern::{Pattern, PatternBudget};
use crate::tpm::{Digest, HashAlgorithm};

/// PCRs that the engine looks at: 0 to 9 and 14.
pub(crate) const PCRS: u32 = 0x43ff;
/// What GRUB puts before a kernel command line that it measured.
pub(crate) const KERNEL_CMDLINE: &str = "kernel_cmdline: ";

/// Keylime's reference state of a measured boot, for its engine `example`: one GRUB boot through
/// shim, with alternatives for firmware and for shim, GRUB, kernel, initrd and command line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refstate {
    pub(crate) secure_boot: bool,
    pub(crate) firmware: Vec<Firmware>,
    pub(crate) pk: Vec<Key>,
    pub(crate) kek: Vec<Key>,
    pub(crate) db: Vec<Key>,
    pub(crate) dbx: Vec<Key>,
    pub(crate) vendor_db: Vec<Key>,
    pub(crate) mok: Vec<Digests>,
    pub(crate) mokx: Vec<Digests>,
    pub(crate) kernels: Vec<Kernel>,
}

/// One alternative of `scrtm_and_bios`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Firmware {
    pub(crate) scrtm: Digests,
    pub(crate) blobs: Vec<Digests>,
}

/// One alternative of `kernels`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Kernel {
    pub(crate) shim: Digest,
    pub(crate) grub: Digest,
    /// The image's Authenticode digest with Secure Boot, else the digest of the file.
    pub(crate) kernel: Digest,
    pub(crate) initrd: Digest,
    /// With [`KERNEL_CMDLINE`] before it.
    pub(crate) cmdline: Pattern,
}

/// A key of a Secure Boot variable.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key {
    pub(crate) owner: Guid,
    pub(crate) data: Vec<u8>,
}

impl Key {
    /// The shortest text that tells which it is.
    pub(crate) fn describe(&self) -> String {
        // A digest stands for itself.
        let digest = match Digest::from_slice(&self.data) {
            Some(digest) if self.data.len() == 32 => digest,
            _ => HashAlgorithm::Sha256.digest(&[&self.data]),
        };
        format!("owner {}, SHA-256 {digest}", self.owner)
    }
}

/// One measurement in some banks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Digests(Vec<(HashAlgorithm, Digest)>);

impl Digests {
    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(HashAlgorithm, Digest)> {
        self.0.iter()
    }

    /// The digest of one bank.
    pub(crate) fn get(&self, bank: HashAlgorithm) -> Option<&Digest> {
        let mut digests = self.0.iter();
        digests
            .find(|(algorithm, _)| *algorithm == bank)
            .map(|(_, digest)| digest)
    }
}

/// The members as Keylime names them. Others are ignored, as Keylime does.
#[derive(Deserialize)]
struct Document {
    #[serde(default = "yes")]
    has_secureboot: Value,
    scrtm_and_bios: Vec<FirmwareDocument>,
    pk: Vec<KeyDocument>,
    kek: Vec<KeyDocument>,
    db: Vec<KeyDocument>,
    dbx: Vec<KeyDocument>,
    #[serde(default)]
    vendor_db: Vec<KeyDocument>,
    mokdig: Vec<DigestsDocument>,
    mokxdig: Vec<DigestsDocument>,
    kernels: Vec<KernelDocument>,
}

type DigestsDocument = BTreeMap<String, String>;

#[derive(Deserialize)]
struct FirmwareDocument {
    scrtm: DigestsDocument,
    platform_firmware: Vec<DigestsDocument>,
}

#[derive(Deserialize)]
struct KeyDocument {
    #[serde(rename = "SignatureOwner")]
    owner: String,
    #[serde(rename = "SignatureData")]
    data: String,
}

#[derive(Deserialize)]
struct KernelDocument {
    shim_authcode_sha256: String,
    grub_authcode_sha256: String,
    kernel_authcode_sha256: Option<String>,
    vmlinuz_plain_sha256: Option<String>,
    initrd_plain_sha256: String,
    kernel_cmdline: String,
}

impl Refstate {
    /// From its JSON text.
    ///
    /// # Errors
    /// A member that is missing or not what it has to be, by its name. Values that no log could
    /// show (a digest of another size, hex in capitals) are errors too, where Keylime takes them
    /// and never finds them.
    pub fn parse(json: &str) -> Result<Self, PolicyError> {
        let document: Document =
            serde_json::from_str(json).map_err(|e| PolicyError::from_json(&e))?;
        let secure_boot = truth(&document.has_secureboot);
        let mut budget = PatternBudget::default();
        let kernels = document.kernels.into_iter().enumerate();
        let firmware = document.scrtm_and_bios.into_iter().enumerate();
        Ok(Self {
            secure_boot,
            firmware: firmware
                .map(|(index, one)| Firmware::new(index, one))
                .collect::<Result<_, _>>()?,
            pk: keys("pk", document.pk)?,
            kek: keys("kek", document.kek)?,
            db: keys("db", document.db)?,
            dbx: keys("dbx", document.dbx)?,
            vendor_db: keys("vendor_db", document.vendor_db)?,
            mok: several("mokdig", document.mokdig)?,
            mokx: several("mokxdig", document.mokxdig)?,
            kernels: kernels
                .map(|(index, one)| Kernel::new(index, one, secure_boot, &mut budget))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Firmware {
    fn new(index: usize, document: FirmwareDocument) -> Result<Self, PolicyError> {
        let place = format!("scrtm_and_bios[{index}]");
        Ok(Self {
            scrtm: digests(&format!("{place}.scrtm"), document.scrtm)?,
            blobs: several(
                &format!("{place}.platform_firmware"),
                document.platform_firmware,
            )?,
        })
    }
}

impl Kernel {
    fn new(
        index: usize,
        document: KernelDocument,
        secure_boot: bool,
        budget: &mut PatternBudget,
    ) -> Result<Self, PolicyError> {
        let place = |member: &str| format!("kernels[{index}].{member}");
        let sha256 = |member: &str, text: &str| digest(&place(member), HashAlgorithm::Sha256, text);
        let (member, kernel) = match secure_boot {
            true => ("kernel_authcode_sha256", document.kernel_authcode_sha256),
            false => ("vmlinuz_plain_sha256", document.vmlinuz_plain_sha256),
        };
        let kernel = kernel.ok_or_else(|| wrong(&place(member), "is missing"))?;
        let cmdline = format!("{KERNEL_CMDLINE}{}", document.kernel_cmdline);
        Ok(Self {
            shim: sha256("shim_authcode_sha256", &document.shim_authcode_sha256)?,
            grub: sha256("grub_authcode_sha256", &document.grub_authcode_sha256)?,
            kernel: sha256(member, &kernel)?,
            initrd: sha256("initrd_plain_sha256", &document.initrd_plain_sha256)?,
            cmdline: Pattern::compile(&cmdline, budget)
                .map_err(|reason| wrong(&place("kernel_cmdline"), &reason))?,
        })
    }
}

fn yes() -> Value {
    Value::Bool(true)
}

/// What Python takes for true.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

fn keys(member: &str, documents: Vec<KeyDocument>) -> Result<Vec<Key>, PolicyError> {
    let key = |(index, document): (usize, KeyDocument)| {
        let place = |name: &str| format!("{member}[{index}].{name}");
        // As logs are shown: a text in capitals is none that Keylime finds.
        let owner = Guid::parse(&document.owner).filter(|guid| guid.to_string() == document.owner);
        let owner = owner
            .ok_or_else(|| wrong(&place("SignatureOwner"), "is no GUID in lower-case letters"))?;
        Ok(Key {
            owner,
            data: bytes(&place("SignatureData"), &document.data)?,
        })
    };
    documents.into_iter().enumerate().map(key).collect()
}

fn several(member: &str, documents: Vec<DigestsDocument>) -> Result<Vec<Digests>, PolicyError> {
    let documents = documents.into_iter().enumerate();
    documents
        .map(|(index, one)| digests(&format!("{member}[{index}]"), one))
        .collect()
}

/// Banks that we do not know are left out: no quote is over them.
fn digests(place: &str, document: DigestsDocument) -> Result<Digests, PolicyError> {
    let mut digests = Vec::new();
    for (name, text) in document {
        match HashAlgorithm::from_name(&name) {
            Some(bank) => digests.push((bank, digest(&format!("{place}.{name}"), bank, &text)?)),
            None => drop(bytes(&format!("{place}.{name}"), &text)?),
        }
    }
    Ok(Digests(digests))
}

fn digest(place: &str, bank: HashAlgorithm, text: &str) -> Result<Digest, PolicyError> {
    let bytes = bytes(place, text)?;
    Digest::from_slice(&bytes)
        .filter(|_| bytes.len() == bank.size())
        .ok_or_else(|| {
            wrong(
                place,
                &format!("is no {bank} digest: it has {} bytes", bytes.len()),
            )
        })
}

fn bytes(place: &str, text: &str) -> Result<Vec<u8>, PolicyError> {
    text.strip_prefix("0x")
        .filter(|hex| !hex.is_empty() && !hex.contains(|c: char| c.is_ascii_uppercase()))
        .and_then(|hex| hex::decode(hex).ok())
        .ok_or_else(|| wrong(place, "is not 0x and lower-case hexadecimal bytes"))
}

fn wrong(place: &str, reason: &str) -> PolicyError {
    PolicyError::Schema(format!("refstate: {place} {reason}"))
}
