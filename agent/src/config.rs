//! `agent.toml`: what the administrator may set. Names follow Keylime's where it has the option.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use troth_daemon::{
    config::{Component, FromUnit, Secret},
    logging,
};

pub use checked::InvalidConfig;

/// What the options mean together; combinations that cannot work.
mod checked;
/// What the options of the device identity mean together.
mod device;
/// What the options of Keylime's agent are here.
mod keylime;

/// The configuration as written. Everything has a default that fits a host whose registrar and
/// verifier run beside it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of keys and certificates; 0700.
    pub state_dir: PathBuf,
    /// Agent id: `hash_ek`, `hostname`, `machine-id`, `dmidecode` (the firmware's product uuid),
    /// `generate`, or the id itself.
    pub uuid: String,
    /// The file with the product uuid. The kernel's own is readable by root only.
    pub dmi_product_uuid_path: PathBuf,
    /// Address to listen on.
    pub ip: IpAddr,
    /// Port to listen on; 0 for any.
    pub port: u16,
    /// Address that verifiers connect to: a name or an address. Default: `ip`, or the address that
    /// this host has towards the registrar when `ip` is unspecified.
    pub contact_ip: Option<String>,
    /// Port that verifiers connect to. Default: the port that is listened on.
    pub contact_port: Option<u16>,
    /// Registrar's name or address.
    pub registrar_ip: String,
    /// Registrar's port. Default: 8891 with TLS, else 8890.
    pub registrar_port: Option<u16>,
    /// Register over TLS. Then never without, whatever happens.
    pub registrar_tls: bool,
    /// CA certificates that the registrar's certificate must chain to. Default: the CA that
    /// verifiers' certificates come from, `cv_ca/cacert.crt` in the state directory.
    pub registrar_tls_ca: Option<PathBuf>,
    /// Name that the registrar's certificate must have. Default: `registrar_ip`.
    pub registrar_tls_name: Option<String>,
    /// CA certificates that a client's certificate must chain to.
    /// Default: `cv_ca/cacert.crt` in the state directory.
    pub trusted_client_ca: Option<Vec<PathBuf>>,
    /// Lists of client certificates that are revoked (CRL, PEM or DER), each signed by one of
    /// `trusted_client_ca`; read again when they change. Default: `cacrl.pem` and `cacrl.der` beside
    /// the files of `trusted_client_ca`, if they exist.
    pub client_crl: Vec<PathBuf>,
    /// Serve over mutual TLS. Without, anybody may ask for quotes.
    pub enable_agent_mtls: bool,
    /// TLS server certificate, PEM. Default: `server-cert.crt`, made when missing.
    pub server_cert: Option<PathBuf>,
    /// Its key, PKCS#8 PEM. Default: `server-private.pem`, made when missing.
    pub server_key: Option<PathBuf>,
    /// Password of `server_key`. Default: none, the file is not encrypted.
    pub server_key_password: Secret,
    /// The payload transport key, RSA-2048 PKCS#8 PEM. Default: `payload-private.pem`.
    pub payload_key: Option<PathBuf>,
    /// Password of `payload_key`. Default: none, the file is not encrypted.
    pub payload_key_password: Secret,
    /// The file in which Keylime's agent keeps its AK, taken over when this agent has none yet; it
    /// must exist then. Empty: none. Default: `agent_data.json` in the state directory, else in
    /// /var/lib/keylime, where there is one.
    pub agent_data_path: Option<PathBuf>,
    /// API versions to serve, and to register with; or the one word `default` (all) or `latest`.
    #[serde(deserialize_with = "checked::words")]
    pub api_versions: Option<Vec<String>>,
    /// Way to the TPM: `device:PATH`, `tabrmd`, `swtpm:host=H,port=N`. Default: `/dev/tpmrm0` if
    /// it exists, else tpm2-abrmd.
    pub tcti: Option<String>,
    /// Persistent handle of the EK in hex, such as `0x81010001`. Default: `generate`, from the
    /// template of `tpm_encryption_alg`.
    pub ek_handle: Option<String>,
    /// Password of the TPM's **endorsement** hierarchy; `hex:` before one in hex. Default: none.
    pub tpm_ownerpassword: Secret,
    /// Register with the device identity that the manufacturer gave: IDevID and IAK.
    pub enable_iak_idevid: bool,
    /// Template of IDevID and IAK: `H-1` (RSA 2048), `H-2` (P-256), `H-3` (P-384), `H-4` (P-521),
    /// `manual` for the next two options. Default: `detect`, from the certificates, else `H-1`.
    pub iak_idevid_template: Option<String>,
    /// With template `manual`: `rsa` or `ecc`.
    pub iak_idevid_asymmetric_alg: String,
    /// With template `manual`: `sha256`, `sha384` or `sha512`; the key's size follows.
    pub iak_idevid_name_alg: String,
    /// The IDevID's certificate, PEM or DER. Empty: none. Default: `idevid-cert.crt`, if it exists.
    pub idevid_cert: Option<PathBuf>,
    /// The IAK's certificate, PEM or DER. Empty: none. Default: `iak-cert.crt`, if it exists.
    pub iak_cert: Option<PathBuf>,
    /// Persistent handle of the IDevID in hex. Default: `generate`, from its template.
    pub idevid_handle: Option<String>,
    /// Password of the key at `idevid_handle`; `hex:` before one in hex. Default: none.
    pub idevid_password: Secret,
    /// Persistent handle of the IAK in hex. Default: `generate`, from its template.
    pub iak_handle: Option<String>,
    /// Password of the key at `iak_handle`; `hex:` before one in hex. Default: none.
    pub iak_password: Secret,
    /// PCR bank, and hash of the AK.
    pub tpm_hash_alg: String,
    /// Kind of EK and AK: `rsa2048`, `rsa3072`, `rsa4096`, `ecc256`, `ecc384`, `ecc521`.
    pub tpm_encryption_alg: String,
    /// Quote scheme: `rsassa`, `rsapss`, `ecdsa`. Default: `rsassa` or `ecdsa`, as the key is.
    pub tpm_signing_alg: Option<String>,
    /// The kernel's IMA list in ASCII.
    pub ima_ml_path: PathBuf,
    /// The firmware's event log.
    pub measuredboot_ml_path: PathBuf,
    /// systemd's log of what user space measured.
    pub userspace_ml_path: PathBuf,
    /// First wait before the registrar is asked again, milliseconds; doubles with each try.
    pub exponential_backoff_initial_delay: u64,
    /// Longest wait, milliseconds.
    pub exponential_backoff_max_delay: u64,
    /// Tries after the first. Default: no end.
    pub exponential_backoff_max_retries: Option<u32>,
    /// Least level of what is logged: `error`, `warn`, `info`, `debug` or `trace` (syslog's names are
    /// known too), or `off`; by target as in `info,rustls=warn`. `TROTH_LOG` wins. Default: `info`.
    #[serde(deserialize_with = "logging::option")]
    pub log: Option<String>,
}

