use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P521_SHA256_ASN1, ParsedPublicKey,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use serde::Deserialize;
use x509_cert::{
    Certificate,
    der::{
        Decode, DecodePem,
        oid::{ObjectIdentifier, db::rfc5912},
    },
    spki::SubjectPublicKeyInfoOwned,
};

use super::{MAX_RUNTIME_POLICY, PolicyError};

/// What the payload of a signed runtime policy calls itself.
const PAYLOAD_TYPE: &str = "application/vnd.keylime+json";
/// Most signatures of one envelope, and longest key in bytes.
const MAX_SIGNATURES: usize = 16;
const MAX_KEY: usize = 64 * 1024;

/// A signed runtime policy: a DSSE envelope (secure-systems-lab/dsse, version 1), not verified.
#[derive(Debug)]
pub struct Envelope {
    payload: Vec<u8>,
    signatures: Vec<Vec<u8>>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    payload: String,
    #[serde(default, rename = "payloadType")]
    payload_type: String,
    #[serde(default)]
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

impl Envelope {
    /// Takes an envelope apart. `None`: the text has no payload, so it is a policy without
    /// signatures, or neither.
    ///
    /// # Errors
    /// [`PolicyError::NotJson`], and [`PolicyError::Envelope`] for an envelope that is not one of a
    /// runtime policy.
    pub fn parse(text: &[u8]) -> Result<Option<Self>, PolicyError> {
        // base64 of the longest policy.
        PolicyError::check_size(text.len(), MAX_RUNTIME_POLICY / 3 * 4)?;
        let document: Document = match serde_json::from_slice(text) {
            Ok(document) => document,
            // Whatever is no envelope may still be a policy, whose own parser says more.
            Err(error) if error.is_data() => return Ok(None),
            Err(error) => return Err(PolicyError::from_json(&error)),
        };
        if document.payload.is_empty() {
            return Ok(None);
        }
        if document.payload_type != PAYLOAD_TYPE {
            return Err(PolicyError::Envelope("payloadType is not Keylime's"));
        }
        if document.signatures.len() > MAX_SIGNATURES {
            return Err(PolicyError::Envelope("more than 16 signatures"));
        }
        let payload = decode(&document.payload);
        let signatures = document.signatures.iter().map(|one| decode(&one.sig));
        Ok(Some(Self {
            payload: payload.ok_or(PolicyError::Envelope("payload is not base64"))?,
            signatures: signatures
                .collect::<Option<_>>()
                .ok_or(PolicyError::Envelope("sig is not base64"))?,
        }))
    }

    /// The policy inside, whoever made it.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Did the holder of `key` sign it? Which key a signature names is not looked at.
    pub fn is_signed_by(&self, key: &SigningKey) -> bool {
        // The pre-authentication encoding of DSSE.
        let mut signed = format!(
            "DSSEv1 {} {PAYLOAD_TYPE} {} ",
            PAYLOAD_TYPE.len(),
            self.payload.len()
        )
        .into_bytes();
        signed.extend_from_slice(&self.payload);
        let mut signatures = self.signatures.iter();
        signatures.any(|signature| key.0.verify_sig(&signed, signature).is_ok())
    }
}

/// base64 of either alphabet, or hex, as Keylime reads them.
fn decode(text: &str) -> Option<Vec<u8>> {
    hex::decode(text)
        .or_else(|_| STANDARD.decode(text))
        .or_else(|_| URL_SAFE.decode(text))
        .ok()
}

/// Whose signature counts: an EC public key (P-256, P-384 or P-521), used with SHA-256.
#[derive(Clone, Debug)]
pub struct SigningKey(ParsedPublicKey);

impl SigningKey {
    /// From a public key or an X.509 certificate, PEM or DER. Of a certificate the key alone
    /// counts: it was chosen by an administrator, not found in the envelope.
    ///
    /// # Errors
    /// What it is instead.
    pub fn parse(bytes: &[u8]) -> Result<Self, SigningKeyError> {
        if bytes.len() > MAX_KEY {
            return Err(SigningKeyError::NotAKey);
        }
        let of = |certificate: Certificate| {
            certificate
                .tbs_certificate()
                .subject_public_key_info()
                .clone()
        };
        let key = Certificate::from_pem(bytes)
            .or_else(|_| Certificate::from_der(bytes))
            .map(of)
            .or_else(|_| SubjectPublicKeyInfoOwned::from_pem(bytes))
            .or_else(|_| SubjectPublicKeyInfoOwned::from_der(bytes))
            .map_err(|_| SigningKeyError::NotAKey)?;
        let parameters = key.algorithm.parameters.as_ref();
        let curve = parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let algorithm = match (key.algorithm.oid, curve) {
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_256_R_1)) => &ECDSA_P256_SHA256_ASN1,
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_384_R_1)) => &ECDSA_P384_SHA256_ASN1,
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_521_R_1)) => &ECDSA_P521_SHA256_ASN1,
            _ => return Err(SigningKeyError::Algorithm),
        };
        let point = key.subject_public_key.raw_bytes();
        ParsedPublicKey::new(algorithm, point)
            .map(Self)
            .map_err(|_| SigningKeyError::NotAKey)
    }
}

