use super::{Entry, ImaKey, VerifiedSignatures};
use crate::tpm::{Digest, HashAlgorithm};

/// Type byte of a signature over a file's digest (EVM_IMA_XATTR_DIGSIG), of one that also stands in
/// `security.evm` (EVM_XATTR_PORTABLE_DIGSIG), and of one over fs-verity's digest
/// (IMA_VERITY_DIGSIG).
const DIGSIG: u8 = 3;
const PORTABLE_DIGSIG: u8 = 5;
const VERITY_DIGSIG: u8 = 6;
/// Bytes before the signature itself: type, version, hash algorithm, key id, size.
const HEADER: usize = 9;

/// A signature as it stands in `security.ima` and in the list: `signature_v2_hdr` of the kernel
/// (security/integrity/integrity.h), big-endian, behind its type. Versions 2 and 3 have this form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImaSignature<'b> {
    /// What the signature is over.
    pub scope: SignatureScope,
    /// Hash algorithm, by the kernel's number.
    hash: u8,
    /// Which key: the last four bytes of its identifier.
    pub key_id: u32,
    /// PKCS #1 v1.5, or ECDSA in DER.
    bytes: &'b [u8],
}

/// What a signature is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SignatureScope {
    /// Version 2: the digest of the file.
    File,
    /// Version 3: the hash over `ima_file_id`, which has fs-verity's digest.
    Verity,
}

/// Why a signature does not count.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureFault {
    /// Version 1, with a padding of its own that no library of ours checks.
    #[error("it is of version 1, which is not supported: sign the file again (evmctl ima_sign)")]
    Version1,
    /// No header of a known version.
    #[error("it is of type {kind}, version {version}")]
    Unknown {
        /// The first byte.
        kind: u8,
        /// The second.
        version: u8,
    },
    /// Header and length disagree.
    #[error("it is cut, or its header is wrong")]
    Malformed,
    /// A hash algorithm that cannot be checked, with its number in the kernel.
    #[error("its hash algorithm (number {0}) is not supported")]
    Hash(u8),
    /// Not of the digest that was measured.
    #[error("it is of another hash algorithm, or of another kind, than the digest")]
    OtherDigest,
    /// No key of that id, neither of the operator nor learned and still allowed.
    #[error("no key with id {0:08x} is known")]
    NoKey(u32),
    /// An algorithm of key and hash that cannot be checked.
    #[error("a key of its kind (id {0:08x}) is not used with that hash")]
    KeyUse(u32),
    /// The key did not sign this digest.
    #[error("the key with id {0:08x} did not make it for this digest")]
    Wrong(u32),
}

impl<'b> ImaSignature<'b> {
    /// Takes a signature apart.
    ///
    /// # Errors
    /// What it is instead.
    pub fn parse(blob: &'b [u8]) -> Result<Self, SignatureFault> {
        let (kind, version) = match blob {
            [kind, version, ..] => (*kind, *version),
            _ => return Err(SignatureFault::Malformed),
        };
        let scope = match (kind, version) {
            (DIGSIG | PORTABLE_DIGSIG, 2) => SignatureScope::File,
            (VERITY_DIGSIG, 3) => SignatureScope::Verity,
            (DIGSIG, 1) => return Err(SignatureFault::Version1),
            _ => return Err(SignatureFault::Unknown { kind, version }),
        };
        let (header, bytes) = blob
            .split_at_checked(HEADER)
            .ok_or(SignatureFault::Malformed)?;
        let &[_, _, hash, a, b, c, d, high, low] = header else {
            return Err(SignatureFault::Malformed);
        };
        if usize::from(u16::from_be_bytes([high, low])) != bytes.len() {
            return Err(SignatureFault::Malformed);
        }
        Ok(Self {
            scope,
            hash,
            key_id: u32::from_be_bytes([a, b, c, d]),
            bytes,
        })
    }

    /// The kernel's name of the hash algorithm; `None`: one that is not supported.
    pub fn hash_name(&self) -> Option<&'static str> {
        Some(match self.hash {
            2 => "sha1",
            4 => "sha256",
            5 => "sha384",
            6 => "sha512",
            7 => "sha224",
            _ => return None,
        })
    }

    /// What must have been signed, were it the signature of `entry`: a digest, and its algorithm's
    /// name.
    pub(crate) fn signed(
        &self,
        entry: &Entry<'_>,
    ) -> Result<(&'static str, Digest), SignatureFault> {
        let name = self.hash_name().ok_or(SignatureFault::Hash(self.hash))?;
        if entry.algorithm != name || entry.verity != (self.scope == SignatureScope::Verity) {
            return Err(SignatureFault::OtherDigest);
        }
        match self.scope {
            SignatureScope::File => Ok((name, entry.digest)),
            SignatureScope::Verity => {
                let algorithm = HashAlgorithm::from_name(name);
                let algorithm = algorithm.ok_or(SignatureFault::Hash(self.hash))?;
                let id = [VERITY_DIGSIG, self.hash];
                Ok((name, algorithm.digest(&[&id, entry.digest.as_bytes()])))
            }
        }
    }

    /// Did the holder of `key` sign the digest, which [`Self::signed`] gave? What is in `verified`
    /// is not checked again.
    pub(crate) fn check(
        &self,
        key: &ImaKey,
        (hash, digest): (&'static str, Digest),
        verified: Option<&VerifiedSignatures>,
    ) -> Result<(), SignatureFault> {
        let check = || match key.verifies(hash, digest.as_bytes(), self.bytes) {
            Some(true) => Ok(()),
            Some(false) => Err(SignatureFault::Wrong(self.key_id)),
            None => Err(SignatureFault::KeyUse(self.key_id)),
        };
        match verified {
            Some(verified) => verified.check(key, (hash, digest.as_bytes()), self.bytes, check),
            None => check(),
        }
    }
}
