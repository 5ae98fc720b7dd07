use std::{io, os::fd::OwnedFd};

use rustix::fs::{FileType, SeekFrom, fstat, seek};
use troth_core::tpm::{Digest, HashAlgorithm, Hasher};

use super::cache::FileKey;

/// Bytes that are read at once; fits into a core's cache with the state of the hash.
const BUFFER: usize = 256 << 10;
/// How often a file is read that changes meanwhile.
const TRIES: usize = 3;

/// Why a file has no digest.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is not a regular file any more, or is gone: nothing runs from it.
    Gone,
    /// The whole command is to end.
    Stopped,
    /// It could not be read.
    Failed(io::Error),
    /// It changed each time that it was read.
    Changing,
}

/// Reads files whole, a piece at a time.
#[derive(Debug)]
pub(super) struct Reader {
    algorithm: HashAlgorithm,
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn new(algorithm: HashAlgorithm) -> Self {
        Self {
            algorithm,
            buffer: vec![0; BUFFER],
        }
    }

    /// The digest of a file's content, and the state of the file that had it. `read` is told of
    /// each piece, and says whether to go on.
    pub(super) fn digest(
        &mut self,
        file: &OwnedFd,
        read: impl Fn(usize) -> bool,
    ) -> Result<(FileKey, Digest), Unread> {
        let mut before = self.state(file)?;
        for attempt in 0..TRIES {
            if attempt > 0 {
                seek(file, SeekFrom::Start(0))?;
            }
            let digest = self.content(file, before.size(), &read)?;
            let after = self.state(file)?;
            if before == after {
                return Ok((after, digest));
            }
            before = after;
        }
        Err(Unread::Changing)
    }

    fn state(&self, file: &OwnedFd) -> Result<FileKey, Unread> {
        let stat = fstat(file)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(FileKey::new(&stat)),
            _ => Err(Unread::Gone),
        }
    }

    fn content(
        &mut self,
        file: &OwnedFd,
        size: u64,
        read: impl Fn(usize) -> bool,
    ) -> Result<Digest, Unread> {
        let mut hasher = Hasher::new(self.algorithm);
        let mut total = 0;
        loop {
            let count = rustix::io::read(file, self.buffer.as_mut_slice())?;
            if !read(count) {
                return Err(Unread::Stopped);
            }
            hasher.update(self.buffer.get(..count).unwrap_or_default());
            total += count as u64;
            // A regular file gives less than there is room for at its end alone.
            if count == 0 || (count < BUFFER && total == size) {
                return Ok(hasher.finish());
            }
        }
    }
}

impl From<rustix::io::Errno> for Unread {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Failed(error.into())
    }
}
