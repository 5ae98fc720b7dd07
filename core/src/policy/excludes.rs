use regex::{RegexBuilder, RegexSet, RegexSetBuilder};

use super::PolicyError;
use super::python::{self, Scope};

/// All patterns of a policy together, in bytes. A `\w` is two of them, and some KiB once parsed.
const TEXT_LIMIT: usize = 64 << 10;
/// Those of them for the backtracking engine, which keeps each part of a pattern by itself.
const BACKTRACK_TEXT: usize = 8 << 10;
/// Compiled size of the set in bytes.
const SIZE_LIMIT: usize = 64 << 20;
/// Compiled size of a part of a pattern for the backtracking engine, in bytes.
const PART_LIMIT: usize = 512 << 10;
/// Steps of the backtracking engine for one pattern and one path: some 0.1 ms.
const BACKTRACK_LIMIT: usize = 10_000;
/// Characters of a pattern that an error shows.
const SHOWN: usize = 200;
/// Longest path that is given to the backtracking engine, in bytes: twice the kernel's PATH_MAX.
/// A single step may look at all of it.
const BACKTRACK_PATH: usize = 8_192;
/// Paths on which backtracking may hit its limit in one appraisal.
const BUDGET: u32 = 1_000;

/// Exclude patterns: what matches at its start is not judged.
///
/// Patterns are Python's, matched at the start of the path and not anchored at its end, as
/// Keylime does (`re.match`). Each is put into Rust's syntax; the linear-time engine takes what it
/// can, as one set, and only look-around and back-references go to a backtracking engine with a
/// step limit. A path on which that limit is hit, or which is longer than paths are, counts as not
/// excluded by these.
#[derive(Debug)]
pub struct Excludes {
    linear: RegexSet,
    backtracking: Vec<fancy_regex::Regex>,
}

/// How often backtracking may still hit its step limit in one appraisal. A host that picks
/// paths to be slow on gains nothing but findings.
#[derive(Clone, Copy, Debug)]
pub struct ExcludesBudget(u32);

impl Default for ExcludesBudget {
    fn default() -> Self {
        Self(BUDGET)
    }
}

