use std::collections::BTreeMap;
use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use troth_core::policy::{Excludes, ExcludesBudget, PolicyError};
use troth_tests::keylime::Oracle;

/// Patterns made by rules, beside those that are written down.
const MADE: u64 = 4_000;

/// As operators write them.
const FIELD: &[&str] = &[
    "/tmp/.*",
    "/var/log/.*",
    "/tmp/",
    r"/usr/.*\.pyc$",
    r"^/usr/lib/python3\.\d+/.*",
    "boot_aggregate",
    r"/(root|home/[^/]+)/\.cache(/.*)?",
    r"^(/(dev|proc|sys|run|tmp)(/.*)?)$",
    r"/usr/(?!bin|sbin).*",
    r"/usr/lib(64)?/.*\.so(\.\d+)*$",
    r".*/__pycache__/.*\.cpython-\d\d\.pyc",
    r"/var/lib/docker/overlay2/[0-9a-f]{64}/.*",
    r"[^/]*$",
    r"/etc/.*~$",
    r"/usr/share/(doc|man)/",
    r"/lib/modules/[\w.+-]+/modules\.(dep|alias)(\.bin)?",
    "memfd:.*",
    r"/a\ b",
    "",
    ".*",
    "$",
    "^$",
    "*",
    "/*",
    "/**",
    "*.log",
    "/tmp/(",
    "/tmp/)",
    "/tmp/[",
    "/tmp/]",
    "/tmp/{}",
    "\\",
    "/tmp/\\",
];

