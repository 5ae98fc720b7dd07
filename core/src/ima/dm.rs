use crate::tpm::Digest;

/// Longest event that is read, in bytes; the kernel's buffer has 4 KiB.
const MAX_EVENT: usize = 16 << 10;
/// Longest name or UUID of a device, in bytes; the kernel has 128 for either, before it escapes.
const MAX_NAME: usize = 256;

/// The names of entries that measure events of the device mapper.
const EVENTS: [&str; 6] = [
    "dm_table_load",
    "dm_device_resume",
    "dm_device_remove",
    "dm_table_clear",
    "dm_device_rename",
    "dm_target_update",
];

/// An event of the kernel's device mapper (kernel documentation,
/// `admin-guide/device-mapper/dm-ima.rst`), without the capacity and what else is not judged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DmEvent {
    /// A table was loaded into the inactive slot of a device.
    TableLoad {
        /// The device.
        device: DmDevice,
        /// Its targets, in order; one at least.
        targets: Vec<DmTarget>,
    },
    /// A device was resumed: the inactive table, if there is one, is the active one now.
    DeviceResume {
        /// The device.
        names: DmNames,
        /// Hash of the active table's load event; `None`: there is no table.
        active: Option<Digest>,
    },
    /// A device was removed.
    DeviceRemove {
        /// The device.
        names: DmNames,
    },
    /// The inactive table of a device was thrown away.
    TableClear {
        /// The device.
        names: DmNames,
        /// Hash of that table's load event; `None`: there was no table.
        inactive: Option<Digest>,
    },
    /// A device has another name or UUID.
    DeviceRename {
        /// What it was called; the kernel does not say it of a device without tables.
        old: Option<DmNames>,
        /// What it is called now.
        new: DmNames,
    },
    /// A target changed its state by itself.
    TargetUpdate {
        /// The device.
        names: DmNames,
        /// The target as it is now.
        target: DmTarget,
    },
}

/// What a device is called.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DmNames {
    /// Its name below `/dev/mapper`.
    pub name: String,
    /// Its UUID, which is any text; often empty.
    pub uuid: String,
}

/// A device, as its table was loaded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DmDevice {
    /// What it is called.
    pub names: DmNames,
    /// Major and minor number, and how many minor numbers it has.
    pub major: u64,
    /// See `major`.
    pub minor: u64,
    /// See `major`.
    pub minor_count: u64,
    /// Targets of the table.
    pub num_targets: u64,
}

/// A target of a table: a range of sectors and what maps it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DmTarget {
    /// Its place in the table, from 0.
    pub index: u64,
    /// All that is said of it (`target_index`, `target_name`, `root_digest`, ...); no name twice.
    attributes: Vec<(String, String)>,
}

impl DmTarget {
    /// The attribute `name`.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let mut attributes = self.attributes.iter();
        let found = attributes.find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }

    /// All attributes, with their names, in the kernel's order.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        let attributes = self.attributes.iter();
        attributes.map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl DmEvent {
    /// Do entries of this name measure an event?
    pub fn is_named(name: &str) -> bool {
        EVENTS.contains(&name)
    }

    /// Parses the content of an `ima-buf` entry with that name. NULs between statements, which
    /// some kernels write, are passed over.
    ///
    /// # Errors
    /// What is wrong, for after the event's name.
    pub fn parse(name: &str, buffer: &[u8]) -> Result<Self, String> {
        if buffer.len() > MAX_EVENT {
            return Err(format!("is longer than {MAX_EVENT} bytes"));
        }
        let text = str::from_utf8(buffer).map_err(|_| "is not UTF-8".to_owned())?;
        let mut statements = Statements(text);
        let mut version = statements.next("dm_version")?;
        let number = version.take("dm_version")?;
        if !is_version(&number) {
            return Err("has a dm_version that is none".to_owned());
        }
        version.end()?;
        let event = match name {
            "dm_table_load" => {
                let device = device(&mut statements.next("the device")?)?;
                let mut targets = vec![target(statements.next("a target")?)?];
                while !statements.is_empty() {
                    targets.push(target(statements.next("a target")?)?);
                }
                return Ok(Self::TableLoad { device, targets });
            }
            "dm_target_update" => {
                let names = device(&mut statements.next("the device")?)?.names;
                let target = target(statements.next("a target")?)?;
                return statements.end(Self::TargetUpdate { names, target });
            }
            "dm_device_resume" => {
                let (names, active) = of_table(&mut statements, "device_resume", "active")?;
                Self::DeviceResume { names, active }
            }
            "dm_table_clear" => {
                let (names, inactive) = of_table(&mut statements, "table_clear", "inactive")?;
                Self::TableClear { names, inactive }
            }
            "dm_device_remove" => Self::DeviceRemove {
                names: removed(&mut statements)?,
            },
            "dm_device_rename" => {
                let mut old = statements.next("the device")?;
                let names = if old.is_next("device_rename") {
                    no_data(old, "device_rename")?;
                    None
                } else {
                    Some(device(&mut old)?.names)
                };
                let mut new = statements.next("the new name")?;
                let (name, uuid) = (new.take("new_name")?, new.take("new_uuid")?);
                new.end()?;
                let new = named(name, uuid)?;
                Self::DeviceRename { old: names, new }
            }
            _ => return Err("is no event of the device mapper".to_owned()),
        };
        let mut capacity = statements.next("the capacity")?;
        number_of(&mut capacity, "current_device_capacity")?;
        capacity.end()?;
        statements.end(event)
    }
}

