//! Entry points that take arbitrary bytes; they must not panic.
//!
//! One function per parser. `tests/fuzz` wraps each in a libFuzzer target of the same name; the
//! unit test of this module replays every target's corpus on stable Rust, with truncations and
//! flipped bits.

use crate::tpm::{Attest, PcrValues, Public, Quote, Signature};

/// A function that takes arbitrary bytes, and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All entry points by name.
pub const TARGETS: &[Target] = &[
    ("attest", attest),
    ("pcr_blob", pcr_blob),
    ("public", public),
    ("quote_string", quote_string),
    ("signature", signature),
];

/// TPMS_ATTEST.
pub fn attest(data: &[u8]) {
    let _ = Attest::parse(data);
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
        let _ = crate::tpm::AttestationKey::new(&public);
    }
}

/// The quote string.
pub fn quote_string(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Quote::parse(text);
    }
}

/// TPMT_SIGNATURE.
pub fn signature(data: &[u8]) {
    let _ = Signature::parse(data);
}
