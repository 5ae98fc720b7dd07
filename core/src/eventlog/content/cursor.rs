use super::Guid;

/// What an event's data are not: the structure that their type calls for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{structure}, byte {offset}: {problem}")]
pub struct ContentError {
    /// The structure that does not parse.
    pub structure: &'static str,
    /// Offset from the start of the structure, in bytes.
    pub offset: usize,
    /// What is wrong there.
    pub problem: &'static str,
}

/// Little-endian reading of one structure, with a position for errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'l> {
    rest: &'l [u8],
    offset: usize,
    structure: &'static str,
}

impl<'l> Cursor<'l> {
    pub(super) fn new(structure: &'static str, bytes: &'l [u8]) -> Self {
        Self {
            rest: bytes,
            offset: 0,
            structure,
        }
    }

    pub(super) fn fail(&self, problem: &'static str) -> ContentError {
        ContentError {
            structure: self.structure,
            offset: self.offset,
            problem,
        }
    }

    /// What has not been read.
    pub(super) fn rest(&self) -> &'l [u8] {
        self.rest
    }

    pub(super) fn take(&mut self, size: usize) -> Result<&'l [u8], ContentError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(size)
            .ok_or_else(|| self.fail("ends too early"))?;
        self.rest = rest;
        self.offset += size;
        Ok(taken)
    }

    /// As many bytes as a field of the structure says.
    pub(super) fn take_sized<T>(&mut self, size: T) -> Result<&'l [u8], ContentError>
    where
        usize: TryFrom<T>,
    {
        let size = usize::try_from(size).map_err(|_| self.fail("ends too early"))?;
        self.take(size)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ContentError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ContentError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ContentError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ContentError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ContentError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn guid(&mut self) -> Result<Guid, ContentError> {
        self.array().map(Guid)
    }
}
