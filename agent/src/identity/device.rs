use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use troth_core::{
    identity::{AgentId, IdentityError, certificate_matches_key, normalise_ek_certificate},
    tpm::{HashAlgorithm, Public, StructureError},
};
use x509_cert::{
    Certificate,
    der::{
        Decode,
        asn1::{ObjectIdentifier, UintRef},
        oid::db::rfc5912::{
            ID_EC_PUBLIC_KEY, RSA_ENCRYPTION, SECP_256_R_1, SECP_384_R_1, SECP_521_R_1,
        },
    },
};

use zeroize::Zeroizing;

use crate::{
    http::ApiVersion,
    tpm::{DeviceKey, DeviceRole, KeyKind, Tpm, TpmError},
};

/// Default names of the certificates' files in the state directory.
pub const IDEVID_CERTIFICATE: &str = "idevid-cert.crt";
/// See [`IDEVID_CERTIFICATE`].
pub const IAK_CERTIFICATE: &str = "iak-cert.crt";

/// Bytes of a certificate's file that are read; more is no certificate.
const FILE_LIMIT: u64 = 128 * 1024;

/// Registrars since this API version expect the digest of the agent id as qualifying data.
const DIGEST_OF_ID: ApiVersion = ApiVersion::v2(6);

/// What the administrator wants: which keys, and where their certificates are.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Kind of both keys; `None`: as their certificates say.
    pub kind: Option<KeyKind>,
    /// The IDevID.
    pub idevid: KeyOptions,
    /// The IAK.
    pub iak: KeyOptions,
}

/// One of the two keys.
#[derive(Clone)]
pub struct KeyOptions {
    /// Persistent handle; without, the key is made from its template.
    pub handle: Option<u32>,
    /// authValue of the persistent key.
    pub auth: Zeroizing<Vec<u8>>,
    /// The certificate, if there is to be one.
    pub certificate: CertificateFile,
}

impl fmt::Debug for KeyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyOptions")
            .field("handle", &self.handle)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// Where a certificate is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CertificateFile {
    /// The administrator has none.
    None,
    /// Here, if it is there.
    Default(PathBuf),
    /// Here.
    Named(PathBuf),
}

/// Why there is no device identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The certificate cannot be read.
    #[error("{role} certificate: cannot read {}: {source}", path.display())]
    Read {
        /// IDevID or IAK.
        role: DeviceRole,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is no certificate.
    #[error("{role} certificate {}: {reason}", path.display())]
    Certificate {
        /// IDevID or IAK.
        role: DeviceRole,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate is of a key for which there is no template.
    #[error(
        "{role} certificate {}: its key is none of rsa2048, rsa3072, rsa4096, ecc256, ecc384 and \
         ecc521; set iak_idevid_template", path.display()
    )]
    UnknownKey {
        /// IDevID or IAK.
        role: DeviceRole,
        /// The file.
        path: PathBuf,
    },
    /// The certificate is of another key than this TPM has.
    #[error(
        "{role} certificate {} is not of this TPM's {role} ({kind}): it is another host's, or the \
         key is of another template. Set iak_idevid_template, or the key's handle", path.display()
    )]
    OtherKey {
        /// IDevID or IAK.
        role: DeviceRole,
        /// The file.
        path: PathBuf,
        /// Algorithm of the TPM's key.
        kind: String,
    },
    /// The TPM's public area does not parse.
    #[error("public area of the {role}: {source}")]
    Public {
        /// IDevID or IAK.
        role: DeviceRole,
        /// What is wrong.
        source: StructureError,
    },
    /// The TPM failed; it may work later.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

/// The certificates as found, and the keys to look for in the TPM.
#[derive(Clone, Debug)]
pub struct DevicePlan {
    idevid: Planned,
    iak: Planned,
}

#[derive(Clone, Debug)]
struct Planned {
    key: DeviceKey,
    certificate: Option<Found>,
}

/// A certificate, DER, and where it was found.
#[derive(Clone, Debug)]
struct Found {
    role: DeviceRole,
    path: PathBuf,
    der: Vec<u8>,
}

/// The device identity of this host, as the registrar gets it.
#[derive(Clone, Debug)]
pub struct DeviceIdentity {
    /// The IDevID.
    pub idevid: Identified,
    /// The IAK.
    pub iak: Identified,
    /// What the IAK is loaded with.
    pub iak_key: DeviceKey,
}

/// A key of the device identity.
#[derive(Clone, Debug)]
pub struct Identified {
    /// Its public area.
    pub public: Public,
    /// DER of its certificate.
    pub certificate: Option<Vec<u8>>,
}

