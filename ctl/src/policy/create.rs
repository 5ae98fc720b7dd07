/// Digests that are kept from one run to the next.
mod cache;
/// Keys that files are signed with.
mod keys;
/// IMA lists, allowlists, keys, and the policy to begin with.
mod lists;
/// What is shown while files are read.
mod progress;
/// Digests of open files.
mod read;
/// The files of a system.
mod tree;

use std::path::{Path, PathBuf};

use troth_core::{
    policy::{PolicyDocument, PolicyError, RuntimePolicy, measured_name},
    tpm::HashAlgorithm,
};
use troth_daemon::shutdown::Shutdown;

use self::{
    cache::Cache,
    progress::Bar,
    tree::{Found, Tree},
};
use super::write_file;
use crate::{
    cli::{RuntimeArgs, TreeArgs},
    error::{Error, Exit},
    output::{Output, now_ms},
};

/// Unreadable files that are named; the rest is counted.
const SHOWN: usize = 10;

/// Runs `trothctl policy create runtime`.
pub(super) async fn runtime(args: &RuntimeArgs, out: &Output) -> Result<Exit, Error> {
    let shutdown = Shutdown::from_signals().map_err(|source| Error::Runtime { source })?;
    let maker = Maker {
        args: args.clone(),
        out: *out,
        stop: Box::new(move || shutdown.requested()),
    };
    let made = tokio::task::spawn_blocking(move || maker.make()).await;
    let json = made.map_err(|error| Error::Runtime {
        source: error.into(),
    })??;
    match &args.output {
        None => out.text(&json)?,
        Some(path) => write_file(path, &json)?,
    }
    Ok(Exit::Success)
}

/// Makes one policy.
struct Maker {
    args: RuntimeArgs,
    out: Output,
    /// Was the command told to end?
    stop: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Maker {
    fn make(&self) -> Result<String, Error> {
        let mut document = lists::document(&self.args.lists, timestamp()?)?;
        let algorithm = self.args.algorithm.or_else(|| algorithm_of(&document));
        let algorithm = algorithm.unwrap_or(HashAlgorithm::Sha256);
        if let Some(root) = &self.args.tree.root {
            self.add_tree(&mut document, root, algorithm)?;
        }
        let json = document.to_json();
        // What no verifier could use is an error here.
        RuntimePolicy::compile(json.as_bytes()).map_err(unusable)?;
        Ok(json)
    }

    fn add_tree(
        &self,
        document: &mut PolicyDocument,
        root: &Path,
        algorithm: HashAlgorithm,
    ) -> Result<(), Error> {
        let args = &self.args.tree;
        let mut cache = None;
        if let Some(path) = &args.cache {
            let (opened, remark) = Cache::open(path, algorithm)?;
            if let Some(remark) = remark {
                self.out.note(&remark);
            }
            cache = Some(opened);
        }
        let tree = Tree {
            root: root.to_owned(),
            skip: skipped(args)?,
            all_owners: args.all_owners,
            algorithm,
        };
        let found = tree.read(cache.as_ref(), &Bar::new(!self.out.is_json()), &*self.stop)?;
        self.tell(root, &found);
        if found.stopped {
            let (files, cache) = (found.files.len(), args.cache.clone());
            return Err(Error::Interrupted { files, cache });
        }
        if found.unreadable_count > 0 && !args.ignore_unreadable {
            return Err(Error::Unreadable {
                root: root.to_owned(),
                count: found.unreadable_count,
            });
        }
        for (name, digest) in found.files {
            document.add_digest(&name, digest).map_err(unusable)?;
        }
        Ok(())
    }

    /// What somebody must know who will rely on the policy.
    fn tell(&self, root: &Path, found: &Found) {
        let shown = found.unreadable.iter().take(SHOWN);
        shown.for_each(|file| self.out.note(&format!("cannot read {file}")));
        let more = found.unreadable_count.saturating_sub(SHOWN as u64);
        if more > 0 {
            self.out.note(&format!("and {more} more"));
        }
        if !found.not_entered.is_empty() {
            let places = found.not_entered.join(", ");
            self.out
                .note(&format!("left out, other file systems: {places}"));
        }
        self.out.note(&format!(
            "{}: {} files{}",
            root.display(),
            found.files.len(),
            match found.cached {
                0 => String::new(),
                cached => format!(", {cached} of them unchanged since they were last read"),
            }
        ));
    }
}

/// When the policy is made, in Unix seconds. `SOURCE_DATE_EPOCH`, if set, makes equal input give
/// equal text (reproducible-builds.org).
fn timestamp() -> Result<u64, Error> {
    let variable = "SOURCE_DATE_EPOCH";
    match std::env::var_os(variable) {
        None => Ok(now_ms() / 1000),
        Some(text) => {
            let seconds = text.to_str().and_then(|text| text.parse().ok());
            seconds.ok_or_else(|| Error::Option {
                option: variable,
                reason: "not a number of seconds".to_owned(),
            })
        }
    }
}

/// The algorithm of a policy's digests, told by the size of the first.
fn algorithm_of(document: &PolicyDocument) -> Option<HashAlgorithm> {
    let (_, digests) = document.digests().iter().next()?;
    let size = digests.first()?.as_bytes().len();
    HashAlgorithm::ALL
        .into_iter()
        .find(|algorithm| algorithm.size() == size)
}

/// Paths below the root that are left out.
fn skipped(args: &TreeArgs) -> Result<std::collections::BTreeSet<PathBuf>, Error> {
    let default = tree::SKIPPED.map(PathBuf::from);
    let paths = default.iter().chain(&args.skip).map(|path| {
        let below = path.strip_prefix("/").map_err(|_| Error::Option {
            option: "--skip",
            reason: format!(
                "{} must be a whole path as the policy has it, without the --root",
                path.display()
            ),
        })?;
        Ok(below.components().collect())
    });
    paths.collect()
}

/// The name that the kernel writes into an IMA list for a path. Bytes that are not UTF-8 become
/// U+FFFD, as they do on their way through the JSON of an agent's answer.
fn kernel_name(path: &[u8]) -> String {
    measured_name(&String::from_utf8_lossy(path)).into_owned()
}

fn unusable(source: PolicyError) -> Error {
    Error::Policy {
        what: "the policy that was made".to_owned(),
        source,
    }
}
