use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::fs::Stat;
use troth_core::tpm::{Digest, HashAlgorithm};

use crate::error::Error;

/// What the file begins with; the last byte is the version of its format.
const MAGIC: [u8; 8] = *b"trothd\n\x01";
/// [`MAGIC`], `TPM_ALG_ID` (2 bytes), 6 bytes of zeros.
const HEADER: usize = 16;
/// A [`FileKey`] as it is stored.
const KEY: usize = 48;
/// SHA-256 of everything before it.
const TRAILER: usize = 32;
/// Longest cache that is read, in bytes: eleven million files.
const MAX_CACHE: u64 = 1 << 30;
/// A file that changed this close to the time it was read may change again without a new time
/// stamp: its digest is not kept.
const SETTLED: Duration = Duration::from_secs(2);

/// A file and its state: with the same key, a file has the same content.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct FileKey {
    device: u64,
    inode: u64,
    size: u64,
    /// Nanoseconds of the last change of its content.
    modified: i64,
    /// Nanoseconds of the last change of it at all, which no program can set.
    changed: i64,
}

impl FileKey {
    /// From what the kernel says about a file.
    pub(super) fn new(stat: &Stat) -> Self {
        let time = |seconds: i64, nanoseconds: i64| {
            seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(nanoseconds)
        };
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: time(stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
            changed: time(stat.st_ctime, stat.st_ctime_nsec.cast_signed()),
        }
    }

    /// Is it the same file with the same content, as far as the times of its content tell? A label
    /// that is written changes the other time alone.
    pub(super) fn has_content_of(&self, other: &Self) -> bool {
        let changed = other.changed;
        Self { changed, ..*self } == *other
    }

    /// Size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn to_bytes(self) -> [u8; KEY] {
        let mut bytes = [0; KEY];
        let words = [self.device, self.inode, self.size];
        let times = [self.modified, self.changed].map(i64::cast_unsigned);
        for (slot, word) in bytes.chunks_exact_mut(8).zip(words.iter().chain(&times)) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| {
            let bytes = bytes.get(8 * at..8 * at + 8);
            u64::from_le_bytes(bytes.and_then(|b| b.try_into().ok()).unwrap_or_default())
        };
        Self {
            device: word(0),
            inode: word(1),
            size: word(2),
            modified: word(3).cast_signed(),
            changed: word(4).cast_signed(),
        }
    }
}

/// Digests of files that were read before.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    algorithm: HashAlgorithm,
    digests: HashMap<FileKey, Digest>,
    /// What was read in this run, and what of the above was used in it.
    seen: Mutex<HashMap<FileKey, Digest>>,
    settled_before: i64,
}

impl Cache {
    /// The cache in a file, which need not be there yet. The text says why one was not used.
    pub(super) fn open(
        path: &Path,
        algorithm: HashAlgorithm,
    ) -> Result<(Self, Option<String>), Error> {
        let mut cache = Self {
            path: path.to_owned(),
            algorithm,
            digests: HashMap::new(),
            seen: Mutex::default(),
            settled_before: settled_before(),
        };
        let bytes = match read(path) {
            Ok(bytes) => bytes,
            Err(Unusable::Absent) => return Ok((cache, None)),
            Err(Unusable::Io(source)) => {
                return Err(Error::ReadFile {
                    path: path.to_owned(),
                    source,
                });
            }
            Err(Unusable::Refused(reason)) => return Err(cache.malformed(reason)),
        };
        match parse(&bytes) {
            Some((held, digests)) if held == algorithm => cache.digests = digests,
            Some((held, _)) => {
                let reason = format!("it holds {held} digests, and {algorithm} is asked for");
                return Err(cache.malformed(&reason));
            }
            None if bytes.starts_with(&MAGIC) => {
                let why = format!("{} is damaged: all files are read again", path.display());
                return Ok((cache, Some(why)));
            }
            // Not a file of ours, which must not be replaced by one.
            None => return Err(cache.malformed("it is not a cache of digests")),
        }
        Ok((cache, None))
    }

