use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::process::Process;

/// How often somebody who waits looks whether the machine still runs.
const LOOK: Duration = Duration::from_secs(1);

/// A line of JSON for each request and each answer, as QEMU's monitor (QMP) and its guest agent
/// speak, over a socket of QEMU's.
#[derive(Debug)]
pub(super) struct Control {
    stream: UnixStream,
    /// Received, and no whole line yet.
    received: Vec<u8>,
}

impl Control {
    /// Connects to the socket at `path` as soon as `qemu` has made it.
    pub(super) fn connect(path: &Path, qemu: &mut Process) -> Result<Self> {
        let stream = qemu.wait_for_log(0, |_| UnixStream::connect(path).ok())?;
        stream.set_read_timeout(Some(LOOK))?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    /// What `command` returns, within `patience`. Events on the way are not looked at.
    pub(super) fn ask(
        &mut self,
        command: &str,
        arguments: Value,
        patience: Duration,
    ) -> Result<Value> {
        self.send(&json!({"execute": command, "arguments": arguments}))?;
        let start = Instant::now();
        while start.elapsed() < patience {
            let Some(mut answer) = self.line()? else {
                continue;
            };
            if !answer["return"].is_null() {
                return Ok(answer["return"].take());
            }
            if !answer["error"].is_null() {
                bail!("{command}: {}", answer["error"]);
            }
        }
        bail!("{command}: no answer after {patience:?}")
    }

    pub(super) fn send(&mut self, request: &Value) -> Result<()> {
        let line = format!("{request}\n");
        Ok(self.stream.write_all(line.as_bytes())?)
    }

    /// The next line; `None` when a second passes without a whole one.
    pub(super) fn line(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.received.drain(..=end).collect();
                // What the guest agent puts before an answer that everybody can find.
                let start = line.iter().rposition(|byte| *byte == 0xff);
                let line = &line[start.map_or(0, |at| at + 1)..];
                return serde_json::from_slice(line)
                    .map(Some)
                    .with_context(|| format!("no JSON: {:?}", String::from_utf8_lossy(line)));
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("QEMU has ended"),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Control, UnixStream) {
        let (stream, other) = UnixStream::pair().unwrap();
        let wait = Duration::from_millis(1);
        stream.set_read_timeout(Some(wait)).unwrap();
        let received = Vec::new();
        (Control { stream, received }, other)
    }

    #[test]
    fn an_answer_is_found_among_events_and_in_pieces() {
        let (mut control, mut other) = pair();
        other
            .write_all(b"{\"event\": \"STOP\"}\n{\"return\"")
            .unwrap();
        assert_eq!(control.line().unwrap().unwrap()["event"], "STOP");
        assert_eq!(control.line().unwrap(), None);
        other.write_all(b": {\"pid\": 7}}\n").unwrap();
        let answer = control.ask("guest-exec", json!({}), Duration::from_secs(9));
        assert_eq!(answer.unwrap()["pid"], 7);
        // What an agent says first that was asked by somebody before.
        other.write_all(b"{\"ret\xff{\"return\": 3}\n").unwrap();
        assert_eq!(control.line().unwrap().unwrap()["return"], 3);
    }

    #[test]
    fn what_went_wrong_is_told() {
        let (mut control, mut other) = pair();
        let answer = b"{\"error\": {\"desc\": \"no such command\"}}\n";
        other.write_all(answer).unwrap();
        let mut ask = |patience| {
            control
                .ask("x", json!({}), patience)
                .unwrap_err()
                .to_string()
        };
        assert!(ask(Duration::from_secs(9)).contains("no such command"));
        assert!(ask(Duration::from_millis(2)).contains("no answer"));
        drop(other);
        assert!(ask(Duration::from_secs(9)).contains("Broken pipe"));
    }
}
