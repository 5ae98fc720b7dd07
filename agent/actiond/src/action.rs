use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use troth_daemon::seconds::Seconds;
use troth_ipc::{
    agent::{ACTION_NAME_MAX, is_action_name},
    varlink::wire::{ActionFile, ActionList, BrokenAction, Sandbox},
};

use crate::files::{Content, Found, Place};

/// Where actions are, the weakest first: what is of the same name in a later one replaces it.
const DIRECTORIES: [&str; 2] = ["/usr/lib/troth/actions.d", "/etc/troth/actions.d"];

const SUFFIX: &str = ".toml";

/// How long an action may run unless its file says otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// `NAME.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    description: String,
    command: Vec<String>,
    #[serde(default = "strict")]
    sandbox: Sandbox,
    timeout: Option<Seconds>,
    #[serde(default)]
    when: Vec<String>,
}

fn strict() -> Sandbox {
    Sandbox::Strict
}

/// All actions as their files are now.
pub(crate) fn list(place: &Place) -> ActionList {
    let mut by_name = BTreeMap::new();
    let mut broken = Vec::new();
    for directory in DIRECTORIES {
        match place.list(directory, SUFFIX) {
            Ok(found) => by_name.extend(found.into_iter().map(|file| (file.name.clone(), file))),
            Err(unusable) => broken.push(BrokenAction {
                path: unusable.path.display().to_string(),
                reason: unusable.reason,
            }),
        }
    }
    let mut actions = Vec::new();
    for file in by_name.into_values() {
        let path = file.path.display().to_string();
        match read(file, &path) {
            Ok(Some(action)) => actions.push(action),
            Ok(None) => {}
            Err(reason) => broken.push(BrokenAction { path, reason }),
        }
    }
    ActionList { actions, broken }
}

/// The action of a file; `None` if it is masked.
fn read(file: Found, path: &str) -> Result<Option<ActionFile>, String> {
    let name = file.name.strip_suffix(SUFFIX).unwrap_or_default();
    let text = match file.content? {
        Content::Text(text) => text,
        Content::Masked => return Ok(None),
    };
    if !is_action_name(name) {
        return Err(format!(
            "its name is not 1 to {ACTION_NAME_MAX} of a-z, A-Z, 0-9, - and _"
        ));
    }
    let document: Document = toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        let line = line.map_or_else(String::new, |line| format!("line {line}: "));
        format!("{line}{}", error.message())
    })?;
    let program = document.command.first().map_or("", String::as_str);
    if !program.starts_with('/') {
        return Err("command: it begins with the absolute path of a program".to_owned());
    }
    let timeout = document.timeout.map_or(TIMEOUT, |Seconds(timeout)| timeout);
    if timeout.is_zero() {
        return Err("timeout: it is 0".to_owned());
    }
    Ok(Some(ActionFile {
        name: name.to_owned(),
        description: document.description,
        sandbox: document.sandbox,
        command: document.command,
        timeout_usec: u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX),
        when: document.when,
        path: path.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use rustix::process::geteuid;

    use super::*;

    const GOOD: &str =
        "description = \"Cut it off\"\ncommand = [\"/usr/sbin/nft\", \"-f\", \"x\"]\n";

    fn listed(files: &[(&str, &str)]) -> ActionList {
        let directory = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("-> ") {
                Some(target) => symlink(target, &path).unwrap(),
                None => fs::write(&path, content).unwrap(),
            }
        }
        only_ours(directory.path());
        list(&Place::new(directory.path().to_owned(), geteuid().as_raw()))
    }

    /// Whatever the umask is.
    fn only_ours(path: &Path) {
        use std::os::unix::fs::PermissionsExt;
        if path.is_symlink() {
            return;
        }
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                only_ours(&entry.unwrap().path());
            }
        }
    }

    #[test]
    fn the_administrators_file_replaces_the_vendors_or_masks_it() {
        let other = "description = \"Mine\"\ncommand = [\"/bin/true\"]\nsandbox = \"host\"\n\
                     timeout = \"5min\"\nwhen = [\"revoked\"]\n";
        let list = listed(&[
            ("usr/lib/troth/actions.d/one.toml", GOOD),
            ("usr/lib/troth/actions.d/two.toml", GOOD),
            ("usr/lib/troth/actions.d/three.toml", GOOD),
            ("usr/lib/troth/actions.d/four.toml", GOOD),
            ("etc/troth/actions.d/two.toml", other),
            ("etc/troth/actions.d/three.toml", "-> /dev/null"),
            ("etc/troth/actions.d/four.toml", "nonsense = 1"),
        ]);
        let names: Vec<_> = list.actions.iter().map(|action| &action.name).collect();
        assert_eq!(names, ["one", "two"]);
        let [one, two] = &list.actions[..] else {
            panic!("{list:?}");
        };
        assert_eq!(
            (one.sandbox, one.timeout_usec),
            (Sandbox::Strict, 60_000_000)
        );
        assert_eq!(
            (two.sandbox, two.timeout_usec),
            (Sandbox::Host, 300_000_000)
        );
        assert_eq!(two.when, ["revoked"]);
        assert!(two.path.ends_with("/etc/troth/actions.d/two.toml"));
        // What replaces it is broken: the vendor's does not come back.
        assert_eq!(list.broken.len(), 1);
        assert!(
            list.broken[0]
                .path
                .ends_with("/etc/troth/actions.d/four.toml")
        );
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told() {
        let cases = [
            ("a b.toml", GOOD, "its name"),
            (".toml", GOOD, "its name"),
            ("a.toml", "description = 1", "line 1"),
            (
                "a.toml",
                "description = \"x\"\ncomand = []",
                "line 2: unknown field `comand`",
            ),
            ("a.toml", "description = \"x\"", "command"),
            (
                "a.toml",
                "description = \"x\"\ncommand = []",
                "absolute path",
            ),
            (
                "a.toml",
                "description = \"x\"\ncommand = [\"nft\"]",
                "absolute path",
            ),
            (
                "a.toml",
                "description = \"x\"\ncommand = [\"/x\"]\ntimeout = 0",
                "timeout",
            ),
            (
                "a.toml",
                "description = \"x\"\ncommand = [\"/x\"]\nsandbox = \"none\"",
                "line 3",
            ),
        ];
        for (name, content, word) in cases {
            let list = listed(&[(&format!("etc/troth/actions.d/{name}"), content)]);
            assert!(list.actions.is_empty(), "{content}");
            let reason = &list.broken[0].reason;
            assert!(reason.contains(word), "{content}: {reason}");
        }
        assert_eq!(listed(&[]), ActionList::default());
    }
}
