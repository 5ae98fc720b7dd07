//! IDevID and IAK on a TPM 2.0: swtpm, without resource manager, so that every handle left behind
//! is seen.

#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SubjectPublicKeyInfo};
use tempfile::TempDir;
use troth_agent::{
    http::ApiVersion,
    identity::{
        ak,
        device::{
            CertificateFile, DeviceError, DeviceIdentity, DeviceOptions, DevicePlan, KeyOptions,
            qualifying_data,
        },
    },
    tpm::{AkTemplate, DeviceKey, DeviceRole, KeyKind, Tpm, TpmError, esys::EsysTpm},
};
use troth_core::{
    identity::AgentId,
    tpm::{AttestationKey, HashAlgorithm, Public, SignatureScheme, check_certification},
};
use troth_tests::tpm::Swtpm;

const KINDS: [KeyKind; 5] = [
    KeyKind::Rsa2048,
    KeyKind::Rsa3072,
    KeyKind::EccP256,
    KeyKind::EccP384,
    KeyKind::EccP521,
];

struct Host {
    directory: TempDir,
    swtpm: Swtpm,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::manufacture(&directory.path().join("tpm"))
            .expect("swtpm is needed: run `cargo xtask setup`");
        Self { directory, swtpm }
    }

    fn open(&self) -> EsysTpm {
        EsysTpm::open(&self.swtpm.tcti()).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn loaded(&self) -> Vec<u32> {
        self.swtpm.client().loaded_objects().unwrap()
    }

    /// Runs a program of tpm2-tools on this TPM, in this host's directory.
    fn tool(&self, command: &str) {
        let mut words = command.split_whitespace();
        let output = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.directory.path())
            .env("TPM2TOOLS_TCTI", self.swtpm.tcti())
            .output()
            .expect("tpm2-tools is needed: run `cargo xtask setup`");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
    }

    /// What the manufacturer does: a certificate for the key in this TPM.
    fn certify(&self, role: DeviceRole, kind: KeyKind, file: &str) -> Public {
        let public = self.open().device_key(&key(role, kind)).unwrap();
        let public = Public::from_tpmt(&public).unwrap();
        let der = issue(&public);
        let pem = file.ends_with(".pem");
        let content = if pem { pem_of(&der) } else { der };
        std::fs::write(self.path(file), content).unwrap();
        public
    }
}

fn key(role: DeviceRole, kind: KeyKind) -> DeviceKey {
    DeviceKey {
        role,
        kind,
        handle: None,
        auth: Vec::new().into(),
    }
}

fn issue(public: &Public) -> Vec<u8> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(params, KeyPair::generate().unwrap());
    let subject = SubjectPublicKeyInfo::from_der(&public.to_spki_der()).unwrap();
    let leaf = CertificateParams::new(Vec::new()).unwrap();
    leaf.signed_by(&subject, &issuer).unwrap().der().to_vec()
}

fn pem_of(der: &[u8]) -> Vec<u8> {
    troth_agent::pem::encode("CERTIFICATE", der).into_bytes()
}

fn options(certificates: [CertificateFile; 2]) -> DeviceOptions {
    let [idevid, iak] = certificates.map(|certificate| KeyOptions {
        handle: None,
        auth: Vec::new().into(),
        certificate,
    });
    DeviceOptions {
        kind: None,
        idevid,
        iak,
    }
}

fn named(path: &Path) -> CertificateFile {
    CertificateFile::Named(path.to_owned())
}

/// Loads an AK; EK and AK fill two of the three slots that swtpm has.
fn with_ak(tpm: &mut EsysTpm, directory: &Path) -> Public {
    let template = AkTemplate {
        kind: KeyKind::EccP256,
        hash: HashAlgorithm::Sha256,
        scheme: SignatureScheme::Ecdsa,
    };
    let keys = ak::load_or_create(tpm, &template, &directory.join(ak::FILE), &[]);
    keys.unwrap().ak
}

/// TPM2_Certify of a fresh AK, checked as a registrar checks it.
fn certifies(host: &Host, device: &DeviceIdentity) {
    let mut tpm = host.open();
    let ak = with_ak(&mut tpm, host.directory.path());
    let id = AgentId::new("d432fbb3-d2f1-4a97-9ef7-75bd81c00000").unwrap();
    for version in [ApiVersion::v2(6), ApiVersion::v2(5)] {
        let data = qualifying_data(&id, version);
        let signed = tpm.certify_ak(&device.iak_key, &data).unwrap();
        check_certification(
            &AttestationKey::new(&device.iak.public).unwrap(),
            &signed.attest,
            &signed.signature,
            &ak.name(),
            &[&data],
        )
        .unwrap();
    }
    drop(tpm);
    assert_eq!(host.loaded(), [0; 0]);
}

#[test]
fn the_qualifying_data_is_the_digest_of_the_id_since_2_6() {
    let id = AgentId::new("d432fbb3-d2f1-4a97-9ef7-75bd81c00000").unwrap();
    let digest = qualifying_data(&id, ApiVersion::v2(6));
    assert_eq!(
        HashAlgorithm::Sha256
            .digest(&[id.as_str().as_bytes()])
            .as_bytes(),
        digest
    );
    assert_eq!(
        qualifying_data(&id, ApiVersion::v2(5)),
        id.as_str().as_bytes()
    );
}

