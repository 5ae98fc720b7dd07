//! sd_notify(3). Outside a service manager these do nothing.

use std::{io, os::fd::BorrowedFd, time::Duration};

use sd_notify::NotifyState;
use tokio::sync::SetOnce;

/// Set when READY=1 was sent.
static READY: SetOnce<()> = SetOnce::const_new();

/// READY=1 with a first STATUS=.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
    // Another time it is set already.
    let _ = READY.set(());
}

/// Returns when [`ready`] was called: from then on the service manager expects the watchdog to be
/// fed.
pub async fn until_ready() {
    READY.wait().await;
}

/// RELOADING=1. A service that is not ready yet is not told to reload, and does not say that it does.
pub fn reloading() {
    if !READY.initialized() {
        return;
    }
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "no monotonic clock"),
    }
}

/// READY=1 after [`reloading`].
pub fn reloaded() {
    if READY.initialized() {
        send(&[NotifyState::Ready]);
    }
}

/// STATUS=, one line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// STOPPING=1.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// FDSTORE=1: the next start of this unit finds a duplicate of `descriptor` among its
/// [`Descriptors`](crate::descriptors::Descriptors) under this name. A unit without
/// `FileDescriptorStoreMax=` keeps nothing.
pub fn keep(name: &str, descriptor: BorrowedFd<'_>) {
    let states = [NotifyState::FdStore, NotifyState::FdName(name)];
    told(sd_notify::notify_with_fds(&states, &[descriptor]));
}

/// FDSTOREREMOVE=1: what was kept under this name is closed.
pub fn forget(name: &str) {
    send(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
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
    told(sd_notify::notify(states));
}

fn told(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
