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
    let rsa = include_bytes!("../../../../tests/fixtures/boots/uki/issuercert.pem");
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

fn signer_vectors() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/vectors/policy-signer.json"
    );
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn bytes<'v>(vectors: &'v Value, member: &str) -> &'v [u8] {
    vectors[member].as_str().unwrap().as_bytes()
}

#[test]
fn keys_of_openssl_sign_under_the_id_that_keylime_gives_them() {
    let vectors = signer_vectors();
    let public = SigningKey::parse(bytes(&vectors, "public")).unwrap();
    assert_eq!(public.keyid(), vectors["keyid"].as_str().unwrap());
    for form in ["sec1", "pkcs8"] {
        let signer = PolicySigner::parse(bytes(&vectors, form)).unwrap();
        assert_eq!(signer.keyid(), public.keyid());
        let mut envelope = Envelope::new(b"{\"a\":1}".to_vec()).unwrap();
        envelope.sign(&signer).unwrap();
        envelope.sign(&signer).unwrap();
        let read = Envelope::parse(envelope.to_json().as_bytes())
            .unwrap()
            .unwrap();
        assert_eq!(read.payload(), b"{\"a\":1}");
        assert_eq!(read.signatures().len(), 1, "one key signs once");
        assert_eq!(read.signatures()[0].keyid(), public.keyid());
        assert!(read.is_signed_by(&public));
    }
}

#[test]
fn keys_that_cannot_sign_are_named() {
    let vectors = signer_vectors();
    let p384 = vectors["p384"]["private"].as_str().unwrap().as_bytes();
    let locked =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    for (pem, expected) in [
        (p384, PolicySignerError::Algorithm),
        (bytes(&vectors, "public"), PolicySignerError::NotAKey),
        (locked.as_bytes(), PolicySignerError::Encrypted),
        (b"\xff", PolicySignerError::NotAKey),
        (
            b"-----BEGIN PRIVATE KEY-----\n*\n-----END PRIVATE KEY-----\n",
            PolicySignerError::NotAKey,
        ),
    ] {
        assert_eq!(PolicySigner::parse(pem).unwrap_err(), expected);
    }
}

#[test]
fn a_p384_key_signs_with_sha256_too() {
    let vectors = signer_vectors();
    let p384 = &vectors["p384"];
    let envelope = Envelope::parse(bytes(p384, "envelope")).unwrap().unwrap();
    assert!(envelope.is_signed_by(&SigningKey::parse(bytes(p384, "public")).unwrap()));
    assert!(!envelope.is_signed_by(&SigningKey::parse(bytes(&vectors, "public")).unwrap()));
}

#[test]
fn a_certificate_in_the_key_id_counts_if_a_trusted_ca_issued_it_to_sign() {
    use crate::identity::{Expiry, TrustAnchors};
    let vectors = signer_vectors();
    let der = |pem: &[u8]| Certificate::from_pem(pem).unwrap().to_der().unwrap();
    let mut anchors = TrustAnchors::default();
    anchors.add(&der(bytes(&vectors, "ca"))).unwrap();
    let at = |at| Trust {
        anchors: &anchors,
        at,
        expired: Expiry::Refuse,
    };
    const NOW: u64 = 1_900_000_000;
    let signed = |certificate: &str| {
        let signer = PolicySigner::parse(bytes(&vectors, "sec1")).unwrap();
        let signer = signer
            .with_certificate(bytes(&vectors, certificate))
            .unwrap();
        let mut envelope = Envelope::new(b"{}".to_vec()).unwrap();
        envelope.sign(&signer).unwrap();
        envelope
    };
    let check = |envelope: &Envelope, trust: &Trust<'_>| {
        envelope.certified_signer(&envelope.signatures()[0], trust)
    };
    let good = signed("signer");
    let path = check(&good, &at(NOW)).unwrap().path().join(" < ");
    assert!(
        path.contains("Policy team") && path.contains("Policy CA"),
        "{path}"
    );
    assert!(matches!(
        check(&good, &at(9_900_000_000)).unwrap_err(),
        SignerError::Expired(_)
    ));
    let server = check(&signed("server"), &at(NOW)).unwrap_err().to_string();
    assert!(server.contains("codeSigning"), "{server}");
    let none = TrustAnchors::default();
    let nobody = Trust {
        anchors: &none,
        ..at(NOW)
    };
    let error = check(&good, &nobody).unwrap_err().to_string();
    assert!(error.contains("Policy CA"), "{error}");
    // The certificate is public: naming it is no signature.
    let mut forged = good;
    forged.payload.push(b' ');
    assert_eq!(check(&forged, &at(NOW)).unwrap_err(), SignerError::Wrong);
    forged.signatures[0].keyid = "95976cb1".to_owned();
    assert_eq!(
        check(&forged, &at(NOW)).unwrap_err(),
        SignerError::NoCertificate
    );
    let other = PolicySigner::parse(bytes(&vectors, "sec1")).unwrap();
    let error = other.with_certificate(bytes(&vectors, "ca")).unwrap_err();
    assert_eq!(error, PolicySignerError::OtherCertificate);
}

proptest::proptest! {
    /// One bit anywhere in the text of a signed policy: whatever is still signed is the same policy.
    #[test]
    fn a_flipped_bit_never_gets_another_policy_through(at in 0usize..100_000, bit in 0u8..8) {
        let vectors = vectors();
        let of = &vectors["ecdsa"];
        let text = of["envelope"].as_str().unwrap();
        let good = Envelope::parse(text.as_bytes()).unwrap().unwrap();
        let mut bad = text.as_bytes().to_vec();
        let at = at % bad.len();
        bad[at] ^= 1 << bit;
        if let Ok(Some(envelope)) = Envelope::parse(&bad)
            && envelope.is_signed_by(&key(of))
        {
            assert_eq!(envelope.payload(), good.payload());
        }
    }
}
