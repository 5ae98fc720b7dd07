/// The template of an entry: which fields were measured (kernel, Documentation/security/IMA-templates).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Template {
    /// `ima`: SHA-1 or MD5 digest and a name of up to 255 bytes, of fixed size.
    Ima,
    /// `ima-ng`: `d-ng|n-ng`.
    ImaNg,
    /// `ima-ngv2`: `d-ngv2|n-ng`. The digest says whether it is of the file or fs-verity's.
    ImaNgV2,
    /// `ima-sig`: `d-ng|n-ng|sig`.
    ImaSig,
    /// `ima-sigv2`: `d-ngv2|n-ng|sig`.
    ImaSigV2,
    /// `ima-buf`: `d-ng|n-ng|buf`.
    ImaBuf,
    /// `ima-modsig`: `d-ng|n-ng|sig|d-modsig|modsig`, with the signature appended to a module.
    ImaModsig,
    /// `evm-sig`: `d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode`.
    EvmSig,
}

/// A field of a template, by how the kernel shows and hashes it. Digest and name come first in
/// every template.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Field {
    /// `alg:hex`, hashed as `alg:`, NUL, digest; empty when there is none.
    Digest,
    /// Hex; empty when there is none.
    Hex,
    /// Text, hashed with a NUL behind it; empty when there is none.
    Text,
    /// A decimal number of that many bytes, hashed in little-endian; empty when there is none.
    Number(usize),
}

impl Template {
    const ALL: [Self; 8] = [
        Self::ImaSig,
        Self::ImaNg,
        Self::ImaBuf,
        Self::ImaNgV2,
        Self::ImaSigV2,
        Self::ImaModsig,
        Self::EvmSig,
        Self::Ima,
    ];

    /// The template of a name; kernels with `ima_template_fmt=` name it by its fields.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|template| template.name() == name || template.format() == Some(name))
    }

    /// The name as the list writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ima => "ima",
            Self::ImaNg => "ima-ng",
            Self::ImaNgV2 => "ima-ngv2",
            Self::ImaSig => "ima-sig",
            Self::ImaSigV2 => "ima-sigv2",
            Self::ImaBuf => "ima-buf",
            Self::ImaModsig => "ima-modsig",
            Self::EvmSig => "evm-sig",
        }
    }

    /// Its fields as the kernel writes them. `d|n` is not the template `ima`: the kernel leaves the
    /// lengths of fields out under that name alone (ima_calc_field_array_hash_tfm).
    fn format(self) -> Option<&'static str> {
        Some(match self {
            Self::Ima => return None,
            Self::ImaNg => "d-ng|n-ng",
            Self::ImaNgV2 => "d-ngv2|n-ng",
            Self::ImaSig => "d-ng|n-ng|sig",
            Self::ImaSigV2 => "d-ngv2|n-ng|sig",
            Self::ImaBuf => "d-ng|n-ng|buf",
            Self::ImaModsig => "d-ng|n-ng|sig|d-modsig|modsig",
            Self::EvmSig => "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
        })
    }

    /// The fields behind digest and name.
    pub(super) fn fields(self) -> &'static [Field] {
        match self {
            Self::Ima | Self::ImaNg | Self::ImaNgV2 => &[],
            Self::ImaSig | Self::ImaSigV2 | Self::ImaBuf => &[Field::Hex],
            Self::ImaModsig => &[Field::Hex, Field::Digest, Field::Hex],
            Self::EvmSig => &[
                Field::Hex,
                Field::Text,
                Field::Hex,
                Field::Hex,
                Field::Number(4),
                Field::Number(4),
                Field::Number(2),
            ],
        }
    }

    /// Does the digest say what it is of (`ima:` or `verity:`)?
    pub(super) fn has_digest_type(self) -> bool {
        matches!(self, Self::ImaNgV2 | Self::ImaSigV2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_known_by_name_and_by_fields() {
        for template in Template::ALL {
            assert_eq!(Template::from_name(template.name()), Some(template));
        }
        assert_eq!(Template::from_name("d-ng|n-ng|sig"), Some(Template::ImaSig));
        assert_eq!(Template::from_name("d|n"), None);
    }
}
