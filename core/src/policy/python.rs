//! Python's regular expressions (module `re` of version 3.11, patterns of type `str`), put into the
//! syntax that the Rust engines share.
//!
//! Every construct is either written so that it means the same, or refused: what Rust's engines
//! would take for something else, and what Python would not take. The linear-time engine takes
//! what it can; look-around, references and atomic groups are left to the backtracking one.

/// Flags that hold at a place of the pattern.
#[derive(Clone, Copy, Debug, Default)]
struct Flags {
    ignore_case: bool,
    multi_line: bool,
    dot_all: bool,
    verbose: bool,
    ascii: bool,
}

/// What a quantifier would repeat.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Last {
    Nothing,
    /// Written from this byte of the output on.
    Item(usize, Width),
    Assertion,
    Repeated(Width),
}

/// How many characters something matches: least and most. Look-behind takes what has one width.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Width(u64, u64);

/// What Python counts to.
const UNLIMITED: u64 = u32::MAX as u64;
const ONE: Width = Width(1, 1);

impl Width {
    fn then(self, next: Self) -> Self {
        Self(
            (self.0 + next.0).min(UNLIMITED - 1),
            (self.1 + next.1).min(UNLIMITED),
        )
    }

    fn or(self, other: Self) -> Self {
        Self(self.0.min(other.0), self.1.max(other.1))
    }

    fn times(self, (least, most): (u64, u64)) -> Self {
        Self(
            self.0.saturating_mul(least).min(UNLIMITED - 1),
            self.1.saturating_mul(most).min(UNLIMITED),
        )
    }
}

impl Last {
    fn width(self) -> Width {
        match self {
            Self::Item(_, width) | Self::Repeated(width) => width,
            Self::Nothing | Self::Assertion => Width::default(),
        }
    }
}

/// What a pattern must match of a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scope {
    /// Its beginning (`re.match`).
    Start,
    /// All of it (`re.fullmatch`).
    Whole,
}

struct Translator<'p> {
    scope: Scope,
    source: std::iter::Peekable<std::str::Chars<'p>>,
    out: String,
    /// Capturing groups so far: their names, and their widths once they are closed.
    groups: Vec<(Option<String>, Option<Width>)>,
    depth: usize,
    /// Groups before the outermost look-behind that is open: those that it may refer to.
    before_behind: Option<usize>,
}

type Outcome<T = ()> = Result<T, String>;

/// Deepest nesting of groups.
const MAX_DEPTH: usize = 100;

/// The pattern in Rust's syntax.
///
/// # Errors
/// What Python or Rust does not have.
pub(crate) fn translate(pattern: &str, scope: Scope) -> Outcome<String> {
    let mut translator = Translator {
        scope,
        source: pattern.chars().peekable(),
        out: String::with_capacity(pattern.len() + 8),
        groups: Vec::new(),
        depth: 0,
        before_behind: None,
    };
    let flags = translator.global_flags()?;
    translator.alternatives(flags)?;
    match translator.source.next() {
        None => Ok(translator.out),
        Some(_) => Err("unbalanced parenthesis".to_owned()),
    }
}

