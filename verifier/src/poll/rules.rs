use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::ClientConfig;
use troth_core::{
    appraise::{AcceptedAlgorithms, Tomtou},
    bundle::policy_digest,
    identity::{IdentityError, check_ak},
    ima::{IMA_PCR, Keyring, KeyringError},
    policy::{BootPolicy, PolicyError, TpmPolicy},
    tpm::{AttestationKey, KeyError, PcrMask, Public, StructureError},
    wire::Enrolment,
};
use troth_daemon::{
    client::Client,
    tls::{Identity, ServerTrust, TlsError, certificates_from_pem, client_config},
};

use super::{
    node::Shared,
    policies::{Compiled, Named, PolicyCache},
};
use crate::contact::is_host;

/// An enrolment, checked and compiled: everything a judgement needs beyond the evidence.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    address: (String, u16),
    pub(super) ak: Arc<AttestationKey>,
    pub(super) tpm: TpmPolicy,
    pub(super) named: Named,
    pub(super) accept: AcceptedAlgorithms,
    pub(super) tomtou: Tomtou,
    /// Keys for IMA signatures that the operator sent with the node.
    pub(super) ima_keys: Arc<Keyring>,
    /// Pinned to the key of the node's registered certificate; `None`: plain HTTP.
    tls: Option<Arc<ClientConfig>>,
}

/// What the verifier's configuration says of every node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// Refuse nodes without a certificate.
    pub(super) mtls_only: bool,
    /// What violations are.
    pub(super) tomtou: Tomtou,
}

/// Checks and compiles an enrolment; its policies are in `named`. `identity` is the verifier's
/// towards agents.
pub(super) fn rules(
    enrolment: &Enrolment,
    named: Named,
    policies: &PolicyCache,
    identity: &Identity,
    site: Site,
) -> Result<Rules, NodeError> {
    let host = enrolment.cloudagent_ip.clone().unwrap_or_default();
    if !is_host(&host) {
        return Err(NodeError::Address("cloudagent_ip"));
    }
    let port = enrolment.cloudagent_port.filter(|port| *port != 0);
    let port = port.ok_or(NodeError::Address("cloudagent_port"))?;

    let ak = STANDARD
        .decode(&enrolment.ak_tpm)
        .map_err(|_| NodeError::AkEncoding)?;
    let ak = Public::from_tpm2b(&ak).map_err(NodeError::AkStructure)?;
    check_ak(&ak).map_err(NodeError::AkUnsafe)?;
    let ak = Arc::new(AttestationKey::new(&ak).map_err(NodeError::AkUnusable)?);

    let tpm = tpm_policy(enrolment)?;
    let named = match enrolment.mb_policy.as_deref() {
        // Stored before boot policies had names.
        Some(text) => {
            let boot = policies.boot(text).map_err(|source| NodeError::Policy {
                member: "mb_policy",
                source,
            })?;
            named.with(Compiled::boot(&policy_digest(text.as_bytes()), boot))
        }
        None => named,
    };
    check_mask(&named, &tpm)?;
    if let Some(ip) = enrolment.verifier_ip.as_deref()
        && !is_host(ip)
    {
        return Err(NodeError::Address("verifier_ip"));
    }
    let accept = AcceptedAlgorithms {
        hash: enrolment.accept_tpm_hash_algs.clone(),
        encryption: enrolment.accept_tpm_encryption_algs.clone(),
        signing: enrolment.accept_tpm_signing_algs.clone(),
    };
    let tls = match enrolment.mtls_cert.as_deref() {
        None | Some("" | "disabled") if site.mtls_only => return Err(NodeError::MtlsRequired),
        None | Some("" | "disabled") => None,
        Some(pem) => {
            let certificate = certificates_from_pem(pem.as_bytes())
                .map_err(NodeError::Certificate)?
                .into_iter()
                .next()
                .ok_or(NodeError::Certificate(TlsError::NoCertificate))?;
            let trust = ServerTrust::Pinned(certificate);
            Some(client_config(trust, Some(identity)).map_err(NodeError::Certificate)?)
        }
    };
    Ok(Rules {
        address: (host, port),
        ak,
        tpm,
        named,
        accept,
        tomtou: site.tomtou,
        ima_keys: Arc::new(keyring(enrolment)?),
        tls,
    })
}

