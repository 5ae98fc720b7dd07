use troth_core::tpm::{HashAlgorithm, SignatureScheme};

/// Kind of an EK and AK: the algorithms for which the TCG EK Credential Profile has a template.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum KeyKind {
    /// RSA, 2048 bits (template L-1).
    Rsa2048,
    /// RSA, 3072 bits (template H-6).
    Rsa3072,
    /// RSA, 4096 bits (template H-7).
    Rsa4096,
    /// NIST P-256 (template L-2).
    EccP256,
    /// NIST P-384 (template H-3).
    EccP384,
    /// NIST P-521 (template H-4).
    EccP521,
}

impl KeyKind {
    /// The kind of a `tpm_encryption_alg` name as Keylime spells it.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "rsa" | "rsa2048" => Self::Rsa2048,
            "rsa3072" => Self::Rsa3072,
            "rsa4096" => Self::Rsa4096,
            "ecc" | "ecc256" | "ecc_nist_p256" => Self::EccP256,
            "ecc384" | "ecc_nist_p384" => Self::EccP384,
            "ecc521" | "ecc_nist_p521" => Self::EccP521,
            _ => return None,
        })
    }

    /// The explicit name: `rsa2048`, `ecc256`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsa2048 => "rsa2048",
            Self::Rsa3072 => "rsa3072",
            Self::Rsa4096 => "rsa4096",
            Self::EccP256 => "ecc256",
            Self::EccP384 => "ecc384",
            Self::EccP521 => "ecc521",
        }
    }

    /// The name that peers older than API 2.5 know: sizes only where they are not the usual ones.
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Rsa2048 => "rsa",
            Self::EccP256 => "ecc",
            other => other.name(),
        }
    }

    /// RSA, not ECC.
    pub fn is_rsa(self) -> bool {
        matches!(self, Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096)
    }

    /// The usual quote scheme: the ones every verifier accepts.
    pub fn default_scheme(self) -> SignatureScheme {
        if self.is_rsa() {
            SignatureScheme::RsaSsa
        } else {
            SignatureScheme::Ecdsa
        }
    }

    /// nameAlg of the EK template; also the hash of its policy session.
    pub fn ek_name_alg(self) -> HashAlgorithm {
        match self {
            Self::Rsa2048 | Self::EccP256 => HashAlgorithm::Sha256,
            Self::Rsa3072 | Self::Rsa4096 | Self::EccP384 => HashAlgorithm::Sha384,
            Self::EccP521 => HashAlgorithm::Sha512,
        }
    }

    /// The branches of TPM2_PolicyOR in the EK's policy; `None` for the low range templates, whose
    /// policy is PolicySecret alone (EK Credential Profile 2.5, B.6).
    pub fn ek_policy_or(self) -> Option<[&'static [u8]; 2]> {
        match self {
            Self::Rsa2048 | Self::EccP256 => None,
            Self::Rsa3072 | Self::Rsa4096 | Self::EccP384 => {
                Some([&POLICY_A_SHA384, &POLICY_C_SHA384])
            }
            Self::EccP521 => Some([&POLICY_A_SHA512, &POLICY_C_SHA512]),
        }
    }

    /// nameAlg of the device identity's templates (TCG TPM 2.0 Keys for Device Identity and
    /// Attestation 1.0, 7.3.4).
    pub fn device_name_alg(self) -> HashAlgorithm {
        match self {
            Self::Rsa2048 | Self::EccP256 => HashAlgorithm::Sha256,
            Self::Rsa3072 | Self::EccP384 => HashAlgorithm::Sha384,
            Self::Rsa4096 | Self::EccP521 => HashAlgorithm::Sha512,
        }
    }

    /// keyBits of an RSA key, curveID of an ECC key (TCG Algorithm Registry).
    pub(super) fn bits_or_curve(self) -> u16 {
        match self {
            Self::Rsa2048 => 2048,
            Self::Rsa3072 => 3072,
            Self::Rsa4096 => 4096,
            Self::EccP256 => 3,
            Self::EccP384 => 4,
            Self::EccP521 => 5,
        }
    }

    /// NV index of the EK certificate (EK Credential Profile 2.5, 2.2.1.4 and 2.2.1.5).
    pub fn certificate_index(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x01C0_0002,
            Self::EccP256 => 0x01C0_000A,
            Self::EccP384 => 0x01C0_0016,
            Self::EccP521 => 0x01C0_0018,
            Self::Rsa3072 => 0x01C0_001C,
            Self::Rsa4096 => 0x01C0_001E,
        }
    }
}

