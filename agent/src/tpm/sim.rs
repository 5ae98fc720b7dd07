//! A TPM in software for fast tests: P-256 keys, SHA-1 and SHA-256 banks, NV, and faults on
//! request. It protects nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::{
    agreement::{self, ECDH_P256, UnparsedPublicKey, agree},
    cipher::{AES_128, DecryptingKey, DecryptionContext, UnboundCipherKey},
    encoding::{AsBigEndian, EcPrivateKeyBin},
    error::Unspecified,
    hmac,
    iv::FixedLength,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use troth_core::tpm::{
    CredentialBlob, Digest, HashAlgorithm, Name, PcrMask, PcrValues, Public, PublicParms,
    SignatureScheme,
};
use zeroize::Zeroizing;

use super::{
    AkTemplate, Description, DeviceKey, KeyBlobs, KeyKind, Signed, Tpm, TpmError, templates::sized,
};

const HASH: HashAlgorithm = HashAlgorithm::Sha256;
const BANKS: [HashAlgorithm; 2] = [HashAlgorithm::Sha1, HASH];
const FIELD: usize = 32;

/// PolicySecret(TPM_RH_ENDORSEMENT), SHA-256: the policy of the low range EK templates.
const POLICY_A_SHA256: &str = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa";

/// The chip: what stays when a connection to it is closed. Clones are the same chip.
#[derive(Clone, Debug)]
pub struct Chip(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    ek: agreement::PrivateKey,
    ek_public: Public,
    pcrs: BTreeMap<(u16, u8), Digest>,
    nv: BTreeMap<u32, Vec<u8>>,
    clock: u64,
    faults: Faults,
    loaded: usize,
    eks_made: usize,
}

/// What goes wrong, and how often. Each fault counts down when it strikes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Opening the connection fails.
    pub open: u32,
    /// TPM2_Load fails for a reason that passes.
    pub load: u32,
    /// The connection breaks in TPM2_Quote.
    pub lose_in_quote: u32,
    /// PCR 10 is extended between reading and quoting.
    pub pcr_moves: u32,
    /// Another process resets PCR 16 before it is read.
    pub pcr16_reset: u32,
}

impl Chip {
    /// A new chip, with an EK of its own.
    pub fn manufacture() -> Result<Self, TpmError> {
        let ek = agreement::PrivateKey::generate(&ECDH_P256).map_err(|_| broken("EK"))?;
        let point = ek.compute_public_key().map_err(|_| broken("EK"))?;
        let policy = hex::decode(POLICY_A_SHA256).map_err(|_| broken("EK"))?;
        let ek_public = Public::from_tpmt(&ecc_public(
            0x0003_00B2,
            &policy,
            // AES-128-CFB, no scheme.
            &[0x0006, 0x0080, 0x0043, 0x0010],
            point.as_ref(),
        ))?;
        let mut pcrs = BTreeMap::new();
        for bank in BANKS {
            for pcr in 0..24 {
                pcrs.insert((bank.id(), pcr), Digest::zero(bank));
            }
        }
        Ok(Self(Arc::new(Mutex::new(State {
            ek,
            ek_public,
            pcrs,
            nv: BTreeMap::new(),
            clock: 0,
            faults: Faults::default(),
            loaded: 0,
            eks_made: 0,
        }))))
    }

