use std::fmt;

/// TCG_EVENTTYPE (PC Client Platform Firmware Profile, table "Events"). Prints as its TCG name,
/// or in hex where it has none.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct EventType(pub u32);

macro_rules! event_types {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl EventType {
            $(#[doc = $doc] pub const $name: Self = Self($value);)*

            /// The TCG name.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// From the TCG name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

event_types! {
    EV_PREBOOT_CERT = 0x0, "Reserved.";
    EV_POST_CODE = 0x1, "Firmware code (deprecated).";
    EV_NO_ACTION = 0x3, "Informative: extends nothing.";
    EV_SEPARATOR = 0x4, "End of the pre-boot measurements of a PCR.";
    EV_ACTION = 0x5, "A text.";
    EV_EVENT_TAG = 0x6, "Tagged event of an operating system or loader.";
    EV_S_CRTM_CONTENTS = 0x7, "Code of the static root of trust.";
    EV_S_CRTM_VERSION = 0x8, "Version of the static root of trust.";
    EV_CPU_MICROCODE = 0x9, "Microcode patch.";
    EV_PLATFORM_CONFIG_FLAGS = 0xa, "Platform configuration.";
    EV_TABLE_OF_DEVICES = 0xb, "List of devices.";
    EV_COMPACT_HASH = 0xc, "Digest chosen by the caller.";
    EV_IPL = 0xd, "Initial program load: what loaders measure.";
    EV_IPL_PARTITION_DATA = 0xe, "Partition data.";
    EV_NONHOST_CODE = 0xf, "Code of a non-host platform.";
    EV_NONHOST_CONFIG = 0x10, "Configuration of a non-host platform.";
    EV_NONHOST_INFO = 0x11, "Presence of a non-host platform.";
    EV_OMIT_BOOT_DEVICE_EVENTS = 0x12, "Boot device events are left out.";
    EV_POST_CODE2 = 0x13, "Firmware code.";
    EV_EFI_VARIABLE_DRIVER_CONFIG = 0x8000_0001, "Secure Boot variable.";
    EV_EFI_VARIABLE_BOOT = 0x8000_0002, "Boot variable.";
    EV_EFI_BOOT_SERVICES_APPLICATION = 0x8000_0003, "EFI application.";
    EV_EFI_BOOT_SERVICES_DRIVER = 0x8000_0004, "EFI boot services driver.";
    EV_EFI_RUNTIME_SERVICES_DRIVER = 0x8000_0005, "EFI runtime services driver.";
    EV_EFI_GPT_EVENT = 0x8000_0006, "Partition table.";
    EV_EFI_ACTION = 0x8000_0007, "A text about an EFI action.";
    EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x8000_0008, "Firmware volume.";
    EV_EFI_HANDOFF_TABLES = 0x8000_0009, "Tables handed to the operating system.";
    EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000_000a, "Firmware volume with description.";
    EV_EFI_HANDOFF_TABLES2 = 0x8000_000b, "Tables with description.";
    EV_EFI_VARIABLE_BOOT2 = 0x8000_000c, "Boot variable, name and data measured.";
    EV_EFI_GPT_EVENT2 = 0x8000_000d, "Partition table, header normalised.";
    EV_EFI_HCRTM_EVENT = 0x8000_0010, "Hardware root of trust, before the firmware.";
    EV_EFI_VARIABLE_AUTHORITY = 0x8000_00e0, "Certificate that allowed an image.";
    EV_EFI_SPDM_FIRMWARE_BLOB = 0x8000_00e1, "Firmware of a device, by SPDM.";
    EV_EFI_SPDM_FIRMWARE_CONFIG = 0x8000_00e2, "Configuration of a device, by SPDM.";
    EV_EFI_SPDM_DEVICE_POLICY = 0x8000_00e3, "SPDM policy.";
    EV_EFI_SPDM_DEVICE_AUTHORITY = 0x8000_00e4, "Authority of an SPDM device.";
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("{:#010x}", self.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_tcg_names_and_hex() {
        assert_eq!(EventType::EV_EFI_GPT_EVENT.to_string(), "EV_EFI_GPT_EVENT");
        assert_eq!(EventType(0xa0b1).to_string(), "0x0000a0b1");
    }
}
