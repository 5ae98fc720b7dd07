use std::num::NonZeroU32;

use aws_lc_rs::{
    cipher::{
        AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey,
    },
    iv::FixedLength,
    pbkdf2,
};
use pkcs8::{
    EncryptedPrivateKeyInfoRef,
    pkcs5::{
        EncryptionScheme,
        pbes2::{self, Kdf, Pbkdf2Prf},
    },
};
use x509_cert::der::pem::{self, LineEnding};
use zeroize::Zeroizing;

use crate::config::Secret;

/// The label of an encrypted key's PEM block (RFC 7468, 11).
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";

/// Most rounds of PBKDF2: seconds on a slow machine, and ten times what is recommended.
const MOST_ROUNDS: u32 = 10_000_000;

/// The key of a PEM file that may be encrypted (PKCS#8 with PBES2, RFC 5958 and RFC 8018), as PEM
/// that is not. An unencrypted key is returned as it is, whatever the password.
///
/// Known are PBKDF2 with HMAC-SHA-1, -256, -384 or -512 and AES-CBC: what OpenSSL and Python write.
pub fn decrypt_pem(text: &[u8], password: &Secret) -> Result<Zeroizing<Vec<u8>>, PrivateKeyError> {
    let begin = format!("-----BEGIN {ENCRYPTED}-----");
    if !text
        .windows(begin.len())
        .any(|window| window == begin.as_bytes())
    {
        return Ok(Zeroizing::new(text.to_vec()));
    }
    let (_, der) = pem::decode_vec(text).map_err(|_| PrivateKeyError::Malformed)?;
    let info = EncryptedPrivateKeyInfoRef::try_from(&der[..]);
    let info = info.map_err(|_| PrivateKeyError::Malformed)?;
    if password.expose().is_empty() {
        return Err(PrivateKeyError::NoPassword);
    }
    let EncryptionScheme::Pbes2(parameters) = &info.encryption_algorithm else {
        return Err(PrivateKeyError::Algorithm);
    };
    let mut buffer = Zeroizing::new(info.encrypted_data.as_bytes().to_vec());
    let key = decrypt(parameters, password, &mut buffer)?;
    let plain = pem::encode_string("PRIVATE KEY", LineEnding::LF, key);
    let plain = plain.map_err(|_| PrivateKeyError::Malformed)?;
    Ok(Zeroizing::new(plain.into_bytes()))
}

fn decrypt<'a>(
    parameters: &pbes2::Parameters,
    password: &Secret,
    buffer: &'a mut [u8],
) -> Result<&'a [u8], PrivateKeyError> {
    let (algorithm, length, iv) = match &parameters.encryption {
        pbes2::EncryptionScheme::Aes128Cbc { iv } => (&AES_128, 16, iv),
        pbes2::EncryptionScheme::Aes192Cbc { iv } => (&AES_192, 24, iv),
        pbes2::EncryptionScheme::Aes256Cbc { iv } => (&AES_256, 32, iv),
        _ => return Err(PrivateKeyError::Algorithm),
    };
    let Kdf::Pbkdf2(derivation) = &parameters.kdf else {
        return Err(PrivateKeyError::Algorithm);
    };
    let hash = match derivation.prf {
        Pbkdf2Prf::HmacWithSha1 => pbkdf2::PBKDF2_HMAC_SHA1,
        Pbkdf2Prf::HmacWithSha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        Pbkdf2Prf::HmacWithSha384 => pbkdf2::PBKDF2_HMAC_SHA384,
        Pbkdf2Prf::HmacWithSha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        _ => return Err(PrivateKeyError::Algorithm),
    };
    let rounds = NonZeroU32::new(derivation.iteration_count);
    let rounds = rounds.filter(|rounds| rounds.get() <= MOST_ROUNDS);
    let rounds = rounds.ok_or(PrivateKeyError::Algorithm)?;
    let mut key = Zeroizing::new([0; 32]);
    let key = &mut key[..length];
    let salt = derivation.salt.as_ref();
    pbkdf2::derive(hash, rounds, salt, password.expose().as_bytes(), key);
    let wrong = |_| PrivateKeyError::Password;
    let cipher = UnboundCipherKey::new(algorithm, key).map_err(wrong)?;
    let cipher = PaddedBlockDecryptingKey::cbc_pkcs7(cipher).map_err(wrong)?;
    let context = DecryptionContext::Iv128(FixedLength::from(*iv));
    let plain = cipher.decrypt(buffer, context).map_err(wrong)?;
    // A wrong password leaves good padding once in 256 times, but no PKCS#8.
    if plain.first() != Some(&0x30) {
        return Err(PrivateKeyError::Password);
    }
    Ok(plain)
}

/// Why there is no private key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateKeyError {
    /// Another way of encryption than those known.
    #[error(
        "the key is encrypted in a way that is not known here; convert it: openssl pkcs8 -topk8 \
         -v2 aes-256-cbc"
    )]
    Algorithm,
    /// The PEM block is no PKCS#8.
    #[error("the encrypted key is not PKCS#8")]
    Malformed,
    /// Encrypted, and no password is there.
    #[error("the key is encrypted: set its password")]
    NoPassword,
    /// The password does not open it.
    #[error("the password does not open the key")]
    Password,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl ecparam -genkey -name prime256v1 | openssl pkcs8 -topk8 -v2 aes-256-cbc
    /// -passout pass:correct`, with the unencrypted form beside it.
    const ENCRYPTED_PEM: &[u8] = include_bytes!("../tests/fixtures/encrypted-key.pem");
    const PLAIN_PEM: &[u8] = include_bytes!("../tests/fixtures/plain-key.pem");

    #[test]
    fn openssls_encrypted_key_opens_with_its_password_only() {
        let open = |password: &str| decrypt_pem(ENCRYPTED_PEM, &password.into());
        assert_eq!(open("correct").unwrap().as_slice(), PLAIN_PEM);
        assert_eq!(open("wrong"), Err(PrivateKeyError::Password));
        assert_eq!(open(""), Err(PrivateKeyError::NoPassword));
        let plain = decrypt_pem(PLAIN_PEM, &"unused".into()).unwrap();
        assert_eq!(plain.as_slice(), PLAIN_PEM);
    }

    #[test]
    fn what_is_no_encrypted_key_is_refused() {
        let cut = &ENCRYPTED_PEM[..ENCRYPTED_PEM.len() - 40];
        assert_eq!(
            decrypt_pem(cut, &"correct".into()),
            Err(PrivateKeyError::Malformed)
        );
    }
}
