//! Hex digits, decoded eight at a time: an IMA list is mostly hex, and all of it is decoded.

/// 1 in each byte of a word.
const ONES: u64 = 0x0101_0101_0101_0101;

/// Decodes `hex`, of either case, into `out`. `None`: it is not hex, or not of twice the length.
pub(crate) fn decode_into(hex: &str, out: &mut [u8]) -> Option<()> {
    if hex.len() != out.len().checked_mul(2)? {
        return None;
    }
    let (digits, last_digits) = hex.as_bytes().as_chunks();
    let (bytes, last_bytes) = out.as_chunks_mut();
    let mut bad = 0;
    for (digits, bytes) in digits.iter().zip(bytes) {
        *bytes = eight(*digits, &mut bad);
    }
    let mut padded = [b'0'; 8];
    for (digit, place) in last_digits.iter().zip(&mut padded) {
        *place = *digit;
    }
    for (byte, place) in eight(padded, &mut bad).iter().zip(last_bytes) {
        *place = *byte;
    }
    (bad == 0).then_some(())
}

/// The bytes of `hex`, of either case.
pub(crate) fn decode(hex: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![0; hex.len() / 2];
    decode_into(hex, &mut bytes)?;
    Some(bytes)
}

/// What eight digits are. `bad` is not 0 any more when one of them is none.
fn eight(digits: [u8; 8], bad: &mut u64) -> [u8; 4] {
    let digits = u64::from_le_bytes(digits);
    // Letters have bit 6, and their low half counts from 1. No sum leaves its byte.
    let letters = (digits >> 6) & ONES;
    let values = (digits & (0x0f * ONES)) + 9 * letters;
    // 0x3_ is a number, 0x4_ and 0x6_ are letters;
    let high = digits & ((0xf0 * ONES) ^ (letters << 5));
    *bad |= high ^ (0x30 * ONES + (letters << 4));
    // and numbers are below 10, letters from there up to 15.
    let from_ten = ((values + 6 * ONES) >> 4) & ONES;
    *bad |= (from_ten ^ letters) | (values & (0x10 * ONES));
    // The first of two digits is the higher half; then the bytes move together.
    let pairs = ((values << 4) | (values >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs | (pairs >> 8)) & 0x0000_ffff_0000_ffff;
    let [a, b, _, _, c, d, _, _] = fours.to_le_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_bytes_is_what_the_library_says() {
        // Long enough for vectors, and short ones.
        for (before, after) in [(0, 0), (0, 3), (3, 0), (40, 40)] {
            for pair in 0..=u16::MAX {
                let Ok(pair) = std::str::from_utf8(&pair.to_be_bytes()).map(str::to_owned) else {
                    continue;
                };
                let text = ["a7".repeat(before), pair, "7F".repeat(after)].concat();
                assert_eq!(decode(&text), hex::decode(&text).ok(), "{text}");
            }
        }
        for text in ["", "a", "abc", "ä"] {
            assert_eq!(decode(text), hex::decode(text).ok(), "{text}");
        }
        assert_eq!(decode_into("aabb", &mut [0]), None);
        assert_eq!(decode_into("aa", &mut [0; 2]), None);
    }
}
