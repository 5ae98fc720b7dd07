use base64::{Engine, engine::general_purpose::STANDARD};
use troth_core::{
    identity::{
        AgentId, CertifiedKey, ChainError, DeviceError, DeviceIdentity, IdentityError, Quirk,
        certificate_matches_key, certify_ak, certify_ek, check_ak, check_distinct, check_ek,
        default_ek_of_certificate, ek_certificate_chain, normalise_ek_certificate,
    },
    tpm::{Name, Public, StructureError},
    wire::Registration,
};
use troth_daemon::tls::{TlsError, certificates_from_pem};
use x509_cert::der::pem::{LineEnding, encode_string};

use super::rules::Rules;
use crate::{
    config::TpmIdentity,
    contact::is_host,
    store::{Agent, Device},
};

/// Bytes of DER of one certificate that is kept; one of an RSA-4096 key has some 2,000.
const MAX_CERTIFICATE: usize = 4 * 1024;
/// Bytes of DER of the CAs' certificates that are looked at, and with an EK's kept; TPMs have up to
/// four or five of some 1,000.
const MAX_CHAIN: usize = 8 * 1024;

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
    pub(super) fn check(
        id: &AgentId,
        mut registration: Registration,
        rules: &Rules,
    ) -> Result<Self, Unfit> {
        if registration.ek_tpm.as_deref().is_none_or(str::is_empty) {
            registration.ek_tpm = ek_of_certificate(&registration);
        }
        let (aik_tpm, ak) = public("aik_tpm", registration.aik_tpm.as_deref())?;
        let (ek_tpm, ek) = public("ek_tpm", registration.ek_tpm.as_deref())?;
        let unfit = |member| move |source| Unfit::Key { member, source };
        check_ak(&ak).map_err(unfit("aik_tpm"))?;
        check_ek(&ek).map_err(unfit("ek_tpm"))?;
        check_distinct(&ek, &ak).map_err(unfit("aik_tpm"))?;
        let ek_certificates = certificates("ekcert", registration.ekcert.as_deref(), rules)?;
        let device = device_identity(&registration, rules)?;
        if let Some((certificate, _)) = ek_certificates.split_first()
            && !certificate_matches_key(certificate, &ek).map_err(unfit("ekcert"))?
        {
            return Err(Unfit::OtherKey);
        }
        check_identity(id, &ek, &ek_certificates, &ak, device.as_ref(), rules)?;

        let mtls_cert = registration.mtls_cert.filter(|pem| !pem.is_empty());
        let mtls_cert = mtls_cert
            .map(|pem| tls_certificate(pem, rules))
            .transpose()?;
        let ip = registration
            .ip
            .filter(|ip| is_host(ip))
            .ok_or(Unfit::Contact("ip"))?;
        let port = registration
            .port
            .filter(|port| *port != 0)
            .ok_or(Unfit::Contact("port"))?;
        let mut ek_certificates = ek_certificates.iter().map(|der| STANDARD.encode(der));
        let agent = Agent {
            agent_id: id.as_str().to_owned(),
            ek_tpm,
            ek_hash: AgentId::hash_ek(&ek).as_str().to_owned(),
            ekcert: ek_certificates.next(),
            ekcert_chain: ek_certificates.collect(),
            aik_tpm,
            ip,
            port,
            mtls_cert,
            device: device.as_ref().map(stored),
            regcount: 0,
        };
        Ok(Self {
            agent,
            ak_name: ak.name(),
            ek,
        })
    }
}

/// The host's TLS certificate as it is kept: the first one, which is all that its peers look at,
/// as PEM; or `disabled`.
fn tls_certificate(pem: String, rules: &Rules) -> Result<String, Unfit> {
    if pem == "disabled" {
        return Ok(pem);
    }
    let certificates = certificates_from_pem(pem.as_bytes()).map_err(Unfit::Certificate)?;
    let first = certificates.first();
    let certificate = first.ok_or(Unfit::Certificate(TlsError::NoCertificate))?;
    rules.check_form("mtls_cert", certificate)?;
    check_size("mtls_cert", certificate)?;
    encode_string("CERTIFICATE", LineEnding::LF, certificate)
        .map_err(|_| Unfit::Certificate(TlsError::NoCertificate))
}

