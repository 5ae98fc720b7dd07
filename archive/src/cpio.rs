use std::{
    collections::HashMap,
    io::{self, Read},
};

use troth_core::tpm::{Digest, HashAlgorithm, Hasher};

use crate::initrd::{InitrdError, Member};

/// `newc`, and the same with a checksum.
const MAGICS: [&[u8]; 2] = [b"070701", b"070702"];
const HEADER: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
/// Longest path that the kernel unpacks, with its zero.
const MAX_NAME: usize = 4096;
/// Most entries of an initrd, of any kind.
const MAX_ENTRIES: usize = 1 << 20;
/// Most bytes of all their paths.
const MAX_PATHS: usize = 256 << 20;

/// Does an archive begin here?
pub(crate) fn begins(data: &[u8]) -> bool {
    MAGICS.iter().any(|magic| data.starts_with(magic))
}

/// The files of all archives so far, as they are once all are unpacked over each other.
#[derive(Debug)]
pub(crate) struct Files {
    algorithm: HashAlgorithm,
    /// Where each path is in `members`.
    paths: HashMap<Vec<u8>, usize>,
    /// Paths, and where their contents are: names of one inode share theirs.
    members: Vec<(Vec<u8>, usize)>,
    contents: Vec<Digest>,
    entries: usize,
    bytes: usize,
}

/// An inode with more than one name: device and number.
type Inode = [u32; 3];

struct Entry {
    inode: Inode,
    mode: u32,
    links: u32,
    size: u32,
    name: Vec<u8>,
}

impl Entry {
    fn is_regular(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }
}

impl Files {
    pub(crate) fn new(algorithm: HashAlgorithm) -> Self {
        Self {
            algorithm,
            paths: HashMap::new(),
            members: Vec::new(),
            contents: Vec::new(),
            entries: 0,
            bytes: 0,
        }
    }

    pub(crate) fn finish(self) -> Vec<Member> {
        let contents = self.contents;
        let members = self.members.into_iter().filter_map(|(path, content)| {
            let digest = *contents.get(content)?;
            Some(Member { path, digest })
        });
        members.collect()
    }

    /// Reads one archive up to its trailer; whether there was one.
    pub(crate) fn add(&mut self, input: &mut Input<'_>) -> Result<bool, InitrdError> {
        let mut linked: HashMap<Inode, usize> = HashMap::new();
        let mut begun = false;
        while let Some(entry) = input.entry()? {
            begun = true;
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(input.fail("too many entries"));
            }
            if entry.name == TRAILER {
                return Ok(true);
            }
            if !entry.is_regular() {
                input.skip(entry.size)?;
                input.align()?;
                continue;
            }
            let digest = input.digest(entry.size, self.algorithm)?;
            input.align()?;
            let first = linked.get(&entry.inode).copied();
            let first = first.filter(|_| entry.links > 1);
            let content = self.insert(&entry, first, digest, input)?;
            if entry.links > 1 {
                linked.entry(entry.inode).or_insert(content);
            }
        }
        if begun {
            Err(input.fail("it ends without its trailer"))
        } else {
            Ok(false)
        }
    }

    /// Puts an entry under its name, and says where its content is. `linked` is where an earlier
    /// name of its inode has it: one of the names comes with the content, most often the last.
    fn insert(
        &mut self,
        entry: &Entry,
        linked: Option<usize>,
        digest: Digest,
        input: &Input<'_>,
    ) -> Result<usize, InitrdError> {
        let path = absolute(&entry.name)
            .ok_or_else(|| input.fail("a path that is empty or has .. in it"))?;
        let known = self.paths.get(&path).copied();
        let known = known.and_then(|index| self.members.get_mut(index));
        // As the kernel does: a link replaces the name, all else is written into what it names.
        let content = match (linked, &known) {
            (Some(content), _) => content,
            (None, Some((_, content))) => *content,
            (None, None) => self.contents.len(),
        };
        match self.contents.get_mut(content) {
            None => self.contents.push(digest),
            Some(_) if linked.is_some() && entry.size == 0 => {}
            Some(present) => *present = digest,
        }
        if let Some(known) = known {
            known.1 = content;
            return Ok(content);
        }
        self.bytes += path.len();
        if self.bytes > MAX_PATHS {
            return Err(input.fail("the paths of its files are too long together"));
        }
        self.paths.insert(path.clone(), self.members.len());
        self.members.push((path, content));
        Ok(content)
    }
}

/// `/` before the path, and no empty parts or `.` in it.
fn absolute(name: &[u8]) -> Option<Vec<u8>> {
    let mut path = Vec::with_capacity(name.len() + 1);
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            part => {
                path.push(b'/');
                path.extend(part);
            }
        }
    }
    (!path.is_empty()).then_some(path)
}

