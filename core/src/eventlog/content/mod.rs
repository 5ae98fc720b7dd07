//! What an event's data say, decoded; and whether its digest vouches for them.
//!
//! A replay proves the digests, never the data beside them. [`Event::measured`] compares the two:
//! what it does not cover is hearsay of whoever wrote the log. The types of events are hearsay as
//! well: a policy that looks for one event has to account for the other ones of its PCR.

/// Bounded little-endian reading.
mod cursor;
/// Device paths and their text.
mod device_path;
/// Partition tables.
mod gpt;
/// GUIDs and their text.
mod guid;
/// Images, firmware and tables that were measured.
mod image;
/// What loaders measure: EV_IPL and EV_EVENT_TAG.
mod loader;
/// Which part of the data the digest is made of.
mod measured;
/// EV_NO_ACTION.
mod no_action;
/// The content in words.
mod show;
/// EFI_SIGNATURE_LIST.
mod signature;
/// Devices that are measured by SPDM.
mod spdm;
/// Texts in 8-bit characters and UTF-16.
mod text;
/// UEFI variables.
mod variable;

pub use cursor::ContentError;
pub use device_path::{DevicePath, Node};
pub use gpt::{Partition, PartitionTable};
pub use guid::Guid;
pub use image::{FirmwareBlob, HandoffTables, ImageLoad};
pub use loader::{Ipl, IplKind, Tag};
pub use measured::Measured;
pub use no_action::{NoAction, SpecId};
pub use signature::{Signature, SignatureList, SignatureLists};
pub use spdm::SpdmDevice;
pub use text::Text;
pub use variable::{BootOrder, LoadOption, Variable, VariableValue};

use super::{Event, EventType};

