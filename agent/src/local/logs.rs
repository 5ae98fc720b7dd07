use tracing::Level;
use troth_daemon::logging;
use troth_ipc::logs::{LogLevel, Logs};

/// The log of this process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessLogs;

impl Logs for ProcessLogs {
    fn level(&self) -> LogLevel {
        match logging::level() {
            None => LogLevel::Emergency,
            Some(Level::ERROR) => LogLevel::Error,
            Some(Level::WARN) => LogLevel::Warning,
            Some(Level::INFO) => LogLevel::Info,
            Some(_) => LogLevel::Debug,
        }
    }

    fn set_level(&self, level: LogLevel) {
        logging::set_level(match level {
            // An error is the most important of what is logged here.
            LogLevel::Emergency | LogLevel::Alert | LogLevel::Critical | LogLevel::Error => {
                Level::ERROR
            }
            LogLevel::Warning => Level::WARN,
            LogLevel::Notice | LogLevel::Info => Level::INFO,
            LogLevel::Debug => Level::DEBUG,
        });
    }

    fn target(&self) -> &'static str {
        match logging::is_journal() {
            true => "journal",
            false => "console",
        }
    }

    fn identifier(&self) -> &'static str {
        "troth-agent"
    }
}
