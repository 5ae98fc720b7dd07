use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};

use crate::process::output_of;

/// The directory `name` in `place`, which `make` makes unless it is there. Whoever asks meanwhile
/// waits; what a broken attempt left is not used.
pub(crate) fn made_once(
    place: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let made = place.join(name);
    if made.is_dir() {
        return Ok(made);
    }
    fs::create_dir_all(place)?;
    let lock = File::create(place.join("lock"))?;
    lock.lock()?;
    if made.is_dir() {
        return Ok(made);
    }
    let beside = place.join(format!("{name}.unfinished"));
    if beside.exists() {
        fs::remove_dir_all(&beside)
            .with_context(|| format!("cannot remove {}", beside.display()))?;
    }
    make(&beside)?;
    fs::rename(&beside, &made)?;
    Ok(made)
}

/// Removes the directories in `place` that `is_old` says so of, by their names.
pub(crate) fn remove_old(place: &Path, is_old: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && is_old(&entry.file_name().to_string_lossy()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A short name for what `recipe` describes.
pub(crate) fn key_of(recipe: &str) -> String {
    hex::encode(&digest(&SHA256, recipe.as_bytes()).as_ref()[..8])
}

/// Copies a file without writing its holes.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.args(["--sparse=always", "--reflink=auto"]);
    output_of(command.arg(from).arg(to)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_directory_is_made_once_and_only_when_it_is_whole() {
        let place = tempfile::tempdir().unwrap();
        let broken = made_once(place.path(), "one", |beside| {
            fs::create_dir(beside)?;
            fs::write(beside.join("half"), "")?;
            anyhow::bail!("broken off")
        });
        assert!(broken.is_err());
        let make = |beside: &Path| {
            fs::create_dir(beside)?;
            // Fails in whoever comes second.
            Ok(fs::create_dir(place.path().join("made"))?)
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| made_once(place.path(), "one", make).unwrap());
            }
        });
        assert!(place.path().join("one").is_dir());
        assert!(!place.path().join("one/half").exists());
    }
}