/// A device and the hash of one of its tables, or the statement that it has none.
fn of_table(
    statements: &mut Statements<'_>,
    event: &str,
    which: &str,
) -> Result<(DmNames, Option<Digest>), String> {
    let mut first = statements.next("the device")?;
    let names = names(&mut first)?;
    if first.is_empty() {
        no_data(statements.next("no_data")?, event)?;
        return Ok((names, None));
    }
    numbers(&mut first)?;
    first.end()?;
    let mut second = statements.next("the hash of the table")?;
    let hash = table_hash(&mut second, which)?;
    second.end()?;
    Ok((names, Some(hash)))
}

/// What was removed: a device with an active table, an inactive one, both or none.
fn removed(statements: &mut Statements<'_>) -> Result<DmNames, String> {
    let mut fields = statements.next("the device")?;
    let mut found = None;
    let mut tables = Vec::new();
    for which in ["active", "inactive"] {
        if fields.enter(&format!("device_{which}_metadata")) {
            let device = device(&mut fields)?;
            fields = statements.next("the hashes of the tables")?;
            if found.get_or_insert_with(|| device.names.clone()) != &device.names {
                return Err("is of two devices".to_owned());
            }
            tables.push(which);
        }
    }
    for which in tables {
        table_hash(&mut fields, which)?;
    }
    let names = match found {
        Some(names) => names,
        None => {
            let names = names(&mut fields)?;
            fields.end()?;
            no_data(statements.next("no_data")?, "device_remove")?;
            fields = statements.next("remove_all")?;
            names
        }
    };
    match fields.take("remove_all")?.as_str() {
        "y" | "n" => {}
        _ => return Err("has a remove_all that is neither y nor n".to_owned()),
    }
    fields.end()?;
    Ok(names)
}

fn device(fields: &mut Fields<'_>) -> Result<DmDevice, String> {
    let names = names(fields)?;
    let [major, minor, minor_count, num_targets] = numbers(fields)?;
    fields.end()?;
    Ok(DmDevice {
        names,
        major,
        minor,
        minor_count,
        num_targets,
    })
}

fn names(fields: &mut Fields<'_>) -> Result<DmNames, String> {
    named(fields.take("name")?, fields.take("uuid")?)
}

fn named(name: String, uuid: String) -> Result<DmNames, String> {
    if name.is_empty() || name.len() > MAX_NAME || uuid.len() > MAX_NAME {
        return Err(format!(
            "has a device without a name, or with one over {MAX_NAME} bytes"
        ));
    }
    Ok(DmNames { name, uuid })
}

fn numbers(fields: &mut Fields<'_>) -> Result<[u64; 4], String> {
    Ok([
        number_of(fields, "major")?,
        number_of(fields, "minor")?,
        number_of(fields, "minor_count")?,
        number_of(fields, "num_targets")?,
    ])
}

fn target(mut fields: Fields<'_>) -> Result<DmTarget, String> {
    let index = number_of(&mut fields, "target_index")?;
    let mut attributes = vec![("target_index".to_owned(), index.to_string())];
    for name in ["target_begin", "target_len"] {
        attributes.push((name.to_owned(), number_of(&mut fields, name)?.to_string()));
    }
    for name in ["target_name", "target_version"] {
        attributes.push((name.to_owned(), fields.take(name)?));
    }
    while !fields.is_empty() {
        let (name, value) = fields.any()?;
        if attributes.iter().any(|(other, _)| *other == name) {
            return Err(format!("has {name:?} of a target twice"));
        }
        attributes.push((name, value));
    }
    Ok(DmTarget { index, attributes })
}

fn table_hash(fields: &mut Fields<'_>, which: &str) -> Result<Digest, String> {
    let name = format!("{which}_table_hash");
    let value = fields.take(&name)?;
    let digest = value.strip_prefix("sha256:").and_then(|hex| {
        let mut bytes = [0; 32];
        hex::decode_to_slice(hex, &mut bytes).ok()?;
        Digest::from_slice(&bytes)
    });
    digest.ok_or_else(|| format!("has no SHA-256 digest as {name}"))
}

fn no_data(mut fields: Fields<'_>, event: &str) -> Result<(), String> {
    if fields.take(event)? != "no_data" {
        return Err(format!("has neither a table nor {event}=no_data"));
    }
    fields.end()
}

fn number_of(fields: &mut Fields<'_>, name: &str) -> Result<u64, String> {
    let value = fields.take(name)?;
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse().ok().filter(|_| digits);
    number.ok_or_else(|| format!("has no number as {name}"))
}

/// Three numbers with dots between.
fn is_version(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split('.').count() == 3 && text.split('.').all(number)
}

