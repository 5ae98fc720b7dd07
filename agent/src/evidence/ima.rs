use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use memchr::{memchr_iter, memrchr};

use super::kept::{KeptList, Position};
use crate::host_files::HostFile;

/// Bytes asked for at a time. securityfs gives at most 4 KiB per read, so a block takes several.
const BLOCK: usize = 64 * 1024;

/// Longest entry. `ima-buf` entries carry a whole buffer in hex; 16 MiB is far beyond them.
const LONGEST_ENTRY: usize = 16 * 1024 * 1024;

/// What was read last of a list that was handed over; between once and twice as much is kept. The
/// position of any entry near the end is known within it.
const RECENT: usize = 2 * BLOCK;

/// The ASCII measurement list. Positions of entries are kept, so that a verifier that asks for what
/// is new costs a read at the end, not a walk through the list.
///
/// A list that was handed over is one open file, and reading it elsewhere than where the last read
/// ended makes the kernel walk through the list. The end of what was read is kept therefore: readers
/// that follow one another at the end of the list share one position.
#[derive(Debug)]
pub struct ImaList {
    source: HostFile,
    state: Mutex<State>,
    /// For the next start, of a list that was handed over.
    position: Option<Position>,
}

#[derive(Debug, Default)]
struct State {
    /// The file that positions are of.
    file: Option<Open>,
    /// Counts the files; readers of an older one do not leave positions in the newer.
    generation: u64,
    /// Where some entries begin, ascending; about one per block.
    marks: Vec<Mark>,
    /// The end of what was read, of a list that was handed over.
    recent: Recent,
}

/// Bytes of the list, the first of which is at `offset`.
#[derive(Debug, Default)]
struct Recent {
    offset: u64,
    bytes: Vec<u8>,
}

impl Recent {
    /// Copies what is known from `offset` on, and returns how much that is.
    fn copy_to(&self, buffer: &mut [u8], offset: u64) -> usize {
        let from = offset.checked_sub(self.offset).map(usize::try_from);
        let Some(known) = from.and_then(|from| self.bytes.get(from.ok()?..)) else {
            return 0;
        };
        let length = known.len().min(buffer.len());
        buffer[..length].copy_from_slice(&known[..length]);
        length
    }

    fn keep(&mut self, bytes: &[u8], offset: u64) {
        if offset != self.offset + self.bytes.len() as u64 {
            self.offset = offset;
            self.bytes.clear();
        }
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > 2 * RECENT {
            let old = self.bytes.len() - RECENT;
            self.bytes.drain(..old);
            self.offset += old as u64;
        }
    }
}

#[derive(Clone, Debug)]
struct Open {
    file: Arc<File>,
    device: u64,
    inode: u64,
}

/// Entry `entry` begins at byte `offset`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Mark {
    pub(super) entry: u64,
    pub(super) offset: u64,
}

/// Reads entries in order from a position. It shares nothing but the file with other readers.
#[derive(Debug)]
pub struct Reader {
    list: Arc<ImaList>,
    file: Arc<File>,
    generation: u64,
    /// First entry that this reader returns.
    first: u64,
    /// Behind the last whole entry that was read.
    position: Mark,
    /// Read, and to be returned next: whole entries.
    ready: Vec<u8>,
    /// Read behind `position`: the beginning of an entry.
    partial: Vec<u8>,
    at_end: bool,
}

impl ImaList {
    /// The list in `source`, which need not exist: not every kernel has IMA.
    pub fn new(source: impl Into<HostFile>) -> Self {
        Self {
            source: source.into(),
            state: Mutex::default(),
            position: None,
        }
    }

    /// The list in `source`. One that was handed over is kept for the next start, and goes on as
    /// the one of the last start if it was kept.
    pub fn continued(source: HostFile, kept: KeptList) -> Self {
        let Some(fresh) = source.handed_over() else {
            kept.give_up();
            return Self::new(source);
        };
        if let Some((file, position, mark)) = kept.resume(fresh) {
            tracing::debug!("the IMA list is read on at entry {}", mark.entry);
            let (device, inode) = (position.device(), position.inode());
            let source = HostFile::opened(source.path().to_owned(), file);
            let list = Self::with_position(source, position);
            if let Ok(Some(file)) = list.source.open() {
                let mut state = list.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.file = Some(Open {
                    file,
                    device,
                    inode,
                });
                state.marks.push(mark);
            }
            return list;
        }
        match KeptList::begin(fresh) {
            Ok(position) => Self::with_position(source, position),
            Err(error) => {
                tracing::warn!("the IMA list is counted anew at each start: {error}");
                Self::new(source)
            }
        }
    }