fn check_size(member: &'static str, certificate: &[u8]) -> Result<(), Unfit> {
    match certificate.len() {
        size if size > MAX_CERTIFICATE => Err(Unfit::too_large(member, size, MAX_CERTIFICATE)),
        _ => Ok(()),
    }
}

/// Keylime's Python agents send the EK certificate alone, where the TPM has one.
fn ek_of_certificate(registration: &Registration) -> Option<String> {
    let der = normalise_ek_certificate(registration.ekcert.as_deref()?.as_bytes()).ok()??;
    let ek = default_ek_of_certificate(&der).ok()??;
    Some(STANDARD.encode(ek.to_tpm2b()))
}

/// Is there an identity that a manufacturer vouches for, as far as one is asked for? A device
/// identity that is sent must be good, whether it is asked for or not.
fn check_identity(
    id: &AgentId,
    ek: &Public,
    ek_certificates: &[Vec<u8>],
    ak: &Public,
    device: Option<&DeviceIdentity>,
    rules: &Rules,
) -> Result<(), Unfit> {
    let trust = rules.trust();
    let device = device
        .map(|device| certify_ak(ak, id, device, &trust))
        .transpose()?;
    if let Some(device) = &device {
        log_certified(id, "IAK", device.iak());
        log_certified(id, "IDevID", device.idevid());
    }
    match rules.identity {
        TpmIdentity::IakIdevid if device.is_some() => return Ok(()),
        TpmIdentity::IakIdevid => return Err(Unfit::Missing("iak_tpm")),
        TpmIdentity::EkCertOrIakIdevid if device.is_some() => return Ok(()),
        TpmIdentity::EkCertOrIakIdevid | TpmIdentity::EkCert => {}
    }
    if rules.require_ek_cert {
        let (certificate, cas) = ek_certificates
            .split_first()
            .ok_or(Unfit::Missing("ekcert"))?;
        let ek = certify_ek(ek, certificate, cas, &trust)?;
        log_certified(id, "EK", &ek);
    }
    Ok(())
}

fn log_certified(id: &AgentId, what: &str, key: &CertifiedKey) {
    let (path, tolerated) = (key.path(), key.quirks());
    tracing::debug!(node_id = %id, ?path, ?tolerated, "{what} is certified");
    if tolerated.contains(&Quirk::Expired) {
        tracing::warn!(node_id = %id, "{what}: {}", Quirk::Expired.meaning());
    }
}

/// IAK and IDevID, if any of their members is there; then all of them must be.
fn device_identity(
    registration: &Registration,
    rules: &Rules,
) -> Result<Option<DeviceIdentity>, Unfit> {
    let members = [
        &registration.iak_tpm,
        &registration.idevid_tpm,
        &registration.iak_cert,
        &registration.idevid_cert,
    ];
    if members
        .into_iter()
        .all(|text| text.as_deref().unwrap_or_default().is_empty())
    {
        return Ok(None);
    }
    let (_, iak) = public("iak_tpm", registration.iak_tpm.as_deref())?;
    let (_, idevid) = public("idevid_tpm", registration.idevid_tpm.as_deref())?;
    let chain = |member, text: &Option<String>| {
        let found = certificates(member, text.as_deref(), rules)?;
        match found.is_empty() {
            true => Err(Unfit::Missing(member)),
            false => Ok(found),
        }
    };
    Ok(Some(DeviceIdentity {
        iak,
        iak_certificates: chain("iak_cert", &registration.iak_cert)?,
        idevid,
        idevid_certificates: chain("idevid_cert", &registration.idevid_cert)?,
        attest: binary("iak_attest", registration.iak_attest.as_deref())?,
        signature: binary("iak_sign", registration.iak_sign.as_deref())?,
    }))
}

