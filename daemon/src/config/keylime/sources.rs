use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Spanned, Value};
use zeroize::Zeroizing;

use super::{GENERAL, Keylime, KeylimeOption, ini, value};
use crate::config::{
    ConfigError, Environment,
    files::{self, below, entries},
    line_at,
};

/// The grammar of a component's files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// One table, named like the component: the agent.
    Toml,
    /// As Python's configparser reads it: all others.
    Ini,
}

/// Everything that was set, weakest first.
pub(super) struct Sources {
    settings: Vec<Setting>,
    pub(super) files: Vec<PathBuf>,
    /// The settings are those of `/etc/keylime.conf`.
    single_file: bool,
}

/// One option as somebody set it.
pub(super) struct Setting {
    section: String,
    pub(super) name: String,
    pub(super) value: Zeroizing<String>,
    pub(super) origin: Place,
}

/// Where somebody set it.
pub(super) enum Place {
    Line(PathBuf, usize),
    Variable(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(path, line) => write!(f, "{}: line {line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// What `keylime`'s files and variables set.
pub(super) fn collect(
    keylime: &Keylime,
    root: Option<&Path>,
    environment: &Environment,
) -> Result<Sources, ConfigError> {
    let variables = format!("KEYLIME_{}_", keylime.component.to_ascii_uppercase());
    let named = format!("{variables}CONFIG");
    let mut single_file = false;
    let mut files = match environment.get(&named) {
        Some(file) => vec![PathBuf::from(file)],
        None => installed(keylime, root)?,
    };
    let old = below(root, "/etc/keylime.conf");
    if files.is_empty() && old.exists() {
        single_file = true;
        files.push(old);
    }
    let mut settings = Vec::new();
    for path in &files {
        let text = files::read(path)?;
        settings.extend(match keylime.format {
            Format::Toml if !single_file => from_toml(keylime, path, &text)?,
            _ => from_ini(path, &text)?,
        });
    }
    for (name, value) in environment.with_prefix(&variables) {
        if name == named {
            continue;
        }
        let Some(value) = value.to_str() else {
            let (name, reason) = (name.to_owned(), "not UTF-8".to_owned());
            return Err(ConfigError::Variable { name, reason });
        };
        settings.push(from_variable(keylime, &variables, name, value));
    }
    Ok(Sources {
        settings,
        files,
        single_file,
    })
}

/// The files of Keylime's packages, weakest first.
fn installed(keylime: &Keylime, root: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
    let component = keylime.component;
    let [vendor, local] = ["/usr/etc/keylime", "/etc/keylime"].map(|directory| {
        let main = below(root, &format!("{directory}/{component}.conf"));
        let drop_ins = below(root, &format!("{directory}/{component}.conf.d"));
        (main.exists().then_some(main), drop_ins)
    });
    let drop_ins = |directory: &Path| -> Result<Vec<PathBuf>, ConfigError> {
        let files = entries(directory)?.into_iter();
        Ok(files.filter(|path| path.is_file()).collect())
    };
    let (below, above) = (drop_ins(&vendor.1)?, drop_ins(&local.1)?);
    Ok(match keylime.format {
        // Each option by itself, over all files.
        Format::Toml => {
            let lower = vendor.0.into_iter().chain(below);
            lower.chain(local.0).chain(above).collect()
        }
        // The local file replaces the vendor's as a whole.
        Format::Ini => {
            let main = local.0.or(vendor.0);
            main.into_iter().chain(below).chain(above).collect()
        }
    })
}

fn from_toml(keylime: &Keylime, path: &Path, text: &str) -> Result<Vec<Setting>, ConfigError> {
    /// Options with their positions, by table.
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Tables(BTreeMap<String, BTreeMap<String, Spanned<Value>>>);

    let mut tables: Tables = toml::from_str(text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        line: line_at(text, error.span()),
        reason: error.message().to_owned(),
    })?;
    let options = tables.0.remove(keylime.component).unwrap_or_default();
    let setting = |(name, value): (String, Spanned<Value>)| Setting {
        section: keylime.component.to_owned(),
        name,
        origin: Place::Line(path.to_owned(), line_at(text, Some(value.span()))),
        value: Zeroizing::new(value::text(value.into_inner())),
    };
    Ok(options.into_iter().map(setting).collect())
}

fn from_ini(path: &Path, text: &str) -> Result<Vec<Setting>, ConfigError> {
    let mut entries = ini::parse(text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        line: error.line,
        reason: error.to_string(),
    })?;
    entries.sort_by_key(|entry| entry.section != ini::DEFAULT);
    let setting = |entry: ini::Entry| Setting {
        section: entry.section,
        name: entry.name,
        // As all of Keylime's Python programs do.
        value: Zeroizing::new(entry.value.trim_matches(['"', ' ']).to_owned()),
        origin: Place::Line(path.to_owned(), entry.line),
    };
    Ok(entries.into_iter().map(setting).collect())
}

/// `KEYLIME_COMPONENT_OPTION`, or `KEYLIME_COMPONENT_SECTION_OPTION`.
fn from_variable(keylime: &Keylime, prefix: &str, variable: &str, value: &str) -> Setting {
    let name = variable[prefix.len()..].to_ascii_lowercase();
    let mut sections = keylime.options.iter().filter_map(|option| option.section);
    let sectioned = sections.find_map(|section| {
        let option = name.strip_prefix(section)?.strip_prefix('_')?;
        Some((section.to_owned(), option.to_owned()))
    });
    let (section, name) = sectioned.unwrap_or_else(|| (keylime.component.to_owned(), name));
    let value = match keylime.format {
        Format::Toml => value,
        Format::Ini => value.trim_matches(['"', ' ']),
    };
    Setting {
        section,
        name,
        value: Zeroizing::new(value.to_owned()),
        origin: Place::Variable(variable.to_owned()),
    }
}

impl Sources {
    /// Is there neither file nor variable?
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.settings.is_empty()
    }

