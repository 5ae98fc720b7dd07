use super::cursor::Cursor;
use super::{ContentError, Guid, Text};

/// EV_NO_ACTION: what a log says without measuring it. Never to be believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NoAction<'l> {
    /// TCG_EfiSpecIDEvent: the header.
    SpecId(SpecId<'l>),
    /// TCG_EfiStartupLocalityEvent: locality of TPM2_Startup.
    StartupLocality(u8),
    /// TCG_Sp800_155_PlatformId_Event and its successors: which reference measurements belong to
    /// the platform.
    ReferenceManifest {
        /// `SP800-155 Event`, `SP800-155 Event2`, `SP800-155 Event3`.
        signature: Text<'l>,
        /// Vendor's number (IANA or other).
        vendor: u32,
        /// The manifest.
        manifest: Guid,
    },
    /// Another signature, of 16 characters.
    Other {
        /// The signature, without final NULs.
        signature: Text<'l>,
        /// What follows it.
        data: &'l [u8],
    },
}

/// TCG_EfiSpecIDEvent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpecId<'l> {
    /// `Spec ID Event03`, and older ones of the format with SHA-1 digests.
    pub signature: Text<'l>,
    /// 0: client, 1: server.
    pub platform_class: u32,
    /// Version of the profile: minor, major, errata.
    pub version: [u8; 3],
    /// Size of UINTN: 1: 32 bits, 2: 64 bits.
    pub uintn_size: u8,
    algorithms: &'l [[u8; 4]],
    /// The vendor's.
    pub vendor_info: &'l [u8],
}

impl<'l> NoAction<'l> {
    pub(super) fn parse(data: &'l [u8]) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("EV_NO_ACTION", data);
        let signature = cursor.take(16)?;
        let end = signature.iter().position(|byte| *byte == 0).unwrap_or(16);
        let text = Text::narrow(&signature[..end]);
        Ok(match &signature[..end] {
            b"Spec ID Event03" | b"Spec ID Event02" | b"Spec ID Event00" => {
                Self::SpecId(SpecId::parse(text, cursor)?)
            }
            b"StartupLocality" => Self::StartupLocality(cursor.u8()?),
            b"SP800-155 Event" | b"SP800-155 Event2" | b"SP800-155 Event3" => {
                Self::ReferenceManifest {
                    signature: text,
                    vendor: cursor.u32()?,
                    manifest: cursor.guid()?,
                }
            }
            _ => Self::Other {
                signature: text,
                data: cursor.rest(),
            },
        })
    }
}

impl<'l> SpecId<'l> {
    fn parse(signature: Text<'l>, mut cursor: Cursor<'l>) -> Result<Self, ContentError> {
        let platform_class = cursor.u32()?;
        let version = cursor.array()?;
        let uintn_size = cursor.u8()?;
        let algorithms = if signature.is("Spec ID Event03") {
            let count = cursor.u32()?;
            let size = u64::from(count) * 4;
            cursor.take_sized(size)?.as_chunks().0
        } else {
            &[]
        };
        let size = cursor.u8()?;
        Ok(Self {
            signature,
            platform_class,
            version,
            uintn_size,
            algorithms,
            vendor_info: cursor.take_sized(size)?,
        })
    }

    /// TPM_ALG_ID and digest size of each bank.
    pub fn algorithms(&self) -> impl Iterator<Item = (u16, u16)> + use<'l> {
        self.algorithms.iter().map(|[a, b, c, d]| {
            let (id, size) = ([*a, *b], [*c, *d]);
            (u16::from_le_bytes(id), u16::from_le_bytes(size))
        })
    }
}
