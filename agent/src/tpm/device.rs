use std::fmt;

use troth_core::tpm::HashAlgorithm;
use zeroize::Zeroizing;

use super::{
    KeyKind,
    templates::{sized, unhex},
};

/// Which key of the device identity (TCG TPM 2.0 Keys for Device Identity and Attestation 1.0).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeviceRole {
    /// The IDevID key: signs what the device itself says.
    IDevId,
    /// The initial attestation key: certifies AKs.
    Iak,
}

/// A key of the device identity, and where it is.
#[derive(Clone)]
pub struct DeviceKey {
    /// IDevID or IAK.
    pub role: DeviceRole,
    /// What its template asks for; of no meaning for a persistent key.
    pub kind: KeyKind,
    /// Persistent handle; without, the key is made from its template.
    pub handle: Option<u32>,
    /// authValue of the persistent key, at most 64 bytes.
    pub auth: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceKey")
            .field("role", &self.role)
            .field("kind", &self.kind)
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

impl DeviceRole {
    /// The option with the key's persistent handle.
    pub fn handle_option(self) -> &'static str {
        match self {
            Self::IDevId => "idevid_handle",
            Self::Iak => "iak_handle",
        }
    }

    /// The option with the key's password.
    pub fn password_option(self) -> &'static str {
        match self {
            Self::IDevId => "idevid_password",
            Self::Iak => "iak_password",
        }
    }

    fn unique(self) -> &'static [u8] {
        match self {
            Self::IDevId => b"IDEVID",
            Self::Iak => b"IAK",
        }
    }

    /// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, adminWithPolicy, sign; the IAK is
    /// restricted besides.
    fn attributes(self) -> u32 {
        match self {
            Self::IDevId => 0x0004_00F2,
            Self::Iak => 0x0005_00F2,
        }
    }

    fn policy(self, name_alg: HashAlgorithm) -> &'static [u8] {
        match (self, name_alg) {
            (Self::IDevId, HashAlgorithm::Sha384) => &IDEVID_SHA384,
            (Self::IDevId, HashAlgorithm::Sha512) => &IDEVID_SHA512,
            (Self::IDevId, _) => &IDEVID_SHA256,
            (Self::Iak, HashAlgorithm::Sha384) => &IAK_SHA384,
            (Self::Iak, HashAlgorithm::Sha512) => &IAK_SHA512,
            (Self::Iak, _) => &IAK_SHA256,
        }
    }
}

impl fmt::Display for DeviceRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IDevId => "IDevID",
            Self::Iak => "IAK",
        })
    }
}

impl DeviceKey {
    /// TPMT_PUBLIC to hand to TPM2_CreatePrimary in the endorsement hierarchy (TCG TPM 2.0 Keys
    /// for Device Identity and Attestation 1.0, 7.3.4: templates H-1 to H-4; RSA 3072 and 4096 by
    /// the same rules).
    pub fn template(&self) -> Vec<u8> {
        let name_alg = self.kind.device_name_alg();
        let mut out = Vec::with_capacity(128);
        push(&mut out, if self.kind.is_rsa() { RSA } else { ECC });
        push(&mut out, name_alg.id());
        out.extend_from_slice(&self.role.attributes().to_be_bytes());
        sized(&mut out, self.role.policy(name_alg));
        push(&mut out, NULL); // no symmetric algorithm
        if self.kind.is_rsa() {
            match self.role {
                DeviceRole::IDevId => push(&mut out, NULL),
                DeviceRole::Iak => {
                    push(&mut out, RSAPSS);
                    push(&mut out, name_alg.id());
                }
            }
            push(&mut out, self.kind.bits_or_curve());
            out.extend_from_slice(&[0; 4]); // the default exponent, 65537
            sized(&mut out, self.role.unique());
        } else {
            push(&mut out, ECDSA);
            push(&mut out, name_alg.id());
            push(&mut out, self.kind.bits_or_curve());
            push(&mut out, NULL); // no KDF
            sized(&mut out, self.role.unique());
            sized(&mut out, self.role.unique());
        }
        out
    }
}

// TCG Algorithm Registry.
const RSA: u16 = 0x0001;
const ECC: u16 = 0x0023;
const NULL: u16 = 0x0010;
const RSAPSS: u16 = 0x0016;
const ECDSA: u16 = 0x0018;

fn push(out: &mut Vec<u8>, word: u16) {
    out.extend_from_slice(&word.to_be_bytes());
}

// authPolicy by nameAlg (TCG TPM 2.0 Keys for Device Identity and Attestation 1.0, 7.3.4.1).
const IDEVID_SHA256: [u8; 32] =
    unhex("ad6b3a2284fd698a0710bf5cc1b9bdf15e2532e3f601fa4b93a6a8fa8de579ea");
const IDEVID_SHA384: [u8; 48] = unhex(
    "4db1aa836d0b5615df6ee53a40ef70c61c217f4303d44695925972bc927006cf\
     a5cbdf6dc18c4dbe329b2f1542c3dd33",
);
const IDEVID_SHA512: [u8; 64] = unhex(
    "7dd7500fd6c1b94f97a6af910da147301ef28f662fee06f225a4ccadda3b4e6b\
     38e66b2f3ad5dee1a0503cd2daedb1e68cfe4f84b03a8cd22bb6a976f071a72f",
);
const IAK_SHA256: [u8; 32] =
    unhex("5437182326e414fca797d5f174615a1641f61255797c3a2b22c21d120b2d1e07");
const IAK_SHA384: [u8; 48] = unhex(
    "129d94ebf84556652c6eef43bbb757512ac87e52be7b349ca6ce4d826f749fcf\
     672f51716c5cbb605f313bf345aab312",
);
const IAK_SHA512: [u8; 64] = unhex(
    "8060d1fb31716a29e48a6e5fece088bcfc1b278fc162255e81c3eca3544cd44a\
     f94410c3715d561cccd9e39a6cb2646d43535bb54ea88710deb5f7836bd9b586",
);

#[cfg(test)]
mod tests {
    use super::*;

    fn template(role: DeviceRole, kind: KeyKind) -> String {
        let key = DeviceKey {
            role,
            kind,
            handle: None,
            auth: Zeroizing::default(),
        };
        hex::encode(key.template())
    }

    #[test]
    fn the_templates_are_those_of_the_tcg() {
        // The heads are of keys that swtpm made for Keylime's agent.
        let idevid = template(DeviceRole::IDevId, KeyKind::Rsa2048);
        assert!(idevid.starts_with("0001000b000400f20020ad6b3a2284fd"));
        assert!(idevid.ends_with("001000100800000000000006494445564944"));
        let iak = template(DeviceRole::Iak, KeyKind::Rsa2048);
        assert!(iak.starts_with("0001000b000500f2002054371823"));
        assert!(iak.ends_with("00100016000b080000000000000349414b"));
        let iak = template(DeviceRole::Iak, KeyKind::EccP521);
        assert!(iak.starts_with("0023000d000500f200408060d1fb"));
        assert!(iak.ends_with("00100018000d00050010000349414b000349414b"));
    }
}