#[test]
fn the_keys_of_every_template_are_found_by_their_certificates() {
    let host = Host::new();
    for kind in KINDS {
        let idevid = host.certify(DeviceRole::IDevId, kind, "idevid.pem");
        let iak = host.certify(DeviceRole::Iak, kind, "iak.der");
        assert_ne!(idevid, iak);
        let files = [
            named(&host.path("idevid.pem")),
            named(&host.path("iak.der")),
        ];
        let plan = DevicePlan::read(options(files)).unwrap();
        let device = plan.identify(&mut host.open()).unwrap();
        assert_eq!(device.iak.public, iak);
        assert_eq!(device.idevid.public.enc_alg(), kind.name());
        let der = std::fs::read(host.path("iak.der")).unwrap();
        assert_eq!(device.iak.certificate.as_ref(), Some(&der));
        assert!(device.idevid.certificate.is_some());
        assert_eq!(host.loaded(), [0; 0], "{}", kind.name());
        certifies(&host, &device);
    }
}

#[test]
fn without_certificates_the_keys_are_rsa_2048() {
    let host = Host::new();
    let absent = CertificateFile::Default(host.path("absent.crt"));
    let plan = DevicePlan::read(options([absent, CertificateFile::None])).unwrap();
    let device = plan.identify(&mut host.open()).unwrap();
    assert_eq!(device.iak.public.enc_alg(), "rsa2048");
    assert_eq!(device.iak.certificate, None);
    assert_eq!(device.idevid.certificate, None);
}

#[test]
fn a_certificate_of_another_key_is_refused_with_its_file() {
    let (host, other) = (Host::new(), Host::new());
    let kind = KeyKind::EccP256;
    host.certify(DeviceRole::IDevId, kind, "idevid.pem");
    host.certify(DeviceRole::Iak, kind, "iak.pem");
    // The IDevID's certificate as the IAK's, and both on another host.
    for (tpm, iak) in [(&host, "idevid.pem"), (&other, "iak.pem")] {
        let files = [named(&host.path("idevid.pem")), named(&host.path(iak))];
        let plan = DevicePlan::read(options(files)).unwrap();
        let error = plan.identify(&mut tpm.open()).unwrap_err();
        assert!(matches!(error, DeviceError::OtherKey { .. }), "{error}");
        assert!(error.to_string().contains(host.path("").to_str().unwrap()));
        assert_eq!(tpm.loaded(), [0; 0]);
    }
}

#[test]
fn a_certificate_that_cannot_be_used_is_told_before_the_tpm_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("iak.crt");
    let read = || DevicePlan::read(options([CertificateFile::None, named(&path)]));
    let error = read().unwrap_err();
    assert!(matches!(error, DeviceError::Read { .. }), "{error}");
    for bad in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"] {
        std::fs::write(&path, bad).unwrap();
        let error = read().unwrap_err();
        assert!(matches!(error, DeviceError::Certificate { .. }), "{error}");
        assert!(error.to_string().contains("iak.crt"), "{error}");
    }
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let certificate = CertificateParams::new(Vec::new()).unwrap();
    std::fs::write(&path, certificate.self_signed(&ed25519).unwrap().der()).unwrap();
    let error = read().unwrap_err();
    assert!(matches!(error, DeviceError::UnknownKey { .. }), "{error}");
    // The key at a handle is what it is.
    let mut persistent = options([CertificateFile::None, named(&path)]);
    persistent.iak.handle = Some(0x8102_0001);
    DevicePlan::read(persistent).unwrap();
}

#[test]
fn persistent_keys_are_used_with_their_passwords_and_stay() {
    let host = Host::new();
    for (attributes, handle) in [("restricted|sign", "0x81020001"), ("sign", "0x81020000")] {
        host.tool(&format!(
            "tpm2_createprimary -C e -G ecc256:ecdsa-sha256:null -c key.ctx -p s3cret \
             -a {attributes}|fixedtpm|fixedparent|sensitivedataorigin|userwithauth"
        ));
        host.tool(&format!("tpm2_evictcontrol -C o -c key.ctx {handle}"));
        host.tool("tpm2_flushcontext -t");
    }
    let mut wanted = options([CertificateFile::None, CertificateFile::None]);
    wanted.idevid.handle = Some(0x8102_0000);
    wanted.iak.handle = Some(0x8102_0001);
    wanted.iak.auth = b"s3cret".to_vec().into();
    let identify = |wanted: &DeviceOptions| {
        let plan = DevicePlan::read(wanted.clone()).unwrap();
        plan.identify(&mut host.open())
    };
    certifies(&host, &identify(&wanted).unwrap());
    certifies(&host, &identify(&wanted).unwrap());

    // One wrong password, asked once: the TPM counts them.
    let mut forgotten = wanted.clone();
    forgotten.iak.auth = Vec::new().into();
    let device = identify(&forgotten).unwrap();
    let mut tpm = host.open();
    with_ak(&mut tpm, host.directory.path());
    let error = tpm.certify_ak(&device.iak_key, b"data").unwrap_err();
    assert!(error.is_final(), "{error}");
    assert!(error.to_string().contains("iak_password"), "{error}");
    drop(tpm);
    assert_eq!(host.loaded(), [0; 0]);

    // The IDevID signs anything, so it certifies nothing; and nothing is at the next handle.
    for (handle, told) in [(0x8102_0000, "restricted"), (0x8102_0002, "0x81020002")] {
        let mut wrong = wanted.clone();
        wrong.iak.handle = Some(handle);
        let error = identify(&wrong).unwrap_err();
        let told_so = matches!(
            &error,
            DeviceError::Tpm(TpmError::PersistentKey {
                option: "iak_handle",
                ..
            })
        );
        assert!(told_so && error.to_string().contains(told), "{error}");
    }
}
