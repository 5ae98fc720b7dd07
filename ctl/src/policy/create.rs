/// Digests that are kept from one run to the next.
mod cache;
/// What a source of files holds.
mod found;
/// Initrds and unified kernel images.
mod images;
/// Keys that files are signed with.
mod keys;
/// `security.ima` of files.
mod label;
/// IMA lists, allowlists, keys, and the policy to begin with.
mod lists;
/// RPM packages.
mod packages;
/// What is shown while files are read.
mod progress;
/// Digests of open files.
mod read;
/// The files of a system.
mod tree;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use troth_core::{
    policy::{PolicyDocument, PolicyError, RuntimePolicy, measured_name},
    tpm::HashAlgorithm,
};
use troth_daemon::shutdown::Shutdown;

pub(crate) use self::keys::verification_keys;
use self::{
    cache::Cache, found::Found, label::Label, packages::Packages, progress::Bar, tree::Tree,
};
use super::{is_stdout, write_output};
use crate::{
    cli::{RuntimeArgs, TreeArgs},
    error::{Error, Exit},
    output::{Output, now_ms},
};

/// What a shell says of a program that SIGINT ended.
const ENDED_BY_SIGINT: i32 = 130;
/// Unreadable files that are named; the rest is counted.
const SHOWN: usize = 10;

/// Runs `trothctl policy create runtime`.
pub(super) async fn runtime(args: &RuntimeArgs, out: &Output) -> Result<Exit, Error> {
    let shutdown = stop_of_signals().map_err(|source| Error::Runtime { source })?;
    let maker = Maker {
        args: args.clone(),
        out: *out,
        stop: Box::new(move || shutdown.requested()),
        report: RefCell::default(),
    };
    let made = tokio::task::spawn_blocking(move || maker.make()).await;
    let (json, report) = made.map_err(|error| Error::Runtime {
        source: error.into(),
    })??;
    write_output(args.output.as_deref(), &json, out)?;
    if out.is_json() {
        match is_stdout(args.output.as_deref()) {
            true => out.json_remark(&report),
            false => out.json(&report)?,
        }
    }
    Ok(Exit::Success)
}

/// What a policy was made of: `--json` with --output, else on standard error, as the policy is on
/// standard output.
#[derive(Default, Serialize)]
struct Report {
    sources: Vec<Source>,
    /// What was told, for people.
    notes: Vec<String>,
}

/// One source of files.
#[derive(Serialize)]
struct Source {
    place: String,
    files: usize,
    /// Files that were not read again.
    cached: u64,
    /// Files and directories that could not be read, and why; the first thousand.
    unreadable: Vec<String>,
    unreadable_total: u64,
}

/// Stops on the first SIGINT or SIGTERM. The second ends the program at once: what is being read
/// may be a pipe or a network file system that does not answer.
fn stop_of_signals() -> std::io::Result<Shutdown> {
    let shutdown = Shutdown::from_signals()?;
    let first = shutdown.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        first.wait().await;
        // The first of them is the one that has just fired.
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        std::process::exit(ENDED_BY_SIGINT);
    });
    Ok(shutdown)
}

/// Makes one policy.
struct Maker {
    args: RuntimeArgs,
    out: Output,
    /// Was the command told to end?
    stop: Box<dyn Fn() -> bool + Send + Sync>,
    report: RefCell<Report>,
}

impl Maker {
    fn make(self) -> Result<(String, Report), Error> {
        let mut document = lists::document(&self.args.lists, timestamp()?)?;
        let algorithm = self.args.algorithm.or_else(|| algorithm_of(&document));
        let algorithm = algorithm.unwrap_or(HashAlgorithm::Sha256);
        if let Some(root) = &self.args.tree.root {
            let label = self.label(algorithm)?;
            if let Some(key) = label.as_ref().and_then(Label::key) {
                let added = document.add_verification_key(key.id, &key.spki);
                added.map_err(unusable)?;
            }
            let found = self.tree(root, algorithm, label)?;
            let kept = self.args.tree.cache.as_deref();
            self.take(&mut document, &root.display().to_string(), found, kept)?;
        }
        let places = &self.args.packages.rpm;
        if !places.is_empty() {
            let packages = packages::read(places, algorithm, &*self.stop)?;
            let count = packages.count;
            self.tell_signatures(&document, &packages);
            let place = format!("{count} packages");
            self.take(&mut document, &place, packages.found, None)?;
        }
        let images = images::read(&self.args.images, algorithm, &*self.stop)?;
        if !self.args.images.is_empty() {
            self.take(&mut document, "images", images, None)?;
        }
        let json = document.to_json();
        // What no verifier could use is an error here.
        RuntimePolicy::compile(json.as_bytes()).map_err(unusable)?;
        Ok((json, self.report.into_inner()))
    }

    fn note(&self, text: &str) {
        self.out.note(text);
        self.report.borrow_mut().notes.push(text.to_owned());
    }

    fn label(&self, algorithm: HashAlgorithm) -> Result<Option<Label>, Error> {
        let args = &self.args.label;
        let label = || Label::new(algorithm, args.sign_key.as_deref(), args.dry_run);
        args.write_xattr.then(label).transpose()
    }

