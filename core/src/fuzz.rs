//! Entry points that take arbitrary bytes; they must not panic.
//!
//! One function per parser, listed in [`TARGETS`]. `tests/fuzz` wraps each in a libFuzzer target of
//! the same name with seeds in `corpus/NAME`; `core/tests/fuzz_corpus.rs` replays the seeds on
//! stable Rust, cut short and with flipped bits.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::identity::{
    AgentId, certificate_matches_key, check_ak, check_ek, normalise_ek_certificate,
};
use crate::tpm::{Attest, CredentialBlob, PcrValues, Public, Quote, Signature};

/// A function that takes arbitrary bytes, and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All entry points by name.
pub const TARGETS: &[Target] = &[
    ("attest", attest),
    ("credential_blob", credential_blob),
    ("ek_certificate", ek_certificate),
    ("pcr_blob", pcr_blob),
    ("public", public),
    ("quote_string", quote_string),
    ("registration", registration),
    ("signature", signature),
];

/// TPMS_ATTEST.
pub fn attest(data: &[u8]) {
    let _ = Attest::parse(data);
}

/// The registrar's challenge.
pub fn credential_blob(data: &[u8]) {
    if let Ok(blob) = CredentialBlob::parse(data) {
        assert_eq!(blob.to_bytes(), data);
    }
}

/// An EK certificate as it stands in NV or comes over the wire.
pub fn ek_certificate(data: &[u8]) {
    if let Ok(Some(der)) = normalise_ek_certificate(data) {
        let again = normalise_ek_certificate(&der);
        assert_eq!(again, Ok(Some(der.clone())), "not stable");
        let _ = some_key().map(|key| certificate_matches_key(&der, &key));
    }
}

/// A key to compare certificates with: the generator of P-256 as an EK.
fn some_key() -> Option<Public> {
    const TPMT: &str = "0023000b000300b20000000600800043001000030010\
        00206b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
        00204fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
    Public::from_tpmt(&hex::decode(TPMT).ok()?).ok()
}

/// The PCR part of the quote string: what parses is written back to an equal meaning.
pub fn pcr_blob(data: &[u8]) {
    if let Ok(values) = PcrValues::from_blob(data) {
        let blob = values.to_blob();
        assert_eq!(PcrValues::from_blob(&blob).as_ref(), Ok(&values));
        let _ = values.digest();
    }
}

/// TPM2B_PUBLIC and everything derived from it.
pub fn public(data: &[u8]) {
    if let Ok(public) = Public::from_tpm2b(data) {
        assert_eq!(public.to_tpm2b(), data);
        let _ = (public.name(), public.to_spki_pem(), public.enc_alg());
        let _ = (check_ak(&public), check_ek(&public));
    }
}

/// The quote string.
pub fn quote_string(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Quote::parse(text);
    }
}

/// The body of a registration, and what it carries.
pub fn registration(data: &[u8]) {
    let Ok(body) = serde_json::from_slice::<crate::wire::Registration>(data) else {
        return;
    };
    for key in [&body.ek_tpm, &body.aik_tpm].into_iter().flatten() {
        if let Ok(bytes) = STANDARD.decode(key) {
            public(&bytes);
        }
    }
    if let Some(certificate) = &body.ekcert {
        ek_certificate(certificate.as_bytes());
    }
    if let Some(ip) = &body.ip {
        let _ = AgentId::new(ip);
    }
}

/// TPMT_SIGNATURE.
pub fn signature(data: &[u8]) {
    let _ = Signature::parse(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_to_compare_with_is_one() {
        assert!(some_key().is_some());
    }
}
