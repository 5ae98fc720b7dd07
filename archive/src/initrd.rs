//! Initial RAM file systems, as the kernel unpacks them (Documentation/driver-api/early-userspace/
//! buffer-format.rst): cpio archives (newc) one after the other, each compressed or not, with zeros
//! between them. What comes later replaces what came before.
//!
//! gzip, xz, zstd and the kernel's form of LZ4 are read; bzip2, lzma and lzo are not.

use std::io;

use troth_core::tpm::{Digest, HashAlgorithm};

use crate::{
    compression::Compression,
    cpio::{self, Files, Input},
};

/// Most bytes that come out of one initrd: [`GROWTH`] times its own, and this many more.
const ROOM: u64 = 64 << 20;
const GROWTH: u64 = 200;

/// An initrd that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// What begins there is nothing that the kernel unpacks.
    #[error("byte {at}: neither a cpio archive nor a compression that is known begins here")]
    Unknown {
        /// Where in the file.
        at: usize,
    },
    /// What begins there is compressed in a way that is not read.
    #[error(
        "byte {at}: compressed with {name}, which is not read here; gzip, xz, zstd and lz4 are"
    )]
    Compression {
        /// Where in the file.
        at: usize,
        /// The compression.
        name: &'static str,
    },
    /// It cannot be decompressed.
    #[error("{place}, byte {at}: {source}")]
    Read {
        /// Which of its archives.
        place: String,
        /// Where in the archive, decompressed.
        at: u64,
        /// What the decompressor says.
        source: io::Error,
    },
    /// An archive is not what its format says.
    #[error("{place}, byte {at}: {reason}")]
    Archive {
        /// Which of its archives.
        place: String,
        /// Where in the archive, decompressed.
        at: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The caller wanted no more of it.
    #[error("it was not read to its end")]
    Stopped,
}

/// A regular file of an initrd.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its path, with `/` at its beginning.
    pub path: Vec<u8>,
    /// Digest of its content.
    pub digest: Digest,
}

