use std::{fs::File, io};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};

/// A file in memory, which can be sealed and never be executed.
pub(crate) fn create(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL);
    let made = match made {
        // Linux before 6.3 does not know NOEXEC_SEAL.
        Err(Errno::INVAL) => memfd_create(name, flags),
        made => made,
    };
    Ok(File::from(made?))
}