impl Translator<'_> {
    /// `(?flags)` at the start: for the whole pattern.
    fn global_flags(&mut self) -> Outcome<Flags> {
        let mut flags = Flags::default();
        let mut all = String::new();
        loop {
            let mut ahead = self.source.clone();
            if (ahead.next(), ahead.next()) != (Some('('), Some('?')) {
                return Ok(flags);
            }
            let mut words = String::new();
            while let Some(c) = ahead.next_if(|c| "aiLmsux".contains(*c)) {
                words.push(c);
            }
            if words.is_empty() || ahead.next() != Some(')') {
                return Ok(flags);
            }
            all.push_str(&words);
            one_kind(&all)?;
            for c in words.chars() {
                set_flag(&mut flags, c, true)?;
            }
            self.source = ahead;
        }
    }

    fn alternatives(&mut self, flags: Flags) -> Outcome<Width> {
        let mut width = self.sequence(flags)?;
        while self.source.next_if_eq(&'|').is_some() {
            self.out.push('|');
            width = width.or(self.sequence(flags)?);
        }
        Ok(width)
    }

    fn sequence(&mut self, flags: Flags) -> Outcome<Width> {
        // Of what stands before the last item.
        let mut width = Width::default();
        let mut last = Last::Nothing;
        while let Some(c) = self.source.next_if(|c| !matches!(c, '|' | ')')) {
            if flags.verbose && c.is_ascii() && matches!(c, ' ' | '\t'..='\r') {
                continue;
            }
            if flags.verbose && c == '#' {
                self.source
                    .by_ref()
                    .take_while(|c| *c != '\n')
                    .for_each(drop);
                continue;
            }
            let start = self.out.len();
            let times = match c {
                '*' => Some((0, UNLIMITED)),
                '+' => Some((1, UNLIMITED)),
                '?' => Some((0, 1)),
                '{' => self.counted()?,
                _ => None,
            };
            if let Some(times) = times {
                last = self.repeat(c, times, last)?;
                continue;
            }
            let next = match c {
                '(' => match self.group(flags)? {
                    Some(width) => Last::Item(start, width),
                    None => continue,
                },
                '[' => {
                    self.class(flags)?;
                    Last::Item(start, ONE)
                }
                '.' => {
                    self.out
                        .push_str(if flags.dot_all { "(?s:.)" } else { "." });
                    Last::Item(start, ONE)
                }
                '^' => {
                    self.out
                        .push_str(if flags.multi_line { "(?m:^)" } else { r"\A" });
                    Last::Assertion
                }
                '$' => {
                    self.end(flags);
                    Last::Assertion
                }
                '\\' => self.escape(flags)?,
                c => {
                    self.literal(c, flags)?;
                    Last::Item(start, ONE)
                }
            };
            width = width.then(last.width());
            last = next;
        }
        Ok(width.then(last.width()))
    }

    /// `$`: at the end, or before a line feed that ends the text.
    fn end(&mut self, flags: Flags) {
        let mut rest = self.source.clone();
        let behind = rest.find(|c| *c != ')');
        let ends = behind.is_none() || (self.depth == 0 && self.source.peek() == Some(&'|'));
        self.out.push_str(if flags.multi_line {
            "(?m:$)"
        } else if ends {
            // Nothing follows that could see the difference.
            match self.scope {
                Scope::Start => r"\n?\z",
                Scope::Whole => r"\z",
            }
        } else {
            r"(?=\n?\z)"
        });
    }

    /// A quantifier and what makes it lazy or possessive.
    fn repeat(&mut self, sign: char, times: (u64, u64), last: Last) -> Outcome<Last> {
        let (start, width) = match last {
            Last::Nothing | Last::Assertion => return Err("nothing to repeat".to_owned()),
            Last::Repeated(_) => return Err("multiple repeat".to_owned()),
            Last::Item(start, width) => (start, width),
        };
        let quantifier = &match (sign, times) {
            ('{', (least, UNLIMITED)) => format!("{{{least},}}"),
            ('{', (least, most)) if least == most => format!("{{{least}}}"),
            ('{', (least, most)) => format!("{{{least},{most}}}"),
            _ => sign.to_string(),
        };
        if self.source.next_if_eq(&'?').is_some() {
            self.out.push_str(quantifier);
            self.out.push('?');
        } else if self.source.next_if_eq(&'+').is_some() {
            self.out.insert_str(start, "(?>");
            self.out.push_str(quantifier);
            self.out.push(')');
        } else {
            self.out.push_str(quantifier);
        }
        Ok(Last::Repeated(width.times(times)))
    }

    /// What follows a `{`: Python takes it for a character unless it is `{n}`, `{n,}`, `{,n}`,
    /// `{n,m}` or `{,}`.
    fn counted(&mut self) -> Outcome<Option<(u64, u64)>> {
        let mut ahead = self.source.clone();
        let mut body = String::new();
        loop {
            match ahead.next() {
                Some('}') => break,
                Some(c @ ('0'..='9' | ',')) if body.len() < 24 => body.push(c),
                _ => return Ok(None),
            }
        }
        if body.is_empty() || body.matches(',').count() > 1 {
            return Ok(None);
        }
        self.source = ahead;
        let (least, most) = body.split_once(',').unwrap_or((&body, &body));
        let least = if least.is_empty() { 0 } else { number(least)? };
        let most = match most {
            "" => UNLIMITED,
            most => number(most)?,
        };
        if most < least {
            return Err("min repeat greater than max repeat".to_owned());
        }
        if least >= UNLIMITED || (most >= UNLIMITED && !body.ends_with(',')) {
            return Err("the repetition number is too large".to_owned());
        }
        Ok(Some((least, most)))
    }

    /// What follows a `(`, to its `)`. `None`: it was a comment.
    fn group(&mut self, flags: Flags) -> Outcome<Option<Width>> {
        if self.source.next_if_eq(&'?').is_none() {
            return self.capture(None, flags).map(Some);
        }
        let unknown = |c: Option<char>| {
            let shown: String = c.into_iter().collect();
            Err(format!("unknown extension ?{shown}"))
        };
        let width = match self.source.next() {
            Some('#') => {
                if !self.source.by_ref().any(|c| c == ')') {
                    return Err("missing ), unterminated comment".to_owned());
                }
                return Ok(None);
            }
            Some('P') => match self.source.next() {
                Some('<') => {
                    let name = self.name('>')?;
                    self.capture(Some(name), flags)?
                }
                Some('=') => {
                    let name = self.name(')')?;
                    let group = self.group_of(&name)?;
                    self.reference(group, flags)?
                }
                c => return unknown(c),
            },
            Some(':') => self.inside("(?:", flags)?,
            Some('=') => self.ahead("(?=", flags)?,
            Some('!') => self.ahead("(?!", flags)?,
            Some('>') => self.inside("(?>", flags)?,
            Some('<') => match self.source.next() {
                Some('=') => self.behind("(?<=", flags)?,
                Some('!') => self.behind("(?<!", flags)?,
                c => return unknown(c),
            },
            Some('(') => self.conditional(flags)?,
            Some(c @ ('-' | 'a'..='z' | 'L')) => self.flagged(c, flags)?,
            c => return unknown(c),
        };
        Ok(Some(width))
    }

    fn ahead(&mut self, open: &str, flags: Flags) -> Outcome<Width> {
        self.inside(open, flags).map(|_| Width::default())
    }

    fn behind(&mut self, open: &str, flags: Flags) -> Outcome<Width> {
        let outer = self.before_behind;
        self.before_behind = outer.or(Some(self.groups.len()));
        let Width(least, most) = self.inside(open, flags)?;
        self.before_behind = outer;
        if least != most {
            return Err("look-behind requires fixed-width pattern".to_owned());
        }
        Ok(Width::default())
    }

    fn inside(&mut self, open: &str, flags: Flags) -> Outcome<Width> {
        self.out.push_str(open);
        self.enter()?;
        let width = self.alternatives(flags)?;
        self.depth -= 1;
        self.close()?;
        Ok(width)
    }

    /// One group deeper, for whatever kind of group.
    fn enter(&mut self) -> Outcome {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} groups in one another"));
        }
        Ok(())
    }

    fn close(&mut self) -> Outcome {
        match self.source.next() {
            Some(')') => {
                self.out.push(')');
                Ok(())
            }
            _ => Err("missing ), unterminated subpattern".to_owned()),
        }
    }

    fn capture(&mut self, name: Option<String>, flags: Flags) -> Outcome<Width> {
        if name.is_some() && self.groups.iter().any(|(other, _)| *other == name) {
            return Err("redefinition of a group name".to_owned());
        }
        let group = self.groups.len();
        self.groups.push((name, None));
        // Groups are told apart by their numbers alone.
        let width = self.inside("(", flags)?;
        if let Some((_, closed)) = self.groups.get_mut(group) {
            *closed = Some(width);
        }
        Ok(width)
    }

    /// `(?(1)yes|no)` and `(?(name)yes|no)`.
    fn conditional(&mut self, flags: Flags) -> Outcome<Width> {
        let name = self.name_or_number()?;
        let group = match number(&name) {
            Ok(group) => usize::try_from(group).unwrap_or(usize::MAX),
            Err(_) => self.group_of(&name)?,
        };
        if group == 0 || group > self.groups.len() {
            return Err(format!(
                "condition on group {name}, which comes later or not at all"
            ));
        }
        self.is_before_behind(group)?;
        self.out.push_str(&format!("(?({group})"));
        self.enter()?;
        let yes = self.sequence(flags)?;
        self.out.push('|');
        let mut no = Width(0, yes.1);
        if self.source.next_if_eq(&'|').is_some() {
            no = self.sequence(flags)?;
        }
        self.depth -= 1;
        if self.source.peek() == Some(&'|') {
            return Err("conditional with more than two branches".to_owned());
        }
        self.close()?;
        Ok(yes.or(no))
    }

    /// `(?flags-flags:...)`, of which the first letter is given.
    fn flagged(&mut self, first: char, mut flags: Flags) -> Outcome<Width> {
        let (mut on, mut c) = (true, Some(first));
        let (mut turned_on, mut turned_off) = (String::new(), String::new());
        loop {
            match c {
                Some('-') if on => on = false,
                Some(':') if !on && turned_off.is_empty() => {
                    return Err("missing flag".to_owned());
                }
                Some(':') => break,
                Some(')') => {
                    return Err("global flags not at the start; write (?flags:...)".to_owned());
                }
                Some(c) => {
                    set_flag(&mut flags, c, on)?;
                    if on { &mut turned_on } else { &mut turned_off }.push(c);
                }
                None => return Err("missing - , : or )".to_owned()),
            }
            c = self.source.next();
        }
        one_kind(&turned_on)?;
        if turned_off.contains(|c| turned_on.contains(c)) {
            return Err("flag turned on and off".to_owned());
        }
        self.inside("(?:", flags)
    }

    /// A name of a group, up to `end`.
    fn name(&mut self, end: char) -> Outcome<String> {
        let mut name = String::new();
        loop {
            match self.source.next() {
                Some(c) if c == end => break,
                Some(c) => name.push(c),
                None => return Err("unterminated group name".to_owned()),
            }
        }
        let mut chars = name.chars();
        let first = chars.next().is_some_and(|c| c.is_alphabetic() || c == '_');
        if first && chars.all(|c| c.is_alphanumeric() || c == '_') {
            Ok(name)
        } else {
            Err(format!("bad group name {name:?}"))
        }
    }

    fn name_or_number(&mut self) -> Outcome<String> {
        let mut digits = String::new();
        let mut ahead = self.source.clone();
        while let Some(c) = ahead.next_if(char::is_ascii_digit) {
            digits.push(c);
        }
        if !digits.is_empty() && ahead.next_if_eq(&')').is_some() {
            self.source = ahead;
            return Ok(digits);
        }
        self.name(')')
    }

    fn group_of(&self, name: &str) -> Outcome<usize> {
        let mut groups = self.groups.iter();
        let place = groups.position(|(other, _)| other.as_deref() == Some(name));
        place
            .map(|place| place + 1)
            .ok_or_else(|| format!("unknown group name {name:?}"))
    }

    fn reference(&mut self, group: usize, flags: Flags) -> Outcome<Width> {
        let width = match group.checked_sub(1).and_then(|at| self.groups.get(at)) {
            Some((_, Some(width))) => *width,
            Some((_, None)) => return Err("cannot refer to an open group".to_owned()),
            None => return Err(format!("invalid group reference {group}")),
        };
        self.is_before_behind(group)?;
        if flags.ignore_case {
            return Err("a reference to a group under the flag i is not supported".to_owned());
        }
        // In a group: a digit may follow.
        self.out.push_str(&format!(r"(?:\{group})"));
        Ok(width)
    }

    /// May the look-behind that is open, if one is, refer to the group?
    fn is_before_behind(&self, group: usize) -> Outcome {
        let Some(before) = self.before_behind else {
            return Ok(());
        };
        let open = |(_, width): &(_, Option<Width>)| width.is_none();
        if group > before {
            return Err("look-behind refers to a group inside of it".to_owned());
        }
        if group
            .checked_sub(1)
            .and_then(|at| self.groups.get(at))
            .is_none_or(open)
        {
            return Err("cannot refer to an open group".to_owned());
        }
        Ok(())
    }

    /// What follows a backslash outside of a class.
    fn escape(&mut self, flags: Flags) -> Outcome<Last> {
        let start = self.out.len();
        let Some(c) = self.source.next() else {
            return Err("bad escape (end of pattern)".to_owned());
        };
        match c {
            'A' => self.out.push_str(r"\A"),
            'Z' => self.out.push_str(r"\z"),
            'b' | 'B' => {
                let word = category('w', flags.ascii);
                let (a, b) = if c == 'b' { ("!", "=") } else { ("=", "!") };
                // Rust's own \b has another notion of words.
                self.out.push_str(&format!(
                    "(?:(?<=[{word}])(?{a}[{word}])|(?<![{word}])(?{b}[{word}]))"
                ));
                if c == 'B' {
                    // An empty text has neither, in Python before 3.14.
                    self.out.push_str(r"(?!\A\z)");
                }
            }
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => {
                self.out.push('[');
                self.out
                    .push_str(if c.is_ascii_uppercase() { "^" } else { "" });
                self.out
                    .push_str(category(c.to_ascii_lowercase(), flags.ascii));
                self.out.push(']');
                return Ok(Last::Item(start, ONE));
            }
            '1'..='9' => {
                let digits = self.digits(c);
                let width = match digits.len() {
                    3 => {
                        self.literal(octal(&digits)?, flags)?;
                        ONE
                    }
                    _ => {
                        let group = usize::try_from(number(&digits)?).unwrap_or(usize::MAX);
                        self.reference(group, flags)?
                    }
                };
                return Ok(Last::Item(start, width));
            }
            c => {
                let c = self.character(c)?;
                self.literal(c, flags)?;
                return Ok(Last::Item(start, ONE));
            }
        }
        Ok(Last::Assertion)
    }

    /// The digits of `\1` or `\12`, or of the octal `\123`.
    fn digits(&mut self, first: char) -> String {
        let mut digits = String::from(first);
        if let Some(second) = self.source.next_if(char::is_ascii_digit) {
            digits.push(second);
            let is_octal = |c: &char| ('0'..='7').contains(c);
            if digits.chars().all(|c| is_octal(&c)) {
                digits.extend(self.source.next_if(is_octal));
            }
        }
        digits
    }

    /// The character that an escape stands for, both in classes and outside.
    fn character(&mut self, c: char) -> Outcome<char> {
        Ok(match c {
            'a' => '\x07',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            '0' => {
                let mut digits = String::from(c);
                while digits.len() < 3
                    && let Some(digit) = self.source.next_if(|c| ('0'..='7').contains(c))
                {
                    digits.push(digit);
                }
                octal(&digits)?
            }
            'x' => self.code(c, 2)?,
            'u' => self.code(c, 4)?,
            'U' => self.code(c, 8)?,
            'N' => return Err(r"\N{...} is not supported; write the character".to_owned()),
            c if c.is_ascii_alphanumeric() => return Err(format!(r"bad escape \{c}")),
            c => c,
        })
    }

    fn code(&mut self, kind: char, size: usize) -> Outcome<char> {
        let mut digits = String::new();
        while digits.len() < size
            && let Some(digit) = self.source.next_if(char::is_ascii_hexdigit)
        {
            digits.push(digit);
        }
        let code = u32::from_str_radix(&digits, 16).ok();
        let c = code
            .filter(|_| digits.len() == size)
            .and_then(char::from_u32);
        c.ok_or_else(|| format!(r"bad escape \{kind}{digits}"))
    }

    fn literal(&mut self, c: char, flags: Flags) -> Outcome {
        if flags.ignore_case {
            let variants = variants(c, flags.ascii)?;
            if variants.len() > 1 {
                self.out.push('[');
                self.out.extend(variants);
                self.out.push(']');
                return Ok(());
            }
        }
        push_escaped(&mut self.out, c);
        Ok(())
    }

    /// A character class, from after its `[` to its `]`.
    fn class(&mut self, flags: Flags) -> Outcome {
        self.out.push('[');
        if self.source.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        let mut empty = true;
        loop {
            let c = self.class_next()?;
            if c == ']' && !empty {
                break;
            }
            empty = false;
            let low = self.member(c, flags)?;
            if self.source.next_if_eq(&'-').is_none() {
                self.push_member(low, flags)?;
                continue;
            }
            let c = self.class_next()?;
            if c == ']' {
                self.push_member(low, flags)?;
                self.out.push_str(r"\-");
                break;
            }
            match (low, self.member(c, flags)?) {
                (Member::Char(low), Member::Char(high)) if low <= high => {
                    self.push_range(low, high, flags)?;
                }
                _ => return Err("bad character range".to_owned()),
            }
        }
        self.out.push(']');
        Ok(())
    }

    fn class_next(&mut self) -> Outcome<char> {
        let c = self.source.next();
        c.ok_or_else(|| "unterminated character set".to_owned())
    }

    fn member(&mut self, c: char, flags: Flags) -> Outcome<Member> {
        if c != '\\' {
            return Ok(Member::Char(c));
        }
        Ok(match self.class_next()? {
            c @ ('d' | 's' | 'w') => Member::Set(category(c, flags.ascii).to_owned()),
            c @ ('D' | 'S' | 'W') => {
                let set = category(c.to_ascii_lowercase(), flags.ascii);
                Member::Set(format!("[^{set}]"))
            }
            'b' => Member::Char('\x08'),
            c @ '1'..='7' => {
                let mut digits = String::from(c);
                while digits.len() < 3
                    && let Some(digit) = self.source.next_if(|c| ('0'..='7').contains(c))
                {
                    digits.push(digit);
                }
                Member::Char(octal(&digits)?)
            }
            c => Member::Char(self.character(c)?),
        })
    }

    fn push_member(&mut self, member: Member, flags: Flags) -> Outcome {
        match member {
            Member::Set(set) => self.out.push_str(&set),
            Member::Char(c) if flags.ignore_case => {
                for variant in variants(c, flags.ascii)? {
                    push_escaped(&mut self.out, variant);
                }
            }
            Member::Char(c) => push_escaped(&mut self.out, c),
        }
        Ok(())
    }

    fn push_range(&mut self, low: char, high: char, flags: Flags) -> Outcome {
        push_escaped(&mut self.out, low);
        self.out.push('-');
        push_escaped(&mut self.out, high);
        if !flags.ignore_case {
            return Ok(());
        }
        if !flags.ascii && !high.is_ascii() {
            return Err("a range beyond ASCII under the flag i is not supported".to_owned());
        }
        for c in ('A'..='Z')
            .chain('a'..='z')
            .filter(|c| (low..=high).contains(c))
        {
            self.out.extend(variants(c, flags.ascii)?);
        }
        Ok(())
    }
}

