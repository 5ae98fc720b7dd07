use serde_json::{Map, Value, json};

use super::content::{
    Content, FirmwareBlob, ImageLoad, LoadOption, NoAction, PartitionTable, Signature,
    SignatureList, SpecId, Variable, VariableValue,
};
use super::{Event, EventLog, EventType};
use crate::tpm::HashAlgorithm;

/// Bytes that tpm2_eventlog shows of data without a form of their own.
const HEX_SHOWN: usize = 1024;

impl EventLog<'_> {
    /// The log as a JSON document in the shape that policies for Keylime's measured boot see: that
    /// of tpm2-tools' `tpm2_eventlog --eventlog-version=2`, with device paths as text, GUIDs in
    /// their usual form, texts without escapes and `boot_aggregates`. **Nothing of it is verified.**
    ///
    /// It differs in three things: values of PCRs are hex texts (they are numbers of 160 and more
    /// bits there), a log of the old format looks like one of the new, and types that tpm2_eventlog
    /// has no name for are named.
    pub fn to_json(&self) -> Value {
        let events: Vec<_> = self.unverified_events().map(|event| json(&event)).collect();
        let mut pcrs = Map::new();
        let mut aggregates = Map::new();
        for bank in self.banks() {
            let measured = |pcr: u8| {
                self.unverified_events().any(|event| {
                    event.pcr == u32::from(pcr)
                        && event.kind != EventType::EV_NO_ACTION
                        && event.digests.get(bank).is_some()
                })
            };
            let values = self.replay(bank);
            let values = values.iter().filter(|(pcr, _)| measured(*pcr));
            let values: Map<_, _> = values
                .map(|(pcr, value)| (pcr.to_string(), format!("0x{value}").into()))
                .collect();
            let complete = |count: u8| (0..count).all(|pcr| values.contains_key(&pcr.to_string()));
            if values.is_empty() {
                continue;
            }
            let of_bank = self.boot_aggregates();
            let of_bank = of_bank
                .iter()
                .filter(|one| one.bank == bank && complete(one.pcrs));
            let of_bank: Vec<_> = of_bank.map(|one| one.digest.to_string()).collect();
            aggregates.insert(bank.name().to_owned(), of_bank.into());
            pcrs.insert(bank.name().to_owned(), values.into());
        }
        json!({ "version": 2, "events": events, "pcrs": pcrs, "boot_aggregates": aggregates })
    }
}

fn json(event: &Event<'_>) -> Value {
    let content = event.content();
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| drop(object.insert(key.to_owned(), value));
    set("EventNum", event.index.into());
    set("PCRIndex", event.pcr.into());
    set("EventType", event.kind.to_string().into());
    set("EventSize", event.data.len().into());
    if let Content::NoAction(NoAction::SpecId(header)) = content {
        let digest = event.digests.get(HashAlgorithm::Sha1);
        set(
            "Digest",
            digest.map_or(Value::Null, |one| one.to_string().into()),
        );
        set("SpecID", json!([spec_id(&header)]));
        return object.into();
    }
    let digests = event.digests.iter();
    let digests: Vec<_> = digests
        .map(|(bank, digest)| json!({ "AlgorithmId": bank.name(), "Digest": digest.to_string() }))
        .collect();
    set("DigestCount", digests.len().into());
    set("Digests", digests.into());
    if !event.data.is_empty() {
        set("Event", data(event, &content));
    }
    object.into()
}

