//! Layered configuration.
//!
//! Later layers override earlier ones, key by key:
//!
//! 0. what the unit says: `state_dir` is the first of `$STATE_DIRECTORY`, and `ca_dir` is
//!    `$CREDENTIALS_DIRECTORY` where that has a `cacert.crt` (`FromUnit`);
//! 1. `/usr/lib/troth/NAME.toml`, `/run/troth/NAME.toml`, `/etc/troth/NAME.toml`: the last that
//!    exists replaces the others, as for unit files;
//! 2. `NAME.toml.d/*.toml` of the same directories, sorted by file name over all of them; a file
//!    in `/etc` hides one of the same name in `/run` or `/usr/lib`;
//! 3. environment variables `TROTH_NAME_KEY`, with `__` between the parts of a nested key;
//! 4. credentials `troth.NAME.KEY` of the service manager (systemd.exec(5)).
//!
//! In the names of variables and credentials `trothctl` is `CTL` and `ctl`.
//!
//! Where neither `/etc/troth` nor `/run/troth` has a file for a program, but Keylime's
//! configuration is there, that stands between the files of `/usr/lib/troth` and the environment
//! (`keylime`).

use std::{
    env,
    ffi::OsString,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use keylime::Keylime;
pub use options::Options;
pub use secret::Secret;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
pub use show::{Origin, Shown, ShownOption, print, show};
use toml::{Table, Value};
use zeroize::Zeroizing;

/// Options as files of the service manager.
mod credentials;
/// Which files apply.
mod files;
/// The nearest name that exists.
mod hint;
/// Keylime's configuration, for hosts that come from it.
pub mod keylime;
/// Which options are set, to be compared with those of a later time.
mod options;
/// A text that is never shown.
mod secret;
/// Each option's value, and who set it.
mod show;

/// sysexits(3): the configuration cannot be used.
pub const EX_CONFIG: u8 = 78;

/// A program's configuration: what it is called, and which of its options are secrets.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    /// `agent`, `verifier`, `trothctl`, ...: in the names of files, variables and credentials.
    pub name: &'static str,
    /// The options that are never shown, each a text.
    pub secrets: &'static [&'static str],
    /// What of Keylime's configuration it takes, that of its own counterpart first.
    pub keylime: &'static [&'static Keylime],
    /// Options whose defaults a unit may give.
    pub from_unit: &'static [FromUnit],
}

/// A default that systemd.exec(5) gives to a service. Every file and variable goes before it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FromUnit {
    /// `state_dir` is the first directory of `StateDirectory=`.
    StateDirectory,
    /// `ca_dir` is the directory of credentials, if `cacert.crt` is one of them.
    Certificates,
}

impl Component {
    /// The name behind the `troth` of variables and credentials.
    fn short_name(&self) -> &'static str {
        self.name.strip_prefix("troth").unwrap_or(self.name)
    }
}

/// Where the files are.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// This file instead of all others. Environment and credentials apply all the same.
    pub file: Option<PathBuf>,
    /// The directory that stands for `/`.
    pub root: Option<PathBuf>,
}

/// Loads the configuration of `component` from its files, the environment and the credentials.
///
/// `T` should be `#[serde(default, deny_unknown_fields)]`: an unknown key is then an error that
/// names its file and line, or its variable, and the nearest key that exists.
pub fn load<T: DeserializeOwned>(
    component: &Component,
    place: &Place,
) -> Result<Loaded<T>, ConfigError> {
    load_with(component, place, env::vars_os())
}

/// A configuration, and what the administrator should know about it.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub config: T,
    /// Which options are set, and to what.
    pub options: Options,
    notes: Vec<Note>,
}

impl<T> Loaded<T> {
    /// The configuration, when its notes are in the log: which of Keylime's files were read, and
    /// which of their options mean nothing here.
    pub fn report(self) -> T {
        for Note { warning, text } in self.notes {
            if warning {
                tracing::warn!("configuration: {text}");
            } else {
                tracing::info!("configuration: {text}");
            }
        }
        self.config
    }
}

/// A line for the log, which does not run yet while the configuration is read.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Note {
    /// Is it to be looked at?
    pub warning: bool,
    /// What the administrator should know.
    pub text: String,
}

impl Note {
    fn info(text: String) -> Self {
        let warning = false;
        Self { warning, text }
    }

    fn warning(text: String) -> Self {
        let warning = true;
        Self { warning, text }
    }
}

