use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::PermissionsExt,
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use troth_core::eventlog::MAX_USERSPACE_LOG;

use crate::host_files::{HostFile, read_up_to};

/// systemd sets it while it extends a PCR and writes of it: where it stays, the writer died in
/// between.
const STICKY: u32 = 0o1000;
/// Begins a record (RFC 7464).
const RECORD_SEPARATOR: u8 = 0x1e;
/// How often, and how long in between, a writer is waited for. An extension takes milliseconds.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// systemd's log of what user space measured, `/run/log/systemd/tpm2-measure.log`.
#[derive(Debug)]
pub struct UserspaceLog {
    file: HostFile,
}

impl UserspaceLog {
    /// The log in `file`, which need not exist: only hosts booted through systemd-stub have one.
    pub fn new(file: impl Into<HostFile>) -> Self {
        Self { file: file.into() }
    }

    /// base64 of the whole log; `None` when there is none, or it cannot be read: a quote without it
    /// proves less, not something else.
    pub fn base64(&self) -> Option<String> {
        match self.read() {
            Ok(log) => log.map(|log| STANDARD.encode(log)),
            Err(error) => {
                tracing::warn!("cannot read {}: {error}", self.file.path().display());
                None
            }
        }
    }

    /// The log. Where its last writer died, a record that never came is begun at its end, which is
    /// how the verifier learns of it.
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.file.open()? else {
            return Ok(None);
        };
        wait_for_writer(&file)?;
        let read = || {
            let torn = file.metadata()?.permissions().mode() & STICKY != 0;
            Ok::<_, io::Error>((torn, read_up_to(MAX_USERSPACE_LOG + 1, &file)?))
        };
        let read = read();
        // A file that was handed over stays open, and its writer must not wait for it.
        file.unlock()?;
        let (torn, mut log) = read?;
        if log.len() > MAX_USERSPACE_LOG {
            let reason = format!("longer than {MAX_USERSPACE_LOG} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
        }
        if torn {
            log.push(RECORD_SEPARATOR);
        }
        Ok((!log.is_empty()).then_some(log))
    }
}

/// systemd locks the log while it writes, and so does this reader.
fn wait_for_writer(file: &File) -> io::Result<()> {
    for _ in 0..TRIES {
        match file.try_lock_shared() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    // Whoever holds it that long does not measure: what there is is read.
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn a_log_is_read_whole_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = UserspaceLog::new(path.clone());
        assert_eq!(log.base64(), None, "no log");
        fs::write(&path, "\u{1e}{}\n").unwrap();
        assert_eq!(log.base64().unwrap(), STANDARD.encode("\u{1e}{}\n"));
        fs::write(&path, "\u{1e}{}\n\u{1e}[]\n").unwrap();
        assert_eq!(
            log.base64().unwrap(),
            STANDARD.encode("\u{1e}{}\n\u{1e}[]\n")
        );
        fs::write(&path, vec![b' '; MAX_USERSPACE_LOG + 1]).unwrap();
        assert_eq!(log.base64(), None, "too long");
    }

    #[test]
    fn a_writer_that_died_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "\u{1e}{}\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o1600)).unwrap();
        let log = UserspaceLog::new(path);
        assert_eq!(log.base64().unwrap(), STANDARD.encode("\u{1e}{}\n\u{1e}"));
    }

    #[test]
    fn a_log_that_is_handed_over_can_be_written_between_two_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "\u{1e}{}\n").unwrap();
        let open = File::open(&path).unwrap();
        let log = UserspaceLog::new(HostFile::opened(path.clone(), open));
        for records in 1..3 {
            let text = "\u{1e}{}\n".repeat(records);
            assert_eq!(log.base64().unwrap(), STANDARD.encode(&text));
            let writer = File::options().append(true).open(&path).unwrap();
            writer.try_lock().unwrap();
            io::Write::write_all(&mut &writer, b"\x1e{}\n").unwrap();
        }
    }

    #[test]
    fn a_writer_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "").unwrap();
        let writer = File::options().append(true).open(&path).unwrap();
        writer.lock().unwrap();
        let reader = {
            let log = UserspaceLog::new(path.clone());
            thread::spawn(move || log.base64())
        };
        thread::sleep(PAUSE * 3);
        fs::write(&path, "\u{1e}{}\n").unwrap();
        drop(writer);
        assert_eq!(
            reader.join().unwrap().unwrap(),
            STANDARD.encode("\u{1e}{}\n")
        );
    }
}
