//! Entry points that take arbitrary bytes; they must not panic. As those of `troth_core::fuzz`.

use troth_core::tpm::HashAlgorithm;

use crate::{initrd, pe, rpm::Package};

/// A function that takes arbitrary bytes, and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All entry points by name.
pub const TARGETS: &[Target] = &[("initrd", initrd), ("pe", pe), ("rpm", rpm)];

/// An initrd: every path is whole.
pub fn initrd(data: &[u8]) {
    if let Ok(files) = initrd::files(data, HashAlgorithm::Sha256, &|| false) {
        for file in files {
            assert!(file.path.len() > 1 && file.path.starts_with(b"/"));
        }
    }
}

/// The sections of a PE file are parts of it.
pub fn pe(data: &[u8]) {
    if let Ok(sections) = pe::sections(data) {
        for section in sections {
            assert!(section.name.len() <= 8 && section.content.len() <= data.len());
        }
    }
}

/// The headers of an RPM package.
pub fn rpm(data: &[u8]) {
    if let Ok(package) = Package::read(data) {
        assert!(package.algorithm.is_some() || package.files.is_empty());
        assert!(package.files.iter().all(|file| file.path.starts_with(b"/")));
    }
}
