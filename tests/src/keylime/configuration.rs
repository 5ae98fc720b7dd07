use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

/// The component's file in `directory`, from its template here.
pub(super) fn write(
    directory: &Path,
    component: &str,
    template: &str,
    values: &[(&str, String)],
) -> Result<()> {
    let mut text = template.to_owned();
    for (key, value) in values {
        text = text.replace(key, value);
    }
    fs::create_dir_all(directory)?;
    fs::write(file(directory, component), text)?;
    Ok(())
}

/// A command with the files in `directory` as its whole configuration, and its state below.
pub(super) fn command(program: &Path, directory: &Path, components: &[&str]) -> Command {
    let mut command = Command::new(program);
    for component in components {
        command.env(
            format!("KEYLIME_{}_CONFIG", component.to_uppercase()),
            file(directory, component),
        );
    }
    command
        .current_dir(directory)
        .env("KEYLIME_DIR", directory.join("state"))
        .env("PYTHONWARNINGS", "ignore")
        .env("PYTHONUNBUFFERED", "1");
    command
}

fn file(directory: &Path, component: &str) -> PathBuf {
    directory.join(format!("{component}.conf"))
}

/// The options that have no default in Keylime's code, as its own templates give them; what each
/// test bed sets is in braces.
pub(super) const VERIFIER: &str = "\
[verifier]
version = 2.6
uuid = default
ip = 127.0.0.1
port = {verifier_port}
registrar_ip = 127.0.0.1
registrar_port = {registrar_tls_port}
enable_agent_mtls = True
tls_dir = generate
server_key = default
server_key_password =
server_cert = default
client_key = default
client_key_password =
client_cert = default
trusted_client_ca = default
trusted_server_ca = default
cert_subject_alternative_names =
authorization_provider = simple
database_url = sqlite
database_pool_sz_ovfl = 5,10
auto_migrate_db = True
max_workers = 1
exponential_backoff = False
retry_interval = 1
max_retries = 60
quote_interval = 1
max_upload_size = 104857600
request_timeout = 10.0
measured_boot_policy_name = accept-all
measured_boot_imports = []
measured_boot_evaluate = once
severity_labels = [\"info\", \"notice\", \"warning\", \"error\", \"critical\", \"alert\", \"emergency\"]
severity_policy = [{\"event_id\": \".*\", \"severity_label\": \"emergency\"}]
ignore_tomtou_errors = False
durable_attestation_import =
persistent_store_url =
transparency_log_url =
time_stamp_authority_url =
time_stamp_authority_certs_path =
persistent_store_format = json
persistent_store_encoding =
transparency_log_sign_algo = sha256
signed_attributes =
require_allow_list_signatures = False
mode = pull

[revocations]
enabled_revocation_notifications = []
zmq_ip = 127.0.0.1
zmq_port = 8992
webhook_url =
";

pub(super) const REGISTRAR: &str = "\
[registrar]
version = 2.6
ip = 127.0.0.1
port = {registrar_port}
tls_port = {registrar_tls_port}
tls_dir = default
server_key = default
server_key_password =
server_cert = default
trusted_client_ca = default
cert_subject_alternative_names =
authorization_provider = simple
database_url = sqlite
database_pool_sz_ovfl = 5,10
max_workers = 1
auto_migrate_db = True
durable_attestation_import =
persistent_store_url =
transparency_log_url =
time_stamp_authority_url =
time_stamp_authority_certs_path =
persistent_store_format = json
persistent_store_encoding =
transparency_log_sign_algo = sha256
signed_attributes = ek_tpm,aik_tpm,ekcert
tpm_identity = default
malformed_cert_action = reject
";

pub(super) const TENANT: &str = "\
[tenant]
version = 2.6
verifier_ip = 127.0.0.1
verifier_port = {verifier_port}
registrar_ip = 127.0.0.1
registrar_port = {registrar_tls_port}
tls_dir = {ca_dir}
enable_agent_mtls = True
client_key = default
client_key_password =
client_cert = default
trusted_server_ca = ['{ca_dir}/cacert.crt']
tpm_cert_store = {tpm_cert_store}
max_payload_size = 1048576
accept_tpm_hash_algs = ['sha512', 'sha384', 'sha256']
accept_tpm_encryption_algs = ['ecc', 'ecc384', 'rsa']
accept_tpm_signing_algs = ['ecdsa', 'rsassa']
exponential_backoff = False
retry_interval = 1
max_retries = 60
request_timeout = 60
require_ek_cert = True
ek_check_script =
mb_refstate =
";

pub(super) const CA: &str = "\
[ca]
version = 2.6
password = default
cert_country = US
cert_ca_name = Keylime Certificate Authority
cert_state = MA
cert_locality = Lexington
cert_organization = Keylime
cert_org_unit = 53
cert_ca_lifetime = 3650
cert_lifetime = 365
cert_bits = 2048
cert_crl_dist = http://localhost:38080/crl
";

pub(super) const LOGGING: &str = "\
[logging]
version = 2.6
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = formatter
[formatter_formatter]
format = %(asctime)s.%(msecs)03d - %(name)s - %(levelname)s - %(message)s
datefmt = %Y-%m-%d %H:%M:%S
[logger_root]
level = INFO
handlers = console
[handler_console]
class = StreamHandler
level = INFO
formatter = formatter
args = (sys.stdout,)
";

/// Of the agent: release [`super::AGENT_VERSION`].
pub(super) const AGENT: &str = "\
[agent]
version = 2.0
uuid = {uuid}
ip = 127.0.0.1
port = {port}
contact_ip = 127.0.0.1
contact_port = {port}
registrar_ip = 127.0.0.1
registrar_port = {registrar_port}
enable_agent_mtls = true
tls_dir = default
server_key = default
server_key_password =
server_cert = default
trusted_client_ca = ['{ca}']
enc_keyname = derived_tci_key
dec_payload_file = decrypted_payload
secure_size = 1m
tpm_ownerpassword =
extract_payload_zip = true
enable_revocation_notifications = false
revocation_notification_ip = 127.0.0.1
revocation_notification_port = 8992
revocation_cert = default
revocation_actions = []
payload_script =
enable_insecure_payload = false
measure_payload_pcr = -1
exponential_backoff = false
retry_interval = 0.1
max_retries = 10
tpm_hash_alg = sha256
tpm_encryption_alg = rsa
tpm_signing_alg = rsassa
ek_handle = generate
run_as =
";
