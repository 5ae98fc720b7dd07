use std::{io, os::fd::OwnedFd, path::Path};

use aws_lc_rs::{
    digest::{self, Digest as Hashed},
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ParsedPublicKey,
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
        RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, VerificationAlgorithm,
    },
};
use rustix::{
    fs::{XattrFlags, fgetxattr, fsetxattr},
    io::Errno,
};
use troth_core::tpm::{Digest, HashAlgorithm};

use super::keys::{Key, Private, SigningKey};
use crate::error::Error;

const XATTR: &str = "security.ima";
/// Largest value that is looked at: a signature with an RSA key of 8,192 bits and its header.
const MAX_VALUE: usize = 2048;
/// `IMA_XATTR_DIGEST_NG` and `EVM_IMA_XATTR_DIGSIG` (security/integrity/integrity.h of Linux).
const DIGEST: u8 = 0x04;
const SIGNATURE: u8 = 0x03;
/// The version of signatures that is written.
const VERSION: u8 = 2;

/// Writes `security.ima` of files: the digest of their content, or a signature over it.
pub(super) struct Label {
    algorithm: HashAlgorithm,
    signer: Option<Signer>,
    dry_run: bool,
}

/// What a file's label is now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Labelled {
    /// Written, or to be written by a run that is no dry one.
    Written,
    /// It was right already.
    Right,
    /// Somebody else's signature, which is kept.
    Foreign,
}

struct Signer {
    key: SigningKey,
    public: ParsedPublicKey,
}

impl Label {
    /// Labels with digests of `algorithm`, signed by the key in a file if one is named.
    pub(super) fn new(
        algorithm: HashAlgorithm,
        key: Option<&Path>,
        dry_run: bool,
    ) -> Result<Self, Error> {
        if !dry_run && !rustix::process::geteuid().is_root() {
            return Err(Error::Usage {
                option: "--write-xattr",
                reason: format!(
                    "only root may write {XATTR}; --dry-run shows what would be written"
                ),
            });
        }
        let signer = key.map(|path| Signer::read(path, algorithm)).transpose()?;
        Ok(Self {
            algorithm,
            signer,
            dry_run,
        })
    }

    /// The public half of the key that signs.
    pub(super) fn key(&self) -> Option<Key> {
        let signer = self.signer.as_ref()?;
        Some(Key {
            id: Some(signer.key.id),
            spki: signer.key.spki.clone(),
        })
    }

    /// Labels an open file whose content has this digest.
    pub(super) fn write(&self, file: &OwnedFd, digest: &Digest) -> io::Result<Labelled> {
        let mut buffer = [0; MAX_VALUE];
        let present = match fgetxattr(file, XATTR, &mut buffer) {
            Ok(length) => buffer.get(..length).unwrap_or_default(),
            Err(Errno::NODATA) => &[],
            Err(error) => return Err(error.into()),
        };
        let value = match &self.signer {
            None if present.first() == Some(&SIGNATURE) => return Ok(Labelled::Foreign),
            None => {
                let mut value = vec![DIGEST, hash_id(self.algorithm)];
                value.extend(digest.as_bytes());
                value
            }
            Some(signer) => {
                let header = self.header(signer.key.id);
                match present.strip_prefix(&header) {
                    // Two bytes of length are before the signature.
                    Some([_, _, signature @ ..])
                        if signer.made(signature, digest, self.algorithm) =>
                    {
                        return Ok(Labelled::Right);
                    }
                    None if present.first() == Some(&SIGNATURE) => return Ok(Labelled::Foreign),
                    _ => {}
                }
                let signature = signer.sign(digest, self.algorithm)?;
                let length = u16::try_from(signature.len()).unwrap_or(u16::MAX);
                [&header[..], &length.to_be_bytes(), &signature].concat()
            }
        };
        if value == present {
            return Ok(Labelled::Right);
        }
        if !self.dry_run {
            fsetxattr(file, XATTR, &value, XattrFlags::empty())?;
        }
        Ok(Labelled::Written)
    }

