use std::{
    collections::{BTreeMap, HashMap},
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2,
        statat,
    },
    io::Errno,
};
use troth_core::tpm::{Digest, HashAlgorithm};

use super::{
    cache::{Cache, FileKey},
    found::Found,
    kernel_name,
    label::{Label, Labelled},
    progress::{Bar, Counters},
    read::{Reader, Unread},
};
use crate::error::Error;

/// Directories that are not looked into: Keylime's, and the copies of the whole system that
/// snapper keeps.
pub(super) const SKIPPED: [&str; 11] = [
    "/sys",
    "/run",
    "/proc",
    "/lost+found",
    "/dev",
    "/media",
    "/snap",
    "/mnt",
    "/var",
    "/tmp",
    "/.snapshots",
];
/// Files that one thread takes at a time, and about how many bytes.
const BATCH_FILES: usize = 64;
const BATCH_BYTES: u64 = 16 << 20;
/// Threads for each core: while some wait for the disk, others compute.
const THREADS_PER_CORE: usize = 2;
/// How often the cache is written while files are read.
const SAVE_EVERY: Duration = Duration::from_secs(60);
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// Which files of a directory are read, and how.
pub(super) struct Tree {
    /// The directory that stands for `/`.
    pub(super) root: PathBuf,
    /// Files and directories that are left out, as paths below the root, and whether they were there.
    pub(super) skip: BTreeMap<PathBuf, AtomicBool>,
    /// Also files that do not belong to root.
    pub(super) all_owners: bool,
    pub(super) algorithm: HashAlgorithm,
    /// What is written to the files themselves.
    pub(super) label: Option<Label>,
}

