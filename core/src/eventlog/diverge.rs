use std::fmt;

use super::replay::{OS_SEPARATOR, ReplayedLog};
use super::{Event, EventType, Measurement};
use crate::tpm::{Digest, HashAlgorithm};

/// Most extends that are tried for one PCR, so that a log of many events costs no more than some
/// milliseconds.
const BUDGET: usize = 20_000;

/// Characters of an event's text that are shown.
const TEXT_SHOWN: usize = 200;

/// Phases of a boot, which systemd measures into PCR 11 one after the other.
const PHASES: [&str; 6] = [
    "enter-initrd",
    "leave-initrd",
    "sysinit",
    "ready",
    "shutdown",
    "final",
];

/// Where the logs and a quoted PCR part.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Divergence<'q> {
    /// What the logs tell before this one gives the quoted value: it and what follows was not
    /// measured.
    NotMeasured(Step<'q>),
    /// The logs give the quoted value when this is measured after them, which none tells of.
    Measured(String),
    /// The logs without this one give the quoted value.
    LeftOut(Step<'q>),
    /// None of these.
    Nowhere,
    /// The logs have too much for the PCR to look for one.
    TooLong,
}

/// One extension of a PCR, as a log tells of it. Not to be believed.
#[derive(Clone, Copy, Debug)]
pub enum Step<'q> {
    /// By the firmware or a loader.
    Event(Event<'q>),
    /// By systemd.
    Measurement(&'q Measurement),
}

impl<'q> ReplayedLog<'q> {
    /// Where the log and the quoted value of `pcr` part; meant for a PCR that it does not explain.
    pub fn divergence(&self, pcr: u8, quoted: &Digest) -> Divergence<'q> {
        let bank = self.replayed().bank();
        let start = self.log().start(pcr, bank);
        let events = self
            .log()
            .unverified_events()
            .filter(|event| event.pcr == u32::from(pcr) && event.kind != EventType::EV_NO_ACTION);
        let events = events.filter_map(|event| {
            let digest = event.digests.get(bank)?;
            Some((Step::Event(event), digest))
        });
        let measurements = self.measurements_of(pcr).filter_map(|measurement| {
            let digest = measurement.digest(bank)?;
            Some((Step::Measurement(measurement), digest))
        });
        let events: Vec<(Step<'q>, Digest)> = events.chain(measurements).collect();
        let mut values = vec![start];
        let mut value = start;
        for (event, digest) in &events {
            if value == *quoted {
                return Divergence::NotMeasured(*event);
            }
            value = value.extend(bank, digest.as_bytes());
            values.push(value);
        }
        if let Some(text) = appended(pcr, bank, value, quoted) {
            return Divergence::Measured(text);
        }
        if events.len() * events.len() / 2 > BUDGET {
            return Divergence::TooLong;
        }
        let left_out = events.iter().enumerate().find(|(index, _)| {
            let before = values.get(*index).copied().unwrap_or(start);
            let mut after = events.iter().skip(index + 1);
            after.try_fold(before, |value, (_, digest)| {
                Some(value.extend(bank, digest.as_bytes()))
            }) == Some(*quoted)
        });
        left_out.map_or(Divergence::Nowhere, |(_, (event, _))| {
            Divergence::LeftOut(*event)
        })
    }
}

/// What known constants, measured after the log, give the quoted value.
fn appended(pcr: u8, bank: HashAlgorithm, value: Digest, quoted: &Digest) -> Option<String> {
    let extend = |value: Digest, data: &[u8]| value.extend(bank, bank.digest(&[data]).as_bytes());
    let separators: [(&[u8], &str); 5] = [
        (&[0; 4], "a separator"),
        (&[0xff; 4], "a separator"),
        (&[1, 0, 0, 0], "the separator of an error"),
        (OS_SEPARATOR, "systemd's separator"),
        (b"nvpcr-separator", "systemd's separator of NvPCRs"),
    ];
    let separator = separators
        .iter()
        .find(|(data, _)| extend(value, data) == *quoted)
        .map(|(_, name)| (*name).to_owned());
    if separator.is_some() || pcr != 11 {
        return separator;
    }
    (0..PHASES.len()).find_map(|from| {
        let mut value = value;
        let to = PHASES[from..].iter().position(|phase| {
            value = extend(value, phase.as_bytes());
            value == *quoted
        })?;
        Some(format!(
            "systemd's phases {}",
            PHASES[from..=from + to].join(", ")
        ))
    })
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(event) => {
                let text = event.content().to_string();
                let text: String = text.chars().take(TEXT_SHOWN).collect();
                write!(f, "event {} ({}: {text})", event.index, event.kind)
            }
            Self::Measurement(one) => {
                let kind = one.event_type.as_deref().unwrap_or("of no type");
                let text = one.text.as_deref().unwrap_or("a secret");
                let [kind, text] = [kind, text]
                    .map(|text| text.chars().take(TEXT_SHOWN).flat_map(char::escape_debug))
                    .map(String::from_iter);
                write!(
                    f,
                    "measurement {} of user space ({kind}: {text})",
                    one.index
                )
            }
        }
    }
}

/// One sentence.
impl fmt::Display for Divergence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMeasured(first) => write!(
                f,
                "The log explains the quoted value up to {first}: that and what follows was not \
                 measured."
            ),
            Self::Measured(text) => write!(
                f,
                "The log explains the quoted value but for {text}, measured after its last event."
            ),
            Self::LeftOut(one) => write!(
                f,
                "The log explains the quoted value without {one}: that was not measured."
            ),
            Self::Nowhere => f.write_str(
                "No part of the log's events for it gives the quoted value, nor do they with a \
                 known constant added or with one event left out.",
            ),
            Self::TooLong => f.write_str(
                "No part of the log's events for it gives the quoted value; they are too many to \
                 try more.",
            ),
        }
    }
}