/// A policy needs the PCRs quoted that hold what it judges.
fn check_mask(named: &Named, tpm: &TpmPolicy) -> Result<(), NodeError> {
    let ima = match named.runtime.as_deref() {
        Some(policy) if policy.requires_ima() => PcrMask::default().with(IMA_PCR),
        _ => PcrMask::default(),
    };
    for (policy, needed) in [("runtime_policy", ima), ("mb_policy", named.boot.mask())] {
        let missing = needed.difference(tpm.mask());
        if !missing.is_empty() {
            return Err(NodeError::Mask { policy, missing });
        }
    }
    Ok(())
}

/// Could a node be judged by this policy beside its others?
pub(super) fn can_follow(enrolment: &Enrolment, policy: Compiled) -> Result<(), NodeError> {
    check_mask(&Named::NONE.with(policy), &tpm_policy(enrolment)?)
}

fn tpm_policy(enrolment: &Enrolment) -> Result<TpmPolicy, NodeError> {
    TpmPolicy::parse(&enrolment.tpm_policy).map_err(|source| NodeError::Policy {
        member: "tpm_policy",
        source,
    })
}

impl Rules {
    /// The same with other policies.
    pub(super) fn with(&self, named: Named) -> Result<Self, NodeError> {
        check_mask(&named, &self.tpm)?;
        Ok(Self {
            named,
            ..self.clone()
        })
    }

    /// What the operator may take for granted, but is not judged.
    pub(super) fn warning(&self) -> Option<&'static str> {
        let bare = self.tpm.allowed().next().is_none()
            && !self.tpm.mask().contains(IMA_PCR)
            && self.named.boot == BootPolicy::None;
        bare.then_some(
            "nothing is measured: only the AK and the agent's key are checked; enrol the node with \
             a TPM policy, a runtime policy or a measured boot policy",
        )
    }

    pub(super) fn connect(&self, shared: &Shared) -> Client {
        let (host, port) = &self.address;
        Client::new(host, *port, self.tls.clone(), shared.request_timeout)
            .body_limit(shared.max_answer_size)
            .share(&shared.large_answers)
    }
}

/// Keys for the node's files.
fn keyring(enrolment: &Enrolment) -> Result<Keyring, NodeError> {
    let text = enrolment.ima_sign_verification_keys.as_deref();
    Keyring::from_json(text.unwrap_or_default()).map_err(NodeError::Keyring)
}

/// An enrolment that cannot be judged by, with the member to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// No usable address or port.
    #[error("{0} is missing or not usable")]
    Address(&'static str),
    /// Not base64.
    #[error("ak_tpm is not base64")]
    AkEncoding,
    /// Not a TPM2B_PUBLIC.
    #[error("ak_tpm: {0}")]
    AkStructure(StructureError),
    /// The host could forge quotes with it.
    #[error("ak_tpm: {0}")]
    AkUnsafe(IdentityError),
    /// No quotes can be checked with it.
    #[error("ak_tpm: {0}")]
    AkUnusable(KeyError),
    /// The registered certificate cannot be pinned.
    #[error("mtls_cert: {0}")]
    Certificate(TlsError),
    /// Not a keyring.
    #[error("ima_sign_verification_keys: {0}")]
    Keyring(KeyringError),
    /// The policy needs PCRs that the quote would not have.
    #[error("tpm_policy: the mask lacks PCRs {missing}, which {policy} needs")]
    Mask {
        /// Which policy.
        policy: &'static str,
        /// The PCRs.
        missing: PcrMask,
    },
    /// Keylime's text for a node without a certificate.
    #[error("mTLS certificate for agent is required!")]
    MtlsRequired,
    /// A policy that no engine can read.
    #[error("{member}: {source}")]
    Policy {
        /// Which member.
        member: &'static str,
        /// The reason.
        source: PolicyError,
    },
    /// A member that says nothing without another.
    #[error("{0} is of no effect without a policy; leave it out")]
    Alone(&'static str),
}