    /// Opens a connection.
    pub fn open(&self) -> Result<SimTpm, TpmError> {
        if strike(&mut self.state().faults.open) {
            return Err(TpmError::Open {
                tcti: "sim".into(),
                reason: "fault on request".into(),
            });
        }
        Ok(SimTpm {
            chip: self.clone(),
            ek: false,
            ak: None,
        })
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Writes an NV index.
    pub fn write_nv(&self, index: u32, content: &[u8]) {
        self.state().nv.insert(index, content.to_vec());
    }

    /// Extends a PCR in every bank, as firmware and kernel do.
    pub fn extend(&self, pcr: u8, data: &[u8]) {
        self.state().extend(pcr, data);
    }

    /// Objects that are loaded in the chip, over all connections.
    pub fn loaded(&self) -> usize {
        self.state().loaded
    }

    /// How often the EK was made: seconds each, on a real chip.
    pub fn eks_made(&self) -> usize {
        self.state().eks_made
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn extend(&mut self, pcr: u8, data: &[u8]) {
        for bank in BANKS {
            let digest = bank.digest(&[data]);
            if let Some(value) = self.pcrs.get_mut(&(bank.id(), pcr)) {
                *value = value.extend(bank, digest.as_bytes());
            }
        }
    }

    fn read(&self, bank: HashAlgorithm, mask: PcrMask) -> Result<PcrValues, TpmError> {
        let mut values = PcrValues::new(bank);
        for pcr in mask.iter() {
            let value = self.pcrs.get(&(bank.id(), pcr));
            values.set(
                pcr,
                *value.ok_or_else(|| TpmError::NoBank { bank: bank.name() })?,
            );
        }
        Ok(values)
    }
}

/// One connection to a [`Chip`].
#[derive(Debug)]
pub struct SimTpm {
    chip: Chip,
    ek: bool,
    ak: Option<(EcdsaKeyPair, Name)>,
}

impl Drop for SimTpm {
    fn drop(&mut self) {
        let objects = usize::from(self.ek) + usize::from(self.ak.is_some());
        self.chip.state().loaded -= objects;
    }
}

impl Tpm for SimTpm {
    fn load_ek(&mut self, kind: KeyKind) -> Result<Vec<u8>, TpmError> {
        if kind != KeyKind::EccP256 {
            return Err(TpmError::Unsupported(format!(
                "{} in the simulated TPM",
                kind.name()
            )));
        }
        let mut state = self.chip.state();
        if !self.ek {
            state.loaded += 1;
            state.eks_made += 1;
            self.ek = true;
        }
        Ok(state.ek_public.as_tpmt().to_vec())
    }

    fn flush_ek(&mut self) {
        if std::mem::take(&mut self.ek) {
            self.chip.state().loaded -= 1;
        }
    }

    fn create_ak(&mut self, template: &AkTemplate) -> Result<KeyBlobs, TpmError> {
        let wanted = (template.kind, template.hash, template.scheme);
        if wanted != (KeyKind::EccP256, HASH, SignatureScheme::Ecdsa) {
            return Err(TpmError::Unsupported(format!(
                "{template} in the simulated TPM"
            )));
        }
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| broken("TPM2_Create"))?;
        let secret: EcPrivateKeyBin<'_> = key
            .private_key()
            .as_be_bytes()
            .map_err(|_| broken("TPM2_Create"))?;
        let point = key.public_key().as_ref();
        let public = ecc_public(0x0005_0072, &[], &[0x0010, 0x0018, 0x000B], point);
        let mut private = self.chip.state().ek_public.name().as_bytes().to_vec();
        private.extend_from_slice(secret.as_ref());
        Ok(KeyBlobs { public, private })
    }

    fn load_ak(&mut self, blobs: &KeyBlobs) -> Result<(), TpmError> {
        let mut state = self.chip.state();
        if !self.ek {
            return Err(TpmError::NotLoaded("the EK"));
        }
        if strike(&mut state.faults.load) {
            return Err(TpmError::Command {
                command: "TPM2_Load",
                reason: "fault on request".into(),
            });
        }
        let refused = |reason: &str| TpmError::WrongParent {
            reason: reason.to_owned(),
        };
        let parent = state.ek_public.name();
        let secret = blobs
            .private
            .strip_prefix(parent.as_bytes())
            .ok_or_else(|| refused("integrity check failed"))?;
        let public = Public::from_tpmt(&blobs.public)?;
        let PublicParms::Ecc { x, y, .. } = public.parms() else {
            return Err(refused("not an ECC key"));
        };
        let point = [&[4], x.as_slice(), y].concat();
        let key = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            secret,
            &point,
        )
        .map_err(|_| refused("public and private area do not belong together"))?;
        if self.ak.replace((key, public.name())).is_none() {
            state.loaded += 1;
        }
        Ok(())
    }

