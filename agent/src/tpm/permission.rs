use std::{
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Access, access},
    io::Errno,
};

/// How long the device may stay root's. udev has many devices to go through when a host boots.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until this user may open the device of `tcti`, if it is a device that is there; not for
/// ever, as the administrator may have meant it so.
///
/// The kernel makes a TPM's device root's, and udev gives it to group tss a little later. `After=
/// tpm2.target` does not hold this program back until then: the target waits for the device only on
/// hosts whose kernel has to load a driver for it first (systemd-tpm2-generator(8)).
pub(crate) async fn wait(tcti: &str) {
    let Some(device) = tcti.strip_prefix("device:").map(Path::new) else {
        return;
    };
    let is_denied = || access(device, Access::READ_OK | Access::WRITE_OK) == Err(Errno::ACCESS);
    if !is_denied() {
        return;
    }
    tracing::info!("waiting until this user may open {}", device.display());
    let start = Instant::now();
    while is_denied() && start.elapsed() < PATIENCE {
        tokio::time::sleep(PAUSE).await;
    }
}
