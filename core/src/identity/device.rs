use super::chain::{CertifiedKey, Purpose, certify};
use super::keys::{AK_SET, check_attributes, check_key_size, check_name_alg};
use super::{AgentId, ChainError, IdentityError, Trust, check_distinct};
use crate::tpm::{
    AttestationKey, CertifyError, HashAlgorithm, ObjectAttributes, Public, check_certification,
};

/// What an IDevID is: it signs whatever it is given, so that it can serve TLS.
const IDEVID_SET: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .union(ObjectAttributes::SIGN);

/// A device's identity as it comes over the wire (TCG TPM 2.0 Keys for Device Identity and
/// Attestation): two keys, their certificates (DER, original bytes), and the AK as certified by the
/// IAK.
#[derive(Clone, Debug)]
pub struct DeviceIdentity {
    /// The key that certifies AKs.
    pub iak: Public,
    /// Its certificate, then those of CAs.
    pub iak_certificates: Vec<Vec<u8>>,
    /// The key that names the device.
    pub idevid: Public,
    /// Its certificate, then those of CAs.
    pub idevid_certificates: Vec<Vec<u8>>,
    /// TPMS_ATTEST of TPM2_Certify.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE over it.
    pub signature: Vec<u8>,
}

/// An AK that is in the TPM of a device which its manufacturer certified. Made by
/// [`certify_ak`] alone.
#[derive(Clone, Debug)]
pub struct CertifiedAk {
    iak: CertifiedKey,
    idevid: CertifiedKey,
}

impl CertifiedAk {
    /// How the IAK's certificate was believed.
    pub fn iak(&self) -> &CertifiedKey {
        &self.iak
    }

    /// How the IDevID's certificate was believed.
    pub fn idevid(&self) -> &CertifiedKey {
        &self.idevid
    }
}

/// Checks that `device`'s IAK certified `ak` for the agent `id`, and that both of its keys lead to
/// a trust anchor.
///
/// The IAK's certificate must be marked as that of an attestation key: an IDevID signs anything, a
/// made-up certification too. Keylime's agents certify for SHA-256(id) from API 2.6 on, and for the
/// bytes of the id before.
pub fn certify_ak(
    ak: &Public,
    id: &AgentId,
    device: &DeviceIdentity,
    trust: &Trust<'_>,
) -> Result<CertifiedAk, DeviceError> {
    check_iak(&device.iak).map_err(DeviceError::Iak)?;
    check_idevid(&device.idevid).map_err(DeviceError::Idevid)?;
    for (one, other) in [
        (&device.iak, ak),
        (&device.idevid, ak),
        (&device.iak, &device.idevid),
    ] {
        check_distinct(one, other).map_err(|_| DeviceError::SameKey)?;
    }
    let key = AttestationKey::new(&device.iak)
        .map_err(|error| DeviceError::Iak(IdentityError::AttestationKey(error)))?;
    let id = id.as_str().as_bytes();
    let digest = HashAlgorithm::Sha256.digest(&[id]);
    check_certification(
        &key,
        &device.attest,
        &device.signature,
        &ak.name(),
        &[digest.as_bytes(), id],
    )?;
    let (iak_certificate, iak_cas) = split(&device.iak_certificates);
    let (idevid_certificate, idevid_cas) = split(&device.idevid_certificates);
    Ok(CertifiedAk {
        iak: certify(&device.iak, iak_certificate, iak_cas, trust, Purpose::Iak)
            .map_err(DeviceError::IakCertificate)?,
        idevid: certify(
            &device.idevid,
            idevid_certificate,
            idevid_cas,
            trust,
            Purpose::Idevid,
        )
        .map_err(DeviceError::IdevidCertificate)?,
    })
}

/// The key's own certificate, and those of CAs. None at all is one that cannot be read.
fn split(certificates: &[Vec<u8>]) -> (&[u8], &[Vec<u8>]) {
    match certificates {
        [own, cas @ ..] => (own, cas),
        [] => (&[], &[]),
    }
}

/// Refuses an IAK that would certify whatever the host likes.
fn check_iak(iak: &Public) -> Result<(), IdentityError> {
    check_attributes("IAK", iak.attributes(), AK_SET, ObjectAttributes::DECRYPT)?;
    check_name_alg("IAK", iak)
}

fn check_idevid(idevid: &Public) -> Result<(), IdentityError> {
    let clear = ObjectAttributes::RESTRICTED.union(ObjectAttributes::DECRYPT);
    check_attributes("IDevID", idevid.attributes(), IDEVID_SET, clear)?;
    check_name_alg("IDevID", idevid)?;
    check_key_size("IDevID", idevid)
}

/// Why a device identity is not believed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The IAK is unfit.
    #[error("iak_tpm: {0}")]
    Iak(#[source] IdentityError),
    /// The IDevID is unfit.
    #[error("idevid_tpm: {0}")]
    Idevid(#[source] IdentityError),
    /// Two of AK, IAK and IDevID are one key.
    #[error("two of AK, IAK and IDevID are the same key")]
    SameKey,
    /// The IAK did not certify this AK for this agent.
    #[error("iak_attest: {0}")]
    Certification(#[from] CertifyError),
    /// The IAK's certificate does not lead to a trust anchor.
    #[error("iak_cert: {0}")]
    IakCertificate(#[source] ChainError),
    /// The IDevID's certificate does not lead to a trust anchor.
    #[error("idevid_cert: {0}")]
    IdevidCertificate(#[source] ChainError),
}

#[cfg(test)]
mod tests;