    /// What a signature of this key begins with: type, version, hash algorithm, key id.
    fn header(&self, id: u32) -> [u8; 7] {
        let [a, b, c, d] = id.to_be_bytes();
        [SIGNATURE, VERSION, hash_id(self.algorithm), a, b, c, d]
    }
}

impl Signer {
    fn read(path: &Path, algorithm: HashAlgorithm) -> Result<Self, Error> {
        let key = SigningKey::read(path)?;
        let refused = |reason: &str| Error::Malformed {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let verification: &'static dyn VerificationAlgorithm = match (&key.private, algorithm) {
            (Private::Rsa(_), HashAlgorithm::Sha256) => &RSA_PKCS1_2048_8192_SHA256,
            (Private::Rsa(_), HashAlgorithm::Sha384) => &RSA_PKCS1_2048_8192_SHA384,
            (Private::Rsa(_), HashAlgorithm::Sha512) => &RSA_PKCS1_2048_8192_SHA512,
            (Private::P256(_), HashAlgorithm::Sha256) => &ECDSA_P256_SHA256_ASN1,
            (Private::P384(_), HashAlgorithm::Sha384) => &ECDSA_P384_SHA384_ASN1,
            (Private::P521(_), HashAlgorithm::Sha512) => &ECDSA_P521_SHA512_ASN1,
            _ => {
                return Err(refused(
                    "RSA signs digests of sha256, sha384 and sha512; of elliptic curves P-256 \
                     signs sha256, P-384 sha384, P-521 sha512: choose --algorithm accordingly",
                ));
            }
        };
        let public = ParsedPublicKey::new(verification, &key.spki);
        let public = public.map_err(|_| refused("an RSA key of less than 2,048 bits"))?;
        Ok(Self { key, public })
    }

    fn sign(&self, digest: &Digest, algorithm: HashAlgorithm) -> io::Result<Vec<u8>> {
        let fail = |_| io::Error::other("the key cannot sign");
        let hashed = hashed(digest, algorithm)?;
        match &self.key.private {
            Private::Rsa(pair) => {
                let encoding = match algorithm {
                    HashAlgorithm::Sha384 => &RSA_PKCS1_SHA384,
                    HashAlgorithm::Sha512 => &RSA_PKCS1_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign_digest(encoding, &hashed, &mut signature)
                    .map_err(fail)?;
                Ok(signature)
            }
            Private::P256(pair) | Private::P384(pair) | Private::P521(pair) => {
                let signature = pair.sign_digest(&hashed).map_err(fail)?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }

    /// Is this a signature of ours over the digest?
    fn made(&self, signature: &[u8], digest: &Digest, algorithm: HashAlgorithm) -> bool {
        hashed(digest, algorithm)
            .is_ok_and(|hashed| self.public.verify_digest_sig(&hashed, signature).is_ok())
    }
}

fn hashed(digest: &Digest, algorithm: HashAlgorithm) -> io::Result<Hashed> {
    let algorithm = match algorithm {
        HashAlgorithm::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        HashAlgorithm::Sha256 => &digest::SHA256,
        HashAlgorithm::Sha384 => &digest::SHA384,
        HashAlgorithm::Sha512 => &digest::SHA512,
    };
    Hashed::import_less_safe(digest.as_bytes(), algorithm)
        .map_err(|_| io::Error::other("a digest of another algorithm"))
}

/// `enum hash_algo` (include/uapi/linux/hash_info.h).
fn hash_id(algorithm: HashAlgorithm) -> u8 {
    match algorithm {
        HashAlgorithm::Sha1 => 2,
        HashAlgorithm::Sha256 => 4,
        HashAlgorithm::Sha384 => 5,
        HashAlgorithm::Sha512 => 6,
    }
}
