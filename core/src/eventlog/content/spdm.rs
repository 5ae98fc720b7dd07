use super::cursor::Cursor;
use super::{ContentError, DevicePath};

/// TCG_DEVICE_SECURITY_EVENT_DATA, in both forms: firmware or configuration of a device, as the
/// device reports it by SPDM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpdmDevice<'l> {
    /// 1: `SPDM Device Sec`, 2: `SPDM Device Sec2`.
    pub form: u8,
    /// 0: none, 1: PCI, 2: USB.
    pub device_type: u32,
    /// Was the device authenticated? 0: yes (form 2 only).
    pub auth_state: Option<u8>,
    /// Which device (form 2 only).
    pub path: Option<DevicePath<'l>>,
    /// Measurements and the device's context.
    pub data: &'l [u8],
}

impl<'l> SpdmDevice<'l> {
    pub(super) fn parse(event: &'l [u8]) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("TCG_DEVICE_SECURITY_EVENT_DATA", event);
        match &cursor.array::<16>()? {
            b"SPDM Device Sec\0" => {
                cursor.take(8)?;
                Ok(Self {
                    form: 1,
                    device_type: cursor.u32()?,
                    auth_state: None,
                    path: None,
                    data: cursor.rest(),
                })
            }
            b"SPDM Device Sec2" => {
                cursor.take(2)?;
                let auth_state = cursor.u8()?;
                cursor.take(5)?;
                let device_type = cursor.u32()?;
                // Type, length and id of the part that has the measurements.
                cursor.take(16)?;
                let path = cursor.u64()?;
                let path = DevicePath::parse(cursor.take_sized(path)?)?;
                Ok(Self {
                    form: 2,
                    device_type,
                    auth_state: Some(auth_state),
                    path: Some(path),
                    data: cursor.rest(),
                })
            }
            _ => Err(cursor.fail("unknown signature")),
        }
    }
}
