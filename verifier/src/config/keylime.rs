//! What the options of Keylime's verifier, registrar, CA and logging are here (versions 2.6 of
//! their files).

use troth_core::finding::severity::SeverityRule;
use troth_daemon::config::keylime::{
    Base, Format, Keylime, KeylimeOption as O, Kind, SingleFile, Value,
};

const FORMAT: &str = "it is the version of the file's format";
const DURABLE: &str = "evidence is not kept for later (durable attestation)";
const KEPT: &str = "evidence_dir keeps evidence for later, as bundles in files";
const PUSH: &str = "nodes are asked (pull mode); agents that push are not served yet";
const REVOCATIONS: &str = "nobody is notified yet; `trothctl agent watch` shows what changes";
const AUTHORIZATION: &str = "there is one rule: a client certificate of the CA is an operator's";
const MIGRATE: &str = "tables are made and upgraded at every start";
const BOOT_ENGINES: &str = "a refstate is judged as by `example`; what else a boot must be is said in a boot \
                            policy, see docs/boot-policy.md";
const WORKERS: &str = "work is spread over all cores; max_workers in verifier.toml is a number of \
                       threads";
const PINNED: &str = "an agent is known by the certificate that it registered";

/// `verifier.conf`.
pub(super) static VERIFIER: Keylime = Keylime {
    component: "verifier",
    format: Format::Ini,
    options: &[
        O::dropped("version", "2.6", FORMAT),
        O::option("uuid", "default", "uuid", Kind::Text),
        O::option("ip", "127.0.0.1", "ip", Kind::Text),
        O::option("port", "8881", "port", Kind::Integer),
        O::dropped(
            "registrar_ip",
            "127.0.0.1",
            "trothctl asks the registrar, the verifier does not",
        ),
        O::dropped(
            "registrar_port",
            "8891",
            "trothctl asks the registrar, the verifier does not",
        ),
        O::option(
            "enable_agent_mtls",
            "True",
            "enable_agent_mtls",
            Kind::Boolean,
        ),
        O::option("tls_dir", "generate", "ca_dir", Kind::CaDirectory),
        O::option("server_key", "default", "server_key", Kind::TlsFile),
        O::option(
            "server_key_password",
            "",
            "server_key_password",
            Kind::TextOrDefault,
        ),
        O::option("server_cert", "default", "server_cert", Kind::TlsFile),
        O::option("client_key", "default", "client_key", Kind::TlsFile),
        O::option(
            "client_key_password",
            "",
            "client_key_password",
            Kind::TextOrDefault,
        ),
        O::option("client_cert", "default", "client_cert", Kind::TlsFile),
        O::option(
            "trusted_client_ca",
            "default",
            "trusted_client_ca",
            Kind::TlsFiles,
        ),
        O::dropped("trusted_server_ca", "default", PINNED),
        O::option(
            "cert_subject_alternative_names",
            "",
            "cert_subject_alternative_names",
            Kind::List,
        ),
        O::dropped("authorization_provider", "simple", AUTHORIZATION),
        O::option(
            "database_url",
            "sqlite",
            "database_url",
            Kind::Custom(database_url),
        ),
        O::option(
            "database_pool_sz_ovfl",
            "5,10",
            "database_pool_size",
            Kind::Custom(database_pool_size),
        ),
        O::dropped("auto_migrate_db", "True", MIGRATE),
        O::dropped("num_workers", "0", WORKERS),
        O::dropped("max_workers", "16", WORKERS),
        O::option(
            "exponential_backoff",
            "True",
            "exponential_backoff",
            Kind::Boolean,
        ),
        O::option("retry_interval", "2", "retry_interval", Kind::Seconds),
        O::option("max_retries", "5", "max_retries", Kind::Integer),
        O::option("quote_interval", "2", "quote_interval", Kind::Seconds),
        O::option(
            "max_upload_size",
            "104857600",
            "max_upload_size",
            Kind::Integer,
        ),
        O::option("request_timeout", "60.0", "request_timeout", Kind::Seconds),
        O::option(
            "measured_boot_policy_name",
            "accept-all",
            "measured_boot_policy_name",
            Kind::Custom(boot_engine),
        ),
        O::dropped("measured_boot_imports", "[]", BOOT_ENGINES),
        O::option(
            "measured_boot_evaluate",
            "once",
            "measured_boot_evaluate",
            Kind::Text,
        ),
        O::option(
            "severity_labels",
            r#"["info", "notice", "warning", "error", "critical", "alert", "emergency"]"#,
            "severity_labels",
            Kind::List,
        ),
        O::option(
            "severity_policy",
            r#"[{"event_id": ".*", "severity_label": "emergency"}]"#,
            "severity_policy",
            Kind::Custom(severity_policy),
        ),
        O::option(
            "ignore_tomtou_errors",
            "False",
            "tomtou",
            Kind::Custom(tomtou),
        ),
        O::dropped("durable_attestation_import", "", KEPT),
        O::dropped("persistent_store_url", "", KEPT),
        O::dropped("transparency_log_url", "", KEPT),
        O::dropped("time_stamp_authority_url", "", KEPT),
        O::dropped("time_stamp_authority_certs_path", "", KEPT),
        O::dropped("persistent_store_format", "json", KEPT),
        O::dropped("persistent_store_encoding", "", KEPT),
        O::dropped("transparency_log_sign_algo", "sha256", KEPT),
        O::dropped("signed_attributes", "", KEPT),
        O::option(
            "require_allow_list_signatures",
            "False",
            "require_allow_list_signatures",
            Kind::Boolean,
        ),
        O::dropped("mode", "pull", PUSH),
        O::dropped("challenge_lifetime", "1800", PUSH),
        O::dropped("verification_timeout", "0", PUSH),
        O::dropped("session_create_rate_limit_per_ip", "50", PUSH),
        O::dropped("session_create_rate_limit_window_ip", "60", PUSH),
        O::dropped("session_create_rate_limit_per_agent", "15", PUSH),
        O::dropped("session_create_rate_limit_window_agent", "60", PUSH),
        O::dropped("session_lifetime", "180", PUSH),
        O::dropped("extend_token_on_attestation", "True", PUSH),
        O::dropped("auto_recover_attestation_failures", "False", PUSH),
        O::dropped("nonce_lifetime", "60", PUSH),
        O::dropped("shutdown_drain_timeout", "10", REVOCATIONS),
        O::dropped("enabled_revocation_notifications", "['agent']", REVOCATIONS)
            .in_section("revocations"),
        O::dropped("zmq_ip", "127.0.0.1", REVOCATIONS).in_section("revocations"),
        O::dropped("zmq_port", "8992", REVOCATIONS).in_section("revocations"),
        O::dropped("webhook_url", "", REVOCATIONS).in_section("revocations"),
    ],
    single_file: SingleFile {
        section: "cloud_verifier",
        renamed: &[
            ("cloudverifier_id", "uuid"),
            ("cloudverifier_ip", "ip"),
            ("cloudverifier_port", "port"),
            ("agent_mtls_cert_enabled", "enable_agent_mtls"),
            ("ca_cert", "trusted_client_ca"),
            ("my_cert", "server_cert"),
            ("private_key", "server_key"),
            ("private_key_pw", "server_key_password"),
            ("agent_mtls_cert", "client_cert"),
            ("agent_mtls_private_key", "client_key"),
            ("agent_mtls_private_key_pw", "client_key_password"),
            ("multiprocessing_pool_num_workers", "num_workers"),
            ("revocation_notifiers", "enabled_revocation_notifications"),
            ("revocation_notifier", "enabled_revocation_notifications"),
            ("revocation_notifier_ip", "zmq_ip"),
            ("revocation_notifier_port", "zmq_port"),
            ("tomtou_errors", "ignore_tomtou_errors"),
        ],
        gone: OLD_SERVER,
    },
};