/// One construct each.
const SYNTAX: &[&str] = &[
    // Flags.
    "(?i)/USR/BIN",
    "(?i)k",
    "(?i)ſ",
    "(?i)[a-z]+$",
    "(?i)[^k]",
    "(?ai)k",
    "(?ai)[a-z]+$",
    "(?i)É",
    "(?i)ß",
    "(?i)İ",
    "(?i)[à-ý]",
    "(?i)[_-z]",
    r"(?i)\x6b",
    r"(?i)(a)\1",
    "(?i:U)sr",
    "/(?i:USR)/bin",
    "/(?i:USR)/BIN",
    "(?i)/(?-i:usr)/BIN",
    "(?s).*b$",
    "(?s:a.)b",
    "(?-s:a.)b",
    ".",
    "a.b",
    "(?m)^b",
    r"a\n^b",
    r"(?m)a$\n^b",
    r"(?m)a\n^b$",
    "(?m:a$)",
    "(?m)$",
    "(?x) / usr / bin # a comment",
    "(?x)a\\ b",
    "(?x)[a b]+",
    "(?x)a # x\nb",
    "(?x)a\u{a0}b",
    "(?x)a\u{85}b",
    "(?x)a\u{1c}b",
    "(?x: a b )c",
    "(?x)a +",
    "(?x)a {2}",
    "(?x)a{2 }",
    "(?x)( ?:a)",
    "(?x)a|# x",
    r"(?x)\ a",
    "(?xi) A B",
    "(?x)(?#c) a",
    "(?x)a (?#c) +",
    "(?x-i:a)",
    "(?u)a",
    "(?L)a",
    "(?a)\\w+$",
    "(?au)a",
    "(?a:\\w)\\w",
    "(?u:\\w)",
    "(?a-i:x)",
    "(?i-a:x)",
    "(?i-:x)",
    "(?-:x)",
    "(?i-i:x)",
    "(?:)",
    "(?)",
    "(?i",
    "(?i)(?s)a.b",
    "a(?i)b",
    "(?i)|a",
    " (?i)a",
    "(?#c)(?i)A",
    "((?i)a)",
    "(?t)a",
    "(?z)a",
    "(?ii)A",
    // Anchors and borders.
    r"\Aa",
    r"a\A",
    r"a\Z",
    r"a\z",
    r"\Z",
    "a$",
    "a$b",
    "a$\nb",
    "a$\n",
    "(a$)\n",
    "a$|b",
    "(a$|b)",
    "(?:a$)?",
    "a$$",
    "$a",
    "^^a",
    "a^",
    "(^a)",
    "^*",
    "$*",
    "$+",
    r"\b*",
    r"\A?",
    r"\b",
    r"\ba",
    r"a\b",
    r"a\B",
    r"\B",
    r"é\b",
    r"(?a)é\b",
    r"(?a)a\bé",
    r"\bé",
    r"a\b\nb",
    r"[\b]",
    r"[\B]",
    r"[\A]",
    // Sets.
    r"\d",
    r"\D",
    r"\w+$",
    r"\W",
    r"\s",
    r"\S+$",
    r"(?a)\d",
    r"(?a)\s",
    r"(?a)\W",
    r"[\d]",
    r"[^\d]",
    r"[\D]",
    r"[^\D]",
    r"[\w-]+$",
    r"[\w-a]",
    r"[a-\w]",
    r"[a-\d]",
    r"[\s\S]",
    r"[^\s\S]",
    r"[^\W\d]",
    "[]a]",
    "[^]a]",
    "[]",
    "[^]",
    "[]]",
    "[[]",
    "[[a]",
    "[[:alpha:]]",
    "[a-]",
    "[-a]",
    "[a-c-e]",
    "[a--]",
    "[--a]",
    "[+--]",
    "[z-a]",
    "[a-a]",
    "[a&&b]",
    "[a||b]",
    "[a~~b]",
    "[a--b]",
    "[&&]",
    "[^^]",
    "[a^]",
    "[.]",
    "[$]",
    "[*+?]",
    r"[\]]",
    r"[\-a]",
    r"[\^a]",
    r"[\\]",
    r"[\n]",
    r"[\x41]",
    r"[\101]",
    r"[\0]",
    r"[\08]",
    r"[\7]",
    r"[\8]",
    r"[\400]",
    r"[\é]",
    r"[\u00e9]",
    r"[\q]",
    "[/#]",
    "[é-ü]",
    "[^/é]",
    "[\n]",
    "[ ]",
    // Quantifiers.
    "a*?b",
    "a+?",
    "a??",
    "a*+a",
    "a++b",
    "a?+a",
    "a{1,2}+a",
    "(ab)*+a",
    "a***",
    "a+*",
    "a*??",
    "a*+?",
    "a{2}{3}",
    "a{2}*",
    "a{2}?",
    "a{2}?b",
    "a{,2}b",
    "a{,}b",
    "a{2,1}",
    "a{0}b",
    "a{0}",
    "a{",
    "a{x}",
    "a{1",
    "a{1,x}",
    "a{ 1}",
    "a{1, 2}",
    "a{01}",
    "{",
    "{1}",
    "{,}",
    "{a}",
    "a{}",
    "a}",
    "x{4294967295}",
    "x{4294967296}",
    "a|*",
    "(*)",
    "(?:*)",
    "(?:a|b)*c",
    "()*",
    "(a*)*",
    "(a*)+",
    "(a|ab)(c|bcd)(d*)",
    "(?=a)*",
    "(?=a)?b",
    "(?#c)*",
    "a(?#c)*",
    "a(?#c)*+",
    // Groups.
    "(?P<n>a)(?P=n)",
    "(?P<n>a)(?P<n>b)",
    "(?P<1>a)",
    "(?P<é>a)",
    "(?P<a b>a)",
    "(?P<>a)",
    "(?P<n",
    "(?P=n)",
    "(?P<n>a(?P=n))",
    "(?P>n)",
    "(?<n>a)",
    "(?'n'a)",
    "(?|a)",
    "(?&n)",
    "(?R)",
    r"(a)\1",
    r"(a)\2",
    r"\1(a)",
    r"(a\1)",
    r"(a)|\1b",
    r"(a)?\1b",
    r"(a)\10",
    r"(a)\100",
    r"(a)\1{2}",
    r"(a)(?:\1)0",
    r"(a)[\1]",
    "(?>a*)a",
    "(?>a|ab)c",
    "(?>ab|a)b",
    "(a)?(?(1)b|c)",
    "(a)?(?(1)b)",
    "(a)?(?(1)b|c|d)",
    "(?P<n>a)?(?(n)b|c)",
    "(?(1)a)(b)",
    "(?(0)a)",
    "(?(2)a)(b)(c)",
    "(?(n)a)",
    "(a)(?(1)|c)b",
    "(a)(?(01)b)",
    "(a(?(1)b|c))",
    "(?=/usr).",
    "(?!/usr).",
    "a(?=b)",
    "a(?!b)",
    "(?<=a)b",
    "a(?<=a)b",
    "a(?<!a)b",
    "a(?<!b)b",
    "a(?<=a|/)b",
    "a(?<=a*)b",
    "a(?<=a|bb)b",
    "a(?<!a|bb)b",
    r"(a)(?<=\1)b",
    "(?<=a{2})",
    "(?=a(b))..",
    "((((a))))",
    "(a",
    "a)",
    "(?",
    "(?:",
    "(?P",
    "(?<",
    "(?#",
    "|",
    "a||b",
    "(|a)b",
    "(a|)b",
    // Escapes.
    r"\x41",
    r"\x4",
    r"\x{41}",
    r"\u00e9",
    r"\u{e9}",
    r"\u00e",
    r"\U000000e9",
    r"\U00110000",
    r"\ud800",
    r"\0",
    r"\00",
    r"\01",
    r"\08",
    r"\101",
    r"\141",
    r"\377",
    r"\400",
    r"\777",
    r"\1",
    r"\8",
    r"\18",
    r"\a\f\v",
    r"\n",
    r"\t",
    r"\e",
    r"\h",
    r"\K",
    r"\G",
    r"\R",
    r"\X",
    r"\Q.\E",
    r"\p{L}",
    r"\cA",
    r"\N{DIGIT ONE}",
    r"\N",
    r"\_",
    r"\/",
    r"\-",
    r"\ ",
    r"\<",
    r"\>",
    r"\<a\>",
    r"\`",
    r"\'",
    r"\#",
    r"\&",
    r"\~",
    r"\é",
    "\\\n",
    "#",
    "&&",
    "~",
    "é",
    "a\u{0}b",
    "\u{10ff80}",
];

