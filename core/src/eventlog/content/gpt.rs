use super::cursor::Cursor;
use super::{ContentError, Guid, Text};

/// UEFI_GPT_DATA: the header of a partition table, and its entries in use. Checked as a whole when
/// made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PartitionTable<'l> {
    /// "EFI PART".
    pub signature: [u8; 8],
    /// 0x10000.
    pub revision: u32,
    /// Size of the header, in bytes.
    pub header_size: u32,
    /// CRC of the header.
    pub header_crc: u32,
    /// Where the header is, in blocks; as are all addresses here.
    pub my_lba: u64,
    /// Where its copy is.
    pub alternate_lba: u64,
    /// First usable block.
    pub first_usable_lba: u64,
    /// Last usable block.
    pub last_usable_lba: u64,
    /// The disk.
    pub disk: Guid,
    /// Where the entries are.
    pub entry_lba: u64,
    /// Number of entries on the disk.
    pub entry_count: u32,
    /// Size of an entry on the disk, in bytes.
    pub entry_size: u32,
    /// CRC of the entries.
    pub entries_crc: u32,
    entries: &'l [u8],
    /// Size of one of the entries in the event, in bytes.
    size: usize,
}

/// EFI_PARTITION_ENTRY.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Partition<'l> {
    /// Type.
    pub kind: Guid,
    /// The partition.
    pub id: Guid,
    /// First block.
    pub first_lba: u64,
    /// Last block.
    pub last_lba: u64,
    /// Attributes.
    pub attributes: u64,
    /// Name.
    pub name: Text<'l>,
}

impl<'l> PartitionTable<'l> {
    pub(super) fn parse(data: &'l [u8]) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("UEFI_GPT_DATA", data);
        let signature = cursor.array()?;
        if &signature != b"EFI PART" {
            return Err(cursor.fail("no partition table"));
        }
        let (revision, header_size, header_crc) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        cursor.u32()?;
        let (my_lba, alternate_lba) = (cursor.u64()?, cursor.u64()?);
        let (first_usable_lba, last_usable_lba) = (cursor.u64()?, cursor.u64()?);
        let disk = cursor.guid()?;
        let entry_lba = cursor.u64()?;
        let (entry_count, entry_size, entries_crc) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let count = cursor.u64()?;
        let entries = cursor.rest();
        // The event holds whole entries; firmware takes their size from the header or from the
        // specification, which is the same in all logs seen.
        let size = usize::try_from(entry_size).unwrap_or(usize::MAX);
        let fits = |count: usize| count.checked_mul(size) == Some(entries.len());
        if size < 128 || !usize::try_from(count).is_ok_and(fits) {
            return Err(cursor.fail("the entries have another size than the header says"));
        }
        Ok(Self {
            signature,
            revision,
            header_size,
            header_crc,
            my_lba,
            alternate_lba,
            first_usable_lba,
            last_usable_lba,
            disk,
            entry_lba,
            entry_count,
            entry_size,
            entries_crc,
            entries,
            size,
        })
    }

    /// The partitions in use, in order.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = Partition<'l>> + use<'l> {
        self.entries.chunks_exact(self.size).map(Partition::new)
    }
}

impl<'l> Partition<'l> {
    /// `entry` has at least 128 bytes.
    fn new(entry: &'l [u8]) -> Self {
        let mut cursor = Cursor::new("EFI_PARTITION_ENTRY", entry);
        let guid = |cursor: &mut Cursor<'l>| cursor.guid().unwrap_or(Guid([0; 16]));
        let number = |cursor: &mut Cursor<'l>| cursor.u64().unwrap_or(0);
        Self {
            kind: guid(&mut cursor),
            id: guid(&mut cursor),
            first_lba: number(&mut cursor),
            last_lba: number(&mut cursor),
            attributes: number(&mut cursor),
            name: Text::wide_to_nul(cursor.take(72).unwrap_or_default()),
        }
    }
}
