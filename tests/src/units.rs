use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::rules::{root, sources};

/// Rooms of code that is shipped.
const SHIPPED: [&str; 7] = [
    "agent",
    "agent/actiond",
    "core",
    "ctl",
    "daemon",
    "dbus",
    "verifier",
];

/// `MESSAGE_ID=`: 32 hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 32
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The constants of shipped code that are MESSAGE_IDs, by their values.
fn ids_of_the_code() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for room in SHIPPED {
        for file in sources(&root().join(room).join("src")) {
            let text = fs::read_to_string(&file).unwrap();
            for line in text.lines() {
                let Some((name, rest)) = line
                    .split_once("const ")
                    .and_then(|(_, constant)| constant.split_once(": &str = \""))
                else {
                    continue;
                };
                if let Some(id) = rest.strip_suffix("\";").filter(|id| is_id(id)) {
                    let before = found.insert(id.to_owned(), name.to_owned());
                    assert_eq!(before, None, "{id} is used twice");
                }
            }
        }
    }
    found
}

/// The entries of the catalog: id, header fields, text.
fn catalog() -> BTreeMap<String, (BTreeMap<String, String>, String)> {
    let path = root().join("units/lib/systemd/catalog/troth.catalog");
    let text = fs::read_to_string(path).unwrap();
    let mut entries = BTreeMap::new();
    for entry in text.split("\n-- ").skip(1) {
        let (id, rest) = entry.split_once('\n').unwrap();
        let (header, body) = rest.split_once("\n\n").unwrap();
        let header = header.lines().map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        });
        let entry = (header.collect(), body.trim().to_owned());
        assert!(entries.insert(id.to_owned(), entry).is_none(), "{id} twice");
    }
    entries
}

/// What an operator is alerted of is explained by `journalctl -x`.
#[test]
fn every_message_id_has_an_entry_in_the_catalog() {
    let (code, catalog) = (ids_of_the_code(), catalog());
    assert!(code.len() > 8, "{code:?}");
    let explained: Vec<_> = catalog.keys().collect();
    assert_eq!(code.keys().collect::<Vec<_>>(), explained);
    for (id, (header, text)) in &catalog {
        for field in ["Subject", "Defined-By", "Documentation"] {
            assert!(header.contains_key(field), "{id} has no {field}");
        }
        assert!(text.len() > 100, "{id} says too little");
        for line in text.lines() {
            assert!(line.len() <= 80, "{line}");
        }
    }
}

/// `docs/units.md` lists all of them.
#[test]
fn every_message_id_is_documented() {
    let text = fs::read_to_string(root().join("docs/units.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let ids = rows.filter_map(|row| row.strip_suffix("` |")?.rsplit('`').next());
    let mut documented: Vec<_> = ids.filter(|id| is_id(id)).collect();
    documented.sort_unstable();
    assert_eq!(documented, ids_of_the_code().keys().collect::<Vec<_>>());
}

/// `@TROTH_NODE_ID@` in the catalog is a field of the journal, which `node_id` in the code becomes.
#[test]
fn the_catalog_names_fields_that_the_messages_have() {
    let code: String = SHIPPED
        .iter()
        .flat_map(|room| sources(&root().join(room).join("src")))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let ids = ids_of_the_code();
    for (id, (header, text)) in catalog() {
        let text = format!("{} {text}", header["Subject"]);
        let constant = &ids[&id];
        // The statement that logs it: from its id to its end.
        let messages: Vec<_> = code
            .split("message_id = ")
            .skip(1)
            .map(|rest| rest.split(");").next().unwrap())
            .filter(|message| {
                let name = message.split([',', '\n']).next().unwrap();
                name.trim_start_matches("messages::") == constant
            })
            .collect();
        assert!(!messages.is_empty(), "{constant} is never logged");
        for field in text.split('@').skip(1).step_by(2) {
            // What journald adds to every entry.
            if field == "_SYSTEMD_UNIT" {
                continue;
            }
            let ours = field.strip_prefix("TROTH_");
            let name = ours.expect("a field of ours").to_ascii_lowercase();
            for message in &messages {
                assert!(
                    message.contains(&format!("{name} = ")),
                    "{constant}: {field} in the catalog, but: {message}"
                );
            }
        }
    }
}

/// Nothing is enabled by an installation: where no preset speaks of a unit, systemd enables it.
#[test]
fn the_preset_speaks_of_every_unit_that_can_be_enabled() {
    let lib = root().join("units/lib/systemd");
    let preset = fs::read_to_string(lib.join("system-preset/90-troth.preset")).unwrap();
    let mut units = Vec::new();
    for entry in fs::read_dir(lib.join("system")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && fs::read_to_string(&path).unwrap().contains("[Install]") {
            units.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    units.sort();
    let disabled = preset
        .lines()
        .filter_map(|line| line.strip_prefix("disable "));
    let mut disabled: Vec<_> = disabled.collect();
    disabled.sort_unstable();
    assert_eq!(disabled, units);
}

/// Documentation that a unit points to is installed from `docs`.
#[test]
fn units_point_to_documents_that_exist() {
    let mut units = Vec::new();
    for entry in fs::read_dir(root().join("units/lib/systemd/system")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            units.push(path);
        }
    }
    assert!(units.len() >= 5, "{units:?}");
    for unit in units {
        let text = fs::read_to_string(&unit).unwrap();
        let documents: Vec<PathBuf> = text
            .lines()
            .filter_map(|line| line.strip_prefix("Documentation="))
            .flat_map(str::split_whitespace)
            .filter_map(|uri| uri.strip_prefix("file:///usr/share/doc/troth/"))
            .map(|name| root().join("docs").join(name))
            .collect();
        assert!(!documents.is_empty(), "{}", unit.display());
        for document in documents {
            assert!(
                document.is_file(),
                "{}: {}",
                unit.display(),
                document.display()
            );
        }
    }
}