/// What an AK is: its kind, and the hash and scheme that it is restricted to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AkTemplate {
    /// Algorithm and size.
    pub kind: KeyKind,
    /// nameAlg, and hash of the scheme.
    pub hash: HashAlgorithm,
    /// Quote scheme.
    pub scheme: SignatureScheme,
}

impl std::fmt::Display for AkTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} {}",
            self.kind.name(),
            self.scheme.name(),
            self.hash.name()
        )
    }
}

/// PolicySecret(TPM_RH_ENDORSEMENT), empty policyRef, SHA-384.
const POLICY_A_SHA384: [u8; 48] = unhex(
    "8bbf2266537c171cb56e403c4dc1d4b64f432611dc386e6f532050c3278c930e\
     143e8bb1133824ccb431053871c6db53",
);
/// PolicyAuthorizeNV of the high range template, SHA-384.
const POLICY_C_SHA384: [u8; 48] = unhex(
    "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5\
     b4947c2d73e63005eed2dc2b3593d165",
);
/// PolicySecret(TPM_RH_ENDORSEMENT), empty policyRef, SHA-512.
const POLICY_A_SHA512: [u8; 64] = unhex(
    "1e3b76502c8a1425aa0b7b3fc646a1b0fae063b03b5368f9c4cddecaff0891dd\
     682bac1a85d4d832b781ea451915de5fc5bf0dc4a1917cd42fa041e3f998e0ee",
);
/// PolicyAuthorizeNV of the high range template, SHA-512.
const POLICY_C_SHA512: [u8; 64] = unhex(
    "589ee1e146544716e8deafe6db247b01b81e9f9c7dd16b814aa159138749105f\
     ba5388dd1dea702f35240c184933121e2c61b8f50d3ef91393a49a38c3f73fc8",
);

/// Appends a TPM2B of up to 64 KiB.
pub(super) fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&bytes[..usize::from(length)]);
}

/// The bytes of `2 * N` lower-case hexadecimal digits.
pub(super) const fn unhex<const N: usize>(text: &str) -> [u8; N] {
    const fn nibble(c: u8) -> u8 {
        match c {
            b'0'..=b'9' => c - b'0',
            _ => c - b'a' + 10,
        }
    }
    let text = text.as_bytes();
    assert!(text.len() == 2 * N);
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        out[i] = nibble(text[2 * i]) << 4 | nibble(text[2 * i + 1]);
        i += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for kind in [
            KeyKind::Rsa2048,
            KeyKind::Rsa3072,
            KeyKind::Rsa4096,
            KeyKind::EccP256,
            KeyKind::EccP384,
            KeyKind::EccP521,
        ] {
            assert_eq!(KeyKind::from_name(kind.name()), Some(kind));
            assert_eq!(KeyKind::from_name(kind.short_name()), Some(kind));
        }
        assert_eq!(KeyKind::from_name("ecc_nist_p384"), Some(KeyKind::EccP384));
        assert_eq!(KeyKind::from_name("rsa1024"), None);
    }

    #[test]
    fn policy_a_is_the_policy_session_digest() {
        // TPM 2.0 Part 3, 23.4: PolicySecret extends twice from the zero digest.
        for (hash, policy) in [
            (HashAlgorithm::Sha384, &POLICY_A_SHA384[..]),
            (HashAlgorithm::Sha512, &POLICY_A_SHA512[..]),
        ] {
            let zero = vec![0; hash.size()];
            let first = hash.digest(&[
                &zero,
                &0x0000_0151_u32.to_be_bytes(),
                &0x4000_000B_u32.to_be_bytes(),
            ]);
            let digest = hash.digest(&[first.as_bytes()]);
            assert_eq!(digest.as_bytes(), policy);
        }
    }
}
