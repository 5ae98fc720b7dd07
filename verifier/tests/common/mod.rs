//! A TPM in software, as far as registration and quotes need one, and clients of the servers.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test helper's error is a failed test")]

use std::{path::Path, time::Duration};

use aws_lc_rs::{
    cipher::{AES_128, DecryptingKey, DecryptionContext, UnboundCipherKey},
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    iv::FixedLength,
    rand::SystemRandom,
    rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use troth_core::{
    identity::{AgentId, activation_tag},
    tpm::{CredentialBlob, HashAlgorithm, PcrMask, PcrValues, Public, Quote},
};
use troth_daemon::{
    client::Client,
    tls::{Identity, ServerTrust, certificates_from_pem, client_config},
};

/// An EK (RSA 2048) and an AK (ECC P-256) by the TCG templates.
pub(crate) struct SoftTpm {
    ek: PrivateDecryptingKey,
    ak: EcdsaKeyPair,
}

impl SoftTpm {
    pub(crate) fn new() -> Self {
        Self {
            ek: PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap(),
            ak: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
        }
    }

    /// base64 TPM2B_PUBLIC.
    pub(crate) fn ek_tpm(&self) -> String {
        let der: PublicKeyX509Der<'_> = self.ek.public_key().as_der().unwrap();
        // SubjectPublicKeyInfo of RSA 2048 has the modulus in a fixed place.
        let modulus = &der.as_ref()[33..289];
        let mut tpmt = hex::decode("0001000b000300b20020").unwrap();
        tpmt.extend_from_slice(&[7; 32]);
        tpmt.extend(hex::decode("00060080004300100800000000000100").unwrap());
        tpmt.extend_from_slice(modulus);
        tpm2b(&tpmt)
    }

    /// base64 TPM2B_PUBLIC.
    pub(crate) fn ak_tpm(&self) -> String {
        self.ak_with_attributes(0x0005_0072)
    }

    pub(crate) fn ak_with_attributes(&self, attributes: u32) -> String {
        ecdsa_public(&self.ak, attributes)
    }

    fn ak_name(&self) -> Vec<u8> {
        let bytes = STANDARD.decode(self.ak_tpm()).unwrap();
        Public::from_tpm2b(&bytes)
            .unwrap()
            .name()
            .as_bytes()
            .to_vec()
    }

    /// TPM2_Certify of the AK by an IAK, for this agent: base64 TPMS_ATTEST and TPMT_SIGNATURE.
    pub(crate) fn certified_by(&self, iak: &EcdsaKeyPair, id: &str) -> [String; 2] {
        let name = self.ak_name();
        let mut attest = hex::decode("ff54434780170000").unwrap();
        let digest = HashAlgorithm::Sha256.digest(&[id.as_bytes()]);
        attest.extend([0, 32]);
        attest.extend(digest.as_bytes());
        attest.extend([0; 16]);
        attest.push(1);
        attest.extend([0; 8]);
        for name in [&name, &name] {
            attest.extend([0, 34]);
            attest.extend(name);
        }
        let signature = tpmt_signature(iak, &attest);
        [STANDARD.encode(attest), STANDARD.encode(signature)]
    }

    /// TPM2_ActivateCredential.
    pub(crate) fn activate_credential(&self, blob: &str) -> Vec<u8> {
        let blob = CredentialBlob::parse(&STANDARD.decode(blob).unwrap()).unwrap();
        let key = OaepPrivateDecryptingKey::new(self.ek.clone()).unwrap();
        let mut seed = vec![0; key.min_output_size()];
        let label = Some(&b"IDENTITY\0"[..]);
        let seed = key
            .decrypt(
                &OAEP_SHA256_MGF1SHA256,
                &blob.encrypted_secret,
                &mut seed,
                label,
            )
            .unwrap();
        let (integrity, encrypted) = blob.id_object.split_at(34);
        let hmac_key = kdfa(seed, "INTEGRITY", &[], 256);
        let mut authenticated = encrypted.to_vec();
        authenticated.extend(self.ak_name());
        let hmac_key = hmac::Key::new(hmac::HMAC_SHA256, &hmac_key);
        hmac::verify(&hmac_key, &authenticated, &integrity[2..]).unwrap();
        let storage = kdfa(seed, "STORAGE", &self.ak_name(), 128);
        let key = UnboundCipherKey::new(&AES_128, &storage[..16]).unwrap();
        let mut plain = encrypted.to_vec();
        let iv = DecryptionContext::Iv128(FixedLength::from([0; 16]));
        DecryptingKey::cfb128(key)
            .unwrap()
            .decrypt(&mut plain, iv)
            .unwrap();
        plain[2..].to_vec()
    }

    /// The registration that an agent on this TPM sends.
    pub(crate) fn registration(&self) -> Value {
        json!({
            "ek_tpm": self.ek_tpm(), "aik_tpm": self.ak_tpm(), "ekcert": "",
            "iak_cert": null, "idevid_cert": null,
            "ip": "127.0.0.1", "port": 9002, "mtls_cert": "disabled",
        })
    }

    /// The tag that proves who holds the EK.
    pub(crate) fn auth_tag(&self, id: &str, blob: &str) -> String {
        activation_tag(&self.activate_credential(blob), &AgentId::new(id).unwrap())
    }

    /// TPM2_Quote by the AK, as a quote string; `clock` has the time and the resets.
    pub(crate) fn quote(&self, nonce: &str, clock: (u64, u32), pcrs: &PcrValues) -> String {
        let digest = pcrs.digest();
        let mut attest = hex::decode("ff54434780180000").unwrap();
        attest.extend(u16::try_from(nonce.len()).unwrap().to_be_bytes());
        attest.extend(nonce.as_bytes());
        attest.extend(clock.0.to_be_bytes());
        attest.extend(clock.1.to_be_bytes());
        attest.extend(0_u32.to_be_bytes());
        attest.push(1);
        attest.extend([0; 8]);
        attest.extend(hex::decode("00000001000b03").unwrap());
        attest.extend(&pcrs.mask().bits().to_le_bytes()[..3]);
        attest.extend([0, 32]);
        attest.extend(digest.as_bytes());
        let signature = tpmt_signature(&self.ak, &attest);
        Quote::encode(&attest, &signature, pcrs)
    }
}

/// base64 TPM2B_PUBLIC of a P-256 key that signs with ECDSA and SHA-256.
pub(crate) fn ecdsa_public(key: &EcdsaKeyPair, attributes: u32) -> String {
    let point = key.public_key().as_ref();
    let mut tpmt = hex::decode("0023000b").unwrap();
    tpmt.extend_from_slice(&attributes.to_be_bytes());
    tpmt.extend(hex::decode("000000100018000b00030010").unwrap());
    for coordinate in [&point[1..33], &point[33..65]] {
        tpmt.extend_from_slice(&[0, 32]);
        tpmt.extend_from_slice(coordinate);
    }
    tpm2b(&tpmt)
}

fn tpmt_signature(key: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
    let signed = key.sign(&SystemRandom::new(), message).unwrap();
    let mut signature = hex::decode("0018000b").unwrap();
    for half in signed.as_ref().chunks(32) {
        signature.extend([0, 32]);
        signature.extend(half);
    }
    signature
}

/// PCRs of `mask` with value zero, and PCR 16 bound to `pubkey`.
pub(crate) fn pcrs(mask: PcrMask, pubkey: &str) -> PcrValues {
    let sha256 = HashAlgorithm::Sha256;
    let zero = troth_core::tpm::Digest::zero(sha256);
    let mut values = PcrValues::new(sha256);
    for pcr in mask.iter() {
        values.set(pcr, zero);
    }
    let bound = sha256.digest(&[pubkey.as_bytes()]);
    values.set(16, zero.extend(sha256, bound.as_bytes()));
    values
}

fn tpm2b(tpmt: &[u8]) -> String {
    let size = u16::try_from(tpmt.len()).unwrap().to_be_bytes();
    STANDARD.encode([&size, tpmt].concat())
}

fn kdfa(seed: &[u8], label: &str, context: &[u8], bits: u32) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, seed);
    let mut input = 1_u32.to_be_bytes().to_vec();
    input.extend(label.as_bytes());
    input.push(0);
    input.extend(context);
    input.extend(bits.to_be_bytes());
    hmac::sign(&key, &input).as_ref().to_vec()
}

/// A client of a server whose CA directory is `ca_dir`; with the operator's certificate or none.
pub(crate) fn operator(port: u16, ca_dir: &Path, certificate: bool) -> Client {
    let identity = certificate.then(|| {
        Identity::load(
            &ca_dir.join("client-cert.crt"),
            &ca_dir.join("client-private.pem"),
        )
        .unwrap()
    });
    let ca = std::fs::read(ca_dir.join("cacert.crt")).unwrap();
    let trust = ServerTrust::Roots(certificates_from_pem(&ca).unwrap());
    let tls = client_config(trust, identity.as_ref()).unwrap();
    Client::new("127.0.0.1", port, Some(tls), Duration::from_secs(10))
}

/// Status and body; every answer has to be JSON.
pub(crate) async fn call(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    let body = body.map(|body| Bytes::from(body.to_string()));
    let answer = client.send(method, path, body).await.unwrap();
    (answer.status, answer.json().unwrap())
}
