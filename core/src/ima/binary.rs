use std::borrow::Cow;
use std::fmt::Write;

use super::template::Field;
use super::{MAX_ENTRIES, MAX_LINE, Template, raw};

/// Sizes of the template hash: of SHA-1, SHA-256, SHA-384, SHA-512. No file says which it has.
const HASH_SIZES: [usize; 4] = [20, 32, 48, 64];
/// Longest name of a template or of its format, in bytes.
const MAX_TEMPLATE_NAME: usize = 128;

/// A list that cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("entry {entry} at byte {offset} of the binary list: {reason}")]
pub struct ListError {
    /// 0-based index since boot.
    pub entry: u64,
    /// Where the field begins that is not as expected.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// A list as the kernel's ASCII files have it, of any of its files' content: of
/// `binary_runtime_measurements` too, and with the bytes that are not UTF-8 as characters
/// ([`super::Entry::name`]). Numbers of the binary form are little-endian, as on every machine
/// that boots with `ima_canonical_fmt` or is little-endian itself.
///
/// # Errors
/// The entry and offset where a binary list is not one.
pub fn list_text(bytes: &[u8]) -> Result<Cow<'_, str>, ListError> {
    // A number has a zero byte; no line begins with one.
    let head = bytes.get(..4).unwrap_or_default();
    if !head.contains(&0) {
        return Ok(match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => {
                let mut text = String::with_capacity(bytes.len());
                raw::push_text(&mut text, bytes);
                Cow::Owned(text)
            }
        });
    }
    let mut reader = Reader {
        bytes,
        at: 0,
        entry: 0,
    };
    let size = hash_size(bytes).ok_or_else(|| reader.fail("no template of a known name"))?;
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    while reader.at < bytes.len() {
        if reader.entry >= MAX_ENTRIES {
            return Err(reader.fail("more entries than a list may have"));
        }
        write_entry(&mut reader, size, &mut text)?;
        reader.entry += 1;
    }
    Ok(Cow::Owned(text))
}

/// The size with which the first entry has a template's name behind its hash.
fn hash_size(bytes: &[u8]) -> Option<usize> {
    HASH_SIZES.into_iter().find(|size| {
        let mut reader = Reader {
            bytes,
            at: 4 + size,
            entry: 0,
        };
        template(&mut reader).is_ok()
    })
}

fn template<'b>(reader: &mut Reader<'b>) -> Result<(&'b str, Template), ListError> {
    let start = reader.at;
    let name = reader.sized(MAX_TEMPLATE_NAME)?;
    let name = std::str::from_utf8(name).ok();
    let found = name.and_then(|name| Some((name, Template::from_name(name)?)));
    found.ok_or_else(|| reader.fail_at(start, "unknown template"))
}

fn write_entry(reader: &mut Reader<'_>, size: usize, text: &mut String) -> Result<(), ListError> {
    let pcr = reader.number()?;
    let hash = reader.take(size)?;
    let (name, template) = template(reader)?;
    let _ = write!(text, "{pcr:2} ");
    push_hex(text, hash);
    text.push(' ');
    text.push_str(name);
    if template == Template::Ima {
        // Neither has the digest a length, nor the whole of the fields.
        push_hex(with_space(text), reader.take(20)?);
        let name = reader.sized(MAX_LINE)?;
        raw::push_text(with_space(text), name);
        text.push('\n');
        return Ok(());
    }
    let length = reader.number()?;
    let end = usize::try_from(length)
        .ok()
        .filter(|length| *length <= MAX_LINE)
        .and_then(|length| reader.at.checked_add(length))
        .filter(|end| *end <= reader.bytes.len())
        .ok_or_else(|| {
            reader.fail("length of the fields is over the rest of the list, or 1 MiB")
        })?;
    let fields = [Field::Digest, Field::Text].iter();
    for field in fields.chain(template.fields()) {
        let start = reader.at;
        let bytes = reader.sized(MAX_LINE)?;
        text.push(' ');
        if !bytes.is_empty() && write_field(text, *field, bytes).is_none() {
            return Err(reader.fail_at(start, "a field is not of its kind"));
        }
    }
    if reader.at != end {
        return Err(reader.fail("fields are not as long as they say"));
    }
    text.push('\n');
    Ok(())
}

/// A field as the kernel prints it. `None`: it is no such field.
fn write_field(text: &mut String, field: Field, bytes: &[u8]) -> Option<()> {
    match field {
        Field::Digest => {
            let end = bytes.iter().position(|byte| *byte == 0)?;
            let (prefix, digest) = bytes.split_at(end);
            let prefix = std::str::from_utf8(prefix).ok()?;
            prefix.ends_with(':').then(|| text.push_str(prefix))?;
            push_hex(text, &digest[1..]);
        }
        Field::Hex => push_hex(text, bytes),
        Field::Text => {
            let name = bytes.strip_suffix(&[0])?;
            (!name.contains(&0)).then(|| raw::push_text(text, name))?;
        }
        Field::Number(size) => {
            let mut number = [0; 4];
            (bytes.len() == size)
                .then(|| number.get_mut(..size))??
                .copy_from_slice(bytes);
            let _ = write!(text, "{}", u32::from_le_bytes(number));
        }
    }
    Some(())
}

fn with_space(text: &mut String) -> &mut String {
    text.push(' ');
    text
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    entry: u64,
}

impl<'b> Reader<'b> {
    fn take(&mut self, size: usize) -> Result<&'b [u8], ListError> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..size));
        let taken = taken.ok_or_else(|| self.fail("the list ends within an entry"))?;
        self.at += size;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, ListError> {
        let bytes = self.take(4)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    /// What follows its length, of `most` bytes at most.
    fn sized(&mut self, most: usize) -> Result<&'b [u8], ListError> {
        let start = self.at;
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if length > most {
            return Err(self.fail_at(start, "a field is longer than any may be"));
        }
        self.take(length)
    }

    fn fail(&self, reason: &'static str) -> ListError {
        self.fail_at(self.at, reason)
    }

    fn fail_at(&self, offset: usize, reason: &'static str) -> ListError {
        ListError {
            entry: self.entry,
            offset,
            reason,
        }
    }
}
