use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use troth_archive::rpm::Package;
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

/// Reads the headers of package files, and of those below directories (`**/*.rpm`).
pub(super) fn read(
    places: &[PathBuf],
    algorithm: HashAlgorithm,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Packages, Error> {
    let mut files = BTreeSet::new();
    for place in places {
        collect(place, &mut files)?;
    }
    let files: Vec<_> = files.into_iter().collect();
    let mut all = Packages::default();
    for (path, package) in files.iter().zip(parallel(&files, stop, |path| open(path))) {
        let package = match package {
            None => {
                all.found.stopped = true;
                break;
            }
            Some(Ok(package)) => package,
            Some(Err(reason)) => {
                all.found.unreadable(path, reason);
                continue;
            }
        };
        if package.algorithm.is_some_and(|found| found != algorithm) {
            let reason = format!("its digests are not {algorithm}");
            all.found.unreadable(path, reason);
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
    Ok(all)
}

fn open(path: &Path) -> Result<Package, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    Package::read(BufReader::new(file)).map_err(|error| error.to_string())
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
