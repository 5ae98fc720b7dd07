use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::buffer::{Reader, put_tpm2b};
use super::{HashAlgorithm, SignatureScheme, StructureError, der};

/// `TPM_ALG_NULL`.
const ALG_NULL: u16 = 0x0010;
/// `TPM_ALG_AES`.
const ALG_AES: u16 = 0x0006;
/// `TPM_ALG_CFB`.
const ALG_CFB: u16 = 0x0043;
/// `TPM_ALG_RSA`.
const ALG_RSA: u16 = 0x0001;
/// `TPM_ALG_ECC`.
const ALG_ECC: u16 = 0x0023;
/// Largest digest: SHA-512.
const MAX_DIGEST: usize = 64;
/// Largest modulus that is read: 8192 bits.
const MAX_MODULUS: usize = 1024;

/// DER content and header of OBJECT IDENTIFIER rsaEncryption, 1.2.840.113549.1.1.1, and NULL.
const OID_RSA: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
/// OBJECT IDENTIFIER ecPublicKey, 1.2.840.10045.2.1.
const OID_EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

/// TPMT_PUBLIC (TPM 2.0 Part 2, 12.2.4) with its marshalled bytes, which the name is computed over.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Public {
    tpmt: Vec<u8>,
    name_alg: HashAlgorithm,
    attributes: ObjectAttributes,
    auth_policy: Vec<u8>,
    parms: PublicParms,
}

/// TPMU_PUBLIC_PARMS and TPMU_PUBLIC_ID together.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum PublicParms {
    /// `TPM_ALG_RSA`.
    Rsa {
        /// AES-CFB key size in bits of a storage key; `None` for `TPM_ALG_NULL`.
        symmetric_bits: Option<u16>,
        /// Signing scheme and its hash; `None` for `TPM_ALG_NULL`.
        scheme: Option<(SignatureScheme, HashAlgorithm)>,
        /// Modulus size in bits.
        key_bits: u16,
        /// Public exponent; 65537 where the structure says 0.
        exponent: u32,
        /// Modulus, big-endian.
        modulus: Vec<u8>,
    },
    /// `TPM_ALG_ECC`.
    Ecc {
        /// AES-CFB key size in bits of a storage key; `None` for `TPM_ALG_NULL`.
        symmetric_bits: Option<u16>,
        /// Signing scheme and its hash; `None` for `TPM_ALG_NULL`.
        scheme: Option<(SignatureScheme, HashAlgorithm)>,
        /// The curve.
        curve: EccCurve,
        /// Affine x, big-endian, padded to the field size.
        x: Vec<u8>,
        /// Affine y, big-endian, padded to the field size.
        y: Vec<u8>,
    },
}

impl PublicParms {
    /// Signing scheme and its hash; `None` for `TPM_ALG_NULL`.
    pub fn scheme(&self) -> Option<(SignatureScheme, HashAlgorithm)> {
        match self {
            Self::Rsa { scheme, .. } | Self::Ecc { scheme, .. } => *scheme,
        }
    }

    /// AES-CFB key size in bits of a storage key; `None` for `TPM_ALG_NULL`.
    pub fn symmetric_bits(&self) -> Option<u16> {
        match self {
            Self::Rsa { symmetric_bits, .. } | Self::Ecc { symmetric_bits, .. } => *symmetric_bits,
        }
    }
}

/// `TPM_ECC_CURVE`, the NIST curves that EK templates name.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EccCurve {
    /// `TPM_ECC_NIST_P256`.
    NistP256,
    /// `TPM_ECC_NIST_P384`.
    NistP384,
    /// `TPM_ECC_NIST_P521`.
    NistP521,
}

impl EccCurve {
    /// The curve of a `TPM_ECC_CURVE`.
    pub fn from_id(id: u16) -> Option<Self> {
        match id {
            3 => Some(Self::NistP256),
            4 => Some(Self::NistP384),
            5 => Some(Self::NistP521),
            _ => None,
        }
    }

