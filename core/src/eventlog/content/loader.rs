use super::cursor::Cursor;
use super::{ContentError, Text};

/// EV_IPL: what a loader says of a measurement. The profile leaves the form to the loader.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ipl<'l> {
    /// Which loader's form.
    pub kind: IplKind,
    /// The whole text.
    pub text: Text<'l>,
}

/// Forms of EV_IPL.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum IplKind {
    /// GRUB: a command of its script (`grub_cmd: `).
    GrubCommand,
    /// GRUB: the kernel's command line (`kernel_cmdline: `).
    KernelCommandLine,
    /// GRUB: command line of a multiboot module (`module_cmdline: `).
    ModuleCommandLine,
    /// shim: MokList, MokListX, MokListTrusted, MokSBState.
    Mok,
    /// systemd-stub: name of a section of its image (PCR 11); each comes twice, for its name and
    /// for its content.
    Section,
    /// systemd-boot, systemd-stub: command line in UTF-16 (PCR 12).
    CommandLine,
    /// Name of a file, or another text.
    Text,
}

/// EV_EVENT_TAG (TCG_PCClientTaggedEvent).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tag<'l> {
    /// Who defined it, and for what.
    pub id: u32,
    /// Its data, without id and size.
    pub data: &'l [u8],
    /// The data as text, where they are one.
    pub text: Option<Text<'l>>,
}

/// GRUB's labels, which are not part of what it measures.
const LABELS: [(&str, IplKind); 3] = [
    ("grub_cmd: ", IplKind::GrubCommand),
    ("kernel_cmdline: ", IplKind::KernelCommandLine),
    ("module_cmdline: ", IplKind::ModuleCommandLine),
];

/// Tags that are known: those of systemd-boot and systemd-stub (`tpm2-pcr.h`, "UAPI.7"), and of
/// Linux's EFI stub.
const TAGS: [(u32, &str); 10] = [
    (0xf5bc_582a, "loader.conf"),
    (0x6c46_f751, "device tree addon"),
    (0x49dffe0f, "initrd addon"),
    (0xdac0_8e1a, "microcode addon"),
    (0x13ae_d6db, "UKI profile"),
    (0xd5cb_7cbc, "SMBIOS type 1"),
    (0xe0d4_7bc8, "SMBIOS type 2"),
    (0xc0b3_bd23, "SMBIOS type 11"),
    (0x8f3b_22ec, "initrd"),
    (0x8f3b_22ed, "load options"),
];

impl<'l> Ipl<'l> {
    pub(super) fn new(pcr: u32, data: &'l [u8]) -> Self {
        let text = Text::guess(data);
        let kind = LABELS
            .into_iter()
            .find(|(label, _)| text.strip_prefix(label).is_some())
            .map_or_else(|| Self::unlabelled(pcr, text), |(_, kind)| kind);
        Self { kind, text }
    }

    fn unlabelled(pcr: u32, text: Text<'_>) -> IplKind {
        match pcr {
            11 if text.strip_prefix(".").is_some() => IplKind::Section,
            12 if text.is_wide() => IplKind::CommandLine,
            14 if text.strip_prefix("Mok").is_some() => IplKind::Mok,
            _ => IplKind::Text,
        }
    }

    /// The text without GRUB's label: what GRUB measures.
    pub fn argument(&self) -> Text<'l> {
        let mut labels = LABELS.iter();
        labels
            .find_map(|(label, _)| self.text.strip_prefix(label))
            .unwrap_or(self.text)
    }
}

impl<'l> Tag<'l> {
    /// systemd-boot's configuration.
    pub const LOADER_CONF: u32 = 0xf5bc_582a;
    /// The kernel's initrd, by its EFI stub.
    pub const LINUX_INITRD: u32 = 0x8f3b_22ec;
    /// The kernel's command line, by its EFI stub.
    pub const LINUX_LOAD_OPTIONS: u32 = 0x8f3b_22ed;

    pub(super) fn parse(event: &'l [u8]) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("TCG_PCClientTaggedEvent", event);
        let (id, size) = (cursor.u32()?, cursor.u32()?);
        let data = cursor.take_sized(size)?;
        if !cursor.rest().is_empty() {
            return Err(cursor.fail("goes on behind its end"));
        }
        let text = Some(Text::guess(data)).filter(Text::is_printable);
        Ok(Self { id, data, text })
    }

    /// What the tag stands for, where it is known.
    pub fn name(&self) -> Option<&'static str> {
        TAGS.iter()
            .find(|(id, _)| *id == self.id)
            .map(|(_, name)| *name)
    }
}
