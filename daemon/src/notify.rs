//! sd_notify(3). Outside a service manager these do nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// READY=1 with a first STATUS=.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// STATUS=, one line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// STOPPING=1.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// How often to feed the watchdog: half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises.
/// `None` when the unit has none.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|interval| interval / 2)
}

/// WATCHDOG=1. Send it only from the path whose health it vouches for.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
