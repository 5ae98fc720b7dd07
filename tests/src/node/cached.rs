use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directory `name` in `place`, which `make` makes unless it is there. Whoever asks meanwhile
/// waits; what a broken attempt left is not used.
pub(super) fn made_once(
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
