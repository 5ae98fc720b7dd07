use super::IdentityError;
use super::x509::KeyNumbers;
use crate::tpm::{AttestationKey, HashAlgorithm, ObjectAttributes, Public, PublicParms};

/// What makes a key an AK: made by the TPM, stays in it, signs only what the TPM itself says.
pub(super) const AK_SET: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .union(ObjectAttributes::RESTRICTED)
    .union(ObjectAttributes::SIGN);

/// What every EK template of the TCG EK Credential Profile sets.
const EK_SET: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .union(ObjectAttributes::ADMIN_WITH_POLICY)
    .union(ObjectAttributes::RESTRICTED)
    .union(ObjectAttributes::DECRYPT);

/// Refuses an AK whose attributes would let the host forge quotes.
///
/// Without `restricted` the host could have any bytes signed, a made-up TPMS_ATTEST too; without
/// `fixedTPM`, `fixedParent` and `sensitiveDataOrigin` the key may live outside the TPM although
/// `TPM2_ActivateCredential` succeeds.
pub fn check_ak(ak: &Public) -> Result<(), IdentityError> {
    check_attributes("AK", ak.attributes(), AK_SET, ObjectAttributes::DECRYPT)?;
    check_name_alg("AK", ak)?;
    AttestationKey::new(ak)
        .map(drop)
        .map_err(IdentityError::AttestationKey)
}

/// Refuses an EK that does not follow a TCG template (TCG EK Credential Profile 2.x, annex B).
pub fn check_ek(ek: &Public) -> Result<(), IdentityError> {
    check_attributes("EK", ek.attributes(), EK_SET, ObjectAttributes::SIGN)?;
    check_name_alg("EK", ek)?;
    if ek.parms().scheme().is_some() {
        return Err(IdentityError::EkScheme);
    }
    if ek.parms().symmetric_bits().is_none() {
        return Err(IdentityError::EkSymmetric);
    }
    check_key_size("EK", ek)
}

/// Refuses an AK that is the EK itself: the same key pair, whatever the public areas say.
pub fn check_distinct(ek: &Public, ak: &Public) -> Result<(), IdentityError> {
    if KeyNumbers::of(ek) == KeyNumbers::of(ak) {
        Err(IdentityError::SameKey)
    } else {
        Ok(())
    }
}

pub(super) fn check_attributes(
    key: &'static str,
    attributes: ObjectAttributes,
    set: ObjectAttributes,
    clear: ObjectAttributes,
) -> Result<(), IdentityError> {
    let missing = set.difference(attributes);
    let forbidden = clear.intersection(attributes);
    if missing.is_empty() && forbidden.is_empty() {
        Ok(())
    } else {
        Err(IdentityError::Attributes {
            key,
            missing,
            forbidden,
        })
    }
}

pub(super) fn check_name_alg(key: &'static str, public: &Public) -> Result<(), IdentityError> {
    match public.name_alg() {
        HashAlgorithm::Sha1 => Err(IdentityError::WeakName { key }),
        _ => Ok(()),
    }
}

pub(super) fn check_key_size(key: &'static str, public: &Public) -> Result<(), IdentityError> {
    match public.parms() {
        PublicParms::Rsa { key_bits, .. } if *key_bits < 2048 => Err(IdentityError::KeySize {
            key,
            bits: *key_bits,
        }),
        _ => Ok(()),
    }
}
