use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};

use serde::{Deserialize, Serialize};

use super::{
    keylime::{Format, KeylimeOption as O, Kind, SingleFile},
    *,
};

const COMPONENT: Component = Component {
    name: "agent",
    secrets: &["password"],
    keylime: &[&THEIRS],
    from_unit: &[],
};

static THEIRS: Keylime = Keylime {
    component: "verifier",
    format: Format::Ini,
    options: &[
        O::option("bind_port", "8881", "port", Kind::Integer),
        O::option("id", "d432fbb3", "name", Kind::Text),
        O::option("tls", "False", "tls.enabled", Kind::Boolean),
        O::option(
            "ca",
            "default",
            "tls.roots",
            Kind::StateFiles("cv_ca/cacert.crt"),
        ),
        O::option("ca_too", "default", "tls.roots", Kind::TlsFiles),
        O::option("key_password", "", "password", Kind::TextOrDefault),
        O::directory("keylime_dir", "/var/lib/keylime"),
        O::dropped("workers", "16", "nobody works"),
        O::dropped("webhook_url", "", "nobody is told").in_section("revocations"),
    ],
    single_file: SingleFile {
        section: "cloud_verifier",
        renamed: &[("cloudverifier_port", "bind_port")],
        gone: &[("port", "set database_url")],
    },
};

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    port: u16,
    name: String,
    password: Secret,
    tls: Tls,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Tls {
    enabled: bool,
    roots: Vec<String>,
}

