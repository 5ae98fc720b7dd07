use std::fmt::{self, Display};

use super::{
    Content, FirmwareBlob, HandoffTables, ImageLoad, Ipl, IplKind, NoAction, PartitionTable,
    Signature, SpdmDevice, Tag, Variable, VariableValue,
};

/// Bytes without a text form that are shown as hex.
const HEX_SHOWN: usize = 16;
/// Parts of a list that are shown.
const LIST_SHOWN: usize = 8;

/// One line for people, without control characters; lists and bytes are cut short.
impl Display for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAction(content) => content.fmt(f),
            Self::Separator(0) => f.write_str("separator"),
            Self::Separator(number) => write!(f, "separator {number:#010x}"),
            Self::Text(text) => text.fmt(f),
            Self::Version(guid) => guid.fmt(f),
            Self::Variable(variable) => variable.fmt(f),
            Self::Image(image) => image.fmt(f),
            Self::Blob(blob) => blob.fmt(f),
            Self::Tables(tables) => tables.fmt(f),
            Self::Gpt(table) => table.fmt(f),
            Self::Ipl(ipl) => ipl.fmt(f),
            Self::Tag(tag) => tag.fmt(f),
            Self::Spdm(device) => device.fmt(f),
            Self::Bytes(data) => Hex(data).fmt(f),
            Self::Undecodable { data, reason } => write!(f, "{} (no {reason})", Hex(data)),
        }
    }
}

/// Bytes in hex, cut short.
struct Hex<'l>(&'l [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(data) = self;
        match data.get(..HEX_SHOWN) {
            Some(start) if data.len() > HEX_SHOWN => {
                write!(f, "{}... ({} bytes)", hex::encode(start), data.len())
            }
            _ => write!(f, "{}", hex::encode(data)),
        }
    }
}

/// `separator` between what is shown of `parts`, which are cut short.
fn list<T: Display>(f: &mut fmt::Formatter<'_>, parts: impl Iterator<Item = T>) -> fmt::Result {
    let mut left_out = 0_usize;
    for (index, part) in parts.enumerate() {
        match index {
            0 => write!(f, "{part}")?,
            1..LIST_SHOWN => write!(f, ", {part}")?,
            _ => left_out += 1,
        }
    }
    match left_out {
        0 => Ok(()),
        more => write!(f, ", {more} more"),
    }
}

impl Display for Variable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        match self.value {
            VariableValue::Boolean(on) => f.write_str(if on { "on" } else { "off" }),
            VariableValue::SignatureLists(lists) => match lists.signatures().count() {
                0 => f.write_str("empty"),
                1 => f.write_str("1 signature"),
                count => write!(f, "{count} signatures"),
            },
            VariableValue::Authority(signature) => signature.fmt(f),
            VariableValue::Certificate(data) => Hex(data).fmt(f),
            VariableValue::Sbat(text) => text.fmt(f),
            VariableValue::BootOrder(order) => {
                list(f, order.numbers().map(|number| format!("Boot{number:04X}")))
            }
            VariableValue::LoadOption(option) => {
                let inactive = if option.is_active() {
                    ""
                } else {
                    " (not active)"
                };
                write!(f, "{}{inactive}, {}", option.description, option.path)
            }
            VariableValue::Other if self.data.is_empty() => f.write_str("empty"),
            VariableValue::Other => Hex(self.data).fmt(f),
            VariableValue::Undecodable(reason) => {
                write!(f, "{} (no {reason})", Hex(self.data))
            }
        }
    }
}

impl Display for Signature<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of owner {}", Hex(self.data), self.owner)
    }
}

impl Display for ImageLoad<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.nodes().next().is_none() {
            write!(f, "image at {:#x}, {} bytes", self.location, self.length)
        } else {
            self.path.fmt(f)
        }
    }
}

impl Display for FirmwareBlob<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(description) = self.description {
            write!(f, "{description}, ")?;
        }
        write!(f, "firmware at {:#x}, {} bytes", self.base, self.length)
    }
}

impl Display for HandoffTables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(description) = self.description {
            write!(f, "{description}, ")?;
        }
        f.write_str("tables ")?;
        list(f, self.tables().map(|(guid, _)| guid))
    }
}

impl Display for PartitionTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk {}, partitions ", self.disk)?;
        list(
            f,
            self.partitions().map(|partition| {
                if partition.name.is_empty() {
                    partition.id.to_string()
                } else {
                    partition.name.to_string()
                }
            }),
        )
    }
}

impl Display for Ipl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            IplKind::Section => write!(f, "section {}", self.text),
            IplKind::CommandLine => write!(f, "command line {}", self.text),
            _ => self.text.fmt(f),
        }
    }
}

impl Display for Tag<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "tag {:#010x}", self.id)?,
        }
        match self.text {
            Some(text) => write!(f, ": {text}"),
            None => write!(f, ": {}", Hex(self.data)),
        }
    }
}

impl Display for NoAction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpecId(header) => {
                let [minor, major, errata] = header.version;
                write!(f, "{} {major}.{minor}.{errata}", header.signature)
            }
            Self::StartupLocality(locality) => write!(f, "StartupLocality {locality}"),
            Self::ReferenceManifest {
                signature,
                manifest,
                ..
            } => write!(f, "{signature}, manifest {manifest}"),
            Self::Other { signature, data } => write!(f, "{signature} {}", Hex(data)),
        }
    }
}

impl Display for SpdmDevice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path {
            Some(path) => write!(f, "device {path}"),
            None => write!(f, "device of type {}", self.device_type),
        }
    }
}
