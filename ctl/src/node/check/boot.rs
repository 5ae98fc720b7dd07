use super::{Check, Host, Seen, State};

const LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
const SYSTEMD_LOG: &str = "/run/log/systemd/tpm2-measure.log";
const EFI: &str = "/sys/firmware/efi";
const VARIABLES: &str = "/sys/firmware/efi/efivars";

/// EFI_GLOBAL_VARIABLE: UEFI, 3.3.
const SECURE_BOOT: &str = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Set by systemd-stub, which is in a unified kernel image.
const STUB: &str = "StubInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// What the boot was measured by, and how far that is told.
pub(super) fn look(host: &Host) -> [Check; 3] {
    [log(host), systemd_log(host), secure_boot(host)]
}

fn log(host: &Host) -> Check {
    const NAME: &str = "boot log";
    match host.read(LOG) {
        Seen::There(bytes) if bytes.is_empty() => Check::new(NAME, State::Lacking, "it is empty")
            .advise("the firmware measures nothing: look for measured boot in its setup"),
        Seen::There(_) => Check::good(NAME, "the firmware's, with its events"),
        Seen::Denied => Check::good(NAME, "there; only root may read it"),
        Seen::Absent if !host.exists("/sys/kernel/security") => securityfs(NAME),
        Seen::Absent => Check::new(NAME, State::Lacking, "the firmware has left none").advise(
            "boot by UEFI, with the TPM switched on before the operating system; without the log \
             only fixed PCR values can be demanded",
        ),
    }
}

fn systemd_log(host: &Host) -> Check {
    const NAME: &str = "systemd's log";
    let by_stub = host.exists(&format!("{VARIABLES}/{STUB}"));
    match (host.exists(SYSTEMD_LOG), by_stub) {
        (true, _) => Check::good(NAME, "measurements of user space"),
        (false, true) => Check::new(NAME, State::Lacking, "there is none").advise(
            "systemd measures user space since version 254 when it was built with TPM support \
             (libtss2): `systemctl status systemd-pcrphase`",
        ),
        (false, false) => Check::good(NAME, "none, and none is needed: no unified kernel image"),
    }
}

fn secure_boot(host: &Host) -> Check {
    const NAME: &str = "Secure Boot";
    if !host.exists(EFI) {
        return Check::new(NAME, State::Lacking, "this host has not booted by UEFI")
            .advise("boot by UEFI: what a legacy BIOS measures says little of what runs");
    }
    // Four bytes of attributes, then the value.
    match host.read(&format!("{VARIABLES}/{SECURE_BOOT}")) {
        Seen::There(bytes) if bytes.get(4) == Some(&1) => Check::good(NAME, "on"),
        Seen::There(_) => Check::new(NAME, State::Lacking, "off").advise(
            "switch it on in the firmware's setup; a boot policy can demand it, and every boot \
             without it is then found",
        ),
        Seen::Denied => Check::new(NAME, State::Unknown, "only root may read it"),
        Seen::Absent => Check::new(
            NAME,
            State::Unknown,
            "efivarfs is not mounted, or has it not",
        )
        .advise("`mount -t efivarfs efivarfs /sys/firmware/efi/efivars`"),
    }
}

/// The kernel's logs are not to be seen at all.
pub(super) fn securityfs(name: &'static str) -> Check {
    Check::new(name, State::Lacking, "securityfs is not mounted")
        .advise("`mount -t securityfs securityfs /sys/kernel/security`; a container has none")
}
