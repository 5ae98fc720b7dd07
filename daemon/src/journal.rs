//! The journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

use std::{
    env,
    fmt::{self, Write},
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// What every field of ours begins with.
const PREFIX: &str = "TROTH_";

/// Bytes of a field's value in an entry that is too large for one datagram otherwise.
const SHORT: usize = 2048;

/// Bytes of a field's name (journald drops an entry's fields with longer ones).
const LONGEST_NAME: usize = 64;

/// Writes each event as an entry: the message is `MESSAGE=`, `message_id` is `MESSAGE_ID=`, and every
/// other field has the name `TROTH_...`.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    identifier: String,
}

impl Journal {
    /// The journal of this system; an error where it does not listen.
    pub(crate) fn open() -> io::Result<Self> {
        let program = env::args_os().next().unwrap_or_default();
        let name = Path::new(&program).file_name().unwrap_or_default();
        Self::at(SOCKET.into(), name.to_string_lossy().into_owned())
    }

    fn at(path: PathBuf, identifier: String) -> io::Result<Self> {
        let journal = Self {
            socket: UnixDatagram::unbound()?,
            path,
            identifier,
        };
        // An entry without fields is none.
        journal.socket.send_to(&[], &journal.path)?;
        Ok(journal)
    }

    fn send(&self, entry: &Entry) -> io::Result<usize> {
        let sent = self.socket.send_to(&entry.encode(usize::MAX), &self.path);
        let too_large = rustix::io::Errno::MSGSIZE.raw_os_error();
        match sent {
            Err(error) if error.raw_os_error() == Some(too_large) => {
                self.socket.send_to(&entry.encode(SHORT), &self.path)
            }
            sent => sent,
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        entry.complete(event, &self.identifier);
        // Nobody is left to tell when it does not come through.
        let _ = self.send(&entry);
    }
}

/// Fields in their order, each with its value.
#[derive(Debug, Default)]
struct Entry {
    fields: Vec<(String, String)>,
    message: String,
    error: Option<String>,
    has_id: bool,
}

impl Entry {
    fn add(&mut self, name: &str, value: String) {
        match name {
            "message" => self.message = value,
            "message_id" => {
                self.has_id = true;
                self.fields.push(("MESSAGE_ID".to_owned(), value));
            }
            _ => {
                if name == "error" {
                    self.error = Some(value.clone());
                }
                self.fields.push((field_name(name), value));
            }
        }
    }

    /// What an event has beside its fields.
    fn complete(&mut self, event: &Event<'_>, identifier: &str) {
        let about = event.metadata();
        // syslog(3). What has a MESSAGE_ID is worth a notice.
        let priority = match *about.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO if self.has_id => "5",
            Level::INFO => "6",
            _ => "7",
        };
        // `journalctl` shows the message alone.
        if let Some(error) = &self.error {
            let _ = write!(self.message, ": {error}");
        }
        let message = std::mem::take(&mut self.message);
        let line = about.line().map(|line| line.to_string());
        let standard = [
            ("MESSAGE", Some(message)),
            ("PRIORITY", Some(priority.to_owned())),
            ("SYSLOG_IDENTIFIER", Some(identifier.to_owned())),
            ("CODE_FILE", about.file().map(str::to_owned)),
            ("CODE_LINE", line),
            ("TROTH_TARGET", Some(about.target().to_owned())),
        ];
        for (name, value) in standard {
            self.fields
                .extend(value.map(|value| (name.to_owned(), value)));
        }
    }

    /// Name, length and value of each field; of each value no more than `limit` bytes.
    fn encode(&self, limit: usize) -> Vec<u8> {
        let mut entry = Vec::new();
        for (name, value) in &self.fields {
            let mut end = value.len().min(limit);
            while !value.is_char_boundary(end) {
                end -= 1;
            }
            let value = value.get(..end).unwrap_or_default();
            entry.extend_from_slice(name.as_bytes());
            entry.push(b'\n');
            entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
            entry.extend_from_slice(value.as_bytes());
            entry.push(b'\n');
        }
        entry
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), format!("{value:?}"));
    }
}

/// journald takes upper-case letters, digits and `_`.
fn field_name(name: &str) -> String {
    let upper = name.chars().map(|c| match c.to_ascii_uppercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    });
    PREFIX.chars().chain(upper).take(LONGEST_NAME).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// The entries that a journal in a directory of its own gets of what `log` does.
    fn entries(log: impl FnOnce()) -> Vec<BTreeMap<String, String>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(path, "troth-test".to_owned()).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), log);
        journald.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 1024 * 1024];
        let mut entries = Vec::new();
        while let Ok(length) = journald.recv(&mut buffer) {
            entries.extend((length > 0).then(|| decode(&buffer[..length])));
        }
        entries
    }

    fn decode(mut entry: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|byte| *byte == b'\n').unwrap();
            let (name, rest) = entry.split_at(end);
            let (length, rest) = rest[1..].split_at(8);
            let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            let (value, rest) = rest.split_at(length);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            assert!(fields.insert(text(name), text(value)).is_none());
            entry = rest.strip_prefix(b"\n").unwrap();
        }
        fields
    }

    #[test]
    fn fields_are_ours_but_for_those_that_the_journal_knows() {
        let entries = entries(|| {
            tracing::warn!(
                message_id = "0123456789abcdef0123456789abcdef",
                node_id = "a\nb",
                findings_total = 3,
                place = ?Some(1),
                "node {} failed",
                7
            );
            tracing::info!(error = "too late", "not done");
        });
        let [first, second] = &entries[..] else {
            panic!("{entries:?}");
        };
        let line = first["CODE_LINE"].parse::<u32>().unwrap();
        assert!(line > 0);
        let expected = [
            ("CODE_FILE", "daemon/src/journal.rs"),
            ("CODE_LINE", &first["CODE_LINE"]),
            ("MESSAGE", "node 7 failed"),
            ("MESSAGE_ID", "0123456789abcdef0123456789abcdef"),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "troth-test"),
            ("TROTH_FINDINGS_TOTAL", "3"),
            ("TROTH_NODE_ID", "a\nb"),
            ("TROTH_PLACE", "Some(1)"),
            ("TROTH_TARGET", "troth_daemon::journal::tests"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(first, &BTreeMap::from(expected));
        assert_eq!(second["MESSAGE"], "not done: too late");
        assert_eq!(second["TROTH_ERROR"], "too late");
        assert_eq!(second["PRIORITY"], "6");
    }

    #[test]
    fn what_is_worth_an_alert_is_at_least_a_notice() {
        let entries = entries(|| tracing::info!(message_id = "00", "done"));
        assert_eq!(entries[0]["PRIORITY"], "5");
    }

    #[test]
    fn an_entry_that_is_too_large_is_cut_and_not_lost() {
        let long = "\u{e4}".repeat(1024 * 1024);
        let entries = entries(|| tracing::error!(node_id = "n", got = long, "{long}"));
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0]["MESSAGE"], "\u{e4}".repeat(SHORT / 2));
        assert_eq!(entries[0]["TROTH_GOT"].len(), SHORT);
        assert_eq!(entries[0]["TROTH_NODE_ID"], "n");
    }

    #[test]
    fn names_are_those_that_journald_takes() {
        assert_eq!(field_name("db.statement"), "TROTH_DB_STATEMENT");
        assert_eq!(field_name(&"x".repeat(100)).len(), LONGEST_NAME);
    }
}
