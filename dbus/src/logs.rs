use std::str::FromStr;

/// The log of a process, which callers may turn up.
pub trait Logs: Send + Sync + 'static {
    /// The least important messages that are logged.
    fn level(&self) -> LogLevel;

    /// Logs messages of this level, and what is more important, from now on.
    fn set_level(&self, level: LogLevel);

    /// Where messages go: `journal` or `console`.
    fn target(&self) -> &'static str;

    /// SYSLOG_IDENTIFIER of the messages.
    fn identifier(&self) -> &'static str;
}

/// How important a message is (syslog(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// `emerg`.
    Emergency,
    /// `alert`.
    Alert,
    /// `crit`.
    Critical,
    /// `err`.
    Error,
    /// `warning`.
    Warning,
    /// `notice`.
    Notice,
    /// `info`.
    Info,
    /// `debug`.
    Debug,
}

/// By number.
const LEVELS: [(LogLevel, &str); 8] = [
    (LogLevel::Emergency, "emerg"),
    (LogLevel::Alert, "alert"),
    (LogLevel::Critical, "crit"),
    (LogLevel::Error, "err"),
    (LogLevel::Warning, "warning"),
    (LogLevel::Notice, "notice"),
    (LogLevel::Info, "info"),
    (LogLevel::Debug, "debug"),
];

impl LogLevel {
    /// Its name, as syslog has it.
    pub fn name(self) -> &'static str {
        LEVELS[self as usize].1
    }

    /// By its number, 0 to 7.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Some(LEVELS.get(usize::from(number))?.0)
    }
}

/// A text that is no level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a level: emerg, alert, crit, err, warning, notice, info, debug or 0 to 7")]
pub struct NoLogLevel;

impl FromStr for LogLevel {
    type Err = NoLogLevel;

    fn from_str(text: &str) -> Result<Self, NoLogLevel> {
        let named = LEVELS.iter().find(|(_, name)| *name == text);
        let numbered = || text.parse().ok().and_then(Self::from_number);
        named
            .map(|(level, _)| *level)
            .or_else(numbered)
            .ok_or(NoLogLevel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_names_and_numbers_of_syslog() {
        for (number, (level, name)) in (0_u8..).zip(LEVELS) {
            assert_eq!(level.name(), name);
            assert_eq!(name.parse(), Ok(level));
            assert_eq!(number.to_string().parse(), Ok(level));
        }
        for other in ["", "8", "-1", "DEBUG", "trace", "debug "] {
            assert_eq!(other.parse::<LogLevel>(), Err(NoLogLevel), "{other:?}");
        }
    }
}
