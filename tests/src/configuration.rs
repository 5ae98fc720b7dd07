use std::collections::BTreeMap;

use troth_daemon::config::keylime::Keylime;

use crate::boot::fixtures;

/// That `table` has exactly the options of Keylime's configuration file, with their defaults.
///
/// # Panics
///
/// When it has not.
pub fn assert_complete(table: &Keylime) {
    let path = fixtures().join(format!("keylime-config/{}.conf", table.component));
    let text = std::fs::read_to_string(&path).expect("a fixture");
    let mut section = "";
    let mut theirs = BTreeMap::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
        } else if let Some((name, value)) = line.split_once('=') {
            // Texts have quotes in TOML; a JSON list in an INI file begins with a bracket.
            theirs.insert((section, name.trim()), value.trim().trim_matches('"'));
        }
    }
    let options = table.options.iter();
    let ours: BTreeMap<_, _> = options
        .map(|option| {
            let section = option.section.unwrap_or(table.component);
            ((section, option.name), option.default)
        })
        .collect();
    assert_eq!(ours, theirs, "{}", path.display());
    assert_eq!(ours.len(), table.options.len(), "an option is there twice");
}
