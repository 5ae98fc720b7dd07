use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use troth_core::eventlog::{Event, EventLog, EventType};

use crate::{
    cli::EventlogArgs,
    error::{Error, Exit},
    output::{Output, Tone},
    policy::read_file,
};

/// Characters of an event's data that a table shows.
const DATA_SHOWN: usize = 60;
/// Bytes of data without a text form that are shown as hex.
const HEX_SHOWN: usize = 16;
/// UEFI_IMAGE_LOAD_EVENT without its device path.
const IMAGE_LOAD_HEADER: usize = 32;
/// UEFI_VARIABLE_DATA without name and data.
const VARIABLE_HEADER: usize = 32;
/// TCG_PCClientTaggedEvent without its data: id and size.
const TAG_HEADER: usize = 8;

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
    events: Vec<EventView>,
    /// Bank, then PCR number, to the value that the log replays to; PCRs with events only.
    pcrs: BTreeMap<&'static str, BTreeMap<u8, String>>,
    /// What the kernel's `boot_aggregate` may be after this boot.
    boot_aggregates: Vec<Aggregate>,
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
    /// The data in words, cut short.
    data: String,
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
    let view = View::new(&log);
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
                    (Tone::Plain, event.data.clone()),
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
                    (Tone::Plain, value.clone()),
                ]
            })
        });
        text.push_str(&out.table(&["BANK", "PCR", "REPLAYS TO"], rows.collect()));
        let locality = match self.startup_locality {
            Some(locality) => format!(", started from locality {locality}"),
            None => String::new(),
        };
        text.push_str(&format!(
            "\n{} events, {} format, banks {}{locality}\n",
            self.events.len(),
            self.format,
            self.banks.join(" ")
        ));
        text
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
            data: shorten(&describe_data(event.kind, event.data)),
        }
    }
}

/// An event's data in words, as far as its type has a text form.
fn describe_data(kind: EventType, data: &[u8]) -> String {
    let special = match kind {
        EventType::EV_EFI_VARIABLE_DRIVER_CONFIG
        | EventType::EV_EFI_VARIABLE_BOOT
        | EventType::EV_EFI_VARIABLE_BOOT2
        | EventType::EV_EFI_VARIABLE_AUTHORITY => variable(data),
        EventType::EV_EFI_BOOT_SERVICES_APPLICATION
        | EventType::EV_EFI_BOOT_SERVICES_DRIVER
        | EventType::EV_EFI_RUNTIME_SERVICES_DRIVER => image_path(data),
        EventType::EV_EVENT_TAG => data.get(TAG_HEADER..).and_then(ascii),
        EventType::EV_NO_ACTION => data.split(|byte| *byte == 0).next().and_then(ascii),
        _ => None,
    };
    special
        .or_else(|| ascii(data))
        .or_else(|| utf16(data))
        .unwrap_or_else(|| {
            let shown = &data[..data.len().min(HEX_SHOWN)];
            let rest = if data.len() > HEX_SHOWN { "..." } else { "" };
            format!("{}{rest} ({} bytes)", hex::encode(shown), data.len())
        })
}

/// UEFI_VARIABLE_DATA: the variable's name and the size of its content.
fn variable(data: &[u8]) -> Option<String> {
    let length = |at: usize| {
        let bytes = data.get(at..at + 8)?;
        usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let (name, content) = (length(16)?, length(24)?);
    let end = name.checked_mul(2)?.checked_add(VARIABLE_HEADER)?;
    let name = utf16(data.get(VARIABLE_HEADER..end)?)?;
    Some(format!("{name} ({content} bytes)"))
}

/// UEFI_IMAGE_LOAD_EVENT: the file path nodes (type 4, subtype 4) of its device path.
fn image_path(data: &[u8]) -> Option<String> {
    let mut rest = data.get(IMAGE_LOAD_HEADER..)?;
    let mut path = String::new();
    while let [kind, subtype, low, high, ..] = *rest {
        let length = usize::from(u16::from_le_bytes([low, high]));
        let node = rest.get(4..length)?;
        if (kind, subtype) == (4, 4) {
            path.push_str(&utf16(node)?);
        }
        rest = &rest[length..];
    }
    (!path.is_empty()).then_some(path)
}

/// Printable ASCII, with or without final NULs; line feeds and tabs become spaces.
fn ascii(data: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(data)
        .ok()?
        .trim_end_matches(['\0', '\n']);
    let text = text.replace(['\n', '\r', '\t'], " ");
    let printable = text
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    (!text.is_empty() && printable).then_some(text)
}

/// Printable UTF-16LE, with or without a final NUL.
fn utf16(data: &[u8]) -> Option<String> {
    let (units, []) = data.as_chunks::<2>() else {
        return None;
    };
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
    let text = text.trim_end_matches('\0');
    let ascii = text
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    (!text.is_empty() && ascii).then(|| text.to_owned())
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(DATA_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16le(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn data_is_shown_in_words_where_it_has_words() {
        assert_eq!(
            describe_data(EventType::EV_EFI_ACTION, b"Exit Boot Services"),
            "Exit Boot Services"
        );
        assert_eq!(describe_data(EventType::EV_IPL, b"cmd\0"), "cmd");
        assert_eq!(
            describe_data(EventType::EV_SEPARATOR, &[0; 4]),
            "00000000 (4 bytes)"
        );
        let mut variable = vec![0; 16];
        variable.extend(10_u64.to_le_bytes());
        variable.extend(1_u64.to_le_bytes());
        variable.extend(utf16le("SecureBoot"));
        variable.push(1);
        let kind = EventType::EV_EFI_VARIABLE_DRIVER_CONFIG;
        assert_eq!(describe_data(kind, &variable), "SecureBoot (1 bytes)");
        let mut image = vec![0; 32];
        let name = utf16le("\\shim.efi\0");
        image.extend([4, 4]);
        image.extend(u16::try_from(name.len() + 4).unwrap().to_le_bytes());
        image.extend(name);
        image.extend([0x7f, 0xff, 4, 0]);
        let kind = EventType::EV_EFI_BOOT_SERVICES_APPLICATION;
        assert_eq!(describe_data(kind, &image), "\\shim.efi");
    }

    #[test]
    fn lengths_that_lie_are_harmless() {
        let mut variable = vec![0; 16];
        variable.extend(u64::MAX.to_le_bytes());
        variable.extend(u64::MAX.to_le_bytes());
        let kind = EventType::EV_EFI_VARIABLE_BOOT;
        assert!(describe_data(kind, &variable).ends_with("(32 bytes)"));
        for length in [0_u8, 1, 3, 200] {
            let mut image = vec![0; 32];
            image.extend([4, 4, length, 0, 1]);
            let kind = EventType::EV_EFI_BOOT_SERVICES_DRIVER;
            assert!(
                describe_data(kind, &image).ends_with("(37 bytes)"),
                "{length}"
            );
        }
    }
}
