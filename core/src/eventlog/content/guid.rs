use std::fmt;

/// An EFI_GUID, as it stands in memory. Prints in the usual mixed-endian form, lower case.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// EFI_GLOBAL_VARIABLE: SecureBoot, PK, KEK, BootOrder, Boot####.
    pub const GLOBAL: Self = Self::from_u128(0x8be4df61_93ca_11d2_aa0d_00e098032b8c);
    /// EFI_IMAGE_SECURITY_DATABASE_GUID: db, dbx, dbt, dbr.
    pub const SECURITY_DATABASE: Self = Self::from_u128(0xd719b2cb_3d3a_4596_a3bc_dad00e67656f);
    /// Variables of shim: MokList, SbatLevel, Shim.
    pub const SHIM: Self = Self::from_u128(0x605dab50_e046_4300_abb6_3dd810dd8b23);
    /// EFI_CERT_X509_GUID: a certificate.
    pub const CERT_X509: Self = Self::from_u128(0xa5c059a1_94e4_4aa7_87b5_ab155c2bf072);
    /// EFI_CERT_SHA256_GUID: the digest of an image.
    pub const CERT_SHA256: Self = Self::from_u128(0xc1c41626_504c_4092_aca9_41f936934328);

    /// From the digits of its text.
    pub const fn from_u128(digits: u128) -> Self {
        let mut bytes = digits.to_be_bytes();
        bytes.swap(0, 3);
        bytes.swap(1, 2);
        bytes.swap(4, 5);
        bytes.swap(6, 7);
        Self(bytes)
    }

    /// From its text, in letters of either case.
    pub fn parse(text: &str) -> Option<Self> {
        let mut sizes = text.split('-').map(str::len);
        let shaped = [8, 4, 4, 4, 12]
            .into_iter()
            .all(|size| sizes.next() == Some(size));
        let digits = text.replace('-', "");
        let hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let digits = (shaped && sizes.next().is_none() && hex).then_some(digits)?;
        u128::from_str_radix(&digits, 16).ok().map(Self::from_u128)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, e @ ..] = self.0;
        let (a, b, c) = (
            u32::from_le_bytes([a0, a1, a2, a3]),
            u16::from_le_bytes([b0, b1]),
            u16::from_le_bytes([c0, c1]),
        );
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d0:02x}{d1:02x}-")?;
        e.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_mixed_endian() {
        let text = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
        assert_eq!(Guid::GLOBAL.to_string(), text);
        assert_eq!(Guid::parse(&text.to_uppercase()), Some(Guid::GLOBAL));
        assert_eq!(Guid::parse(&text.replace('-', "")), None);
        assert_eq!(Guid::GLOBAL.0[..6], [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93]);
    }
}
