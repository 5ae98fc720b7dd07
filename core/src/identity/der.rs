use super::IdentityError;

/// Walks BER with definite lengths, which need not be minimal.
#[derive(Clone, Debug)]
pub(super) struct Der<'a> {
    bytes: &'a [u8],
    offset: usize,
    /// Offset of `bytes` in the whole certificate.
    base: usize,
}

/// One element: tag, length and content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// Tag and length too.
    pub(super) raw: &'a [u8],
    /// Offset in the whole certificate.
    pub(super) at: usize,
}

impl<'a> Der<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            offset: 0,
            base: 0,
        }
    }

    /// The tag of the next element; `None` at the end.
    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.offset).copied()
    }

    /// The next element.
    pub(super) fn next(&mut self) -> Result<Element<'a>, IdentityError> {
        let at = self.base + self.offset;
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let (header, length) = match rest {
            [_, short @ ..=0x7f, ..] => (2, usize::from(*short)),
            [_, 0x81, length, ..] => (3, usize::from(*length)),
            [_, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
            [_, 0x83, 0, high, low, ..] => (5, usize::from(u16::from_be_bytes([*high, *low]))),
            [_, _, ..] => return Err(malformed(at, "length that no certificate has")),
            _ => return Err(malformed(at, "cut short")),
        };
        let raw = rest
            .get(..header + length)
            .ok_or_else(|| malformed(at, "shorter than its length says"))?;
        self.offset += raw.len();
        Ok(Element {
            tag: raw[0],
            content: &raw[header..],
            raw,
            at,
        })
    }

    /// The next element, if it is of that tag.
    pub(super) fn expect(
        &mut self,
        tag: u8,
        reason: &'static str,
    ) -> Result<Element<'a>, IdentityError> {
        let element = self.next()?;
        if element.tag == tag {
            Ok(element)
        } else {
            Err(malformed(element.at, reason))
        }
    }

    /// The next element, if there is one of that tag.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<Element<'a>>, IdentityError> {
        if self.peek() == Some(tag) {
            self.next().map(Some)
        } else {
            Ok(None)
        }
    }
}

impl<'a> Element<'a> {
    /// What is in it.
    pub(super) fn inside(&self) -> Der<'a> {
        Der {
            bytes: self.content,
            offset: 0,
            base: self.at + self.raw.len() - self.content.len(),
        }
    }
}

pub(super) fn malformed(offset: usize, reason: &'static str) -> IdentityError {
    IdentityError::Certificate { offset, reason }
}