    fn activate(&mut self, blob: &CredentialBlob) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let state = self.chip.state();
        if !self.ek {
            return Err(TpmError::NotLoaded("the EK"));
        }
        let (_, ak_name) = self.ak.as_ref().ok_or(TpmError::NotLoaded("the AK"))?;
        open_credential(&state, ak_name, blob).ok_or_else(|| TpmError::Command {
            command: "TPM2_ActivateCredential",
            reason: "integrity check failed".into(),
        })
    }

    fn device_key(&mut self, key: &DeviceKey) -> Result<Vec<u8>, TpmError> {
        Err(TpmError::Unsupported(format!(
            "{} in the simulated TPM",
            key.role
        )))
    }

    fn certify_ak(&mut self, iak: &DeviceKey, _: &[u8]) -> Result<Signed, TpmError> {
        self.device_key(iak)?;
        Err(TpmError::NotLoaded("the IAK"))
    }

    fn pcr_reset(&mut self, pcr: u8) -> Result<(), TpmError> {
        let mut state = self.chip.state();
        for bank in BANKS {
            state.pcrs.insert((bank.id(), pcr), Digest::zero(bank));
        }
        Ok(())
    }

    fn pcr_extend(
        &mut self,
        pcr: u8,
        bank: HashAlgorithm,
        digest: &Digest,
    ) -> Result<(), TpmError> {
        let mut state = self.chip.state();
        if let Some(value) = state.pcrs.get_mut(&(bank.id(), pcr)) {
            *value = value.extend(bank, digest.as_bytes());
        }
        Ok(())
    }

    fn pcr_read(&mut self, bank: HashAlgorithm, mask: PcrMask) -> Result<PcrValues, TpmError> {
        if strike(&mut self.chip.state().faults.pcr16_reset) {
            self.pcr_reset(16)?;
        }
        self.chip.state().read(bank, mask)
    }

    fn quote(
        &mut self,
        nonce: &[u8],
        bank: HashAlgorithm,
        mask: PcrMask,
    ) -> Result<Signed, TpmError> {
        const COMMAND: &str = "TPM2_Quote";
        let mut state = self.chip.state();
        if strike(&mut state.faults.lose_in_quote) {
            return Err(TpmError::Lost {
                command: COMMAND,
                reason: "fault on request".into(),
            });
        }
        if strike(&mut state.faults.pcr_moves) {
            state.extend(10, b"measured meanwhile");
        }
        let (key, name) = self.ak.as_ref().ok_or(TpmError::NotLoaded("the AK"))?;
        state.clock += 1;
        let mut attest = vec![0xFF, 0x54, 0x43, 0x47, 0x80, 0x18];
        sized(&mut attest, name.as_bytes());
        sized(&mut attest, nonce);
        attest.extend_from_slice(&state.clock.to_be_bytes());
        // Reset count, restart count, safe, firmware version, one selection of three bytes.
        attest.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 1]);
        attest.extend_from_slice(&1u64.to_be_bytes());
        attest.extend_from_slice(&1u32.to_be_bytes());
        attest.extend_from_slice(&bank.id().to_be_bytes());
        attest.push(3);
        attest.extend_from_slice(&mask.bits().to_le_bytes()[..3]);
        sized(
            &mut attest,
            HASH.digest(&values(&state.read(bank, mask)?)).as_bytes(),
        );
        let signed = key
            .sign(&SystemRandom::new(), &attest)
            .map_err(|_| broken(COMMAND))?;
        let (r, s) = signed.as_ref().split_at(FIELD);
        let mut signature = vec![0x00, 0x18, 0x00, 0x0B];
        sized(&mut signature, r);
        sized(&mut signature, s);
        Ok(Signed { attest, signature })
    }

    fn nv_indices(&mut self, first: u32, last: u32) -> Result<Vec<u32>, TpmError> {
        Ok(self
            .chip
            .state()
            .nv
            .range(first..=last)
            .map(|(&index, _)| index)
            .collect())
    }

    fn nv_read(&mut self, index: u32) -> Result<Vec<u8>, TpmError> {
        self.chip
            .state()
            .nv
            .get(&index)
            .cloned()
            .ok_or_else(|| TpmError::Command {
                command: "TPM2_NV_Read",
                reason: "no such index".into(),
            })
    }

    fn ping(&mut self) -> Result<(), TpmError> {
        Ok(())
    }

    fn describe(&mut self) -> Result<Description, TpmError> {
        Ok(Description {
            vendor: "simulated".into(),
            firmware: "1.0".into(),
            banks: BANKS.map(|bank| bank.name().to_owned()).into(),
        })
    }
}

/// Does a fault strike now?
fn strike(fault: &mut u32) -> bool {
    let strikes = *fault > 0;
    *fault = fault.saturating_sub(1);
    strikes
}

fn broken(command: &'static str) -> TpmError {
    TpmError::Command {
        command,
        reason: "the software crypto failed".into(),
    }
}

fn values(pcrs: &PcrValues) -> Vec<&[u8]> {
    pcrs.iter().map(|(_, value)| value.as_bytes()).collect()
}

/// TPMT_PUBLIC of a P-256 key with nameAlg SHA-256; `point` is uncompressed.
fn ecc_public(attributes: u32, policy: &[u8], schemes: &[u16], point: &[u8]) -> Vec<u8> {
    let mut tpmt = vec![0x00, 0x23, 0x00, 0x0B];
    tpmt.extend_from_slice(&attributes.to_be_bytes());
    sized(&mut tpmt, policy);
    for word in schemes {
        tpmt.extend_from_slice(&word.to_be_bytes());
    }
    // TPM_ECC_NIST_P256, no KDF.
    tpmt.extend_from_slice(&[0x00, 0x03, 0x00, 0x10]);
    let coordinates = point.get(1..).unwrap_or_default();
    let (x, y) = coordinates.split_at(FIELD.min(coordinates.len()));
    sized(&mut tpmt, x);
    sized(&mut tpmt, y);
    tpmt
}

