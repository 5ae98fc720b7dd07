//! Quotes signed by a key in memory: evidence of any shape for benchmarks, without a TPM.

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use troth_core::tpm::{HashAlgorithm, PcrValues, Public, Quote};

/// An RSA-2048 AK that no TPM knows of.
#[derive(Debug)]
pub struct SoftwareAk {
    key: KeyPair,
    public: Public,
}

impl SoftwareAk {
    /// A new key with the attributes of an AK (restricted signing key).
    pub fn generate() -> anyhow::Result<Self> {
        let key = KeyPair::generate(KeySize::Rsa2048)?;
        // RSAPublicKey of a 2048-bit key: SEQUENCE header (4 bytes), INTEGER header with the
        // sign byte (5), then the modulus.
        let modulus = &key.public_key().as_ref()[9..9 + 256];
        let mut tpmt = hex::decode("0001000b00050072000000100014000b0800000000000100")?;
        tpmt.extend_from_slice(modulus);
        let public = Public::from_tpmt(&tpmt)?;
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

        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            &attest,
            &mut signature,
        )?;
        let mut structure = hex::decode("0014000b")?;
        tpm2b(&mut structure, &signature)?;
        Ok(Quote::encode(&attest, &structure, pcrs))
    }
}

fn tpm2b(out: &mut Vec<u8>, bytes: &[u8]) -> anyhow::Result<()> {
    out.extend_from_slice(&u16::try_from(bytes.len())?.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}
