use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::Process;

/// A mount namespace of its own: what is mounted there, nobody else sees.
#[derive(Debug)]
pub struct MountNamespace {
    holder: Process,
}

impl MountNamespace {
    /// Mounts what `script`, of `sh -e`, does, for as long as the value lives. Its log is in
    /// `directory`. Who is not root is so in there, where the kernel allows that.
    pub fn start(directory: &Path, script: &str) -> Result<Self> {
        let script = format!("{script}\necho mounted\nexec sleep 600\n");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if !is_root() {
            command.arg("--map-root-user");
        }
        command.args(["sh", "-e", "-c", &script]);
        let mut holder = Process::start("mounts", directory, &mut command)?;
        holder
            .wait_for_log(0, |log| log.contains("mounted").then_some(()))
            .context(
                "no mount namespace: that takes root, or a kernel that lets others have user \
                 namespaces; in a chroot, a root directory that is a mount point",
            )?;
        Ok(Self { holder })
    }

    /// A program with its arguments that becomes, inside, the command that follows them.
    pub fn wrapper(&self) -> Vec<String> {
        let of = |kind| format!("/proc/{}/ns/{kind}", self.holder.id());
        let mut wrapper = vec!["nsenter".to_owned(), format!("--mount={}", of("mnt"))];
        if !is_root() {
            wrapper.push(format!("--user={}", of("user")));
            wrapper.push("--preserve-credentials".to_owned());
        }
        wrapper
    }

    /// Where `path`, absolute and as it is inside, is for those outside.
    pub fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.holder.id()).into()
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
