//! Writes the few DER structures that TPM keys and signatures turn into.

/// Definite-form tag, length, content (X.690, 8.1.3 and 10.1).
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    let bytes = length.to_be_bytes();
    match u8::try_from(length) {
        Ok(short @ ..0x80) => out.push(short),
        _ => {
            let skip = bytes.iter().take_while(|&&byte| byte == 0).count();
            let significant = &bytes[skip..];
            // At most eight bytes of length.
            out.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
            out.extend_from_slice(significant);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// SEQUENCE.
pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, parts)
}

/// BIT STRING without unused bits.
pub(super) fn bit_string(parts: &[&[u8]]) -> Vec<u8> {
    let mut all: Vec<&[u8]> = vec![&[0]];
    all.extend_from_slice(parts);
    tlv(0x03, &all)
}

/// INTEGER from an unsigned big-endian number.
pub(super) fn unsigned(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    match &number[zeros..] {
        [] => tlv(0x02, &[&[0]]),
        // A leading bit would make it negative.
        digits @ [0x80..=0xff, ..] => tlv(0x02, &[&[0], digits]),
        digits => tlv(0x02, &[digits]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_minimal_and_positive() {
        assert_eq!(unsigned(&[]), [2, 1, 0]);
        assert_eq!(unsigned(&[0, 0]), [2, 1, 0]);
        assert_eq!(unsigned(&[0, 0, 0x7f]), [2, 1, 0x7f]);
        assert_eq!(unsigned(&[0x80]), [2, 2, 0, 0x80]);
    }

    #[test]
    fn lengths_take_the_shortest_form() {
        assert_eq!(sequence(&[&[5; 127]])[..2], [0x30, 127]);
        assert_eq!(sequence(&[&[5; 128]])[..3], [0x30, 0x81, 128]);
        assert_eq!(sequence(&[&[5; 300]])[..4], [0x30, 0x82, 1, 44]);
        assert_eq!(bit_string(&[&[9]]), [3, 2, 0, 9]);
    }
}
