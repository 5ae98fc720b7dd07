use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

use super::*;
use crate::identity::draft::{Draft, Signer, name};
use crate::identity::{ChainProblem, Expiry, TrustAnchors};

const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000";
/// Attributes of the TCG's templates.
const AK: u32 = 0x0005_0072;
const IAK: u32 = 0x0005_00f2;
const IDEVID: u32 = 0x0004_00f2;
/// keyUsage digitalSignature, and extendedKeyUsage tcg-kp-AIKCertificate.
const SIGNS: (&str, bool, &str) = ("2.5.29.15", true, "03020780");
const ATTESTS: (&str, bool, &str) = ("2.5.29.37", false, "300706056781050803");

/// A P-256 key with ECDSA and SHA-256.
fn key(key: &EcdsaKeyPair, attributes: u32) -> Public {
    let point = key.public_key().as_ref();
    let mut tpmt = hex::decode("0023000b").unwrap();
    tpmt.extend_from_slice(&attributes.to_be_bytes());
    tpmt.extend(hex::decode("000000100018000b00030010").unwrap());
    for coordinate in point[1..].chunks(32) {
        tpmt.extend_from_slice(&[0, 32]);
        tpmt.extend_from_slice(coordinate);
    }
    Public::from_tpmt(&tpmt).unwrap()
}

/// A manufacturer, and a device with an AK.
struct Device {
    ca: Signer,
    anchors: TrustAnchors,
    ak: Public,
    iak: EcdsaKeyPair,
    idevid: EcdsaKeyPair,
    identity: DeviceIdentity,
}

fn pair() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

impl Device {
    fn new() -> Self {
        let (ca, iak, idevid) = (Signer::new(), pair(), pair());
        let mut anchors = TrustAnchors::default();
        let root = Draft::ca("maker", "maker", &ca).signed_by(&ca);
        anchors.add(&root).unwrap();
        let ak = key(&pair(), AK);
        let mut device = Self {
            identity: DeviceIdentity {
                iak: key(&iak, IAK),
                iak_certificates: Vec::new(),
                idevid: key(&idevid, IDEVID),
                idevid_certificates: Vec::new(),
                attest: Vec::new(),
                signature: Vec::new(),
            },
            ca,
            anchors,
            ak,
            iak,
            idevid,
        };
        device.identity.iak_certificates = vec![device.certificate(&device.identity.iak, true)];
        device.identity.idevid_certificates =
            vec![device.certificate(&device.identity.idevid, false)];
        let digest = HashAlgorithm::Sha256.digest(&[ID.as_bytes()]);
        let attest = attest(0x8017, digest.as_bytes(), &device.ak);
        device.sign(attest);
        device
    }

    fn certificate(&self, key: &Public, attests: bool) -> Vec<u8> {
        let mut draft = Draft::ek(key.to_spki_der(), "maker").with(SIGNS.0, SIGNS.1, SIGNS.2);
        draft.subject = name("device");
        let draft = draft.without(ATTESTS.0);
        match attests {
            true => draft.with(ATTESTS.0, ATTESTS.1, ATTESTS.2),
            false => draft,
        }
        .signed_by(&self.ca)
    }

    /// Lets the IAK sign.
    fn sign(&mut self, attest: Vec<u8>) {
        self.identity.signature = signature(&self.iak, &attest);
        self.identity.attest = attest;
    }

    fn certify(&self) -> Result<CertifiedAk, DeviceError> {
        let trust = Trust {
            anchors: &self.anchors,
            at: 1_800_000_000,
            expired: Expiry::Refuse,
        };
        certify_ak(&self.ak, &AgentId::new(ID).unwrap(), &self.identity, &trust)
    }
}

/// TPMT_SIGNATURE.
fn signature(key: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
    let signed = key.sign(&SystemRandom::new(), message).unwrap();
    let mut signature = hex::decode("0018000b").unwrap();
    for half in signed.as_ref().chunks(32) {
        signature.extend([0, 32]);
        signature.extend(half);
    }
    signature
}

/// TPMS_ATTEST about `object`.
fn attest(kind: u16, extra: &[u8], object: &Public) -> Vec<u8> {
    let tpm2b = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    let name = tpm2b(object.name().as_bytes());
    [
        hex::decode("ff544347").unwrap(),
        kind.to_be_bytes().to_vec(),
        tpm2b(&[0; 34]),
        tpm2b(extra),
        [&[0; 16][..], &[1], &[0; 8]].concat(),
        name.clone(),
        name,
    ]
    .concat()
}

