use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use troth_archive::{initrd, pe};
use troth_core::tpm::{Digest, HashAlgorithm};

use super::{found::Found, kernel_name, parallel};
use crate::{cli::ImageArgs, error::Error};

/// Longest image that is read, in bytes.
const MAX_IMAGE: u64 = 1 << 30;
/// Sections of a UKI that the stub hands to the kernel as one initrd, in its order (UAPI.5).
const SECTIONS: [&[u8]; 2] = [b".ucode", b".initrd"];

/// An image file, and how it is read.
#[derive(Debug)]
enum Image {
    Initrd(PathBuf),
    Uki(PathBuf),
}

/// Reads what is in initrds and unified kernel images.
pub(super) fn read(
    args: &ImageArgs,
    algorithm: HashAlgorithm,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Found, Error> {
    let initrds = args.initrd.iter().cloned().map(Image::Initrd);
    let mut images: Vec<_> = initrds
        .chain(args.uki.iter().cloned().map(Image::Uki))
        .collect();
    for directory in &args.ramdisk_dir {
        images.extend(ramdisks(directory)?.into_iter().map(Image::Initrd));
    }
    let mut found = Found::default();
    let read = parallel(&images, stop, |image| files(image, algorithm, stop));
    for (image, read) in images.iter().zip(read) {
        match read {
            None => found.stopped = true,
            // Given up on for the same reason.
            Some(Err(_)) if stop() => found.stopped = true,
            Some(Ok(files)) => found.files.extend(files),
            Some(Err(reason)) => found.unreadable(image.path(), reason),
        }
    }
    Ok(found)
}

impl Image {
    fn path(&self) -> &Path {
        match self {
            Self::Initrd(path) | Self::Uki(path) => path,
        }
    }
}

fn files(
    image: &Image,
    algorithm: HashAlgorithm,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<(String, Digest)>, String> {
    let mut bytes = Vec::new();
    let file = File::open(image.path()).map_err(|error| error.to_string())?;
    let read = file.take(MAX_IMAGE + 1).read_to_end(&mut bytes);
    if read.map_err(|error| error.to_string())? as u64 > MAX_IMAGE {
        return Err("it is longer than 1 GiB".to_owned());
    }
    let archives = match image {
        Image::Initrd(_) => vec![bytes.as_slice()],
        Image::Uki(_) => {
            let sections = pe::sections(&bytes).map_err(|error| error.to_string())?;
            let named = |name| sections.iter().filter(move |section| section.name == name);
            let archives = SECTIONS.into_iter().flat_map(named);
            archives.map(|section| section.content).collect()
        }
    };
    if archives.is_empty() {
        return Err("it has no section .initrd".to_owned());
    }
    let mut files = Vec::new();
    for archive in archives {
        let read = initrd::files(archive, algorithm, stop);
        let read = read.map_err(|error| error.to_string())?;
        let read = read.into_iter();
        files.extend(read.map(|file| (kernel_name(&file.path), file.digest)));
    }
    Ok(files)
}

/// Files of a directory whose names begin with `initr`, as Keylime takes them.
fn ramdisks(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |source| Error::ReadFile {
        path: directory.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let named = entry.file_name().as_encoded_bytes().starts_with(b"initr");
        if named && fs::metadata(entry.path()).map_err(fail)?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}