/// What is left of an event; a statement ends with a semicolon.
struct Statements<'t>(&'t str);

impl<'t> Statements<'t> {
    fn next(&mut self, what: &str) -> Result<Fields<'t>, String> {
        let text = self.0.trim_start_matches('\0');
        let (statement, rest) = split(text, ';');
        self.0 = rest.ok_or_else(|| format!("ends before {what}"))?;
        Ok(Fields(Some(statement)))
    }

    fn is_empty(&self) -> bool {
        self.0.trim_start_matches('\0').is_empty()
    }

    fn end(&self, event: DmEvent) -> Result<DmEvent, String> {
        if self.is_empty() {
            Ok(event)
        } else {
            Err("goes on behind its end".to_owned())
        }
    }
}

/// What is left of a statement: `name=value` with commas between; `None` behind the last one.
struct Fields<'t>(Option<&'t str>);

impl Fields<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn is_next(&self, name: &str) -> bool {
        let value = self.0.and_then(|text| text.strip_prefix(name));
        value.is_some_and(|value| value.starts_with('='))
    }

    /// Goes into `name=`, if that is next: what follows are fields again.
    fn enter(&mut self, name: &str) -> bool {
        let inner = self.0.and_then(|text| text.strip_prefix(name));
        let inner = inner.and_then(|text| text.strip_prefix('='));
        if inner.is_some() {
            self.0 = inner;
        }
        inner.is_some()
    }

    /// The value of the next field, which is `name`.
    fn take(&mut self, name: &str) -> Result<String, String> {
        if self.is_next(name) {
            self.any().map(|(_, value)| value)
        } else {
            Err(format!("has no {name} where it belongs"))
        }
    }

    fn any(&mut self) -> Result<(String, String), String> {
        let text = self.0.ok_or("ends within a statement")?;
        let (field, rest) = split(text, ',');
        self.0 = rest;
        let (name, value) = field.split_once('=').ok_or("has a field without a value")?;
        Ok((name.to_owned(), unescaped(value)?))
    }

    fn end(&self) -> Result<(), String> {
        if self.is_empty() {
            Ok(())
        } else {
            Err("has a field too many".to_owned())
        }
    }
}

/// Text before and behind the first `separator` that no backslash stands before.
fn split(text: &str, separator: char) -> (&str, Option<&str>) {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == separator && !escaped {
            let (before, rest) = text.split_at(at);
            return (before, rest.strip_prefix(separator));
        }
        escaped = c == '\\' && !escaped;
    }
    (text, None)
}

/// The kernel writes a backslash before backslashes and separators.
fn unescaped(value: &str) -> Result<String, String> {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ';' | '=' | ',')) => text.push(c),
                _ => return Err("has a backslash that escapes nothing".to_owned()),
            },
            '=' => return Err("has a value with = in it".to_owned()),
            c if c.is_control() => return Err("has a control character".to_owned()),
            c => text.push(c),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAR: &str = "dm_version=4.45.0;name=a,uuid=,major=253,minor=0,minor_count=1,\
                          num_targets=1;target_index=0,target_begin=0,target_len=2,\
                          target_name=linear,target_version=1.4.0,device_name=7:0,start=512;";

    #[test]
    fn a_table_has_its_device_and_targets() {
        let DmEvent::TableLoad { device, targets } =
            DmEvent::parse("dm_table_load", LINEAR.as_bytes()).unwrap()
        else {
            panic!("another event");
        };
        assert_eq!((device.major, device.num_targets), (253, 1));
        assert_eq!(targets[0].attribute("start"), Some("512"));
        assert_eq!(targets[0].attribute("mode"), None);
    }

    #[test]
    fn names_are_told_from_separators_and_nuls_are_passed_over() {
        let text = "dm_version=4.45.0;name=a\\=\\,\\;\\\\,uuid=u;table_clear=no_data;\0\0\0\
                    current_device_capacity=8;\0";
        let names = DmNames {
            name: "a=,;\\".to_owned(),
            uuid: "u".to_owned(),
        };
        let event = DmEvent::parse("dm_table_clear", text.as_bytes()).unwrap();
        let inactive = None;
        assert_eq!(event, DmEvent::TableClear { names, inactive });
    }

    #[test]
    fn what_is_cut_short_or_changed_is_no_event() {
        for end in 1..LINEAR.len() {
            let cut = DmEvent::parse("dm_table_load", &LINEAR.as_bytes()[..end]);
            assert!(cut.is_err(), "{end}");
        }
        for (from, to, reason) in [
            ("start=512", "device_name=7:0", "twice"),
            ("start=512", "start", "without a value"),
            ("major=253", "major=+253", "no number as major"),
            ("name=a,", "name=,", "without a name"),
            ("name=a,", "name=a=b,", "= in it"),
            ("name=a,", "name=a\\b,", "escapes nothing"),
            ("4.45.0", "4.45", "dm_version"),
        ] {
            let text = LINEAR.replacen(from, to, 1);
            let error = DmEvent::parse("dm_table_load", text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert!(DmEvent::parse("dm_device_resume", LINEAR.as_bytes()).is_err());
    }
}
