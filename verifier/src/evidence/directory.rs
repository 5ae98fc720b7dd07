use std::{
    collections::{BTreeMap, BinaryHeap, VecDeque},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use serde::Serialize;
use troth_core::{bundle::Word, identity::AgentId};

use super::Retention;

/// The file that is being written. No agent id begins with a dot.
const WRITING: &str = ".writing";
/// How names of bundles end.
const SUFFIX: &str = ".evidence.gz";
/// What the smallest file takes on disk.
const BLOCK: u64 = 4096;
/// Part of the size limit that is made free at a time: to look for what goes takes a while.
const SLACK: u64 = 32;

/// A bundle that is kept, as the name of its file says.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Kept {
    /// Its number among those of its node.
    pub sequence: u64,
    /// When the answer was there, Unix milliseconds.
    pub time_ms: u64,
    /// What came of it.
    pub verdict: Word,
    /// Size of the file.
    pub bytes: u64,
}

impl Kept {
    fn file_name(&self) -> String {
        let Self {
            sequence,
            time_ms,
            verdict,
            ..
        } = self;
        format!("{sequence:010}-{time_ms}-{}{SUFFIX}", verdict.as_str())
    }

    fn parse(name: &str, bytes: u64) -> Option<Self> {
        let (sequence, rest) = name.strip_suffix(SUFFIX)?.split_once('-')?;
        let (time_ms, verdict) = rest.split_once('-')?;
        let verdicts = [Word::Trusted, Word::Failed, Word::Rebooted];
        let kept = Self {
            sequence: sequence.parse().ok()?,
            time_ms: time_ms.parse().ok()?,
            verdict: verdicts.into_iter().find(|v| v.as_str() == verdict)?,
            bytes,
        };
        // One name for one bundle.
        (kept.file_name() == name).then_some(kept)
    }

    /// What it takes on disk.
    fn size(&self) -> u64 {
        self.bytes.max(1).next_multiple_of(BLOCK)
    }
}

/// The bundles of a node that are kept in `directory`, the oldest first.
///
/// # Errors
/// As reading the directory has them; a node without bundles has an empty list.
pub fn list(directory: &Path, node: &AgentId) -> io::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    let entries = match fs::read_dir(directory.join(node.as_str())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(kept),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // It may have been thrown away just now.
        if let Ok(about) = entry.metadata()
            && let Some(name) = entry.file_name().to_str()
            && about.is_file()
        {
            kept.extend(Kept::parse(name, about.len()));
        }
    }
    kept.sort_unstable_by_key(|kept| kept.sequence);
    Ok(kept)
}