/// A part of a class: one character, or more of them.
enum Member {
    Char(char),
    Set(String),
}

/// Of the flags a, u and L, one pattern or group has one.
fn one_kind(flags: &str) -> Outcome {
    if flags.contains('a') && flags.contains('u') {
        return Err("the flags a and u are incompatible".to_owned());
    }
    Ok(())
}

fn set_flag(flags: &mut Flags, flag: char, on: bool) -> Outcome {
    match flag {
        'i' => flags.ignore_case = on,
        'm' => flags.multi_line = on,
        's' => flags.dot_all = on,
        'x' => flags.verbose = on,
        'a' if on => flags.ascii = true,
        'u' if on => flags.ascii = false,
        'L' => return Err("cannot use the flag L with text".to_owned()),
        _ => return Err(format!("unknown or misplaced flag {flag:?}")),
    }
    Ok(())
}

/// Members of `\d`, `\s` and `\w`, as Python has them: of `str.isdecimal`, `isspace` and `isalnum`.
fn category(of: char, ascii: bool) -> &'static str {
    match (of, ascii) {
        ('d', false) => r"\p{Nd}",
        ('d', true) => "0-9",
        ('s', false) => r"\s\x1c-\x1f",
        ('s', true) => r"\t-\r\x20",
        (_, false) => r"\p{L}\p{N}_",
        (_, true) => "0-9A-Za-z_",
    }
}

