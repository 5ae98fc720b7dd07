use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use crate::{error::Error, output::Output};

/// Mode of a new file that anybody may read, before the umask.
const PUBLIC: u32 = 0o666;

/// Is a result for standard output?
pub(super) fn is_stdout(path: Option<&Path>) -> bool {
    path.is_none_or(|path| path == Path::new("-"))
}

/// Writes a result to a file, or to standard output.
pub(super) fn write_output(path: Option<&Path>, text: &str, out: &Output) -> Result<(), Error> {
    match path {
        Some(path) if !is_stdout(Some(path)) => {
            replace(path, text.as_bytes(), PUBLIC).map_err(|source| failed(path, source))
        }
        _ => out.text(text),
    }
}

/// Writes the file that `option` names, which must not exist.
pub(super) fn write_new(
    option: &'static str,
    path: &Path,
    text: &str,
    mode: u32,
) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::FileExists {
            option,
            path: path.to_owned(),
        },
        _ => failed(path, source),
    })
}

/// Writes a file for its owner alone, whatever was there.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = replace(path, bytes, 0o600);
    let written = written.and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o600)));
    written.map_err(|source| failed(path, source))
}

/// Are both the same file, by name or as it is on the disk?
pub(super) fn same_file(one: &Path, other: &Path) -> bool {
    let absolute = |path| std::path::absolute(path).ok();
    let inode = |path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let same_inode = inode(one).is_some_and(|one| inode(other) == Some(one));
    same_inode || absolute(one).is_some_and(|one| absolute(other) == Some(one))
}

/// The whole new content or the old: beside its place, then renamed. A file that is there keeps
/// its mode; links are followed, and what is no regular file is written to as it is.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let old = fs::metadata(path).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        return fs::write(path, bytes);
    }
    let path = match old {
        Some(_) => fs::canonicalize(path)?,
        None => path.to_owned(),
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside);
    let written = file.and_then(|mut file| {
        if let Some(old) = old {
            file.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &path)
    });
    if written
        .as_ref()
        .is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists)
    {
        // What is half written is of no use; why it is, is the error to tell.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::WriteFile {
        path: path.to_owned(),
        source,
    }
}
