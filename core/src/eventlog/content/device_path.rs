use std::fmt::{self, Write};

use super::cursor::Cursor;
use super::{ContentError, Guid, Text};

/// Hardware device path.
const HARDWARE: u8 = 1;
/// ACPI device path.
const ACPI: u8 = 2;
/// Messaging device path.
const MESSAGING: u8 = 3;
/// Media device path.
const MEDIA: u8 = 4;
/// BIOS boot specification device path.
const BBS: u8 = 5;
/// End of a path, or of one of several.
const END: u8 = 0x7f;
/// Whole path ends here.
const END_ENTIRE: u8 = 0xff;
/// A device that INT 13h knows (EDD 3.0), as a hardware vendor's node.
const EDD10: Guid = Guid::from_u128(0xcf31fac5_c24e_11d2_85f3_00a0c93ec93b);

/// An EFI_DEVICE_PATH_PROTOCOL, up to its end node. Checked as a whole when made.
///
/// Prints as text (UEFI, "EFI Device Path Display Format Overview") in the spelling of libefivar,
/// which policies for Keylime are written against: `PciRoot(0x0)/Pci(0x5,0x0)/File(\x.efi)`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DevicePath<'l> {
    bytes: &'l [u8],
}

/// One node of a device path. The end of one of several paths prints as a comma.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Node<'l> {
    /// Type.
    pub kind: u8,
    /// Sub-type.
    pub subtype: u8,
    /// What follows type, sub-type and length.
    pub data: &'l [u8],
}

impl<'l> DevicePath<'l> {
    /// Checks that `bytes` are whole nodes. What follows the end node is left out; a path that has
    /// none ends with `bytes`, as in some firmware.
    pub(super) fn parse(bytes: &'l [u8]) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("EFI_DEVICE_PATH_PROTOCOL", bytes);
        while !cursor.rest().is_empty() {
            let node = Node::read(&mut cursor)?;
            if (node.kind, node.subtype) == (END, END_ENTIRE) {
                break;
            }
        }
        let length = bytes.len() - cursor.rest().len();
        Ok(Self {
            bytes: &bytes[..length],
        })
    }

    /// The nodes, without the end node.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'l>> + use<'l> {
        let mut cursor = Cursor::new("EFI_DEVICE_PATH_PROTOCOL", self.bytes);
        std::iter::from_fn(move || Node::read(&mut cursor).ok())
            .take_while(|node| (node.kind, node.subtype) != (END, END_ENTIRE))
    }

    /// The last file of the path, which is what is loaded: `\EFI\BOOT\BOOTX64.EFI`.
    pub fn file(&self) -> Option<Text<'l>> {
        self.nodes().filter_map(|node| node.file()).last()
    }
}

impl<'l> Node<'l> {
    fn read(cursor: &mut Cursor<'l>) -> Result<Self, ContentError> {
        let [kind, subtype] = cursor.array()?;
        let length = cursor.u16()?;
        let Some(length) = usize::from(length).checked_sub(4) else {
            return Err(cursor.fail("a node is smaller than its header"));
        };
        Ok(Self {
            kind,
            subtype,
            data: cursor.take(length)?,
        })
    }

    /// The name in a file path node.
    pub fn file(&self) -> Option<Text<'l>> {
        ((self.kind, self.subtype) == (MEDIA, 4)).then(|| Text::wide_to_nul(self.data))
    }

    /// The node as its type's text; `None` where it is too short for its type or has no text.
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> Option<fmt::Result> {
        let mut data = Cursor::new("node", self.data);
        let data = &mut data;
        match self.kind {
            HARDWARE => hardware(self.subtype, data, f),
            ACPI => acpi(self.subtype, data, f),
            MESSAGING => messaging(self.subtype, data, f),
            MEDIA => media(*self, data, f),
            BBS => boot_specification(self.subtype, data, f),
            _ => None,
        }
    }
}

