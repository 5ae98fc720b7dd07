use super::{Event, EventLog, EventType};
use crate::tpm::{Digest, HashAlgorithm, PcrMask, PcrValues, VerifiedQuote};

/// PCRs that a boot log can speak of. 10 belongs to IMA, 16 and 23 to applications, 17 to 22 to
/// dynamic launch.
const LOG_PCRS: [u8; 15] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15];
/// What systemd extends some PCRs with, once, when the operating system takes over
/// (systemd-pcrosseparator.service); the firmware's log does not tell of it.
const OS_SEPARATOR: &[u8] = b"os-separator";
/// The PCRs that it extends so: 0 to 7, 9, 12 to 14.
const OS_SEPARATED: u32 = 0x72ff;
/// Number of PCRs that start at zero and are never reset (PC Client profile).
const STATIC_PCRS: u8 = 16;

/// A log compared with a verified quote. Made by [`EventLog::verify`] alone.
#[derive(Debug)]
pub struct ReplayedLog<'q> {
    /// Quoted PCRs whose replayed value is the quoted one, or becomes it by systemd's separator.
    pub explained: PcrMask,
    log: &'q EventLog<'q>,
    mismatches: Vec<PcrMismatch>,
    replayed: PcrValues,
    quote: &'q VerifiedQuote,
}

/// A quoted PCR that the log does not explain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PcrMismatch {
    /// The PCR.
    pub pcr: u8,
    /// What the log replays to.
    pub replayed: Digest,
    /// What the TPM says.
    pub quoted: Digest,
}

/// What the kernel's `boot_aggregate` may be after a boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BootAggregate {
    /// Bank of the PCRs, and hash over them.
    pub bank: HashAlgorithm,
    /// PCRs 0 to 7 (8) or 0 to 9 (10, since Linux 5.8 for banks other than SHA-1).
    pub pcrs: u8,
    /// The hash.
    pub digest: Digest,
}

impl<'l> EventLog<'l> {
    /// What PCRs 0 to 15 of `bank` hold if the log is complete and true. PCRs without events are
    /// zero; PCR 0 starts with the locality of TPM2_Startup where the log tells one. An event
    /// without a digest of this bank extends nothing.
    pub fn replay(&self, bank: HashAlgorithm) -> PcrValues {
        let mut values: [Digest; STATIC_PCRS as usize] =
            std::array::from_fn(|_| Digest::zero(bank));
        if let Some(locality) = self.startup_locality() {
            let mut initial = [0; 64];
            initial[bank.size() - 1] = locality;
            if let Some(initial) = Digest::from_slice(&initial[..bank.size()]) {
                values[0] = initial;
            }
        }
        for event in self.unverified_events() {
            if event.kind == EventType::EV_NO_ACTION {
                continue;
            }
            let value = usize::try_from(event.pcr)
                .ok()
                .and_then(|pcr| values.get_mut(pcr));
            if let (Some(value), Some(digest)) = (value, event.digests.get(bank)) {
                *value = value.extend(bank, digest.as_bytes());
            }
        }
        let mut pcrs = PcrValues::new(bank);
        for (pcr, value) in (0..STATIC_PCRS).zip(values) {
            pcrs.set(pcr, value);
        }
        pcrs
    }

    /// Compares the log with the quoted PCRs 0 to 9 and 11 to 15, in the quote's bank.
    ///
    /// On hosts booted through systemd-stub, recent systemd extends most of these PCRs once more,
    /// with a constant that seals what was measured before the operating system. A PCR whose
    /// quoted value differs by exactly this is explained too: the events before it are as logged.
    pub fn verify<'q>(&'q self, quote: &'q VerifiedQuote) -> ReplayedLog<'q>
    where
        'l: 'q,
    {
        let bank = quote.pcrs().bank();
        let replayed = self.replay(bank);
        let separator = bank.digest(&[OS_SEPARATOR]);
        let mut explained = PcrMask::default();
        let mut mismatches = Vec::new();
        for pcr in LOG_PCRS {
            let (Some(quoted), Some(replayed)) = (quote.pcrs().get(pcr), replayed.get(pcr)) else {
                continue;
            };
            let separated = OS_SEPARATED >> pcr & 1 == 1
                && *quoted == replayed.extend(bank, separator.as_bytes());
            if quoted == replayed || separated {
                explained = explained.with(pcr);
            } else {
                mismatches.push(PcrMismatch {
                    pcr,
                    replayed: *replayed,
                    quoted: *quoted,
                });
            }
        }
        ReplayedLog {
            explained,
            log: self,
            mismatches,
            replayed,
            quote,
        }
    }

    /// What `boot_aggregate` may be after the boot that the log tells of, in each of its banks.
    pub fn boot_aggregates(&self) -> Vec<BootAggregate> {
        self.banks()
            .flat_map(|bank| aggregates(&self.replay(bank)))
            .collect()
    }
}

/// The 8- and 10-PCR aggregates of one bank, as far as the PCRs are there.
fn aggregates(pcrs: &PcrValues) -> Vec<BootAggregate> {
    let bank = pcrs.bank();
    let aggregate = |count| {
        let values: Option<Vec<&[u8]>> = (0..count)
            .map(|pcr| pcrs.get(pcr).map(Digest::as_bytes))
            .collect();
        Some(BootAggregate {
            bank,
            pcrs: count,
            digest: bank.digest(&values?),
        })
    };
    [8, 10].into_iter().filter_map(aggregate).collect()
}

impl<'q> ReplayedLog<'q> {
    /// Quoted PCRs that the log does not explain, ascending.
    pub fn mismatches(&self) -> &[PcrMismatch] {
        &self.mismatches
    }

    /// The events that the quote vouches for: those of explained PCRs, and EV_NO_ACTION never.
    pub fn events(&self) -> impl Iterator<Item = Event<'q>> {
        let explained = self.explained;
        self.log.unverified_events().filter(move |event| {
            let pcr = u8::try_from(event.pcr).ok();
            event.kind != EventType::EV_NO_ACTION && pcr.is_some_and(|p| explained.contains(p))
        })
    }

    /// What the log replays to in the quote's bank.
    pub fn replayed(&self) -> &PcrValues {
        &self.replayed
    }

    /// What `boot_aggregate` may be: over the quoted PCRs themselves, and, when PCRs 0 to 7 are
    /// explained, over what the log replays to in each of its banks.
    ///
    /// The log is needed for PCRs that user space goes on extending after the kernel took the
    /// aggregate (PCR 9 of a UKI host), and for a kernel that aggregates another bank than the
    /// quoted one. Believing it there gives a host nothing: the aggregate it is compared with is
    /// an IMA entry, which the quoted PCR 10 fixes.
    pub fn boot_aggregates(&self) -> Vec<BootAggregate> {
        let mut candidates = aggregates(self.quote.pcrs());
        if (0..8).all(|pcr| self.explained.contains(pcr)) {
            candidates.extend(self.log.boot_aggregates());
        }
        candidates
    }
}

/// What `boot_aggregate` may be as far as the quote alone tells.
pub(crate) fn quoted_boot_aggregates(quote: &VerifiedQuote) -> Vec<BootAggregate> {
    aggregates(quote.pcrs())
}
