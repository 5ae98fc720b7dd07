//! Files that may be replaced at any time: the kernel tells of it (inotify(7)), so that nobody has
//! to look again and again.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    mem::MaybeUninit,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use tokio::{net::unix::pipe, sync::Notify, time::sleep};

/// How long is waited for what belongs to a change: a certificate and its key are two files.
const SETTLE: Duration = Duration::from_millis(300);

/// Symbolic links that a path may lead through, as in the kernel: path_resolution(7).
const MOST_LINKS: u32 = 40;

/// How often is tried to watch a path that changes meanwhile.
const ROUNDS: u32 = 8;

/// What takes a directory out of the way to a file. What happens to others of its parent is nobody's
/// business here: some directories never rest.
const MOVES: WatchFlags = WatchFlags::DELETE_SELF
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What changes the file of a name in a directory, or makes one.
const CHANGES: WatchFlags = MOVES
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO);

/// Wakes all [`Watch`]es.
static LOOK: Notify = Notify::const_new();

/// Has all [`Watch`]es of this process look again. Whoever wakes up from time to time anyway calls
/// this: the kernel tells neither of a file system that is mounted over a file, nor of what another
/// host changed on one that is shared, nor of a clock that was set.
pub fn look_again() {
    LOOK.notify_waiters();
}

/// What changes when a file is written or replaced: device, inode, size, and the time of the
/// change in seconds and nanoseconds.
pub type Stamp = (u64, u64, u64, i64, i64);

/// The stamp of the file at `path`, behind all symbolic links; `None` when there is none.
pub fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((
        file.dev(),
        file.ino(),
        file.len(),
        file.ctime(),
        file.ctime_nsec(),
    ))
}

/// Watches files, whether they exist or not, by the directories on the way to them: so it sees a
/// file that is written, replaced or removed, a directory that comes into being, and a symbolic link
/// that leads elsewhere.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    /// `None` where the kernel has no instance for us: then [`look_again`] is all there is.
    told: Option<Told>,
    /// Something was told of that [`Self::changed`] did not return for yet.
    pending: bool,
}

/// What the kernel tells.
#[derive(Debug)]
struct Told {
    /// It is no pipe, but tokio waits for it in the same way, and has no other safe call for that.
    instance: pipe::Receiver,
    /// Watched directories, with the names in them that matter.
    directories: BTreeMap<i32, Vec<OsString>>,
}

impl Watch {
    /// From now on, no change of these files is missed. Must run inside a tokio runtime.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut watch = Self {
            paths: paths.into_iter().collect(),
            told: None,
            pending: false,
        };
        match Told::new() {
            Ok(told) => watch.told = Some(told),
            Err(error) => watch.refused(&error),
        }
        watch.arm();
        watch
    }

    /// Returns when one of the files may be another than it was, or [`look_again`] was called:
    /// [`stamp`] tells more. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) {
        tokio::select! {
            () = settled(self.told.as_ref(), &mut self.pending) => {}
            () = LOOK.notified() => {}
        }
        self.arm();
    }

    /// Watches the ways to all files as they are now.
    fn arm(&mut self) {
        let Some(told) = &mut self.told else {
            return;
        };
        if let Err(error) = told.watch(&self.paths) {
            self.refused(&error);
            self.told = None;
        }
    }

    fn refused(&self, error: &io::Error) {
        let paths: Vec<_> = self.paths.iter().map(|path| path.display()).collect();
        tracing::warn!(
            "changes of {paths:?} are seen later than they could be: the kernel does not watch \
             them: {error}; see fs.inotify in sysctl.d(5)"
        );
    }
}

/// Returns when there was a change, and no more for a while.
async fn settled(told: Option<&Told>, pending: &mut bool) {
    let Some(told) = told else {
        return std::future::pending().await;
    };
    if !*pending {
        told.of_a_change().await;
        *pending = true;
    }
    sleep(SETTLE).await;
    told.drain();
    *pending = false;
}

impl Told {
    fn new() -> io::Result<Self> {
        let instance = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            instance: pipe::Receiver::from_owned_fd_unchecked(instance)?,
            directories: BTreeMap::new(),
        })
    }

    /// Watches the directories on the ways to `paths`, and no others.
    fn watch(&mut self, paths: &[PathBuf]) -> io::Result<()> {
        // A directory that was replaced while its successor was looked for shows in the next round.
        for _ in 0..ROUNDS {
            let mut ways = BTreeMap::new();
            for path in paths {
                follow(path, &mut ways);
            }
            let mut directories = BTreeMap::new();
            for (directory, names) in ways {
                let events = if names.is_empty() { MOVES } else { CHANGES };
                match inotify::add_watch(&self.instance, &directory, events) {
                    Ok(watched) => drop(directories.insert(watched, names)),
                    // Gone already, or not ours to see.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let known = directories
                .keys()
                .all(|watched| self.directories.contains_key(watched));
            for watched in self.directories.keys() {
                if !directories.contains_key(watched) {
                    // It fails for a directory that is gone, whose watch went with it.
                    let _ = inotify::remove_watch(&self.instance, *watched);
                }
            }
            self.directories = directories;
            if known {
                break;
            }
        }
        Ok(())
    }

    /// Returns when something happened to one of the names.
    async fn of_a_change(&self) {
        loop {
            if self.instance.readable().await.is_err() {
                // The runtime ends.
                return std::future::pending().await;
            }
            let change = self.instance.try_io(|| match self.drain() {
                true => Ok(()),
                false => Err(io::ErrorKind::WouldBlock.into()),
            });
            if change.is_ok() {
                return;
            }
        }
    }

    /// Reads all that was told; true when it is of one of the names.
    fn drain(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.instance, &mut buffer);
        let mut change = false;
        loop {
            match events.next() {
                Ok(event) => {
                    let lost = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    let names = self.directories.get(&event.wd());
                    let name = event.file_name().map(|name| name.to_bytes());
                    change |= lost
                        || names.is_some_and(|names| match name {
                            Some(name) => names.iter().any(|known| known.as_bytes() == name),
                            // Of the directory itself: it is gone, or unmounted.
                            None => true,
                        });
                }
                Err(Errno::INTR) => {}
                // There are no more.
                Err(_) => return change,
            }
        }
    }
}