impl fmt::Display for DevicePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for node in self.nodes() {
            if !first && node.kind != END {
                f.write_char('/')?;
            }
            first = node.kind == END;
            node.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == END {
            return f.write_char(',');
        }
        // A node that turns out too short half-way has written nothing yet: fields are read first.
        if let Some(written) = self.describe(f) {
            return written;
        }
        match self.kind {
            HARDWARE => write!(f, "HardwarePath({}", self.subtype)?,
            ACPI => write!(f, "AcpiPath({}", self.subtype)?,
            MESSAGING => write!(f, "Msg({}", self.subtype)?,
            MEDIA => write!(f, "MediaPath({}", self.subtype)?,
            kind => write!(f, "Path({kind},{}", self.subtype)?,
        }
        write!(f, ",{})", hex::encode(self.data))
    }
}

fn hardware(subtype: u8, data: &mut Cursor<'_>, f: &mut fmt::Formatter<'_>) -> Option<fmt::Result> {
    Some(match subtype {
        1 => {
            let [function, device] = data.array().ok()?;
            write!(f, "Pci(0x{device:x},0x{function:x})")
        }
        2 => write!(f, "PcCard(0x{:x})", data.u8().ok()?),
        3 => {
            let (kind, start, end) = (data.u32().ok()?, data.u64().ok()?, data.u64().ok()?);
            write!(f, "MemoryMapped({kind},0x{start:x},0x{end:x})")
        }
        4 => {
            let guid = data.guid().ok()?;
            match (guid == EDD10).then(|| data.u32().ok()).flatten() {
                Some(device) => write!(f, "EDD10(0x{device:x})"),
                None => vendor("VenHw", guid, data.rest(), f),
            }
        }
        5 => write!(f, "Ctrl(0x{:x})", data.u32().ok()?),
        6 => {
            let (kind, address) = (data.u8().ok()?, data.u64().ok()?);
            write!(f, "BMC({kind},0x{address:x})")
        }
        _ => return None,
    })
}

fn acpi(subtype: u8, data: &mut Cursor<'_>, f: &mut fmt::Formatter<'_>) -> Option<fmt::Result> {
    Some(match subtype {
        1 => {
            let (hid, uid) = (data.u32().ok()?, data.u32().ok()?);
            match hid {
                0x0a03_41d0 => write!(f, "PciRoot(0x{uid:x})"),
                0x0a08_41d0 => write!(f, "PcieRoot(0x{uid:x})"),
                0x0604_41d0 => write!(f, "Floppy(0x{uid:x})"),
                0x0301_41d0 => write!(f, "Keyboard(0x{uid:x})"),
                0x0501_41d0 => write!(f, "Serial(0x{uid:x})"),
                _ => write!(f, "Acpi(0x{hid:08x},0x{uid:x})"),
            }
        }
        3 => {
            let first = data.u32().ok()?;
            let (rest, _) = data.rest().as_chunks::<4>();
            write!(f, "AcpiAdr(0x{first:x}")
                .and_then(|()| {
                    let mut rest = rest.iter().map(|adr| u32::from_le_bytes(*adr));
                    rest.try_for_each(|adr| write!(f, ",0x{adr:x}"))
                })
                .and_then(|()| f.write_char(')'))
        }
        _ => return None,
    })
}

