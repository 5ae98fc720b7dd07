/// Lines of JSON over a socket: QEMU's monitor and its guest agent.
mod control;
/// An operating system on such a machine.
mod guest;
/// The disks that machines boot from.
mod image;
/// QEMU and a TPM.
mod machine;
/// Machines that were saved as they ran.
mod saved;

use std::path::PathBuf;

use anyhow::Result;

pub use self::guest::{Guest, Setup};
pub use self::image::BootLoader;
use self::image::Image;
pub use self::machine::Cable;
use crate::process::cache;

/// Where images are, and the machines that were booted of them.
fn place() -> Result<PathBuf> {
    Ok(cache()?.join("vm"))
}

/// Makes what all tests start from: the image, and a machine of it with the install tree of the
/// programs beside this one. The first time takes minutes.
pub fn prepare() -> Result<()> {
    saved::installed().map(drop)
}

/// Is firmware for machines here?
pub fn has_firmware() -> bool {
    machine::firmware().is_some()
}

/// What keeps this machine, or this user, from running machines, and cannot be installed.
pub fn obstacles() -> Vec<String> {
    let mut found = Vec::new();
    if !cfg!(target_arch = "x86_64") {
        found.push("an x86-64 machine: guests run the programs that were built here".to_owned());
    }
    if !rustix::process::geteuid().is_root() && !Image::is_made() {
        found.push("the rights of root, to make the machines' image".to_owned());
    }
    found
}
