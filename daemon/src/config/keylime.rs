//! Keylime's configuration, for hosts that come from it.
//!
//! Read when a component has no file of its own in `/etc/troth` or `/run/troth`: then Keylime's
//! files and `KEYLIME_...` variables apply, with Keylime's defaults for what they do not set.
//! Formats and search order: Keylime's documentation of `keylime.config` and of `agent.conf`.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
pub use sources::Format;
use sources::{Place, Setting, Sources};
use toml::Table;
pub use toml::Value;
pub use value::Kind;

use super::{ConfigError, Environment, Note, Origin, files::below, nest, overlay};

/// INI files as Python's configparser reads them.
pub(crate) mod ini;
/// Which of Keylime's files and variables apply, and what they set.
mod sources;
/// Keylime's spellings of values.
pub(crate) mod value;

/// One component of Keylime, and what its options are here.
#[derive(Debug)]
pub struct Keylime {
    /// `agent`, `verifier`, ...: in the names of files, sections and variables.
    pub component: &'static str,
    /// The grammar of its files.
    pub format: Format,
    /// Its options, all of them.
    pub options: &'static [KeylimeOption],
    /// Its section of the single file `/etc/keylime.conf` of Keylime before 6.5, and what options
    /// that had another name there are called now.
    pub single_file: SingleFile,
}

impl Keylime {
    /// A user who may not read the files of a program that users run goes without them. A daemon
    /// that may not does not start: it would be less strict than its administrator wants.
    fn is_for_people(&self) -> bool {
        self.component == "tenant"
    }
}

/// Where a component is in `/etc/keylime.conf`.
#[derive(Debug)]
pub struct SingleFile {
    /// The section; `[general]` belongs to all.
    pub section: &'static str,
    /// Old name and today's name.
    pub renamed: &'static [(&'static str, &'static str)],
    /// Options that no later release has, and what about them.
    pub gone: &'static [(&'static str, &'static str)],
}

/// One option of Keylime.
#[derive(Debug)]
pub struct KeylimeOption {
    /// Its section where that is not the component's own.
    pub section: Option<&'static str>,
    /// Its name.
    pub name: &'static str,
    /// Keylime's default, as its files spell it.
    pub default: &'static str,
    /// What it is here.
    pub meaning: Meaning,
}

