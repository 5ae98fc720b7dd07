//! What the options of Keylime's agent are here (`agent.conf` 2.6, pull and push agent).

use troth_daemon::config::keylime::{
    Base, Format, Keylime, KeylimeOption as O, Kind, SingleFile, Value,
};

const PAYLOAD: &str = "payloads are not unpacked yet; what arrives is dropped with a warning";
const REVOCATION: &str = "revocation actions are not run yet";
const PUSH: &str = "this agent is asked by the verifier (pull); it does not push";
const REGISTRAR_TLS: &str = "Keylime's pull agent does not know it either; set registrar_tls, \
                             registrar_port and registrar_tls_ca in agent.toml";

/// `agent.conf`.
pub(super) static AGENT: Keylime = Keylime {
    component: "agent",
    format: Format::Toml,
    options: &[
        O::dropped("version", "2.4", "it is the version of the file's format"),
        O::option(
            "api_versions",
            "default",
            "api_versions",
            Kind::Custom(api_versions),
        ),
        O::option(
            "uuid",
            "d432fbb3-d2f1-4a97-9ef7-75bd81c00000",
            "uuid",
            Kind::Custom(uuid),
        ),
        O::option("ip", "127.0.0.1", "ip", Kind::Text),
        O::option("port", "9002", "port", Kind::Integer),
        O::option("contact_ip", "127.0.0.1", "contact_ip", Kind::Text),
        O::option("contact_port", "9002", "contact_port", Kind::Integer),
        O::option("registrar_ip", "127.0.0.1", "registrar_ip", Kind::Text),
        O::option("registrar_port", "8890", "registrar_port", Kind::Integer),
        O::dropped("registrar_tls_enabled", "false", REGISTRAR_TLS),
        O::dropped("registrar_tls_port", "8891", REGISTRAR_TLS),
        O::dropped("registrar_tls_ca_cert", "default", REGISTRAR_TLS),
        O::dropped(
            "registrar_api_versions",
            "default",
            "api_versions holds for the registrar too",
        ),
        O::option(
            "enable_agent_mtls",
            "true",
            "enable_agent_mtls",
            Kind::Boolean,
        ),
        O::directory("keylime_dir", "/var/lib/keylime"),
        O::option(
            "server_key",
            "default",
            "server_key",
            Kind::StateFile("server-private.pem"),
        ),
        O::option(
            "server_key_password",
            "",
            "server_key_password",
            Kind::TextOrDefault,
        ),
        O::option(
            "server_cert",
            "default",
            "server_cert",
            Kind::StateFile("server-cert.crt"),
        ),
        O::option(
            "payload_key",
            "default",
            "payload_key",
            Kind::StateFile("payload-private.pem"),
        ),
        O::option(
            "payload_key_password",
            "",
            "payload_key_password",
            Kind::TextOrDefault,
        ),
        O::option(
            "trusted_client_ca",
            "default",
            "trusted_client_ca",
            Kind::StateFiles("cv_ca/cacert.crt"),
        ),
        O::dropped("enc_keyname", "derived_tci_key", PAYLOAD),
        O::dropped("dec_payload_file", "decrypted_payload", PAYLOAD),
        O::dropped("secure_size", "1m", PAYLOAD),
        O::dropped("extract_payload_zip", "true", PAYLOAD),
        O::dropped("payload_script", "autorun.sh", PAYLOAD),
        O::dropped("enable_insecure_payload", "false", PAYLOAD),
        O::dropped("allow_payload_revocation_actions", "true", REVOCATION),
        O::dropped("revocation_actions", "", REVOCATION),
        O::dropped("revocation_actions_dir", "/usr/libexec/keylime", REVOCATION),
        O::dropped("revocation_cert", "default", REVOCATION),
        O::dropped("enable_revocation_notifications", "false", REVOCATION),
        O::dropped("revocation_notification_ip", "127.0.0.1", REVOCATION),
        O::dropped("revocation_notification_port", "8992", REVOCATION),
        O::option("tpm_hash_alg", "sha256", "tpm_hash_alg", Kind::Text),
        O::option(
            "tpm_encryption_alg",
            "rsa",
            "tpm_encryption_alg",
            Kind::Text,
        ),
        O::option("tpm_signing_alg", "rsassa", "tpm_signing_alg", Kind::Text),
        O::option("ek_handle", "generate", "ek_handle", Kind::Text),
        O::option("tpm_ownerpassword", "", "tpm_ownerpassword", Kind::Text),
        O::option(
            "enable_iak_idevid",
            "false",
            "enable_iak_idevid",
            Kind::Boolean,
        ),
        O::option(
            "iak_idevid_template",
            "detect",
            "iak_idevid_template",
            Kind::TextOrDefault,
        ),
        O::option(
            "iak_idevid_asymmetric_alg",
            "rsa",
            "iak_idevid_asymmetric_alg",
            Kind::Text,
        ),
        O::option(
            "iak_idevid_name_alg",
            "sha256",
            "iak_idevid_name_alg",
            Kind::Text,
        ),
        O::option("idevid_handle", "", "idevid_handle", Kind::TextOrDefault),
        O::option("idevid_password", "", "idevid_password", Kind::Text),
        O::option("iak_handle", "", "iak_handle", Kind::TextOrDefault),
        O::option("iak_password", "", "iak_password", Kind::Text),
        O::option(
            "iak_cert",
            "default",
            "iak_cert",
            Kind::StateFileOrNone("iak-cert.crt"),
        ),
        O::option(
            "idevid_cert",
            "default",
            "idevid_cert",
            Kind::StateFileOrNone("idevid-cert.crt"),
        ),
        O::option(
            "agent_data_path",
            "default",
            "agent_data_path",
            Kind::StateFileOrNone("agent_data.json"),
        ),
        O::dropped(
            "run_as",
            "keylime:tss",
            "the agent runs as the user that starts it: User= and Group= of its unit",
        ),
        O::option(
            "ima_ml_path",
            "default",
            "ima_ml_path",
            Kind::Custom(from_root),
        ),
        O::option(
            "measuredboot_ml_path",
            "default",
            "measuredboot_ml_path",
            Kind::Custom(from_root),
        ),
        O::option(
            "exponential_backoff_initial_delay",
            "10000",
            "exponential_backoff_initial_delay",
            Kind::Integer,
        ),
        O::option(
            "exponential_backoff_max_retries",
            "5",
            "exponential_backoff_max_retries",
            Kind::Integer,
        ),
        O::option(
            "exponential_backoff_max_delay",
            "300000",
            "exponential_backoff_max_delay",
            Kind::Integer,
        ),
        O::dropped("verifier_url", "https://localhost:8881", PUSH),
        O::dropped("verifier_tls_ca_cert", "default", PUSH),
        O::dropped("attestation_interval_seconds", "60", PUSH),
        O::dropped("certification_keys_server_identifier", "ak", PUSH),
        O::dropped("uefi_logs_evidence_version", "2.1", PUSH),
        O::dropped("tls_accept_invalid_certs", "false", PUSH),
        O::dropped("tls_accept_invalid_hostnames", "false", PUSH),
    ],
    single_file: SingleFile {
        section: "cloud_agent",
        renamed: &[
            ("agent_uuid", "uuid"),
            ("cloudagent_ip", "ip"),
            ("cloudagent_port", "port"),
            ("agent_contact_ip", "contact_ip"),
            ("agent_contact_port", "contact_port"),
            ("mtls_cert_enabled", "enable_agent_mtls"),
            ("mtls_cert", "server_cert"),
            ("mtls_private_key", "server_key"),
            ("mtls_private_key_pw", "server_key_password"),
            ("keylime_ca", "trusted_client_ca"),
            ("listen_notifications", "enable_revocation_notifications"),
            ("listen_notfications", "enable_revocation_notifications"),
        ],
        gone: &[
            ("rsa_keyname", PAYLOAD),
            ("measure_payload_pcr", PAYLOAD),
            (
                "tls_dir",
                "name the files: server_cert, server_key, trusted_client_ca",
            ),
            ("exponential_backoff", "waits between tries always grow"),
            (
                "retry_interval",
                "set exponential_backoff_initial_delay in agent.toml",
            ),
            (
                "max_retries",
                "set exponential_backoff_max_retries in agent.toml",
            ),
        ],
    },
};

