use super::cursor::Cursor;
use super::{ContentError, DevicePath, Guid, Signature, SignatureLists, Text};
use crate::eventlog::EventType;

/// UEFI_VARIABLE_DATA (PC Client profile, "Measuring UEFI Variables").
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variable<'l> {
    /// Namespace of the name.
    pub guid: Guid,
    /// Name.
    pub name: Text<'l>,
    /// Value; for EV_EFI_VARIABLE_AUTHORITY the one signature of it that allowed an image.
    pub data: &'l [u8],
    /// The value, decoded by the variable's name.
    pub value: VariableValue<'l>,
    /// Bytes of the event that the structure does not have; shim adds one.
    pub(super) surplus: usize,
}

/// What a variable's value says.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum VariableValue<'l> {
    /// On or off; a variable that is not set is off: SecureBoot, AuditMode, MokListTrusted.
    Boolean(bool),
    /// PK, KEK, db, dbx, dbt, dbr.
    SignatureLists(SignatureLists<'l>),
    /// The signature that allowed an image: EV_EFI_VARIABLE_AUTHORITY of db, vendor_db, MokList,
    /// Shim.
    Authority(Signature<'l>),
    /// The same as a certificate (DER) without an owner, by older versions of shim.
    Certificate(&'l [u8]),
    /// Revocations by generation: SbatLevel.
    Sbat(Text<'l>),
    /// BootOrder.
    BootOrder(BootOrder<'l>),
    /// Boot####, SysPrep####, Driver####.
    LoadOption(LoadOption<'l>),
    /// A variable whose value has no defined form; it is in `data`.
    Other,
    /// The value is not what its name calls for; it is in `data`.
    Undecodable(ContentError),
}

/// BootOrder: numbers of Boot#### variables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BootOrder<'l> {
    numbers: &'l [[u8; 2]],
}

/// EFI_LOAD_OPTION.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LoadOption<'l> {
    /// LOAD_OPTION_ACTIVE is bit 0.
    pub attributes: u32,
    /// Size of the paths, in bytes.
    pub path_length: u16,
    /// Name in the firmware's menu.
    pub description: Text<'l>,
    /// What is loaded.
    pub path: DevicePath<'l>,
    /// Options for what is loaded.
    pub optional: &'l [u8],
}

impl<'l> Variable<'l> {
    pub(super) fn parse(kind: EventType, event: &'l [u8]) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("UEFI_VARIABLE_DATA", event);
        let guid = cursor.guid()?;
        let (name, size) = (cursor.u64()?, cursor.u64()?);
        let name = name
            .checked_mul(2)
            .ok_or_else(|| cursor.fail("ends too early"))?;
        let name = Text::wide(cursor.take_sized(name)?);
        let data = cursor.take_sized(size)?;
        Ok(Self {
            guid,
            name,
            data,
            value: VariableValue::decode(kind, guid, name, data),
            surplus: cursor.rest().len(),
        })
    }
}

impl<'l> VariableValue<'l> {
    fn decode(kind: EventType, guid: Guid, name: Text<'l>, data: &'l [u8]) -> Self {
        let known = |names: &[&str]| names.iter().any(|known| name.is(known));
        let booleans = ["SecureBoot", "SetupMode", "AuditMode", "DeployedMode"];
        let result = if kind == EventType::EV_EFI_VARIABLE_AUTHORITY {
            if name.is("SbatLevel") {
                Ok(Self::Sbat(Text::narrow(data)))
            } else if known(&["MokListTrusted", "MokSBStateRT"]) {
                boolean(data)
            } else if known(&["db", "vendor_db", "MokList", "MokListRT", "Shim"]) {
                authority(data)
            } else {
                Ok(Self::Other)
            }
        } else if guid == Guid::GLOBAL && known(&booleans) {
            boolean(data)
        } else if (guid == Guid::GLOBAL && known(&["PK", "KEK"]))
            || (guid == Guid::SECURITY_DATABASE && known(&["db", "dbx", "dbt", "dbr"]))
        {
            SignatureLists::parse(data).map(Self::SignatureLists)
        } else if name.is("BootOrder") {
            BootOrder::parse(data).map(Self::BootOrder)
        } else if ["Boot", "SysPrep", "Driver"]
            .iter()
            .any(|kind| is_option(name, kind))
        {
            LoadOption::parse(data).map(Self::LoadOption)
        } else {
            Ok(Self::Other)
        };
        result.unwrap_or_else(Self::Undecodable)
    }
}

fn authority(data: &[u8]) -> Result<VariableValue<'_>, ContentError> {
    match data {
        // A SEQUENCE of the whole length.
        [0x30, 0x82, high, low, rest @ ..]
            if rest.len() == usize::from(u16::from_be_bytes([*high, *low])) =>
        {
            Ok(VariableValue::Certificate(data))
        }
        _ => Signature::parse(data).map(VariableValue::Authority),
    }
}

fn boolean(data: &[u8]) -> Result<VariableValue<'_>, ContentError> {
    match data {
        [] | [0] => Ok(VariableValue::Boolean(false)),
        [1] => Ok(VariableValue::Boolean(true)),
        _ => Err(Cursor::new("boolean variable", data).fail("neither 0 nor 1")),
    }
}

/// Is it `kind` and four hex digits?
fn is_option(name: Text<'_>, kind: &str) -> bool {
    let number = name.strip_prefix(kind).and_then(|number| number.decode());
    number.is_some_and(|number| {
        number.len() == 4 && number.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

impl<'l> BootOrder<'l> {
    fn parse(data: &'l [u8]) -> Result<Self, ContentError> {
        match data.as_chunks() {
            (numbers, []) => Ok(Self { numbers }),
            _ => Err(Cursor::new("BootOrder", data).fail("half a number at the end")),
        }
    }

    /// The numbers, first choice first.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<'l> {
        self.numbers
            .iter()
            .map(|number| u16::from_le_bytes(*number))
    }
}

impl<'l> LoadOption<'l> {
    fn parse(data: &'l [u8]) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("EFI_LOAD_OPTION", data);
        let (attributes, path_length) = (cursor.u32()?, cursor.u16()?);
        let description = Text::wide_to_nul(cursor.rest());
        cursor.take(description.as_bytes().len())?;
        cursor.take(2)?;
        let path = DevicePath::parse(cursor.take_sized(path_length)?)?;
        Ok(Self {
            attributes,
            path_length,
            description,
            path,
            optional: cursor.rest(),
        })
    }

    /// Does the firmware try it?
    pub fn is_active(&self) -> bool {
        self.attributes & 1 == 1
    }
}
