use super::{Name, Public};

/// What the registrar sends and TPM2_ActivateCredential takes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CredentialBlob {
    /// Content of TPM2B_ID_OBJECT (without its size).
    pub id_object: Vec<u8>,
    /// Content of TPM2B_ENCRYPTED_SECRET (without its size).
    pub encrypted_secret: Vec<u8>,
}
impl CredentialBlob {
    /// Parses the tpm2-tools file format (magic BADCC0DE, version 1).
    pub fn parse(_bytes: &[u8]) -> Result<Self, CredentialError> {
        todo!()
    }
    /// Writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        todo!()
    }
}
/// TPM2_MakeCredential in software for an RSA or ECC EK.
pub fn make_credential(
    _ek: &Public,
    _ak_name: &Name,
    _credential: &[u8],
) -> Result<CredentialBlob, CredentialError> {
    todo!()
}

/// Why no challenge could be made or read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// Not the tpm2-tools MakeCredential format.
    #[error("challenge blob at byte {offset}: {reason}")]
    Blob {
        /// Offset in bytes.
        offset: usize,
        /// What is wrong there.
        reason: &'static str,
    },
}
