use regex::RegexBuilder;

use super::python::{Scope, translate};

/// Patterns of one policy that are more than a literal text.
const MOST: usize = 256;
/// Longest pattern, in bytes: the kernel's longest command line is 4,096 on most machines.
const LONGEST: usize = 16 << 10;
/// Compiled size of one, in bytes.
const SIZE_LIMIT: usize = 128 << 10;
/// Steps of the backtracking engine for one pattern and one text.
const BACKTRACK_LIMIT: usize = 100_000;
/// Longest text that is compared with more than a literal text, in bytes.
const LONGEST_TEXT: usize = 64 << 10;
/// Longest text that is given to the backtracking engine, in bytes.
const BACKTRACK_TEXT: usize = 16 << 10;

/// A regular expression of Python's syntax that must match a whole text (`re.fullmatch`).
///
/// A text of more than 64 KiB matches none but the literal one; neither does one on which the
/// backtracking engine hits its limit.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    source: String,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    /// One text alone matches.
    Literal(String),
    Linear(regex::Regex),
    /// With look-around or back-references.
    Backtracking(fancy_regex::Regex),
}

/// How many patterns a policy may still have: compiled ones cost memory.
#[derive(Debug)]
pub(crate) struct PatternBudget(usize);

impl Default for PatternBudget {
    fn default() -> Self {
        Self(MOST)
    }
}

impl Pattern {
    /// Compiles `source`.
    ///
    /// # Errors
    /// Why it cannot be used, for after its name.
    pub(crate) fn compile(source: &str, budget: &mut PatternBudget) -> Result<Self, String> {
        if source.len() > LONGEST {
            return Err(format!("is longer than {LONGEST} bytes"));
        }
        let matcher = match literal(source) {
            Some(text) => Matcher::Literal(text),
            None => {
                budget.0 = budget
                    .0
                    .checked_sub(1)
                    .ok_or_else(|| format!("is one of more than {MOST} patterns"))?;
                Matcher::compile(source)?
            }
        };
        Ok(Self {
            source: source.to_owned(),
            matcher,
        })
    }

    /// Does it match the whole of `text`?
    pub(crate) fn matches(&self, text: &str) -> bool {
        match &self.matcher {
            Matcher::Literal(literal) => text == literal,
            Matcher::Linear(regex) => text.len() <= LONGEST_TEXT && regex.is_match(text),
            Matcher::Backtracking(regex) => {
                text.len() <= BACKTRACK_TEXT && regex.is_match(text).unwrap_or(false)
            }
        }
    }

    /// As it was written.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// A pattern that `text` alone matches, as Python's `re.escape` writes it.
    pub(crate) fn escape(text: &str) -> String {
        let mut escaped = String::with_capacity(text.len() + 16);
        for c in text.chars() {
            if c.is_ascii_whitespace() || c == '\x0b' || "()[]{}?*+-|^$\\.&~#".contains(c) {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        escaped
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

impl Matcher {
    fn compile(source: &str) -> Result<Self, String> {
        let translated = translate(source, Scope::Whole)
            .map_err(|reason| format!("is no usable regular expression: {reason}"))?;
        let anchored = format!(r"\A(?:{translated})\z");
        let linear = RegexBuilder::new(&anchored).size_limit(SIZE_LIMIT).build();
        match linear {
            Ok(regex) => return Ok(Self::Linear(regex)),
            Err(regex::Error::CompiledTooBig(_)) => {
                return Err("is too large when compiled".to_owned());
            }
            Err(_) => {}
        }
        fancy_regex::RegexBuilder::new(&anchored)
            .backtrack_limit(BACKTRACK_LIMIT)
            .delegate_size_limit(SIZE_LIMIT)
            .build()
            .map(Self::Backtracking)
            .map_err(|error| format!("is no usable regular expression: {error}"))
    }
}

/// The one text that `source` matches, if it is that simple: no operators, or escaped ones.
fn literal(source: &str) -> Option<String> {
    let mut text = String::with_capacity(source.len());
    let mut chars = source.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().filter(|c| !c.is_ascii_alphanumeric())?),
            '.' | '^' | '$' | '*' | '+' | '?' | '{' | '}' | '[' | ']' | '(' | ')' | '|' => {
                return None;
            }
            c => text.push(c),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_text() {
        for (source, yes, no) in [
            (
                r"/vmlinuz\-1\ root=/dev/sda1\ ro",
                "/vmlinuz-1 root=/dev/sda1 ro",
                "/vmlinuz-1",
            ),
            ("root=.*", "root=x", "a root=x"),
            ("a|b", "b", "ab"),
            (r"(\w)\1", "aa", "aaa"),
            ("a", "a", "a\n"),
        ] {
            let pattern = Pattern::compile(source, &mut PatternBudget::default()).unwrap();
            assert!(pattern.matches(yes), "{source}: {yes}");
            assert!(!pattern.matches(no), "{source}: {no}");
        }
    }

    #[test]
    fn an_escaped_text_is_matched_by_itself_alone() {
        let text = "/vmlinuz-6.12 root=UUID=a-b ro quiet {x} #~ a\u{e9}";
        let escaped = Pattern::escape(text);
        assert!(escaped.starts_with(r"/vmlinuz\-6\.12\ root=UUID=a\-b"));
        let mut budget = PatternBudget(0);
        let pattern = Pattern::compile(&escaped, &mut budget).unwrap();
        assert!(pattern.matches(text));
    }

    #[test]
    fn what_costs_too_much_is_refused() {
        let mut budget = PatternBudget::default();
        for (source, reason) in [
            ("(a{999}){200}".to_owned(), "too large"),
            ("a(".to_owned(), "no usable regular expression"),
            ("a".repeat(LONGEST + 1), "longer than"),
        ] {
            let error = Pattern::compile(&source, &mut budget).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let many = (0..=MOST).find_map(|n| Pattern::compile(&format!("{n}.*"), &mut budget).err());
        assert!(many.unwrap().contains("more than 256 patterns"));
    }
}