/// All characters that `c` matches under the flag i.
fn variants(c: char, ascii: bool) -> Outcome<Vec<char>> {
    if c.is_ascii_alphabetic() {
        let mut variants = vec![c.to_ascii_lowercase(), c.to_ascii_uppercase()];
        if !ascii {
            variants.extend_from_slice(match c.to_ascii_lowercase() {
                'i' => &['\u{130}', '\u{131}'],
                'k' => &['\u{212a}'],
                's' => &['\u{17f}'],
                _ => &[],
            });
        }
        return Ok(variants);
    }
    let cased = !c.is_ascii() && (c.to_lowercase().ne([c]) || c.to_uppercase().ne([c]));
    if cased && !ascii {
        return Err(format!(
            "{c:?} under the flag i is not supported: only ASCII letters are"
        ));
    }
    Ok(vec![c])
}

fn push_escaped(out: &mut String, c: char) {
    if c.is_ascii_punctuation() {
        // Rust has meanings for \< and \>.
        if !matches!(
            c,
            '<' | '>' | '_' | '/' | '"' | '\'' | ',' | ';' | ':' | '=' | '!' | '%' | '@' | '`'
        ) {
            out.push('\\');
        }
        out.push(c);
    } else if c.is_ascii_control() || c == ' ' {
        out.push_str(&format!(r"\x{:02x}", u32::from(c)));
    } else {
        out.push(c);
    }
}

fn octal(digits: &str) -> Outcome<char> {
    let code = u32::from_str_radix(digits, 8)
        .ok()
        .filter(|code| *code <= 0o377);
    let c = code.and_then(char::from_u32);
    c.ok_or_else(|| format!(r"octal escape \{digits} outside of range 0-0o377"))
}

fn number(digits: &str) -> Outcome<u64> {
    digits
        .parse()
        .map_err(|_| format!("{digits:?} is no number"))
}