/// `registrar.conf`.
pub(super) static REGISTRAR: Keylime = Keylime {
    component: "registrar",
    format: Format::Ini,
    options: &[
        O::dropped("version", "2.6", FORMAT),
        O::option("ip", "127.0.0.1", "ip", Kind::Text),
        O::option("port", "8890", "port", Kind::Integer),
        O::option("tls_port", "8891", "tls_port", Kind::Integer),
        O::option("tls_dir", "default", "ca_dir", Kind::CaDirectory),
        O::option("server_key", "default", "server_key", Kind::TlsFile),
        O::option(
            "server_key_password",
            "",
            "server_key_password",
            Kind::TextOrDefault,
        ),
        O::option("server_cert", "default", "server_cert", Kind::TlsFile),
        O::option(
            "trusted_client_ca",
            "default",
            "trusted_client_ca",
            Kind::TlsFiles,
        ),
        O::option(
            "cert_subject_alternative_names",
            "",
            "cert_subject_alternative_names",
            Kind::List,
        ),
        O::dropped("authorization_provider", "simple", AUTHORIZATION),
        O::option(
            "database_url",
            "sqlite",
            "database_url",
            Kind::Custom(database_url),
        ),
        O::option(
            "database_pool_sz_ovfl",
            "5,10",
            "database_pool_size",
            Kind::Custom(database_pool_size),
        ),
        O::dropped(
            "max_workers",
            "16",
            "one thread registers some thousand agents a second",
        ),
        O::dropped("auto_migrate_db", "True", MIGRATE),
        O::dropped("durable_attestation_import", "", DURABLE),
        O::dropped("persistent_store_url", "", DURABLE),
        O::dropped("transparency_log_url", "", DURABLE),
        O::dropped("time_stamp_authority_url", "", DURABLE),
        O::dropped("time_stamp_authority_certs_path", "", DURABLE),
        O::dropped("persistent_store_format", "json", DURABLE),
        O::dropped("persistent_store_encoding", "", DURABLE),
        O::dropped("transparency_log_sign_algo", "sha256", DURABLE),
        O::dropped("signed_attributes", "ek_tpm,aik_tpm,ekcert", DURABLE),
        O::option(
            "tpm_identity",
            "default",
            "tpm_identity",
            Kind::TextOrDefault,
        ),
        O::option(
            "malformed_cert_action",
            "warn",
            "malformed_cert_action",
            Kind::Text,
        ),
    ],
    single_file: SingleFile {
        section: "registrar",
        renamed: &[
            ("registrar_ip", "ip"),
            ("registrar_port", "port"),
            ("registrar_tls_port", "tls_port"),
            ("ca_cert", "trusted_client_ca"),
            ("my_cert", "server_cert"),
            ("private_key", "server_key"),
            ("private_key_pw", "server_key_password"),
        ],
        gone: OLD_SERVER,
    },
};

