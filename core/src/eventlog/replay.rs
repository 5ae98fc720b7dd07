use super::quirk::with_locality;
use super::{Event, EventLog, EventType, Measurement, Quirk, UserspaceLog};
use crate::tpm::{Digest, HashAlgorithm, PcrMask, PcrValues, VerifiedQuote};

/// PCRs that a boot log can speak of. 10 belongs to IMA, 16 and 23 to applications, 17 to 22 to
/// dynamic launch.
const LOG_PCRS: [u8; 15] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15];
/// What systemd extends some PCRs with, once, when the operating system takes over
/// (systemd-pcrosseparator.service); the firmware's log does not tell of it.
pub(super) const OS_SEPARATOR: &[u8] = b"os-separator";
/// The PCRs that it extends so: 0 to 7, 9, 12 to 14.
const OS_SEPARATED: u32 = 0x72ff;
/// Number of PCRs that start at zero and are never reset (PC Client profile).
const STATIC_PCRS: u8 = 16;

/// A log compared with a verified quote. Made by [`EventLog::verify`] alone.
#[derive(Debug)]
pub struct ReplayedLog<'q> {
    /// Quoted PCRs whose replayed value is the quoted one, or becomes it by what user space
    /// measured, by systemd's separator or by a known quirk of firmware.
    pub explained: PcrMask,
    log: &'q EventLog<'q>,
    userspace: Option<&'q UserspaceLog>,
    /// How many of the user space log's measurements of each PCR the quote covers.
    covered: [usize; STATIC_PCRS as usize],
    mismatches: Vec<PcrMismatch>,
    quirks: Vec<(u8, Quirk)>,
    replayed: PcrValues,
    quote: &'q VerifiedQuote,
}