/// A bundle of a node with its gzipped bytes; `None`: there is none of this number.
///
/// # Errors
/// As reading has them.
pub fn read(directory: &Path, node: &AgentId, sequence: u64) -> io::Result<Option<Vec<u8>>> {
    let kept = list(directory, node)?;
    let Some(kept) = kept.into_iter().find(|kept| kept.sequence == sequence) else {
        return Ok(None);
    };
    let path = directory.join(node.as_str()).join(kept.file_name());
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The directory, and what is in it. One process writes it.
#[derive(Debug)]
pub(super) struct Directory {
    retention: Retention,
    nodes: BTreeMap<String, Files>,
    /// On disk.
    size: u64,
}

#[derive(Debug, Default)]
struct Files {
    kept: VecDeque<Kept>,
    last: u64,
    size: u64,
}

impl Directory {
    /// Makes it if need be, finds what is in it, and removes what was being written when a
    /// process was killed.
    pub(super) fn open(retention: Retention) -> io::Result<Self> {
        let root = &retention.directory;
        make_directory(root)?;
        forget(&root.join(WRITING))?;
        let mut directory = Self {
            nodes: BTreeMap::new(),
            size: 0,
            retention,
        };
        for entry in fs::read_dir(&directory.retention.directory)? {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(|name| AgentId::new(name).ok()) else {
                continue;
            };
            // A stray file is no node.
            let Ok(kept) = list(&directory.retention.directory, &id) else {
                continue;
            };
            for kept in kept {
                directory.take(id.as_str(), kept);
            }
        }
        Ok(directory)
    }

    /// Writes a bundle, whose bytes `content` has for its number. A failed one is on disk when this
    /// returns; the others are as soon as the kernel writes them.
    pub(super) fn put(
        &mut self,
        node: &AgentId,
        time_ms: u64,
        verdict: Word,
        content: impl FnOnce(u64) -> io::Result<Vec<u8>>,
    ) -> io::Result<()> {
        let last = self.nodes.get(node.as_str()).map_or(0, |files| files.last);
        let sequence = last + 1;
        let bytes = content(sequence)?;
        let kept = Kept {
            sequence,
            time_ms,
            verdict,
            bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        };
        if kept.size() > self.retention.size {
            return Err(io::Error::other(format!(
                "a bundle of {} bytes does not fit into evidence_max_size",
                kept.bytes
            )));
        }
        let writing = self.retention.directory.join(WRITING);
        let place = self.retention.directory.join(node.as_str());
        let write = || {
            // All of it, should somebody have removed it.
            make_directory(&place)?;
            write_whole(&writing, &bytes, verdict == Word::Failed)?;
            fs::rename(&writing, place.join(kept.file_name()))?;
            if verdict == Word::Failed {
                File::open(&place)?.sync_all()?;
            }
            Ok(())
        };
        let written: io::Result<()> = write();
        if written.is_err() {
            let _ = forget(&writing);
        }
        written?;
        self.take(node.as_str(), kept);
        self.thin(node.as_str());
        self.shrink();
        Ok(())
    }

    /// Throws away what is older than it may be at `now`, Unix milliseconds.
    pub(super) fn expire(&mut self, now: u64) {
        let Some(age) = self.retention.age else {
            return;
        };
        let oldest = now.saturating_sub(milliseconds(age));
        let due = |files: &Files| files.kept.front().is_some_and(|kept| kept.time_ms < oldest);
        let nodes = self.nodes.iter().filter(|(_, files)| due(files));
        let nodes: Vec<_> = nodes.map(|(node, _)| node.clone()).collect();
        for node in nodes {
            while self.nodes.get(&node).is_some_and(due) {
                self.remove(&node, 0);
            }
        }
    }

    fn take(&mut self, node: &str, kept: Kept) {
        let files = self.nodes.entry(node.to_owned()).or_default();
        files.kept.push_back(kept);
        files.last = files.last.max(kept.sequence);
        files.size += kept.size();
        self.size += kept.size();
    }

    /// The count of a node: of failed ones and of others, so that a node that goes on does not
    /// push out why it had failed.
    fn thin(&mut self, node: &str) {
        for failed in [true, false] {
            let of_kind = |kept: &Kept| (kept.verdict == Word::Failed) == failed;
            while let Some(files) = self.nodes.get(node)
                && files.kept.iter().filter(|kept| of_kind(kept)).count() > self.retention.count
                && let Some(first) = files.kept.iter().position(of_kind)
            {
                self.remove(node, first);
            }
        }
    }

    /// The size of all: the node that has most loses its oldest, so that none can push out the
    /// evidence of others.
    fn shrink(&mut self) {
        let limit = self.retention.size;
        if self.size <= limit {
            return;
        }
        let nodes = self.nodes.iter();
        let mut largest: BinaryHeap<(u64, String)> = nodes
            .map(|(node, files)| (files.size, node.clone()))
            .collect();
        while self.size > limit - limit / SLACK
            && let Some((_, node)) = largest.pop()
        {
            self.remove(&node, 0);
            let left = self.nodes.get(&node).map_or(0, |files| files.size);
            if left > 0 {
                largest.push((left, node));
            }
        }
    }

    fn remove(&mut self, node: &str, index: usize) {
        let Some(files) = self.nodes.get_mut(node) else {
            return;
        };
        let Some(kept) = files.kept.remove(index) else {
            return;
        };
        files.size -= kept.size();
        self.size -= kept.size();
        let place = self.retention.directory.join(node);
        if let Err(error) = forget(&place.join(kept.file_name())) {
            tracing::warn!(node_id = node, %error, "evidence that is too much cannot be removed");
        }
        if files.kept.is_empty() {
            // Unless somebody has put something else there.
            let _ = fs::remove_dir(place);
        }
    }
}

/// A directory for its owner alone, if it is not there.
fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A file for its owner alone, with all of `bytes`.
fn write_whole(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_data()?;
    }
    Ok(())
}

