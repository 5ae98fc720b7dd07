use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use troth_archive::rpm::{Package, RpmError};
use troth_core::tpm::HashAlgorithm;

use super::{found::Found, kernel_name, parallel};
use crate::error::Error;

/// What packages install.
#[derive(Debug, Default)]
pub(super) struct Packages {
    pub(super) found: Found,
    /// How many were read.
    pub(super) count: usize,
    /// Files with a signature for IMA.
    pub(super) signed: usize,
    /// Ids of the keys that made those.
    pub(super) key_ids: BTreeSet<u32>,
}

/// Reads the headers of package files, and of those below directories (`**/*.rpm`). Source packages
/// are left out.
pub(super) fn read(
    places: &[PathBuf],
    algorithm: HashAlgorithm,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Packages, Error> {
    let mut files = BTreeSet::new();
    for place in places {
        let before = files.len();
        collect(place, &mut files)?;
        if files.len() == before && !files.iter().any(|file| file.starts_with(place)) {
            return Err(nothing(place));
        }
    }
    let files: Vec<_> = files.into_iter().collect();
    let mut all = Packages::default();
    let mut sources = Vec::new();
    for (path, package) in files.iter().zip(parallel(&files, stop, |path| open(path))) {
        let package = match package {
            None => {
                all.found.stopped = true;
                break;
            }
            Some(Ok(package)) => package,
            Some(Err(RpmError::Source)) => {
                sources.push(path);
                continue;
            }
            Some(Err(error @ RpmError::Read { .. })) => {
                all.found.unreadable(path, error);
                continue;
            }
            Some(Err(error)) => {
                all.found.malformed(path, error);
                continue;
            }
        };
        if let Some(found) = package.algorithm.filter(|found| *found != algorithm) {
            let reason = format!("its digests are not {algorithm} but {found} (--algorithm)");
            all.found.malformed(path, reason);
            continue;
        }
        all.count += 1;
        for file in package.files {
            // Type 3, version 2, hash algorithm, key id.
            if let Some([3, 2, _, id @ ..]) = file.signature.first_chunk::<7>() {
                all.signed += 1;
                all.key_ids.insert(u32::from_be_bytes(*id));
            }
            let name = kernel_name(&file.path);
            all.found.files.push((name, file.digest));
        }
    }
    if let Some(first) = sources.first() {
        let first = first.display();
        all.found.left_out.push(match sources.len() {
            1 => format!("left out, a source package: {first}"),
            count => format!("left out, {count} source packages: {first} and more"),
        });
    }
    let place = places.first().filter(|_| sources.len() == files.len());
    match place {
        Some(place) => Err(nothing(place)),
        None => Ok(all),
    }
}

fn nothing(place: &Path) -> Error {
    Error::NothingFound {
        place: place.to_owned(),
        what: "packages (*.rpm that are no source packages)",
        advice: "name a package, or the directory of a repository that has them",
    }
}

fn open(path: &Path) -> Result<Package, RpmError> {
    let file = File::open(path).map_err(|source| RpmError::Read {
        structure: "file",
        source,
    })?;
    Package::read(BufReader::new(file))
}

/// A file as it is named; of a directory, the packages in it, without following links to others.
fn collect(place: &Path, files: &mut BTreeSet<PathBuf>) -> Result<(), Error> {
    let fail = |source| Error::ReadFile {
        path: place.to_owned(),
        source,
    };
    if !fs::metadata(place).map_err(fail)?.is_dir() {
        files.insert(place.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(place).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let path = entry.path();
        if entry.file_type().map_err(fail)?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rpm") {
            files.insert(path);
        }
    }
    Ok(())
}