    /// Size of the field in bits.
    pub fn bits(self) -> u16 {
        match self {
            Self::NistP256 => 256,
            Self::NistP384 => 384,
            Self::NistP521 => 521,
        }
    }

    /// Size of a coordinate in bytes.
    pub fn size(self) -> usize {
        usize::from(self.bits()).div_ceil(8)
    }

    /// DER OBJECT IDENTIFIER of the named curve (RFC 5480).
    fn oid(self) -> &'static [u8] {
        match self {
            Self::NistP256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
            Self::NistP384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
            Self::NistP521 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23],
        }
    }
}

/// TPMA_OBJECT (TPM 2.0 Part 2, 8.3). Prints the names of the attributes that are set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ObjectAttributes(pub u32);

impl ObjectAttributes {
    /// The object cannot leave its TPM.
    pub const FIXED_TPM: Self = Self(1 << 1);
    /// The object cannot leave its parent.
    pub const FIXED_PARENT: Self = Self(1 << 4);
    /// The TPM made the private part itself.
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    /// USER role by the object's authorization value.
    pub const USER_WITH_AUTH: Self = Self(1 << 6);
    /// ADMIN role by policy alone.
    pub const ADMIN_WITH_POLICY: Self = Self(1 << 7);
    /// Signs or decrypts only what the TPM made or understands.
    pub const RESTRICTED: Self = Self(1 << 16);
    /// The private part decrypts.
    pub const DECRYPT: Self = Self(1 << 17);
    /// The private part signs.
    pub const SIGN: Self = Self(1 << 18);

    /// Names as Part 2 writes them, by bit.
    const NAMES: [(Self, &'static str); 11] = [
        (Self::FIXED_TPM, "fixedTPM"),
        (Self(1 << 2), "stClear"),
        (Self::FIXED_PARENT, "fixedParent"),
        (Self::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (Self::USER_WITH_AUTH, "userWithAuth"),
        (Self::ADMIN_WITH_POLICY, "adminWithPolicy"),
        (Self(1 << 10), "noDA"),
        (Self(1 << 11), "encryptedDuplication"),
        (Self::RESTRICTED, "restricted"),
        (Self::DECRYPT, "decrypt"),
        (Self::SIGN, "sign"),
    ];

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is set here and in `other`.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is set here and not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Nothing set?
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for ObjectAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut separator = "";
        for (bit, name) in Self::NAMES {
            if !self.intersection(bit).is_empty() {
                write!(f, "{separator}{name}")?;
                separator = " ";
                rest = rest.difference(bit);
            }
        }
        if rest.is_empty() {
            Ok(())
        } else {
            write!(f, "{separator}{:#x}", rest.0)
        }
    }
}

/// TPM2B_NAME of an object: nameAlg and the digest of its TPMT_PUBLIC. Prints as hex.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Name(Vec<u8>);

impl Name {
    /// From the content of a TPM2B_NAME; `None` unless it is a known nameAlg with a digest of its
    /// size (the name of a handle is four bytes, and is no object's name).
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (id, digest) = bytes.split_first_chunk()?;
        let name_alg = HashAlgorithm::from_id(u16::from_be_bytes(*id))?;
        (digest.len() == name_alg.size()).then(|| Self(bytes.to_vec()))
    }

    /// The bytes: `TPM_ALG_ID`, then the digest.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl Public {
    /// Parses TPM2B_PUBLIC (UINT16 size, TPMT_PUBLIC); nothing may follow.
    pub fn from_tpm2b(bytes: &[u8]) -> Result<Self, StructureError> {
        let mut reader = Reader::new("TPM2B_PUBLIC", bytes);
        let tpmt = reader.tpm2b(usize::from(u16::MAX))?;
        reader.finish()?;
        Self::from_tpmt(tpmt)
    }

