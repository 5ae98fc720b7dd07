use super::IdentityError;
use super::x509::{Certificate, KeyNumbers};
use crate::tpm::Public;

/// Size of an RSA 2048 modulus in bytes.
const MODULUS: usize = 256;

/// TPMT_PUBLIC of the default EK for RSA 2048, up to its modulus (TCG EK Credential Profile 2.5,
/// template L-1): RSA, SHA-256, attributes 0x000300b2, PolicyA, AES-128-CFB, no scheme, 2048 bits,
/// exponent 65537.
const L1: [u8; 58] = [
    0x00, 0x01, 0x00, 0x0b, 0x00, 0x03, 0x00, 0xb2, 0x00, 0x20, 0x83, 0x71, 0x97, 0x67, 0x44, 0x84,
    0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52,
    0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa, 0x00, 0x06, 0x00, 0x80, 0x00, 0x43,
    0x00, 0x10, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00,
];

/// The EK that a certificate is about, for agents that send the certificate alone (those of
/// Keylime below API 2.2): the default one for RSA 2048. `None` when the key cannot be that.
///
/// A TPM whose EK follows another template cannot answer the challenge: nothing is believed here
/// that is not proved by that answer.
pub fn default_ek_of_certificate(certificate_der: &[u8]) -> Result<Option<Public>, IdentityError> {
    Ok(match Certificate::parse(certificate_der)?.key()? {
        KeyNumbers::Rsa(modulus, exponent) if modulus.len() == MODULUS && exponent == [1, 0, 1] => {
            Public::from_tpmt(&[&L1[..], &modulus].concat()).ok()
        }
        _ => None,
    })
}
