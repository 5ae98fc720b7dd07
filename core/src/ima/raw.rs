//! Bytes of file names that are not UTF-8.
//!
//! A list travels as a JSON string and a policy is one, so a name must be text. The kernel's names
//! are any bytes. A byte that is not UTF-8 is written as the character U+10FF00 plus its value, of
//! a plane for private use. A file may have a name with that very character: which of the two it
//! is, the template hash tells.

/// What the value of the byte is added to.
const BASE: u32 = 0x10_FF00;

/// The character that stands for `byte`, which is no part of UTF-8 where it is.
pub fn character(byte: u8) -> char {
    char::from_u32(BASE + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// `bytes` as text.
pub(super) fn push_text(out: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|byte| character(*byte)));
    }
}

/// Does any character of `text` stand for a byte?
pub(super) fn is_in(text: &str) -> bool {
    text.as_bytes()
        .windows(3)
        .any(|w| w == b"\xf4\x8f\xbe" || w == b"\xf4\x8f\xbf")
}

/// Appends the bytes that `text` stands for.
pub(super) fn decode_into(out: &mut Vec<u8>, text: &str) {
    for c in text.chars() {
        match u8::try_from(u32::from(c).wrapping_sub(BASE)) {
            Ok(byte) if byte >= 0x80 => out.push(byte),
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back() {
        let all: Vec<u8> = (0..=255)
            .chain([b'a', 0xe2, 0x82, 0xac, 0xe2, 0x82])
            .collect();
        let (mut text, mut back) = (String::new(), Vec::new());
        push_text(&mut text, &all);
        decode_into(&mut back, &text);
        assert_eq!(back, all);
        assert!(is_in(&text) && text.contains('€') && !is_in("/usr/bin/€"));
    }
}
