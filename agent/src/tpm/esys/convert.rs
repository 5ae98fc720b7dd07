use troth_core::tpm::{HashAlgorithm, SignatureScheme};
use tss_esapi::{
    Error,
    abstraction::AsymmetricAlgorithmSelection,
    attributes::ObjectAttributesBuilder,
    handles::PcrHandle,
    interface_types::{
        algorithm::{HashingAlgorithm, PublicAlgorithm},
        ecc::EccCurve,
        key_bits::RsaKeyBits,
    },
    structures::{
        EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, PcrSelectionList, PcrSlot,
        Public, PublicBuilder, PublicEccParametersBuilder, PublicKeyRsa,
        PublicRsaParametersBuilder, RsaExponent, RsaScheme, SymmetricDefinitionObject,
    },
    traits::Marshall,
};

use super::error::classify;
use crate::tpm::{AkTemplate, KeyKind, TpmError};

pub(super) fn hashing(hash: HashAlgorithm) -> HashingAlgorithm {
    match hash {
        HashAlgorithm::Sha1 => HashingAlgorithm::Sha1,
        HashAlgorithm::Sha256 => HashingAlgorithm::Sha256,
        HashAlgorithm::Sha384 => HashingAlgorithm::Sha384,
        HashAlgorithm::Sha512 => HashingAlgorithm::Sha512,
    }
}

/// The name of a PCR bank; `None`: one that nobody here knows.
pub(super) fn bank_name(hash: HashingAlgorithm) -> Option<&'static str> {
    Some(match hash {
        HashingAlgorithm::Sha1 => "sha1",
        HashingAlgorithm::Sha256 => "sha256",
        HashingAlgorithm::Sha384 => "sha384",
        HashingAlgorithm::Sha512 => "sha512",
        HashingAlgorithm::Sm3_256 => "sm3_256",
        HashingAlgorithm::Sha3_256 => "sha3_256",
        HashingAlgorithm::Sha3_384 => "sha3_384",
        HashingAlgorithm::Sha3_512 => "sha3_512",
        HashingAlgorithm::Null => return None,
    })
}

pub(super) fn selection(kind: KeyKind) -> AsymmetricAlgorithmSelection {
    use AsymmetricAlgorithmSelection as Selection;
    match kind {
        KeyKind::Rsa2048 => Selection::Rsa(RsaKeyBits::Rsa2048),
        KeyKind::Rsa3072 => Selection::Rsa(RsaKeyBits::Rsa3072),
        KeyKind::Rsa4096 => Selection::Rsa(RsaKeyBits::Rsa4096),
        KeyKind::EccP256 => Selection::Ecc(EccCurve::NistP256),
        KeyKind::EccP384 => Selection::Ecc(EccCurve::NistP384),
        KeyKind::EccP521 => Selection::Ecc(EccCurve::NistP521),
    }
}

/// The AK: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign.
pub(super) fn ak_public(template: &AkTemplate) -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_restricted(true)
        .with_sign_encrypt(true)
        .build()?;
    let hash = HashScheme::new(hashing(template.hash));
    let builder = PublicBuilder::new()
        .with_name_hashing_algorithm(hashing(template.hash))
        .with_object_attributes(attributes);
    match selection(template.kind) {
        AsymmetricAlgorithmSelection::Rsa(bits) => {
            let scheme = match template.scheme {
                SignatureScheme::RsaPss => RsaScheme::RsaPss(hash),
                SignatureScheme::RsaSsa | SignatureScheme::Ecdsa => RsaScheme::RsaSsa(hash),
            };
            builder
                .with_public_algorithm(PublicAlgorithm::Rsa)
                .with_rsa_parameters(
                    PublicRsaParametersBuilder::new()
                        .with_symmetric(SymmetricDefinitionObject::Null)
                        .with_scheme(scheme)
                        .with_key_bits(bits)
                        .with_exponent(RsaExponent::default())
                        .with_is_signing_key(true)
                        .with_restricted(true)
                        .build()?,
                )
                .with_rsa_unique_identifier(PublicKeyRsa::default())
                .build()
        }
        AsymmetricAlgorithmSelection::Ecc(curve) => builder
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_ecc_parameters(
                PublicEccParametersBuilder::new()
                    .with_symmetric(SymmetricDefinitionObject::Null)
                    .with_ecc_scheme(EccScheme::EcDsa(hash))
                    .with_curve(curve)
                    .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
                    .with_is_signing_key(true)
                    .with_restricted(true)
                    .build()?,
            )
            .with_ecc_unique_identifier(EccPoint::default())
            .build(),
    }
}

pub(super) fn pcr_selection(bank: HashAlgorithm, pcrs: &[u8]) -> Result<PcrSelectionList, Error> {
    let slots: Vec<PcrSlot> = pcrs.iter().filter_map(|&pcr| pcr_slot(pcr)).collect();
    PcrSelectionList::builder()
        .with_selection(hashing(bank), &slots)
        .build()
}

fn pcr_slot(pcr: u8) -> Option<PcrSlot> {
    1u32.checked_shl(pcr.into())
        .and_then(|bit| PcrSlot::try_from(bit).ok())
}

pub(super) fn pcr_number(slot: PcrSlot) -> u8 {
    // A slot is a single bit of 32, so the count fits.
    u8::try_from(u32::from(slot).trailing_zeros()).unwrap_or(u8::MAX)
}

pub(super) fn pcr_handle(pcr: u8) -> Result<PcrHandle, TpmError> {
    PcrHandle::try_from(u32::from(pcr))
        .map_err(|_| TpmError::Unsupported(format!("PCR {pcr} does not exist")))
}

pub(super) fn marshal(command: &'static str, value: &impl Marshall) -> Result<Vec<u8>, TpmError> {
    value.marshall().map_err(|error| classify(command, &error))
}
