use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, de::DeserializeOwned};
use troth_daemon::config::{
    self, Component, Place, ShownOption,
    keylime::{Keylime, Meaning},
};

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

/// That `docs/configuration.md` has a table of exactly the options of `C`, whose defaults are those
/// of the code, and that says of each option of Keylime's what it is here.
///
/// # Panics
///
/// When it has not.
pub fn assert_documented<C>(component: &Component)
where
    C: DeserializeOwned + Serialize + Default + std::fmt::Debug,
{
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("a.toml");
    let place = |text: &str| {
        std::fs::write(&file, text).expect("a file");
        Place {
            file: Some(file.clone()),
            root: None,
        }
    };
    let load = |text: &str| config::load::<C>(component, &place(text));
    let show = |text: &str| config::show::<C>(component, &place(text)).expect("good defaults");
    let chapter = chapter(&format!("## {}.toml", component.name));
    let rows: Vec<[&str; 4]> = chapter.lines().filter_map(row).collect();

    // The answer to an option that is like none lists all that exist.
    let refused = load("'?' = 1").expect_err("no option").to_string();
    let (_, exist) = refused.split_once("options are: ").expect("a list");
    let exist: BTreeSet<_> = exist.split(", ").collect();
    let documented: BTreeSet<_> = rows
        .iter()
        .filter_map(|[option, ..]| option.split('.').next())
        .collect();
    assert_eq!(documented, exist);

    let mut defaults = String::new();
    for [option, default, ..] in rows.iter().filter(|[_, default, ..]| !default.is_empty()) {
        defaults.push_str(&format!("{option} = {default}\n"));
    }
    let documented = load(&defaults).expect("good defaults").report();
    assert_eq!(format!("{documented:#?}"), format!("{:#?}", C::default()));

    // What is shown is all of that, under the same names, and no secret.
    let value = |option: &ShownOption| (option.name.clone(), option.value.clone());
    let shown: BTreeMap<_, _> = show(&defaults).options.iter().map(value).collect();
    let default: BTreeMap<_, _> = show("").options.iter().map(value).collect();
    assert_eq!(shown, default);
    let names: BTreeSet<_> = rows
        .iter()
        .map(|[option, ..]| (*option).to_owned())
        .collect();
    assert_eq!(shown.into_keys().collect::<BTreeSet<_>>(), names);
    for name in names {
        let hidden = name.ends_with("password") || name.ends_with("_url");
        assert_eq!(component.secrets.contains(&&*name), hidden, "{name}");
    }

    for table in component.keylime {
        for theirs in table.options {
            let quoted = format!("`{}`", theirs.name);
            let told = match &theirs.meaning {
                Meaning::Option(ours, _) => rows.iter().any(|[option, _, _, keylime]| {
                    option == ours && keylime.split(", ").any(|name| name == quoted)
                }),
                Meaning::Directory => chapter
                    .lines()
                    .any(|line| line.starts_with("* ") && line.contains(&quoted)),
                // What is said of the form of log lines is said once, for both servers.
                Meaning::Dropped(_) if table.component == "logging" => {
                    CONFIGURATION.contains(&quoted)
                }
                Meaning::Dropped(why) => chapter.lines().any(|line| {
                    line.starts_with("* ") && line.contains(&quoted) && line.contains(why)
                }),
            };
            assert!(told, "{} of {}.conf", theirs.name, table.component);
        }
    }
}

const CONFIGURATION: &str = include_str!("../../docs/configuration.md");

/// What is between a heading and the next of its rank.
fn chapter(heading: &str) -> &'static str {
    let (_, after) = CONFIGURATION.split_once(heading).expect(heading);
    after
        .split_once("\n## ")
        .map_or(after, |(chapter, _)| chapter)
}

/// Option, default, meaning and Keylime's name; the first two without their backticks.
fn row(line: &str) -> Option<[&str; 4]> {
    let cells = line.strip_prefix("| `")?.strip_suffix('|')?;
    let mut cells = cells
        .split(" | ")
        .map(|cell| cell.trim().trim_matches('|').trim());
    let option = cells.next()?.trim_end_matches('`');
    let default = cells.next()?.trim_matches('`');
    Some([
        option,
        default,
        cells.next()?,
        cells.next().unwrap_or_default(),
    ])
}
