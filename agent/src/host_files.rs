//! Files of the host that root alone may read: handed over by the service manager, or opened by
//! their paths.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use troth_daemon::descriptors::Descriptors;

use crate::config::Config;

/// Bytes asked for at a time; securityfs gives at most so many.
const BLOCK: usize = 4096;

/// A file that is opened by its path each time, or that is open already.
#[derive(Clone, Debug)]
pub struct HostFile {
    path: PathBuf,
    handed_over: Option<Arc<File>>,
}

impl From<PathBuf> for HostFile {
    fn from(path: PathBuf) -> Self {
        Self {
            path,
            handed_over: None,
        }
    }
}

impl HostFile {
    /// `file` is open already; `path` is what it is called in messages.
    pub fn opened(path: PathBuf, file: File) -> Self {
        Self {
            path,
            handed_over: Some(Arc::new(file)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Is it the service manager's?
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.is_some()
    }

    /// The service manager's file.
    pub(crate) fn handed_over(&self) -> Option<&File> {
        self.handed_over.as_deref()
    }

    /// The open file; `None` when there is none. Its position is nobody's: it is shared.
    pub fn open(&self) -> io::Result<Option<Arc<File>>> {
        match &self.handed_over {
            Some(file) => Ok(Some(Arc::clone(file))),
            None => found(File::open(&self.path).map(Arc::new)),
        }
    }

    /// What kind of file is there; `None` when there is none.
    pub fn metadata(&self) -> io::Result<Option<Metadata>> {
        found(match &self.handed_over {
            Some(file) => file.metadata(),
            None => fs::metadata(&self.path),
        })
    }
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first `limit` bytes of `file`, or all if it has fewer.
pub(crate) fn read_up_to(limit: usize, file: &File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    while content.len() < limit {
        let start = content.len();
        content.resize(limit.min(start.saturating_add(BLOCK)), 0);
        let read = file.read_at(&mut content[start..], start as u64);
        let read = match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                content.truncate(start);
                continue;
            }
            read => read?,
        };
        content.truncate(start + read);
        if read == 0 {
            break;
        }
    }
    Ok(content)
}

/// All files of the host that the agent reads.
#[derive(Debug)]
pub struct HostFiles {
    /// The kernel's IMA list, in ASCII.
    pub ima_list: HostFile,
    /// The firmware's event log.
    pub boot_log: HostFile,
    /// systemd's log of what user space measured.
    pub userspace_log: HostFile,
    /// The product uuid of DMI.
    pub product_uuid: HostFile,
}

impl HostFiles {
    /// What the unit's `OpenFile=` hands over stands for the files of the defaults. Whoever
    /// configures another path means another file.
    pub fn new(config: &Config, mut descriptors: Descriptors) -> Self {
        let default = Config::default();
        let mut file = |name, path: &PathBuf, default: &PathBuf| {
            let handed_over = descriptors.take_file(name).filter(|_| path == default);
            match handed_over {
                Some(file) => HostFile::opened(path.clone(), file),
                None => path.clone().into(),
            }
        };
        Self {
            ima_list: file("ima-list", &config.ima_ml_path, &default.ima_ml_path),
            boot_log: file(
                "boot-log",
                &config.measuredboot_ml_path,
                &default.measuredboot_ml_path,
            ),
            userspace_log: file(
                "userspace-log",
                &config.userspace_ml_path,
                &default.userspace_ml_path,
            ),
            product_uuid: file(
                "product-uuid",
                &config.dmi_product_uuid_path,
                &default.dmi_product_uuid_path,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: &str = include_str!("../../units/lib/systemd/system/troth-agent.service");

    /// Names and paths are the unit's as much as the code's.
    #[test]
    fn the_unit_opens_the_files_of_the_defaults_by_the_names_that_are_asked_for() {
        let mut opened: Vec<(&str, &Path)> = UNIT
            .lines()
            .filter_map(|line| {
                let (path, rest) = line.strip_prefix("OpenFile=")?.split_once(':')?;
                let name = rest.strip_suffix(":read-only,graceful")?;
                Some((name, Path::new(path)))
            })
            .collect();
        opened.sort_unstable();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "").unwrap();
        let descriptors = opened
            .iter()
            .map(|(name, _)| ((*name).to_owned(), File::open(&path).unwrap().into()));
        let files = HostFiles::new(&Config::default(), descriptors.collect());
        let asked = [
            ("boot-log", &files.boot_log),
            ("ima-list", &files.ima_list),
            ("product-uuid", &files.product_uuid),
            ("userspace-log", &files.userspace_log),
        ];
        assert_eq!(opened, asked.map(|(name, file)| (name, file.path())));
        for (name, file) in asked {
            assert!(file.is_handed_over(), "{name}");
        }
    }

    #[test]
    fn a_path_that_is_configured_is_another_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "").unwrap();
        let descriptors = [("ima-list".to_owned(), File::open(&path).unwrap().into())];
        let config = Config {
            ima_ml_path: "/configured".into(),
            ..Config::default()
        };
        let files = HostFiles::new(&config, descriptors.into_iter().collect());
        assert!(!files.ima_list.is_handed_over());
        assert_eq!(files.ima_list.path(), Path::new("/configured"));
    }

    #[test]
    fn a_file_is_read_from_its_beginning_as_often_as_one_likes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let text: Vec<u8> = (0..=250).cycle().take(3 * BLOCK).collect();
        fs::write(&path, &text).unwrap();
        let file = HostFile::opened("/elsewhere".into(), File::open(&path).unwrap());
        // Who holds it needs no path to it.
        fs::remove_file(&path).unwrap();
        for limit in [text.len() + 1, text.len(), BLOCK + 1, 1, 0] {
            let open = file.open().unwrap().unwrap();
            let read = read_up_to(limit, &open).unwrap();
            assert_eq!(read, text[..limit.min(text.len())]);
        }
        let by_path = HostFile::from(path);
        assert!(by_path.open().unwrap().is_none() && by_path.metadata().unwrap().is_none());
    }
}