impl Sample {
    fn check(&self) -> Result<(), &'static str> {
        match self.name.as_str() {
            "nobody" => Err("name = \"nobody\" is nobody's"),
            _ => Ok(()),
        }
    }
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

    fn load_all(&self) -> Result<Loaded<Sample>, ConfigError> {
        let place = Place {
            file: None,
            root: Some(self.root.path().to_owned()),
        };
        load_with(&COMPONENT, &place, self.environment.iter().cloned())
    }

    fn load(&self) -> Result<Sample, ConfigError> {
        Ok(self.load_all()?.config)
    }

    fn error(&self) -> String {
        self.load().unwrap_err().to_string()
    }

    /// Value and origin of each option; files are named from the machine's root.
    fn shown(&self) -> BTreeMap<String, (String, String)> {
        let shown = self.show();
        let root = self.root.path().to_str().unwrap();
        let options = shown.options.into_iter().map(|option| {
            let origin = option.origin.to_string().replace(root, "");
            (option.name, (option.value.to_string(), origin))
        });
        options.collect()
    }

    fn show(&self) -> Shown {
        let place = Place {
            file: None,
            root: Some(self.root.path().to_owned()),
        };
        let environment = self.environment.iter().cloned();
        show::show_with(&COMPONENT, &place, environment, Sample::check).unwrap()
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

/// Where a service is run from, its unit says where its files are; an administrator may say more.
#[test]
fn the_units_directories_are_defaults() {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Places {
        state_dir: String,
        ca_dir: Option<String>,
    }
    let component = Component {
        from_unit: &[FromUnit::StateDirectory, FromUnit::Certificates],
        keylime: &[],
        ..COMPONENT
    };
    let load = |machine: &Machine, component: &Component| {
        let root = Some(machine.root.path().to_owned());
        let place = Place { file: None, root };
        let environment = machine.environment.iter().cloned();
        let places = load_with::<Places>(component, &place, environment).unwrap();
        (places.config.state_dir, places.config.ca_dir)
    };
    let none = (String::new(), None);
    let machine = Machine::new(&[]).variable("STATE_DIRECTORY", "/var/lib/a:/var/lib/b");
    assert_eq!(load(&machine, &component), ("/var/lib/a".into(), None));
    let machine = machine.credential("server-cert.crt", "a", 0o400);
    assert_eq!(load(&machine, &component).1, None);
    let machine = machine.credential("cacert.crt", "a", 0o400);
    let credentials = machine.root.path().join("credentials");
    let credentials = credentials.to_str().unwrap().to_owned();
    assert_eq!(load(&machine, &component).1, Some(credentials));
    let not_a_service = Component {
        from_unit: &[],
        ..component
    };
    assert_eq!(load(&machine, &not_a_service), none);

    let mut set = Machine::new(&[("etc/troth/agent.toml", "state_dir = '/s'\nca_dir = '/c'")]);
    set.environment = machine.environment;
    assert_eq!(load(&set, &component), ("/s".into(), Some("/c".into())));
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
fn a_credential_sets_any_option_of_the_program_and_no_other() {
    let machine = Machine::new(&[("etc/troth/agent.toml", "port = 1\ntls.enabled = false")])
        .credential("troth.agent.port", "7\n", 0o444)
        .credential("troth.agent.name", "7", 0o400)
        .credential("troth.agent.tls.enabled", "true", 0o400);
    let sample = machine.load().unwrap();
    assert_eq!((sample.port, sample.name.as_str()), (7, "7"));
    assert!(sample.tls.enabled);
    let machine = machine.credential("troth.agent.prot", "7", 0o400);
    let error = machine.error();
    assert!(
        error.contains("troth.agent.prot: unknown option `prot`; did you mean"),
        "{error}"
    );
}

#[test]
fn each_option_is_shown_with_who_set_it() {
    let machine = Machine::new(&[
        ("usr/lib/troth/agent.toml", "port = 1\nname = 'vendor'"),
        (
            "etc/troth/agent.toml",
            "# ours\n\nname = \"main\"\npassword = 'hunter2'",
        ),
        (
            "etc/troth/agent.toml.d/10-a.toml",
            "port = 2\n[tls]\nenabled = true",
        ),
    ]);
    let shown = machine.shown();
    let expected = [
        ("name", "\"main\"", "/etc/troth/agent.toml: line 3"),
        ("password", "null", "/etc/troth/agent.toml: line 4"),
        ("port", "2", "/etc/troth/agent.toml.d/10-a.toml: line 1"),
        (
            "tls.enabled",
            "true",
            "/etc/troth/agent.toml.d/10-a.toml: line 3",
        ),
        ("tls.roots", "[]", "default"),
    ];
    let expected = expected
        .map(|(name, value, origin)| (name.to_owned(), (value.to_owned(), origin.to_owned())));
    assert_eq!(shown, BTreeMap::from(expected));

    let machine = machine
        .variable("TROTH_AGENT_PORT", "3")
        .variable("TROTH_AGENT_TLS__ROOTS", "['/a']")
        .credential("troth.agent.password", "hunter2", 0o400);
    let shown = machine.shown();
    assert_eq!(shown["port"], ("3".into(), "$TROTH_AGENT_PORT".into()));
    let roots = ("[\"/a\"]".to_owned(), "$TROTH_AGENT_TLS__ROOTS".to_owned());
    assert_eq!(shown["tls.roots"], roots);
    let credential = "credential /credentials/troth.agent.password";
    assert_eq!(shown["password"], ("null".into(), credential.into()));
}

#[test]
fn what_would_end_a_start_is_noted_beside_the_values() {
    let machine = Machine::new(&[("etc/troth/agent.toml", "port = 1")]);
    assert_eq!(machine.show().notes, []);
    let machine = machine.variable("TROTH_AGENT_NAME", "nobody");
    let origin = ("\"nobody\"".into(), "$TROTH_AGENT_NAME".into());
    assert_eq!(machine.shown()["name"], origin);
    let notes = machine.show().notes;
    let [note] = notes.as_slice() else {
        panic!("{notes:?}");
    };
    let text = "status 78: name = \"nobody\" is nobody's";
    assert!(note.warning && note.text.ends_with(text), "{note:?}");
}

#[test]
fn what_keylimes_files_set_is_shown_under_our_names() {
    let text = "[cloud_verifier]\ncloudverifier_port = 7\n";
    let machine = Machine::new(&[("etc/keylime.conf", text)]);
    let shown = machine.variable("KEYLIME_VERIFIER_TLS", "True").shown();
    let port = ("7".into(), "/etc/keylime.conf: line 2 (bind_port)".into());
    assert_eq!(shown["port"], port);
    let name = ("\"d432fbb3\"".into(), "Keylime's default of id".into());
    assert_eq!(shown["name"], name);
    assert_eq!(
        shown["tls.enabled"],
        ("true".into(), "$KEYLIME_VERIFIER_TLS".into())
    );
    assert_eq!(shown["tls.roots"], ("[]".into(), "default".into()));
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

/// Warnings and information of a start.
fn notes(machine: &Machine) -> (Vec<String>, Vec<String>) {
    let notes = machine.load_all().unwrap().notes.into_iter();
    let (warnings, information): (Vec<_>, Vec<_>) = notes.partition(|note| note.warning);
    let texts = |notes: Vec<Note>| notes.into_iter().map(|note| note.text).collect();
    (texts(warnings), texts(information))
}

#[test]
fn keylimes_files_apply_where_there_are_none_of_ours() {
    let theirs = "[verifier]\nbind_port = 1\n";
    let machine = Machine::new(&[
        ("usr/lib/troth/agent.toml", "port = 9\nname = 'vendor'"),
        ("usr/etc/keylime/verifier.conf", "[verifier]\nid = hidden\n"),
        ("etc/keylime/verifier.conf", theirs),
    ]);
    let sample = machine.load().unwrap();
    // Keylime's default for what its files do not set; of its two main files the local one only.
    assert_eq!((sample.port, sample.name.as_str()), (1, "d432fbb3"));

    for ours in ["etc/troth/agent.toml", "run/troth/agent.toml.d/1.toml"] {
        let machine = Machine::new(&[(ours, "port = 2"), ("etc/keylime/verifier.conf", theirs)]);
        let sample = machine.load().unwrap();
        assert_eq!((sample.port, sample.name.as_str()), (2, ""), "{ours}");
    }
}

#[test]
fn of_keylimes_sources_the_strongest_wins_and_ours_above() {
    let machine = Machine::new(&[
        (
            "etc/keylime/verifier.conf",
            "[verifier]\nbind_port = 1\nid: \"a\"\n",
        ),
        (
            "usr/etc/keylime/verifier.conf.d/9.conf",
            "[verifier]\nbind_port = 2\n",
        ),
        (
            "etc/keylime/verifier.conf.d/1.conf",
            "[verifier]\nbind_port = 3\n",
        ),
    ]);
    let sample = machine.load().unwrap();
    assert_eq!((sample.port, sample.name.as_str()), (3, "a"));
    let machine = machine.variable("KEYLIME_VERIFIER_BIND_PORT", "4");
    assert_eq!(machine.load().unwrap().port, 4);
    let machine = machine.variable("TROTH_AGENT_PORT", "5");
    assert_eq!(machine.load().unwrap().port, 5);
}

#[test]
fn a_file_that_a_variable_names_stands_for_all_and_must_exist() {
    let machine = Machine::new(&[
        ("etc/keylime/verifier.conf", "[verifier]\nbind_port = 1\n"),
        ("named", "[verifier]\nid = named\n"),
    ]);
    let named = machine.root.path().join("named");
    let machine = machine.variable("KEYLIME_VERIFIER_CONFIG", named.to_str().unwrap());
    let sample = machine.load().unwrap();
    assert_eq!((sample.port, sample.name.as_str()), (8881, "named"));
    fs::remove_file(&named).unwrap();
    assert!(machine.error().contains("named"), "{}", machine.error());
}

#[test]
fn what_has_no_meaning_here_is_one_line_of_the_log_each() {
    let machine = Machine::new(&[(
        "etc/keylime/verifier.conf",
        "[verifier]\nworkers = 16\nwrokers = 1\n[revocations]\nwebhook_url = http://x\n",
    )]);
    let (warnings, information) = notes(&machine);
    let [webhook, unknown] = &warnings[..] else {
        panic!("{warnings:?}");
    };
    assert!(webhook.contains("verifier.conf: line 5: webhook_url has no effect: nobody is told"));
    assert!(
        unknown.contains("line 3: wrokers is no option"),
        "{unknown}"
    );
    let [files, workers] = &information[..] else {
        panic!("{information:?}");
    };
    assert!(files.contains("etc/keylime/verifier.conf"), "{files}");
    assert!(
        workers.contains("workers is ignored: nobody works"),
        "{workers}"
    );

    let machine = machine.variable("KEYLIME_VERIFIER_REVOCATIONS_WEBHOOK_URL", "");
    assert_eq!(notes(&machine).0.len(), 1);
}

#[test]
fn the_single_file_of_old_releases_is_read_under_its_old_names() {
    let machine = Machine::new(&[(
        "etc/keylime.conf",
        "[general]\nca_implementation = cfssl\nreceive_revocation_ip = 192.0.2.1\n\
         [cloud_verifier]\ncloudverifier_port = 7\nport = 3306\nkey_password = default\n\
         [cloud_agent]\nnot = ours\n",
    )]);
    assert_eq!(machine.load().unwrap().port, 7);
    assert_eq!(machine.load().unwrap().password.expose(), "");
    let (warnings, information) = notes(&machine);
    assert_eq!(warnings, [""; 0]);
    for told in [
        "port is ignored: set database_url",
        "ca_implementation",
        "receive_revocation_ip is ignored: where revocation notices are heard is an agent's option",
    ] {
        let times = information.iter().filter(|i| i.contains(told)).count();
        assert_eq!(times, 1, "{told}: {information:?}");
    }

    // A file of the component is a newer Keylime's.
    let path = machine.root.path().join("etc/keylime/verifier.conf");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "[verifier]\nbind_port = 8\n").unwrap();
    assert_eq!(machine.load().unwrap().port, 8);
}

#[test]
fn paths_are_below_keylimes_directories_and_only_what_is_there_replaces_ours() {
    let machine = Machine::new(&[("etc/keylime/verifier.conf", "[verifier]\n")]);
    assert!(machine.load().unwrap().tls.roots.is_empty());
    let ca = machine.root.path().join("var/lib/keylime/cv_ca/cacert.crt");
    fs::create_dir_all(ca.parent().unwrap()).unwrap();
    fs::write(&ca, "").unwrap();
    assert_eq!(machine.load().unwrap().tls.roots, [ca.to_str().unwrap()]);

    let machine = machine.variable("KEYLIME_DIR", "/srv");
    assert!(machine.load().unwrap().tls.roots.is_empty());
    let machine = machine.variable("KEYLIME_VERIFIER_CA", "['a.crt', \"/b.crt\"]");
    assert_eq!(machine.load().unwrap().tls.roots, ["/srv/a.crt", "/b.crt"]);
    let machine = machine.variable("KEYLIME_VERIFIER_CA_TOO", "a.crt");
    assert_eq!(machine.load().unwrap().tls.roots, ["/srv/cv_ca/a.crt"]);
}

#[test]
fn what_cannot_be_understood_is_an_error_that_names_file_and_line() {
    for (text, message) in [
        (
            "[verifier]\nbind_port = x\n",
            "line 2: bind_port: \"x\" is not a number",
        ),
        ("[verifier]\nbind_port = 99999\n", "line 2: bind_port: "),
        ("[verifier]\n\ntls = maybe\n", "line 3: tls: "),
        (
            "[verifier]\nca_too = all\n",
            "line 2: ca_too: `all` would trust every client",
        ),
        (
            "[verifier]\nid = a\nid = b\n",
            "line 3: this option is there twice",
        ),
        ("[verifier]\nnonsense\n", "line 2: "),
    ] {
        let error = Machine::new(&[("etc/keylime/verifier.conf", text)]).error();
        assert!(
            error.contains("verifier.conf: ") && error.contains(message),
            "{error}"
        );
    }
}

#[test]
fn a_file_without_end_is_refused() {
    let machine = Machine::new(&[("etc/troth/agent.toml.d/1.toml", "port = 2")]);
    let endless = machine.root.path().join("etc/troth/agent.toml.d/2.toml");
    std::os::unix::fs::symlink("/dev/zero", endless).unwrap();
    let error = machine.error();
    assert!(
        error.ends_with("2.toml: the file is larger than 1 MiB"),
        "{error}"
    );
}
