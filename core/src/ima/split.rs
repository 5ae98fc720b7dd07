//! Text split at an ASCII character, which is in neither part.

use memchr::{memchr, memchr_iter, memrchr_iter};

/// Splits at the first `byte`.
pub(super) fn at(text: &str, byte: u8) -> Option<(&str, &str)> {
    around(text, memchr(byte, text.as_bytes())?)
}

/// Splits at the `nth` one, from 1.
pub(super) fn at_nth(text: &str, byte: u8, nth: usize) -> Option<(&str, &str)> {
    around(
        text,
        memchr_iter(byte, text.as_bytes()).nth(nth.checked_sub(1)?)?,
    )
}

/// Splits at the `nth` one from the end, from 1.
pub(super) fn at_nth_last(text: &str, byte: u8, nth: usize) -> Option<(&str, &str)> {
    around(
        text,
        memrchr_iter(byte, text.as_bytes()).nth(nth.checked_sub(1)?)?,
    )
}

fn around(text: &str, place: usize) -> Option<(&str, &str)> {
    Some((text.get(..place)?, text.get(place + 1..)?))
}