    /// Parses TPMT_PUBLIC; nothing may follow.
    pub fn from_tpmt(bytes: &[u8]) -> Result<Self, StructureError> {
        let mut reader = Reader::new("TPMT_PUBLIC", bytes);
        let kind = reader.u16()?;
        let name_alg = hash(&mut reader)?;
        let attributes = ObjectAttributes(reader.u32()?);
        let start = reader.offset();
        let auth_policy = reader.tpm2b(MAX_DIGEST)?.to_vec();
        if !auth_policy.is_empty() && auth_policy.len() != name_alg.size() {
            return Err(reader.error_at(start, "authPolicy is not of nameAlg's size"));
        }
        let parms = match kind {
            ALG_RSA => rsa(&mut reader)?,
            ALG_ECC => ecc(&mut reader)?,
            _ => return Err(reader.error_at(0, "type is neither TPM_ALG_RSA nor TPM_ALG_ECC")),
        };
        reader.finish()?;
        Ok(Self {
            tpmt: bytes.to_vec(),
            name_alg,
            attributes,
            auth_policy,
            parms,
        })
    }

    /// TPM2B_PUBLIC.
    pub fn to_tpm2b(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 + self.tpmt.len());
        put_tpm2b(&mut out, &self.tpmt);
        out
    }

    /// TPMT_PUBLIC as it was parsed.
    pub fn as_tpmt(&self) -> &[u8] {
        &self.tpmt
    }

    /// nameAlg.
    pub fn name_alg(&self) -> HashAlgorithm {
        self.name_alg
    }

    /// objectAttributes.
    pub fn attributes(&self) -> ObjectAttributes {
        self.attributes
    }

    /// authPolicy.
    pub fn auth_policy(&self) -> &[u8] {
        &self.auth_policy
    }

    /// Parameters and unique.
    pub fn parms(&self) -> &PublicParms {
        &self.parms
    }

    /// The object's name (TPM 2.0 Part 1, "Names").
    pub fn name(&self) -> Name {
        let mut name = self.name_alg.id().to_be_bytes().to_vec();
        name.extend_from_slice(self.name_alg.digest(&[&self.tpmt]).as_bytes());
        Name(name)
    }

    /// SubjectPublicKeyInfo, DER (RFC 3279 for RSA, RFC 5480 with a named curve for ECC).
    pub fn to_spki_der(&self) -> Vec<u8> {
        match &self.parms {
            PublicParms::Rsa {
                exponent, modulus, ..
            } => {
                let key = der::sequence(&[
                    &der::unsigned(modulus),
                    &der::unsigned(&exponent.to_be_bytes()),
                ]);
                der::sequence(&[&der::sequence(&[OID_RSA]), &der::bit_string(&[&key])])
            }
            PublicParms::Ecc { curve, x, y, .. } => der::sequence(&[
                &der::sequence(&[OID_EC, curve.oid()]),
                &der::bit_string(&[&[0x04], x, y]),
            ]),
        }
    }

    /// SubjectPublicKeyInfo, PEM: 64 columns, LF, final LF.
    pub fn to_spki_pem(&self) -> String {
        let base64 = STANDARD.encode(self.to_spki_der());
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            // base64 is ASCII: every index is a character boundary.
            let (line, tail) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = tail;
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        pem
    }

    /// Keylime's `enc_alg` name with its size: `rsa2048`, `ecc256`.
    pub fn enc_alg(&self) -> String {
        match &self.parms {
            PublicParms::Rsa { key_bits, .. } => format!("rsa{key_bits}"),
            PublicParms::Ecc { curve, .. } => format!("ecc{}", curve.bits()),
        }
    }
}

/// TPMI_ALG_HASH.
fn hash(reader: &mut Reader<'_>) -> Result<HashAlgorithm, StructureError> {
    let start = reader.offset();
    HashAlgorithm::from_id(reader.u16()?)
        .ok_or_else(|| reader.error_at(start, "hash is not SHA-1, SHA-256, SHA-384 or SHA-512"))
}

