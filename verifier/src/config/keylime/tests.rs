use std::{fs, path::Path};

use troth_core::appraise::Tomtou;
use troth_daemon::config::{self, ConfigError, Place};
use troth_tests::configuration::{assert_complete, assert_documented};

use super::*;
use crate::config::{RegistrarConfig, ServerConfig, VerifierConfig};

/// The configuration of a host with nothing but these of Keylime's files.
fn load<C: ServerConfig>(root: &Path, files: &[(&str, &str)]) -> Result<C, ConfigError> {
    for (name, text) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let place = Place {
        file: None,
        root: Some(root.to_owned()),
    };
    Ok(config::load::<C>(&C::COMPONENT, &place)?.report())
}

fn fixture(name: &str) -> String {
    let directory = troth_tests::boot::fixtures().join("keylime-config");
    fs::read_to_string(directory.join(name)).unwrap()
}

#[test]
fn every_option_of_keylimes_servers_is_here_or_dropped_for_a_reason() {
    for table in [&VERIFIER, &REGISTRAR, &CA, &LOGGING] {
        assert_complete(table);
    }
}

#[test]
fn the_documentation_has_every_option_with_its_default() {
    assert_documented::<VerifierConfig>(&VerifierConfig::COMPONENT);
    assert_documented::<RegistrarConfig>(&RegistrarConfig::COMPONENT);
}

#[test]
fn the_files_of_a_fresh_installation_are_our_defaults() {
    let root = tempfile::tempdir().unwrap();
    let names = ["verifier.conf", "registrar.conf", "ca.conf", "logging.conf"];
    let files = names.map(|name| (format!("etc/keylime/{name}"), fixture(name)));
    let files: Vec<_> = files.iter().map(|(n, t)| (&**n, &**t)).collect();
    let verifier: VerifierConfig = load(root.path(), &files).unwrap();
    assert_eq!((verifier.port, &*verifier.uuid), (8881, "default"));
    assert_eq!(verifier.database_pool_size, 15);
    assert_eq!(verifier.ca.cert_organization, "Keylime");
    let ours = VerifierConfig::default();
    assert_eq!(verifier.quote_interval, ours.quote_interval);
    assert_eq!(verifier.request_timeout, ours.request_timeout);
    assert_eq!(verifier.ca_dir(), ours.ca_dir());
    assert_eq!(verifier.database_url(), ours.database_url());
    let registrar: RegistrarConfig = load(root.path(), &files).unwrap();
    assert_eq!((registrar.port, registrar.tls_port), (8890, 8891));
}

#[test]
fn keylimes_tomtou_option_means_what_it_does() {
    let root = tempfile::tempdir().unwrap();
    for (word, expected) in [("True", Tomtou::Fail), ("False", Tomtou::Ignore)] {
        let text = format!("[verifier]\nignore_tomtou_errors = {word}\n");
        let files = [("etc/keylime/verifier.conf", &*text)];
        let verifier: VerifierConfig = load(root.path(), &files).unwrap();
        assert_eq!(verifier.tomtou, expected);
    }
}

#[test]
fn the_wikis_single_file_is_read() {
    let root = tempfile::tempdir().unwrap();
    let text = fixture("keylime.conf")
        .replace(
            "cloudverifier_ip = 127.0.0.1",
            "cloudverifier_ip = 192.0.2.1",
        )
        .replace("cert_organization=MITLL", "cert_organization=Example");
    let files = [("etc/keylime.conf", &*text)];
    let verifier: VerifierConfig = load(root.path(), &files).unwrap();
    assert_eq!((&*verifier.ip, verifier.port), ("192.0.2.1", 8881));
    assert_eq!(verifier.max_retries, 10);
    assert_eq!(verifier.ca.cert_organization, "Example");
    assert_eq!(verifier.server_key_password.expose(), "");
    let registrar: RegistrarConfig = load(root.path(), &files).unwrap();
    assert_eq!((registrar.port, registrar.tls_port), (8890, 8891));
    assert_eq!(registrar.ca.cert_organization, "Example");
}

#[test]
fn a_ca_that_keylime_made_goes_on_being_used() {
    let root = tempfile::tempdir().unwrap();
    let made = root.path().join("var/lib/keylime/reg_ca");
    let files = [
        (
            "etc/keylime/registrar.conf",
            "[registrar]\ntls_dir = generate\n",
        ),
        ("var/lib/keylime/reg_ca/cacert.crt", ""),
    ];
    let registrar: RegistrarConfig = load(root.path(), &files).unwrap();
    assert_eq!(registrar.ca_dir(), made);

    let text = "[registrar]\ntls_dir = /nowhere\n";
    let error = load::<RegistrarConfig>(root.path(), &[("etc/keylime/registrar.conf", text)]);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("line 2: tls_dir: there is no cacert.crt"),
        "{error}"
    );
}

#[test]
fn database_urls_are_sqlalchemys() {
    let base = Base {
        is_ours: false,
        keylime_dir: "/k".into(),
        tls_dir: "/k/cv_ca".into(),
    };
    let url = |text: &str| database_url(text, &base).unwrap();
    let text = |text: &str| Some(Value::String(text.to_owned()));
    assert_eq!(url("sqlite"), None);
    assert_eq!(url(""), None);
    assert_eq!(url("sqlite:////a/b.db"), text("sqlite:///a/b.db"));
    assert_eq!(url("sqlite:///b.db"), text("sqlite:///k/b.db"));
    for postgres in ["postgresql://u:p@h/d", "postgresql+psycopg2://u:p@h/d"] {
        assert_eq!(url(postgres), text("postgres://u:p@h/d"));
    }
    let error = database_url("mysql+pymysql://u:s3cret@h/d", &base).unwrap_err();
    assert!(
        error.contains("mysql") && !error.contains("s3cret"),
        "{error}"
    );
}

#[test]
fn severities_are_keylimes() {
    let root = tempfile::tempdir().unwrap();
    let text = r#"[verifier]
severity_labels = ["low", "high"]
severity_policy = [{"event_id": "ima\\..*", "severity_label": "low"},
    {"event_id": ".*", "severity_label": "high"}]
"#;
    let files = [("etc/keylime/verifier.conf", text)];
    let verifier: VerifierConfig = load(root.path(), &files).unwrap();
    assert_eq!(verifier.severity_labels, ["low", "high"]);
    let rules = verifier.severity_policy;
    assert_eq!((rules.len(), &*rules[0].event_id), (2, r"ima\..*"));

    let text = text.replace("severity_label\"", "label\"");
    let files = [("etc/keylime/verifier.conf", &*text)];
    let error = load::<VerifierConfig>(root.path(), &files)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("severity_policy: not a JSON list of rules"),
        "{error}"
    );
}

#[test]
fn levels_are_pythons() {
    let root = tempfile::tempdir().unwrap();
    let files = [
        ("etc/keylime/registrar.conf", "[registrar]\n"),
        (
            "etc/keylime/logging.conf",
            "[logger_root]\nlevel = WARNING\n",
        ),
    ];
    let registrar: RegistrarConfig = load(root.path(), &files).unwrap();
    assert_eq!(registrar.log(), Some("warn"));
}