    /// What was set for `option` by the strongest source.
    pub(super) fn last(&self, keylime: &Keylime, option: &KeylimeOption) -> Option<&Setting> {
        let mut settings = self.settings.iter().rev();
        settings.find(|setting| self.means(keylime, setting, option))
    }

    /// The value of an option of the component's own section.
    pub(super) fn value(&self, keylime: &Keylime, name: &str) -> Option<&str> {
        let option = keylime.options.iter().find(|option| option.name == name)?;
        self.last(keylime, option).map(|setting| &**setting.value)
    }

    fn means(&self, keylime: &Keylime, setting: &Setting, option: &KeylimeOption) -> bool {
        if self.single_file && matches!(setting.origin, Place::Line(..)) {
            let known = &keylime.single_file;
            if self.why_gone(keylime, setting).is_some() {
                return false;
            }
            if setting.section == "general" {
                return GENERAL_RENAMED.contains(&(&setting.name, option.name));
            }
            let mut renamed = known.renamed.iter();
            let today = renamed.find(|(old, _)| *old == setting.name);
            let today = today.map_or(&*setting.name, |(_, today)| today);
            return setting.section == known.section && today == option.name;
        }
        let section = option.section.unwrap_or(keylime.component);
        [section, ini::DEFAULT].contains(&&*setting.section) && setting.name == option.name
    }

    /// What was set and is no option.
    pub(super) fn unknown(&self, keylime: &Keylime) -> impl Iterator<Item = &Setting> {
        self.settings.iter().filter(move |setting| {
            let foreign = self.single_file
                && matches!(setting.origin, Place::Line(..))
                && ![keylime.single_file.section, "general"].contains(&&*setting.section);
            let known = |option| self.means(keylime, setting, option);
            !foreign
                && !keylime.options.iter().any(known)
                && self.why_gone(keylime, setting).is_none()
        })
    }

    /// What was set and existed once, and why it has no meaning here.
    pub(super) fn gone(&self, keylime: &Keylime) -> impl Iterator<Item = (&Setting, &'static str)> {
        let settings = self.settings.iter();
        settings.filter_map(|setting| Some((setting, self.why_gone(keylime, setting)?)))
    }

    fn why_gone(&self, keylime: &Keylime, setting: &Setting) -> Option<&'static str> {
        let gone: &[_] = match &*setting.section {
            _ if !self.single_file => return None,
            "general" => {
                let has = |today| keylime.options.iter().any(|option| option.name == today);
                let mut renamed = GENERAL_RENAMED.iter();
                if renamed.any(|(old, today)| *old == setting.name && !has(*today)) {
                    return Some("where revocation notices are heard is an agent's option");
                }
                &GENERAL
            }
            section if section == keylime.single_file.section => keylime.single_file.gone,
            _ => return None,
        };
        let found = gone.iter().find(|(name, _)| *name == setting.name);
        found.map(|(_, why)| *why)
    }
}

/// Options of the old `[general]` that a component has today.
const GENERAL_RENAMED: [(&str, &str); 2] = [
    ("receive_revocation_ip", "revocation_notification_ip"),
    ("receive_revocation_port", "revocation_notification_port"),
];
