use super::cursor::Cursor;
use super::{ContentError, DevicePath, Guid, Text};

/// UEFI_IMAGE_LOAD_EVENT: a PE image, whose Authenticode digest was measured. The data say where
/// it came from, not what it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImageLoad<'l> {
    /// Address in memory.
    pub location: u64,
    /// Size in memory, in bytes.
    pub length: u64,
    /// Address that it was linked for.
    pub link_time_address: u64,
    /// Size of the path according to the event, in bytes.
    pub path_length: u64,
    /// Where it was loaded from; empty for an image that was in memory already.
    pub path: DevicePath<'l>,
}

/// UEFI_PLATFORM_FIRMWARE_BLOB and UEFI_PLATFORM_FIRMWARE_BLOB2: firmware that was measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FirmwareBlob<'l> {
    /// Name, in the second form.
    pub description: Option<Text<'l>>,
    /// Address.
    pub base: u64,
    /// Size, in bytes.
    pub length: u64,
}

/// UEFI_HANDOFF_TABLE_POINTERS and UEFI_HANDOFF_TABLE_POINTERS2: tables that were measured.
/// Checked as a whole when made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HandoffTables<'l> {
    /// Name, in the second form.
    pub description: Option<Text<'l>>,
    tables: &'l [[u8; 24]],
}

impl<'l> ImageLoad<'l> {
    pub(super) fn parse(data: &'l [u8]) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("UEFI_IMAGE_LOAD_EVENT", data);
        let (location, length) = (cursor.u64()?, cursor.u64()?);
        let (link_time_address, path_length) = (cursor.u64()?, cursor.u64()?);
        let path = cursor.take_sized(path_length)?;
        Ok(Self {
            location,
            length,
            link_time_address,
            path_length,
            path: DevicePath::parse(path)?,
        })
    }
}

impl<'l> FirmwareBlob<'l> {
    pub(super) fn parse(data: &'l [u8], described: bool) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("UEFI_PLATFORM_FIRMWARE_BLOB", data);
        let description = description(&mut cursor, described)?;
        let (base, length) = (cursor.u64()?, cursor.u64()?);
        if !cursor.rest().is_empty() {
            return Err(cursor.fail("goes on behind its end"));
        }
        Ok(Self {
            description,
            base,
            length,
        })
    }
}

impl<'l> HandoffTables<'l> {
    pub(super) fn parse(data: &'l [u8], described: bool) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("UEFI_HANDOFF_TABLE_POINTERS", data);
        let description = description(&mut cursor, described)?;
        let count = cursor.u64()?;
        match cursor.rest().as_chunks() {
            (tables, []) if u64::try_from(tables.len()) == Ok(count) => Ok(Self {
                description,
                tables,
            }),
            _ => Err(cursor.fail("another number of tables than it says")),
        }
    }

    /// Which tables (SMBIOS, ACPI, ...), and their addresses.
    pub fn tables(&self) -> impl Iterator<Item = (Guid, u64)> + use<'l> {
        self.tables.iter().filter_map(|table| {
            let mut cursor = Cursor::new("EFI_CONFIGURATION_TABLE", table);
            Some((cursor.guid().ok()?, cursor.u64().ok()?))
        })
    }
}

/// The description that the second forms of structures start with: its size in one byte, the text.
fn description<'l>(
    cursor: &mut Cursor<'l>,
    described: bool,
) -> Result<Option<Text<'l>>, ContentError> {
    if !described {
        return Ok(None);
    }
    let size = cursor.u8()?;
    Ok(Some(Text::guess(cursor.take_sized(size)?)))
}
