use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SubjectPublicKeyInfo,
};
use troth_core::tpm::Public;

use crate::tpm::TpmClient;

/// TPMT_PUBLIC up to the authPolicy: ECC, SHA-256, and the attributes.
const IDEVID_HEAD: &str = "0023000b000400f20020";
const IAK_HEAD: &str = "0023000b000500f20020";
const IDEVID_POLICY: &str = "ad6b3a2284fd698a0710bf5cc1b9bdf15e2532e3f601fa4b93a6a8fa8de579ea";
const IAK_POLICY: &str = "5437182326e414fca797d5f174615a1641f61255797c3a2b22c21d120b2d1e07";
/// No symmetric algorithm, ECDSA with SHA-256, P-256, no KDF.
const PARAMETERS: &str = "00100018000b00030010";

/// id-kp-clientAuth (RFC 5280, 4.2.1.12).
const CLIENT_AUTH: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 2];
/// tcg-kp-AIKCertificate (TCG EK Credential Profile 2.5, 3.2.16).
const AIK: [u64; 5] = [2, 23, 133, 8, 3];

/// The device identity of a TPM: IDevID and IAK of template H-2 (P-256), with certificates (TCG
/// TPM 2.0 Keys for Device Identity and Attestation).
#[derive(Debug)]
pub struct DeviceCertificates {
    /// The manufacturer's CA, PEM.
    pub issuer: PathBuf,
    /// The IDevID's certificate, PEM.
    pub idevid: PathBuf,
    /// The IAK's certificate, DER.
    pub iak: PathBuf,
}

impl DeviceCertificates {
    /// Does what the manufacturer does: makes the keys in `tpm`, and certificates in `directory`.
    pub fn issue(tpm: &TpmClient, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let mut params = named("Device CA")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_key = KeyPair::generate()?;
        let ca = params.self_signed(&ca_key)?;
        let issuer = Issuer::new(params, ca_key);
        let certificate = |purpose: &[u64], template: [&str; 3], unique: &[u8]| -> Result<_> {
            let mut public = hex::decode(template.concat())?;
            for _coordinate in ["x", "y"] {
                public.extend_from_slice(&u16::try_from(unique.len())?.to_be_bytes());
                public.extend_from_slice(unique);
            }
            let key = Public::from_tpmt(&tpm.endorsement_primary(&public)?)?;
            let key = SubjectPublicKeyInfo::from_der(&key.to_spki_der())?;
            let mut params = named("Device 1")?;
            let purpose = ExtendedKeyUsagePurpose::Other(purpose.to_vec());
            params.extended_key_usages = vec![purpose];
            Ok(params.signed_by(&key, &issuer)?)
        };
        let idevid = [IDEVID_HEAD, IDEVID_POLICY, PARAMETERS];
        let idevid = certificate(&CLIENT_AUTH, idevid, b"IDEVID")?;
        let iak = certificate(&AIK, [IAK_HEAD, IAK_POLICY, PARAMETERS], b"IAK")?;
        let made = Self {
            issuer: directory.join("device-ca.pem"),
            idevid: directory.join("idevid.pem"),
            iak: directory.join("iak.der"),
        };
        fs::write(&made.issuer, ca.pem())?;
        fs::write(&made.idevid, idevid.pem())?;
        fs::write(&made.iak, iak.der())?;
        Ok(made)
    }
}

fn named(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