fn messaging(
    subtype: u8,
    data: &mut Cursor<'_>,
    f: &mut fmt::Formatter<'_>,
) -> Option<fmt::Result> {
    Some(match subtype {
        1 => {
            let ([primary, device], lun) = (data.array().ok()?, data.u16().ok()?);
            write!(f, "Ata({primary},{device},{lun})")
        }
        2 => {
            let (target, lun) = (data.u16().ok()?, data.u16().ok()?);
            write!(f, "SCSI({target},{lun})")
        }
        3 => {
            data.u32().ok()?;
            let (name, lun) = (data.u64().ok()?, data.u64().ok()?);
            write!(f, "Fibre({name:x},{lun:x})")
        }
        5 => {
            let [port, interface] = data.array().ok()?;
            write!(f, "USB({port},{interface})")
        }
        10 => vendor("VenMsg", data.guid().ok()?, data.rest(), f),
        11 => {
            let (address, kind) = (data.array::<32>().ok()?, data.u8().ok()?);
            // Ethernet has six bytes of it.
            let length = if kind < 2 { 6 } else { 32 };
            write!(f, "MAC({},{kind})", hex::encode(&address[..length]))
        }
        12 => {
            let (local, remote) = (data.array::<4>().ok()?, data.array::<4>().ok()?);
            let ports = (data.u16().ok()?, data.u16().ok()?);
            let (protocol, fixed) = (data.u16().ok()?, data.u8().ok()?);
            let [local, remote] = [local, remote].map(core::net::Ipv4Addr::from);
            let (from, to) = ports;
            write!(f, "IPv4({local}:{from},{remote}:{to},{protocol},{fixed})")
        }
        13 => {
            let (local, remote) = (data.array::<16>().ok()?, data.array::<16>().ok()?);
            let ports = (data.u16().ok()?, data.u16().ok()?);
            let (protocol, origin) = (data.u16().ok()?, data.u8().ok()?);
            let [local, remote] = [local, remote].map(core::net::Ipv6Addr::from);
            let (from, to) = ports;
            write!(
                f,
                "IPv6([{local}]:{from},[{remote}]:{to},{protocol},{origin})"
            )
        }
        17 => write!(f, "Unit({})", data.u8().ok()?),
        18 => {
            let (port, multiplier, lun) = (data.u16().ok()?, data.u16().ok()?, data.u16().ok()?);
            write!(f, "Sata({port},{multiplier},{lun})")
        }
        23 => {
            let (namespace, eui) = (data.u32().ok()?, data.array::<8>().ok()?);
            let [a, b, c, d, e, g, h, i] = eui;
            write!(
                f,
                "NVMe(0x{namespace:x},{a:02x}-{b:02x}-{c:02x}-{d:02x}-{e:02x}-{g:02x}-{h:02x}-{i:02x})"
            )
        }
        24 => write!(f, "Uri({})", Text::narrow(data.rest())),
        26 => write!(f, "SD({})", data.u8().ok()?),
        29 => write!(f, "eMMC({})", data.u8().ok()?),
        _ => return None,
    })
}

fn media(node: Node<'_>, data: &mut Cursor<'_>, f: &mut fmt::Formatter<'_>) -> Option<fmt::Result> {
    Some(match node.subtype {
        1 => hard_drive(data, f)?,
        2 => {
            let (entry, start, size) = (data.u32().ok()?, data.u64().ok()?, data.u64().ok()?);
            write!(f, "CDROM({entry},0x{start:x},0x{size:x})")
        }
        3 => vendor("VenMedia", data.guid().ok()?, data.rest(), f),
        4 => write!(f, "File({})", node.file()?),
        5 => write!(f, "Media({})", data.guid().ok()?),
        6 => write!(f, "FvFile({})", data.guid().ok()?),
        7 => write!(f, "FvVol({})", data.guid().ok()?),
        8 => {
            data.u32().ok()?;
            let (start, end) = (data.u64().ok()?, data.u64().ok()?);
            write!(f, "Offset(0x{start:x},0x{end:x})")
        }
        9 => {
            let (start, end) = (data.u64().ok()?, data.u64().ok()?);
            let (kind, instance) = (data.guid().ok()?, data.u16().ok()?);
            write!(f, "Ramdisk(0x{start:x},0x{end:x},{instance},{kind})")
        }
        _ => return None,
    })
}

fn hard_drive(data: &mut Cursor<'_>, f: &mut fmt::Formatter<'_>) -> Option<fmt::Result> {
    let (partition, start, size) = (data.u32().ok()?, data.u64().ok()?, data.u64().ok()?);
    let signature = data.array::<16>().ok()?;
    let [_format, kind] = data.array().ok()?;
    let [a, b, c, d, ..] = signature;
    let written = match kind {
        1 => {
            let serial = u32::from_le_bytes([a, b, c, d]);
            write!(f, "HD({partition},MBR,0x{serial:x}")
        }
        2 => write!(f, "HD({partition},GPT,{}", Guid(signature)),
        kind => write!(f, "HD({partition},{kind},{}", hex::encode(signature)),
    };
    Some(written.and_then(|()| write!(f, ",0x{start:x},0x{size:x})")))
}