/// `ca.conf`.
pub(super) static CA: Keylime = Keylime {
    component: "ca",
    format: Format::Ini,
    options: &[
        O::dropped("version", "2.6", FORMAT),
        O::dropped(
            "password",
            "default",
            "the CA's key is a file that only its user can read",
        ),
        O::option("cert_country", "US", "ca.cert_country", Kind::Text),
        O::option(
            "cert_ca_name",
            "Keylime Certificate Authority",
            "ca.cert_ca_name",
            Kind::Text,
        ),
        O::option("cert_state", "MA", "ca.cert_state", Kind::Text),
        O::option("cert_locality", "Lexington", "ca.cert_locality", Kind::Text),
        O::option(
            "cert_organization",
            "Keylime",
            "ca.cert_organization",
            Kind::Text,
        ),
        O::option("cert_org_unit", "53", "ca.cert_org_unit", Kind::Text),
        O::option(
            "cert_ca_lifetime",
            "3650",
            "ca.cert_ca_lifetime",
            Kind::Integer,
        ),
        O::dropped(
            "cert_lifetime",
            "365",
            "certificates of servers are renewed by themselves",
        ),
        O::dropped("cert_bits", "2048", "keys are on the curve P-256"),
        O::dropped(
            "cert_crl_dist",
            "http://localhost:38080/crl",
            "lists of revoked certificates are files, see `client_crl`",
        ),
    ],
    single_file: SingleFile {
        section: "ca",
        renamed: &[],
        gone: &[("cfssl_ip", CFSSL), ("cfssl_port", CFSSL)],
    },
};

const CFSSL: &str = "the CA is built in";

const REGISTRAR_CLIENT: &str = "trothctl asks the registrar; its certificate is set there";
const DATABASE_PARTS: &str = "set database_url";

/// What either server had in `/etc/keylime.conf`.
const OLD_SERVER: &[(&str, &str)] = &[
    (
        "check_client_cert",
        "operators always need a client certificate",
    ),
    ("registrar_tls_dir", REGISTRAR_CLIENT),
    ("registrar_ca_cert", REGISTRAR_CLIENT),
    ("registrar_my_cert", REGISTRAR_CLIENT),
    ("registrar_private_key", REGISTRAR_CLIENT),
    ("registrar_private_key_pw", REGISTRAR_CLIENT),
    (
        "agent_mtls_cert_dir",
        "name the files: client_cert, client_key",
    ),
    ("drivername", DATABASE_PARTS),
    ("username", DATABASE_PARTS),
    ("password", DATABASE_PARTS),
    ("host", DATABASE_PARTS),
    ("port", DATABASE_PARTS),
    ("database", DATABASE_PARTS),
    ("query", DATABASE_PARTS),
    ("revocation_notifier_webhook", REVOCATIONS),
    ("provider_registrar_ip", PROVIDER),
    ("provider_registrar_port", PROVIDER),
    ("provider_registrar_tls_port", PROVIDER),
    ("prov_db_filename", PROVIDER),
];

const PROVIDER: &str = "virtual TPMs are registered like others";

