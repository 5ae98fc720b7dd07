use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use troth_daemon::config::Secret;

/// `[ca]` of either file: how a CA that is made here is called, and how long it lives.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaSubject {
    /// Common name.
    pub cert_ca_name: String,
    /// Organisation. Empty, as all that follow: left out.
    pub cert_organization: String,
    /// Unit of the organisation.
    pub cert_org_unit: String,
    /// City.
    pub cert_locality: String,
    /// State or province.
    pub cert_state: String,
    /// Country, two letters.
    pub cert_country: String,
    /// Lifetime of the CA in days.
    pub cert_ca_lifetime: u16,
}

impl Default for CaSubject {
    fn default() -> Self {
        Self {
            cert_ca_name: String::from("Troth Certificate Authority"),
            cert_organization: String::from("Troth"),
            cert_org_unit: String::new(),
            cert_locality: String::new(),
            cert_state: String::new(),
            cert_country: String::new(),
            cert_ca_lifetime: 3650,
        }
    }
}

/// Everything that TLS of one server needs.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// The CA and what it issued; for all that is not named below.
    pub ca_dir: PathBuf,
    /// Towards operators (and agents that register).
    pub server: CertificateFiles,
    /// Towards agents, for a server that connects to any.
    pub client: Option<CertificateFiles>,
    /// CAs of operators; none: that of the directory.
    pub trusted_client_ca: Vec<PathBuf>,
    /// What these CAs have revoked; none: the lists of the directory, if there are any.
    pub client_crl: Vec<PathBuf>,
    /// What a server certificate made here is for.
    pub names: Vec<String>,
    /// What a CA made here is called.
    pub subject: CaSubject,
}

/// A certificate and its key.
#[derive(Clone, Debug, Default)]
pub struct CertificateFiles {
    /// Where it is named.
    pub certificate: Option<PathBuf>,
    /// Where it is named.
    pub key: Option<PathBuf>,
    /// Of the key.
    pub password: Secret,
}

impl CertificateFiles {
    pub(super) fn new(
        certificate: Option<&PathBuf>,
        key: Option<&PathBuf>,
        password: &Secret,
    ) -> Self {
        Self {
            certificate: certificate.cloned(),
            key: key.cloned(),
            password: password.clone(),
        }
    }
}

pub(super) fn names(ip: &str, more: &[String]) -> Vec<String> {
    let ip = ip.to_owned();
    std::iter::once(ip).chain(more.iter().cloned()).collect()
}
