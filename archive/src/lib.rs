//! Which files packages and boot images hold, and with which content, read without unpacking them.
//!
//! Everything here is a function of bytes that may be hostile: lengths are bounded before memory
//! is taken, and what is compressed may not grow without end.

/// What an initrd is compressed with.
mod compression;
/// cpio archives, as the kernel unpacks them.
mod cpio;
/// Entry points that take arbitrary bytes.
pub mod fuzz;
/// Initial RAM file systems: archives one after the other, compressed or not.
pub mod initrd;
/// Sections of PE executables such as unified kernel images.
pub mod pe;
/// Headers of RPM packages.
pub mod rpm;
