//! Entry points that take arbitrary bytes; they must not panic. As those of `troth_core::fuzz`.

use crate::{
    config::keylime::{ini, value},
    tls::revocation,
};

/// A function that takes arbitrary bytes, and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All entry points by name.
pub const TARGETS: &[Target] = &[
    ("keylime_ini", keylime_ini),
    ("keylime_list", keylime_list),
    ("revocation_list", revocation_list),
];

/// An INI file of Keylime's.
pub fn keylime_ini(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match ini::parse(&text) {
        Ok(entries) => {
            for entry in entries {
                assert!(!entry.name.is_empty() && entry.value == entry.value.trim_end());
                assert!((1..=text.len()).contains(&entry.line));
            }
        }
        Err(error) => assert!((1..=text.len() + 1).contains(&error.line)),
    }
}

/// A value of Keylime's that is a list.
pub fn keylime_list(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(items) = value::list(&text) {
        assert!(items.iter().map(String::len).sum::<usize>() <= text.len());
    }
}

/// A file of certificate revocation lists. Without a CA none is believed.
pub fn revocation_list(data: &[u8]) {
    for list in revocation::parse(data).unwrap_or_default() {
        assert!(revocation::check_signed(&list, &[]).is_err());
    }
}
