use troth_core::ima::character_for_byte;

/// Appends `bytes` to `out` as they stand between the quotes of a JSON string (RFC 8259, 7).
/// Bytes that are not UTF-8 become the characters that stand for them in a list.
pub(super) fn escape_into(out: &mut Vec<u8>, bytes: &[u8]) {
    // Checking the whole first is many times as fast as looking for pieces.
    if std::str::from_utf8(bytes).is_ok() {
        escape_text(out, bytes);
        return;
    }
    for chunk in bytes.utf8_chunks() {
        escape_text(out, chunk.valid().as_bytes());
        for byte in chunk.invalid() {
            let mut character = [0; 4];
            let character = character_for_byte(*byte).encode_utf8(&mut character);
            out.extend_from_slice(character.as_bytes());
        }
    }
}

fn escape_text(out: &mut Vec<u8>, mut text: &[u8]) {
    while let Some(at) = first_special(text) {
        out.extend_from_slice(&text[..at]);
        match text[at] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 0x0F)]);
            }
        }
        text = &text[at + 1..];
    }
    out.extend_from_slice(text);
}

/// Where the first byte is that must be escaped. A list has megabytes, and this code is compiled
/// for size: so eight bytes at a time.
fn first_special(text: &[u8]) -> Option<usize> {
    let (words, rest) = text.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let found = specials(u64::from_le_bytes(*word));
        if found != 0 {
            return Some(8 * n + found.trailing_zeros() as usize / 8);
        }
    }
    let at = rest
        .iter()
        .position(|&b| b < 0x20 || b == b'"' || b == b'\\')?;
    Some(8 * words.len() + at)
}

/// Zero when no byte of `word` must be escaped; else the lowest bit that is set is in the first
/// that must (a subtraction's borrow may mark bytes behind it, too).
fn specials(word: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, 0x20) | equal(b'"') | equal(b'\\')) & (ONES << 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(bytes: &[u8]) -> String {
        let mut text = vec![b'"'];
        escape_into(&mut text, bytes);
        text.push(b'"');
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn every_byte_reads_back() {
        let ascii: Vec<u8> = (0..128).collect();
        assert_eq!(read_back(&ascii).as_bytes(), ascii);
        assert_eq!(
            read_back("/usr/bin/käse \u{1F9C0}\n".as_bytes()),
            "/usr/bin/käse \u{1F9C0}\n"
        );
    }

    #[test]
    fn what_must_be_escaped_is_found_at_any_place() {
        for special in (0..0x20).chain([b'"', b'\\']) {
            for at in 0..40 {
                // Neighbours that differ from a special byte by one bit or by one.
                let mut text = b"!# ][\x7F!# ][\x7F ]".repeat(3);
                text[at] = special;
                assert_eq!(first_special(&text), Some(at), "{special:#x}");
                assert_eq!(read_back(&text).as_bytes(), text);
            }
        }
        let text = "!# ][\u{A0}\u{FF}".repeat(9);
        assert_eq!(first_special(text.as_bytes()), None);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_told_apart() {
        for bytes in [&b"a\xFFb"[..], b"\xF0\x9F\n", b"\xC3", b"\x80\x80\"\\"] {
            assert_eq!(read_back(bytes), troth_core::ima::list_text(bytes).unwrap());
        }
    }
}
