//! Headers of RPM packages: which files a package installs, with their digests and IMA signatures.
//!
//! RPM's "Package format" (docs/manual/format_v4.md): lead, signature header, header. The payload
//! is not read.

use std::io::{self, Read};

use troth_core::tpm::{Digest, HashAlgorithm};

const LEAD: usize = 96;
const LEAD_MAGIC: [u8; 4] = [0xed, 0xab, 0xee, 0xdb];
const HEADER_MAGIC: [u8; 4] = [0x8e, 0xad, 0xe8, 0x01];
const ENTRY: usize = 16;
/// Limits of RPM itself for one header.
const MAX_ENTRIES: usize = 1 << 16;
const MAX_DATA: usize = 256 << 20;
/// Most values of a tag, and so most files of a package.
const MAX_VALUES: usize = 1 << 20;
/// Longest path that Linux takes, in bytes.
const MAX_PATH: usize = 4096;
/// Most bytes of all paths of a package.
const MAX_PATHS: usize = 256 << 20;
/// `RPMFILE_GHOST`: owned by the package, not installed by it.
const GHOST: u32 = 1 << 6;

/// Tags of the signature header.
mod signature {
    pub(super) const FILE_SIGNATURES: u32 = 274;
    pub(super) const HEADER_SHA256: u32 = 273;
}
/// Tags of the header.
mod tag {
    pub(super) const NAME: u32 = 1000;
    pub(super) const OLD_FILE_NAMES: u32 = 1027;
    pub(super) const FILE_MODES: u32 = 1030;
    pub(super) const FILE_DIGESTS: u32 = 1035;
    pub(super) const FILE_FLAGS: u32 = 1037;
    pub(super) const SOURCE_PACKAGE: u32 = 1106;
    pub(super) const DIR_INDEXES: u32 = 1116;
    pub(super) const BASE_NAMES: u32 = 1117;
    pub(super) const DIR_NAMES: u32 = 1118;
    pub(super) const FILE_DIGEST_ALGORITHM: u32 = 5011;
    pub(super) const FILE_SIGNATURES: u32 = 5090;
}
/// Types of entries.
mod kind {
    pub(super) const INT16: u32 = 3;
    pub(super) const INT32: u32 = 4;
    pub(super) const STRING: u32 = 6;
    pub(super) const STRING_ARRAY: u32 = 8;
}

/// A package that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RpmError {
    /// The file cannot be read.
    #[error("{structure}: {source}")]
    Read {
        /// What was to be read.
        structure: &'static str,
        /// Why it was not.
        source: io::Error,
    },
    /// It is not what the format says.
    #[error("{structure}: {reason}")]
    Malformed {
        /// The structure that is wrong.
        structure: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A source package: what is in it is built from, and not installed.
    #[error("this is a source package")]
    Source,
    /// Digests of a kind that no policy holds, MD5 as a rule.
    #[error("the digests of its files are of RPM's algorithm {0}, which no policy holds")]
    DigestAlgorithm(u32),
}

/// What the header of a package says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Package {
    /// Its name, without a version.
    pub name: String,
    /// The algorithm of the digests, if there are any.
    pub algorithm: Option<HashAlgorithm>,
    /// The regular files that it installs.
    pub files: Vec<PackagedFile>,
}

/// A regular file that a package installs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PackagedFile {
    /// Its whole path.
    pub path: Vec<u8>,
    /// Digest of its content.
    pub digest: Digest,
    /// What is installed as its `security.ima`, if the package was signed for IMA.
    pub signature: Vec<u8>,
}

impl Package {
    /// Reads a package up to its payload, at most half a gigabyte.
    ///
    /// # Errors
    /// What is not an RPM package, or not one as it was built; [`RpmError::Source`].
    pub fn read(mut file: impl Read) -> Result<Self, RpmError> {
        let mut lead = [0; LEAD];
        read_exact(&mut file, &mut lead, "lead")?;
        if !lead.starts_with(&LEAD_MAGIC) {
            return Err(malformed("lead", "this is not an RPM package"));
        }
        let signatures = Header::read(&mut file, "signature header")?;
        let padding = signatures.bytes.len().next_multiple_of(8) - signatures.bytes.len();
        let mut skipped = [0; 8];
        let padding = skipped.get_mut(..padding).unwrap_or_default();
        read_exact(&mut file, padding, "signature header")?;
        let header = Header::read(&mut file, "header")?;
        header.check(&signatures)?;
        Self::new(&header, &signatures)
    }