/// The regular files of an initrd, with the digests of their contents. `stop` is asked between
/// pieces of it whether to give up.
///
/// # Errors
/// Anything that the kernel would not unpack to the same files, a compression that is not read,
/// and contents out of all proportion to the file.
pub fn files(
    data: &[u8],
    algorithm: HashAlgorithm,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Member>, InitrdError> {
    let mut limit = ROOM.saturating_add(GROWTH.saturating_mul(data.len() as u64));
    let mut files = Files::new(algorithm);
    let mut rest = data;
    loop {
        let zeros = rest.iter().position(|byte| *byte != 0);
        rest = rest.get(zeros.unwrap_or(rest.len())..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(files.finish());
        }
        let at = data.len() - rest.len();
        let read = if cpio::begins(rest) {
            let mut input = Input::new(&mut rest, limit, format!("archive at byte {at}"), stop);
            files.add(&mut input)?;
            input.position()
        } else {
            let compression = match Compression::detect(rest) {
                None => return Err(InitrdError::Unknown { at }),
                Some(Compression::Other(name)) => {
                    return Err(InitrdError::Compression { at, name });
                }
                Some(compression) => compression,
            };
            let place = format!("{} at byte {at}", compression.name());
            let mut decoder = match compression.decode(&mut rest) {
                Ok(decoder) => decoder,
                Err(source) => {
                    return Err(InitrdError::Read {
                        place,
                        at: 0,
                        source,
                    });
                }
            };
            compressed(&mut files, Input::new(&mut *decoder, limit, place, stop))?
        };
        limit = limit.saturating_sub(read);
    }
}

/// Reads the archives of a compressed stream to its end, so that its checksum is looked at, and
/// says how long they are.
fn compressed(files: &mut Files, mut input: Input<'_>) -> Result<u64, InitrdError> {
    if !files.add(&mut input)? {
        return Err(input.fail("there is no archive in it"));
    }
    while files.add(&mut input)? {}
    Ok(input.position())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/fixtures/initrds/", $name)).as_slice()
        };
    }

    const SHA256: HashAlgorithm = HashAlgorithm::Sha256;
    const IMAGES: [&[u8]; 4] = [
        fixture!("gzip.img"),
        fixture!("xz.img"),
        fixture!("zstd.img"),
        fixture!("lz4.img"),
    ];
    /// Length of the archive with the microcode, in front of all of them.
    const EARLY: usize = 1024;

    fn script() -> Digest {
        SHA256.digest(&[b"#!/bin/sh\nexec /usr/lib/init\n"])
    }

    fn expected() -> Vec<(&'static [u8], Digest)> {
        vec![
            (
                b"/kernel/x86/microcode/GenuineIntel.bin",
                SHA256.digest(&[b"microcode"]),
            ),
            (b"/etc/caf\xe9", SHA256.digest(&[b"bytes"])),
            (b"/etc/empty", SHA256.digest(&[])),
            (b"/etc/with space", SHA256.digest(&[b"a name"])),
            (b"/usr/bin/init", script()),
            (b"/usr/bin/sh", script()),
            (b"/usr/lib/zeros", SHA256.digest(&[&[0; 20_000]])),
        ]
    }

    fn listed(files: &[Member]) -> Vec<(&[u8], Digest)> {
        files
            .iter()
            .map(|file| (file.path.as_slice(), file.digest))
            .collect()
    }

    fn read(data: &[u8]) -> Result<Vec<Member>, InitrdError> {
        files(data, SHA256, &|| false)
    }

    #[test]
    fn each_compression_gives_the_same_files_and_hard_links_their_content() {
        for image in IMAGES {
            assert_eq!(listed(&read(image).unwrap()), expected());
        }
    }

    #[test]
    fn archives_follow_each_other_with_zeros_between_them() {
        let [gzip, xz, zstd, lz4] = IMAGES.map(|image| &image[EARLY..]);
        let early = &IMAGES[0][..EARLY];
        let all = [
            early, gzip, &[0; 5], xz, &[0; 512], zstd, early, lz4, &[0; 3],
        ]
        .concat();
        assert_eq!(listed(&read(&all).unwrap()), expected());
    }

    #[test]
    fn what_comes_later_replaces_what_came_before() {
        let first = archive(&[("a", b"old"), ("b", b"kept")]);
        let second = archive(&[("./a", b"new")]);
        let found = read(&[first, second].concat()).unwrap();
        let new = SHA256.digest(&[b"new"]);
        let kept = SHA256.digest(&[b"kept"]);
        assert_eq!(listed(&found), [(&b"/a"[..], new), (b"/b", kept)]);
    }

    #[test]
    fn an_image_that_is_cut_short_is_an_error() {
        for image in IMAGES {
            for end in EARLY + 1..image.len() {
                assert!(read(&image[..end]).is_err(), "cut at {end}");
            }
        }
    }

    #[test]
    fn a_bomb_ends_where_it_is_out_of_proportion() {
        // zstd: a block with the beginning of an archive, then blocks that repeat one byte.
        let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x38];
        let mut block = |last: u32, kind: u32, size: usize, bytes: &[u8]| {
            let header = (u32::try_from(size).unwrap() << 3) | (kind << 1) | last;
            bomb.extend(&header.to_le_bytes()[..3]);
            bomb.extend(bytes);
        };
        let mut large = archive(&[("large", b"")]);
        large.truncate(110 + 6);
        large[54..62].fill(b'f');
        block(0, 0, large.len(), &large);
        for _ in 0..1_000 {
            block(0, 1, 128 << 10, b"\0");
        }
        block(1, 0, 0, b"");
        let error = read(&bomb).unwrap_err().to_string();
        assert!(error.contains("more comes out of it"), "{error}");
    }

    #[test]
    fn what_is_not_read_is_named() {
        let error = |data: &[u8]| read(data).unwrap_err().to_string();
        for (magic, name) in [
            (&b"BZh91AY&SY"[..], "bzip2"),
            (b"\x89LZO\0\r\n\x1a\n", "lzo"),
            (b"]\0\0\x80\0", "lzma"),
            (b"\x04\"M\x18", "LZ4 frames"),
        ] {
            // With what firmware's microcode is put in front, too.
            for before in [&[][..], &IMAGES[0][..EARLY]] {
                let told = error(&[before, magic].concat());
                let expected = format!("byte {}: compressed with {name},", before.len());
                assert!(told.starts_with(&expected), "{told}");
            }
        }
        assert!(error(b"\0\0\x7fELF").starts_with("byte 2: "));
        assert!(error(&archive(&[("../etc/passwd", b"x")])).contains(".."));
        assert!(error(&archive(&[("x", b"y")])[..60]).contains("ends within"));
        assert!(error(&archive(&[("x", b"y")])[..116]).contains("without its trailer"));
        assert_eq!(read(b"").unwrap(), []);
    }

    #[test]
    fn the_names_of_an_inode_have_its_last_content() {
        let archive = linked(&[
            (1, 3, "a", b""),
            (1, 3, "b", b"first"),
            (2, 2, "other", b"kept"),
            (1, 3, "c", b""),
            (1, 3, "b", b"second"),
            // Replaces the name alone.
            (2, 2, "c", b""),
            // The numbers are free again behind the trailer.
        ]);
        let next = linked(&[(1, 2, "d", b""), (1, 2, "e", b"third")]);
        let found = read(&[archive, next].concat()).unwrap();
        let [kept, second, third] =
            [&b"kept"[..], b"second", b"third"].map(|content| SHA256.digest(&[content]));
        let expected = [
            (&b"/a"[..], second),
            (b"/b", second),
            (b"/other", kept),
            (b"/c", kept),
            (b"/d", third),
            (b"/e", third),
        ];
        assert_eq!(listed(&found), expected);
    }

    #[test]
    fn an_archive_of_one_name_over_and_over_ends_at_the_limit_of_entries() {
        let mut again = linked(&[(1, 2, "a", b"x")]);
        again.truncate(again.len() - 124);
        let error = read(&again.repeat((1 << 20) + 1)).unwrap_err().to_string();
        assert!(error.contains("too many entries"), "{error}");
    }

    #[test]
    fn it_is_given_up_when_the_caller_says_so() {
        for image in IMAGES {
            let asked = Cell::new(0);
            let stop = || asked.replace(asked.get() + 1) == 20;
            let stopped = files(image, SHA256, &stop);
            assert!(matches!(stopped, Err(InitrdError::Stopped)));
            assert_eq!(asked.get(), 21);
        }
    }

    /// A cpio archive of files.
    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let files: Vec<_> = files
            .iter()
            .map(|(name, content)| (0, 1, *name, *content))
            .collect();
        linked(&files)
    }

    /// A cpio archive of files, before each the number of its inode and how many names that has.
    fn linked(files: &[(usize, usize, &str, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (inode, links, name, content) in files.iter().chain([&(0, 1, "TRAILER!!!", &b""[..])]) {
            let fields = [
                *inode,
                0o100_644,
                0,
                0,
                *links,
                0,
                content.len(),
                0,
                0,
                0,
                0,
                name.len() + 1,
                0,
            ];
            archive.extend(b"070701");
            for field in fields {
                archive.extend(format!("{field:08x}").into_bytes());
            }
            archive.extend(name.as_bytes());
            archive.push(0);
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend(*content);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive
    }
}