/// What an option of Keylime is here.
#[derive(Debug)]
pub enum Meaning {
    /// An option of ours (`section.name` for one in a section), by this conversion.
    Option(&'static str, Kind),
    /// Read here already: what the paths of other options are relative to.
    Directory,
    /// Nothing. The text says why, and what to do instead if anything.
    Dropped(&'static str),
}

impl KeylimeOption {
    /// An option of the component's own section that is one of ours.
    pub const fn option(
        name: &'static str,
        default: &'static str,
        ours: &'static str,
        kind: Kind,
    ) -> Self {
        Self {
            section: None,
            name,
            default,
            meaning: Meaning::Option(ours, kind),
        }
    }

    /// An option of the component's own section that has no meaning here.
    pub const fn dropped(name: &'static str, default: &'static str, why: &'static str) -> Self {
        Self {
            section: None,
            name,
            default,
            meaning: Meaning::Dropped(why),
        }
    }

    /// `keylime_dir`.
    pub const fn directory(name: &'static str, default: &'static str) -> Self {
        Self {
            section: None,
            name,
            default,
            meaning: Meaning::Directory,
        }
    }

    /// The same in another section.
    pub const fn in_section(self, section: &'static str) -> Self {
        Self {
            section: Some(section),
            ..self
        }
    }
}

/// What the old `[general]` said.
const GENERAL: [(&str, &str); 3] = [
    (
        "enable_tls",
        "TLS is always on where it is not named otherwise",
    ),
    (
        "tls_check_hostnames",
        "peers are known by their CA or their registered certificate, not by host names",
    ),
    (
        "ca_implementation",
        "there is one implementation of the CA, and it is built in",
    ),
];

/// What paths in Keylime's files are relative to.
#[derive(Debug)]
pub struct Base {
    /// `keylime_dir`.
    pub keylime_dir: PathBuf,
    /// The directory of TLS files.
    pub tls_dir: PathBuf,
    /// `keylime_dir` is only another name of our state directory: what is in it, is there for us by
    /// default.
    pub is_ours: bool,
}

/// What was read.
pub(super) struct Read {
    /// As options of ours.
    pub(super) table: Table,
    /// Who set each of them; of one that is named twice, the last.
    pub(super) origins: Vec<(String, Origin)>,
    pub(super) notes: Vec<Note>,
}

/// Keylime's configuration of `components`, as options of ours. Empty when the first of them, which
/// is the program itself, has neither file nor variable.
pub(super) fn read<T: DeserializeOwned>(
    components: &[&Keylime],
    root: Option<&Path>,
    environment: &Environment,
) -> Result<Read, ConfigError> {
    let mut merged = Table::new();
    let mut origins = Vec::new();
    let mut notes = Vec::new();
    for (index, keylime) in components.iter().enumerate() {
        let sources = match sources::collect(keylime, root, environment) {
            Err(ConfigError::Read { path, source })
                if keylime.is_for_people() && source.kind() == ErrorKind::PermissionDenied =>
            {
                notes.push(Note::warning(format!(
                    "Keylime's configuration is not read: {}: {source}",
                    path.display()
                )));
                break;
            }
            sources => sources?,
        };
        if index == 0 && sources.is_empty() {
            break;
        }
        if !sources.files.is_empty() {
            let files: Vec<_> = sources
                .files
                .iter()
                .map(|f| f.display().to_string())
                .collect();
            notes.push(Note::info(format!(
                "Keylime's configuration of its {} is read from {}",
                keylime.component,
                files.join(", ")
            )));
        }
        let base = base(keylime, &sources, root, environment);
        for option in keylime.options {
            let set = sources.last(keylime, option);
            match &option.meaning {
                Meaning::Option(ours, kind) => {
                    if let Some(table) = convert::<T>(option, set, ours, kind, &base)? {
                        overlay(&mut merged, table);
                        origins.push(((*ours).to_owned(), origin(option, set)));
                    }
                }
                Meaning::Directory => {}
                Meaning::Dropped(why) => notes.extend(set.map(|set| dropped(option, set, why))),
            }
        }
        notes.extend(sources.unknown(keylime).map(|set| {
            let (name, origin) = (&set.name, &set.origin);
            Note::warning(format!(
                "{origin}: {name} is no option of Keylime's; ignored"
            ))
        }));
        notes.extend(sources.gone(keylime).map(|(set, why)| {
            let (name, origin) = (&set.name, &set.origin);
            Note::info(format!("{origin}: {name} is ignored: {why}"))
        }));
    }
    // Several components read one line of the single file.
    let mut told = Vec::new();
    for note in notes {
        if !told.contains(&note) {
            told.push(note);
        }
    }
    Ok(Read {
        table: merged,
        origins,
        notes: told,
    })
}

/// Who set an option of ours.
fn origin(option: &KeylimeOption, set: Option<&Setting>) -> Origin {
    let (file, line, variable) = match set.map(|set| &set.origin) {
        None => (None, None, None),
        Some(Place::Line(path, line)) => (Some(path.display().to_string()), Some(*line), None),
        Some(Place::Variable(name)) => (None, None, Some(name.clone())),
    };
    Origin::Keylime {
        option: option.name.to_owned(),
        file,
        line,
        variable,
    }
}

/// An option of ours with the value that is set, or with Keylime's default.
fn convert<T: DeserializeOwned>(
    option: &KeylimeOption,
    set: Option<&Setting>,
    ours: &str,
    kind: &Kind,
    base: &Base,
) -> Result<Option<Table>, ConfigError> {
    let text = set.map_or(option.default, |set| &set.value);
    let invalid = |reason: String| ConfigError::Keylime {
        origin: set.map_or_else(|| "Keylime's defaults".to_owned(), |s| s.origin.to_string()),
        option: option.name,
        reason,
    };
    let Some(value) = kind.convert(text, base).map_err(invalid)? else {
        return Ok(None);
    };
    let table = nest(&ours.replace('.', "__"), value);
    match table.clone().try_into::<T>() {
        Ok(_) => Ok(Some(table)),
        Err(error) => Err(invalid(error.message().to_owned())),
    }
}

/// A default that the administrator never touched is worth less noise.
fn dropped(option: &KeylimeOption, set: &Setting, why: &str) -> Note {
    let (name, origin) = (option.name, &set.origin);
    let untouched = value::same(&set.value, option.default);
    if untouched {
        Note::info(format!("{origin}: {name} is ignored: {why}"))
    } else {
        Note::warning(format!("{origin}: {name} has no effect: {why}"))
    }
}

/// The directories that apply.
fn base(
    keylime: &Keylime,
    sources: &Sources,
    root: Option<&Path>,
    environment: &Environment,
) -> Base {
    let configured = sources.value(keylime, "keylime_dir").map(PathBuf::from);
    let keylime_dir = environment
        .get("KEYLIME_DIR")
        .map(PathBuf::from)
        .or(configured)
        .unwrap_or_else(|| below(root, "/var/lib/keylime"));
    let default = keylime.options.iter().find(|o| o.name == "tls_dir");
    let default = default.map_or("default", |option| option.default);
    let tls_dir = match sources.value(keylime, "tls_dir").unwrap_or(default) {
        "generate" if keylime.component == "registrar" => "reg_ca",
        "generate" | "default" | "CV" | "" => "cv_ca",
        path => path,
    };
    let state_dir = environment
        .get("STATE_DIRECTORY")
        .and_then(|all| all.to_str()?.split(':').next())
        .map_or_else(|| below(root, "/var/lib/troth"), PathBuf::from);
    let is_ours = matches!(
        (fs::canonicalize(&keylime_dir), fs::canonicalize(state_dir)),
        (Ok(theirs), Ok(ours)) if theirs == ours
    );
    Base {
        is_ours,
        tls_dir: keylime_dir.join(tls_dir),
        keylime_dir,
    }
}
