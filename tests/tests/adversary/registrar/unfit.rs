use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Registrar, Tpm, VICTIM};
use crate::forge::{AK_ATTRIBUTES, Ak, sized};

/// A registration with these members is refused with `words`, and nothing is kept of it.
fn refused(members: &[(&str, Value)], words: &str) {
    let registrar = Registrar::new();
    let mut body = Tpm::new().registration();
    for (name, value) in members {
        body[name] = value.clone();
    }
    let reply = registrar.register(VICTIM, &body);
    assert_eq!(reply.status, 400, "{reply:?}");
    let status = reply.body["status"].as_str().unwrap();
    assert!(status.contains(words), "{status}");
    let activated = registrar.activate(VICTIM, &"0".repeat(96));
    assert_eq!(activated.status, 404, "{activated:?}");
}

/// An AK with these attributes (TPM 2.0 Part 2, 8.3) is refused.
fn refused_ak(attributes: u32, words: &str) {
    let tpmt = Ak::generate().tpmt(attributes);
    refused(
        &[("aik_tpm", json!(BASE64_STANDARD.encode(sized(&tpmt))))],
        words,
    );
}

/// It would sign any bytes, a made-up quote too.
///
/// Check: `core/src/identity/keys.rs`: `ObjectAttributes::RESTRICTED`
#[test]
fn an_ak_that_is_not_restricted() {
    refused_ak(AK_ATTRIBUTES & !(1 << 16), "restricted");
}

/// It can be moved to software.
///
/// Check: `core/src/identity/keys.rs`: `ObjectAttributes::FIXED_TPM`
#[test]
fn an_ak_that_may_leave_its_tpm() {
    refused_ak(AK_ATTRIBUTES & !(1 << 1), "fixedTPM");
}

/// It can be duplicated to another parent.
///
/// Check: `core/src/identity/keys.rs`: `ObjectAttributes::FIXED_PARENT`
#[test]
fn an_ak_that_may_leave_its_parent() {
    refused_ak(AK_ATTRIBUTES & !(1 << 4), "fixedParent");
}

/// Its secret was made outside.
///
/// Check: `core/src/identity/keys.rs`: `ObjectAttributes::SENSITIVE_DATA_ORIGIN`
#[test]
fn an_ak_that_was_imported() {
    refused_ak(AK_ATTRIBUTES & !(1 << 5), "sensitiveDataOrigin");
}

/// Check: `core/src/identity/keys.rs`: `ObjectAttributes::DECRYPT`
#[test]
fn an_ak_that_also_decrypts() {
    refused_ak(AK_ATTRIBUTES | 1 << 17, "decrypt");
}

/// Two keys could have its name.
///
/// Check: `core/src/identity/keys.rs`: `IdentityError::WeakName`
#[test]
fn an_ak_with_a_sha1_name() {
    let mut tpmt = Ak::generate().tpmt(AK_ATTRIBUTES);
    tpmt[2..4].copy_from_slice(&[0, 4]);
    refused(
        &[("aik_tpm", json!(BASE64_STANDARD.encode(sized(&tpmt))))],
        "SHA-1",
    );
}

/// One key pair as EK and AK: the proof of the one would be taken for that of the other.
///
/// Check: `core/src/identity/keys.rs`: `KeyNumbers::of(ek) == KeyNumbers::of(ak)`
#[test]
fn an_ek_as_ak() {
    let tpm = Tpm::new();
    let ek = tpm.ek.public.as_tpmt();
    let mut ak = hex::decode("0001000b00050072000000100014000b0800000000000100").unwrap();
    ak.extend(&ek[ek.len() - 256..]);
    refused(
        &[
            (
                "ek_tpm",
                json!(BASE64_STANDARD.encode(tpm.ek.public.to_tpm2b())),
            ),
            ("ekcert", json!("")),
            ("aik_tpm", json!(BASE64_STANDARD.encode(sized(&ak)))),
        ],
        "AK",
    );
}

/// The certificate of a good vendor, for somebody else's EK.
///
/// Check: `verifier/src/registrar/candidate.rs`: `Unfit::OtherKey`
#[test]
fn the_ek_certificate_of_another_tpm() {
    let other = Tpm::new().registration()["ekcert"].take();
    refused(&[("ekcert", other)], "ekcert");
}

/// A key that also signs is no EK: its owner could sign instead of prove.
///
/// Check: `core/src/identity/keys.rs`: `ObjectAttributes::SIGN`
#[test]
fn an_ek_that_signs() {
    let mut tpmt = Tpm::new().ek.public.as_tpmt().to_vec();
    // The attributes' second byte: sign.
    tpmt[5] |= 0x04;
    refused(
        &[
            ("ek_tpm", json!(BASE64_STANDARD.encode(sized(&tpmt)))),
            ("ekcert", json!("")),
        ],
        "EK",
    );
}

/// Structures whose sizes lie.
///
/// Check: `core/src/tpm/buffer.rs`: `self.offset == self.bytes.len()`
#[test]
fn keys_with_bytes_behind_their_end() {
    let mut public = sized(&Ak::generate().tpmt(AK_ATTRIBUTES));
    public.push(0);
    refused(
        &[("aik_tpm", json!(BASE64_STANDARD.encode(&public)))],
        "aik_tpm",
    );
}
