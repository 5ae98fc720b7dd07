use std::{
    fs::File,
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt},
    },
};

use troth_daemon::{descriptors::Descriptors, notify};

use super::ima::Mark;
use crate::memory_file;

/// Names in the unit's file descriptor store.
const LIST: &str = "ima-list-read";
const POSITION: &str = "ima-list-position";

/// Bytes of a position: four numbers, little endian.
const LENGTH: usize = 32;

/// The open IMA list of an earlier start, and what is known of it. The service manager keeps both
/// while the agent restarts (`FileDescriptorStoreMax=` in systemd.service(5)): a list that is opened
/// anew has to be walked through by the kernel, and counted by the agent, before the first answer.
///
/// A kept list is of this boot, as it does not outlive the kernel.
#[derive(Debug, Default)]
pub struct KeptList {
    list: Option<File>,
    position: Option<File>,
}

/// Tells the next start where an entry of a list begins.
#[derive(Debug)]
pub(super) struct Position {
    memory: File,
    device: u64,
    inode: u64,
}

impl KeptList {
    /// What the service manager has handed over.
    pub fn take(descriptors: &mut Descriptors) -> Self {
        Self {
            list: descriptors.take_file(LIST),
            position: descriptors.take_file(POSITION),
        }
    }

    /// The kept list with the last position in it, if it is the same list as `fresh`.
    pub(super) fn resume(self, fresh: &File) -> Option<(File, Position, Mark)> {
        let (list, memory) = (self.list?, self.position?);
        let position = Position::of(memory, fresh).ok()?;
        let about = list.metadata().ok()?;
        if (about.dev(), about.ino()) != (position.device, position.inode) {
            return None;
        }
        let mark = position.read()?;
        Some((list, position, mark))
    }

    /// Keeps `list` for the next start, instead of what was kept before.
    pub(super) fn begin(list: &File) -> io::Result<Position> {
        Self::forget();
        let memory = memory_file::create(POSITION)?;
        notify::keep(LIST, list.as_fd());
        notify::keep(POSITION, memory.as_fd());
        Position::of(memory, list)
    }

    /// Of no use any more.
    pub(super) fn give_up(self) {
        if self.list.is_some() || self.position.is_some() {
            Self::forget();
        }
    }

    fn forget() {
        notify::forget(LIST);
        notify::forget(POSITION);
    }
}

impl Position {
    fn of(memory: File, list: &File) -> io::Result<Self> {
        let about = list.metadata()?;
        Ok(Self {
            memory,
            device: about.dev(),
            inode: about.ino(),
        })
    }

    pub(super) fn device(&self) -> u64 {
        self.device
    }

    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    /// Written at once, or not at all: whoever is killed leaves no half of it.
    pub(super) fn write(&self, mark: Mark) {
        let mut bytes = [0; LENGTH];
        let numbers = [self.device, self.inode, mark.entry, mark.offset];
        for (field, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        if let Err(error) = self.memory.write_all_at(&bytes, 0) {
            tracing::debug!("the next start will count the IMA list anew: {error}");
        }
    }

    /// `None` unless it is one of this list.
    fn read(&self) -> Option<Mark> {
        let mut bytes = [0; LENGTH];
        self.memory.read_exact_at(&mut bytes, 0).ok()?;
        let (numbers, _) = bytes.as_chunks::<8>();
        let [device, inode, entry, offset] = numbers else {
            return None;
        };
        let same = [*device, *inode].map(u64::from_le_bytes) == [self.device, self.inode];
        same.then_some(Mark {
            entry: u64::from_le_bytes(*entry),
            offset: u64::from_le_bytes(*offset),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, path::Path, sync::Arc};

    use super::*;
    use crate::{evidence::ima::ImaList, host_files::HostFile};

    fn text(entries: std::ops::Range<usize>) -> String {
        entries
            .map(|n| format!("10 {n:040x} ima-ng sha256:{n:064x} /usr/bin/tool-{n}\n"))
            .collect()
    }

    fn opened(path: &Path) -> HostFile {
        HostFile::opened(path.to_owned(), File::open(path).unwrap())
    }

    fn entries(list: &Arc<ImaList>, from: u64) -> String {
        let mut reader = list.read_from(from).unwrap().unwrap();
        assert_eq!(reader.first_entry(), from);
        let mut text = Vec::new();
        while let Some(entries) = reader.next_entries().unwrap() {
            text.extend(entries);
        }
        String::from_utf8(text).unwrap()
    }

    /// A list of 100 entries that was read to its end, and what is kept of it.
    fn read_once(path: &Path) -> KeptList {
        fs::write(path, text(0..100)).unwrap();
        let list = File::open(path).unwrap();
        let position = KeptList::begin(&list).unwrap();
        let kept = KeptList {
            list: Some(list.try_clone().unwrap()),
            position: Some(position.memory.try_clone().unwrap()),
        };
        let source = HostFile::opened(path.to_owned(), list);
        let list = Arc::new(ImaList::with_position(source, position));
        assert_eq!(entries(&list, 0), text(0..100));
        kept
    }

    #[test]
    fn the_next_start_reads_on_where_the_last_one_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let kept = read_once(&path);
        // Whoever reads from the beginning now counts too few.
        let start = fs::OpenOptions::new().write(true).open(&path).unwrap();
        start.write_all_at(&[b'x'; 1000], 0).unwrap();
        let mut end = fs::OpenOptions::new().append(true).open(&path).unwrap();
        end.write_all(text(100..110).as_bytes()).unwrap();
        let list = Arc::new(ImaList::continued(opened(&path), kept));
        assert_eq!(entries(&list, 105), text(105..110));
    }

    #[test]
    fn another_list_is_read_from_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let [path, other] = ["list", "other"].map(|name| directory.path().join(name));
        let kept = read_once(&path);
        fs::write(&other, text(500..700)).unwrap();
        let list = Arc::new(ImaList::continued(opened(&other), kept));
        assert_eq!(entries(&list, 150), text(650..700));
    }

    #[test]
    fn a_position_that_says_nothing_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let kept = read_once(&path);
        kept.position.as_ref().unwrap().set_len(31).unwrap();
        let list = Arc::new(ImaList::continued(opened(&path), kept));
        assert_eq!(entries(&list, 99), text(99..100));
    }
}
