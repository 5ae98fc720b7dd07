//! Layered TOML configuration.
//!
//! Later layers override earlier ones, key by key:
//!
//! 1. `/usr/lib/troth/NAME.toml`, `/run/troth/NAME.toml`, `/etc/troth/NAME.toml`: the last that
//!    exists replaces the others, as for unit files;
//! 2. `NAME.toml.d/*.toml` of the same directories, sorted by file name over all of them; a file
//!    in `/etc` hides one of the same name in `/run` or `/usr/lib`;
//! 3. environment variables `TROTH_NAME_KEY`, with `__` between the parts of a nested key
//!    (`TROTH_CTL_KEY` for `trothctl`).

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Directories from weakest to strongest.
const DIRECTORIES: [&str; 3] = ["/usr/lib/troth", "/run/troth", "/etc/troth"];

/// Loads the configuration `name` (`agent`, `trothctl`, ...). `file` stands for all files of the
/// directories; the environment applies in any case.
///
/// `T` should be `#[serde(default, deny_unknown_fields)]`: an unknown key is then an error that
/// names the file.
pub fn load<T: DeserializeOwned>(name: &str, file: Option<&Path>) -> Result<T, ConfigError> {
    let files = match file {
        Some(file) => vec![file.to_owned()],
        None => layers(name, &DIRECTORIES.map(PathBuf::from))?,
    };
    let component = name.strip_prefix("troth").unwrap_or(name);
    let prefix = format!("TROTH_{}_", component.to_ascii_uppercase());
    let environment = env::vars_os().filter_map(|(key, value)| {
        let key = key.to_str()?.strip_prefix(&prefix)?.to_ascii_lowercase();
        Some((key, value.to_string_lossy().into_owned()))
    });
    merge(&files, &prefix, environment)
}

/// The files that apply, weakest first.
fn layers(name: &str, directories: &[PathBuf]) -> Result<Vec<PathBuf>, ConfigError> {
    let main = format!("{name}.toml");
    let base = directories
        .iter()
        .rev()
        .map(|dir| dir.join(&main))
        .find(|path| path.exists());
    let mut drop_ins = BTreeMap::new();
    for directory in directories {
        let directory = directory.join(format!("{name}.toml.d"));
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(ConfigError::Read {
                    path: directory,
                    source,
                });
            }
        };
        for entry in entries {
            let entry = entry.map_err(|source| ConfigError::Read {
                path: directory.clone(),
                source,
            })?;
            let path = entry.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                drop_ins.insert(entry.file_name(), path);
            }
        }
    }
    Ok(base.into_iter().chain(drop_ins.into_values()).collect())
}

fn merge<T: DeserializeOwned>(
    files: &[PathBuf],
    prefix: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let mut merged = Table::new();
    for path in files {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        // Each file is checked by itself, so that an error names the file and its line.
        toml::from_str::<T>(&text).map_err(|source| ConfigError::Parse {
            path: path.clone(),
            reason: where_and_what(&text, &source),
        })?;
        let table = text.parse::<Table>().map_err(|source| ConfigError::Parse {
            path: path.clone(),
            reason: where_and_what(&text, &source),
        })?;
        overlay(&mut merged, table);
    }
    let mut variables = Vec::new();
    for (key, value) in environment {
        variables.push(format!("{prefix}{}", key.to_ascii_uppercase()));
        set(&mut merged, &key, variable_value(&value));
    }
    merged
        .try_into::<T>()
        .map_err(|source| ConfigError::Environment {
            variables: variables.join(", "),
            reason: source.to_string().trim_end().to_owned(),
        })
}

/// Position and message. The line itself, which toml would show, may hold a password.
fn where_and_what(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => {
            let line = before.matches('\n').count() + 1;
            format!("line {line}: {}", error.message())
        }
        None => error.message().to_owned(),
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

fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once("__") {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((outer, inner)) => {
            let nested = table
                .entry(outer.to_owned())
                .or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(nested) = nested {
                set(nested, inner, value);
            }
        }
    }
}

/// A variable's text as the TOML value that it spells, or as a string.
fn variable_value(text: &str) -> Value {
    format!("value = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The merged configuration is wrong while each file by itself is right.
    #[error("environment ({variables}): {reason}")]
    Environment {
        /// The variables that were set.
        variables: String,
        /// What is wrong.
        reason: String,
    },
    /// A file is not TOML, has an unknown key, or a value of the wrong type.
    #[error("{}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
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
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        port: u16,
        name: String,
        tls: Tls,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Tls {
        enabled: bool,
        roots: Vec<String>,
    }

    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn stronger_directories_and_drop_ins_win() {
        let root = tempfile::tempdir().unwrap();
        let directories = ["usr", "run", "etc"].map(|name| root.path().join(name));
        write(&directories[0], "agent.toml", "port = 1\nname = 'vendor'");
        write(&directories[2], "agent.toml", "port = 2");
        write(&directories[0], "agent.toml.d/10-a.toml", "name = 'hidden'");
        write(&directories[2], "agent.toml.d/10-a.toml", "name = 'shown'");
        write(
            &directories[1],
            "agent.toml.d/20-b.toml",
            "[tls]\nenabled = true",
        );
        let files = layers("agent", &directories).unwrap();
        let sample: Sample = merge(&files, "TROTH_AGENT_", std::iter::empty()).unwrap();
        let tls = Tls {
            enabled: true,
            roots: Vec::new(),
        };
        assert_eq!(
            sample,
            Sample {
                port: 2,
                name: "shown".into(),
                tls
            }
        );
    }

    #[test]
    fn environment_reaches_nested_keys_with_their_type() {
        let environment = [
            ("port", "7"),
            ("name", "host-1"),
            ("tls__roots", "['a', 'b']"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let sample: Sample = merge(&[], "TROTH_AGENT_", environment.into_iter()).unwrap();
        assert_eq!(sample.port, 7);
        assert_eq!(sample.name, "host-1");
        assert_eq!(sample.tls.roots, ["a", "b"]);
    }

    #[test]
    fn unknown_key_is_an_error_that_names_file_and_line() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "agent.toml", "port = 1\nprot = 2\n");
        let path = root.path().join("agent.toml");
        let error = merge::<Sample>(&[path], "TROTH_AGENT_", std::iter::empty()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("agent.toml") && text.contains("line 2"),
            "{text}"
        );
        assert!(text.contains("prot"), "{text}");
    }

    #[test]
    fn a_broken_line_is_named_and_not_shown() {
        let root = tempfile::tempdir().unwrap();
        for broken in ["name = 's3cret\n", "name = s3cret\n", "name = 's3cret' x\n"] {
            write(root.path(), "agent.toml", &format!("port = 1\n{broken}"));
            let path = root.path().join("agent.toml");
            let error = merge::<Sample>(&[path], "TROTH_AGENT_", std::iter::empty()).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("line 2") && !text.contains("s3cret"),
                "{text}"
            );
        }
    }
}
