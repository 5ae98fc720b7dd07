//! An EK in memory, and the answer to a challenge for it, without a TPM.

use anyhow::{Context, Result};
use aws_lc_rs::{
    cipher::{AES_128, DecryptingKey, DecryptionContext, UnboundCipherKey},
    encoding::AsDer,
    hmac,
    iv::FixedLength,
    rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use rcgen::{CertificateParams, KeyPair};
use troth_core::tpm::{CredentialBlob, Name, Public};

/// TPMT_PUBLIC of the EK template L-1 (RSA-2048; TCG EK Credential Profile, annex B.3.3) up to the
/// modulus.
const EK_PUBLIC: &str = "0001000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64\
                         f2a1da1b331469aa00060080004300100800000000000100";

/// An RSA-2048 EK with its certificate.
#[derive(Debug)]
pub struct SoftwareEk {
    key: OaepPrivateDecryptingKey,
    /// Its public area, by the template L-1.
    pub public: Public,
    /// DER, signed by itself.
    pub certificate: Vec<u8>,
}

impl SoftwareEk {
    /// A new key.
    pub fn generate() -> Result<Self> {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048)?;
        let spki = key.public_key().as_der()?;
        let spki = spki.as_ref();
        // In rsaEncryption's SPKI of such a key the modulus is followed by INTEGER 65537.
        let modulus = &spki[spki.len() - 5 - 256..spki.len() - 5];
        let mut tpmt = hex::decode(EK_PUBLIC)?;
        tpmt.extend_from_slice(modulus);
        let pkcs8 = key.as_der()?;
        let issuer = KeyPair::try_from(pkcs8.as_ref())?;
        let certificate = CertificateParams::default().self_signed(&issuer)?;
        Ok(Self {
            key: OaepPrivateDecryptingKey::new(key)?,
            public: Public::from_tpmt(&tpmt)?,
            certificate: certificate.der().to_vec(),
        })
    }

    /// What `TPM2_ActivateCredential` gives for an AK of this name (TPM 2.0 Part 1, "Credential
    /// Protection"). The blob's HMAC is not looked at: a wrong one would show as a wrong tag.
    pub fn activate(&self, ak: &Name, blob: &[u8]) -> Result<Vec<u8>> {
        let blob = CredentialBlob::parse(blob)?;
        let mut seed = vec![0; self.key.min_output_size()];
        let label = b"IDENTITY\0".as_slice();
        let secret = &blob.encrypted_secret;
        let seed = self
            .key
            .decrypt(&OAEP_SHA256_MGF1SHA256, secret, &mut seed, Some(label))?;
        // KDFa's first block is more than an AES-128 key.
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, seed));
        context.update(&1u32.to_be_bytes());
        context.update(b"STORAGE\0");
        context.update(ak.as_bytes());
        context.update(&128u32.to_be_bytes());
        let key = UnboundCipherKey::new(&AES_128, &context.sign().as_ref()[..16])?;

        let (_, mut encrypted) = tpm2b(&blob.id_object)
            .map(|(hmac, rest)| (hmac, rest.to_vec()))
            .context("TPMS_ID_OBJECT without an HMAC")?;
        let iv = DecryptionContext::Iv128(FixedLength::from([0; 16]));
        let plain = DecryptingKey::cfb128(key)?.decrypt(&mut encrypted, iv)?;
        let (credential, _) = tpm2b(plain).context("TPMS_ID_OBJECT without a credential")?;
        Ok(credential.to_vec())
    }
}

/// A TPM2B's content, and what follows.
fn tpm2b(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*size)))
}