/// A quoted PCR that the log does not explain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PcrMismatch {
    /// The PCR.
    pub pcr: u8,
    /// What the firmware's log replays to, with all of user space's measurements where there is a
    /// log of them.
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
        values[0] = self.start(0, bank);
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

    /// What a PCR holds before its first event: zero, but for the locality of TPM2_Startup in
    /// PCR 0 where the log tells one.
    pub(super) fn start(&self, pcr: u8, bank: HashAlgorithm) -> Digest {
        match self.startup_locality() {
            Some(locality) if pcr == 0 => with_locality(bank, locality),
            _ => Digest::zero(bank),
        }
    }

    /// Compares the log with the quoted PCRs 0 to 9 and 11 to 15, in the quote's bank: as
    /// [`Self::verify_joined`] without a log of user space.
    pub fn verify<'q>(&'q self, quote: &'q VerifiedQuote) -> ReplayedLog<'q>
    where
        'l: 'q,
    {
        self.verify_joined(quote, None)
    }

    /// Compares the log, and what `userspace` says was measured after it, with the quoted PCRs 0
    /// to 9 and 11 to 15, in the quote's bank.
    ///
    /// The user space log is read after the quote was made, so its last measurements may be later
    /// than the quote: a PCR is explained by the firmware's events and the first so many of its
    /// measurements, and only these are believed.
    ///
    /// On hosts booted through systemd-stub, recent systemd extends most of these PCRs once more,
    /// with a constant that seals what was measured before the operating system. A PCR whose
    /// quoted value differs by exactly this is explained too: the events before it are as logged.
    ///
    /// What is not explained so is tried with each [`Quirk`] of firmware.
    pub fn verify_joined<'q>(
        &'q self,
        quote: &'q VerifiedQuote,
        userspace: Option<&'q UserspaceLog>,
    ) -> ReplayedLog<'q>
    where
        'l: 'q,
    {
        let bank = quote.pcrs().bank();
        let mut log = ReplayedLog {
            explained: PcrMask::default(),
            log: self,
            userspace,
            covered: [0; STATIC_PCRS as usize],
            mismatches: Vec::new(),
            quirks: Vec::new(),
            replayed: self.replay(bank),
            quote,
        };
        for pcr in LOG_PCRS {
            if let (Some(quoted), Some(replayed)) = (quote.pcrs().get(pcr), log.replayed.get(pcr)) {
                let (quoted, replayed) = (*quoted, *replayed);
                log.compare(pcr, quoted, replayed);
            }
        }
        log
    }

    /// What `boot_aggregate` may be after the boot that the log tells of, in each of its banks.
    pub fn boot_aggregates(&self) -> Vec<BootAggregate> {
        self.banks()
            .flat_map(|bank| aggregates(&self.replay(bank)))
            .collect()
    }

    /// The same in its banks but for one.
    pub(crate) fn other_boot_aggregates(
        &self,
        but: HashAlgorithm,
    ) -> impl Iterator<Item = BootAggregate> {
        let others = self.banks().filter(move |bank| *bank != but);
        others.flat_map(|bank| aggregates(&self.replay(bank)))
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
    /// Explains one PCR, if anything does.
    fn compare(&mut self, pcr: u8, quoted: Digest, replayed: Digest) {
        let bank = self.quote.pcrs().bank();
        let covered = if quoted == replayed {
            Some(0)
        } else {
            self.joined(pcr, replayed, quoted).or_else(|| {
                let quirk = Quirk::ALL.into_iter().find_map(|quirk| {
                    let values = quirk.values(self.log, pcr, bank);
                    let mut covered = values
                        .into_iter()
                        .filter_map(|value| self.joined(pcr, value, quoted));
                    covered.next().map(|covered| (quirk, covered))
                });
                let (quirk, covered) = quirk?;
                self.quirks.push((pcr, quirk));
                Some(covered)
            })
        };
        match covered {
            Some(covered) => {
                self.explained = self.explained.with(pcr);
                if let Some(slot) = self.covered.get_mut(usize::from(pcr)) {
                    *slot = covered;
                }
            }
            None => {
                let replayed = self
                    .measurements_of(pcr)
                    .filter_map(|measurement| measurement.digest(bank))
                    .fold(replayed, |value, digest| {
                        value.extend(bank, digest.as_bytes())
                    });
                self.mismatches.push(PcrMismatch {
                    pcr,
                    replayed,
                    quoted,
                });
            }
        }
    }

    /// After how many of user space's measurements a PCR that the firmware left at `value` is
    /// `quoted`.
    fn joined(&self, pcr: u8, value: Digest, quoted: Digest) -> Option<usize> {
        let bank = self.quote.pcrs().bank();
        if value == quoted {
            return Some(0);
        }
        let separator = || bank.digest(&[OS_SEPARATOR]);
        if OS_SEPARATED >> pcr & 1 == 1 && value.extend(bank, separator().as_bytes()) == quoted {
            return Some(0);
        }
        let mut value = value;
        for (index, measurement) in self.measurements_of(pcr).enumerate() {
            if let Some(digest) = measurement.digest(bank) {
                value = value.extend(bank, digest.as_bytes());
            }
            if value == quoted {
                return Some(index + 1);
            }
        }
        None
    }

    /// What the user space log says of a PCR, believed or not.
    pub(super) fn measurements_of(
        &self,
        pcr: u8,
    ) -> impl Iterator<Item = &'q Measurement> + use<'q> {
        let all = self
            .userspace
            .map_or(&[][..], |log| log.unverified_measurements());
        all.iter().filter(move |measurement| measurement.is_of(pcr))
    }

    /// What user space measured, and the quote vouches for: the digests; for texts see
    /// [`Measurement::vouches_for_text`]. PCRs ascending, each in its order. The phases of a boot
    /// are those of PCR 11.
    pub fn measurements(&self) -> impl Iterator<Item = (u8, &'q Measurement)> {
        (0..STATIC_PCRS)
            .zip(self.covered)
            .filter(|(pcr, _)| self.explained.contains(*pcr))
            .flat_map(|(pcr, covered)| {
                let covered = self.measurements_of(pcr).take(covered);
                covered.map(move |measurement| (pcr, measurement))
            })
    }

    /// PCRs that only a known quirk of firmware explains.
    pub fn quirks(&self) -> &[(u8, Quirk)] {
        &self.quirks
    }

    /// PCRs that were extended by EV_NO_ACTION events too: these hide nothing only if they are
    /// judged as events of any other type are.
    pub(crate) fn no_action_extended(&self) -> PcrMask {
        let quirks = self.quirks.iter();
        quirks
            .filter(|(_, quirk)| *quirk == Quirk::NoActionExtended)
            .fold(PcrMask::default(), |mask, (pcr, _)| mask.with(*pcr))
    }

    pub(super) fn log(&self) -> &'q EventLog<'q> {
        self.log
    }

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

    /// What `boot_aggregate` may be in the quoted bank: over the quoted PCRs themselves, and, when
    /// PCRs 0 to 7 are explained, over what the log replays to.
    ///
    /// The log is needed for PCRs that user space goes on extending after the kernel took the
    /// aggregate (PCR 9 of a UKI host).
    pub fn boot_aggregates(&self) -> Vec<BootAggregate> {
        let mut candidates = aggregates(self.quote.pcrs());
        let bank = self.replayed.bank();
        if self.explains_aggregates() && self.log.banks().any(|one| one == bank) {
            candidates.extend(aggregates(&self.replayed));
        }
        candidates
    }

    /// Is the log to be believed for the aggregates, too?
    pub(crate) fn explains_aggregates(&self) -> bool {
        (0..8).all(|pcr| self.explained.contains(pcr))
    }
}

/// What `boot_aggregate` may be as far as the quote alone tells.
pub(crate) fn quoted_boot_aggregates(quote: &VerifiedQuote) -> Vec<BootAggregate> {
    aggregates(quote.pcrs())
}
