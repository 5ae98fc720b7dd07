use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

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

/// Says of a directory that it is used, for [`remove_unused`].
pub(crate) fn mark_used(made: &Path) -> Result<()> {
    let marked = File::open(made).and_then(|made| made.set_modified(SystemTime::now()));
    marked.with_context(|| format!("cannot mark {} as used", made.display()))
}

/// Removes directories of `place` that nobody has used for so long: other checkouts may use what
/// this one does not any more.
pub(crate) fn remove_unused(place: &Path, age: Duration) -> Result<()> {
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let (path, about) = (entry.path(), entry.metadata()?);
        if about.is_dir() && about.modified()?.elapsed().is_ok_and(|since| since > age) {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
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
    fn what_nobody_has_used_for_long_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let week = Duration::from_secs(7 * 24 * 60 * 60);
        let old = SystemTime::now() - week * 2;
        for name in ["used", "unused", "new"] {
            let path = place.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), name).unwrap();
            let directory = File::open(&path).unwrap();
            let time = if name == "new" {
                SystemTime::now()
            } else {
                old
            };
            directory.set_modified(time).unwrap();
        }
        mark_used(&place.path().join("used")).unwrap();
        remove_unused(place.path(), week).unwrap();
        let mut left: Vec<_> = fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["new", "used"]);
    }

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