impl Excludes {
    /// Compiles `patterns`.
    ///
    /// # Errors
    /// Names the first pattern that is no regular expression. Their size is bounded in every way:
    /// a verifier compiles the policies of anybody.
    pub fn compile<'p>(patterns: impl IntoIterator<Item = &'p str>) -> Result<Self, PolicyError> {
        let mut linear = Vec::new();
        let mut backtracking = Vec::new();
        let (mut text, mut backtracking_text) = (0_usize, 0_usize);
        for pattern in patterns {
            let fail = |reason: String| PolicyError::Exclude {
                pattern: pattern.chars().take(SHOWN).collect(),
                reason,
            };
            text = text.saturating_add(pattern.len());
            if text > TEXT_LIMIT {
                let reason = format!("with it, the patterns have more than {TEXT_LIMIT} bytes");
                return Err(fail(reason));
            }
            let translated = python::translate(pattern, Scope::Start).map_err(&fail)?;
            let anchored = format!(r"\A(?:{translated})");
            // Only parsed: the size of all together is what counts.
            let parsed = RegexBuilder::new(&anchored).size_limit(0).build();
            if matches!(parsed, Ok(_) | Err(regex::Error::CompiledTooBig(_))) {
                linear.push(anchored);
                continue;
            }
            backtracking_text += pattern.len();
            if backtracking_text > BACKTRACK_TEXT {
                return Err(fail(format!(
                    "with it, those with look-around and back-references have more than \
                     {BACKTRACK_TEXT} bytes"
                )));
            }
            let regex = fancy_regex::RegexBuilder::new(&anchored)
                .backtrack_limit(BACKTRACK_LIMIT)
                .delegate_size_limit(PART_LIMIT)
                .build()
                .map_err(|error| fail(error.to_string()))?;
            backtracking.push(regex);
        }
        let linear = RegexSetBuilder::new(&linear)
            .size_limit(SIZE_LIMIT)
            .build()
            .map_err(|e| PolicyError::Exclude {
                pattern: "all together".to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self {
            linear,
            backtracking,
        })
    }

    /// Is `path` excluded?
    pub fn matches(&self, path: &str, budget: &mut ExcludesBudget) -> bool {
        if self.linear.is_match(path) {
            return true;
        }
        for regex in &self.backtracking {
            if budget.0 == 0 || path.len() > BACKTRACK_PATH {
                return false;
            }
            match regex.is_match(path) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(_) => budget.0 -= 1,
            }
        }
        false
    }

    /// No patterns?
    pub fn is_empty(&self) -> bool {
        self.linear.is_empty() && self.backtracking.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(pattern: &str, path: &str) -> bool {
        let excludes = Excludes::compile([pattern]).unwrap();
        excludes.matches(path, &mut ExcludesBudget::default())
    }

    #[test]
    fn patterns_match_at_the_start_only() {
        assert!(excluded("/usr/bin/tr", "/usr/bin/true"));
        assert!(!excluded("bin/true", "/usr/bin/true"));
        assert!(
            excluded("/a|/b", "/bin"),
            "alternatives stay inside the anchor"
        );
    }

    #[test]
    fn python_syntax_means_what_it_means_in_python() {
        for (pattern, yes, no) in [
            (r"/tmp/a\Z", "/tmp/a", "/tmp/ab"),
            (r"/x{,2}y", "/xxy", "/xxxy"),
            (r"/{uuid}", "/{uuid}", "/uuid"),
            (r"/a{x", "/a{x", "/a"),
            (r"/(?P<d>\w)(?P=d)", "/aa", "/ab"),
            (r"/(\w)\1", "/bb", "/bc"),
            (r"/usr/(?!bin)", "/usr/lib/x", "/usr/bin/x"),
            (r"/(?#all of it)a", "/a", "/b"),
            (r"/[[]x", "/[x", "/]x"),
            (r"/[]a]x", "/]x", "/[x"),
            (r"/[a&&b]x", "/&x", "/cx"),
            (r"/[+--]x", "/,x", "/.x"),
            (r"/[--a]x", "/-x", "/bx"),
            (r"/\<x\>", "/<x>", "/x"),
            (r"/\101", "/A", "/B"),
            (r"/[\w\-.]+/$", "/a-b.c/", "/a/b"),
        ] {
            assert!(excluded(pattern, yes), "{pattern} should match {yes}");
            assert!(!excluded(pattern, no), "{pattern} should not match {no}");
        }
    }

    /// Rust's engines would take each of these.
    #[test]
    fn what_python_refuses_is_refused() {
        for (pattern, reason) in [
            (r"a(?<=a*)b", "fixed-width"),
            (r"a(?<!a|bb)b", "fixed-width"),
            (r"(?P<n>a?)b(?<=(?P=n)b)", "fixed-width"),
            (r"b(?<=(a)\1)", "inside of it"),
            (r"(a(?<=(?(1)b|c)))", "open group"),
            ("(?au)a", "incompatible"),
            ("(?a)(?u)a", "incompatible"),
            ("(?i-:a)", "missing flag"),
            ("(?i-i:a)", "on and off"),
            ("(?i", "missing"),
            ("a{4294967295}", "too large"),
        ] {
            let error = Excludes::compile([pattern]).unwrap_err().to_string();
            assert!(error.contains(reason), "{pattern}: {error}");
        }
        for pattern in [r"(a|b)c(?<=\1c)", "a(?<=a{1})", "x(?<=[ab]|x)"] {
            Excludes::compile([pattern]).unwrap();
        }
        assert!(!excluded(r"\B", "") && excluded(r"\B", "-"));
    }

    #[test]
    fn an_invalid_pattern_is_named() {
        let error = Excludes::compile(["/ok", "/broken("]).unwrap_err();
        assert!(error.to_string().contains("/broken("), "{error}");
    }

    /// Each of these would take minutes or gigabytes before the size of the result is looked at.
    #[test]
    fn many_patterns_cost_no_more_than_few() {
        let linear: Vec<_> = (0..3_000)
            .map(|n| format!("/{n}(a{{999}}){{200}}"))
            .collect();
        let look_around = vec![r"/(?=x)(a{999}){200}(?=y)\w{900}"; 300];
        let words = [r"\w".repeat(TEXT_LIMIT)];
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        for (patterns, reason) in [
            (linear.iter().map(String::as_str).collect(), "size limit"),
            (look_around, "building NFA"),
            (vec![r"/(?=x)\w"; 2_000], "look-around"),
            (words, "more than 65536 bytes"),
        ] {
            let error = Excludes::compile(patterns).unwrap_err().to_string();
            assert!(error.contains(reason) && error.len() < 1_000, "{error}");
        }
        let ordinary = (0..1_000).map(|n| format!("/var/lib/container-{n:04}/.*"));
        let ordinary: Vec<_> = ordinary.collect();
        let excludes = Excludes::compile(ordinary.iter().map(String::as_str)).unwrap();
        let path = "/var/lib/container-0999/x";
        assert!(excludes.matches(path, &mut ExcludesBudget::default()));
    }

    #[test]
    fn runaway_backtracking_ends_and_does_not_exclude() {
        let excludes = Excludes::compile([r"/(a|a)*\1y"]).unwrap();
        let path = format!("/{}cy", "a".repeat(200));
        let mut budget = ExcludesBudget(2);
        for _ in 0..100 {
            assert!(!excludes.matches(&path, &mut budget));
        }
        assert_eq!(budget.0, 0, "the step limit was hit and counted");
    }
}
