use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    path::PathBuf,
};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use troth_core::{
    appraise::{Finding, Place},
    eventlog::pcr_name,
};

use crate::error::Error;

/// Values of `expected` that a finding shows; the rest is counted.
const EXPECTED_SHOWN: usize = 4;
/// Characters of a digest in a terminal's table.
const DIGEST_SHOWN: usize = 20;

/// How results are shown: text or JSON, with colour or without.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    terminal: bool,
    colour: bool,
    error_colour: bool,
}

/// Meaning of a text, which a terminal shows as colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// To be looked at.
    Warn,
    /// Not to be trusted.
    Bad,
    /// Less important.
    Dim,
    /// A heading.
    Strong,
    /// Nothing special.
    Plain,
}

impl Tone {
    fn sgr(self) -> Option<&'static str> {
        match self {
            Self::Good => Some("\x1b[32m"),
            Self::Warn => Some("\x1b[33m"),
            Self::Bad => Some("\x1b[1;31m"),
            Self::Dim => Some("\x1b[2m"),
            Self::Strong => Some("\x1b[1m"),
            Self::Plain => None,
        }
    }
}

impl Output {
    /// Colour only on a terminal that can show it, and never with NO_COLOR (no-color.org).
    pub(crate) fn from_environment(json: bool) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let able = !no_colour && !dumb;
        Self {
            json,
            terminal: io::stdout().is_terminal(),
            colour: able && !json && io::stdout().is_terminal(),
            error_colour: able && !json && io::stderr().is_terminal(),
        }
    }

    /// Text without colour, as tests and pipes see it.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self {
            json: false,
            terminal: false,
            colour: false,
            error_colour: false,
        }
    }

    /// Is JSON asked for?
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the JSON form or the text form of a result.
    pub(crate) fn result<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        if self.json {
            self.json(value)
        } else {
            self.text(&text())
        }
    }

    /// Prints pretty JSON.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), Error> {
        let mut json = serde_json::to_string_pretty(value).map_err(|e| stdout_error(e.into()))?;
        json.push('\n');
        self.text(&json)
    }

    /// Prints one JSON object on one line.
    pub(crate) fn json_line<T: Serialize>(&self, value: &T) -> Result<(), Error> {
        let mut json = serde_json::to_string(value).map_err(|e| stdout_error(e.into()))?;
        json.push('\n');
        self.text(&json)
    }

    /// Prints text at once. A reader that went away (`| head`) ends the program quietly.
    pub(crate) fn text(&self, text: &str) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        match stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
        {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            result => result.map_err(stdout_error),
        }
    }

    /// A remark on standard error, which results are not mixed with.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "{}", clean(text));
        }
    }

    /// Remarks that whoever uses a result must know, on standard error; under `--json` as an object.
    pub(crate) fn notes(&self, notes: &[String]) {
        match (self.json, notes) {
            (_, []) => {}
            (true, notes) => self.json_remark(&serde_json::json!({ "notes": notes })),
            (false, notes) => notes.iter().for_each(|note| self.note(note)),
        }
    }

    /// Prints pretty JSON on standard error, where standard output has a result of another kind.
    pub(crate) fn json_remark<T: Serialize>(&self, value: &T) {
        if let Ok(json) = serde_json::to_string_pretty(value) {
            let _ = writeln!(io::stderr(), "{json}");
        }
    }

    /// Prints an error on standard error: what happened, where, what to do.
    pub(crate) fn error(&self, error: &Error) {
        let text = if self.json {
            let value = ErrorBody {
                error: ErrorText {
                    message: error.to_string(),
                    advice: error.advice(),
                    exit_status: error.exit().into(),
                    findings: error.findings(),
                    files: error.files(),
                },
            };
            serde_json::to_string_pretty(&value).unwrap_or_else(|_| error.to_string())
        } else {
            let painter = Self {
                colour: self.error_colour,
                ..*self
            };
            let mut text = format!(
                "{} {}",
                painter.paint(Tone::Bad, "error:"),
                clean(&error.to_string())
            );
            for (index, finding) in error.findings().iter().enumerate() {
                let _ = write!(
                    text,
                    "\n{}",
                    painter.finding(index, error.findings().len(), finding, None)
                );
            }
            if let Some(advice) = error.advice() {
                let _ = write!(
                    text,
                    "\n{} {}",
                    painter.paint(Tone::Strong, "what to do:"),
                    clean(&advice)
                );
            }
            text
        };
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// `text` in the colour of `tone`, or as it is.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        match tone.sgr() {
            Some(sgr) if self.colour => format!("{sgr}{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }

    /// A table without borders: upper-case heading, two spaces between columns, cut to the
    /// terminal's width only on a terminal.
    pub(crate) fn table(&self, heading: &[&str], rows: Vec<Vec<(Tone, String)>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if self.terminal {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        } else {
            table.force_no_tty();
        }
        table.set_header(heading.iter().map(|name| self.cell(Tone::Strong, name)));
        for row in rows {
            table.add_row(
                row.iter()
                    .map(|(tone, text)| self.cell(*tone, &clean(text))),
            );
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// A digest for a table: cut short on a terminal, so that it stays one line a row.
    pub(crate) fn digest(&self, digest: &str) -> String {
        match digest.char_indices().nth(DIGEST_SHOWN) {
            Some((end, _)) if self.terminal => format!("{}...", &digest[..end]),
            _ => digest.to_owned(),
        }
    }

    fn cell(&self, tone: Tone, text: &str) -> Cell {
        let cell = Cell::new(text);
        if !self.colour {
            return cell;
        }
        match tone {
            Tone::Good => cell.fg(Color::Green),
            Tone::Warn => cell.fg(Color::Yellow),
            Tone::Bad => cell.fg(Color::Red).add_attribute(Attribute::Bold),
            Tone::Dim => cell.add_attribute(Attribute::Dim),
            Tone::Strong => cell.add_attribute(Attribute::Bold),
            Tone::Plain => cell,
        }
    }

    /// Lines `   Label: value`, labels right-aligned; further lines of a value are indented.
    pub(crate) fn fields(&self, fields: &[(&str, String)]) -> String {
        let width = fields
            .iter()
            .map(|(label, _)| label.chars().count())
            .max()
            .unwrap_or(0)
            .max(12);
        let mut text = String::new();
        for (label, value) in fields {
            for (index, line) in value.lines().enumerate() {
                if index == 0 {
                    let _ = writeln!(text, "{label:>width$}: {}", clean_painted(line));
                } else {
                    let _ = writeln!(text, "{:width$}  {}", "", clean_painted(line));
                }
            }
        }
        text
    }

    /// One finding, for people. `severity` is its label, if it was rated.
    pub(crate) fn finding(
        &self,
        index: usize,
        total: usize,
        finding: &Finding,
        severity: Option<&str>,
    ) -> String {
        let mut severity = clean(severity.unwrap_or("failure"));
        if !finding.recoverable {
            severity.push_str(": the check stopped here");
        }
        let mut text = format!(
            "{} {}\n",
            self.paint(
                Tone::Bad,
                &format!(
                    "Finding {} of {total}: {}",
                    index + 1,
                    place(&finding.place)
                )
            ),
            self.paint(Tone::Dim, &format!("[{}, {severity}]", clean(&finding.id))),
        );
        let mut fields = Vec::new();
        if let Some(got) = &finding.got {
            fields.push(("Found", clean(got)));
        }
        if finding.expected.is_empty() {
            if matches!(finding.place, Place::ImaEntry { .. }) && finding.got.is_some() {
                fields.push(("Policy has", "nothing for it".to_owned()));
            }
        } else {
            let mut expected: Vec<_> = finding
                .expected
                .iter()
                .take(EXPECTED_SHOWN)
                .map(|value| clean(value))
                .collect();
            if finding.expected.len() > EXPECTED_SHOWN {
                expected.push(format!(
                    "and {} more",
                    finding.expected.len() - EXPECTED_SHOWN
                ));
            }
            fields.push(("Policy has", expected.join("\n")));
        }
        fields.push(("Why", clean(&finding.explanation)));
        fields.push(("What to do", clean(&finding.action)));
        text.push_str(&self.fields(&fields));
        text
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorText<'a>,
}

#[derive(Serialize)]
struct ErrorText<'a> {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    exit_status: u8,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    findings: &'a [Finding],
    /// Files that it is about, and what is wrong with each.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    files: &'a [String],
}

fn stdout_error(source: io::Error) -> Error {
    Error::WriteFile {
        path: PathBuf::from("standard output"),
        source,
    }
}

/// Where a finding is, in words.
pub(crate) fn place(place: &Place) -> String {
    match place {
        Place::Quote => "the quote".to_owned(),
        Place::Pcr(pcr) => named_pcr(*pcr),
        Place::ImaEntry {
            entry,
            path: Some(path),
        } => {
            format!("{} (IMA list entry {entry})", clean(path))
        }
        Place::ImaEntry { entry, path: None } => format!("IMA list entry {entry}"),
        Place::ImaList => "the IMA list".to_owned(),
        Place::BootLog => "the boot log".to_owned(),
        Place::BootEvent { event, pcr } => {
            format!("boot log event {event}, {}", named_pcr(*pcr))
        }
        other => format!("{other:?}"),
    }
}

/// `PCR 7 (secure-boot-policy)`.
pub(crate) fn named_pcr(pcr: u8) -> String {
    pcr_name(pcr).map_or_else(
        || format!("PCR {pcr}"),
        |name| format!("PCR {pcr} ({name})"),
    )
}

/// Text from a network or a log, fit for a terminal: control characters and the characters that
/// reorder text are escaped.
pub(crate) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        let reorders = matches!(c,
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || reorders {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Like [`clean`] for text that [`Output::paint`] may have coloured and that was cleaned before.
fn clean_painted(text: &str) -> String {
    const RESET: &str = "\x1b[0m";
    let tones = [Tone::Good, Tone::Warn, Tone::Bad, Tone::Dim, Tone::Strong];
    let colours = || tones.iter().filter_map(|tone| tone.sgr()).chain([RESET]);
    let mut painted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        let (plain, sequence) = rest.split_at(at);
        painted.push_str(&clean(plain));
        // No other sequence than those of `paint`.
        let colour = colours()
            .find(|colour| sequence.starts_with(colour))
            .unwrap_or("\x1b");
        match colour {
            "\x1b" => painted.push_str(&clean(colour)),
            colour => painted.push_str(colour),
        }
        rest = sequence.get(colour.len()..).unwrap_or_default();
    }
    painted + &clean(rest)
}

/// Milliseconds as an age or a delay in words: `0.4 s`, `12 s`, `3 min`, `5 h`, `9 days`.
pub(crate) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..10 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        10..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Unix seconds as `2026-11-23 17:56:08 UTC`.
pub(crate) fn utc(unix: u64) -> String {
    troth_core::time::utc(unix) + " UTC"
}

/// Unix milliseconds now.
pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_stay_short() {
        let texts: Vec<_> = [
            0,
            1_234,
            9_999,
            10_000,
            119_999,
            120_000,
            7_200_000,
            864_000_000,
        ]
        .map(span)
        .into();
        assert_eq!(
            texts,
            [
                "0.0 s", "1.2 s", "9.9 s", "10 s", "119 s", "2 min", "2 h", "10 days"
            ]
        );
    }

    #[test]
    fn text_of_others_cannot_drive_the_terminal() {
        assert_eq!(
            clean("/tmp/\x1b]0;owned\x07a\u{202e}b\n"),
            r"/tmp/\u{1b}]0;owned\u{7}a\u{202e}b\n"
        );
        assert_eq!(clean("/usr/bin/größe"), "/usr/bin/größe");
    }

    #[test]
    fn a_table_has_no_borders_and_no_trailing_spaces() {
        let rows = vec![
            vec![
                (Tone::Plain, "node-1".to_owned()),
                (Tone::Good, "trusted".to_owned()),
            ],
            vec![
                (Tone::Plain, "a-longer-id".to_owned()),
                (Tone::Bad, "failed".to_owned()),
            ],
        ];
        assert_eq!(
            Output::plain().table(&["AGENT", "STATE"], rows),
            "AGENT        STATE\nnode-1       trusted\na-longer-id  failed\n"
        );
    }

    #[test]
    fn a_finding_names_file_digest_and_policy() {
        let finding = Finding {
            id: "ima.validation.ima-ng.runtime_policy_hash".to_owned(),
            recoverable: true,
            place: Place::ImaEntry {
                entry: 17,
                path: Some("/usr/bin/x".to_owned()),
            },
            expected: vec!["aa".repeat(32), "bb".repeat(32)],
            got: Some("cc".repeat(32)),
            explanation: "The file is not one of those the policy allows.".to_owned(),
            action: "Reinstall it.".to_owned(),
        };
        let expected = format!(
            "Finding 1 of 3: /usr/bin/x (IMA list entry 17) \
             [ima.validation.ima-ng.runtime_policy_hash, failure]\n       \
             Found: {}\n  Policy has: {}\n              {}\n         \
             Why: The file is not one of those the policy allows.\n  \
             What to do: Reinstall it.\n",
            "cc".repeat(32),
            "aa".repeat(32),
            "bb".repeat(32)
        );
        assert_eq!(Output::plain().finding(0, 3, &finding, None), expected);
    }
}