/// What they are matched with.
const TEXTS: &[&str] = &[
    "",
    "a",
    "A",
    "b",
    "ab",
    "AB",
    "aab",
    "aaaa",
    "abcd",
    "bb",
    "a\n",
    "a\nb",
    "a\n\n",
    "\n",
    "a b",
    "/usr/bin",
    "/USR/BIN",
    "/usr/lib64/libc.so.6",
    "/tmp/a",
    "/home/é/.cache/x",
    "é",
    "É",
    "aé",
    "éa",
    "ß",
    "ſ",
    "\u{212a}",
    "k",
    "i\u{130}\u{131}",
    "\u{661}1",
    "²½Ⅷ",
    "a\u{300}",
    "\u{1c}\u{85}\u{a0}",
    "\u{2028}x",
    "\u{203f}_",
    "-]^\\[&~|",
    "{}{1}",
    "x{1}",
    "+,-.",
    "\u{8}\u{0}",
    "<a>",
    "#a b",
    "/__pycache__/a.cpython-311.pyc",
    "boot_aggregate",
    "\u{10ff80}",
];

/// Why a pattern is refused that Python takes, in words of ours.
const REFUSED: &[&str] = &[
    "under the flag i is not supported",
    r"\N{...} is not supported",
    // A lone surrogate, which no path has.
    r"bad escape \ud800",
    // Of Python before 3.13, and without a meaning.
    "unknown or misplaced flag 't'",
    // Behind a comment.
    "global flags not at the start",
    // On a group that never has matched there.
    "which comes later or not at all",
    // Of look-around, which matches nothing more by it.
    "Target of repeat operator is invalid",
];

