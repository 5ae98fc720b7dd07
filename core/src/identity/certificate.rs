use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::IdentityError;
use super::der::{Der, malformed};
use super::x509::{Certificate, KeyNumbers};
use crate::tpm::Public;

/// Largest EK certificate that is looked at, PEM chain included, in bytes.
const MAX_CERTIFICATE: usize = 64 * 1024;
/// Most certificates of a chain that are looked at.
const MAX_CHAIN: usize = 16;

const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// Whatever an EK certificate's base64 looks like: with or without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An EK certificate as read from NV or the wire, cut to what it is: the certificate's own DER
/// bytes, or `None` when there is none (empty, or an NV index never written).
///
/// Takes DER with padding behind it, DER in an OCTET STRING, the `10 01 00` header of old
/// provisioning tools, PEM (the first certificate of several) and base64 of any of these. The
/// certificate itself is never re-encoded: some vendors' are not strict DER, and a re-encoded copy
/// loses its signature.
pub fn normalise_ek_certificate(bytes: &[u8]) -> Result<Option<Vec<u8>>, IdentityError> {
    if bytes.len() > MAX_CERTIFICATE {
        return Err(malformed(0, "larger than any EK certificate"));
    }
    let text = bytes.trim_ascii();
    if text.iter().all(|byte| [0x00, 0xff].contains(byte)) {
        return Ok(None);
    }
    let der = match text {
        // The first octets of DER and of the two wrappings; no base64 of a certificate has them.
        [0x30 | 0x04 | 0x10, ..] => return cut(bytes).map(Some),
        [b'-', ..] => decode_pem(text)?,
        _ => decode_base64(text)?,
    };
    cut(&der).map(Some)
}

/// The certificates that follow the EK certificate in a PEM text: its issuer, the issuer's
/// issuer. Those that cannot be read, and those behind the sixteenth, are left out.
pub fn ek_certificate_chain(bytes: &[u8]) -> Vec<Vec<u8>> {
    let text = bytes.get(..MAX_CERTIFICATE).unwrap_or(bytes);
    let text = String::from_utf8_lossy(text);
    text.split(PEM_BEGIN)
        .skip(2)
        .take(MAX_CHAIN)
        .filter_map(|rest| rest.split_once(PEM_END))
        .filter_map(|(body, _)| decode_base64(body.as_bytes()).ok())
        .filter_map(|der| cut(&der).ok())
        .collect()
}

/// The first certificate of a PEM text (RFC 7468).
fn decode_pem(text: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let body = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.strip_prefix(PEM_BEGIN))
        .ok_or_else(|| malformed(0, "PEM that does not start with a certificate"))?;
    let (body, _) = body
        .split_once(PEM_END)
        .ok_or_else(|| malformed(PEM_BEGIN.len(), "PEM without an end"))?;
    decode_base64(body.as_bytes())
}

fn decode_base64(text: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let text: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    LENIENT
        .decode(text)
        .map_err(|_| malformed(0, "neither DER, PEM nor base64"))
}

/// Removes what is around the outer SEQUENCE.
fn cut(bytes: &[u8]) -> Result<Vec<u8>, IdentityError> {
    // Tag, and the length in 16 bits, as the provisioning of the TCG PC Client 1.2 profile.
    let bytes = match bytes {
        [0x10, 0x01, 0x00, _, _, rest @ ..] => rest,
        _ => bytes,
    };
    let outer = Der::new(bytes).next()?;
    let bytes = match (outer.tag, outer.content.first()) {
        (0x30, _) => bytes,
        (0x04, Some(0x30)) => outer.content,
        _ => return Err(malformed(0, "not a SEQUENCE")),
    };
    Ok(Der::new(bytes).next()?.raw.to_vec())
}

/// Is the certificate's SubjectPublicKeyInfo the EK's?
///
/// Compares the numbers, not the encodings: vendors mark EK certificates as rsaEncryption or as
/// id-RSAES-OAEP. The certificate need not be strict DER.
pub fn certificate_matches_key(
    certificate_der: &[u8],
    key: &Public,
) -> Result<bool, IdentityError> {
    let certified = Certificate::parse(certificate_der)?.key()?;
    Ok(certified == KeyNumbers::of(key))
}
