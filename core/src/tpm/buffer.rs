/// A TPM structure that does not parse: which one, where, and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{structure} at byte {offset}: {reason}")]
pub struct StructureError {
    /// TCG name of the structure, e.g. `TPMS_ATTEST`.
    pub structure: &'static str,
    /// Offset from the start of the structure, in bytes.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// Reads one marshalled structure from the front. Nothing is copied or allocated; a size field
/// is believed only after it was compared with the bytes that are left.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    structure: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// A reader over all of `bytes`, which hold one `structure`.
    pub(super) fn new(structure: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            structure,
            bytes,
            offset: 0,
        }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// An error at the current position.
    pub(super) fn error(&self, reason: &'static str) -> StructureError {
        self.error_at(self.offset, reason)
    }

    /// An error at a position noted earlier.
    pub(super) fn error_at(&self, offset: usize, reason: &'static str) -> StructureError {
        StructureError {
            structure: self.structure,
            offset,
            reason,
        }
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], StructureError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let (taken, _) = rest
            .split_at_checked(count)
            .ok_or_else(|| self.error("cut short"))?;
        self.offset += count;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    fn array<const N: usize>(&mut self) -> Result<[u8; N], StructureError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// BYTE.
    pub(super) fn u8(&mut self) -> Result<u8, StructureError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// UINT16.
    pub(super) fn u16(&mut self) -> Result<u16, StructureError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// UINT32.
    pub(super) fn u32(&mut self) -> Result<u32, StructureError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// UINT64.
    pub(super) fn u64(&mut self) -> Result<u64, StructureError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A TPM2B: UINT16 size of at most `limit`, then that many bytes.
    pub(super) fn tpm2b(&mut self, limit: usize) -> Result<&'a [u8], StructureError> {
        let start = self.offset;
        let size = usize::from(self.u16()?);
        if size > limit {
            return Err(self.error_at(start, "size above the structure's limit"));
        }
        self.take(size)
    }

    /// The structure must end here.
    pub(super) fn finish(self) -> Result<(), StructureError> {
        if self.offset == self.bytes.len() {
            Ok(())
        } else {
            Err(self.error("bytes after the end of the structure"))
        }
    }
}

/// Appends a TPM2B: UINT16 size, then the bytes.
///
/// Every caller passes less than 64 KiB; more would be a bug, and is cut rather than mislabelled.
pub(super) fn put_tpm2b(out: &mut Vec<u8>, bytes: &[u8]) {
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&bytes[..usize::from(size)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_field_is_checked_before_it_is_used() {
        let mut reader = Reader::new("TPM2B_DIGEST", &[0xff, 0xff, 1, 2]);
        let error = reader.tpm2b(64).unwrap_err();
        assert_eq!(
            error.to_string(),
            "TPM2B_DIGEST at byte 0: size above the structure's limit"
        );
        let mut reader = Reader::new("TPM2B_DIGEST", &[0, 3, 1, 2]);
        assert_eq!(reader.tpm2b(64).unwrap_err().offset, 2);
    }

    #[test]
    fn trailing_bytes_are_an_error() {
        let mut reader = Reader::new("UINT16", &[0, 3, 1]);
        assert_eq!(reader.u16(), Ok(3));
        assert_eq!(reader.finish().unwrap_err().offset, 2);
    }
}