/// Bytes of an archive, counted.
pub(crate) struct Input<'a> {
    reader: &'a mut dyn Read,
    /// Bytes read so far.
    position: u64,
    /// Bytes that may be read in all.
    limit: u64,
    /// What the archive is called in errors.
    place: String,
    buffer: Vec<u8>,
    stop: Stop<'a>,
}

/// Says whether to give up.
pub(crate) type Stop<'a> = &'a dyn Fn() -> bool;

impl<'a> Input<'a> {
    pub(crate) fn new(reader: &'a mut dyn Read, limit: u64, place: String, stop: Stop<'a>) -> Self {
        Self {
            reader,
            stop,
            position: 0,
            limit,
            place,
            buffer: vec![0; 64 << 10],
        }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn fail(&self, reason: &'static str) -> InitrdError {
        InitrdError::Archive {
            place: self.place.clone(),
            at: self.position,
            reason,
        }
    }

    fn failed(&self, source: io::Error) -> InitrdError {
        InitrdError::Read {
            place: self.place.clone(),
            at: self.position,
            source,
        }
    }

    /// The next entry's header; `None` at the end of the input. Zeros before it are passed over.
    fn entry(&mut self) -> Result<Option<Entry>, InitrdError> {
        let mut header = [0; HEADER];
        loop {
            let [first, rest @ ..] = &mut header;
            if self.some(std::slice::from_mut(first))? == 0 {
                return Ok(None);
            }
            if *first == 0 {
                continue;
            }
            self.exact(rest)?;
            break;
        }
        if !begins(&header) {
            return Err(self.fail("no entry of a cpio archive (newc) begins here"));
        }
        let field = |index: usize| {
            let digits = header.get(6 + 8 * index..14 + 8 * index)?;
            let digits = std::str::from_utf8(digits).ok()?;
            let hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            hex.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
        };
        let entry = || {
            Some(Entry {
                inode: [field(7)?, field(8)?, field(0)?],
                mode: field(1)?,
                links: field(4)?,
                size: field(6)?,
                name: vec![0; usize::try_from(field(11)?).ok()?.min(MAX_NAME + 1)],
            })
        };
        let mut entry = entry().ok_or_else(|| self.fail("a number is not hexadecimal"))?;
        if entry.name.is_empty() || entry.name.len() > MAX_NAME {
            return Err(self.fail("a path of no bytes or of more than 4096"));
        }
        self.exact(&mut entry.name)?;
        self.align()?;
        let end = entry.name.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| self.fail("a path without a zero at its end"))?;
        entry.name.truncate(end);
        Ok(Some(entry))
    }

    fn digest(&mut self, size: u32, algorithm: HashAlgorithm) -> Result<Digest, InitrdError> {
        let mut hasher = Hasher::new(algorithm);
        self.content(size, |piece| hasher.update(piece))?;
        Ok(hasher.finish())
    }

    fn skip(&mut self, size: u32) -> Result<(), InitrdError> {
        self.content(size, |_| {})
    }

    fn content(&mut self, size: u32, mut piece: impl FnMut(&[u8])) -> Result<(), InitrdError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut left = size as usize;
        let result = loop {
            let room = left.min(buffer.len());
            let Some(part) = buffer.get_mut(..room).filter(|part| !part.is_empty()) else {
                break Ok(());
            };
            match self.some(part) {
                Ok(0) => break Err(self.fail("it ends within a file")),
                Ok(count) => {
                    piece(part.get(..count).unwrap_or_default());
                    left -= count;
                }
                Err(error) => break Err(error),
            }
        };
        self.buffer = buffer;
        result
    }

    /// Passes over the bytes up to the next multiple of four.
    fn align(&mut self) -> Result<(), InitrdError> {
        let mut padding = [0; 4];
        let size = (4 - self.position % 4) % 4;
        let size = usize::try_from(size).unwrap_or(0);
        let mut done = 0;
        // The last entry of the input may lack its padding.
        while let Some(part) = padding.get_mut(done..size).filter(|part| !part.is_empty()) {
            match self.some(part)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(())
    }

    fn exact(&mut self, mut buffer: &mut [u8]) -> Result<(), InitrdError> {
        while !buffer.is_empty() {
            let count = self.some(buffer)?;
            if count == 0 {
                return Err(self.fail("it ends within an entry"));
            }
            buffer = buffer.get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }

    fn some(&mut self, buffer: &mut [u8]) -> Result<usize, InitrdError> {
        loop {
            if (self.stop)() {
                return Err(InitrdError::Stopped);
            }
            match self.reader.read(buffer) {
                Ok(count) => {
                    self.position += count as u64;
                    if self.position > self.limit {
                        return Err(self.fail("more comes out of it than an initrd can hold"));
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }
}