    pub(super) fn with_position(source: HostFile, position: Position) -> Self {
        Self {
            position: Some(position),
            ..Self::new(source)
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// A reader at entry `from`; at entry 0 when the list has fewer than `from` entries, because
    /// then it is not the list that the asker knows. `None` when there is no list.
    pub fn read_from(self: &Arc<Self>, from: u64) -> io::Result<Option<Reader>> {
        let Some((file, generation, mark)) = self.open(from)? else {
            return Ok(None);
        };
        let mut reader = Reader {
            list: Arc::clone(self),
            file,
            generation,
            first: from,
            position: mark,
            ready: Vec::new(),
            partial: Vec::new(),
            at_end: false,
        };
        if !reader.skip_to(from)? {
            reader.rewind();
        }
        Ok(Some(reader))
    }

    /// The open file and the best known position at or before entry `from`.
    fn open(&self, from: u64) -> io::Result<Option<(Arc<File>, u64, Mark)>> {
        let Some(found) = self.source.metadata()? else {
            return Ok(None);
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let same = state
            .file
            .as_ref()
            .is_some_and(|open| (open.device, open.inode) == (found.dev(), found.ino()));
        if !same {
            let Some(file) = self.source.open()? else {
                return Ok(None);
            };
            let opened = file.metadata()?;
            state.file = Some(Open {
                file,
                device: opened.dev(),
                inode: opened.ino(),
            });
            state.forget();
        } else if found.len() > 0
            && state
                .marks
                .last()
                .is_some_and(|mark| mark.offset > found.len())
        {
            // securityfs files have no length. An ordinary file that shrank was written anew.
            state.forget();
        }
        let known = state.marks.partition_point(|mark| mark.entry <= from);
        let mark = known
            .checked_sub(1)
            .map_or_else(Mark::default, |at| state.marks[at]);
        let generation = state.generation;
        Ok(state
            .file
            .as_ref()
            .map(|open| (Arc::clone(&open.file), generation, mark)))
    }

    /// Reads of `file` at `offset`, or copies what was read there last.
    fn read_at(
        &self,
        file: &File,
        generation: u64,
        buffer: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        if !self.source.is_handed_over() {
            return file.read_at(buffer, offset);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.generation != generation {
            return file.read_at(buffer, offset);
        }
        let known = state.recent.copy_to(buffer, offset);
        if known > 0 {
            return Ok(known);
        }
        let read = file.read_at(buffer, offset)?;
        state.recent.keep(&buffer[..read], offset);
        Ok(read)
    }

    fn remember(&self, generation: u64, mark: Mark) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.generation == generation
            && state
                .marks
                .last()
                .is_none_or(|last| last.entry < mark.entry)
        {
            // The last two marks may be of a slowly growing end: keep one of a kind per block.
            let crowded = state
                .marks
                .len()
                .checked_sub(2)
                .is_some_and(|at| mark.offset - state.marks[at].offset < BLOCK as u64);
            if crowded {
                state.marks.pop();
            }
            state.marks.push(mark);
            if let Some(position) = &self.position {
                position.write(mark);
            }
        }
    }
}

impl State {
    fn forget(&mut self) {
        self.generation += 1;
        self.marks.clear();
        self.recent = Recent::default();
    }
}

impl Reader {
    /// Index of the first entry that [`Self::next_entries`] returns at first.
    pub fn first_entry(&self) -> u64 {
        self.first
    }

    /// The list that is read.
    pub fn list(&self) -> &ImaList {
        &self.list
    }

    /// Entries from the list's beginning to the end of what was read so far.
    pub fn entries(&self) -> u64 {
        self.position.entry
    }

    /// The next whole entries, each with its LF, some 64 KiB of them; `None` at the end. An entry
    /// that is still being written is left for the next reader.
    pub fn next_entries(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.ready.is_empty() && !self.at_end {
            self.fill()?;
        }
        Ok((!self.ready.is_empty()).then(|| std::mem::take(&mut self.ready)))
    }

    /// Has the end been reached, so that what was returned last was all?
    pub fn is_at_end(&self) -> bool {
        self.at_end && self.ready.is_empty()
    }

    /// Reads until there are whole entries in `ready`, or the end is reached.
    fn fill(&mut self) -> io::Result<()> {
        let mut entries = std::mem::take(&mut self.partial);
        loop {
            let searched = entries.len();
            self.at_end = self.read_block(&mut entries)?;
            if let Some(last) = memrchr(b'\n', &entries[searched..]) {
                self.partial = entries.split_off(searched + last + 1);
                self.position.entry += newlines(&entries);
                self.position.offset += entries.len() as u64;
                self.ready = entries;
                break;
            }
            if self.at_end {
                self.partial = entries;
                break;
            }
            if entries.len() > LONGEST_ENTRY {
                let reason = format!("entry {} has no end", self.position.entry);
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
        }
        self.list.remember(self.generation, self.position);
        Ok(())
    }

    /// Appends up to a block to `bytes`, whose first byte is at `position`. True at the end.
    fn read_block(&self, bytes: &mut Vec<u8>) -> io::Result<bool> {
        let start = bytes.len();
        bytes.resize(start + BLOCK, 0);
        let mut filled = start;
        while filled < bytes.len() {
            let offset = self.position.offset + filled as u64;
            let buffer = &mut bytes[filled..];
            let read = self
                .list
                .read_at(&self.file, self.generation, buffer, offset);
            match read {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let at_end = filled < bytes.len();
        bytes.truncate(filled);
        Ok(at_end)
    }

    /// Goes forward to entry `from`; false when the list ends before it.
    fn skip_to(&mut self, from: u64) -> io::Result<bool> {
        while self.position.entry < from {
            let before = self.position.entry;
            self.fill()?;
            if self.ready.is_empty() {
                return Ok(false);
            }
            if self.position.entry < from {
                self.ready.clear();
                continue;
            }
            let skipped = nth_entry(&self.ready, from - before);
            self.ready.drain(..skipped);
        }
        Ok(true)
    }

    /// Starts over at entry 0.
    fn rewind(&mut self) {
        self.first = 0;
        self.position = Mark::default();
        self.ready.clear();
        self.partial.clear();
        self.at_end = false;
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    memchr_iter(b'\n', bytes).count() as u64
}

/// Where entry `n` begins in `entries`.
fn nth_entry(entries: &[u8], n: u64) -> usize {
    let Some(before) = n.checked_sub(1) else {
        return 0;
    };
    let mut ends = memchr_iter(b'\n', entries);
    let end = usize::try_from(before)
        .ok()
        .and_then(|before| ends.nth(before));
    end.map_or(entries.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, path::PathBuf};

    use super::*;

    struct Fixture {
        _directory: tempfile::TempDir,
        path: PathBuf,
        list: Arc<ImaList>,
    }

    fn fixture(entries: std::ops::Range<usize>) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        fs::write(&path, text(entries)).unwrap();
        let list = Arc::new(ImaList::new(path.clone()));
        Fixture {
            _directory: directory,
            path,
            list,
        }
    }

    fn text(entries: std::ops::Range<usize>) -> String {
        entries
            .map(|n| format!("10 {n:040x} ima-ng sha256:{n:064x} /usr/bin/tool-{n}\n"))
            .collect()
    }

    fn all(list: &Arc<ImaList>, from: u64) -> (u64, String) {
        let mut reader = list.read_from(from).unwrap().unwrap();
        let mut text = Vec::new();
        while let Some(entries) = reader.next_entries().unwrap() {
            assert_eq!(entries.last(), Some(&b'\n'));
            text.extend(entries);
        }
        assert!(reader.is_at_end());
        (reader.first_entry(), String::from_utf8(text).unwrap())
    }

    fn append(path: &Path, text: &str) {
        fs::OpenOptions::new()
            .append(true)
            .open(path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    #[test]
    fn index_semantics() {
        let f = fixture(0..826);
        assert_eq!(all(&f.list, 0), (0, text(0..826)));
        assert_eq!(all(&f.list, 825), (825, text(825..826)));
        assert_eq!(all(&f.list, 826), (826, String::new()));
        assert_eq!(all(&f.list, 827), (0, text(0..826)));
        assert_eq!(all(&f.list, u64::MAX), (0, text(0..826)));
    }

    #[test]
    fn every_position_of_a_list_of_several_blocks_is_found_in_any_order() {
        let f = fixture(0..3000);
        let whole = text(0..3000);
        assert!(whole.len() > 5 * BLOCK);
        for from in [2999, 1, 2500, 0, 700, 699, 701, 3000, 1400] {
            let (first, text) = all(&f.list, from);
            assert_eq!(first, from);
            assert!(whole.ends_with(&text), "from {from}");
            assert_eq!(newlines(text.as_bytes()), 3000 - from);
        }
        let marks = f.list.state.lock().unwrap().marks.len();
        assert!(marks > 3 && marks < 30, "{marks} positions kept");
    }

    #[test]
    fn a_growing_list_keeps_few_positions() {
        let f = fixture(0..10);
        for n in 10..400 {
            append(&f.path, &text(n..n + 1));
            assert_eq!(all(&f.list, n as u64), (n as u64, text(n..n + 1)));
        }
        assert!(f.list.state.lock().unwrap().marks.len() < 5);
        assert_eq!(all(&f.list, 5).1, text(5..400));
    }

    #[test]
    fn an_entry_that_is_still_being_written_waits() {
        let f = fixture(0..3);
        append(&f.path, "10 abc");
        assert_eq!(all(&f.list, 0), (0, text(0..3)));
        assert_eq!(all(&f.list, 3), (3, String::new()));
        assert_eq!(all(&f.list, 4).0, 0, "not an entry yet");
        append(&f.path, " ima-ng\n");
        assert_eq!(all(&f.list, 3), (3, "10 abc ima-ng\n".into()));
    }

    #[test]
    fn a_shrunk_list_starts_over() {
        let f = fixture(0..2000);
        all(&f.list, 0);
        fs::write(&f.path, text(5000..5010)).unwrap();
        assert_eq!(all(&f.list, 2000), (0, text(5000..5010)));
        assert_eq!(all(&f.list, 10), (10, String::new()));
    }

    #[test]
    fn a_replaced_list_is_read_from_the_new_file_even_while_the_old_one_is_read() {
        let f = fixture(0..2000);
        let mut old = f.list.read_from(0).unwrap().unwrap();
        let mut first = old.next_entries().unwrap().unwrap();
        let new = f.path.with_file_name("new");
        fs::write(&new, text(9000..9100)).unwrap();
        fs::rename(&new, &f.path).unwrap();
        assert_eq!(all(&f.list, 0), (0, text(9000..9100)));
        while let Some(entries) = old.next_entries().unwrap() {
            first.extend(entries);
        }
        assert_eq!(String::from_utf8(first).unwrap(), text(0..2000));
        assert_eq!(
            all(&f.list, 50),
            (50, text(9050..9100)),
            "positions of the old file are gone"
        );
    }

    /// Nobody reads an open file of the kernel's as cheaply as who goes on where it stands.
    #[test]
    fn a_list_that_is_handed_over_is_read_in_any_order_and_its_end_only_once() {
        let f = fixture(0..3000);
        let open = File::open(&f.path).unwrap();
        let list = Arc::new(ImaList::new(HostFile::opened(f.path.clone(), open)));
        let whole = text(0..3000);
        for from in [0, 2999, 1, 2500, 0, 3000, 1400] {
            let (first, text) = all(&list, from);
            assert_eq!(first, from);
            assert!(whole.ends_with(&text), "from {from}");
            assert_eq!(newlines(text.as_bytes()), 3000 - from);
        }
        append(&f.path, &text(3000..3010));
        assert_eq!(all(&list, 3000).1, text(3000..3010));
        let kept = |list: &ImaList| {
            let state = list.state.lock().unwrap();
            (state.recent.offset, state.recent.bytes.len())
        };
        let before = kept(&list);
        assert!(before.1 <= 2 * RECENT);
        // A second verifier at the same place: nothing is read but that there is nothing new.
        assert_eq!(all(&list, 3000).1, text(3000..3010));
        assert_eq!(kept(&list), before);
        append(&f.path, "10 abc");
        assert_eq!(all(&list, 3005).1, text(3005..3010));
        append(&f.path, " ima-ng\n");
        assert_eq!(all(&list, 3010).1, "10 abc ima-ng\n");
        assert_eq!(all(&list, 3011).1, "");
    }

    #[test]
    fn no_list_is_none_and_an_empty_one_is_empty() {
        let f = fixture(0..0);
        assert_eq!(all(&f.list, 0), (0, String::new()));
        assert_eq!(all(&f.list, 1), (0, String::new()));
        fs::remove_file(&f.path).unwrap();
        assert!(f.list.read_from(0).unwrap().is_none());
    }

    #[test]
    fn an_entry_longer_than_a_block_is_whole() {
        let f = fixture(0..1);
        let long = format!("10 {} ima-buf\n", "ab".repeat(BLOCK));
        append(&f.path, &long);
        append(&f.path, &text(2..3));
        assert_eq!(all(&f.list, 1), (1, long + &text(2..3)));
        assert_eq!(all(&f.list, 2), (2, text(2..3)));
    }

    #[test]
    fn bytes_that_are_not_text_pass_through() {
        let f = fixture(0..1);
        fs::write(&f.path, b"10 \xFF\xFE\n10 b\n").unwrap();
        let mut reader = f.list.read_from(0).unwrap().unwrap();
        assert_eq!(
            reader.next_entries().unwrap().unwrap(),
            b"10 \xFF\xFE\n10 b\n"
        );
    }
}