fn data(event: &Event<'_>, content: &Content<'_>) -> Value {
    match (event.kind, content) {
        (_, Content::NoAction(NoAction::StartupLocality(locality))) => {
            json!({ "StartupLocality": locality })
        }
        (_, Content::Variable(variable)) => uefi_variable(event.kind, variable),
        (_, Content::Image(image)) => image_load(image),
        (_, Content::Blob(blob)) => firmware_blob(blob),
        (EventType::EV_EFI_GPT_EVENT, Content::Gpt(table)) => partition_table(table),
        (_, Content::Ipl(_)) => json!({ "String": text(event.data) }),
        (EventType::EV_S_CRTM_CONTENTS, _) => match event.data.first_chunk::<16>() {
            // Whatever it is, tpm2_eventlog takes it for a blob.
            Some(start) => firmware_blob(&blob_of(*start)),
            None => hex(event.data),
        },
        (EventType::EV_EFI_ACTION | EventType::EV_POST_CODE | EventType::EV_EFI_HCRTM_EVENT, _) => {
            text(event.data).into()
        }
        _ => hex(event.data),
    }
}

fn blob_of(bytes: [u8; 16]) -> FirmwareBlob<'static> {
    let number = u128::from_le_bytes(bytes);
    let half = |shift: u32| {
        let bytes = (number >> shift).to_le_bytes();
        bytes
            .first_chunk()
            .map_or(0, |half| u64::from_le_bytes(*half))
    };
    FirmwareBlob {
        description: None,
        base: half(0),
        length: half(64),
    }
}

fn hex(data: &[u8]) -> Value {
    hex::encode(&data[..data.len().min(HEX_SHOWN)]).into()
}

/// 8-bit characters without a final NUL, whatever they mean.
fn text(data: &[u8]) -> String {
    let data = data.strip_suffix(&[0]).unwrap_or(data);
    String::from_utf8_lossy(data).into_owned()
}

fn spec_id(header: &SpecId<'_>) -> Value {
    let [minor, major, errata] = header.version;
    let algorithms: Vec<_> = header
        .algorithms()
        .enumerate()
        .map(|(index, (id, size))| {
            let name = HashAlgorithm::from_id(id).map(HashAlgorithm::name);
            json!({
                (format!("Algorithm[{index}]")): null,
                "algorithmId": name,
                "digestSize": size,
            })
        })
        .collect();
    let mut object = json!({
        "Signature": header.signature.to_string(),
        "platformClass": header.platform_class,
        "specVersionMinor": minor,
        "specVersionMajor": major,
        "specErrata": errata,
        "uintnSize": header.uintn_size,
        "numberOfAlgorithms": algorithms.len(),
        "Algorithms": algorithms,
        "vendorInfoSize": header.vendor_info.len(),
    });
    if let (false, Some(object)) = (header.vendor_info.is_empty(), object.as_object_mut()) {
        let info = hex::encode(header.vendor_info);
        object.insert("vendorInfo".to_owned(), info.into());
    }
    object
}

fn uefi_variable(kind: EventType, variable: &Variable<'_>) -> Value {
    let mut object = json!({
        "VariableName": variable.guid.to_string(),
        "UnicodeNameLength": variable.name.as_bytes().len() / 2,
        "VariableDataLength": variable.data.len(),
        "UnicodeName": variable.name.decode(),
    });
    if let (Some(value), Some(object)) = (variable_data(kind, variable), object.as_object_mut()) {
        object.insert("VariableData".to_owned(), value);
    }
    object
}

