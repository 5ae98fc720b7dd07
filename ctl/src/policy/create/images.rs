use std::{
    fs::{self, File},
    io::{self, Read},
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
            Some(Err(Problem::Unreadable(error))) => found.unreadable(image.path(), error),
            Some(Err(Problem::Malformed(reason))) => found.malformed(image.path(), reason),
        }
    }
    Ok(found)
}

/// Why an image's files are not known.
enum Problem {
    Unreadable(io::Error),
    Malformed(String),
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
) -> Result<Vec<(String, Digest)>, Problem> {
    let malformed = |reason: &str| Problem::Malformed(reason.to_owned());
    let mut bytes = Vec::new();
    let file = File::open(image.path()).map_err(Problem::Unreadable)?;
    let read = file.take(MAX_IMAGE + 1).read_to_end(&mut bytes);
    if read.map_err(Problem::Unreadable)? as u64 > MAX_IMAGE {
        return Err(malformed("it is longer than 1 GiB"));
    }
    let archives = match image {
        Image::Initrd(_) => vec![(String::new(), bytes.as_slice())],
        Image::Uki(_) => {
            let sections = pe::sections(&bytes);
            let sections = sections.map_err(|error| malformed(&error.to_string()))?;
            let named = |name| sections.iter().filter(move |section| section.name == name);
            let archives = SECTIONS.into_iter().flat_map(named);
            let place = |name| format!("section {}, ", String::from_utf8_lossy(name));
            archives
                .map(|section| (place(section.name), section.content))
                .collect()
        }
    };
    if archives.is_empty() {
        return Err(malformed("it has no section .initrd"));
    }
    let mut files = Vec::new();
    for (place, archive) in archives {
        let read = initrd::files(archive, algorithm, stop);
        let read = read.map_err(|error| malformed(&format!("{place}{error}")))?;
        let read = read.into_iter();
        files.extend(read.map(|file| (kernel_name(&file.path), file.digest)));
    }
    match files.is_empty() {
        true => Err(malformed("there are no files in it")),
        false => Ok(files),
    }
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
    match files.is_empty() {
        true => Err(Error::NothingFound {
            place: directory.to_owned(),
            what: "initrds (files named initr*)",
            advice: "name the directory that has them, or a file with --initrd",
        }),
        false => Ok(files),
    }
}