/// The inverse of MakeCredential (TPM 2.0 Part 1, 24) for a P-256 EK with AES-128 and SHA-256.
fn open_credential(state: &State, ak: &Name, blob: &CredentialBlob) -> Option<Zeroizing<Vec<u8>>> {
    let (x, rest) = take_sized(&blob.encrypted_secret)?;
    let (y, _) = take_sized(rest)?;
    let point = [&[4], x, y].concat();
    let own = state.ek.compute_public_key().ok()?;
    let own_x = own.as_ref().get(1..=FIELD)?;
    let seed = agree(
        &state.ek,
        UnparsedPublicKey::new(&ECDH_P256, point),
        Unspecified,
        |z| {
            // KDFe, one block.
            Ok(HASH.digest(&[&[0, 0, 0, 1], z, b"IDENTITY\0", x, own_x]))
        },
    )
    .ok()?;
    let (integrity, encrypted) = take_sized(&blob.id_object)?;
    let hmac_key = kdfa(seed.as_bytes(), b"INTEGRITY\0", &[], 256);
    let covered = [encrypted, ak.as_bytes()].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &hmac_key);
    hmac::verify(&key, &covered, integrity).ok()?;

    let aes = kdfa(seed.as_bytes(), b"STORAGE\0", ak.as_bytes(), 128);
    let key = UnboundCipherKey::new(&AES_128, &aes[..16]).ok()?;
    let mut plain = encrypted.to_vec();
    let start = DecryptionContext::Iv128(FixedLength::from([0; 16]));
    DecryptingKey::cfb128(key)
        .ok()?
        .decrypt(&mut plain, start)
        .ok()?;
    take_sized(&plain).map(|(challenge, _)| Zeroizing::new(challenge.to_vec()))
}

/// KDFa with SHA-256, one block (TPM 2.0 Part 1, 11.4.10.2).
fn kdfa(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let message = [&1u32.to_be_bytes(), label, context, &bits.to_be_bytes()].concat();
    hmac::sign(&key, &message).as_ref().to_vec()
}

fn take_sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*size)))
}

#[cfg(test)]
mod tests {
    use troth_core::{
        identity::{check_ak, check_ek},
        tpm::{AttestationKey, Expected, Quote, make_credential},
    };

    use super::*;

    const TEMPLATE: AkTemplate = AkTemplate {
        kind: KeyKind::EccP256,
        hash: HASH,
        scheme: SignatureScheme::Ecdsa,
    };

    fn with_ak(chip: &Chip) -> (SimTpm, Public, Public) {
        let mut tpm = chip.open().unwrap();
        let ek = Public::from_tpmt(&tpm.load_ek(KeyKind::EccP256).unwrap()).unwrap();
        let blobs = tpm.create_ak(&TEMPLATE).unwrap();
        tpm.load_ak(&blobs).unwrap();
        (tpm, ek, Public::from_tpmt(&blobs.public).unwrap())
    }

    #[test]
    fn its_keys_are_what_a_registrar_accepts() {
        let (_, ek, ak) = with_ak(&Chip::manufacture().unwrap());
        check_ek(&ek).unwrap();
        check_ak(&ak).unwrap();
    }

    #[test]
    fn its_quotes_verify() {
        let (mut tpm, _, ak) = with_ak(&Chip::manufacture().unwrap());
        let mask = PcrMask::from_bits(0x1_0400).unwrap();
        let raw = tpm.quote(b"nonce", HASH, mask).unwrap();
        let pcrs = tpm.pcr_read(HASH, mask).unwrap();
        let quote = Quote::from_parts(&raw.attest, &raw.signature, pcrs).unwrap();
        let key = AttestationKey::new(&ak).unwrap();
        let expected = |nonce| Expected {
            nonce,
            hash: HASH,
            mask,
        };
        quote.verify(&key, &expected(b"nonce")).unwrap();
        assert!(quote.verify(&key, &expected(b"other")).is_err());
    }

    #[test]
    fn it_answers_the_challenge_of_its_own_ak_only() {
        let chip = Chip::manufacture().unwrap();
        let (mut tpm, ek, ak) = with_ak(&chip);
        let blob = make_credential(&ek, &ak.name(), b"challenge").unwrap();
        assert_eq!(tpm.activate(&blob).unwrap().as_slice(), b"challenge");
        let (mut other, _, _) = with_ak(&chip);
        assert!(other.activate(&blob).is_err());
    }

    #[test]
    fn a_closed_connection_leaves_nothing_loaded() {
        let chip = Chip::manufacture().unwrap();
        let (mut tpm, _, _) = with_ak(&chip);
        assert_eq!(chip.loaded(), 2);
        tpm.flush_ek();
        tpm.flush_ek();
        assert_eq!(chip.loaded(), 1);
        drop(tpm);
        assert_eq!(chip.loaded(), 0);
    }
}