fn boot_specification(
    subtype: u8,
    data: &mut Cursor<'_>,
    f: &mut fmt::Formatter<'_>,
) -> Option<fmt::Result> {
    if subtype != 1 {
        return None;
    }
    let (kind, flags) = (data.u16().ok()?, data.u16().ok()?);
    let name = Text::narrow(data.rest());
    Some(match kind {
        1 => write!(f, "BBS(Floppy,{name},0x{flags:x})"),
        2 => write!(f, "BBS(HD,{name},0x{flags:x})"),
        3 => write!(f, "BBS(CDROM,{name},0x{flags:x})"),
        4 => write!(f, "BBS(PCMCIA,{name},0x{flags:x})"),
        5 => write!(f, "BBS(USB,{name},0x{flags:x})"),
        6 => write!(f, "BBS(Network,{name},0x{flags:x})"),
        kind => write!(f, "BBS({kind},{name},0x{flags:x})"),
    })
}

fn vendor(name: &str, guid: Guid, data: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{name}({guid}")?;
    if !data.is_empty() {
        write!(f, ",{}", hex::encode(data))?;
    }
    f.write_char(')')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(hex: &str) -> String {
        let bytes = hex::decode(hex).unwrap();
        DevicePath::parse(&bytes).unwrap().to_string()
    }

    /// What libefivar 37 makes of them; the paths are of machines' boot logs.
    #[test]
    fn paths_print_as_libefivar_prints_them() {
        for (hex, text) in [
            (
                "02010c00d041030a0000000001010600000504012a0001000000000800000000000000f00100\
                 00000000e104cf514c464dbea5c1416cfc54fa910202040430005c004500460049005c0042004f\
                 004f0054005c0042004f004f0054005800360034002e0045004600490000007fff0400",
                "PciRoot(0x0)/Pci(0x5,0x0)/HD(1,GPT,51cf04e1-464c-be4d-a5c1-416cfc54fa91,\
                 0x800,0x1f000)/File(\\EFI\\BOOT\\BOOTX64.EFI)",
            ),
            (
                "04071400c9bdb87cebf8344faaea3ee4af6516a10406140021aa2c4614760345836e8ab6f466\
                 23317fff0400",
                "FvVol(7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1)/\
                 FvFile(462caa21-7614-4503-836e-8ab6f4662331)",
            ),
            (
                "02010c00d041030a00000000010106000004031710000100000000000000000000007fff0400",
                "PciRoot(0x0)/Pci(0x4,0x0)/NVMe(0x1,00-00-00-00-00-00-00-00)",
            ),
            (
                "02010c00d041030a0000000001010600021f03120a000000000000007fff0400",
                "PciRoot(0x0)/Pci(0x1f,0x2)/Sata(0,0,0)",
            ),
            (
                "05012000020080004d54464444414b3531324d42462d31414e315a414248410002010c00d041\
                 030a000000000101060004117fff0400",
                "BBS(HD,MTFDDAK512MBF-1AN1ZABHA,0x80)/PciRoot(0x0)/Pci(0x11,0x4)",
            ),
            (
                "02010c00d041030a00000000010106000411\
                 01041500c5fa31cf4ec2d21185f300a0c93ec93b807fff0400",
                "PciRoot(0x0)/Pci(0x11,0x4)/VenHw(cf31fac5-c24e-11d2-85f3-00a0c93ec93b,80)",
            ),
            (
                "01031800020000000020742d00000000c037272e000000007fff0400",
                "MemoryMapped(2,0x2d742000,0x2e2737c0)",
            ),
            ("7fff0400", ""),
            ("", ""),
        ] {
            let hex = hex.replace(char::is_whitespace, "");
            assert_eq!(shown(&hex), text);
        }
    }

    #[test]
    fn odd_nodes_are_shown_as_they_are() {
        // Too short for its type, of no type, a path without an end, several paths in one.
        assert_eq!(shown("0101050003"), "HardwarePath(1,03)");
        assert_eq!(shown("4207050001"), "Path(66,7,01)");
        assert_eq!(shown("010106000304"), "Pci(0x4,0x3)");
        let two = shown("0101060000007f0104000101060000017fff0400ffff");
        assert_eq!(two, "Pci(0x0,0x0),Pci(0x1,0x0)");
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        for (hex, offset) in [("01010300", 4), ("0101ff0000", 4), ("010106000000ff", 6)] {
            let error = DevicePath::parse(&hex::decode(hex).unwrap()).unwrap_err();
            assert_eq!(error.offset, offset, "{hex}");
        }
    }
}