/// Bytes that no signature can be checked with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SigningKeyError {
    /// A key that does not sign policies.
    #[error("it is not an EC key of P-256, P-384 or P-521")]
    Algorithm,
    /// No key at all.
    #[error("it is neither a public key nor an X.509 certificate, in PEM or DER")]
    NotAKey,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn vectors() -> Value {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/vectors/dsse.json"
        );
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn key(of: &Value) -> SigningKey {
        SigningKey::parse(of["key"].as_str().unwrap().as_bytes()).unwrap()
    }

    fn envelope(of: &Value) -> Value {
        serde_json::from_str(of["envelope"].as_str().unwrap()).unwrap()
    }

    fn parse(envelope: &Value) -> Result<Option<Envelope>, PolicyError> {
        Envelope::parse(envelope.to_string().as_bytes())
    }

    #[test]
    fn keylimes_signatures_of_both_backends_are_verified() {
        let vectors = vectors();
        for (signed, other) in [("ecdsa", "x509"), ("x509", "ecdsa")] {
            let text = vectors[signed]["envelope"].as_str().unwrap();
            let envelope = Envelope::parse(text.as_bytes()).unwrap().unwrap();
            assert_eq!(
                envelope.payload(),
                vectors["policy"].as_str().unwrap().as_bytes()
            );
            assert!(envelope.is_signed_by(&key(&vectors[signed])));
            assert!(!envelope.is_signed_by(&key(&vectors[other])));
        }
    }

    #[test]
    fn every_byte_of_payload_and_signature_counts() {
        let vectors = vectors();
        let (key, good) = (key(&vectors["ecdsa"]), envelope(&vectors["ecdsa"]));
        for pointer in ["/payload", "/signatures/0/sig"] {
            let bytes = decode(good.pointer(pointer).unwrap().as_str().unwrap()).unwrap();
            for at in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1;
                let mut bad = good.clone();
                *bad.pointer_mut(pointer).unwrap() = json!(STANDARD.encode(&bytes));
                let envelope = parse(&bad).unwrap().unwrap();
                assert!(!envelope.is_signed_by(&key), "{pointer} {at}");
            }
        }
    }

    #[test]
    fn hex_and_the_other_base64_are_read_and_one_signature_is_enough() {
        let vectors = vectors();
        let (key, mut envelope) = (key(&vectors["ecdsa"]), envelope(&vectors["ecdsa"]));
        let payload = decode(envelope["payload"].as_str().unwrap()).unwrap();
        let signature = decode(envelope["signatures"][0]["sig"].as_str().unwrap()).unwrap();
        envelope["payload"] = json!(hex::encode(payload));
        envelope["signatures"] = json!([{"sig": "AAAA"}, {"sig": URL_SAFE.encode(signature)}]);
        assert!(parse(&envelope).unwrap().unwrap().is_signed_by(&key));
        envelope["signatures"] = json!([]);
        assert!(!parse(&envelope).unwrap().unwrap().is_signed_by(&key));
    }

    #[test]
    fn what_is_no_envelope_is_left_to_the_policys_parser_or_named() {
        for text in ["{}", "[]", r#"{"payload": ""}"#, r#"{"payload": 1}"#] {
            assert!(
                Envelope::parse(text.as_bytes()).unwrap().is_none(),
                "{text}"
            );
        }
        let error = Envelope::parse(b"{").unwrap_err();
        assert!(matches!(error, PolicyError::NotJson(_)), "{error}");
        let good = envelope(&vectors()["ecdsa"]);
        for (member, value, reason) in [
            ("payloadType", json!("text/plain"), "payloadType"),
            ("payload", json!("*"), "payload is not base64"),
            ("signatures", json!([{"sig": "*"}]), "sig is not base64"),
            (
                "signatures",
                json!(vec![json!({"sig": ""}); 17]),
                "more than 16",
            ),
        ] {
            let mut bad = good.clone();
            bad[member] = value;
            let error = parse(&bad).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn keys_that_do_not_sign_policies_are_refused() {
        let rsa = include_bytes!("../../../tests/fixtures/boots/uki/issuercert.pem");
        assert_eq!(
            SigningKey::parse(rsa).unwrap_err(),
            SigningKeyError::Algorithm
        );
        for nonsense in [
            &b""[..],
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        ] {
            assert_eq!(
                SigningKey::parse(nonsense).unwrap_err(),
                SigningKeyError::NotAKey
            );
        }
    }
}
