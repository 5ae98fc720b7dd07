use std::path::{Path, PathBuf};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rsa::{KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use troth_core::tpm::{Digest, HashAlgorithm};
use troth_daemon::{
    config::Secret,
    private_key::{PrivateKeyError, decrypt_pem},
};
use zeroize::Zeroizing;

use super::state::{self, StateError};
use crate::pem;

/// Default name of the file in the state directory.
pub const FILE: &str = "payload-private.pem";

/// RSA-2048, the size that Keylime's tenant and verifier encrypt to.
const MODULUS_BYTES: usize = 256;

/// The payload transport key. Secrets are encrypted to it; PCR 16 of a quote vouches for it.
#[derive(Debug)]
pub struct TransportKey {
    public_pem: String,
    private: OaepPrivateDecryptingKey,
}

/// Why there is no transport key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The key is encrypted and does not open.
    #[error("{}: {source} (payload_key_password)", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: PrivateKeyError,
    },
    /// The file holds something else than an RSA-2048 key in PKCS#8 PEM.
    #[error("{}: {reason}; the payload key must be an RSA-2048 key in PKCS#8 PEM. Remove the \
             file to have one made", path.display())]
    NotRsa2048 {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// No key could be made.
    #[error("cannot make an RSA key")]
    Generate,
}

/// A share that was not encrypted to this key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("RSA-OAEP decryption failed")]
pub struct DecryptError;

impl TransportKey {
    /// Reads the key (with `password`, if it is encrypted), or makes it when the file does not
    /// exist.
    pub fn load_or_create(path: &Path, password: &Secret) -> Result<Self, TransportError> {
        let private = match state::read(path)?.map(Zeroizing::new) {
            Some(text) => {
                let text = decrypt_pem(&text, password);
                let text = text.map_err(|source| TransportError::Encrypted {
                    path: path.to_owned(),
                    source,
                })?;
                parse(path, &text)?
            }
            None => {
                let key = PrivateDecryptingKey::generate(KeySize::Rsa2048)
                    .map_err(|_| TransportError::Generate)?;
                let der: Pkcs8V1Der<'_> = key.as_der().map_err(|_| TransportError::Generate)?;
                let text = Zeroizing::new(pem::encode("PRIVATE KEY", der.as_ref()));
                state::write(path, text.as_bytes())?;
                key
            }
        };
        if private.key_size_bytes() != MODULUS_BYTES {
            let reason = "the key has another size";
            return Err(TransportError::NotRsa2048 {
                path: path.to_owned(),
                reason,
            });
        }
        let public: PublicKeyX509Der<'_> = private
            .public_key()
            .as_der()
            .map_err(|_| TransportError::Generate)?;
        let public_pem = pem::encode("PUBLIC KEY", public.as_ref());
        let private =
            OaepPrivateDecryptingKey::new(private).map_err(|_| TransportError::Generate)?;
        Ok(Self {
            public_pem,
            private,
        })
    }

    /// SubjectPublicKeyInfo PEM, exactly as sent: PCR 16 binds these bytes.
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// What PCR 16 is extended with.
    pub fn binding(&self, hash: HashAlgorithm) -> Digest {
        hash.digest(&[self.public_pem.as_bytes()])
    }

    /// RSA-OAEP with SHA-1 and an empty label, as Keylime encrypts the shares.
    pub fn decrypt(&self, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, DecryptError> {
        let mut plain = Zeroizing::new(vec![0; MODULUS_BYTES]);
        let length = self
            .private
            .decrypt(&OAEP_SHA1_MGF1SHA1, ciphertext, &mut plain, None)
            .map_err(|_| DecryptError)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<PrivateDecryptingKey, TransportError> {
    let not = |reason| TransportError::NotRsa2048 {
        path: path.to_owned(),
        reason,
    };
    let text = std::str::from_utf8(text).map_err(|_| not("not text"))?;
    let der = pem::decode("PRIVATE KEY", text).ok_or_else(|| not("no PRIVATE KEY block"))?;
    PrivateDecryptingKey::from_pkcs8(&Zeroizing::new(der)).map_err(|_| not("not an RSA key"))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rsa::{OaepPublicEncryptingKey, PublicEncryptingKey};

    use super::*;

    #[test]
    fn the_key_is_made_once_and_decrypts_what_its_public_text_encrypts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let key = TransportKey::load_or_create(&path, &Secret::default()).unwrap();
        let again = TransportKey::load_or_create(&path, &Secret::default()).unwrap();
        assert_eq!(key.public_pem(), again.public_pem());
        assert!(key.public_pem().ends_with("-----END PUBLIC KEY-----\n"));

        let der = pem::decode("PUBLIC KEY", key.public_pem()).unwrap();
        let public =
            OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&der).unwrap()).unwrap();
        let mut sealed = vec![0; public.ciphertext_size()];
        public
            .encrypt(&OAEP_SHA1_MGF1SHA1, b"share", &mut sealed, None)
            .unwrap();
        assert_eq!(again.decrypt(&sealed).unwrap().as_slice(), b"share");
        sealed[5] ^= 1;
        assert_eq!(again.decrypt(&sealed), Err(DecryptError));
    }

    #[test]
    fn another_key_in_the_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        std::fs::write(
            &path,
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        )
        .unwrap();
        let error = TransportKey::load_or_create(&path, &Secret::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}