/// Whatever pattern we take matches at the start of what Python's does, and no other text; what
/// Python does not take is refused, and what else we refuse has a reason that is listed here.
#[test]
fn patterns_mean_what_they_mean_in_python() {
    let directory = TempDir::new().unwrap();
    let mut oracle = Oracle::start(directory.path()).unwrap();
    let mut random = StdRng::seed_from_u64(1);
    let made: Vec<_> = (0..MADE)
        .map(|_| {
            let mut pattern = String::new();
            make(&mut random, &mut pattern, 0);
            pattern
        })
        .collect();
    let written = FIELD.iter().chain(SYNTAX).copied();
    let mut differences = String::new();
    let mut refused = BTreeMap::new();
    let (mut taken, mut matches) = (0, 0);
    for pattern in written.chain(made.iter().map(String::as_str)) {
        let theirs = oracle.matches(pattern, TEXTS).unwrap();
        let ours = Excludes::compile([pattern]);
        match (ours, theirs) {
            (Ok(_), None) => {
                let _ = writeln!(differences, "{pattern:?}: taken, Python refuses it");
            }
            (Err(PolicyError::Exclude { reason, .. }), Some(_)) => {
                refused.insert(pattern, reason);
            }
            (Err(_), _) => {}
            (Ok(ours), Some(theirs)) => {
                taken += 1;
                for (text, theirs) in TEXTS.iter().zip(theirs) {
                    matches += u32::from(theirs);
                    if ours.matches(text, &mut ExcludesBudget::default()) != theirs {
                        let _ = writeln!(differences, "{pattern:?} on {text:?}: Python {theirs}");
                    }
                }
            }
        }
    }
    println!("{taken} patterns taken, {matches} matches; refused, though Python takes them:");
    for (pattern, reason) in &refused {
        println!("{pattern:?}: {reason}");
        if !REFUSED.iter().any(|known| reason.contains(known)) {
            let _ = writeln!(differences, "{pattern:?}: refused: {reason}");
        }
    }
    assert!(differences.is_empty(), "{differences}");
    assert!(taken > 1_000 && matches > 10_000, "{taken}, {matches}");
}

/// A pattern of some parts, most of which Python takes.
fn make(random: &mut StdRng, out: &mut String, depth: usize) {
    const ATOMS: &[&str] = &[
        "a", "b", "A", "/", "é", "k", "1", " ", "#", "\n", ".", r"\.", r"\w", r"\W", r"\d", r"\D",
        r"\s", r"\S", r"\b", r"\B", "^", "$", r"\A", r"\Z", "[ab]", "[^a]", r"[\w/]", "[a-c]",
        r"[^\W_]", r"[\s\]-]", r"\x61", r"\141", r"\n", "{", "}", "]", "-", r"\1", "(?P=g)",
    ];
    const REPEATS: &[&str] = &[
        "*", "+", "?", "*?", "+?", "??", "*+", "++", "?+", "{2}", "{1,}", "{,2}", "{1,2}?",
        "{0,2}+", "{",
    ];
    const GROUPS: &[&str] = &[
        "(", "(", "(?:", "(?:", "(?>", "(?=", "(?!", "(?<=", "(?<!", "(?i:", "(?s:", "(?x:",
        "(?m:", "(?-i:", "(?a:", "(?P<g>", "(?(1)",
    ];
    const FLAGS: &[&str] = &["(?i)", "(?s)", "(?x)", "(?m)", "(?a)", "(?ix)", "(?sm)"];
    if depth == 0 && random.random_bool(0.3) {
        out.extend(FLAGS.choose(random).copied());
    }
    for _ in 0..random.random_range(1..=4) {
        if depth < 3 && random.random_bool(0.3) {
            out.extend(GROUPS.choose(random).copied());
            make(random, out, depth + 1);
            out.push(')');
        } else {
            out.extend(ATOMS.choose(random).copied());
        }
        if random.random_bool(0.25) {
            out.extend(REPEATS.choose(random).copied());
        }
        if random.random_bool(0.1) {
            out.push('|');
        }
    }
}
