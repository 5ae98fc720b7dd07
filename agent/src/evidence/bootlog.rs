use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;

use crate::host_files::{HostFile, read_up_to};

/// Longest log that is sent. Real ones have 20 to 200 KB.
const LIMIT: usize = 16 * 1024 * 1024;

/// The TCG event log that the kernel took over from the firmware. It does not change until the next
/// boot, so its text is made once.
#[derive(Debug)]
pub struct BootLog {
    file: HostFile,
    cached: Mutex<Option<(Stamp, Bytes)>>,
}

/// Tells whether a file is still the one that was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl BootLog {
    /// The log in `file`, which need not exist: virtual machines often have none.
    pub fn new(file: impl Into<HostFile>) -> Self {
        Self {
            file: file.into(),
            cached: Mutex::new(None),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// base64 of the whole log; `None` when there is none, or it is empty.
    pub fn base64(&self) -> io::Result<Option<Bytes>> {
        let Some(file) = self.file.open()? else {
            return Ok(None);
        };
        let stamp = Stamp::of(&file.metadata()?);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, text)) = &*cached
            && *known == stamp
        {
            return Ok(Some(text.clone()));
        }
        let log = read_up_to(LIMIT + 1, &file)?;
        if log.is_empty() {
            return Ok(None);
        }
        if log.len() > LIMIT {
            let reason = format!("longer than {LIMIT} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
        }
        let text = Bytes::from(STANDARD.encode(&log));
        *cached = Some((stamp, text.clone()));
        Ok(Some(text))
    }
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            length: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_log_is_read_once_and_again_when_it_was_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = BootLog::new(path.clone());
        assert_eq!(log.base64().unwrap(), None, "no log");
        fs::write(&path, "").unwrap();
        assert_eq!(log.base64().unwrap(), None, "empty log");
        fs::write(&path, "abc").unwrap();
        let one = log.base64().unwrap().unwrap();
        assert_eq!(one, "YWJj");
        assert_eq!(
            log.base64().unwrap().unwrap().as_ptr(),
            one.as_ptr(),
            "cached"
        );
        fs::write(&path, "abcdef").unwrap();
        assert_eq!(log.base64().unwrap().unwrap(), "YWJjZGVm");
    }

    #[test]
    fn a_log_that_is_handed_over_is_read_as_often_as_it_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "abc").unwrap();
        let open = fs::File::open(&path).unwrap();
        let log = BootLog::new(HostFile::opened(path.clone(), open));
        assert_eq!(log.base64().unwrap().unwrap(), "YWJj");
        fs::write(&path, "abcdef").unwrap();
        assert_eq!(log.base64().unwrap().unwrap(), "YWJjZGVm");
    }

    #[test]
    fn a_log_that_cannot_be_read_is_not_a_missing_one() {
        let directory = tempfile::tempdir().unwrap();
        assert!(BootLog::new(directory.path().to_owned()).base64().is_err());
    }
}
