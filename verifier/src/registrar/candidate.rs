use base64::{Engine, engine::general_purpose::STANDARD};
use troth_core::{
    identity::{
        AgentId, IdentityError, certificate_matches_key, check_ak, check_distinct, check_ek,
        default_ek_of_certificate, normalise_ek_certificate,
    },
    tpm::{Name, Public, StructureError},
    wire::Registration,
};
use troth_daemon::tls::{TlsError, certificates_from_pem};

use crate::store::Agent;

/// A registration that is well formed, consistent in itself, and safe to challenge.
#[derive(Debug)]
pub(super) struct Candidate {
    /// What will be stored.
    pub(super) agent: Agent,
    /// The key that the challenge is encrypted to.
    pub(super) ek: Public,
    /// Computed from the AK's public area, never taken from the agent.
    pub(super) ak_name: Name,
}

impl Candidate {
    pub(super) fn check(id: &AgentId, mut registration: Registration) -> Result<Self, Unfit> {
        if registration.ek_tpm.as_deref().is_none_or(str::is_empty) {
            registration.ek_tpm = ek_of_certificate(&registration);
        }
        let (aik_tpm, ak) = public("aik_tpm", registration.aik_tpm.as_deref())?;
        let (ek_tpm, ek) = public("ek_tpm", registration.ek_tpm.as_deref())?;
        check_ak(&ak).map_err(|source| Unfit::Key {
            member: "aik_tpm",
            source,
        })?;
        check_ek(&ek).map_err(|source| Unfit::Key {
            member: "ek_tpm",
            source,
        })?;
        check_distinct(&ek, &ak).map_err(|source| Unfit::Key {
            member: "aik_tpm",
            source,
        })?;
        let ekcert = match registration.ekcert.as_deref() {
            None => None,
            Some(text) => {
                normalise_ek_certificate(text.as_bytes()).map_err(|source| Unfit::Key {
                    member: "ekcert",
                    source,
                })?
            }
        };
        if let Some(der) = &ekcert {
            let matches = certificate_matches_key(der, &ek).map_err(|source| Unfit::Key {
                member: "ekcert",
                source,
            })?;
            if !matches {
                return Err(Unfit::OtherKey);
            }
        }
        let mtls_cert = registration.mtls_cert.filter(|pem| !pem.is_empty());
        if let Some(pem) = mtls_cert.as_deref().filter(|pem| *pem != "disabled") {
            certificates_from_pem(pem.as_bytes()).map_err(Unfit::Certificate)?;
        }
        let ip = registration
            .ip
            .filter(|ip| is_host(ip))
            .ok_or(Unfit::Contact("ip"))?;
        let port = registration
            .port
            .filter(|port| *port != 0)
            .ok_or(Unfit::Contact("port"))?;
        let agent = Agent {
            agent_id: id.as_str().to_owned(),
            ek_tpm,
            ekcert: ekcert.map(|der| STANDARD.encode(der)),
            aik_tpm,
            ip,
            port,
            mtls_cert,
            regcount: 0,
        };
        Ok(Self {
            agent,
            ak_name: ak.name(),
            ek,
        })
    }
}

/// Keylime's Python agents send the EK certificate alone, where the TPM has one.
fn ek_of_certificate(registration: &Registration) -> Option<String> {
    let der = normalise_ek_certificate(registration.ekcert.as_deref()?.as_bytes()).ok()??;
    let ek = default_ek_of_certificate(&der).ok()??;
    Some(STANDARD.encode(ek.to_tpm2b()))
}

/// A TPM2B_PUBLIC, with its canonical base64 text.
fn public(member: &'static str, text: Option<&str>) -> Result<(String, Public), Unfit> {
    let text = text
        .filter(|text| !text.is_empty())
        .ok_or(Unfit::Missing(member))?;
    // Strict base64, else hexadecimal, as Keylime reads binary members.
    let bytes = STANDARD
        .decode(text)
        .or_else(|_| hex::decode(text.strip_prefix("0x").unwrap_or(text)))
        .map_err(|_| Unfit::Encoding(member))?;
    let public =
        Public::from_tpm2b(&bytes).map_err(|source| Unfit::Structure { member, source })?;
    Ok((STANDARD.encode(&bytes), public))
}

/// A host name, an IPv4 or an IPv6 address, by alphabet and length.
pub(crate) fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._:%[]".contains(&b))
}

/// Why a registration gets no challenge. Nothing here is secret: the agent is told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// The mTLS certificate is neither PEM nor `disabled`.
    #[error("mtls_cert: {0}")]
    Certificate(TlsError),
    /// No usable contact address or port.
    #[error("{0} is missing or not usable")]
    Contact(&'static str),
    /// Neither base64 nor hexadecimal.
    #[error("{0} is neither base64 nor hexadecimal")]
    Encoding(&'static str),
    /// A key or certificate that must not be believed.
    #[error("{member}: {source}")]
    Key {
        /// Which member.
        member: &'static str,
        /// The reason.
        source: IdentityError,
    },
    /// A required member is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The EK certificate is for another key.
    #[error("ekcert is not the certificate of ek_tpm")]
    OtherKey,
    /// Not a TPM2B_PUBLIC.
    #[error("{member}: {source}")]
    Structure {
        /// Which member.
        member: &'static str,
        /// The reason.
        source: StructureError,
    },
}