    /// The digest of a file in this state.
    pub(super) fn get(&self, key: &FileKey) -> Option<Digest> {
        self.digests.get(key).copied()
    }

    /// Keeps digests that were computed, of files that are settled, or used, which is said of files
    /// that were when they were kept.
    pub(super) fn keep(&self, digests: impl IntoIterator<Item = (FileKey, Digest)>) {
        let kept = digests
            .into_iter()
            .filter(|(key, digest)| self.is_settled(key) || self.get(key) == Some(*digest));
        self.lock().extend(kept);
    }

    fn is_settled(&self, key: &FileKey) -> bool {
        key.modified.max(key.changed) < self.settled_before
    }

    /// Keeps digests of files that this program has labelled since they were read: the state that
    /// they were read in, and the one that they have since. That the latter is fresh is of no
    /// account, as the change was ours; only the former must be settled.
    pub(super) fn keep_labelled(
        &self,
        digests: impl IntoIterator<Item = (FileKey, FileKey, Digest)>,
    ) {
        let settled = digests
            .into_iter()
            .filter(|(read, ..)| self.is_settled(read));
        self.lock()
            .extend(settled.map(|(_, state, digest)| (state, digest)));
    }

    /// Writes the cache. After a `complete` run, files that were not in it are forgotten.
    pub(super) fn save(&self, complete: bool) -> Result<(), Error> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC);
        bytes.extend(self.algorithm.id().to_le_bytes());
        bytes.resize(HEADER, 0);
        {
            let seen = self.lock();
            let older = (!complete).then_some(&self.digests).into_iter().flatten();
            let older = older.filter(|(key, _)| !seen.contains_key(key));
            for (key, digest) in seen.iter().chain(older) {
                bytes.extend(key.to_bytes());
                bytes.extend(digest.as_bytes());
            }
        }
        let checksum = HashAlgorithm::Sha256.digest(&[&bytes]);
        bytes.extend(checksum.as_bytes());
        write(&self.path, &bytes).map_err(|source| Error::WriteFile {
            path: self.path.clone(),
            source,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileKey, Digest>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn malformed(&self, reason: &str) -> Error {
        Error::Malformed {
            path: self.path.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// Nanoseconds since 1970, [`SETTLED`] ago.
fn settled_before() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.saturating_sub(SETTLED).as_nanos()).unwrap_or(i64::MAX)
}

enum Unusable {
    Absent,
    Refused(&'static str),
    Io(io::Error),
}

fn read(path: &Path) -> Result<Vec<u8>, Unusable> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unusable::Absent,
        _ => Unusable::Io(error),
    })?;
    let stat = rustix::fs::fstat(&file).map_err(|error| Unusable::Io(error.into()))?;
    let own = [0, rustix::process::geteuid().as_raw()].contains(&stat.st_uid);
    if !own || stat.st_mode & 0o022 != 0 {
        return Err(Unusable::Refused(
            "others may write it, and what it says is put into the policy",
        ));
    }
    if u64::try_from(stat.st_size).unwrap_or(0) > MAX_CACHE {
        return Err(Unusable::Refused("it is longer than a cache can be"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_CACHE)
        .read_to_end(&mut bytes)
        .map_err(Unusable::Io)?;
    Ok(bytes)
}

/// `None` for what this program did not write, or did not write to its end.
fn parse(bytes: &[u8]) -> Option<(HashAlgorithm, HashMap<FileKey, Digest>)> {
    let (bytes, checksum) = bytes.split_at_checked(bytes.len().checked_sub(TRAILER)?)?;
    if HashAlgorithm::Sha256.digest(&[bytes]).as_bytes() != checksum {
        return None;
    }
    let (header, entries) = bytes.split_at_checked(HEADER)?;
    let [low, high] = *header.strip_prefix(&MAGIC)?.first_chunk()?;
    let algorithm = HashAlgorithm::from_id(u16::from_le_bytes([low, high]))?;
    let entries = entries.chunks_exact(KEY + algorithm.size());
    if !entries.remainder().is_empty() {
        return None;
    }
    let digests = entries
        .map(|entry| {
            let (key, digest) = entry.split_at(KEY);
            Some((FileKey::from_bytes(key), Digest::from_slice(digest)?))
        })
        .collect::<Option<_>>()?;
    Some((algorithm, digests))
}

/// The whole file or nothing of it appears under its name.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_data()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SHA256: HashAlgorithm = HashAlgorithm::Sha256;

    fn key(inode: u64) -> FileKey {
        FileKey {
            device: 7,
            inode,
            size: 12,
            modified: -1,
            changed: 1_700_000_000_123_456_789,
        }
    }

    fn saved(path: &Path) -> Digest {
        let digest = SHA256.digest(&[b"content"]);
        let (cache, _) = Cache::open(path, SHA256).unwrap();
        cache.keep([(key(1), digest), (key(2), digest)]);
        cache.save(true).unwrap();
        digest
    }

    #[test]
    fn digests_outlive_the_program_and_are_forgotten_with_their_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache");
        let digest = saved(&path);

        let (cache, remark) = Cache::open(&path, SHA256).unwrap();
        assert_eq!((cache.get(&key(1)), remark), (Some(digest), None));
        let other = FileKey { size: 13, ..key(1) };
        assert_eq!(cache.get(&other), None);
        cache.keep([(key(1), digest)]);
        cache.save(false).unwrap();
        let (cache, _) = Cache::open(&path, SHA256).unwrap();
        assert!(
            cache.get(&key(2)).is_some(),
            "an interrupted run loses nothing"
        );
        cache.keep([(key(1), digest)]);
        cache.save(true).unwrap();
        let (cache, _) = Cache::open(&path, SHA256).unwrap();
        assert!(cache.get(&key(1)).is_some() && cache.get(&key(2)).is_none());
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache");
        let (cache, _) = Cache::open(&path, SHA256).unwrap();
        let changed = cache.settled_before + 1;
        let fresh = FileKey { changed, ..key(1) };
        cache.keep([(fresh, Digest::zero(SHA256))]);
        cache.save(true).unwrap();
        let (cache, _) = Cache::open(&path, SHA256).unwrap();
        assert_eq!(cache.get(&fresh), None);
    }

    #[test]
    fn a_file_that_was_labelled_is_kept_if_it_was_settled_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache");
        let (cache, _) = Cache::open(&path, SHA256).unwrap();
        let changed = cache.settled_before + 1;
        let labelled = FileKey { changed, ..key(1) };
        assert!(labelled.has_content_of(&key(1)));
        let written = FileKey {
            modified: 0,
            ..labelled
        };
        assert!(!written.has_content_of(&key(1)));
        let digest = Digest::zero(SHA256);
        let fresh = FileKey { changed, ..key(2) };
        cache.keep_labelled([(key(1), labelled, digest), (fresh, fresh, digest)]);
        cache.save(true).unwrap();
        let (cache, _) = Cache::open(&path, SHA256).unwrap();
        assert_eq!(cache.get(&labelled), Some(digest));
        assert_eq!(cache.get(&fresh), None);
    }

    #[test]
    fn a_torn_or_changed_cache_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache");
        saved(&path);
        let whole = std::fs::read(&path).unwrap();
        let private = std::fs::metadata(&path).unwrap().permissions();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            for bytes in [&whole[..at], &flipped] {
                std::fs::write(&path, bytes).unwrap();
                std::fs::set_permissions(&path, private.clone()).unwrap();
                match Cache::open(&path, SHA256) {
                    Ok((cache, remark)) => {
                        assert!(cache.digests.is_empty() && remark.is_some(), "byte {at}");
                    }
                    Err(Error::Malformed { reason, .. }) => {
                        assert!(at < MAGIC.len() && reason.contains("not a cache"));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    #[test]
    fn a_cache_of_another_algorithm_or_that_others_may_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache");
        saved(&path);
        let error = Cache::open(&path, HashAlgorithm::Sha1).unwrap_err();
        assert!(error.to_string().contains("sha256"), "{error}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o620)).unwrap();
        let error = Cache::open(&path, SHA256).unwrap_err();
        assert!(error.to_string().contains("others may write"), "{error}");
    }
}
