use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use troth_core::{
    eventlog::{Content, Event, EventLog, EventType, Measured, Register, UserspaceLog, pcr_name},
    tpm::HashAlgorithm,
};

use crate::{
    cli::EventlogArgs,
    error::{Error, Exit},
    output::{Output, Tone},
    policy::{measure_log, read_file},
};

/// Characters of an event's data that a table shows.
const DATA_SHOWN: usize = 60;
/// The PCR of the phases of the boot.
const PHASES_PCR: u32 = 11;

/// A boot log, in the shape of `inspect eventlog --json`.
#[derive(Debug, Serialize)]
struct View {
    /// `crypto-agile` (TCG_PCR_EVENT2) or `sha1` (the format before TPM 2.0).
    format: &'static str,
    banks: Vec<&'static str>,
    /// The strongest bank, which the table shows.
    #[serde(skip)]
    shown_bank: &'static str,
    /// Locality of TPM2_Startup, if the log tells.
    startup_locality: Option<u8>,
    /// Bytes behind the last event that the firmware filled its buffer with.
    padding: usize,
    events: Vec<EventView>,
    /// Bank, then PCR number, to the value that the log replays to; PCRs with events only.
    pcrs: BTreeMap<&'static str, BTreeMap<u8, String>>,
    /// What the kernel's `boot_aggregate` may be after this boot.
    boot_aggregates: Vec<Aggregate>,
    /// The whole log, decoded, in the shape of `tpm2_eventlog` that policies for Keylime see.
    model: serde_json::Value,
    /// What systemd's log says, where one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_space: Option<UserSpace>,
}

/// systemd's log of what user space measured.
#[derive(Debug, Serialize)]
struct UserSpace {
    /// A record was begun and never ended: the log may lack what was measured.
    torn: bool,
    /// The phases of the boot (PCR 11), in order; those whose digest is of their name.
    phases: Vec<String>,
    /// PCRs that the firmware's log has events of.
    firmware_pcrs: Vec<u32>,
    /// PCRs that systemd's log has records of.
    pcrs: Vec<u32>,
}

#[derive(Debug, Serialize)]
struct EventView {
    index: usize,
    pcr: u32,
    #[serde(rename = "type")]
    kind: String,
    /// Bank to hex.
    digests: BTreeMap<&'static str, String>,
    /// Size of the event's data, in bytes.
    size: usize,
    /// The data in words.
    data: String,
    /// The same, as the table shows it.
    #[serde(skip)]
    shown: String,
    /// Which part of the data the digest of the strongest bank is made of, and so vouches for:
    /// `all`, `part`, `none` (something else was measured), `mismatch` (it should be the data),
    /// nothing for an event that extends nothing.
    measured: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Aggregate {
    bank: &'static str,
    /// 8: PCRs 0 to 7; 10: PCRs 0 to 9.
    pcrs: u8,
    digest: String,
}

/// Runs `trothctl inspect eventlog`.
pub(crate) fn run(args: &EventlogArgs, out: &Output) -> Result<Exit, Error> {
    let file = read_file(&args.file)?;
    // An agent's answer carries the log in base64. A binary log is never ASCII: it has zero bytes.
    let decoded = std::str::from_utf8(&file)
        .ok()
        .and_then(|text| BASE64_STANDARD.decode(text.trim()).ok());
    let bytes = decoded.as_deref().unwrap_or(&file);
    let malformed = |reason: String| Error::Malformed {
        path: args.file.clone(),
        reason,
    };
    if bytes.is_empty() {
        return Err(malformed("the file is empty".to_owned()));
    }
    let log = EventLog::parse(bytes).map_err(|error| malformed(error.to_string()))?;
    let mut view = View::new(&log);
    if let Some(path) = &args.measure_log {
        view.user_space = Some(UserSpace::new(&log, &measure_log(path)?));
    }
    out.result(&view, || view.describe(out))?;
    Ok(Exit::Success)
}

impl View {
    fn new(log: &EventLog<'_>) -> Self {
        let events: Vec<_> = log
            .unverified_events()
            .map(|event| EventView::new(&event))
            .collect();
        let measured = |pcr: u8| {
            log.unverified_events()
                .any(|event| event.pcr == u32::from(pcr) && event.kind != EventType::EV_NO_ACTION)
        };
        let measured: Vec<_> = (0..24).filter(|pcr| measured(*pcr)).collect();
        let pcrs = log.banks().map(|bank| {
            let values = log.replay(bank);
            let values = values.iter().filter(|(pcr, _)| measured.contains(pcr));
            (
                bank.name(),
                values
                    .map(|(pcr, value)| (pcr, value.to_string()))
                    .collect(),
            )
        });
        Self {
            format: if log.is_crypto_agile() {
                "crypto-agile"
            } else {
                "sha1"
            },
            banks: log.banks().map(|bank| bank.name()).collect(),
            shown_bank: log.banks().max().map_or("sha1", |bank| bank.name()),
            startup_locality: log.startup_locality(),
            padding: log.padding(),
            model: log.to_json(),
            pcrs: pcrs.collect(),
            boot_aggregates: log
                .boot_aggregates()
                .iter()
                .map(|aggregate| Aggregate {
                    bank: aggregate.bank.name(),
                    pcrs: aggregate.pcrs,
                    digest: aggregate.digest.to_string(),
                })
                .collect(),
            events,
            user_space: None,
        }
    }

