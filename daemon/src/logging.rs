//! Structured logs. Under systemd every field of an event becomes a journal field of its own
//! (`node_id` is `TROTH_NODE_ID=`, `message_id` is `MESSAGE_ID=`); elsewhere lines go to standard
//! error.

use std::{
    env,
    io::{self, IsTerminal},
    os::linux::fs::MetadataExt,
    sync::OnceLock,
};

use tracing::Level;
use tracing_subscriber::{
    Layer, Registry,
    filter::{ParseError, Targets},
    layer::SubscriberExt,
    reload::{self, Handle},
};

use crate::journal::Journal;

/// Environment variable that overrides the level: `debug`, or levels by target as in
/// `info,troth_verifier=debug`.
const LEVEL_VARIABLE: &str = "TROTH_LOG";

/// The levels of the log that runs.
static LEVELS: OnceLock<Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging at the levels that the environment asks for, else those that are `configured`,
/// else `default`. Later calls change nothing, so that tests may call it too.
pub fn init(configured: Option<&str>, default: &str) {
    let (levels, refused) = choose(configured, default);
    let (filter, handle) = reload::Layer::new(levels);
    let journal = stderr_is_journal().then(|| Journal::open().ok()).flatten();
    let sink: Box<dyn Layer<Registry> + Send + Sync> = match journal {
        Some(layer) => layer.with_filter(filter).boxed(),
        None => tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none())
            .with_target(false)
            .with_filter(filter)
            .boxed(),
    };
    let log = tracing_subscriber::registry().with(sink);
    if tracing::subscriber::set_global_default(log).is_ok() {
        // Empty until now, as only one log can be the first.
        let _ = LEVELS.set(handle);
    }
    tell(refused);
}

/// Changes the levels of the log that runs, with the precedence of [`init`].
pub fn set_levels(configured: Option<&str>, default: &str) {
    let (levels, refused) = choose(configured, default);
    if let Some(Err(error)) = LEVELS.get().map(|handle| handle.reload(levels)) {
        tracing::warn!(%error, "the log goes on at its levels");
    }
    tell(refused);
}

/// Changes the level of all that is logged, until the configuration is read again.
pub fn set_level(level: Level) {
    let levels = Targets::new().with_default(level);
    if let Some(Err(error)) = LEVELS.get().map(|handle| handle.reload(levels)) {
        tracing::warn!(%error, "the log goes on at its levels");
    }
}

/// The level of what no list of levels names. `None`: nothing of it is logged.
pub fn level() -> Option<Level> {
    let level = |levels: &Targets| levels.default_level().and_then(|level| level.into_level());
    LEVELS.get()?.with_current(level).ok()?
}

/// Does the log go to the journal, rather than to standard error?
pub fn is_journal() -> bool {
    stderr_is_journal()
}

/// Where a text is no list of levels: where it comes from, and what is wrong with it.
type Refused = Option<(&'static str, ParseError)>;

fn choose(configured: Option<&str>, default: &str) -> (Targets, Refused) {
    let asked = env::var(LEVEL_VARIABLE).ok();
    let asked = asked.as_deref().map(|text| (LEVEL_VARIABLE, text));
    let wanted = asked.or_else(|| configured.map(|text| ("option log", text)));
    match wanted.map(|(name, text)| (name, text.parse::<Targets>())) {
        Some((_, Ok(levels))) => (levels, None),
        None => (levels(default), None),
        Some((name, Err(error))) => (levels(default), Some((name, error))),
    }
}

fn tell(refused: Refused) {
    if let Some((name, error)) = refused {
        tracing::warn!(%error, "{name} is not a level or a list of target=level");
    }
}

fn levels(default: &str) -> Targets {
    default
        .parse()
        .unwrap_or_else(|_| Targets::new().with_default(Level::INFO))
}

/// systemd.exec(5): $JOURNAL_STREAM is `device:inode` of the journal's stream, which must be
/// what standard error really is (a wrapper may have redirected it).
fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| {
        device.parse() == Ok(stderr.st_dev()) && inode.parse() == Ok(stderr.st_ino())
    })
}
