use std::sync::Arc;

use zbus::{Connection, fdo, message::Header};

use super::caller::is_root_or_self;
use crate::logs::{LogLevel, Logs};

/// Where it is, whatever the service (org.freedesktop.LogControl1(5)).
pub(super) const PATH: &str = "/org/freedesktop/LogControl1";

/// The log as an object on the bus.
pub(super) struct LogControl1<L>(pub(super) Arc<L>);

#[zbus::interface(name = "org.freedesktop.LogControl1")]
impl<L: Logs> LogControl1<L> {
    /// The least important messages that are logged, by syslog's name. Root may change it.
    #[zbus(property(emits_changed_signal = "false"))]
    fn log_level(&self) -> &'static str {
        self.0.level().name()
    }

    #[zbus(property)]
    async fn set_log_level(
        &self,
        level: String,
        #[zbus(header)] header: Option<Header<'_>>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<()> {
        let allowed = match &header {
            Some(header) => is_root_or_self(header, connection).await,
            None => false,
        };
        if !allowed {
            return Err(fdo::Error::AccessDenied("root alone may do this".into()));
        }
        let level: LogLevel = level
            .parse()
            .map_err(|error| fdo::Error::InvalidArgs(format!("{level:?}: {error}")))?;
        self.0.set_level(level);
        Ok(())
    }

    /// Where messages go: "journal" or "console". It follows from how the service was started, and
    /// stays: another one is refused.
    #[zbus(property(emits_changed_signal = "false"))]
    fn log_target(&self) -> &'static str {
        self.0.target()
    }

    #[zbus(property)]
    fn set_log_target(&self, target: String) -> fdo::Result<()> {
        let present = self.0.target();
        if target == present {
            return Ok(());
        }
        Err(fdo::Error::NotSupported(format!(
            "the log goes to {present}, as the service was started"
        )))
    }

    /// SYSLOG_IDENTIFIER of the messages.
    #[zbus(property(emits_changed_signal = "false"))]
    fn syslog_identifier(&self) -> &'static str {
        self.0.identifier()
    }
}
