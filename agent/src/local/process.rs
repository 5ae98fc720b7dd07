use rustix::process::{Signal, getpid, kill_process};
use troth_ipc::{
    logs::{LogLevel, Logs},
    varlink::Process,
};

use super::ProcessLogs;

/// This process, as `io.systemd.service` has one.
#[derive(Clone, Copy, Debug)]
pub struct ThisProcess;

impl Process for ThisProcess {
    fn reload(&self) {
        // As the service manager asks for it.
        if let Err(error) = kill_process(getpid(), Signal::HUP) {
            tracing::warn!(%error, "no reload");
        }
    }

    fn set_log_level(&self, level: LogLevel) {
        ProcessLogs.set_level(level);
    }
}
