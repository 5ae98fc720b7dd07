use std::{
    ffi::{CStr, OsStr},
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, readlinkat, statat,
    },
    io::Errno,
};

/// Entries of a directory that are looked at.
const ENTRIES_MAX: usize = 1000;

/// Longest file, in bytes.
const FILE_MAX: u64 = 64 * 1024;

/// Mode bits that let others than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A part of the file system in which everything has to belong to one user, and to be writable by
/// nobody else.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
    owner: u32,
}

/// A file that may be a file of that user's.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its name in the directory.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its content, or why it cannot be used.
    pub(crate) content: Result<Content, String>,
}

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// This.
    Text(String),
    /// That there is nothing of this name: it is a link to /dev/null, as systemd's units are masked.
    Masked,
}

impl Place {
    /// Everything from `root` down, which has to belong to `owner`.
    pub(crate) fn new(root: PathBuf, owner: u32) -> Self {
        Self { root, owner }
    }

    /// The files in a directory whose names end in `suffix`, sorted; none if there is no such directory.
    /// An error says which part of the path cannot be trusted.
    pub(crate) fn list(&self, directory: &str, suffix: &str) -> Result<Vec<Found>, Unusable> {
        let path = self.root.join(directory.trim_start_matches('/'));
        let Some(opened) = self.open(directory)? else {
            return Ok(Vec::new());
        };
        let unusable = |error: Errno| Unusable::new(&path, &io::Error::from(error));
        let mut names = Vec::new();
        for entry in Dir::read_from(&opened).map_err(unusable)? {
            let entry = entry.map_err(unusable)?;
            if entry.file_name().to_bytes().ends_with(suffix.as_bytes()) {
                names.push(entry.file_name().to_owned());
            }
            if names.len() > ENTRIES_MAX {
                return Err(Unusable {
                    path,
                    reason: format!("it has more than {ENTRIES_MAX} files"),
                });
            }
        }
        names.sort();
        let found = names.iter().map(|name| {
            let shown = OsStr::from_bytes(name.to_bytes());
            Found {
                name: shown.to_string_lossy().into_owned(),
                path: path.join(shown),
                content: self.read(&opened, name),
            }
        });
        Ok(found.collect())
    }

    /// Opens a directory, step by step: whoever can write to one of those above it can put another
    /// in its place. `None`: it is not there.
    fn open(&self, directory: &str) -> Result<Option<OwnedFd>, Unusable> {
        let mut path = self.root.clone();
        let start = open(
            &path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let mut opened = start.map_err(|error| Unusable::new(&path, &error.into()))?;
        self.check_at(&path, &opened)?;
        for component in Path::new(directory).components() {
            let Component::Normal(name) = component else {
                continue;
            };
            path.push(name);
            opened = match openat(&opened, name, DIRECTORY, Mode::empty()) {
                Ok(opened) => opened,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    return Err(Unusable {
                        path,
                        reason: "it is no directory, or a symbolic link to one".to_owned(),
                    });
                }
                Err(error) => return Err(Unusable::new(&path, &error.into())),
            };
            self.check_at(&path, &opened)?;
        }
        Ok(Some(opened))
    }

    fn check_at(&self, path: &Path, opened: &OwnedFd) -> Result<(), Unusable> {
        let checked = fstat(opened).map_err(|error| io::Error::from(error).to_string());
        let checked = checked.and_then(|stat| self.check(&stat));
        checked.map_err(|reason| Unusable {
            path: path.to_owned(),
            reason,
        })
    }

    fn check(&self, stat: &Stat) -> Result<(), String> {
        if stat.st_uid != self.owner {
            return Err(format!(
                "it belongs to user {}, not {}",
                stat.st_uid, self.owner
            ));
        }
        if stat.st_mode & WRITABLE_BY_OTHERS != 0 {
            let mode = stat.st_mode & 0o7777;
            return Err(format!(
                "its mode {mode:04o} lets others than its owner write"
            ));
        }
        Ok(())
    }

    fn read(&self, directory: &OwnedFd, name: &CStr) -> Result<Content, String> {
        // Not blocking: a FIFO would hold up everybody.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match openat(directory, name, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::LOOP) => return self.follow(directory, name),
            Err(error) => return Err(io::Error::from(error).to_string()),
        };
        let stat = fstat(&opened).map_err(|error| io::Error::from(error).to_string())?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err("it is no regular file".to_owned());
        }
        self.check(&stat)?;
        let mut content = Vec::new();
        let read = File::from(opened)
            .take(FILE_MAX + 1)
            .read_to_end(&mut content);
        read.map_err(|error| error.to_string())?;
        if content.len() as u64 > FILE_MAX {
            return Err(format!("it is longer than {FILE_MAX} bytes"));
        }
        let text = String::from_utf8(content).map_err(|error| error.to_string())?;
        Ok(Content::Text(text))
    }

    /// What a symbolic link stands for.
    fn follow(&self, directory: &OwnedFd, name: &CStr) -> Result<Content, String> {
        let link = readlinkat(directory, name, Vec::new());
        let owner = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_uid);
        if owner == Ok(self.owner) && link.is_ok_and(|to| to.as_bytes() == b"/dev/null") {
            Ok(Content::Masked)
        } else {
            Err("it is a symbolic link, and not to /dev/null".to_owned())
        }
    }
}