/// `None` for an empty value without a form of its own.
fn variable_data(kind: EventType, variable: &Variable<'_>) -> Option<Value> {
    let empty = variable.data.is_empty();
    let raw = || (!empty).then(|| hex::encode(variable.data).into());
    let is = |names: &[&str]| names.iter().any(|name| variable.name.is(name));
    let authority = kind == EventType::EV_EFI_VARIABLE_AUTHORITY;
    match variable.value {
        VariableValue::Boolean(on) if is(&["SecureBoot"]) || authority => {
            Some(json!({ "Enabled": if on { "Yes" } else { "No" } }))
        }
        VariableValue::SignatureLists(_) if empty && is(&["PK", "KEK", "db", "dbx"]) => {
            Some(Value::Null)
        }
        VariableValue::SignatureLists(lists) if is(&["PK", "KEK", "db", "dbx"]) => {
            Some(lists.iter().map(|list| signature_list(&list)).collect())
        }
        VariableValue::Authority(signature) if is(&["db", "Shim", "vendor_db"]) => {
            Some(json!([signature_data(&signature)]))
        }
        VariableValue::Certificate(data) if is(&["db", "Shim", "vendor_db"]) => {
            // There is no owner, but its place is read all the same.
            Signature::parse(data)
                .ok()
                .map(|signature| json!([signature_data(&signature)]))
        }
        VariableValue::Sbat(_) => Some(json!({ "String": text(variable.data) })),
        VariableValue::BootOrder(order) => {
            let numbers = order.numbers();
            Some(numbers.map(|number| format!("Boot{number:04x}")).collect())
        }
        VariableValue::LoadOption(option) if variable.name.strip_prefix("Boot").is_some() => {
            Some(load_option(&option))
        }
        _ => raw(),
    }
}

fn signature_list(list: &SignatureList<'_>) -> Value {
    json!({
        "SignatureType": list.kind.to_string(),
        "SignatureListSize": list.list_size,
        "SignatureHeaderSize": list.header.len(),
        "SignatureSize": list.signature_size,
        "Keys": list.signatures().map(|one| signature_data(&one)).collect::<Vec<_>>(),
    })
}

fn signature_data(signature: &Signature<'_>) -> Value {
    json!({
        "SignatureOwner": signature.owner.to_string(),
        "SignatureData": hex::encode(signature.data),
    })
}

fn load_option(option: &LoadOption<'_>) -> Value {
    json!({
        "Enabled": if option.is_active() { "Yes" } else { "No" },
        "FilePathListLength": option.path_length,
        "Description": option.description.decode(),
        "DevicePath": option.path.to_string(),
    })
}

fn image_load(image: &ImageLoad<'_>) -> Value {
    json!({
        "ImageLocationInMemory": image.location,
        "ImageLengthInMemory": image.length,
        "ImageLinkTimeAddress": image.link_time_address,
        "LengthOfDevicePath": image.path_length,
        "DevicePath": image.path.to_string(),
    })
}

fn firmware_blob(blob: &FirmwareBlob<'_>) -> Value {
    let mut object = json!({ "BlobBase": blob.base, "BlobLength": blob.length });
    if let (Some(description), Some(object)) = (blob.description, object.as_object_mut()) {
        let bytes = description.as_bytes();
        object.insert("BlobDescriptionSize".to_owned(), bytes.len().into());
        object.insert("BlobDescription".to_owned(), hex::encode(bytes).into());
    }
    object
}

fn partition_table(table: &PartitionTable<'_>) -> Value {
    let partitions: Vec<_> = table
        .partitions()
        .map(|partition| {
            json!({
                "PartitionTypeGUID": partition.kind.to_string(),
                "UniquePartitionGUID": partition.id.to_string(),
                "StartingLBA": partition.first_lba,
                "EndingLBA": partition.last_lba,
                "Attributes": partition.attributes,
                "PartitionName": partition.name.decode(),
            })
        })
        .collect();
    json!({
        "Header": {
            "Signature": String::from_utf8_lossy(&table.signature),
            "Revision": table.revision,
            "HeaderSize": table.header_size,
            "HeaderCRC32": table.header_crc,
            "MyLBA": table.my_lba,
            "AlternateLBA": table.alternate_lba,
            "FirstUsableLBA": table.first_usable_lba,
            "LastUsableLBA": table.last_usable_lba,
            "DiskGUID": table.disk.to_string(),
            "PartitionEntryLBA": table.entry_lba,
            "NumberOfPartitionEntry": table.entry_count,
            "SizeOfPartitionEntry": table.entry_size,
            "PartitionEntryArrayCRC32": table.entries_crc,
        },
        "NumberOfPartitions": partitions.len(),
        "Partitions": partitions,
    })
}
