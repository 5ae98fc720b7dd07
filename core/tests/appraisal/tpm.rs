use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
};
use troth_core::tpm::{
    AttestationKey, Digest, Expected, HashAlgorithm, PcrMask, PcrValues, Public, Quote,
    VerifiedQuote,
};

use super::{fixture, text_fixture};

/// A TPM with one ECDSA AK, and the PCRs of one bank.
pub(crate) struct Tpm {
    key: EcdsaKeyPair,
    bank: HashAlgorithm,
    pub(crate) pcrs: PcrValues,
    pub(crate) clock: u64,
    pub(crate) reset_count: u32,
    pub(crate) restart_count: u32,
}

/// Makes a mask of PCR numbers.
pub(crate) fn mask(pcrs: impl IntoIterator<Item = u8>) -> PcrMask {
    pcrs.into_iter().fold(PcrMask::default(), PcrMask::with)
}

impl Tpm {
    /// After a reset: all PCRs are zero. The bank (SHA-256 or SHA-384) is the AK's hash too.
    pub(crate) fn new(bank: HashAlgorithm) -> Self {
        let curve = match bank {
            HashAlgorithm::Sha384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
            _ => &ECDSA_P256_SHA256_FIXED_SIGNING,
        };
        let mut pcrs = PcrValues::new(bank);
        (0..24).for_each(|pcr| pcrs.set(pcr, Digest::zero(bank)));
        let key = EcdsaKeyPair::generate(curve).unwrap();
        Self {
            key,
            bank,
            pcrs,
            clock: 1_000,
            reset_count: 7,
            restart_count: 2,
        }
    }

    pub(crate) fn extend(&mut self, pcr: u8, digest: &[u8]) {
        let value = self.pcrs.get(pcr).unwrap().extend(self.bank, digest);
        self.pcrs.set(pcr, value);
    }

    /// Resets PCR 16 and binds a key, as an agent does.
    pub(crate) fn bind(&mut self, pem: &str) {
        self.pcrs.set(16, Digest::zero(self.bank));
        let digest = self.bank.digest(&[pem.as_bytes()]);
        self.extend(16, digest.as_bytes());
    }

    /// A reboot: PCRs are zero, resetCount is one more.
    pub(crate) fn reboot(&mut self) {
        (0..24).for_each(|pcr| self.pcrs.set(pcr, Digest::zero(self.bank)));
        self.reset_count += 1;
        self.restart_count = 0;
    }

    pub(crate) fn ak(&self) -> AttestationKey {
        AttestationKey::new(&self.ak_public()).unwrap()
    }

    pub(crate) fn ak_public(&self) -> Public {
        let (curve, size) = match self.bank {
            HashAlgorithm::Sha384 => (4u16, 48),
            _ => (3u16, 32),
        };
        let mut tpmt = vec![
            0x00, 0x23, 0x00, 0x0b, 0x00, 0x05, 0x00, 0x72, 0, 0, 0x00, 0x10,
        ];
        tpmt.extend([0x00, 0x18]);
        tpmt.extend(self.bank.id().to_be_bytes());
        tpmt.extend(curve.to_be_bytes());
        tpmt.extend([0x00, 0x10]);
        for coordinate in self.key.public_key().as_ref()[1..].chunks(size) {
            tpmt.extend(u16::try_from(size).unwrap().to_be_bytes());
            tpmt.extend(coordinate);
        }
        Public::from_tpmt(&tpmt).unwrap()
    }

    /// TPM2_Quote over the PCRs of `mask`. The clock advances.
    pub(crate) fn quote(&mut self, nonce: &str, mask: PcrMask) -> (Vec<u8>, Vec<u8>, PcrValues) {
        self.clock += 10;
        let mut quoted = PcrValues::new(self.bank);
        for (pcr, value) in self.pcrs.iter().filter(|(pcr, _)| mask.contains(*pcr)) {
            quoted.set(pcr, *value);
        }
        let mut attest = b"\xffTCG\x80\x18".to_vec();
        let sized = |attest: &mut Vec<u8>, bytes: &[u8]| {
            attest.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
            attest.extend(bytes);
        };
        sized(&mut attest, &[0, 11]);
        sized(&mut attest, nonce.as_bytes());
        attest.extend(self.clock.to_be_bytes());
        attest.extend(self.reset_count.to_be_bytes());
        attest.extend(self.restart_count.to_be_bytes());
        attest.push(1);
        attest.extend([0; 8]);
        attest.extend(1u32.to_be_bytes());
        attest.extend(self.bank.id().to_be_bytes());
        attest.push(3);
        attest.extend(&mask.bits().to_le_bytes()[..3]);
        sized(&mut attest, quoted.digest().as_bytes());
        let signed = self.key.sign(&SystemRandom::new(), &attest).unwrap();
        let mut signature = vec![0x00, 0x18];
        signature.extend(self.bank.id().to_be_bytes());
        for half in signed.as_ref().chunks(signed.as_ref().len() / 2) {
            sized(&mut signature, half);
        }
        (attest, signature, quoted)
    }

    /// The quote string of [`Tpm::quote`].
    pub(crate) fn quote_string(&mut self, nonce: &str, mask: PcrMask) -> String {
        let (attest, signature, pcrs) = self.quote(nonce, mask);
        Quote::encode(&attest, &signature, &pcrs)
    }

    /// A verified quote over the PCRs of `mask`.
    pub(crate) fn verified(&mut self, mask: PcrMask) -> VerifiedQuote {
        let (attest, signature, pcrs) = self.quote("nonce", mask);
        let expected = Expected {
            nonce: b"nonce",
            hash: self.bank,
            mask,
        };
        Quote::from_parts(&attest, &signature, pcrs)
            .unwrap()
            .verify(&self.ak(), &expected)
            .unwrap()
    }
}

/// PCRs of one bank as tpm2_pcrread printed them.
pub(crate) fn pcrread(boot: &str, bank: HashAlgorithm) -> PcrValues {
    let text = text_fixture(&format!("boots/{boot}/pcrread.txt"));
    let mut values = PcrValues::new(bank);
    let mut current = "";
    for line in text.lines() {
        let (key, value) = line.split_once(':').unwrap();
        match value.trim().strip_prefix("0x") {
            Some(hex) if current == bank.name() => {
                values.set(key.trim().parse().unwrap(), Digest::from_hex(hex).unwrap());
            }
            Some(_) => {}
            None => current = key.trim(),
        }
    }
    values
}

/// The captured RSA quote of a boot, verified. It covers PCRs 0 to 15 of SHA-256.
pub(crate) fn captured_quote(boot: &str) -> VerifiedQuote {
    let file = |name: &str| fixture(&format!("boots/{boot}/{name}"));
    let pcrs = PcrValues::from_blob(&file("quote-rsa.pcrs")).unwrap();
    let nonce = hex::decode(text_fixture(&format!("boots/{boot}/nonce.hex")).trim()).unwrap();
    let ak = AttestationKey::new(&Public::from_tpm2b(&file("ak.pub")).unwrap()).unwrap();
    let expected = Expected {
        nonce: &nonce,
        hash: HashAlgorithm::Sha256,
        mask: mask(0..16),
    };
    Quote::from_parts(&file("quote-rsa.msg"), &file("quote-rsa.sig"), pcrs)
        .unwrap()
        .verify(&ak, &expected)
        .unwrap()
}
