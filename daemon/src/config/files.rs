use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::ConfigError;

/// Bytes of one file of any kind of configuration.
const MAX_FILE: u64 = 1024 * 1024;

/// Directories from weakest to strongest.
const DIRECTORIES: [&str; 3] = ["/usr/lib/troth", "/run/troth", "/etc/troth"];

/// The files of `name` that apply, weakest first.
pub(super) fn layers(name: &str, root: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
    let directories = DIRECTORIES.map(|directory| below(root, directory));
    let main = format!("{name}.toml");
    let base = directories
        .iter()
        .rev()
        .map(|directory| directory.join(&main))
        .find(|path| path.exists());
    let mut drop_ins = BTreeMap::new();
    for directory in &directories {
        for path in entries(&directory.join(format!("{main}.d")))? {
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                drop_ins.insert(path.file_name().map(ToOwned::to_owned), path);
            }
        }
    }
    Ok(base.into_iter().chain(drop_ins.into_values()).collect())
}

/// Does the operating system's vendor own `file`?
pub(super) fn is_vendors(file: &Path, root: Option<&Path>) -> bool {
    file.starts_with(below(root, DIRECTORIES[0]))
}

/// `path`, which is absolute, with `root` for `/`.
pub(super) fn below(root: Option<&Path>, path: &str) -> PathBuf {
    match root {
        Some(root) => root.join(path.trim_start_matches('/')),
        None => PathBuf::from(path),
    }
}

/// A file of up to [`MAX_FILE`] bytes; no more of it is read.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, ConfigError> {
    let read = || -> io::Result<Zeroizing<String>> {
        let mut text = Zeroizing::new(String::new());
        let size = File::open(path)?
            .take(MAX_FILE + 1)
            .read_to_string(&mut text)?;
        match u64::try_from(size) {
            Ok(size) if size <= MAX_FILE => Ok(text),
            _ => Err(io::Error::other("the file is larger than 1 MiB")),
        }
    };
    read().map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// What is in `directory`, sorted by name; nothing when it does not exist.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let paths = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path()));
        let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|source| ConfigError::Read {
            path: directory.to_owned(),
            source,
        }),
    }
}
