use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use troth_core::bundle::{Bundle, BundleError};

use crate::error::Error;

/// Most bytes of a bundle, gzipped or not. Verifiers take answers of 128 MiB.
const MAX_BUNDLE: u64 = 512 << 20;
/// The first bytes of gzip (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// How names of bundles end.
pub(crate) const SUFFIXES: [&str; 2] = [".evidence.gz", ".evidence"];

/// The bytes of a bundle, without gzip. `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = if path == Path::new("-") {
        bounded(io::stdin().lock())
    } else {
        File::open(path).and_then(bounded)
    };
    let bytes = bytes.and_then(plain);
    bytes.map_err(|source| Error::ReadFile {
        path: path.to_owned(),
        source,
    })
}

/// `bytes` without gzip.
pub(crate) fn plain(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if bytes.starts_with(&GZIP) {
        bounded(GzDecoder::new(bytes.as_slice()))
    } else {
        Ok(bytes)
    }
}

/// `bytes` with gzip.
pub(crate) fn gzipped(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(bytes)?;
    gzip.finish()
}

/// The bundle in what [`read`] has read of `path`.
pub(crate) fn parse<'b>(path: &Path, bytes: &'b [u8]) -> Result<Bundle<'b>, Error> {
    Bundle::parse(bytes).map_err(|source| malformed(path, source))
}

/// A file that is no bundle, or none that can be judged.
pub(crate) fn malformed(path: &Path, source: BundleError) -> Error {
    Error::Bundle {
        path: path.to_owned(),
        source,
    }
}

/// `paths`, and where one is a directory, the bundles in it.
pub(crate) fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let before = files.len();
        let unreadable = |source| Error::ReadFile {
            path: path.clone(),
            source,
        };
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
                files.push(entry.path());
            }
        }
        if files.len() == before {
            return Err(Error::Malformed {
                path: path.clone(),
                reason: "no *.evidence.gz and no *.evidence in this directory".to_owned(),
            });
        }
    }
    Ok(files)
}

/// All that there is, or an error where that is more than a bundle has.
fn bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_BUNDLE + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BUNDLE {
        return Err(io::Error::other(format!(
            "larger than {MAX_BUNDLE} bytes, which no evidence bundle is"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_comes_off_and_damage_is_noticed() {
        let zipped = gzipped(b"evidence").unwrap();
        assert_eq!(plain(zipped.clone()).unwrap(), b"evidence");
        assert_eq!(plain(b"evidence".to_vec()).unwrap(), b"evidence");
        plain(zipped[..zipped.len() - 3].to_vec()).unwrap_err();
        let mut damaged = zipped;
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        plain(damaged).unwrap_err();
    }

    #[test]
    fn a_small_file_does_not_fill_the_memory() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        let zeros = vec![0; 1 << 20];
        for _ in 0..=(MAX_BUNDLE >> 20) {
            gzip.write_all(&zeros).unwrap();
        }
        let bomb = gzip.finish().unwrap();
        assert!(bomb.len() < 1 << 20);
        assert!(plain(bomb).unwrap_err().to_string().contains("larger than"));
    }
}