    fn tree(
        &self,
        root: &Path,
        algorithm: HashAlgorithm,
        label: Option<Label>,
    ) -> Result<Found, Error> {
        let args = &self.args.tree;
        let mut cache = None;
        if let Some(path) = &args.cache {
            let (opened, remark) = Cache::open(path, algorithm)?;
            if let Some(remark) = remark {
                self.note(&remark);
            }
            cache = Some(opened);
        }
        let named = named_skips(args)?;
        let tree = Tree {
            root: root.to_owned(),
            skip: skipped(&named),
            all_owners: args.all_owners,
            algorithm,
            label,
        };
        let bar = Bar::new(!self.out.is_json());
        let found = tree.read(cache.as_ref(), &bar, &*self.stop)?;
        let place = root.display();
        for path in named.iter().filter(|_| !found.stopped) {
            let was_there = tree.skip.get(path);
            if !was_there.is_some_and(|was_there| was_there.load(Ordering::Relaxed)) {
                let path = Path::new("/").join(path);
                self.note(&format!(
                    "--skip {}: nothing was left out by it: {place} has nothing there, or it is in \
                     what is left out anyway",
                    path.display()
                ));
            }
        }
        if found.files.is_empty() && found.unreadable_count == 0 && !found.stopped {
            return Err(Error::NothingFound {
                place: root.to_owned(),
                what: match args.all_owners {
                    true => "regular files",
                    false => "regular files that belong to root",
                },
                advice: "name the directory that stands for /; --all-owners takes files that do not \
                         belong to root, too",
            });
        }
        Ok(found)
    }

    /// Puts into the policy what was found at a place, if all of it was.
    fn take(
        &self,
        document: &mut PolicyDocument,
        place: &str,
        found: Found,
        cache: Option<&Path>,
    ) -> Result<(), Error> {
        self.tell(place, &found);
        self.report.borrow_mut().sources.push(Source {
            place: place.to_owned(),
            files: found.files.len(),
            cached: found.cached,
            unreadable: found.unreadable.clone(),
            unreadable_total: found.unreadable_count,
        });
        if found.stopped {
            return Err(Error::Interrupted {
                files: found.files.len(),
                cache: cache.map(Path::to_owned),
            });
        }
        if found.unreadable_count > 0 && !self.args.ignore_unreadable {
            return Err(Error::Unreadable {
                place: place.to_owned(),
                count: found.unreadable_count,
                malformed: found.malformed_count,
                files: found.unreadable,
            });
        }
        if found.unlabelled_count > 0 {
            return Err(Error::Unlabelled {
                place: place.to_owned(),
                count: found.unlabelled_count,
                files: found.unlabelled,
            });
        }
        for (name, digest) in found.files {
            document.add_digest(&name, digest).map_err(unusable)?;
        }
        Ok(())
    }

    /// Who signed the packages' files, and whether the policy believes them.
    fn tell_signatures(&self, document: &PolicyDocument, packages: &Packages) {
        if packages.signed == 0 {
            return;
        }
        let known: BTreeSet<_> = document
            .verification_keys()
            .iter()
            .map(|(id, _)| id)
            .collect();
        let id = |id: &u32| format!("{id:08x}");
        let ids: Vec<_> = packages.key_ids.iter().map(id).collect();
        let unknown: Vec<_> = packages.key_ids.difference(&known).map(id).collect();
        let (signed, ids) = (packages.signed, ids.join(", "));
        let mut text = format!("{signed} files of packages are signed for IMA, by key {ids}");
        if !unknown.is_empty() {
            text.push_str("; --verification-key makes the policy believe ");
            text.push_str(&unknown.join(", "));
        }
        self.note(&text);
    }

    /// What somebody must know who will rely on the policy.
    fn tell(&self, place: &str, found: &Found) {
        for (told, count) in [
            (&found.unreadable, found.unreadable_count),
            (&found.unlabelled, found.unlabelled_count),
        ] {
            // `--json` has them apart.
            told.iter().take(SHOWN).for_each(|file| self.out.note(file));
            let more = count.saturating_sub(SHOWN as u64);
            if more > 0 {
                self.out.note(&format!("and {more} more"));
            }
        }
        found.left_out.iter().for_each(|text| self.note(text));
        if self.args.label.write_xattr && found.labels != [0; 3] {
            let [written, right, foreign] = found.labels;
            let verb = if self.args.label.dry_run {
                "would be written"
            } else {
                "written"
            };
            let mut text = format!("security.ima: {written} {verb}, {right} were right");
            if foreign > 0 {
                let _ = write!(
                    text,
                    ", {foreign} are signatures by other keys and are kept"
                );
            }
            self.note(&text);
        }
        if !found.not_entered.is_empty() {
            let places = found.not_entered.join(", ");
            self.note(&format!("left out, other file systems: {places}"));
        }
        self.note(&format!(
            "{place}: {} files{}",
            found.files.len(),
            match found.cached {
                0 => String::new(),
                cached => format!(", {cached} of them unchanged since they were last read"),
            }
        ));
    }
}

/// What `work` makes of each item, in their order, on all cores; `None` from when `stop` says so.
fn parallel<T: Sync, R: Send>(
    items: &[T],
    stop: &(dyn Fn() -> bool + Sync),
    work: impl Fn(&T) -> R + Sync,
) -> Vec<Option<R>> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut made = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            match items.get(index) {
                Some(item) if !stop() => made.push((index, work(item))),
                _ => return made,
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<Option<R>> = items.iter().map(|_| None).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        for thread in threads {
            let made = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            for (index, result) in made {
                if let Some(slot) = all.get_mut(index) {
                    *slot = Some(result);
                }
            }
        }
    });
    all
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

/// Paths below the root that the command line leaves out.
fn named_skips(args: &TreeArgs) -> Result<Vec<PathBuf>, Error> {
    let paths = args.skip.iter().map(|path| {
        let below = path.strip_prefix("/").map_err(|_| Error::Usage {
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

/// Those, and what is always left out; none was seen yet.
fn skipped(named: &[PathBuf]) -> BTreeMap<PathBuf, AtomicBool> {
    let always = tree::SKIPPED
        .iter()
        .filter_map(|path| path.strip_prefix('/'));
    let always = always.map(PathBuf::from);
    let all = always.chain(named.iter().cloned());
    all.map(|path| (path, AtomicBool::new(false))).collect()
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
