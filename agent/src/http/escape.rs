/// Appends `bytes` to `out` as they stand between the quotes of a JSON string (RFC 8259, 7).
/// Bytes that are not UTF-8 become U+FFFD.
pub(super) fn escape_into(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        escape_text(out, chunk.valid().as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{FFFD}".as_bytes());
        }
    }
}

fn escape_text(out: &mut Vec<u8>, mut text: &[u8]) {
    while let Some(at) = text
        .iter()
        .position(|&b| b < 0x20 || b == b'"' || b == b'\\')
    {
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
    fn bytes_that_are_not_utf8_are_replaced_as_std_does() {
        for bytes in [&b"a\xFFb"[..], b"\xF0\x9F\n", b"\xC3", b"\x80\x80\"\\"] {
            assert_eq!(read_back(bytes), String::from_utf8_lossy(bytes));
        }
    }
}