/// Removes a file that may be gone already.
fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn retention(root: &Path) -> Retention {
        Retention {
            directory: root.join("evidence"),
            count: 3,
            age: None,
            size: 1 << 20,
        }
    }

    fn node(id: &str) -> AgentId {
        AgentId::new(id).unwrap()
    }

    /// Sequence numbers of a node's bundles.
    fn kept(root: &Path, id: &str) -> Vec<u64> {
        let kept = list(&root.join("evidence"), &node(id)).unwrap();
        kept.iter().map(|kept| kept.sequence).collect()
    }

    fn put(directory: &mut Directory, id: &str, time_ms: u64, verdict: Word, bytes: usize) {
        let content = |_| Ok(vec![b'x'; bytes]);
        directory.put(&node(id), time_ms, verdict, content).unwrap();
    }

    #[test]
    fn each_node_keeps_its_newest_and_why_it_failed() {
        let root = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(retention(root.path())).unwrap();
        put(&mut directory, "a", 1, Word::Failed, 10);
        for time in 2..9 {
            put(&mut directory, "a", time, Word::Trusted, 10);
        }
        put(&mut directory, "b", 9, Word::Rebooted, 10);
        assert_eq!(kept(root.path(), "a"), [1, 6, 7, 8]);
        assert_eq!(kept(root.path(), "b"), [1]);
    }

    #[test]
    fn nobody_else_can_read_them() {
        let root = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(retention(root.path())).unwrap();
        put(&mut directory, "a", 1, Word::Failed, 10);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let place = root.path().join("evidence");
        assert_eq!((mode(&place), mode(&place.join("a"))), (0o700, 0o700));
        assert_eq!(
            mode(&place.join("a/0000000001-1-failed.evidence.gz")),
            0o600
        );
    }

    #[test]
    fn what_was_there_is_found_again_and_what_was_cut_off_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(retention(root.path())).unwrap();
        put(&mut directory, "a", 1, Word::Trusted, 10);
        put(&mut directory, "a", 2, Word::Failed, 5000);
        let size = directory.size;
        drop(directory);
        let place = root.path().join("evidence");
        fs::write(place.join(WRITING), "half").unwrap();
        fs::write(place.join("a/notes.txt"), "an operator's").unwrap();
        fs::write(place.join("stray"), "").unwrap();
        let mut directory = Directory::open(retention(root.path())).unwrap();
        assert!(!place.join(WRITING).exists());
        assert_eq!((directory.size, size), (3 * BLOCK, 3 * BLOCK));
        put(&mut directory, "a", 3, Word::Trusted, 10);
        assert_eq!(kept(root.path(), "a"), [1, 2, 3]);
        assert!(place.join("a/notes.txt").exists() && place.join("stray").exists());
    }

    #[test]
    fn a_node_with_much_evidence_pushes_out_its_own() {
        let root = tempfile::tempdir().unwrap();
        let mut limits = retention(root.path());
        limits.count = 1000;
        limits.size = 40 * BLOCK;
        let mut directory = Directory::open(limits).unwrap();
        put(&mut directory, "quiet", 1, Word::Failed, 10);
        for time in 2..100 {
            put(&mut directory, "loud", time, Word::Trusted, 5 * 4000);
        }
        assert!(directory.size <= 40 * BLOCK, "{}", directory.size);
        assert_eq!(kept(root.path(), "quiet"), [1]);
        let loud = kept(root.path(), "loud");
        assert_eq!(loud.last(), Some(&98));
        assert!(loud.len() >= 6, "{loud:?}");
        // One that would push out everything is not taken.
        let content = |_| Ok(vec![b'x'; 41 * 4096]);
        let too_large = directory.put(&node("loud"), 100, Word::Trusted, content);
        assert!(
            too_large
                .unwrap_err()
                .to_string()
                .contains("evidence_max_size")
        );
        assert_eq!(kept(root.path(), "loud"), loud);
    }

    #[test]
    fn what_is_too_old_goes_with_its_directory() {
        let root = tempfile::tempdir().unwrap();
        let mut limits = retention(root.path());
        limits.age = Some(Duration::from_millis(100));
        let mut directory = Directory::open(limits).unwrap();
        for (id, time) in [("a", 1000), ("a", 1050), ("b", 1000)] {
            put(&mut directory, id, time, Word::Trusted, 10);
        }
        directory.expire(1120);
        assert_eq!(kept(root.path(), "a"), [2]);
        assert!(!root.path().join("evidence/b").exists());
        // Numbers go on.
        put(&mut directory, "b", 1130, Word::Trusted, 10);
        assert_eq!(kept(root.path(), "b"), [2]);
    }

    #[test]
    fn a_directory_that_somebody_removed_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(retention(root.path())).unwrap();
        put(&mut directory, "a", 1, Word::Trusted, 10);
        fs::remove_dir_all(root.path().join("evidence")).unwrap();
        for time in 2..7 {
            put(&mut directory, "a", time, Word::Trusted, 10);
        }
        assert_eq!(kept(root.path(), "a"), [4, 5, 6]);
    }

    #[test]
    fn names_of_files_are_read_strictly() {
        let name = "0000000012-1764266173123-failed.evidence.gz";
        let kept = Kept::parse(name, 7).unwrap();
        assert_eq!((kept.sequence, kept.verdict), (12, Word::Failed));
        for bad in [
            "12-1764266173123-failed.evidence.gz",
            "0000000012-1764266173123-perfect.evidence.gz",
            "0000000012-+1764266173123-failed.evidence.gz",
            "0000000012-1764266173123-failed.evidence.gz.tmp",
            "-1-failed.evidence.gz",
            ".writing",
        ] {
            assert_eq!(Kept::parse(bad, 7), None, "{bad}");
        }
    }
}
