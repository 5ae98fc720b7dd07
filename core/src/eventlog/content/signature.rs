use super::cursor::Cursor;
use super::{ContentError, Guid};

/// Size of EFI_SIGNATURE_LIST without header and signatures, in bytes.
const LIST_HEADER: usize = 28;

/// EFI_SIGNATURE_LISTs after one another, as PK, KEK, db and dbx hold them (UEFI, "Signature
/// Database"). Checked as a whole when made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SignatureLists<'l> {
    bytes: &'l [u8],
}

/// One EFI_SIGNATURE_LIST: signatures of one type and size.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SignatureList<'l> {
    /// Type of the signatures ([`Guid::CERT_X509`], [`Guid::CERT_SHA256`], ...).
    pub kind: Guid,
    /// Size of the whole list, in bytes.
    pub list_size: u32,
    /// Header of the type; none is defined.
    pub header: &'l [u8],
    /// Size of each signature with its owner, in bytes.
    pub signature_size: u32,
    signatures: &'l [u8],
}

/// EFI_SIGNATURE_DATA.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Signature<'l> {
    /// Who put it there.
    pub owner: Guid,
    /// The certificate (DER), or the digest.
    pub data: &'l [u8],
}

impl<'l> SignatureLists<'l> {
    /// Checks that `bytes` are whole lists of whole signatures; none at all is fine.
    pub(super) fn parse(bytes: &'l [u8]) -> Result<Self, ContentError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            (_, rest) = SignatureList::parse(rest).map_err(|error| ContentError {
                offset: bytes.len() - rest.len() + error.offset,
                ..error
            })?;
        }
        Ok(Self { bytes })
    }

    /// The lists, in order.
    pub fn iter(&self) -> impl Iterator<Item = SignatureList<'l>> + use<'l> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (list, after) = SignatureList::parse(rest).ok()?;
            rest = after;
            Some(list)
        })
    }

    /// The signatures of all lists, each with its type.
    pub fn signatures(&self) -> impl Iterator<Item = (Guid, Signature<'l>)> + use<'l> {
        self.iter()
            .flat_map(|list| list.signatures().map(move |one| (list.kind, one)))
    }
}

impl<'l> SignatureList<'l> {
    /// The list at the start of `bytes`, and what follows it.
    fn parse(bytes: &'l [u8]) -> Result<(Self, &'l [u8]), ContentError> {
        let mut cursor = Cursor::new("EFI_SIGNATURE_LIST", bytes);
        let kind = cursor.guid()?;
        let (list_size, header_size) = (cursor.u32()?, cursor.u32()?);
        let signature_size = cursor.u32()?;
        if signature_size < 16 {
            return Err(cursor.fail("signatures are smaller than their owner"));
        }
        let header = cursor.take_sized(header_size)?;
        let size = usize::try_from(list_size).unwrap_or(usize::MAX);
        let size = size.checked_sub(LIST_HEADER + header.len());
        let Some(size) = size else {
            return Err(cursor.fail("the list is smaller than its header"));
        };
        let signatures = cursor.take(size)?;
        let whole = usize::try_from(signature_size).is_ok_and(|one| size.is_multiple_of(one));
        if !whole {
            return Err(cursor.fail("the last signature is not whole"));
        }
        let list = Self {
            kind,
            list_size,
            header,
            signature_size,
            signatures,
        };
        Ok((list, cursor.rest()))
    }

    /// The signatures, in order.
    pub fn signatures(&self) -> impl Iterator<Item = Signature<'l>> + use<'l> {
        let size = usize::try_from(self.signature_size).unwrap_or(usize::MAX);
        self.signatures
            .chunks_exact(size.max(16))
            .filter_map(|one| Signature::parse(one).ok())
    }
}

impl<'l> Signature<'l> {
    pub(in crate::eventlog) fn parse(bytes: &'l [u8]) -> Result<Self, ContentError> {
        let mut cursor = Cursor::new("EFI_SIGNATURE_DATA", bytes);
        let owner = cursor.guid()?;
        let data = cursor.rest();
        Ok(Self { owner, data })
    }
}