impl Tree {
    /// Reads every file of the tree on all cores. `stop` is asked between pieces of files.
    pub(super) fn read(
        &self,
        cache: Option<&Cache>,
        bar: &Bar,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Found, Error> {
        let fail = |source: Errno| Error::ReadFile {
            path: self.root.clone(),
            source: source.into(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, &self.root, flags, Mode::empty()).map_err(fail)?;
        let device = fstat(&root).map_err(fail)?.st_dev;
        let scan = Scan {
            tree: self,
            cache,
            stop,
            file_system: file_system(&root).map_err(fail)?,
            root,
            counters: Counters::default(),
            linked: Mutex::default(),
            work: Mutex::default(),
            more: Condvar::new(),
        };
        scan.lock().directories.push(Directory {
            path: PathBuf::new(),
            device,
        });
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut found = Found::default();
        let saved = thread::scope(|scope| {
            let (sender, parts) = mpsc::channel();
            for _ in 0..cores * THREADS_PER_CORE {
                let sender = sender.clone();
                let scan = &scan;
                // It is received for as long as a thread may send.
                scope.spawn(move || drop(sender.send(scan.work())));
            }
            drop(sender);
            scan.watch(bar, &parts, &mut found)
        });
        bar.clear();
        found.stopped = stop();
        saved?;
        if let Some(cache) = cache {
            cache.save(!found.stopped)?;
        }
        Ok(found)
    }
}

/// One pass over a tree, shared by its threads.
struct Scan<'a> {
    tree: &'a Tree,
    cache: Option<&'a Cache>,
    stop: &'a (dyn Fn() -> bool + Sync),
    root: OwnedFd,
    /// The type of file system that is not left.
    file_system: u64,
    counters: Counters,
    /// Digests of files with more than one name.
    linked: Mutex<HashMap<FileKey, Digest>>,
    work: Mutex<Work>,
    more: Condvar,
}

/// What is left to do. All directories are read first, so that the end is in sight.
#[derive(Default)]
struct Work {
    directories: Vec<Directory>,
    batches: Vec<Batch>,
    /// Directories that are being read, whose files are not yet here.
    open: usize,
}

struct Directory {
    path: PathBuf,
    device: u64,
}

struct Batch {
    directory: Arc<Path>,
    files: Vec<Candidate>,
}

struct Candidate {
    name: CString,
    inode: u64,
    size: u64,
    linked: bool,
    /// Its digest in that state, if the cache has it.
    known: Option<(FileKey, Digest)>,
}

enum Job {
    Directory(Directory),
    Batch(Batch),
}

impl Scan<'_> {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Job> {
        let mut work = self.lock();
        loop {
            if let Some(directory) = work.directories.pop() {
                work.open += 1;
                return Some(Job::Directory(directory));
            }
            if work.open == 0 {
                self.counters.all_found.store(true, Relaxed);
            }
            if let Some(batch) = work.batches.pop() {
                return Some(Job::Batch(batch));
            }
            if work.open == 0 {
                return None;
            }
            work = self.more.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What each thread does.
    fn work(&self) -> Found {
        let mut found = Found::default();
        let mut reader = Reader::new(self.tree.algorithm);
        while let Some(job) = self.take() {
            match job {
                Job::Directory(directory) => {
                    let inside = if (self.stop)() {
                        Work::default()
                    } else {
                        self.list(&directory, &mut found)
                    };
                    let mut work = self.lock();
                    work.directories.extend(inside.directories);
                    work.batches.extend(inside.batches);
                    work.open -= 1;
                    drop(work);
                    self.more.notify_all();
                }
                Job::Batch(batch) if !(self.stop)() => {
                    self.read_files(&batch, &mut reader, &mut found);
                }
                Job::Batch(_) => {}
            }
        }
        found
    }

    /// Shows how far it is, and saves the cache now and then, until each thread has sent its part.
    fn watch(&self, bar: &Bar, parts: &Receiver<Found>, found: &mut Found) -> Result<(), Error> {
        let mut saved = Instant::now();
        let mut result = Ok(());
        loop {
            match parts.recv_timeout(SHOW_EVERY) {
                Ok(part) => found.add(part),
                Err(RecvTimeoutError::Disconnected) => return result,
                Err(RecvTimeoutError::Timeout) => bar.show(&self.counters),
            }
            if let (Some(cache), true) = (self.cache, saved.elapsed() > SAVE_EVERY) {
                result = cache.save(false);
                saved = Instant::now();
            }
        }
    }

    /// Sorts what is in a directory into files to be read and directories; files whose digest is
    /// in the cache are done.
    fn list(&self, directory: &Directory, found: &mut Found) -> Work {
        let mut inside = Work::default();
        if let Err(error) = self.try_list(directory, &mut inside, found)
            && error != Errno::NOENT
        {
            found.unreadable(&named(&directory.path), io::Error::from(error));
        }
        inside
    }

    fn try_list(
        &self,
        directory: &Directory,
        inside: &mut Work,
        found: &mut Found,
    ) -> Result<(), Errno> {
        let open = self.open_directory(&directory.path)?;
        let device = fstat(&open)?.st_dev;
        if device != directory.device && file_system(&open)? != self.file_system {
            let path = named(&directory.path);
            found.not_entered.push(path.display().to_string());
            return Ok(());
        }
        let shared: Arc<Path> = Arc::from(directory.path.as_path());
        let mut known = Vec::new();
        let mut files = Vec::new();
        for entry in Dir::read_from(&open)? {
            let entry = entry?;
            let name = entry.file_name();
            let path = directory.path.join(OsStr::from_bytes(name.to_bytes()));
            let kind = entry.file_type();
            if [&b"."[..], b".."].contains(&name.to_bytes()) {
                continue;
            }
            if let Some(was_there) = self.tree.skip.get(&path) {
                was_there.store(true, Relaxed);
                continue;
            }
            if !matches!(
                kind,
                FileType::RegularFile | FileType::Directory | FileType::Unknown
            ) {
                continue;
            }
            if kind == FileType::Directory {
                inside.directories.push(Directory { path, device });
                continue;
            }
            let stat = match statat(&open, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => {
                    found.unreadable(&named(&path), io::Error::from(error));
                    continue;
                }
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => inside.directories.push(Directory { path, device }),
                FileType::RegularFile if self.tree.all_owners || stat.st_uid == 0 => {
                    let key = FileKey::new(&stat);
                    let digest = self.cache.and_then(|cache| cache.get(&key));
                    if let (Some(digest), None) = (digest, &self.tree.label) {
                        known.push((key, digest));
                        found.files.push((name_of(&path), digest));
                    } else {
                        files.push(Candidate {
                            name: name.to_owned(),
                            inode: stat.st_ino,
                            size: key.size(),
                            linked: stat.st_nlink > 1,
                            known: digest.map(|digest| (key, digest)),
                        });
                    }
                }
                _ => {}
            }
        }
        let count = known.len() as u64;
        found.cached += count;
        self.counters.files_done.fetch_add(count, Relaxed);
        if let Some(cache) = self.cache {
            cache.keep(known);
        }
        self.counters
            .bytes_found
            .fetch_add(files.iter().map(|file| file.size).sum(), Relaxed);
        inside.batches = batches(&shared, files);
        Ok(())
    }

    fn read_files(&self, batch: &Batch, reader: &mut Reader, found: &mut Found) {
        let directory = match self.open_directory(&batch.directory) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return,
            Err(error) => {
                return found.unreadable(&named(&batch.directory), io::Error::from(error));
            }
        };
        let mut digests = Vec::new();
        let mut labelled = Vec::new();
        for file in &batch.files {
            let path = batch
                .directory
                .join(OsStr::from_bytes(file.name.to_bytes()));
            let open = match open_file(&directory, file) {
                Ok(open) => open,
                Err(Unread::Failed(error)) => {
                    found.unreadable(&named(&path), error);
                    continue;
                }
                Err(_) => continue,
            };
            match self.read_file(&open, file, reader) {
                Ok((key, digest)) => {
                    let known = file.known.is_some_and(|(known, _)| known == key);
                    found.cached += u64::from(known);
                    match self.label(&open, key, &digest, &path, found) {
                        Some(state) if state != key => labelled.push((key, state, digest)),
                        _ => digests.push((key, digest)),
                    }
                    found.files.push((name_of(&path), digest));
                }
                Err(Unread::Gone) => {}
                Err(Unread::Stopped) => break,
                Err(Unread::Failed(error)) => found.unreadable(&named(&path), error),
                Err(Unread::Changing) => {
                    found.unreadable(&named(&path), "it changes while it is read");
                }
            }
        }
        let done = digests.len() + labelled.len();
        self.counters.files_done.fetch_add(done as u64, Relaxed);
        if let Some(cache) = self.cache {
            cache.keep(digests);
            cache.keep_labelled(labelled);
        }
    }

