//! The grammar of Python's `configparser.RawConfigParser` (Python library reference, "Supported INI
//! File Structure") with its defaults: `=` or `:`, whole-line comments after `#` or `;`, values that
//! go on in indented lines, no interpolation, and no name twice.

use std::collections::BTreeSet;

/// Largest file in bytes.
pub(crate) const LIMIT: usize = 1024 * 1024;

/// One option as it stands in a file.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) section: String,
    /// In lower case.
    pub(crate) name: String,
    /// Lines of one that goes on are separated by LF.
    pub(crate) value: String,
    /// Where it begins, from 1.
    pub(crate) line: usize,
}

/// Why a text is no INI file.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{what}")]
pub(crate) struct IniError {
    pub(crate) line: usize,
    what: &'static str,
}

/// All options of `text`, in their order.
pub(crate) fn parse(text: &str) -> Result<Vec<Entry>, IniError> {
    let error = |line, what| Err(IniError { line, what });
    if text.len() > LIMIT {
        return error(1, "the file is larger than 1 MiB");
    }
    let mut entries: Vec<Entry> = Vec::new();
    let mut sections = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut section = None;
    // Indentation of the line that began the value that may go on; none after a section header.
    let mut open = None;
    for (line, text) in lines(text) {
        let stripped = text.trim();
        if stripped.starts_with(['#', ';']) {
            continue;
        }
        if stripped.is_empty() {
            if let (Some(_), Some(entry)) = (open, entries.last_mut()) {
                entry.value.push('\n');
            }
            continue;
        }
        let indentation = text.chars().take_while(|c| c.is_whitespace()).count();
        if let (Some(start), Some(entry)) = (open, entries.last_mut())
            && indentation > start
        {
            entry.value.push('\n');
            entry.value.push_str(stripped);
            continue;
        }
        if let Some(header) = header(stripped) {
            if !sections.insert(header) && header != DEFAULT {
                return error(line, "this section is there twice");
            }
            (section, open) = (Some(header), None);
            continue;
        }
        let Some(section) = section else {
            return error(line, "an option outside of any [section]");
        };
        let Some((name, value)) = stripped.split_once(['=', ':']) else {
            return error(line, "neither a [section] nor `option = value`");
        };
        let name = name.trim().to_lowercase();
        if name.is_empty() {
            return error(line, "a value without the name of an option");
        }
        if !names.insert((section, name.clone())) {
            return error(line, "this option is there twice");
        }
        open = Some(indentation);
        entries.push(Entry {
            section: section.to_owned(),
            name,
            value: value.trim().to_owned(),
            line,
        });
    }
    for entry in &mut entries {
        entry.value.truncate(entry.value.trim_end().len());
    }
    Ok(entries)
}

/// The section whose options all others have too.
pub(crate) const DEFAULT: &str = "DEFAULT";

/// What is between the first bracket and the last; what follows is not looked at.
fn header(line: &str) -> Option<&str> {
    let inside = line.strip_prefix('[')?;
    let header = &inside[..inside.rfind(']')?];
    (!header.is_empty()).then_some(header)
}

/// Lines with their numbers, ended by LF, CR LF or CR.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.split('\n').flat_map(|line| {
        let line = line.strip_suffix('\r').unwrap_or(line);
        line.split('\r')
    });
    (1..).zip(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(String, String, String)> {
        let entries = parse(text).unwrap().into_iter();
        entries.map(|e| (e.section, e.name, e.value)).collect()
    }

    fn one(text: &str) -> String {
        let mut values = values(&format!("[s]\n{text}"));
        assert_eq!(values.len(), 1, "{values:?}");
        values.remove(0).2
    }

    #[test]
    fn options_are_what_pythons_configparser_makes_of_them() {
        assert_eq!(one("a = b"), "b");
        assert_eq!(one("a: b = c"), "b = c");
        assert_eq!(one("A=\"b c\" # not a comment"), "\"b c\" # not a comment");
        assert_eq!(one("a = %(x)s"), "%(x)s");
        assert_eq!(one("a ="), "");
        assert_eq!(one("a = b\n  c\n# comment\n  d\n\n  e\n\n"), "b\nc\nd\n\ne");
        assert_eq!(one("  a = b\r\n   c"), "b\nc");
        let both = values("[s] trailing\nA = 1\n;b = 2\n[t]\n a = 3\n b = 4\n");
        let texts: Vec<_> = both.iter().map(|(s, n, v)| (&**s, &**n, &**v)).collect();
        assert_eq!(texts, [("s", "a", "1"), ("t", "a", "3"), ("t", "b", "4")]);
    }

    #[test]
    fn what_is_no_ini_file_is_refused_with_its_line() {
        for (text, line) in [
            ("a = 1", 1),
            ("[s]\nnonsense", 2),
            ("[s]\na = 1\nA: 2", 3),
            ("[s]\n[t]\n[s]", 3),
            ("[s]\n= 1", 2),
            ("[]\na = 1", 1),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text}");
        }
        assert!(parse(&" ".repeat(LIMIT + 1)).is_err());
    }
}