/// SQLAlchemy's URLs: `sqlite`, `sqlite:////PATH`, `postgresql[+DRIVER]://...`.
fn database_url(text: &str, base: &Base) -> Result<Option<Value>, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or((text, ""));
    let url = match scheme.split('+').next().unwrap_or_default() {
        "" | "sqlite" if rest.is_empty() => return Ok(None),
        "sqlite" => {
            let path = base.keylime_dir.join(rest.trim_start_matches('/'));
            let absolute = rest.strip_prefix('/').filter(|path| path.starts_with('/'));
            let path = absolute.map_or(path, Into::into);
            format!("sqlite://{}", path.display())
        }
        "postgresql" | "postgres" => format!("postgres://{rest}"),
        other => {
            return Err(format!(
                "{other:?} is no engine here: use SQLite or PostgreSQL"
            ));
        }
    };
    Ok(Some(Value::String(url)))
}

/// `accept-all` is what Keylime's file comes with, so it is nobody's choice: here it is said in
/// verifier.toml.
fn boot_engine(text: &str, _: &Base) -> Result<Option<Value>, String> {
    let chosen = !matches!(text, "" | "accept-all");
    Ok(chosen.then(|| Value::String(text.to_owned())))
}

/// What `ignore_tomtou_errors` does in Keylime, which is the opposite of what it is called: with
/// `True`, violations fail the host.
fn tomtou(text: &str, base: &Base) -> Result<Option<Value>, String> {
    let fails = Kind::Boolean.convert(text, base)? == Some(Value::Boolean(true));
    let word = if fails { "fail" } else { "ignore" };
    Ok(Some(Value::String(word.to_owned())))
}

/// `SIZE,OVERFLOW`: together the most connections that Keylime opens.
fn database_pool_size(text: &str, _: &Base) -> Result<Option<Value>, String> {
    let mut sum = 0;
    for number in text.split(',') {
        let number: u16 = number
            .trim()
            .parse()
            .map_err(|_| format!("{text:?} is not SIZE,OVERFLOW"))?;
        sum += i64::from(number);
    }
    Ok(Some(Value::Integer(sum)))
}

/// A list of rules, as JSON.
fn severity_policy(text: &str, _: &Base) -> Result<Option<Value>, String> {
    let rules: Vec<SeverityRule> =
        serde_json::from_str(text).map_err(|error| format!("not a JSON list of rules: {error}"))?;
    let rules = Value::try_from(rules).map_err(|error| error.to_string())?;
    Ok(Some(rules))
}

const LOGGING_FORM: &str = "lines have the journal's form, or one of their own outside of systemd";

/// `logging.conf`.
pub(super) static LOGGING: Keylime = Keylime {
    component: "logging",
    format: Format::Ini,
    options: &[
        O::dropped("version", "2.6", FORMAT),
        O::option("level", "INFO", "log", Kind::Custom(level)).in_section("logger_root"),
        O::dropped("handlers", "console", LOGGING_FORM).in_section("logger_root"),
        O::dropped("keys", "root", LOGGING_FORM).in_section("loggers"),
        O::dropped("keys", "console", LOGGING_FORM).in_section("handlers"),
        O::dropped("keys", "formatter", LOGGING_FORM).in_section("formatters"),
        O::dropped(
            "format",
            "%(asctime)s.%(msecs)03d - %(name)s - %(levelname)s - %(message)s",
            LOGGING_FORM,
        )
        .in_section("formatter_formatter"),
        O::dropped("datefmt", "%Y-%m-%d %H:%M:%S", LOGGING_FORM).in_section("formatter_formatter"),
        O::dropped("class", "StreamHandler", LOGGING_FORM).in_section("handler_console"),
        O::dropped("level", "INFO", LOGGING_FORM).in_section("handler_console"),
        O::dropped("formatter", "formatter", LOGGING_FORM).in_section("handler_console"),
        O::dropped("args", "(sys.stdout,)", LOGGING_FORM).in_section("handler_console"),
    ],
    single_file: SingleFile {
        section: "logging",
        renamed: &[],
        gone: &[],
    },
};

/// The names of Python's logging levels.
fn level(text: &str, _: &Base) -> Result<Option<Value>, String> {
    let ours = match text.to_ascii_uppercase().as_str() {
        "NOTSET" => "trace",
        "DEBUG" => "debug",
        "" | "INFO" => return Ok(None),
        "WARN" | "WARNING" => "warn",
        "ERROR" | "CRITICAL" | "FATAL" => "error",
        _ => return Err(format!("{text:?} is no level")),
    };
    Ok(Some(Value::String(ours.to_owned())))
}

#[cfg(test)]
mod tests;