impl DevicePlan {
    /// Reads the certificates, and makes up what the administrator left open. The TPM is not
    /// needed for it.
    pub fn read(options: DeviceOptions) -> Result<Self, DeviceError> {
        let (idevid, iak) = (options.idevid, options.iak);
        let idevid_found = find(DeviceRole::IDevId, idevid.certificate)?;
        let iak_found = find(DeviceRole::Iak, iak.certificate)?;
        // A persistent key needs no template.
        let made =
            |found: &Option<Found>, handle: Option<u32>| found.clone().filter(|_| handle.is_none());
        let telling = made(&idevid_found, idevid.handle).or_else(|| made(&iak_found, iak.handle));
        let kind = match (options.kind, telling) {
            (Some(kind), _) => kind,
            (None, Some(found)) => found.kind()?,
            (None, None) => KeyKind::Rsa2048,
        };
        let key = |role, handle, auth| DeviceKey {
            role,
            kind,
            handle,
            auth,
        };
        Ok(Self {
            idevid: Planned {
                key: key(DeviceRole::IDevId, idevid.handle, idevid.auth),
                certificate: idevid_found,
            },
            iak: Planned {
                key: key(DeviceRole::Iak, iak.handle, iak.auth),
                certificate: iak_found,
            },
        })
    }

    /// Finds the keys in the TPM and checks that the certificates are theirs.
    pub fn identify(&self, tpm: &mut dyn Tpm) -> Result<DeviceIdentity, DeviceError> {
        Ok(DeviceIdentity {
            idevid: self.idevid.identify(tpm)?,
            iak: self.iak.identify(tpm)?,
            iak_key: self.iak.key.clone(),
        })
    }
}

impl Planned {
    fn identify(&self, tpm: &mut dyn Tpm) -> Result<Identified, DeviceError> {
        let role = self.key.role;
        let public = Public::from_tpmt(&tpm.device_key(&self.key)?)
            .map_err(|source| DeviceError::Public { role, source })?;
        let Some(found) = &self.certificate else {
            tracing::warn!("no certificate of the {role}: a registrar may ask for one");
            return Ok(Identified {
                public,
                certificate: None,
            });
        };
        let own = certificate_matches_key(&found.der, &public)
            .map_err(|error| unusable(role, &found.path, &error))?;
        if !own {
            return Err(DeviceError::OtherKey {
                role,
                path: found.path.clone(),
                kind: public.enc_alg(),
            });
        }
        Ok(Identified {
            public,
            certificate: Some(found.der.clone()),
        })
    }
}

/// What the IAK's certification of the AK is bound to: the agent's id.
pub fn qualifying_data(id: &AgentId, registrar: ApiVersion) -> Vec<u8> {
    let id = id.as_str().as_bytes();
    if registrar >= DIGEST_OF_ID {
        HashAlgorithm::Sha256.digest(&[id]).as_bytes().to_vec()
    } else {
        id.to_vec()
    }
}

impl Found {
    fn kind(&self) -> Result<KeyKind, DeviceError> {
        kind_of(&self.der).ok_or_else(|| DeviceError::UnknownKey {
            role: self.role,
            path: self.path.clone(),
        })
    }
}

/// Reads a certificate, PEM or DER.
fn find(role: DeviceRole, file: CertificateFile) -> Result<Option<Found>, DeviceError> {
    let (path, needed) = match file {
        CertificateFile::None => return Ok(None),
        CertificateFile::Default(path) => (path, false),
        CertificateFile::Named(path) => (path, true),
    };
    let mut content = Vec::new();
    match File::open(&path).and_then(|file| file.take(FILE_LIMIT).read_to_end(&mut content)) {
        Ok(_) => match normalise_ek_certificate(&content) {
            Ok(Some(der)) => Ok(Some(Found { role, path, der })),
            Ok(None) => Err(DeviceError::Certificate {
                role,
                path,
                reason: "the file is empty".into(),
            }),
            Err(error) => Err(unusable(role, &path, &error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && !needed => Ok(None),
        Err(source) => Err(DeviceError::Read { role, path, source }),
    }
}

fn unusable(role: DeviceRole, path: &Path, error: &IdentityError) -> DeviceError {
    DeviceError::Certificate {
        role,
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// The kind of a certificate's key.
fn kind_of(der: &[u8]) -> Option<KeyKind> {
    let certificate = Certificate::from_der(der).ok()?;
    let key = certificate.tbs_certificate().subject_public_key_info();
    if key.algorithm.oid == ID_EC_PUBLIC_KEY {
        let curve: ObjectIdentifier = key.algorithm.parameters.as_ref()?.decode_as().ok()?;
        return [
            (SECP_256_R_1, KeyKind::EccP256),
            (SECP_384_R_1, KeyKind::EccP384),
            (SECP_521_R_1, KeyKind::EccP521),
        ]
        .into_iter()
        .find_map(|(oid, kind)| (oid == curve).then_some(kind));
    }
    if key.algorithm.oid != RSA_ENCRYPTION {
        return None;
    }
    // RSAPublicKey: modulus, publicExponent (RFC 8017, A.1.1).
    let numbers: Vec<UintRef<'_>> = Vec::from_der(key.subject_public_key.as_bytes()?).ok()?;
    match numbers.first()?.as_bytes().len() {
        256 => Some(KeyKind::Rsa2048),
        384 => Some(KeyKind::Rsa3072),
        512 => Some(KeyKind::Rsa4096),
        _ => None,
    }
}