/// TPMT_SYM_DEF_OBJECT: the key size in bits.
fn symmetric(reader: &mut Reader<'_>) -> Result<Option<u16>, StructureError> {
    let start = reader.offset();
    match reader.u16()? {
        ALG_NULL => return Ok(None),
        ALG_AES => {}
        _ => return Err(reader.error_at(start, "symmetric algorithm is neither AES nor NULL")),
    }
    let bits = reader.u16()?;
    if ![128, 192, 256].contains(&bits) {
        return Err(reader.error_at(start + 2, "AES key size is not 128, 192 or 256"));
    }
    if reader.u16()? != ALG_CFB {
        return Err(reader.error_at(start + 4, "symmetric mode is not CFB"));
    }
    Ok(Some(bits))
}

/// TPMT_RSA_SCHEME or TPMT_ECC_SCHEME, the members that sign quotes.
fn scheme(
    reader: &mut Reader<'_>,
    known: &[SignatureScheme],
) -> Result<Option<(SignatureScheme, HashAlgorithm)>, StructureError> {
    let start = reader.offset();
    let id = reader.u16()?;
    if id == ALG_NULL {
        return Ok(None);
    }
    let scheme = SignatureScheme::from_id(id)
        .filter(|scheme| known.contains(scheme))
        .ok_or_else(|| reader.error_at(start, "scheme is not RSASSA, RSAPSS, ECDSA or NULL"))?;
    Ok(Some((scheme, hash(reader)?)))
}

/// TPMS_RSA_PARMS and TPM2B_PUBLIC_KEY_RSA.
fn rsa(reader: &mut Reader<'_>) -> Result<PublicParms, StructureError> {
    let symmetric_bits = symmetric(reader)?;
    let scheme = scheme(reader, &[SignatureScheme::RsaSsa, SignatureScheme::RsaPss])?;
    let start = reader.offset();
    let key_bits = reader.u16()?;
    let exponent = match reader.u32()? {
        0 => 65537,
        exponent if exponent >= 3 && exponent % 2 == 1 => exponent,
        _ => return Err(reader.error_at(start + 2, "exponent is even or below 3")),
    };
    let unique = reader.offset();
    let modulus = reader.tpm2b(MAX_MODULUS)?.to_vec();
    // The top bit set and the last bit set: anything else is not a modulus of that size.
    if modulus.len() * 8 != usize::from(key_bits)
        || modulus.first().is_none_or(|&byte| byte < 0x80)
        || modulus.last().is_none_or(|&byte| byte % 2 == 0)
    {
        return Err(reader.error_at(unique, "unique is not a modulus of keyBits"));
    }
    Ok(PublicParms::Rsa {
        symmetric_bits,
        scheme,
        key_bits,
        exponent,
        modulus,
    })
}

/// TPMS_ECC_PARMS and TPMS_ECC_POINT.
fn ecc(reader: &mut Reader<'_>) -> Result<PublicParms, StructureError> {
    let symmetric_bits = symmetric(reader)?;
    let scheme = scheme(reader, &[SignatureScheme::Ecdsa])?;
    let start = reader.offset();
    let curve = EccCurve::from_id(reader.u16()?)
        .ok_or_else(|| reader.error_at(start, "curve is not NIST P-256, P-384 or P-521"))?;
    let start = reader.offset();
    if reader.u16()? != ALG_NULL {
        return Err(reader.error_at(start, "kdf is not NULL"));
    }
    let x = coordinate(reader, curve)?;
    let y = coordinate(reader, curve)?;
    Ok(PublicParms::Ecc {
        symmetric_bits,
        scheme,
        curve,
        x,
        y,
    })
}

