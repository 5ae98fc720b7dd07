//! Structured logs. Under systemd every field of an event becomes a journal field of its own
//! (`node_id` is `TROTH_NODE_ID=`, `message_id` is `MESSAGE_ID=`); elsewhere lines go to standard
//! error.

use std::{
    env,
    io::{self, IsTerminal},
    os::linux::fs::MetadataExt,
    sync::OnceLock,
};

use serde::{Deserialize, Deserializer, de::Error as _};
use tracing::Level;
use tracing_subscriber::{
    Layer, Registry,
    filter::{ParseError, Targets},
    layer::SubscriberExt,
    reload::{self, Handle},
};

use crate::journal::Journal;

/// Environment variable that overrides the level: `debug`, or levels by target as in
/// `info,troth_verifier=debug`. Empty, it says nothing.
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

/// The option that says what is logged, as it is written. For `deserialize_with`: what is no list of
/// levels is an error where the option is set, not a log that stays empty.
pub fn option<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    if let Some(text) = &text {
        parse(text).map_err(D::Error::custom)?;
    }
    Ok(text)
}

/// Does the log go to the journal, rather than to standard error?
pub fn is_journal() -> bool {
    stderr_is_journal()
}

/// Where a text is no list of levels: where it comes from, and what is wrong with it.
type Refused = Option<(&'static str, NoLevels)>;

/// A text that is no list of levels.
#[derive(Debug, thiserror::Error)]
enum NoLevels {
    /// This part of it.
    #[error(
        "{0:?} is not a level; the levels are off, error, warn, info, debug and trace, or as syslog \
         names them; or it is a list such as info,troth_verifier=debug"
    )]
    Level(String),
    /// All of it.
    #[error(transparent)]
    List(#[from] ParseError),
}

fn choose(configured: Option<&str>, default: &str) -> (Targets, Refused) {
    let asked = env::var(LEVEL_VARIABLE).ok();
    choose_of(asked.as_deref(), configured, default)
}

fn choose_of(asked: Option<&str>, configured: Option<&str>, default: &str) -> (Targets, Refused) {
    let asked = asked.filter(|text| !text.is_empty());
    let asked = asked.map(|text| (LEVEL_VARIABLE, text));
    let wanted = asked.or_else(|| configured.map(|text| ("option log", text)));
    match wanted.map(|(name, text)| (name, parse(text))) {
        Some((_, Ok(levels))) => (levels, None),
        None => (levels(default), None),
        Some((name, Err(error))) => (levels(default), Some((name, error))),
    }
}

fn tell(refused: Refused) {
    if let Some((name, error)) = refused {
        tracing::warn!("{name} has no effect: {error}");
    }
}

fn levels(default: &str) -> Targets {
    parse(default).unwrap_or_else(|_| Targets::new().with_default(Level::INFO))
}

/// Levels, each by itself or behind `target=`. [`Targets`] alone would take a word that is no level
/// for a target, and leave out all others.
fn parse(text: &str) -> Result<Targets, NoLevels> {
    let mut parts = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (target, name) = match part.rsplit_once('=') {
            Some((target, name)) => (Some(target.trim()), name.trim()),
            None => (None, part),
        };
        let level = level_named(name).ok_or_else(|| NoLevels::Level(name.to_owned()))?;
        parts.push(match target {
            Some(target) => format!("{target}={level}"),
            None => level.to_owned(),
        });
    }
    Ok(parts.join(",").parse()?)
}

/// The level of what is called `name` here or by syslog(3). Numbers are not taken: they mean
/// something else there.
fn level_named(name: &str) -> Option<&'static str> {
    Some(match name.to_ascii_lowercase().as_str() {
        "off" => "off",
        // An error is the most important of what is logged here.
        "error" | "err" | "crit" | "alert" | "emerg" => "error",
        "warn" | "warning" => "warn",
        "info" | "notice" => "info",
        "debug" => "debug",
        "trace" => "trace",
        _ => return None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(levels: &Targets, target: &str) -> Option<Level> {
        let all = [
            Level::ERROR,
            Level::WARN,
            Level::INFO,
            Level::DEBUG,
            Level::TRACE,
        ];
        let logged = all
            .into_iter()
            .take_while(|l| levels.would_enable(target, l));
        logged.last()
    }

    #[test]
    fn levels_have_our_names_and_those_of_syslog() {
        for (name, level) in [
            ("off", None),
            ("emerg", Some(Level::ERROR)),
            ("err", Some(Level::ERROR)),
            ("ERROR", Some(Level::ERROR)),
            ("warn", Some(Level::WARN)),
            ("warning", Some(Level::WARN)),
            ("notice", Some(Level::INFO)),
            ("info", Some(Level::INFO)),
            ("debug", Some(Level::DEBUG)),
            ("trace", Some(Level::TRACE)),
        ] {
            assert_eq!(logs(&parse(name).unwrap(), "troth"), level, "{name}");
        }
        let levels = parse("warning, troth_verifier=debug,sqlx=err").unwrap();
        assert_eq!(logs(&levels, "troth_daemon"), Some(Level::WARN));
        assert_eq!(logs(&levels, "troth_verifier::poll"), Some(Level::DEBUG));
        assert_eq!(logs(&levels, "sqlx"), Some(Level::ERROR));
    }

    #[test]
    fn a_word_that_is_no_level_is_not_taken_for_a_target() {
        for (text, part) in [
            ("debgu", "debgu"),
            ("info,troth_verifier", "troth_verifier"),
            ("troth_verifier=loud", "loud"),
            ("3", "3"),
            ("", ""),
            ("info,", ""),
        ] {
            let error = parse(text).unwrap_err().to_string();
            let told = format!("{part:?} is not a level; the levels are off, error, warn,");
            assert!(error.starts_with(&told), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_variable_that_is_wrong_leaves_the_log_at_its_default() {
        let (levels, refused) = choose_of(Some("debgu"), Some("debug"), "info");
        assert_eq!(logs(&levels, "troth"), Some(Level::INFO));
        assert_eq!(refused.map(|(name, _)| name), Some(LEVEL_VARIABLE));
        let (levels, refused) = choose_of(Some(""), Some("debug"), "info");
        assert_eq!(logs(&levels, "troth"), Some(Level::DEBUG));
        assert!(refused.is_none());
    }
}
