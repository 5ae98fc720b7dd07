use std::fmt;

use super::{Event, EventLog, EventType};
use crate::tpm::{Digest, HashAlgorithm};

/// Texts that the firmware measures when the operating system takes over (PC Client profile,
/// "EV_EFI_ACTION").
const EXIT_BOOT_SERVICES: [&[u8]; 2] = [
    b"Exit Boot Services Invocation",
    b"Exit Boot Services Returned with Success",
];

/// What firmware is known to log otherwise than it measures. Tried one by one, and only on a PCR
/// that the log as it stands does not explain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Quirk {
    /// TPM2_Startup came from locality 3 or 4, and the log has no event that says so.
    StartupLocalityMissing,
    /// The log says that TPM2_Startup came from another locality than it did.
    StartupLocalityWrong,
    /// The log ends before ExitBootServices, whose two events were measured.
    ExitBootServicesMissing,
    /// Events of type EV_NO_ACTION were extended, which they must not be.
    NoActionExtended,
}

impl Quirk {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Self; 4] = [
        Self::StartupLocalityMissing,
        Self::StartupLocalityWrong,
        Self::ExitBootServicesMissing,
        Self::NoActionExtended,
    ];

    /// Its name, which stays the same over versions.
    pub fn id(self) -> &'static str {
        match self {
            Self::StartupLocalityMissing => "startup-locality-missing",
            Self::StartupLocalityWrong => "startup-locality-wrong",
            Self::ExitBootServicesMissing => "exit-boot-services-missing",
            Self::NoActionExtended => "no-action-extended",
        }
    }

    /// Why it is no sign of an attack.
    pub fn reason(self) -> &'static str {
        match self {
            Self::StartupLocalityMissing => {
                "PCR 0 starts with the locality of TPM2_Startup, which the log does not tell; the \
                 hardware sets it, no software can"
            }
            Self::StartupLocalityWrong => {
                "PCR 0 starts with another locality of TPM2_Startup than the log tells; the \
                 hardware sets it, no software can"
            }
            Self::ExitBootServicesMissing => {
                "the kernel took the log over before ExitBootServices, and the firmware keeps no \
                 final events; what is missing are two constants"
            }
            Self::NoActionExtended => {
                "the firmware extends the digests of its EV_NO_ACTION events; they are in the log"
            }
        }
    }

    /// What `pcr` holds if the log has this quirk; several values where it leaves a choice.
    pub(super) fn values(self, log: &EventLog<'_>, pcr: u8, bank: HashAlgorithm) -> Vec<Digest> {
        let from = |start, no_action| fold(log, pcr, bank, start, no_action);
        let logged = log.start(pcr, bank);
        match self {
            Self::StartupLocalityMissing if pcr == 0 && log.startup_locality().is_none() => {
                let starts = [3, 4].map(|locality| from(with_locality(bank, locality), false));
                starts.to_vec()
            }
            Self::StartupLocalityWrong if pcr == 0 && log.startup_locality().is_some() => {
                let starts = [0, 3, 4].map(|locality| from(with_locality(bank, locality), false));
                starts.to_vec()
            }
            Self::ExitBootServicesMissing if pcr == 5 && !exits_boot_services(log) => {
                let extend = |value: Digest, text: &&[u8]| {
                    value.extend(bank, bank.digest(&[text]).as_bytes())
                };
                vec![EXIT_BOOT_SERVICES.iter().fold(from(logged, false), extend)]
            }
            Self::NoActionExtended => {
                let extended = |event: Event<'_>| {
                    event.kind == EventType::EV_NO_ACTION
                        && event.pcr == u32::from(pcr)
                        && event.extends(bank)
                };
                if log.unverified_events().any(extended) {
                    vec![from(logged, true)]
                } else {
                    Vec::new()
                }
            }
            _ => Vec::new(),
        }
    }
}

impl Event<'_> {
    /// Has it something to extend? EV_NO_ACTION events, which should extend nothing, have zeros.
    pub(crate) fn extends(&self, bank: HashAlgorithm) -> bool {
        let digest = self.digests.get(bank);
        digest.is_some_and(|digest| digest != Digest::zero(bank))
    }
}

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

/// PCR 0 after TPM2_Startup from `locality`.
pub(super) fn with_locality(bank: HashAlgorithm, locality: u8) -> Digest {
    let zero = Digest::zero(bank);
    let mut start = zero.as_bytes().to_vec();
    if let Some(last) = start.last_mut() {
        *last = locality;
    }
    Digest::from_slice(&start).unwrap_or(zero)
}

/// Replays the events of one PCR; EV_NO_ACTION events with a digest too, if wanted.
fn fold(
    log: &EventLog<'_>,
    pcr: u8,
    bank: HashAlgorithm,
    start: Digest,
    no_action: bool,
) -> Digest {
    let events = log.unverified_events().filter(|event| {
        event.pcr == u32::from(pcr) && (no_action || event.kind != EventType::EV_NO_ACTION)
    });
    let digests = events.filter_map(|event| {
        let extends = event.kind != EventType::EV_NO_ACTION || event.extends(bank);
        event.digests.get(bank).filter(|_| extends)
    });
    digests.fold(start, |value, digest| value.extend(bank, digest.as_bytes()))
}

fn exits_boot_services(log: &EventLog<'_>) -> bool {
    log.unverified_events().any(|event| {
        event.kind == EventType::EV_EFI_ACTION && event.data.starts_with(b"Exit Boot Services")
    })
}