/// A directory whose files nobody should act by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unusable {
    /// The directory, or one above it.
    pub(crate) path: PathBuf,
    /// What is wrong.
    pub(crate) reason: String,
}

impl Unusable {
    fn new(path: &Path, error: &io::Error) -> Self {
        Self {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }
}

/// The user that a file belongs to.
pub(crate) fn owner(path: &Path) -> io::Result<u32> {
    Ok(statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?.st_uid)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, symlink},
    };

    use rustix::process::geteuid;

    use super::*;

    const ACTIONS: &str = "/etc/troth/actions.d";

    /// A tree that nobody but this user can write to.
    fn place() -> (tempfile::TempDir, Place, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let actions = directory.path().join("etc/troth/actions.d");
        fs::create_dir_all(&actions).unwrap();
        for path in ["", "etc", "etc/troth", "etc/troth/actions.d"] {
            chmod(&directory.path().join(path), 0o755);
        }
        let place = Place::new(directory.path().to_owned(), geteuid().as_raw());
        (directory, place, actions)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn write(path: &Path, content: &str, mode: u32) {
        fs::write(path, content).unwrap();
        chmod(path, mode);
    }

    #[test]
    fn only_files_that_nobody_else_can_write_are_read() {
        let (_directory, place, actions) = place();
        write(&actions.join("good.toml"), "good", 0o644);
        write(&actions.join("group.toml"), "bad", 0o664);
        write(&actions.join("world.toml"), "bad", 0o646);
        write(&actions.join("long.toml"), &"x".repeat(70_000), 0o644);
        write(&actions.join("readme"), "no", 0o666);
        fs::create_dir(actions.join("directory.toml")).unwrap();
        symlink("/dev/null", actions.join("masked.toml")).unwrap();
        symlink("good.toml", actions.join("link.toml")).unwrap();
        fs::write(actions.join("latin1.toml"), b"\xe9").unwrap();
        chmod(&actions.join("latin1.toml"), 0o644);

        let found = place.list(ACTIONS, ".toml").unwrap();
        let names: Vec<_> = found.iter().map(|found| found.name.as_str()).collect();
        let expected = [
            "directory.toml",
            "good.toml",
            "group.toml",
            "latin1.toml",
            "link.toml",
            "long.toml",
            "masked.toml",
            "world.toml",
        ];
        assert_eq!(names, expected);
        for found in found {
            match (found.name.as_str(), found.content) {
                ("good.toml", content) => assert_eq!(content, Ok(Content::Text("good".to_owned()))),
                ("masked.toml", content) => assert_eq!(content, Ok(Content::Masked)),
                (name, content) => {
                    let reason = content.expect_err(name);
                    let word = match name {
                        "group.toml" => "0664",
                        "world.toml" => "0646",
                        "long.toml" => "65536",
                        "directory.toml" => "regular",
                        "link.toml" => "symbolic",
                        _ => "utf-8",
                    };
                    assert!(reason.contains(word), "{name}: {reason}");
                }
            }
        }
    }

    #[test]
    fn a_directory_on_the_way_that_others_can_write_to_spoils_all() {
        let (directory, place, actions) = place();
        write(&actions.join("good.toml"), "good", 0o644);
        for path in ["", "etc", "etc/troth", "etc/troth/actions.d"] {
            let path = directory.path().join(path);
            chmod(&path, 0o775);
            let refused = place.list(ACTIONS, ".toml").unwrap_err();
            assert_eq!(refused.path.components().count(), path.components().count());
            assert!(refused.reason.contains("0775"), "{refused:?}");
            chmod(&path, 0o755);
        }
        assert_eq!(place.list(ACTIONS, ".toml").unwrap().len(), 1);

        let elsewhere = directory.path().join("elsewhere");
        fs::rename(directory.path().join("etc/troth"), &elsewhere).unwrap();
        symlink(&elsewhere, directory.path().join("etc/troth")).unwrap();
        let refused = place.list(ACTIONS, ".toml").unwrap_err();
        assert!(refused.reason.contains("symbolic link"), "{refused:?}");
    }

    #[test]
    fn files_of_somebody_else_are_refused_and_a_missing_directory_is_empty() {
        let (directory, place, _) = place();
        assert_eq!(
            place
                .list("/usr/lib/troth/actions.d", ".toml")
                .unwrap()
                .len(),
            0
        );
        let other = Place::new(directory.path().to_owned(), place.owner + 1);
        let refused = other.list(ACTIONS, ".toml").unwrap_err();
        assert!(refused.reason.contains("belongs to user"), "{refused:?}");
    }
}
