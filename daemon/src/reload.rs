//! Reload requests: SIGHUP, as `systemctl reload` sends it to a unit of `Type=notify-reload`.

use std::{convert::Infallible, fmt::Display, io};

use serde::de::DeserializeOwned;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::{self, Component, Options, Place},
    notify,
};

/// `MESSAGE_ID=` of options that wait for a restart.
pub const RESTART_NEEDED: &str = "5379d0c18b304231936f4b31c13a8521";

/// `MESSAGE_ID=` of a new configuration that cannot be used.
pub const CONFIGURATION_REFUSED: &str = "2cb6972dede748728710eda40bf77f96";

/// Options that take effect without a restart.
const CHANGEABLE: [&str; 1] = ["log"];

/// Reads the configuration again whenever it is asked to.
#[derive(Debug)]
pub struct Reload {
    hangups: Signal,
    component: Component,
    place: Place,
    /// What the process was started with.
    started_with: Options,
}

impl Reload {
    /// From now on, SIGHUP does not end the process. Must run inside a tokio runtime.
    pub fn from_signals(
        component: Component,
        place: Place,
        started_with: Options,
    ) -> io::Result<Self> {
        let hangups = signal(SignalKind::hangup())?;
        Ok(Self {
            hangups,
            component,
            place,
            started_with,
        })
    }

    /// Serves requests for as long as the process runs: `apply` makes of the new configuration what
    /// a running process can; the log says which other options wait for a restart. A configuration
    /// that cannot be used changes nothing; `check` refuses what would end a restart.
    pub async fn follow<T: DeserializeOwned, E: Display>(
        mut self,
        check: impl Fn(&T) -> Result<(), E>,
        apply: impl Fn(&T),
    ) -> Infallible {
        while self.hangups.recv().await.is_some() {
            notify::reloading();
            self.reload(&check, &apply);
            notify::reloaded();
        }
        std::future::pending().await
    }

    fn reload<T: DeserializeOwned, E: Display>(
        &self,
        check: &impl Fn(&T) -> Result<(), E>,
        apply: &impl Fn(&T),
    ) {
        let refuse = |error: &dyn Display| {
            tracing::error!(
                message_id = CONFIGURATION_REFUSED,
                "configuration not reloaded, all stays as it was: {error}"
            );
        };
        let loaded = match config::load::<T>(&self.component, &self.place) {
            Ok(loaded) => loaded,
            Err(error) => return refuse(&error),
        };
        if let Err(error) = check(&loaded.config) {
            return refuse(&error);
        }
        apply(&loaded.config);
        let mut changed = loaded.options.changed_since(&self.started_with);
        changed.retain(|option| !CHANGEABLE.contains(&option.as_str()));
        if changed.is_empty() {
            tracing::info!("configuration reloaded");
        } else {
            let changed = changed.join(", ");
            tracing::warn!(
                message_id = RESTART_NEEDED,
                options = changed,
                "configuration reloaded; a restart is needed for {changed}"
            );
        }
    }
}
