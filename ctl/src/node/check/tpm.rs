use super::{Check, Host, Seen, State};

const CLASS: &str = "/sys/class/tpm";
const EFI: &str = "/sys/firmware/efi";
const ACPI_TABLE: &str = "/sys/firmware/acpi/tables/TPM2";
const BOOT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// ACPI and PNP ids of TPMs begin with their makers'.
const MAKERS: [(&str, &str); 9] = [
    ("AMD", "AMD"),
    ("GOOG", "Google"),
    ("IFX", "Infineon"),
    ("INTC", "Intel"),
    ("NTC", "Nuvoton"),
    ("NPCT", "Nuvoton"),
    ("SMO", "STMicroelectronics"),
    ("STM", "STMicroelectronics"),
    ("BCM", "Broadcom"),
];

/// The TPM, its banks, and how it is reached.
pub(super) fn look(host: &Host) -> Vec<Check> {
    let device = match host.names(CLASS) {
        Seen::There(names) => names.into_iter().find(|name| {
            let number = name.strip_prefix("tpm");
            number.is_some_and(|number| number.parse::<u8>().is_ok())
        }),
        Seen::Absent | Seen::Denied => None,
    };
    let Some(device) = device else {
        return vec![none(host)];
    };
    let directory = format!("{CLASS}/{device}");
    let version = host.text(&format!("{directory}/tpm_version_major"));
    if version.as_deref() == Some("1") {
        let found = format!("{device}: TPM 1.2");
        return vec![Check::new("TPM", State::Missing, found).advise(
            "a TPM 1.2 makes no quotes that can be used; some firmware can switch the chip to TPM \
             2.0, or has one of its own (fTPM, PTT)",
        )];
    }
    let maker = maker(host, &directory);
    // Before Linux 5.6 the kernel did not tell the version.
    let version = version.map_or_else(|| "TPM".to_owned(), |version| format!("TPM {version}.0"));
    let found = match maker {
        Some(maker) => format!("{device}: {version} by {maker}"),
        None => format!("{device}: {version}, whose maker its driver does not tell"),
    };
    vec![
        Check::good("TPM", found),
        banks(host, &directory),
        way(host, &device),
        condition(host),
    ]
}

/// What systemd.unit(5) says of `ConditionSecurity=tpm2`: the firmware has to tell of the TPM, too.
fn condition(host: &Host) -> Check {
    const NAME: &str = "ConditionSecurity=tpm2";
    let told = [ACPI_TABLE, BOOT_LOG];
    if host.exists(EFI) && told.iter().any(|path| host.exists(path)) {
        return Check::good(NAME, "systemd sees the TPM");
    }
    let found = "systemd sees no TPM: the firmware tells of none by UEFI";
    Check::new(NAME, State::Lacking, found).advise(
        "have the units start all the same: copy any-tpm.conf of \
         /usr/share/doc/troth/examples/troth-agent.service.d and troth-agent.socket.d to the \
         directories of the same names in /etc/systemd/system",
    )
}

fn none(host: &Host) -> Check {
    let check = Check::new("TPM", State::Missing, "the kernel has none");
    let tables = ["TPM2", "TCPA"].map(|table| format!("/sys/firmware/acpi/tables/{table}"));
    if tables.iter().any(|table| host.exists(table)) {
        return check.advise(
            "the firmware tells of a TPM that no driver took: `modprobe tpm_crb` or `modprobe \
             tpm_tis`, and see `journalctl -k --grep=tpm`",
        );
    }
    check.advise(
        "switch it on in the firmware's setup (TPM, fTPM, PTT, security device); a virtual machine \
         needs a virtual TPM 2.0 (libvirt: <tpm model='tpm-crb'> with the backend emulator)",
    )
}

/// The maker, as far as the id of the device says so.
fn maker(host: &Host, directory: &str) -> Option<&'static str> {
    let modalias = host.text(&format!("{directory}/device/modalias"))?;
    let ids = modalias.split(':').skip(1);
    let known = |id: &str| {
        let mut makers = MAKERS.iter();
        makers.find(|(prefix, _)| id.starts_with(prefix))
    };
    ids.filter_map(known).map(|(_, maker)| *maker).next()
}

fn banks(host: &Host, directory: &str) -> Check {
    const NAME: &str = "PCR banks";
    let names = match host.names(directory) {
        Seen::There(names) => names,
        Seen::Absent | Seen::Denied => Vec::new(),
    };
    let banks = names.iter().filter_map(|name| name.strip_prefix("pcr-"));
    let banks: Vec<_> = banks.collect();
    let found = banks.join(", ");
    if banks.is_empty() {
        // Before Linux 5.12.
        return Check::new(NAME, State::Unknown, "this kernel does not tell")
            .advise("`tpm2_getcap pcrs` tells; sha256 has to be among them");
    }
    if banks.iter().all(|bank| *bank == "sha1") {
        return Check::new(NAME, State::Missing, found).advise(
            "SHA-1 proves nothing: `tpm2_pcrallocate sha1:none+sha256:all`, or the firmware's \
             setup, and boot again",
        );
    }
    Check::good(NAME, found)
}

fn way(host: &Host, device: &str) -> Check {
    const NAME: &str = "way to the TPM";
    let number = device.trim_start_matches("tpm");
    let managed = format!("/dev/tpmrm{number}");
    if host.exists(&managed) {
        return Check::good(
            NAME,
            format!("{managed}, with the kernel's resource manager"),
        );
    }
    if host.exists("/usr/sbin/tpm2-abrmd") || host.exists("/usr/bin/tpm2-abrmd") {
        return Check::good(NAME, "tpm2-abrmd is installed").advise(
            "have the agent use it: tcti = \"tabrmd\" in agent.toml, and the drop-in \
             tpm2-abrmd.conf",
        );
    }
    let found = format!("neither {managed} nor tpm2-abrmd");
    Check::new(NAME, State::Missing, found)
        .advise("load the driver with a resource manager (Linux 4.12), or install tpm2-abrmd")
}