fn api_versions(text: &str, base: &Base) -> Result<Option<Value>, String> {
    match text {
        "" | "default" => Ok(None),
        "latest" => Kind::List.convert("2.6", base),
        names => Kind::List.convert(names, base),
    }
}

/// A UUID is told apart from its other spellings; the old agents' ways to ask somebody are gone.
fn uuid(text: &str, _: &Base) -> Result<Option<Value>, String> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        let digits = digits.to_ascii_lowercase();
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
        return Ok(Some(Value::String(parts.join("-"))));
    }
    match text {
        "openstack" | "environment" => Err(format!(
            "{text:?} is not a way to an id here; write the host's id itself"
        )),
        _ => Ok(Some(Value::String(text.to_owned()))),
    }
}

/// Logs of the kernel are below `/`, whatever `keylime_dir` is.
fn from_root(text: &str, _: &Base) -> Result<Option<Value>, String> {
    let unset = text.is_empty() || text == "default";
    let path = format!("/{}", text.trim_start_matches('/'));
    Ok((!unset).then_some(Value::String(path)))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use troth_daemon::config::{self, Place};

    use super::*;
    use crate::config::Config;

    /// The configuration of a host with nothing but these of Keylime's files.
    fn load(root: &Path, files: &[(&str, &str)]) -> Result<Config, config::ConfigError> {
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let place = Place {
            file: None,
            root: Some(root.to_owned()),
        };
        Ok(config::load::<Config>(&Config::COMPONENT, &place)?.report())
    }

    fn fixture(name: &str) -> String {
        let directory = troth_tests::boot::fixtures().join("keylime-config");
        fs::read_to_string(directory.join(name)).unwrap()
    }

    #[test]
    fn every_option_of_keylimes_agent_is_here_or_dropped_for_a_reason() {
        troth_tests::configuration::assert_complete(&AGENT);
    }

    #[test]
    fn the_documentation_has_every_option_with_its_default() {
        troth_tests::configuration::assert_documented::<Config>(&Config::COMPONENT);
    }

    #[test]
    fn the_agent_conf_of_a_fresh_installation_means_what_it_means_to_keylime() {
        let root = tempfile::tempdir().unwrap();
        let config = load(
            root.path(),
            &[("etc/keylime/agent.conf", &fixture("agent.conf"))],
        );
        let config = config.unwrap();
        assert_eq!(config.uuid, "d432fbb3-d2f1-4a97-9ef7-75bd81c00000");
        assert_eq!(config.contact().unwrap(), "127.0.0.1");
        assert_eq!(
            (config.contact_port, config.registrar_port()),
            (Some(9002), 8890)
        );
        assert_eq!(config.exponential_backoff_max_retries, Some(5));
        assert_eq!(
            config.ak_template().unwrap(),
            Config::default().ak_template().unwrap()
        );
        assert_eq!(config.state_dir, Path::new("/var/lib/troth"));
        assert_eq!(config.server_key, None);
    }

    #[test]
    fn files_in_keylimes_directory_go_on_being_used() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("var/lib/keylime");
        let kept = [
            "agent_data.json",
            "cv_ca/cacert.crt",
            "payload-private.pem",
            "server-cert.crt",
            "server-private.pem",
        ];
        let files = kept.map(|name| (format!("var/lib/keylime/{name}"), ""));
        let mut files: Vec<_> = files.iter().map(|(name, text)| (&**name, *text)).collect();
        files.push(("etc/keylime/agent.conf", "[agent]\nuuid = 'hash_ek'\n"));
        let config = load(root.path(), &files).unwrap();
        let [data, ca, payload, certificate, key] = kept.map(|name| directory.join(name));
        assert_eq!(config.agent_data_path, Some(data));
        assert_eq!(config.trusted_client_ca, Some(vec![ca]));
        assert_eq!(config.payload_key, Some(payload));
        assert_eq!(config.server_cert, Some(certificate));
        assert_eq!(config.server_key, Some(key));
        assert_eq!(config.uuid, "hash_ek");
    }

    #[test]
    fn keylimes_directory_that_is_ours_by_another_name_changes_no_default() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("var/lib")).unwrap();
        symlink("troth", root.path().join("var/lib/keylime")).unwrap();
        let config = load(
            root.path(),
            &[
                ("etc/keylime/agent.conf", "[agent]\n"),
                ("var/lib/troth/server-cert.crt", ""),
                ("var/lib/troth/server-private.pem", ""),
                ("var/lib/troth/cv_ca/cacert.crt", ""),
            ],
        );
        let config = config.unwrap();
        assert_eq!((config.server_key, config.server_cert), (None, None));
        assert_eq!(config.trusted_client_ca, None);
    }

    #[test]
    fn agent_conf_is_toml_over_all_its_files_option_by_option() {
        let root = tempfile::tempdir().unwrap();
        let config = load(
            root.path(),
            &[
                (
                    "usr/etc/keylime/agent.conf",
                    "[agent]\nport = 1\nip = '::1'\n",
                ),
                ("etc/keylime/agent.conf", "[agent]\nport = 2\n"),
                (
                    "etc/keylime/agent.conf.d/010.conf",
                    "[agent]\napi_versions = '2.1 2.6'\ntpm_ownerpassword = ' \"x'\n\
                     ima_ml_path = 'run/ima'\n",
                ),
            ],
        );
        let config = config.unwrap();
        assert_eq!((config.port, config.ip.to_string()), (2, "::1".into()));
        assert_eq!(config.api_versions, Some(vec!["2.1".into(), "2.6".into()]));
        assert_eq!(config.tpm_ownerpassword.expose(), " \"x");
        assert_eq!(config.ima_ml_path, Path::new("/run/ima"));

        let broken = [(
            "etc/keylime/agent.conf",
            "[agent]\nport = 1\nuuid = openstack\n",
        )];
        let error = load(root.path(), &broken).unwrap_err().to_string();
        assert!(error.contains("agent.conf: line 3: "), "{error}");
    }

    #[test]
    fn the_wikis_single_file_is_read() {
        let root = tempfile::tempdir().unwrap();
        let text = fixture("keylime.conf")
            .replace("registrar_ip = 127.0.0.1", "registrar_ip = 192.0.2.1")
            .replace("cloudagent_ip = 127.0.0.1", "cloudagent_ip = 192.0.2.2");
        let config = load(root.path(), &[("etc/keylime.conf", &text)]).unwrap();
        assert_eq!(config.registrar_ip, "192.0.2.1");
        assert_eq!(config.ip.to_string(), "192.0.2.2");
        assert_eq!(config.uuid, "d432fbb3-d2f1-4a97-9ef7-75bd81c00000");

        for uuid in ["hostname", "dmidecode", "hash_ek", "my-host"] {
            let text = format!("[cloud_agent]\nagent_uuid = {uuid}\n");
            let config = load(root.path(), &[("etc/keylime.conf", &text)]).unwrap();
            assert_eq!(config.uuid, uuid);
        }
        let text = "[cloud_agent]\nagent_uuid = openstack\n";
        let error = load(root.path(), &[("etc/keylime.conf", text)]).unwrap_err();
        assert!(error.to_string().contains("line 2: uuid: "), "{error}");
    }
}
