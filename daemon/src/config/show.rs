use std::{
    collections::BTreeMap,
    convert::Infallible,
    env,
    ffi::OsString,
    fmt,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use toml::{
    Table,
    de::{DeTable, DeValue},
};

use super::{
    Component, ConfigError, EX_CONFIG, Environment, Layer, Note, Place, Source, layers, line_at,
    merge, parse,
};

/// A program's configuration for people.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Shown {
    /// All options, sorted by name.
    pub options: Vec<ShownOption>,
    /// What the program would say of it in its log.
    pub notes: Vec<Note>,
}

/// One option.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ShownOption {
    /// As in `ca.cert_organization`.
    pub name: String,
    /// Its value; null when it is not set, and when it is a secret.
    pub value: Value,
    /// Is its value never shown?
    pub secret: bool,
    /// Who set it.
    pub origin: Origin,
}

/// Who set an option.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// Nobody.
    Default,
    /// The unit, by a variable of systemd.exec(5).
    Unit {
        /// `STATE_DIRECTORY` or `CREDENTIALS_DIRECTORY`.
        variable: String,
    },
    /// A file of ours, or a drop-in.
    File {
        /// Its path.
        file: String,
        /// The line, from 1.
        line: usize,
    },
    /// Keylime's configuration; its default where neither file nor variable is named.
    Keylime {
        /// Keylime's name of the option.
        option: String,
        /// The file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
        /// The line, from 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        line: Option<usize>,
        /// The environment variable.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        variable: Option<String>,
    },
    /// An environment variable.
    Variable {
        /// Its name.
        variable: String,
    },
    /// A credential of the service manager.
    Credential {
        /// Its path.
        file: String,
    },
    /// An option of the command line, or its own variable.
    Argument {
        /// As it is typed.
        argument: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Unit { variable } => write!(f, "unit (${variable})"),
            Self::File { file, line } => write!(f, "{file}: line {line}"),
            Self::Keylime {
                option,
                file,
                line,
                variable,
            } => match (file, line, variable) {
                (Some(file), Some(line), _) => write!(f, "{file}: line {line} ({option})"),
                (_, _, Some(variable)) => write!(f, "${variable}"),
                _ => write!(f, "Keylime's default of {option}"),
            },
            Self::Variable { variable } => write!(f, "${variable}"),
            Self::Credential { file } => write!(f, "credential {file}"),
            Self::Argument { argument } => f.write_str(argument),
        }
    }
}

impl Shown {
    /// Something stronger than all files, variables and credentials sets the option `name`.
    pub fn set(&mut self, name: &str, value: Value, origin: &Origin) {
        for option in self.options.iter_mut().filter(|o| o.name == name) {
            option.value = value.clone();
            option.origin = origin.clone();
        }
    }
}

/// All options of `component` as [`super::load`] would find them, with who set them. `T` writes each
/// option under the name by which it is read.
pub fn show<T: DeserializeOwned + Serialize>(
    component: &Component,
    place: &Place,
) -> Result<Shown, ConfigError> {
    show_with(component, place, env::vars_os(), |_: &T| {
        Ok::<_, Infallible>(())
    })
}

/// What a daemon does when it is asked for its configuration instead of its service: JSON of
/// [`Shown`] on standard output, or the error on standard error and [`EX_CONFIG`]. What `check` finds
/// is a note, as the option's origin is wanted then.
pub fn print<T: DeserializeOwned + Serialize, E: fmt::Display>(
    component: &Component,
    place: &Place,
    check: impl Fn(&T) -> Result<(), E>,
) -> ExitCode {
    let write = |shown| -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(&shown)?;
        text.push('\n');
        io::stdout().write_all(text.as_bytes())
    };
    match show_with(component, place, env::vars_os(), check).map(write) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(_)) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(EX_CONFIG)
        }
    }
}

pub(super) fn show_with<T: DeserializeOwned + Serialize, E: fmt::Display>(
    component: &Component,
    place: &Place,
    environment: impl Iterator<Item = (OsString, OsString)>,
    check: impl Fn(&T) -> Result<(), E>,
) -> Result<Shown, ConfigError> {
    let environment = Environment::collect(environment);
    let (layers, mut notes) = layers::<T>(component, place, &environment)?;
    let mut origins = BTreeMap::new();
    for layer in &layers {
        origins.extend(layer.origins());
    }
    let config = parse::<T>(merge(layers))?;
    if let Err(error) = check(&config) {
        let text = format!("it cannot work, a start would end with status {EX_CONFIG}: {error}");
        notes.push(Note::warning(text));
    }
    let values = serde_json::to_value(config);
    let values = values.map_err(|error| ConfigError::Together(error.to_string()))?;
    let mut options = Vec::new();
    collect("", values, &mut |name, value| {
        let secret = component.secrets.contains(&name.as_str());
        options.push(ShownOption {
            value: if secret { Value::Null } else { value },
            secret,
            origin: origins.get(&name).cloned().unwrap_or(Origin::Default),
            name,
        });
    });
    options.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Shown { options, notes })
}

/// Options of sections, as in `ca.cert_organization`.
fn collect(prefix: &str, value: Value, found: &mut impl FnMut(String, Value)) {
    match value {
        Value::Object(options) => {
            for (name, value) in options {
                let name = format!("{prefix}{name}");
                match value {
                    Value::Object(_) => collect(&format!("{name}."), value, found),
                    value => found(name, value),
                }
            }
        }
        value => found(prefix.trim_end_matches('.').to_owned(), value),
    }
}

impl Layer {
    /// Each option that it sets.
    fn origins(&self) -> Vec<(String, Origin)> {
        let origin = match &self.source {
            Source::Keylime(origins) => return origins.clone(),
            Source::File(path, text) => return lines(path, text),
            Source::Unit(variable) => Origin::Unit {
                variable: (*variable).to_owned(),
            },
            Source::Variable(variable) => Origin::Variable {
                variable: variable.clone(),
            },
            Source::Credential(path) => Origin::Credential {
                file: path.display().to_string(),
            },
        };
        let mut names = Vec::new();
        name_all("", &self.table, &mut names);
        names
            .into_iter()
            .map(|name| (name, origin.clone()))
            .collect()
    }
}

fn name_all(prefix: &str, table: &Table, names: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => name_all(&format!("{prefix}{key}."), inner, names),
            _ => names.push(format!("{prefix}{key}")),
        }
    }
}

/// Which line of a file sets which option.
fn lines(path: &Path, text: &str) -> Vec<(String, Origin)> {
    fn walk(prefix: &str, table: &DeTable<'_>, found: &mut impl FnMut(String, usize)) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => walk(&format!("{name}."), inner, found),
                _ => found(name, key.span().start),
            }
        }
    }
    let mut found = Vec::new();
    // It was parsed before.
    if let Ok(table) = DeTable::parse(text) {
        walk("", table.get_ref(), &mut |name, start| {
            let file = path.display().to_string();
            let line = line_at(text, Some(start..start));
            found.push((name, Origin::File { file, line }));
        });
    }
    found
}
