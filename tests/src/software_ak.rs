//! Quotes signed by a key in memory: evidence of any shape for benchmarks and for simulated nodes,
//! without a TPM.

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{self, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256},
};
use troth_core::tpm::{HashAlgorithm, PcrValues, Public, Quote};

/// TPMT_PUBLIC of a restricted signing key, RSA-2048 with RSASSA and SHA-256, up to the modulus.
const RSA_PUBLIC: &str = "0001000b00050072000000100014000b0800000000000100";
/// The same for P-256 with ECDSA and SHA-256, up to the point.
const ECC_PUBLIC: &str = "0023000b00050072000000100018000b00030010";

/// An AK that no TPM knows of.
#[derive(Debug)]
pub struct SoftwareAk {
    key: Key,
    public: Public,
}

#[derive(Debug)]
enum Key {
    Rsa(rsa::KeyPair),
    Ecc(EcdsaKeyPair),
}

impl SoftwareAk {
    /// A new RSA-2048 key with the attributes of an AK (restricted signing key).
    pub fn generate() -> anyhow::Result<Self> {
        let key = rsa::KeyPair::generate(KeySize::Rsa2048)?;
        // RSAPublicKey of a 2048-bit key: SEQUENCE header (4 bytes), INTEGER header with the
        // sign byte (5), then the modulus.
        let public = rsa_public(&key.public_key().as_ref()[9..9 + 256])?;
        let key = Key::Rsa(key);
        Ok(Self { key, public })
    }

    /// The same on P-256.
    pub fn generate_ecc() -> anyhow::Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let mut tpmt = hex::decode(ECC_PUBLIC)?;
        // 04, x, y
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        tpm2b(&mut tpmt, x)?;
        tpm2b(&mut tpmt, y)?;
        let public = Public::from_tpmt(&tpmt)?;
        let key = Key::Ecc(key);
        Ok(Self { key, public })
    }

    /// Its public area.
    pub fn public(&self) -> &Public {
        &self.public
    }

    /// A quote over all of `pcrs` (bank SHA-256) at TPM time `clock`, in milliseconds.
    pub fn quote(&self, nonce: &[u8], pcrs: &PcrValues, clock: u64) -> anyhow::Result<String> {
        let mut attest = hex::decode("ff5443478018")?;
        tpm2b(&mut attest, self.public.name().as_bytes())?;
        tpm2b(&mut attest, nonce)?;
        attest.extend_from_slice(&clock.to_be_bytes());
        attest.extend_from_slice(&1u32.to_be_bytes());
        attest.extend_from_slice(&0u32.to_be_bytes());
        attest.push(1);
        attest.extend_from_slice(&0x2026u64.to_be_bytes());
        attest.extend_from_slice(&1u32.to_be_bytes());
        attest.extend_from_slice(&HashAlgorithm::Sha256.id().to_be_bytes());
        attest.push(3);
        attest.extend_from_slice(&pcrs.mask().bits().to_le_bytes()[..3]);
        tpm2b(&mut attest, pcrs.digest().as_bytes())?;
        Ok(Quote::encode(&attest, &self.sign(&attest)?, pcrs))
    }

    /// TPMT_SIGNATURE over `message`.
    fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                let mut structure = hex::decode("0014000b")?;
                tpm2b(&mut structure, &signature)?;
                Ok(structure)
            }
            Key::Ecc(key) => {
                let signature = key.sign(&random, message)?;
                let (r, s) = signature.as_ref().split_at(32);
                let mut structure = hex::decode("0018000b")?;
                tpm2b(&mut structure, r)?;
                tpm2b(&mut structure, s)?;
                Ok(structure)
            }
        }
    }
}

/// The public area of an RSA-2048 AK with this modulus.
pub fn rsa_public(modulus: &[u8]) -> anyhow::Result<Public> {
    let mut tpmt = hex::decode(RSA_PUBLIC)?;
    tpmt.extend_from_slice(modulus);
    Ok(Public::from_tpmt(&tpmt)?)
}

fn tpm2b(out: &mut Vec<u8>, bytes: &[u8]) -> anyhow::Result<()> {
    out.extend_from_slice(&u16::try_from(bytes.len())?.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}