fn load_with<T: DeserializeOwned>(
    component: &Component,
    place: &Place,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Loaded<T>, ConfigError> {
    let environment = Environment::collect(environment);
    let (layers, notes) = layers::<T>(component, place, &environment)?;
    let merged = merge(layers);
    let options = Options::of(&merged);
    Ok(Loaded {
        config: parse(merged)?,
        options,
        notes,
    })
}

/// What one source sets.
struct Layer {
    table: Table,
    source: Source,
}

/// Where a layer comes from, as precisely as it takes to say who set an option.
enum Source {
    /// This variable that systemd.exec(5) sets.
    Unit(&'static str),
    File(PathBuf, Zeroizing<String>),
    /// Each of the options, by our name, as Keylime's files and variables set it.
    Keylime(Vec<(String, Origin)>),
    Variable(String),
    Credential(PathBuf),
}

/// All sources, weakest first, each checked by itself.
fn layers<T: DeserializeOwned>(
    component: &Component,
    place: &Place,
    environment: &Environment,
) -> Result<(Vec<Layer>, Vec<Note>), ConfigError> {
    let root = place.root.as_deref();
    let (files, ours) = match &place.file {
        Some(file) => (vec![file.clone()], true),
        None => {
            let files = files::layers(component.name, root)?;
            let ours = files.iter().any(|file| !files::is_vendors(file, root));
            (files, ours)
        }
    };
    let mut layers = unit_defaults(component, environment);
    for path in files {
        layers.push(read_toml::<T>(path)?);
    }
    let mut notes = Vec::new();
    if !ours {
        let theirs = keylime::read::<T>(component.keylime, root, environment)?;
        let source = Source::Keylime(theirs.origins);
        let table = theirs.table;
        layers.push(Layer { table, source });
        notes = theirs.notes;
    }
    let prefix = format!("TROTH_{}_", component.short_name().to_ascii_uppercase());
    for (name, value) in environment.with_prefix(&prefix) {
        let key = name[prefix.len()..].to_ascii_lowercase();
        layers.push(variable::<T>(name, &key, value)?);
    }
    if let Some(directory) = environment.get("CREDENTIALS_DIRECTORY") {
        layers.extend(credentials::read::<T>(component, Path::new(directory))?);
    }
    Ok((layers, notes))
}

fn merge(layers: Vec<Layer>) -> Table {
    let mut merged = Table::new();
    for layer in layers {
        overlay(&mut merged, layer.table);
    }
    merged
}

fn parse<T: DeserializeOwned>(merged: Table) -> Result<T, ConfigError> {
    let parsed = merged.try_into::<T>();
    parsed.map_err(|error| ConfigError::Together(hint::explain(error.message())))
}

/// What the unit says of the options that a file may still set.
fn unit_defaults(component: &Component, environment: &Environment) -> Vec<Layer> {
    let directory = |variable| environment.get(variable)?.to_str();
    let mut defaults = Vec::new();
    for option in component.from_unit {
        let (key, variable, value) = match option {
            FromUnit::StateDirectory => {
                let variable = "STATE_DIRECTORY";
                let first = directory(variable).and_then(|all| all.split(':').next());
                ("state_dir", variable, first)
            }
            FromUnit::Certificates => {
                let variable = "CREDENTIALS_DIRECTORY";
                let has_ca = |path: &&str| Path::new(path).join("cacert.crt").exists();
                ("ca_dir", variable, directory(variable).filter(has_ca))
            }
        };
        if let Some(value) = value {
            defaults.push(Layer {
                table: nest(key, Value::String(value.to_owned())),
                source: Source::Unit(variable),
            });
        }
    }
    defaults
}

/// The environment variables whose names are text, sorted.
struct Environment(Vec<(String, OsString)>);

impl Environment {
    fn collect(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut variables: Vec<_> = variables
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect();
        variables.sort();
        Self(variables)
    }

    fn get(&self, wanted: &str) -> Option<&OsString> {
        let found = self.0.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value)
    }

    fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&str, &OsString)> {
        let matching = self.0.iter().filter(move |(name, _)| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| !rest.is_empty())
        });
        matching.map(|(name, value)| (name.as_str(), value))
    }
}

/// One file, checked by itself, so that an error names the file and its line.
fn read_toml<T: DeserializeOwned>(path: PathBuf) -> Result<Layer, ConfigError> {
    let text = files::read(&path)?;
    match toml::from_str::<T>(&text).and_then(|_| toml::from_str(&text)) {
        Ok(table) => Ok(Layer {
            table,
            source: Source::File(path, text),
        }),
        Err(error) => Err(ConfigError::Parse {
            path,
            line: line_at(&text, error.span()),
            // Not the line itself, which toml would show: it may hold a password.
            reason: hint::explain(error.message()),
        }),
    }
}

/// The line, from 1, in which `span` begins.
fn line_at(text: &str, span: Option<Range<usize>>) -> usize {
    let before = span.and_then(|span| text.get(..span.start));
    before.map_or(1, |before| before.matches('\n').count() + 1)
}

/// One variable, checked by itself.
fn variable<T: DeserializeOwned>(
    name: &str,
    key: &str,
    value: &OsString,
) -> Result<Layer, ConfigError> {
    let text = value.to_str().ok_or_else(|| "not UTF-8".to_owned());
    let table = text.and_then(|text| spelt::<T>(key, text));
    let table = table.map_err(|reason| ConfigError::Variable {
        name: name.to_owned(),
        reason,
    })?;
    let source = Source::Variable(name.to_owned());
    Ok(Layer { table, source })
}

/// An option as the TOML value that `text` spells, or else as that text.
fn spelt<T: DeserializeOwned>(key: &str, text: &str) -> Result<Table, String> {
    let spelt = format!("value = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("value"));
    let as_text = Value::String(text.to_owned());
    let mut refused = None;
    for value in spelt.into_iter().chain([as_text]) {
        let table = nest(key, value);
        match table.clone().try_into::<T>() {
            Ok(_) => return Ok(table),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let refused = refused.map(|error| hint::explain(error.message()));
    Err(refused.unwrap_or_default())
}

fn nest(key: &str, value: Value) -> Table {
    let table = |key: &str, value| Table::from_iter([(key.to_owned(), value)]);
    match key.split_once("__") {
        None => table(key, value),
        Some((outer, inner)) => table(outer, Value::Table(nest(inner, value))),
    }
}

fn overlay(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A credential cannot be used.
    #[error("credential {}: {reason}", path.display())]
    Credential {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An option of Keylime's has a value that has no meaning here.
    #[error("{origin}: {option}: {reason}")]
    Keylime {
        /// File and line, or variable.
        origin: String,
        /// Keylime's name of the option.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not TOML (or INI, for Keylime's), has an unknown key, or a value of the wrong type.
    #[error("{}: line {line}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or directory cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The merged configuration is wrong while each part by itself is right.
    #[error("all sources together: {0}")]
    Together(String),
    /// An environment variable has an unknown name, or a value of the wrong type.
    #[error("environment variable {name}: {reason}")]
    Variable {
        /// The variable.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