    fn new(header: &Header, signatures: &Header) -> Result<Self, RpmError> {
        let source = header.numbers(tag::SOURCE_PACKAGE, kind::INT32)?;
        if !source.is_empty() {
            return Err(RpmError::Source);
        }
        let name = header.strings(tag::NAME)?.first().copied().unwrap_or(b"");
        let mut package = Self {
            name: String::from_utf8_lossy(name).into_owned(),
            algorithm: None,
            files: Vec::new(),
        };
        let digests = header.strings(tag::FILE_DIGESTS)?;
        let count = digests.len();
        let paths = Paths::new(header, count)?;
        let modes = header.numbers(tag::FILE_MODES, kind::INT16)?;
        let flags = header.numbers(tag::FILE_FLAGS, kind::INT32)?;
        let mut sealed = signatures.strings(signature::FILE_SIGNATURES)?;
        if sealed.is_empty() {
            sealed = header.strings(tag::FILE_SIGNATURES)?;
        }
        let same = |length| length == count || length == 0;
        if modes.len() != count || !same(flags.len()) || !same(sealed.len()) {
            return Err(malformed(
                "header",
                "arrays of unequal length describe its files",
            ));
        }
        let algorithm = header.numbers(tag::FILE_DIGEST_ALGORITHM, kind::INT32)?;
        // OpenPGP's numbers (RFC 9580, 9.5); without one it is MD5.
        let id = algorithm.first().copied().unwrap_or(1);
        let mut total = 0;
        for (index, hex) in digests.iter().enumerate() {
            let regular = modes
                .get(index)
                .is_some_and(|mode| mode & 0o170_000 == 0o100_000);
            let ghost = flags.get(index).is_some_and(|flags| flags & GHOST != 0);
            if !regular || ghost || hex.iter().all(|digit| *digit == b'0') {
                continue;
            }
            let algorithm = match id {
                2 => HashAlgorithm::Sha1,
                8 => HashAlgorithm::Sha256,
                9 => HashAlgorithm::Sha384,
                10 => HashAlgorithm::Sha512,
                other => return Err(RpmError::DigestAlgorithm(other)),
            };
            package.algorithm = Some(algorithm);
            let digest = std::str::from_utf8(hex).ok().and_then(Digest::from_hex);
            let digest = digest
                .filter(|digest| digest.as_bytes().len() == algorithm.size())
                .ok_or_else(|| {
                    malformed("header", format!("file {index}: no {algorithm} digest"))
                })?;
            let path = paths.get(index)?;
            total += path.len();
            if total > MAX_PATHS {
                return Err(malformed(
                    "header",
                    "the paths of its files are too long together",
                ));
            }
            let signature = sealed.get(index).copied().unwrap_or_default();
            let signature = hex::decode(signature)
                .map_err(|_| malformed("signature header", format!("file {index}: not hex")))?;
            package.files.push(PackagedFile {
                path,
                digest,
                signature,
            });
        }
        Ok(package)
    }
}

/// How paths are written: directories once, or (before 1999) whole.
enum Paths<'a> {
    Parts {
        directories: Vec<&'a [u8]>,
        indexes: Vec<u32>,
        names: Vec<&'a [u8]>,
    },
    Whole(Vec<&'a [u8]>),
}

impl<'a> Paths<'a> {
    fn new(header: &'a Header, count: usize) -> Result<Self, RpmError> {
        let names = header.strings(tag::BASE_NAMES)?;
        let paths = if names.is_empty() {
            Self::Whole(header.strings(tag::OLD_FILE_NAMES)?)
        } else {
            Self::Parts {
                directories: header.strings(tag::DIR_NAMES)?,
                indexes: header.numbers(tag::DIR_INDEXES, kind::INT32)?,
                names,
            }
        };
        let (names, indexes) = match &paths {
            Self::Whole(names) => (names.len(), count),
            Self::Parts { names, indexes, .. } => (names.len(), indexes.len()),
        };
        if names != count || indexes != count {
            return Err(malformed("header", "not as many names as digests of files"));
        }
        Ok(paths)
    }

    fn get(&self, index: usize) -> Result<Vec<u8>, RpmError> {
        let fail = |reason| malformed("header", format!("file {index}: {reason}"));
        let (directory, name) = match self {
            Self::Whole(paths) => (Some(&b""[..]), paths.get(index)),
            Self::Parts {
                directories,
                indexes,
                names,
            } => {
                let directory = indexes.get(index).and_then(|at| usize::try_from(*at).ok());
                let directory = directory.and_then(|at| directories.get(at)).copied();
                (directory, names.get(index))
            }
        };
        let (Some(directory), Some(name)) = (directory, name) else {
            return Err(fail("it has no directory"));
        };
        if directory.len() + name.len() > MAX_PATH {
            return Err(fail("its path is over 4096 bytes"));
        }
        let path = [directory, name].concat();
        let mut parts = path.split(|byte| *byte == b'/');
        if parts.next() != Some(b"") || path.len() < 2 || parts.any(|part| part == b"..") {
            return Err(fail("its path is not a whole one, or has .. in it"));
        }
        if path.iter().any(u8::is_ascii_control) {
            return Err(fail("its path has control characters in it"));
        }
        Ok(path)
    }
}