fn stored(device: &DeviceIdentity) -> Device {
    let own = |certificates: &[Vec<u8>]| certificates.first().map(|der| STANDARD.encode(der));
    Device {
        iak_tpm: STANDARD.encode(device.iak.to_tpm2b()),
        iak_cert: own(&device.iak_certificates).unwrap_or_default(),
        idevid_tpm: STANDARD.encode(device.idevid.to_tpm2b()),
        idevid_cert: own(&device.idevid_certificates).unwrap_or_default(),
    }
}

/// A certificate in any form, and those of CAs that follow it; none if the member is empty.
fn certificates(
    member: &'static str,
    text: Option<&str>,
    rules: &Rules,
) -> Result<Vec<Vec<u8>>, Unfit> {
    let text = text.unwrap_or_default().as_bytes();
    let own = normalise_ek_certificate(text).map_err(|source| Unfit::Key { member, source })?;
    let Some(own) = own else {
        return Ok(Vec::new());
    };
    rules.check_form(member, &own)?;
    check_size(member, &own)?;
    let cas = ek_certificate_chain(text);
    // Before any signature is checked, which costs much more.
    let size = cas.iter().map(Vec::len).sum();
    if size > MAX_CHAIN {
        return Err(Unfit::ChainTooLarge { member, size });
    }
    let mut all = vec![own];
    all.extend(cas);
    Ok(all)
}

/// A TPM2B_PUBLIC, with its canonical base64 text.
fn public(member: &'static str, text: Option<&str>) -> Result<(String, Public), Unfit> {
    let bytes = binary(member, text)?;
    let public =
        Public::from_tpm2b(&bytes).map_err(|source| Unfit::Structure { member, source })?;
    Ok((STANDARD.encode(&bytes), public))
}

/// A required binary member: strict base64, else hexadecimal, as Keylime reads it.
fn binary(member: &'static str, text: Option<&str>) -> Result<Vec<u8>, Unfit> {
    let text = text
        .filter(|text| !text.is_empty())
        .ok_or(Unfit::Missing(member))?;
    STANDARD
        .decode(text)
        .or_else(|_| hex::decode(text.strip_prefix("0x").unwrap_or(text)))
        .map_err(|_| Unfit::Encoding(member))
}

/// Why a registration gets no challenge. Nothing here is secret: the agent is told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// The mTLS certificate is neither PEM nor `disabled`.
    #[error("mtls_cert: {0}")]
    Certificate(TlsError),
    /// The EK certificate leads to no CA of the store.
    #[error("ekcert: {0}")]
    Chain(#[from] ChainError),
    /// Certificates of CAs beyond what is looked at.
    #[error("{member}: {size} bytes of DER of CAs' certificates, of which {MAX_CHAIN} are taken")]
    ChainTooLarge {
        /// Which member they came with.
        member: &'static str,
        /// Their size.
        size: usize,
    },
    /// No usable contact address or port.
    #[error("{0} is missing or not usable")]
    Contact(&'static str),
    /// The device identity is not believed.
    #[error(transparent)]
    Device(#[from] DeviceError),
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
    /// A certificate that only a lenient reader can read.
    #[error("{0} is not strict DER, which malformed_cert_action = \"reject\" asks for")]
    Malformed(&'static str),
    /// A certificate beyond what is kept of anybody.
    #[error("{member}: {size} bytes of DER, of which {limit} are taken")]
    TooLarge {
        /// Which member.
        member: &'static str,
        /// Its size.
        size: usize,
        /// What would be taken.
        limit: usize,
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

impl Unfit {
    fn too_large(member: &'static str, size: usize, limit: usize) -> Self {
        Self::TooLarge {
            member,
            size,
            limit,
        }
    }
}
