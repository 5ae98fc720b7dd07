//! The kernel's IMA measurement list: its lines, and their replay against the quoted PCR 10.

/// The kernel's binary list, written as the ASCII one.
mod binary;
/// Devices of the device mapper, as the entries before left them.
mod devices;
/// Events of the device mapper.
mod dm;
/// One entry of the list, and the template data the kernel hashed for it.
mod entry;
/// Keys that IMA signatures are checked with.
mod key;
/// Keys of operators, and keys learned from lists.
mod keyring;
/// File names that are not UTF-8.
mod raw;
/// The lines of one entry.
mod record;
/// Incremental replay: from lines to a list that the quote vouches for.
mod replay;
/// Signatures of files, as they were measured.
mod signature;
/// Text split at characters.
mod split;
/// Templates and their fields.
mod template;
/// Signatures that were found good before.
mod verified;

pub use binary::{ListError, list_text};
pub(crate) use devices::DeviceState;
pub use devices::DeviceStates;
pub use dm::{DmDevice, DmEvent, DmNames, DmTarget};
pub use entry::{Entry, EntryError};
pub use key::{ImaKey, KeyFault, MeasuredKey};
pub(crate) use keyring::MAX_KEYS;
pub use keyring::{Keyring, KeyringError, LearnedKeys};
pub use raw::character as character_for_byte;
pub use replay::{
    Anomalies, Anomaly, AnomalyKind, Mismatch, Replay, ReplayedList, log_hash, replay,
    unverified_entries, unverified_replay,
};
pub use signature::{ImaSignature, SignatureFault, SignatureScope};
pub use template::Template;
pub(crate) use verified::VerifiedSignatures;

use serde::{Deserialize, Deserializer, Serialize};

use crate::tpm::{Digest, HashAlgorithm};

/// The PCR that IMA extends.
pub const IMA_PCR: u8 = 10;
/// Name of the entry that ties the list to the boot: a hash over the boot PCRs.
pub const BOOT_AGGREGATE: &str = "boot_aggregate";
/// Longest line of a list, in bytes; the longest real ones carry a kexec or device-mapper buffer.
pub const MAX_LINE: usize = 1 << 20;
/// Most entries in one answer.
pub const MAX_ENTRIES: u64 = 4_000_000;

/// Where the check of a node's list resumes: entries matched so far, the PCR value after them, and
/// what was learned from them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ImaPosition {
    /// Entries that the last matching quote covered; the next request starts here.
    pub next_entry: u64,
    /// PCR 10 after them; `None`: zero of the bank's size.
    pub pcr: Option<Digest>,
    /// How many entries the last answer had beyond the match (quote progress rule).
    pub lag: u64,
    /// Is `boot_aggregate` all that the entries before are of? Never, where it was not recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_files: bool,
    /// Keys learned from the entries before.
    #[serde(default, skip_serializing_if = "LearnedKeys::is_empty")]
    pub keys: LearnedKeys,
    /// Devices of the device mapper; `None`: no policy was about them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<DeviceStates>,
}

impl ImaPosition {
    /// A position as it was stored. The start of the list, where keys were stored without what a
    /// policy allows them by: they are learned anew.
    ///
    /// # Errors
    /// As those of [`Deserialize`].
    pub(crate) fn stored<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let position = Self::deserialize(deserializer)?;
        Ok(match position.keys.are_whole() {
            true => position,
            false => Self::default(),
        })
    }
}

/// The hash algorithm whose digests have `bytes` bytes.
pub(crate) fn hash_of_size(bytes: usize) -> Option<HashAlgorithm> {
    match bytes {
        20 => Some(HashAlgorithm::Sha1),
        32 => Some(HashAlgorithm::Sha256),
        48 => Some(HashAlgorithm::Sha384),
        64 => Some(HashAlgorithm::Sha512),
        _ => None,
    }
}