    fn describe(&self, out: &Output) -> String {
        let shown = self.shown_bank;
        let rows = self
            .events
            .iter()
            .map(|event| {
                let digest = event.digests.get(shown).map_or("-", String::as_str);
                vec![
                    (Tone::Dim, event.index.to_string()),
                    (Tone::Plain, event.pcr.to_string()),
                    (Tone::Plain, event.kind.clone()),
                    (Tone::Dim, out.digest(digest)),
                    (Tone::Plain, event.shown.clone()),
                ]
            })
            .collect();
        let mut text = out.table(&["#", "PCR", "TYPE", shown, "DATA"], rows);
        text.push('\n');
        let rows = self.pcrs.iter().flat_map(|(bank, values)| {
            values.iter().map(|(pcr, value)| {
                vec![
                    (Tone::Plain, (*bank).to_owned()),
                    (Tone::Plain, pcr.to_string()),
                    (Tone::Dim, pcr_name(*pcr).unwrap_or_default().to_owned()),
                    (Tone::Plain, value.clone()),
                ]
            })
        });
        text.push_str(&out.table(&["BANK", "PCR", "NAME", "REPLAYS TO"], rows.collect()));
        let locality = match self.startup_locality {
            Some(locality) => format!(", started from locality {locality}"),
            None => String::new(),
        };
        let padding = match self.padding {
            0 => String::new(),
            bytes => format!(", {bytes} bytes of padding behind them"),
        };
        text.push_str(&format!(
            "\n{} events, {} format, banks {}{locality}{padding}\n",
            self.events.len(),
            self.format,
            self.banks.join(" ")
        ));
        if let Some(user_space) = &self.user_space {
            text.push_str(&user_space.describe());
        }
        text
    }
}

impl UserSpace {
    fn new(log: &EventLog<'_>, userspace: &UserspaceLog) -> Self {
        let events = log.unverified_events();
        let firmware_pcrs: BTreeSet<_> = events
            .filter(|event| event.kind != EventType::EV_NO_ACTION)
            .map(|event| event.pcr)
            .collect();
        let records = userspace.unverified_measurements();
        let pcrs: BTreeSet<_> = records
            .iter()
            .filter_map(|record| match record.register {
                Register::Pcr(pcr) => Some(pcr),
                Register::Nv { .. } => None,
            })
            .collect();
        let phases = records.iter().filter(|record| {
            let bank = record.digests.iter().map(|(bank, _)| *bank).max();
            record.register == Register::Pcr(PHASES_PCR)
                && record.event_type.as_deref() == Some("phase")
                && record.vouches_for_text(bank.unwrap_or(HashAlgorithm::Sha256))
        });
        Self {
            torn: userspace.is_torn(),
            phases: phases.filter_map(|record| record.text.clone()).collect(),
            firmware_pcrs: firmware_pcrs.into_iter().collect(),
            pcrs: pcrs.into_iter().collect(),
        }
    }

    fn describe(&self) -> String {
        let list = |pcrs: &[u32]| match pcrs.is_empty() {
            true => "none".to_owned(),
            false => {
                let pcrs: Vec<_> = pcrs.iter().map(u32::to_string).collect();
                pcrs.join(" ")
            }
        };
        let phases = match self.phases.is_empty() {
            true => "none".to_owned(),
            false => self.phases.join(", "),
        };
        let torn = match self.torn {
            true => "; a record was never ended, so something may be missing",
            false => "",
        };
        format!(
            "phases of the boot (PCR 11): {phases}\nPCRs of the firmware's log: {}\nPCRs of \
             systemd's log: {}{torn}\n",
            list(&self.firmware_pcrs),
            list(&self.pcrs)
        )
    }
}

impl EventView {
    fn new(event: &Event<'_>) -> Self {
        Self {
            index: event.index,
            pcr: event.pcr,
            kind: event.kind.to_string(),
            digests: event
                .digests
                .iter()
                .map(|(bank, digest)| (bank.name(), digest.to_string()))
                .collect(),
            size: event.data.len(),
            shown: shorten(&match event.content() {
                // The file is at the end of a long path.
                Content::Image(image) => match image.path.file() {
                    Some(file) => file.to_string(),
                    None => image.to_string(),
                },
                content => content.to_string(),
            }),
            data: event.content().to_string(),
            measured: (event.kind != EventType::EV_NO_ACTION)
                .then(|| measured(event))
                .flatten(),
        }
    }
}

fn measured(event: &Event<'_>) -> Option<&'static str> {
    let bank = event.digests.iter().map(|(bank, _)| bank).max()?;
    Some(match event.measured(bank) {
        Measured::Data => "all",
        Measured::Part(_) => "part",
        Measured::Elsewhere => "none",
        Measured::Mismatch => "mismatch",
        Measured::NoDigest => return None,
    })
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(DATA_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