    /// Labels a file, and says which state it is in since; `None`: nobody knows.
    fn label(
        &self,
        file: &OwnedFd,
        key: FileKey,
        digest: &Digest,
        path: &Path,
        found: &mut Found,
    ) -> Option<FileKey> {
        let label = self.tree.label.as_ref()?;
        match label.write(file, digest) {
            Ok(Labelled::Written) => found.labels[0] += 1,
            Ok(Labelled::Right) => found.labels[1] += 1,
            Ok(Labelled::Foreign) => found.labels[2] += 1,
            Err(error) => found.unlabelled(&named(path), error),
        }
        let state = FileKey::new(&fstat(file).ok()?);
        state.has_content_of(&key).then_some(state)
    }

    fn read_file(
        &self,
        file: &OwnedFd,
        candidate: &Candidate,
        reader: &mut Reader,
    ) -> Result<(FileKey, Digest), Unread> {
        if let Some((key, digest)) = candidate.known
            && FileKey::new(&fstat(file)?) == key
        {
            self.counters.bytes_done.fetch_add(key.size(), Relaxed);
            return Ok((key, digest));
        }
        let linked = candidate.linked.then(|| {
            let linked = self.linked.lock();
            linked.unwrap_or_else(PoisonError::into_inner)
        });
        if let Some(linked) = linked {
            let key = FileKey::new(&fstat(file)?);
            if let Some(digest) = linked.get(&key) {
                self.counters.bytes_done.fetch_add(key.size(), Relaxed);
                return Ok((key, *digest));
            }
        }
        let (key, digest) = reader.digest(file, |bytes| {
            self.counters.bytes_done.fetch_add(bytes as u64, Relaxed);
            !(self.stop)()
        })?;
        if candidate.linked {
            let linked = self.linked.lock();
            let mut linked = linked.unwrap_or_else(PoisonError::into_inner);
            linked.insert(key, digest);
        }
        Ok((key, digest))
    }

    /// Opens a directory below the root without following any symbolic link.
    fn open_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if path == Path::new("") {
            return openat(&self.root, ".", flags, Mode::empty());
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(&self.root, path, flags, Mode::empty(), resolve) {
            // Kernels before 5.6, and containers that know no newer calls.
            Err(Errno::NOSYS | Errno::PERM) => {
                let start = openat(&self.root, ".", flags, Mode::empty())?;
                path.iter().try_fold(start, |directory, name| {
                    openat(directory.as_fd(), name, flags, Mode::empty())
                })
            }
            result => result,
        }
    }
}

/// Opens a file for reading, without a trace in its access time where that is allowed.
fn open_file(directory: &OwnedFd, file: &Candidate) -> Result<OwnedFd, Unread> {
    // A device or FIFO in place of the file must not make the open wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |flags| openat(directory, &*file.name, flags, Mode::empty());
    let opened = match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        result => result,
    };
    opened.map_err(|error| match error {
        Errno::NOENT | Errno::LOOP | Errno::NXIO => Unread::Gone,
        error => error.into(),
    })
}

/// Files of a directory in the order in which the disk has them, by the handful.
fn batches(directory: &Arc<Path>, mut files: Vec<Candidate>) -> Vec<Batch> {
    files.sort_unstable_by_key(|file| file.inode);
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut bytes = 0;
    for file in files {
        bytes += file.size;
        batch.push(file);
        if batch.len() == BATCH_FILES || bytes > BATCH_BYTES {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
    }
    batches.push(batch);
    batches
        .into_iter()
        .filter(|files| !files.is_empty())
        .map(|files| Batch {
            directory: Arc::clone(directory),
            files,
        })
        .collect()
}

/// A path below the root as the policy has it.
fn named(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

fn name_of(path: &Path) -> String {
    kernel_name(named(path).as_os_str().as_bytes())
}

fn file_system(open: &OwnedFd) -> Result<u64, Errno> {
    Ok(fstatfs(open)?.f_type.cast_unsigned())
}
