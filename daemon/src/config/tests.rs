use std::os::unix::fs::PermissionsExt;

use serde::Deserialize;

use super::*;

const COMPONENT: Component = Component {
    name: "agent",
    secrets: &["password"],
};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    port: u16,
    name: String,
    password: Secret,
    tls: Tls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tls {
    enabled: bool,
    roots: Vec<String>,
}

/// A machine with nothing but these configuration files and variables.
struct Machine {
    root: tempfile::TempDir,
    environment: Vec<(OsString, OsString)>,
}

impl Machine {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let environment = Vec::new();
        Self { root, environment }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Adds a credential with these permissions.
    fn credential(self, name: &str, text: &str, mode: u32) -> Self {
        let directory = self.root.path().join("credentials");
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let directory = directory.to_str().unwrap().to_owned();
        self.variable("CREDENTIALS_DIRECTORY", &directory)
    }

    fn load(&self) -> Result<Sample, ConfigError> {
        let place = Place {
            file: None,
            root: Some(self.root.path().to_owned()),
        };
        load_with(&COMPONENT, &place, self.environment.iter().cloned())
    }

    fn error(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

#[test]
fn stronger_directories_and_drop_ins_win() {
    let machine = Machine::new(&[
        ("usr/lib/troth/agent.toml", "port = 1\nname = 'vendor'"),
        ("etc/troth/agent.toml", "port = 2"),
        ("usr/lib/troth/agent.toml.d/10-a.toml", "name = 'hidden'"),
        ("etc/troth/agent.toml.d/10-a.toml", "name = 'shown'"),
        ("run/troth/agent.toml.d/20-b.toml", "tls.enabled = true"),
        ("run/troth/agent.toml.d/30-c.toml.rpmsave", "port = 3"),
    ]);
    let sample = machine.load().unwrap();
    assert_eq!((sample.port, sample.name.as_str()), (2, "shown"));
    assert!(sample.tls.enabled);
}

#[test]
fn the_environment_wins_over_files_and_credentials_over_both() {
    let machine = Machine::new(&[(
        "etc/troth/agent.toml",
        "port = 1\nname = 'file'\npassword = 'file'",
    )]);
    let machine = machine
        .variable("TROTH_AGENT_PASSWORD", "variable")
        .variable("TROTH_AGENT_NAME", "variable")
        .credential("troth.agent.password", "credential\n", 0o440)
        .credential("troth.verifier.password", "another's", 0o400);
    let sample = machine.load().unwrap();
    assert_eq!((sample.port, sample.name.as_str()), (1, "variable"));
    assert_eq!(sample.password.expose(), "credential");
}

#[test]
fn a_variable_reaches_nested_keys_and_gets_the_type_of_its_option() {
    let sample = Machine::new(&[])
        .variable("TROTH_AGENT_PORT", "7")
        .variable("TROTH_AGENT_NAME", "8")
        .variable("TROTH_AGENT_PASSWORD", "0123")
        .variable("TROTH_AGENT_TLS__ROOTS", "['a', 'b']")
        .load()
        .unwrap();
    assert_eq!((sample.port, sample.name.as_str()), (7, "8"));
    assert_eq!(sample.password.expose(), "0123");
    assert_eq!(sample.tls.roots, ["a", "b"]);
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_that_exists() {
    let text = Machine::new(&[("etc/troth/agent.toml", "port = 1\nprot = 2\n")]).error();
    assert!(text.contains("etc/troth/agent.toml: line 2: "), "{text}");
    assert!(text.contains("`prot`; did you mean `port`?"), "{text}");

    let nested = Machine::new(&[("etc/troth/agent.toml", "[tls]\nenable = true\n")]);
    assert!(nested.error().contains("did you mean `enabled`?"));

    let text = Machine::new(&[]).variable("TROTH_AGENT_NAEM", "x").error();
    assert!(text.contains("TROTH_AGENT_NAEM"), "{text}");
    assert!(text.contains("did you mean `name`?"), "{text}");

    let machine = Machine::new(&[]).credential("troth.agent.pasword", "s3cret", 0o400);
    let text = machine.error();
    assert!(text.contains("troth.agent.pasword: "), "{text}");
    assert!(text.contains("did you mean `password`?"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[test]
fn a_value_of_the_wrong_type_is_an_error_that_names_its_source() {
    let text = Machine::new(&[("etc/troth/agent.toml.d/a.toml", "\nport = 'x'")]).error();
    assert!(text.contains("a.toml: line 2: "), "{text}");
    let text = Machine::new(&[])
        .variable("TROTH_AGENT_PORT", "99999")
        .error();
    assert!(text.contains("TROTH_AGENT_PORT: "), "{text}");
}

#[test]
fn a_broken_line_is_named_and_not_shown() {
    for broken in ["name = 's3cret\n", "name = s3cret\n", "name = 's3cret' x\n"] {
        let file = format!("port = 1\n{broken}");
        let text = Machine::new(&[("etc/troth/agent.toml", &file)]).error();
        assert!(text.contains("line 2"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[test]
fn a_credential_that_everybody_may_read_is_refused() {
    let machine = Machine::new(&[]).credential("troth.agent.password", "s3cret", 0o444);
    let text = machine.error();
    assert!(text.contains("every user may read it"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[test]
fn a_credential_is_text_of_a_bounded_size() {
    let large = "x".repeat(65 * 1024);
    let machine = Machine::new(&[]).credential("troth.agent.password", &large, 0o400);
    assert!(machine.error().contains("larger than 65536 bytes"));
    fs::write(
        machine.root.path().join("credentials/troth.agent.password"),
        [0xff, 0xfe],
    )
    .unwrap();
    assert!(machine.error().contains("troth.agent.password: "));
}

#[test]
fn a_secret_is_never_shown() {
    let machine = Machine::new(&[("etc/troth/agent.toml", "password = 's3cret'")]);
    assert!(!format!("{:?}", machine.load().unwrap()).contains("s3cret"));
    let text = Machine::new(&[("etc/troth/agent.toml", "password = 73570")]).error();
    assert!(text.contains("quotes") && !text.contains("73570"), "{text}");
}
