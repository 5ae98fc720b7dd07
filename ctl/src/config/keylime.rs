//! What the options of Keylime's tenant are here (version 2.6 of `tenant.conf`).

use troth_daemon::config::keylime::{
    Base, Format, Keylime, KeylimeOption as O, Kind, SingleFile, Value,
};

const REGISTRAR_CLIENT: &str = "one certificate is for the verifier and for the registrar";
const POLICY: &str = "a policy is given with each node, see `trothctl agent add`";

/// `tenant.conf`.
pub(super) static TENANT: Keylime = Keylime {
    component: "tenant",
    format: Format::Ini,
    options: &[
        O::dropped("version", "2.6", "it is the version of the file's format"),
        O::option("verifier_ip", "127.0.0.1", "verifier_ip", Kind::Text),
        O::option("verifier_port", "8881", "verifier_port", Kind::Integer),
        O::option("registrar_ip", "127.0.0.1", "registrar_ip", Kind::Text),
        O::option("registrar_port", "8891", "registrar_port", Kind::Integer),
        O::option("tls_dir", "default", "ca_dir", Kind::CaDirectory),
        O::dropped(
            "enable_agent_mtls",
            "True",
            "what the agent registered says whether it serves over TLS",
        ),
        O::option("client_key", "default", "client_key", Kind::TlsFile),
        O::option(
            "client_key_password",
            "",
            "client_key_password",
            Kind::TextOrDefault,
        ),
        O::option("client_cert", "default", "client_cert", Kind::TlsFile),
        O::option(
            "trusted_server_ca",
            "default",
            "trusted_server_ca",
            Kind::TlsFiles,
        ),
        O::option(
            "tpm_cert_store",
            "/var/lib/keylime/tpm_cert_store",
            "tpm_cert_store",
            Kind::Custom(tpm_cert_store),
        ),
        O::dropped(
            "max_payload_size",
            "1048576",
            "payloads are not delivered yet",
        ),
        O::option(
            "accept_tpm_hash_algs",
            "['sha512', 'sha384', 'sha256']",
            "accept_tpm_hash_algs",
            Kind::List,
        ),
        O::option(
            "accept_tpm_encryption_algs",
            "['ecc', 'rsa']",
            "accept_tpm_encryption_algs",
            Kind::List,
        ),
        O::option(
            "accept_tpm_signing_algs",
            "['ecschnorr', 'rsassa']",
            "accept_tpm_signing_algs",
            Kind::List,
        ),
        O::option(
            "exponential_backoff",
            "True",
            "exponential_backoff",
            Kind::Boolean,
        ),
        O::option("retry_interval", "2", "retry_interval", Kind::Seconds),
        O::option("max_retries", "5", "max_retries", Kind::Integer),
        O::option("request_timeout", "60", "request_timeout", Kind::Seconds),
        O::option("require_ek_cert", "True", "require_ek_cert", Kind::Boolean),
        O::option(
            "ek_check_script",
            "",
            "ek_check_script",
            Kind::StateFileOrNone(""),
        ),
        O::option("mb_refstate", "", "mb_refstate", Kind::TextOrDefault),
    ],
    single_file: SingleFile {
        section: "tenant",
        renamed: &[
            ("cloudverifier_ip", "verifier_ip"),
            ("cloudverifier_port", "verifier_port"),
            ("agent_mtls_cert_enabled", "enable_agent_mtls"),
            ("ca_cert", "trusted_server_ca"),
            ("my_cert", "client_cert"),
            ("private_key", "client_key"),
            ("private_key_pw", "client_key_password"),
        ],
        gone: &[
            ("registrar_tls_dir", REGISTRAR_CLIENT),
            ("registrar_ca_cert", REGISTRAR_CLIENT),
            ("registrar_my_cert", REGISTRAR_CLIENT),
            ("registrar_private_key", REGISTRAR_CLIENT),
            ("registrar_private_key_pw", REGISTRAR_CLIENT),
            ("tpm_policy", POLICY),
            ("vtpm_policy", POLICY),
            ("allowlist", POLICY),
            ("ima_excludelist", POLICY),
        ],
    },
};

/// Keylime's own store, if it is there; any other must be.
fn tpm_cert_store(text: &str, base: &Base) -> Result<Option<Value>, String> {
    let path = base.keylime_dir.join(text);
    let default = text
        .trim_end_matches('/')
        .ends_with("/keylime/tpm_cert_store");
    if default && !path.exists() {
        return Ok(None);
    }
    Ok(Some(Value::String(path.to_string_lossy().into_owned())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use troth_daemon::config::{self, Place};

    use super::*;
    use crate::config::Config;

    fn load(files: &[(&str, &str)]) -> Config {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let place = Place {
            file: None,
            root: Some(root.path().to_owned()),
        };
        let loaded = config::load::<Config>(&Config::COMPONENT, &place);
        loaded.unwrap().report()
    }

    #[test]
    fn every_option_of_keylimes_tenant_is_here_or_dropped_for_a_reason() {
        troth_tests::configuration::assert_complete(&TENANT);
    }

    #[test]
    fn the_documentation_has_every_option_with_its_default() {
        troth_tests::configuration::assert_documented::<Config>(&Config::COMPONENT);
    }

    #[test]
    fn the_tenant_conf_of_a_fresh_installation_means_what_it_means_to_keylime() {
        let text = include_str!("../../../tests/fixtures/keylime-config/tenant.conf");
        let config = load(&[("etc/keylime/tenant.conf", text)]);
        assert_eq!(config.verifier().unwrap().to_string(), "127.0.0.1:8881");
        assert_eq!(config.retry_interval.0.as_secs(), 2);
        assert_eq!(config.accept_tpm_hash_algs, ["sha512", "sha384", "sha256"]);
        assert!(config.require_ek_cert);
        assert_eq!(config.ek_check_script(), None);
        assert_eq!(config.tpm_cert_store(), Config::default().tpm_cert_store());
    }

    #[test]
    fn the_wikis_single_file_is_read() {
        let text = include_str!("../../../tests/fixtures/keylime-config/keylime.conf")
            .replace("require_ek_cert = True", "require_ek_cert = False")
            .replace("ek_check_script=", "ek_check_script = check.sh")
            .replace(
                "cloudverifier_ip = 127.0.0.1",
                "cloudverifier_ip = v.example",
            );
        let config = load(&[("etc/keylime.conf", &text)]);
        assert_eq!(config.verifier().unwrap().to_string(), "v.example:8881");
        assert!(!config.require_ek_cert);
        let script = config.ek_check_script().unwrap();
        assert!(script.ends_with("var/lib/keylime/check.sh"), "{script:?}");
        let algorithms = ["sha512", "sha384", "sha256", "sha1"];
        assert_eq!(config.accept_tpm_hash_algs, algorithms);
    }
}
