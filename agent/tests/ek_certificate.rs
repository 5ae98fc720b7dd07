//! EK certificates as TPMs have them in NV, well or ill written: swtpm.

#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use troth_agent::tpm::{
    KeyKind, Tpm,
    esys::EsysTpm,
    nv::{EkCertificates, ek_certificates},
};
use troth_core::{identity::certificate_matches_key, tpm::Public};
use troth_tests::tpm::Swtpm;

/// NV index of the RSA 2048 EK certificate.
const RSA: u32 = 0x01C0_0002;
/// First and last NV index of EK certificate chains, and that of the platform certificate.
const CHAIN: [u32; 2] = [0x01C0_0100, 0x01C0_01FF];
const PLATFORM: u32 = 0x01C0_8000;

struct Host {
    swtpm: Swtpm,
    /// DER of the EK certificate that the manufacturer made.
    certificate: Vec<u8>,
    _directory: TempDir,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::manufacture(&directory.path().join("tpm"))
            .expect("swtpm is needed: run `cargo xtask setup`");
        let mut host = Self {
            swtpm,
            certificate: Vec::new(),
            _directory: directory,
        };
        let (ek, found) = host.read(KeyKind::Rsa2048);
        host.certificate = found.ek.expect("swtpm_setup makes an RSA EK certificate");
        assert!(certificate_matches_key(&host.certificate, &ek).unwrap());
        assert!(found.chain.is_empty());
        host
    }

    fn read(&self, kind: KeyKind) -> (Public, EkCertificates) {
        let mut tpm = EsysTpm::open(&self.swtpm.tcti()).unwrap();
        let ek = Public::from_tpmt(&tpm.load_ek(kind).unwrap()).unwrap();
        let found = ek_certificates(&mut tpm, kind, &ek).unwrap();
        (ek, found)
    }

    /// What the agent finds when this is at an NV index.
    fn with(&self, index: u32, content: &[u8]) -> EkCertificates {
        self.swtpm.client().write_nv(index, content).unwrap();
        self.read(KeyKind::Rsa2048).1
    }
}

/// A certificate of a key that is in no TPM.
fn foreign(name: &str) -> Vec<u8> {
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

#[test]
fn the_certificate_is_found_in_every_wrapping() {
    let host = Host::new();
    let der = &host.certificate;
    let length = u16::try_from(der.len()).unwrap().to_be_bytes();
    for (what, content) in [
        ("padded with zeros", [der, &[0; 200][..]].concat()),
        ("padded with ones", [der, &[0xFF; 200][..]].concat()),
        (
            "in an OCTET STRING",
            [&[0x04, 0x82], &length[..], der].concat(),
        ),
        (
            "in a padded OCTET STRING",
            [&[0x04, 0x82], &length[..], der, &[0xFF; 9]].concat(),
        ),
        (
            "behind an old header",
            [&[0x10, 0x01, 0x00], &length[..], der, &[0xFF; 9]].concat(),
        ),
    ] {
        let found = host.with(RSA, &content);
        assert_eq!(found.ek.as_ref(), Some(der), "{what}");
    }
}

#[test]
fn what_is_no_certificate_of_the_ek_is_not_sent() {
    let host = Host::new();
    for (what, content) in [
        ("never written", vec![0xFF; 1600]),
        ("zeros", vec![0; 1600]),
        ("no certificate", b"no certificate".to_vec()),
        ("cut short", host.certificate[..300].to_vec()),
        ("of another key", foreign("stranger")),
    ] {
        assert_eq!(host.with(RSA, &content).to_pem(), "", "{what}");
    }
}

#[test]
fn the_platform_certificate_is_never_taken_for_the_eks() {
    let host = Host::new();
    let tpm = host.swtpm.client();
    tpm.write_nv(PLATFORM, &foreign("platform")).unwrap();
    let found = host.read(KeyKind::Rsa2048).1;
    assert_eq!(found.ek.as_ref(), Some(&host.certificate));
    assert!(found.chain.is_empty());
    tpm.remove_nv(RSA).unwrap();
    assert_eq!(host.read(KeyKind::Rsa2048).1.to_pem(), "");
    assert_eq!(host.read(KeyKind::EccP521).1.to_pem(), "");
}

#[test]
fn the_chain_follows_backwards_and_ends_with_its_last_index() {
    let host = Host::new();
    let tpm = host.swtpm.client();
    let [first, second, last] = ["first", "second", "last"].map(foreign);
    // Two in one index, one of them half, as some manufacturers write them.
    let (head, tail) = second.split_at(100);
    tpm.write_nv(CHAIN[0], &[&first, head].concat()).unwrap();
    tpm.write_nv(CHAIN[0] + 1, tail).unwrap();
    tpm.write_nv(CHAIN[1], &[last.as_slice(), &[0xFF; 9]].concat())
        .unwrap();
    tpm.write_nv(CHAIN[1] + 1, &foreign("beyond")).unwrap();
    tpm.write_nv(PLATFORM, &foreign("platform")).unwrap();
    let found = host.read(KeyKind::Rsa2048).1;
    assert_eq!(found.chain, [&*first, &second, &last]);
    let pem: String = [&host.certificate, &last, &second, &first]
        .map(|der| troth_agent::pem::encode("CERTIFICATE", der))
        .concat();
    assert_eq!(found.to_pem(), pem);
}
