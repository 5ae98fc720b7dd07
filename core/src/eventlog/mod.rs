//! TCG boot log (PC Client Platform Firmware Profile): parse, replay, and the events that a
//! verified quote explains.
//!
//! Bytes to `EventLog`, then `EventLog::verify` against a verified quote to `ReplayedLog`: events
//! that may be believed are shown by the latter alone, and only those of PCRs whose replayed value
//! is the quoted one.

/// What an event's data say, and whether its digest vouches for them.
pub mod content;
/// Where a log and a quoted PCR part.
mod diverge;
/// Event types by their TCG names.
mod kind;
/// The log as JSON, as policies for Keylime see it.
mod model;
/// The two binary formats: crypto-agile and SHA-1.
mod parse;
/// Names of PCRs.
mod pcr;
/// What firmware is known to log otherwise than it measures.
mod quirk;
/// Replay of one bank, comparison with a quote, boot aggregates.
mod replay;
/// What a log tells, kept for comparison with that of a later boot.
mod trail;
/// systemd's log of what user space measured.
mod userspace;

pub use content::{Content, Measured};
pub use diverge::{Divergence, Step};
pub use kind::EventType;
pub use parse::{EventLog, EventLogError, LogProblem, MAX_LOG};
pub(crate) use pcr::named_pcr;
pub use pcr::pcr_name;
pub use quirk::Quirk;
pub(crate) use replay::quoted_boot_aggregates;
pub use replay::{BootAggregate, PcrMismatch, ReplayedLog};
pub use trail::{Parting, Trail};
pub use userspace::{
    MAX_USERSPACE_LOG, Measurement, Register, UserspaceLog, UserspaceLogError, UserspaceLogProblem,
};

use crate::tpm::{Digest, HashAlgorithm};

/// Most events and measurements of a boot that are compared with a policy; real boots have some
/// hundred.
pub(crate) const MAX_EVENTS: usize = 16_384;

/// One event. Borrows the log.
#[derive(Clone, Copy, Debug)]
pub struct Event<'l> {
    /// 0-based index in the log; the header, if there is one, is event 0.
    pub index: usize,
    /// The PCR that was extended; firmware writes other numbers into some EV_NO_ACTION events.
    pub pcr: u32,
    /// What kind of event.
    pub kind: EventType,
    /// One digest per bank.
    pub digests: EventDigests<'l>,
    /// What the firmware says was measured. Often not what the digest is made of.
    pub data: &'l [u8],
}

/// The digests of one event.
#[derive(Clone, Copy, Debug)]
pub struct EventDigests<'l> {
    /// TPM_ALG_ID and digest after one another; the bare SHA-1 digest in the old format.
    bytes: &'l [u8],
    /// TPM_ALG_ID and digest size of each bank; `None` in the old format.
    banks: Option<&'l [(u16, usize)]>,
}

impl EventDigests<'_> {
    /// The digest of one bank.
    pub fn get(&self, bank: HashAlgorithm) -> Option<Digest> {
        let (_, digest) = self.raw().find(|(id, _)| *id == bank.id())?;
        Digest::from_slice(digest)
    }

    /// Bank and digest, in the log's order; banks of unknown algorithms are left out.
    pub fn iter(&self) -> impl Iterator<Item = (HashAlgorithm, Digest)> {
        self.raw().filter_map(|(id, digest)| {
            Some((HashAlgorithm::from_id(id)?, Digest::from_slice(digest)?))
        })
    }

    /// TPM_ALG_ID and digest, in the log's order.
    fn raw(&self) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (id, size) = match self.banks {
                None => (HashAlgorithm::Sha1.id(), rest.len()),
                Some(banks) => {
                    let (id, after) = rest.split_first_chunk::<2>()?;
                    rest = after;
                    *banks
                        .iter()
                        .find(|(bank, _)| *bank == u16::from_le_bytes(*id))?
                }
            };
            let (digest, after) = rest.split_at_checked(size).filter(|(d, _)| !d.is_empty())?;
            rest = after;
            Some((id, digest))
        })
    }
}