impl Config {
    /// `agent.toml`, `TROTH_AGENT_...`, `troth.agent....`.
    pub const COMPONENT: Component = Component {
        name: "agent",
        secrets: &[
            "iak_password",
            "idevid_password",
            "payload_key_password",
            "server_key_password",
            "tpm_ownerpassword",
        ],
        keylime: &[&keylime::AGENT],
        from_unit: &[FromUnit::StateDirectory],
    };
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/troth".into(),
            uuid: "hash_ek".into(),
            dmi_product_uuid_path: "/sys/class/dmi/id/product_uuid".into(),
            ip: IpAddr::from([127, 0, 0, 1]),
            port: 9002,
            contact_ip: None,
            contact_port: None,
            registrar_ip: "127.0.0.1".into(),
            registrar_port: None,
            registrar_tls: false,
            registrar_tls_ca: None,
            registrar_tls_name: None,
            trusted_client_ca: None,
            client_crl: Vec::new(),
            enable_agent_mtls: true,
            server_cert: None,
            server_key: None,
            server_key_password: Secret::default(),
            payload_key: None,
            payload_key_password: Secret::default(),
            agent_data_path: None,
            api_versions: None,
            tcti: None,
            ek_handle: None,
            tpm_ownerpassword: Secret::default(),
            enable_iak_idevid: false,
            iak_idevid_template: None,
            iak_idevid_asymmetric_alg: "rsa".into(),
            iak_idevid_name_alg: "sha256".into(),
            idevid_cert: None,
            iak_cert: None,
            idevid_handle: None,
            idevid_password: Secret::default(),
            iak_handle: None,
            iak_password: Secret::default(),
            tpm_hash_alg: "sha256".into(),
            tpm_encryption_alg: "rsa2048".into(),
            tpm_signing_alg: None,
            ima_ml_path: "/sys/kernel/security/ima/ascii_runtime_measurements".into(),
            measuredboot_ml_path: "/sys/kernel/security/tpm0/binary_bios_measurements".into(),
            userspace_ml_path: "/run/log/systemd/tpm2-measure.log".into(),
            exponential_backoff_initial_delay: 1000,
            exponential_backoff_max_delay: 300_000,
            exponential_backoff_max_retries: None,
            log: None,
        }
    }
}