#[test]
fn a_device_vouches_for_its_ak_in_both_ways_of_keylimes_agents() {
    let mut device = Device::new();
    let certified = device.certify().unwrap();
    assert_eq!(certified.iak().path(), ["CN=device", "CN=maker"]);
    assert_eq!(certified.idevid().path(), ["CN=device", "CN=maker"]);
    // API before 2.6.
    let attest = attest(0x8017, ID.as_bytes(), &device.ak);
    device.sign(attest);
    device.certify().unwrap();
}

#[test]
fn only_what_the_iak_says_about_this_ak_and_this_agent_counts() {
    let digest = HashAlgorithm::Sha256.digest(&[ID.as_bytes()]);
    let mut device = Device::new();
    let refused = |device: &Device| match device.certify().unwrap_err() {
        DeviceError::Certification(error) => error,
        error => panic!("{error}"),
    };
    for extra in [&b"other"[..], b"", &digest.as_bytes()[..31]] {
        let attest = attest(0x8017, extra, &device.ak);
        device.sign(attest);
        assert_eq!(refused(&device), CertifyError::QualifyingData);
    }
    let other = key(&pair(), AK);
    device.sign(attest(0x8017, digest.as_bytes(), &other));
    assert_eq!(refused(&device), CertifyError::OtherObject(other.name()));
    // A quote instead of a certification.
    let quote = hex::decode("ff54434780180000").unwrap();
    let quote = [
        quote,
        vec![0, 0],
        vec![0; 25],
        hex::decode("000000000000").unwrap(),
    ]
    .concat();
    device.sign(quote);
    assert_eq!(refused(&device), CertifyError::NotACertification);
    // The right words from another key, with another hash, and none at all.
    let words = attest(0x8017, digest.as_bytes(), &device.ak);
    device.identity.attest = words.clone();
    device.identity.signature = signature(&device.idevid, &words);
    assert_eq!(refused(&device), CertifyError::Signature);
    device.identity.signature[3] = 4;
    assert!(matches!(refused(&device), CertifyError::Algorithm { .. }));
    device.identity.signature.clear();
    assert!(matches!(refused(&device), CertifyError::Structure(_)));
}

#[test]
fn keys_that_sign_what_the_host_likes_are_no_iak() {
    // Not restricted; without fixedTPM; a storage key too.
    for attributes in [IDEVID, IAK & !2, IAK | 0x0002_0000] {
        let mut device = Device::new();
        device.identity.iak = key(&device.iak, attributes);
        assert!(matches!(device.certify().unwrap_err(), DeviceError::Iak(_)));
    }
    let mut device = Device::new();
    device.identity.idevid = key(&device.idevid, IAK);
    assert!(matches!(
        device.certify().unwrap_err(),
        DeviceError::Idevid(_)
    ));
    // An IDevID signs anything, and its certificate does not say for what.
    let mut device = Device::new();
    device.identity.iak_certificates = vec![device.certificate(&device.identity.iak, false)];
    match device.certify().unwrap_err() {
        DeviceError::IakCertificate(error) => assert_eq!(error.problem, ChainProblem::NotIak),
        error => panic!("{error}"),
    }
    // One key in two roles.
    let mut device = Device::new();
    device.identity.idevid = key(&device.iak, IDEVID);
    assert_eq!(device.certify().unwrap_err(), DeviceError::SameKey);
    let mut device = Device::new();
    device.ak = key(&device.iak, AK);
    assert_eq!(device.certify().unwrap_err(), DeviceError::SameKey);
}

#[test]
fn certificates_belong_to_their_keys_and_lead_to_the_store() {
    let other = Device::new();
    for iak in [true, false] {
        for certificates in [
            vec![],
            other.identity.iak_certificates.clone(),
            vec![other.certificate(&Device::new().identity.iak, true)],
        ] {
            let mut device = Device::new();
            let replaced = match iak {
                true => &mut device.identity.iak_certificates,
                false => &mut device.identity.idevid_certificates,
            };
            *replaced = certificates;
            let error = device.certify().unwrap_err();
            assert_eq!(
                matches!(error, DeviceError::IakCertificate(_)),
                iak,
                "{error}"
            );
            assert_eq!(
                matches!(error, DeviceError::IdevidCertificate(_)),
                !iak,
                "{error}"
            );
        }
    }
    // A stranger's CA.
    let mut device = Device::new();
    device.anchors = other.anchors;
    assert!(matches!(
        device.certify().unwrap_err(),
        DeviceError::IakCertificate(_)
    ));
}
