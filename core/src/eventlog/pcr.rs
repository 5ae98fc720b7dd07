/// What a PCR is called (UAPI.7, "Linux TPM PCR Registry"); `None` for those without a name.
///
/// Messages name PCRs so, beside their numbers.
pub fn pcr_name(pcr: u8) -> Option<&'static str> {
    Some(match pcr {
        0 => "platform-code",
        1 => "platform-config",
        2 => "external-code",
        3 => "external-config",
        4 => "boot-loader-code",
        5 => "boot-loader-config",
        6 => "host-platform",
        7 => "secure-boot-policy",
        9 => "kernel-initrd",
        10 => "ima",
        11 => "kernel-boot",
        12 => "kernel-config",
        13 => "sysexts",
        14 => "shim-policy",
        15 => "system-identity",
        16 => "debug",
        23 => "application-support",
        _ => return None,
    })
}

/// A PCR as messages name it: `PCR 7 (secure-boot-policy)`.
pub(crate) fn named_pcr(pcr: u8) -> String {
    match pcr_name(pcr) {
        Some(name) => format!("PCR {pcr} ({name})"),
        None => format!("PCR {pcr}"),
    }
}
