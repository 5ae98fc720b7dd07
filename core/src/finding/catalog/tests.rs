use super::*;

/// Where the documentation has the catalogue.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/findings.md");
const BEGIN: &str = "<!-- from core/src/finding/catalog; TROTH_REWRITE=1 cargo test -p troth-core \
                     catalog -->\n";
const END: &str = "<!-- end of the catalogue -->\n";

#[test]
fn a_concrete_id_has_its_row() {
    for (id, row) in [
        ("ima.pcr_mismatch", Some("ima.pcr_mismatch")),
        (
            "pcr_validation.invalid_pcr_7",
            Some("pcr_validation.invalid_pcr_<n>"),
        ),
        (
            "pcr_validation.invalid_pcr_23",
            Some("pcr_validation.invalid_pcr_<n>"),
        ),
        // Written out: not by its pattern.
        (
            "pcr_validation.invalid_pcr_16",
            Some("pcr_validation.invalid_pcr_16"),
        ),
        (
            "measured_boot.policy_accept-all",
            Some("measured_boot.policy_<name>"),
        ),
        (
            "ima.validation.dm.dm_table_load.no_matching_policy",
            Some("ima.validation.dm.<event>.<reason>"),
        ),
        (
            "ima.validation.dm.invalid_data",
            Some("ima.validation.dm.<reason>"),
        ),
        (
            "measured_boot.parser.yaml",
            Some("measured_boot.parser.<reason>"),
        ),
        ("pcr_validation.invalid_pcr_", None),
        ("pcr_validation.invalid_pcr_x", None),
        ("pcr_validation.invalid_pcr_123", None),
        ("pcr_validation.invalid_pcr_7.more", None),
        ("measured_boot.policy_", None),
        ("measured_boot.parser.a.b", None),
        ("ima", None),
        ("", None),
    ] {
        assert_eq!(find(id).map(|kind| kind.id), row, "{id}");
    }
}

#[test]
fn every_row_says_what_to_do_and_is_there_once() {
    let mut ids = std::collections::BTreeSet::new();
    for kind in all() {
        assert!(ids.insert(kind.id), "{} is there twice", kind.id);
        assert!(!kind.causes.is_empty(), "{}", kind.id);
        assert!(!kind.next.is_empty(), "{}", kind.id);
        assert!(kind.meaning.ends_with(['.', ')']), "{}", kind.id);
        let known = [
            "node",
            "file",
            "pcr",
            "entry",
            "runtime_policy",
            "boot_policy",
        ];
        for next in kind.next {
            for (_, rest) in next
                .command
                .match_indices('{')
                .map(|(at, _)| next.command.split_at(at))
            {
                let name = rest[1..].split('}').next().unwrap_or_default();
                assert!(known.contains(&name), "{}: {name}", kind.id);
            }
        }
    }
}

#[test]
fn names_from_a_node_stay_words_of_the_shell() {
    let kind = find("ima.validation.ima-ng.not_in_allowlist").unwrap();
    let commands = |path: &str| {
        let place = Place::ImaEntry {
            entry: 3,
            path: Some(path.to_owned()),
        };
        let context = Context {
            node: Some("web1"),
            place: Some(&place),
            runtime_policy: Some("base"),
            boot_policy: None,
        };
        kind.commands(kind.id, &context)
    };
    assert_eq!(
        commands("/usr/bin/x")[1],
        (Host::Node, "sha256sum -- /usr/bin/x".to_owned())
    );
    assert_eq!(
        commands("/tmp/$(reboot) it's")[1].1,
        r"sha256sum -- '/tmp/$(reboot) it'\''s'"
    );
    assert_eq!(
        commands("/usr/bin/x")[2].1,
        "trothctl policy show runtime base -o policy.json"
    );
}

#[test]
fn what_is_not_known_stays_a_word_and_a_pcr_comes_from_the_id() {
    let kind = find("measured_boot.invalid_pcr_4").unwrap();
    let commands = kind.commands("measured_boot.invalid_pcr_4", &Context::default());
    assert_eq!(commands[1].1, "systemd-analyze pcrs 4");
    let kind = find("ima.pcr_mismatch").unwrap();
    let commands = kind.commands(kind.id, &Context::default());
    assert_eq!(commands[2].1, "trothctl agent reactivate NODE");
}

#[test]
fn the_documentation_has_the_catalogue() {
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("the beginning");
    let (written, after) = rest.split_once(END).expect("the end");
    let expected = documented();
    if std::env::var_os("TROTH_REWRITE").is_some() {
        let text = format!("{before}{BEGIN}{expected}{END}{after}");
        std::fs::write(DOCUMENT, text).unwrap();
    } else {
        assert!(
            written == expected,
            "docs/findings.md is not what the catalogue says: \
             TROTH_REWRITE=1 cargo test -p troth-core catalog"
        );
    }
}

/// The catalogue as a table, and a paragraph for each row.
fn documented() -> String {
    let mut text = String::from("\n| id | made by | what it says |\n| --- | --- | --- |\n");
    for kind in all() {
        text += &format!("| `{}` | {} | {} |\n", kind.id, kind.origin, kind.title);
    }
    let mut component = None;
    for kind in all() {
        if component != Some(kind.component) {
            component = Some(kind.component);
            text += &format!("\n## {}\n", capital(&kind.component.to_string()));
        }
        text += &format!(
            "\n### `{}`\n\n{}\n\nUsual causes:\n\n",
            kind.id, kind.meaning
        );
        for cause in kind.causes {
            text += &format!("* {cause}\n");
        }
        text += "\nRun next:\n\n```\n";
        let width = kind
            .next
            .iter()
            .map(|next| next.command.len())
            .max()
            .unwrap_or(0);
        for (host, command) in kind.commands(kind.id, &Context::default()) {
            text += &format!("{command:width$}  # {host}\n");
        }
        text += "```\n";
    }
    text + "\n"
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}
