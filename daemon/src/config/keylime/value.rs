use std::path::Path;

use toml::Value;

use super::Base;

/// How a value of Keylime becomes one of ours.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// The text as it is.
    Text,
    /// The text; nothing when it is empty or `default`.
    TextOrDefault,
    /// A whole number.
    Integer,
    /// Seconds, with or without a fraction.
    Seconds,
    /// `True`, `False` and configparser's other words for them.
    Boolean,
    /// A list: items in quotes or without, separated by commas or blanks, brackets or none.
    List,
    /// A file in `keylime_dir`; by default the one of this name, if it is there.
    StateFile(&'static str),
    /// The same where the empty text is a value of its own: no file.
    StateFileOrNone(&'static str),
    /// Several of them.
    StateFiles(&'static str),
    /// `tls_dir` itself, as a directory with a CA: Keylime's where it has made one, else ours.
    CaDirectory,
    /// A file in `tls_dir`; nothing by default.
    TlsFile,
    /// Several of them. `all`, which is to trust everybody, is refused.
    TlsFiles,
    /// Anything else.
    Custom(fn(&str, &Base) -> Result<Option<Value>, String>),
}

impl Kind {
    /// The value of ours. `None`: our default is what Keylime means.
    pub fn convert(self, text: &str, base: &Base) -> Result<Option<Value>, String> {
        let unset = text.is_empty() || text == "default";
        Ok(Some(match self {
            Self::Text => Value::String(text.to_owned()),
            Self::TextOrDefault if unset => return Ok(None),
            Self::TextOrDefault => Value::String(text.to_owned()),
            Self::Integer => Value::Integer(number(text)?),
            Self::Seconds => Value::Float(number(text)?),
            Self::Boolean => Value::Boolean(boolean(text)?),
            Self::List => strings(list(text)?),
            Self::StateFileOrNone(_) if text.is_empty() => Value::String(String::new()),
            Self::StateFile(name) | Self::StateFileOrNone(name) if unset => {
                match existing(base, name) {
                    Some(path) => path,
                    None => return Ok(None),
                }
            }
            Self::StateFile(_) | Self::StateFileOrNone(_) => path(&base.keylime_dir, text),
            Self::StateFiles(name) if unset => match existing(base, name) {
                Some(path) => Value::Array(vec![path]),
                None => return Ok(None),
            },
            Self::StateFiles(_) => paths(&base.keylime_dir, text)?,
            Self::CaDirectory => return ca_directory(text, base),
            // `CV` of old files is the verifier's own.
            Self::TlsFile | Self::TlsFiles if unset || text == "CV" => return Ok(None),
            Self::TlsFile => path(&base.tls_dir, text),
            Self::TlsFiles if text == "all" => {
                return Err("`all` would trust every client; name the CAs' files".to_owned());
            }
            Self::TlsFiles => paths(&base.tls_dir, text)?,
            Self::Custom(convert) => return convert(text, base),
        }))
    }
}

/// Do two texts say the same?
pub(super) fn same(one: &str, other: &str) -> bool {
    let plain = |text: &str| {
        let kept = text
            .chars()
            .filter(|c| !c.is_whitespace() && !"\"'".contains(*c));
        kept.collect::<String>().to_lowercase()
    };
    plain(one) == plain(other)
}

/// A value of a TOML file as the text that INI files would have.
pub(super) fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        value => value.to_string(),
    }
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    let text = text.trim();
    text.parse()
        .map_err(|_| format!("{text:?} is not a number"))
}

/// configparser's `BOOLEAN_STATES`.
fn boolean(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" => Ok(true),
        "0" | "no" | "false" | "off" => Ok(false),
        _ => Err(format!("{text:?} is neither True nor False")),
    }
}

/// The items of a list. Keylime's agent keeps quotes as part of an item; here they are quotes.
pub(crate) fn list(text: &str) -> Result<Vec<String>, String> {
    let text = text.trim();
    let inside = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or("a list without its `]`")?,
        None => text,
    };
    let mut items = Vec::new();
    let mut rest = inside;
    loop {
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
        let Some(first) = rest.chars().next() else {
            return Ok(items);
        };
        let (item, behind) = if first == '"' || first == '\'' {
            let quoted = rest[1..].split_once(first);
            quoted.ok_or("a list with a quote that does not end")?
        } else {
            let end = rest.find(|c: char| c == ',' || c.is_whitespace());
            rest.split_at(end.unwrap_or(rest.len()))
        };
        items.push(item.trim().to_owned());
        rest = behind;
    }
}

fn strings(items: Vec<String>) -> Value {
    Value::Array(items.into_iter().map(Value::String).collect())
}

fn path(directory: &Path, text: &str) -> Value {
    Value::String(directory.join(text).to_string_lossy().into_owned())
}

fn paths(directory: &Path, text: &str) -> Result<Value, String> {
    let files = list(text)?;
    Ok(Value::Array(
        files.iter().map(|file| path(directory, file)).collect(),
    ))
}

fn ca_directory(text: &str, base: &Base) -> Result<Option<Value>, String> {
    let directory = &base.tls_dir;
    let exists = directory.join("cacert.crt").exists();
    if !exists && !["", "generate", "default", "CV"].contains(&text) {
        let directory = directory.display();
        return Err(format!("there is no cacert.crt in {directory}"));
    }
    Ok(exists.then(|| Value::String(directory.to_string_lossy().into_owned())))
}

fn existing(base: &Base, name: &str) -> Option<Value> {
    let directory = &base.keylime_dir;
    let theirs = !base.is_ours && directory.join(name).exists();
    theirs.then(|| path(directory, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_python_lists_or_words() {
        for text in ["['a', 'b c']", "[\"a\",\n \"b c\"]", "a 'b c'", "a, 'b c',"] {
            assert_eq!(list(text).unwrap(), ["a", "b c"], "{text}");
        }
        for empty in ["", "[]", " [ ] "] {
            assert!(list(empty).unwrap().is_empty());
        }
        for broken in ["['a'", "['a, b]", "'"] {
            assert!(list(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn booleans_are_those_of_configparser() {
        for text in ["True", "yes", "ON", "1"] {
            assert_eq!(boolean(text), Ok(true));
        }
        for text in ["False", "no", "off", "0"] {
            assert_eq!(boolean(text), Ok(false));
        }
        assert!(boolean("maybe").is_err());
    }
}