/// What an event's data say, by its type. Borrows the log.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Content<'l> {
    /// EV_NO_ACTION.
    NoAction(NoAction<'l>),
    /// EV_SEPARATOR: 0 and 0xffffffff end the firmware's measurements, 1 tells of an error.
    Separator(u32),
    /// A text: EV_ACTION, EV_EFI_ACTION, EV_POST_CODE, EV_POST_CODE2, EV_S_CRTM_VERSION,
    /// EV_S_CRTM_CONTENTS, EV_CPU_MICROCODE, EV_OMIT_BOOT_DEVICE_EVENTS, EV_COMPACT_HASH and
    /// others, where the data are one (Windows separates its events with `WBCL`).
    Text(Text<'l>),
    /// EV_S_CRTM_VERSION as a GUID.
    Version(Guid),
    /// EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_BOOT, EV_EFI_VARIABLE_BOOT2,
    /// EV_EFI_VARIABLE_AUTHORITY, EV_EFI_SPDM_DEVICE_POLICY, EV_EFI_SPDM_DEVICE_AUTHORITY.
    Variable(Variable<'l>),
    /// EV_EFI_BOOT_SERVICES_APPLICATION, EV_EFI_BOOT_SERVICES_DRIVER,
    /// EV_EFI_RUNTIME_SERVICES_DRIVER.
    Image(ImageLoad<'l>),
    /// EV_EFI_PLATFORM_FIRMWARE_BLOB, EV_EFI_PLATFORM_FIRMWARE_BLOB2, and EV_POST_CODE,
    /// EV_POST_CODE2, EV_S_CRTM_CONTENTS where they name a blob.
    Blob(FirmwareBlob<'l>),
    /// EV_EFI_HANDOFF_TABLES, EV_EFI_HANDOFF_TABLES2.
    Tables(HandoffTables<'l>),
    /// EV_EFI_GPT_EVENT, EV_EFI_GPT_EVENT2.
    Gpt(PartitionTable<'l>),
    /// EV_IPL.
    Ipl(Ipl<'l>),
    /// EV_EVENT_TAG.
    Tag(Tag<'l>),
    /// EV_EFI_SPDM_FIRMWARE_BLOB, EV_EFI_SPDM_FIRMWARE_CONFIG.
    Spdm(SpdmDevice<'l>),
    /// A type whose data have no defined form, or none that is known.
    Bytes(&'l [u8]),
    /// The data are not what the type calls for.
    Undecodable {
        /// The data.
        data: &'l [u8],
        /// Why.
        reason: ContentError,
    },
}

impl<'l> Event<'l> {
    /// What the data say, **whether or not the digest vouches for them**: see [`Self::believed`].
    pub fn content(&self) -> Content<'l> {
        let data = self.data;
        Content::decode(self.pcr, self.kind, data)
            .unwrap_or_else(|reason| Content::Undecodable { data, reason })
    }
}

impl<'l> Content<'l> {
    fn decode(pcr: u32, kind: EventType, data: &'l [u8]) -> Result<Self, ContentError> {
        Ok(match kind {
            EventType::EV_NO_ACTION => Self::NoAction(NoAction::parse(data)?),
            EventType::EV_SEPARATOR => {
                match data.as_array().map(|data| u32::from_le_bytes(*data)) {
                    Some(number @ (0 | 1 | u32::MAX)) => Self::Separator(number),
                    _ => Self::of_no_structure(kind, data),
                }
            }
            EventType::EV_EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EV_EFI_VARIABLE_BOOT
            | EventType::EV_EFI_VARIABLE_BOOT2
            | EventType::EV_EFI_VARIABLE_AUTHORITY
            | EventType::EV_EFI_SPDM_DEVICE_POLICY
            | EventType::EV_EFI_SPDM_DEVICE_AUTHORITY => {
                Self::Variable(Variable::parse(kind, data)?)
            }
            EventType::EV_EFI_BOOT_SERVICES_APPLICATION
            | EventType::EV_EFI_BOOT_SERVICES_DRIVER
            | EventType::EV_EFI_RUNTIME_SERVICES_DRIVER => Self::Image(ImageLoad::parse(data)?),
            EventType::EV_EFI_PLATFORM_FIRMWARE_BLOB => {
                Self::Blob(FirmwareBlob::parse(data, false)?)
            }
            EventType::EV_EFI_PLATFORM_FIRMWARE_BLOB2 => {
                Self::Blob(FirmwareBlob::parse(data, true)?)
            }
            EventType::EV_EFI_HANDOFF_TABLES => Self::Tables(HandoffTables::parse(data, false)?),
            EventType::EV_EFI_HANDOFF_TABLES2 => Self::Tables(HandoffTables::parse(data, true)?),
            EventType::EV_EFI_GPT_EVENT | EventType::EV_EFI_GPT_EVENT2 => {
                Self::Gpt(PartitionTable::parse(data)?)
            }
            EventType::EV_IPL => Self::Ipl(Ipl::new(pcr, data)),
            EventType::EV_EVENT_TAG => Self::Tag(Tag::parse(data)?),
            EventType::EV_EFI_SPDM_FIRMWARE_BLOB | EventType::EV_EFI_SPDM_FIRMWARE_CONFIG => {
                Self::Spdm(SpdmDevice::parse(data)?)
            }
            _ => Self::of_no_structure(kind, data),
        })
    }

    /// A text, or what firmware is seen to put in its place.
    fn of_no_structure(kind: EventType, data: &'l [u8]) -> Self {
        let blob = match kind {
            EventType::EV_POST_CODE | EventType::EV_S_CRTM_CONTENTS => {
                FirmwareBlob::parse(data, false).ok()
            }
            EventType::EV_POST_CODE2 => FirmwareBlob::parse(data, true).ok(),
            _ => None,
        };
        let text = Some(Text::guess(data)).filter(Text::is_printable);
        match (text, blob, data.as_array()) {
            (Some(text), ..) => Self::Text(text),
            (None, Some(blob), _) => Self::Blob(blob),
            (None, None, Some(guid)) if kind == EventType::EV_S_CRTM_VERSION => {
                Self::Version(Guid(*guid))
            }
            _ => Self::Bytes(data),
        }
    }
}