/// TPM2B_ECC_PARAMETER, padded to the field size.
fn coordinate(reader: &mut Reader<'_>, curve: EccCurve) -> Result<Vec<u8>, StructureError> {
    let start = reader.offset();
    let bytes = reader.tpm2b(curve.size())?;
    if bytes.is_empty() {
        return Err(reader.error_at(start, "unique has an empty coordinate"));
    }
    let mut padded = vec![0; curve.size() - bytes.len()];
    padded.extend_from_slice(bytes);
    Ok(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/boots");

    fn read(path: &str) -> Vec<u8> {
        std::fs::read(format!("{BOOTS}/{path}")).unwrap()
    }

    #[test]
    fn captured_keys_parse_and_have_the_tpms_names() {
        for boot in ["uki", "grub"] {
            for key in ["ak", "ak-ecc"] {
                let bytes = read(&format!("{boot}/{key}.pub"));
                let public = Public::from_tpm2b(&bytes).unwrap();
                assert_eq!(
                    public.name().as_bytes(),
                    read(&format!("{boot}/{key}.name"))
                );
                assert_eq!(public.to_tpm2b(), bytes);
                let pem = String::from_utf8(read(&format!("{boot}/{key}.pem"))).unwrap();
                assert_eq!(public.to_spki_pem(), pem);
            }
            let ek = Public::from_tpm2b(&read(&format!("{boot}/ek.pub"))).unwrap();
            assert_eq!(ek.to_spki_pem().as_bytes(), read(&format!("{boot}/ek.pem")));
            assert_eq!(ek.enc_alg(), "rsa2048");
            assert_eq!(ek.parms().symmetric_bits(), Some(128));
            assert_eq!(ek.parms().scheme(), None);
            let ecc = Public::from_tpm2b(&read(&format!("{boot}/ek-ecc.pub"))).unwrap();
            assert!(ecc.enc_alg().starts_with("ecc"), "{}", ecc.enc_alg());
        }
    }

    #[test]
    fn every_truncation_and_every_extension_is_refused() {
        for key in ["uki/ak.pub", "uki/ak-ecc.pub", "uki/ek.pub"] {
            let bytes = read(key);
            for end in 0..bytes.len() {
                Public::from_tpm2b(&bytes[..end]).unwrap_err();
                Public::from_tpmt(&bytes[2..end.max(2)]).unwrap_err();
            }
            let mut longer = bytes.clone();
            longer.push(0);
            Public::from_tpm2b(&longer).unwrap_err();
            assert_eq!(
                Public::from_tpmt(&longer[2..]).unwrap_err().reason,
                "bytes after the end of the structure"
            );
        }
    }

    #[test]
    fn errors_say_where() {
        let bytes = read("uki/ak.pub");
        let changed = |at: usize, value: &[u8]| {
            let mut bytes = bytes[2..].to_vec();
            bytes[at..at + value.len()].copy_from_slice(value);
            let error = Public::from_tpmt(&bytes).unwrap_err();
            (error.offset, error.reason)
        };
        assert_eq!(
            changed(0, &[0, 8]),
            (0, "type is neither TPM_ALG_RSA nor TPM_ALG_ECC")
        );
        assert_eq!(
            changed(2, &[0, 0x12]),
            (2, "hash is not SHA-1, SHA-256, SHA-384 or SHA-512")
        );
        assert_eq!(
            changed(10, &[0, 0x13]),
            (10, "symmetric algorithm is neither AES nor NULL")
        );
        assert_eq!(
            changed(12, &[0, 0x18]),
            (12, "scheme is not RSASSA, RSAPSS, ECDSA or NULL")
        );
        assert_eq!(
            changed(18, &[0, 0, 0, 2]),
            (18, "exponent is even or below 3")
        );
        assert_eq!(
            changed(16, &[4, 0]),
            (22, "unique is not a modulus of keyBits")
        );
        assert_eq!(
            changed(24, &[0]),
            (22, "unique is not a modulus of keyBits")
        );
    }

    #[test]
    fn attributes_print_their_names() {
        let text = ObjectAttributes(0x0005_0072).to_string();
        assert_eq!(
            text,
            "fixedTPM fixedParent sensitiveDataOrigin userWithAuth restricted sign"
        );
        assert_eq!(ObjectAttributes(1 | 1 << 1).to_string(), "fixedTPM 0x1");
    }
}