/// Directories, free of symbolic links, each with the names in it whose change is of interest.
type Ways = BTreeMap<PathBuf, Vec<OsString>>;

/// Follows the way to `path`. Names are of interest where it ends, where something is missing, and
/// where a symbolic link leads elsewhere; the other directories are passed through.
fn follow(path: &Path, ways: &mut Ways) {
    let Ok(path) = std::path::absolute(path) else {
        return;
    };
    let mut here = PathBuf::from("/");
    let mut ahead = Vec::new();
    push(&mut ahead, &path);
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        let names = ways.entry(here.clone()).or_default();
        match fs::read_link(&next) {
            Ok(target) => {
                names.push(name);
                links += 1;
                if links > MOST_LINKS {
                    return;
                }
                if target.is_absolute() {
                    here = PathBuf::from("/");
                }
                push(&mut ahead, &target);
            }
            // It is there, and no link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && !ahead.is_empty() => {
                here = next;
            }
            Err(_) => return names.push(name),
        }
    }
}

/// Puts the names of `path` before those that are `ahead`, the next one last.
fn push(ahead: &mut Vec<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => ahead.push(name.to_owned()),
            Component::ParentDir => ahead.push("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A directory with a file to be watched, which need not exist.
    struct Place {
        directory: tempfile::TempDir,
        file: PathBuf,
    }

    impl Place {
        fn new(file: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join(file);
            Self { directory, file }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// A watch that saw what is there.
        fn watch(&self) -> (Watch, Option<Stamp>) {
            (Watch::new([self.file.clone()]), stamp(&self.file))
        }

        /// Waits until it is told that the file is another than `seen`.
        async fn another(&self, watch: &mut Watch, seen: &mut Option<Stamp>) {
            let changed = async {
                watch.changed().await;
                while stamp(&self.file) == *seen {
                    watch.changed().await;
                }
            };
            timeout(PATIENCE, changed).await.expect("no change is seen");
            *seen = stamp(&self.file);
        }
    }

    #[tokio::test]
    async fn a_file_that_appears_is_written_replaced_and_removed() {
        let place = Place::new("file");
        let (mut watch, mut seen) = place.watch();
        assert_eq!(seen, None);
        fs::write(&place.file, "one").unwrap();
        place.another(&mut watch, &mut seen).await;
        fs::write(&place.file, "another").unwrap();
        place.another(&mut watch, &mut seen).await;
        fs::write(place.at("new"), "replaced").unwrap();
        fs::rename(place.at("new"), &place.file).unwrap();
        place.another(&mut watch, &mut seen).await;
        fs::remove_file(&place.file).unwrap();
        place.another(&mut watch, &mut seen).await;
        assert_eq!(seen, None);
    }

    #[tokio::test]
    async fn directories_that_do_not_exist_yet_come_and_go() {
        let place = Place::new("a/b/file");
        let (mut watch, mut seen) = place.watch();
        for text in ["one", "another"] {
            fs::create_dir(place.at("a")).unwrap();
            // Seen on its way, or not: what follows is.
            let _ = timeout(SETTLE * 2, watch.changed()).await;
            fs::create_dir(place.at("a/b")).unwrap();
            fs::write(&place.file, text).unwrap();
            place.another(&mut watch, &mut seen).await;
            assert!(seen.is_some());
            fs::rename(place.at("a"), place.at(text)).unwrap();
            place.another(&mut watch, &mut seen).await;
            assert_eq!(seen, None);
        }
    }

    /// As Kubernetes replaces all files of a volume at once.
    #[tokio::test]
    async fn a_link_to_the_directory_that_a_link_leads_through() {
        let place = Place::new("file");
        for data in ["..1", "..2", "..3"] {
            fs::create_dir(place.at(data)).unwrap();
            fs::write(place.at(data).join("file"), data).unwrap();
        }
        symlink("..1", place.at("..data")).unwrap();
        symlink("..data/file", &place.file).unwrap();
        let (mut watch, mut seen) = place.watch();
        for data in ["..2", "..3"] {
            symlink(data, place.at("..tmp")).unwrap();
            fs::rename(place.at("..tmp"), place.at("..data")).unwrap();
            place.another(&mut watch, &mut seen).await;
            assert_eq!(fs::read_to_string(&place.file).unwrap(), data);
        }
        // What was left behind does not matter any more, what it leads to does.
        fs::write(place.at("..3/file"), "written").unwrap();
        place.another(&mut watch, &mut seen).await;
    }

    #[tokio::test]
    async fn what_the_kernel_does_not_tell_of_is_seen_when_everybody_looks_again() {
        let place = Place::new("file");
        let (mut watch, _) = place.watch();
        let other = async {
            loop {
                look_again();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = watch.changed() => {}
            () = other => {}
        }
    }

    #[test]
    fn links_that_lead_in_circles_end() {
        let place = Place::new("one/file");
        symlink("two", place.at("one")).unwrap();
        for other in ["../..//one/.", "one"] {
            let _ = fs::remove_file(place.at("two"));
            symlink(other, place.at("two")).unwrap();
            let mut ways = Ways::new();
            follow(&place.file, &mut ways);
            assert!(ways.len() < 10, "{ways:?}");
        }
    }
}