/// A header as it stands in the file, with its place for each tag.
struct Header {
    structure: &'static str,
    /// From its magic number to the end of its data.
    bytes: Vec<u8>,
    entries: usize,
}

impl Header {
    fn read(file: &mut impl Read, structure: &'static str) -> Result<Self, RpmError> {
        let mut intro = [0; 16];
        read_exact(file, &mut intro, structure)?;
        if !intro.starts_with(&HEADER_MAGIC) {
            return Err(malformed(
                structure,
                "it does not begin with its magic number",
            ));
        }
        let entries = number(&intro, 8, 4).unwrap_or(u32::MAX) as usize;
        let data = number(&intro, 12, 4).unwrap_or(u32::MAX) as usize;
        if entries > MAX_ENTRIES || data > MAX_DATA {
            let reason = format!("{entries} entries with {data} bytes of data are too many");
            return Err(malformed(structure, reason));
        }
        let rest = entries * ENTRY + data;
        let mut bytes = intro.to_vec();
        let read = file.take(rest as u64).read_to_end(&mut bytes);
        match read {
            Err(source) => Err(RpmError::Read { structure, source }),
            Ok(count) if count < rest => Err(malformed(structure, "the file ends within it")),
            Ok(_) => Ok(Self {
                structure,
                bytes,
                entries,
            }),
        }
    }

    /// Compares the header with its digest in the signature header, if that has one.
    fn check(&self, signatures: &Self) -> Result<(), RpmError> {
        let Some(expected) = signatures
            .strings(signature::HEADER_SHA256)?
            .first()
            .copied()
        else {
            return Ok(());
        };
        let digest = HashAlgorithm::Sha256.digest(&[&self.bytes]).to_string();
        if digest.as_bytes().eq_ignore_ascii_case(expected) {
            Ok(())
        } else {
            Err(malformed(
                self.structure,
                "its SHA-256 is another: the package was changed",
            ))
        }
    }

    /// Number of values of a tag, and the data from the first of them on.
    fn find(&self, tag: u32, kinds: &[u32]) -> Result<Option<(usize, &[u8])>, RpmError> {
        let index = self.bytes.get(16..16 + self.entries * ENTRY);
        let entry = index
            .unwrap_or_default()
            .chunks_exact(ENTRY)
            .find(|entry| number(entry, 0, 4) == Some(tag));
        let Some(entry) = entry else {
            return Ok(None);
        };
        let field = |at| number(entry, at, 4).unwrap_or(0);
        if !kinds.contains(&field(4)) {
            return Err(malformed(
                self.structure,
                format!("tag {tag} is of another type"),
            ));
        }
        if field(12) as usize > MAX_VALUES {
            return Err(malformed(
                self.structure,
                format!("tag {tag} has too many values"),
            ));
        }
        let start = 16 + self.entries * ENTRY;
        let data = start.checked_add(field(8) as usize);
        let data = data.and_then(|at| self.bytes.get(at..));
        let data = data.ok_or_else(|| self.cut(tag))?;
        Ok(Some((field(12) as usize, data)))
    }

    fn cut(&self, tag: u32) -> RpmError {
        malformed(self.structure, format!("tag {tag} reaches beyond its end"))
    }

    fn strings(&self, tag: u32) -> Result<Vec<&[u8]>, RpmError> {
        let kinds = [kind::STRING, kind::STRING_ARRAY];
        let Some((count, data)) = self.find(tag, &kinds)? else {
            return Ok(Vec::new());
        };
        let mut parts = data.split(|byte| *byte == 0);
        let strings: Vec<_> = parts.by_ref().take(count).collect();
        // What follows the last zero is one more part.
        if strings.len() < count || parts.next().is_none() {
            return Err(self.cut(tag));
        }
        Ok(strings)
    }

    fn numbers(&self, tag: u32, kind: u32) -> Result<Vec<u32>, RpmError> {
        let size = if kind == kind::INT16 { 2 } else { 4 };
        let Some((count, data)) = self.find(tag, &[kind])? else {
            return Ok(Vec::new());
        };
        let data = count.checked_mul(size).and_then(|bytes| data.get(..bytes));
        let data = data.ok_or_else(|| self.cut(tag))?;
        let numbers = data.chunks_exact(size);
        Ok(numbers.filter_map(|bytes| number(bytes, 0, size)).collect())
    }
}

/// A big-endian number of up to four bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + size)?;
    Some(
        bytes
            .iter()
            .fold(0, |number, byte| (number << 8) | u32::from(*byte)),
    )
}

fn read_exact(
    file: &mut impl Read,
    buffer: &mut [u8],
    structure: &'static str,
) -> Result<(), RpmError> {
    file.read_exact(buffer)
        .map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => malformed(structure, "the file ends within it"),
            _ => RpmError::Read { structure, source },
        })
}

fn malformed(structure: &'static str, reason: impl Into<String>) -> RpmError {
    RpmError::Malformed {
        structure,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests;
