use std::borrow::Cow;
use std::fmt::{self, Write};

/// A text in an event, in 8-bit characters or UTF-16LE, without its final NUL.
///
/// Prints with escapes for what is not printable or not valid, so that a log cannot write to a
/// terminal what it likes; [`Text::decode`] is the text itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Text<'l> {
    bytes: &'l [u8],
    wide: bool,
}

impl<'l> Text<'l> {
    /// 8-bit characters; one final NUL is left out.
    pub(super) fn narrow(bytes: &'l [u8]) -> Self {
        let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        Self { bytes, wide: false }
    }

    /// UTF-16LE; one final NUL is left out, as is half a character.
    pub(super) fn wide(bytes: &'l [u8]) -> Self {
        let bytes = &bytes[..bytes.len() & !1];
        let bytes = bytes.strip_suffix(&[0, 0]).unwrap_or(bytes);
        Self { bytes, wide: true }
    }

    /// UTF-16LE up to the first NUL.
    pub(super) fn wide_to_nul(bytes: &'l [u8]) -> Self {
        let (units, _) = bytes.as_chunks::<2>();
        let end = units.iter().position(|unit| *unit == [0, 0]);
        Self {
            bytes: &bytes[..2 * end.unwrap_or(units.len())],
            wide: true,
        }
    }

    /// What loaders measure in either encoding without saying in which. UTF-16 ends with a NUL and
    /// is mostly Latin; 8-bit text has no NUL before its end.
    pub(super) fn guess(bytes: &'l [u8]) -> Self {
        let (units, odd) = bytes.as_chunks::<2>();
        let latin = units.iter().filter(|unit| unit[1] == 0).count();
        if odd.is_empty()
            && units.len() > 1
            && units.ends_with(&[[0, 0]])
            && latin * 2 > units.len()
        {
            Self::wide(bytes)
        } else {
            Self::narrow(bytes)
        }
    }

    /// The bytes in the log, without the final NUL.
    pub fn as_bytes(&self) -> &'l [u8] {
        self.bytes
    }

    /// Is it UTF-16LE?
    pub fn is_wide(&self) -> bool {
        self.wide
    }

    /// No characters?
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The text; `None` where it is not valid UTF-8 or UTF-16.
    pub fn decode(&self) -> Option<Cow<'l, str>> {
        if self.wide {
            let text: Result<String, _> = char::decode_utf16(self.units()).collect();
            text.ok().map(Cow::Owned)
        } else {
            std::str::from_utf8(self.bytes).ok().map(Cow::Borrowed)
        }
    }

    /// Is it this text?
    pub fn is(&self, text: &str) -> bool {
        self.strip_prefix(text).is_some_and(|rest| rest.is_empty())
    }

    /// What follows `prefix`, if it starts so.
    pub fn strip_prefix(&self, prefix: &str) -> Option<Self> {
        let length = if self.wide {
            let mut units = self.units();
            let alike = prefix.encode_utf16().all(|unit| units.next() == Some(unit));
            alike.then(|| 2 * prefix.encode_utf16().count())?
        } else {
            self.bytes
                .starts_with(prefix.as_bytes())
                .then_some(prefix.len())?
        };
        Some(Self {
            bytes: self.bytes.get(length..)?,
            wide: self.wide,
        })
    }

    /// Are all characters printable, and is there one?
    pub(super) fn is_printable(&self) -> bool {
        let text = self.decode().filter(|text| !text.is_empty());
        text.is_some_and(|text| !text.chars().any(|c| is_escaped(c) && !c.is_whitespace()))
    }

    fn units(&self) -> impl Iterator<Item = u16> {
        let (units, _) = self.bytes.as_chunks::<2>();
        units.iter().map(|unit| u16::from_le_bytes(*unit))
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wide {
            for unit in char::decode_utf16(self.units()) {
                match unit {
                    Ok(c) => print(f, c)?,
                    Err(half) => write!(f, "\\u{{{:x}}}", half.unpaired_surrogate())?,
                }
            }
        } else {
            for chunk in self.bytes.utf8_chunks() {
                chunk.valid().chars().try_for_each(|c| print(f, c))?;
                let invalid = chunk.invalid().iter();
                invalid
                    .clone()
                    .try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
            }
        }
        Ok(())
    }
}

fn print(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    if is_escaped(c) {
        write!(f, "{}", c.escape_debug())
    } else {
        f.write_char(c)
    }
}

/// Control characters, invisible ones, and those that change the direction of writing.
fn is_escaped(c: char) -> bool {
    !c.is_ascii_graphic() && c != ' ' && c.escape_debug().len() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn both_encodings_are_recognised_and_compared_alike() {
        let wide = utf16("root=/dev/sda quiet\0");
        for text in [Text::guess(&wide), Text::guess(b"root=/dev/sda quiet\0")] {
            assert_eq!(text.to_string(), "root=/dev/sda quiet");
            assert!(text.is("root=/dev/sda quiet") && !text.is("root=/dev/sda"));
            let rest = text.strip_prefix("root=").unwrap();
            assert_eq!(rest.decode().unwrap(), "/dev/sda quiet");
            assert!(text.strip_prefix("boot").is_none());
        }
        assert!(Text::guess(&wide).is_wide() && !Text::guess(b"ab\0\0").is_wide());
        assert!(!Text::guess(b"\0\0").is_wide(), "nothing is no text");
    }

    #[test]
    fn what_would_move_a_terminals_cursor_is_escaped() {
        let text = Text::narrow(b"a\x1b[2J\n\xff\xe2\x80\xae\xc3\xa4\"'\\");
        assert_eq!(text.to_string(), "a\\u{1b}[2J\\n\\xff\\u{202e}ä\"'\\");
        assert_eq!(text.decode(), None);
        let lone = [0x41, 0, 0, 0xd8];
        assert_eq!(Text::wide(&lone).to_string(), "A\\u{d800}");
        assert_eq!(Text::wide(&lone).decode(), None);
    }
}
