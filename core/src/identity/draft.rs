use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair, RsaEncoding};

/// subjectAltName with tcg-at-tpmManufacturer "id:1014".
const TCG_SAN: &str = "3018a41630143112301006056781050201\
    0c0769643a31303134";

/// Tag, length and content.
pub(super) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let header = match content.len() {
        0..0x80 => vec![tag, length[1]],
        0x80..0x100 => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    [header, content].concat()
}

pub(super) fn oid(dotted: &str) -> Vec<u8> {
    let oid = x509_cert::der::oid::ObjectIdentifier::new(dotted).unwrap();
    tlv(0x06, &[oid.as_bytes()])
}

pub(super) fn name(common_name: &str) -> Vec<u8> {
    let attribute = tlv(
        0x30,
        &[&oid("2.5.4.3"), &tlv(0x0c, &[common_name.as_bytes()])],
    );
    tlv(0x30, &[&tlv(0x31, &[&attribute])])
}

pub(super) enum Signer {
    Ecdsa(EcdsaKeyPair, &'static str),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding, Vec<u8>),
}

impl Signer {
    pub(super) fn new() -> Self {
        Self::ecdsa(
            &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
            "1.2.840.10045.4.3.2",
        )
    }

    pub(super) fn ecdsa(
        algorithm: &'static EcdsaSigningAlgorithm,
        signature: &'static str,
    ) -> Self {
        Self::Ecdsa(EcdsaKeyPair::generate(algorithm).unwrap(), signature)
    }

    pub(super) fn rsa(encoding: &'static dyn RsaEncoding, algorithm: Vec<u8>) -> Self {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        Self::Rsa(key, encoding, algorithm)
    }

    /// AlgorithmIdentifier of its signatures.
    pub(super) fn algorithm(&self) -> Vec<u8> {
        match self {
            Self::Ecdsa(_, dotted) => tlv(0x30, &[&oid(dotted)]),
            Self::Rsa(_, _, algorithm) => algorithm.clone(),
        }
    }

    pub(super) fn spki(&self) -> Vec<u8> {
        match self {
            Self::Ecdsa(key, _) => key.public_key().as_der().unwrap().as_ref().to_vec(),
            Self::Rsa(key, ..) => {
                let algorithm = [oid("1.2.840.113549.1.1.1"), vec![5, 0]].concat();
                let bits = [&[0], key.public_key().as_ref()].concat();
                tlv(0x30, &[&tlv(0x30, &[&algorithm]), &tlv(0x03, &[&bits])])
            }
        }
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Ecdsa(key, _) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Rsa(key, encoding, _) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(*encoding, &random, message, &mut signature)
                    .unwrap();
                signature
            }
        }
    }
}

/// A certificate to be.
#[derive(Clone)]
pub(super) struct Draft {
    pub(super) serial: Vec<u8>,
    pub(super) issuer: Vec<u8>,
    /// UTCTime or GeneralizedTime by its length.
    pub(super) validity: [&'static str; 2],
    pub(super) subject: Vec<u8>,
    pub(super) spki: Vec<u8>,
    pub(super) extensions: Vec<(&'static str, bool, Vec<u8>)>,
}

impl Draft {
    /// An EK certificate.
    pub(super) fn ek(spki: Vec<u8>, issuer: &str) -> Self {
        Self {
            serial: vec![1],
            issuer: name(issuer),
            validity: ["200101000000Z", "99991231235959Z"],
            subject: tlv(0x30, &[]),
            spki,
            extensions: vec![
                ("2.5.29.17", true, hex::decode(TCG_SAN).unwrap()),
                ("2.5.29.37", false, tlv(0x30, &[&oid("2.23.133.8.1")])),
            ],
        }
    }

    pub(super) fn ca(subject: &str, issuer: &str, key: &Signer) -> Self {
        Self {
            serial: vec![2],
            issuer: name(issuer),
            validity: ["190101000000Z", "20491231235959Z"],
            subject: name(subject),
            spki: key.spki(),
            extensions: vec![
                ("2.5.29.19", true, hex::decode("30030101ff").unwrap()),
                ("2.5.29.15", true, hex::decode("03020106").unwrap()),
                // Critical in the field, and refused by many.
                (
                    "2.5.29.32",
                    true,
                    hex::decode("300830060604551d2000").unwrap(),
                ),
            ],
        }
    }

    pub(super) fn without(mut self, extension: &str) -> Self {
        self.extensions.retain(|(oid, ..)| *oid != extension);
        self
    }

    pub(super) fn with(self, extension: &'static str, critical: bool, value: &str) -> Self {
        let mut draft = self.without(extension);
        draft
            .extensions
            .push((extension, critical, hex::decode(value).unwrap()));
        draft
    }

    pub(super) fn signed_by(&self, signer: &Signer) -> Vec<u8> {
        let time = |text: &str| {
            tlv(
                if text.len() == 13 { 0x17 } else { 0x18 },
                &[text.as_bytes()],
            )
        };
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(dotted, critical, value)| {
                let critical: &[u8] = if *critical { &[1, 1, 0xff] } else { &[] };
                tlv(0x30, &[&oid(dotted), critical, &tlv(0x04, &[value])])
            })
            .collect();
        let tbs = tlv(
            0x30,
            &[
                &[0xa0, 3, 2, 1, 2],
                &tlv(0x02, &[&self.serial]),
                &signer.algorithm(),
                &self.issuer,
                &tlv(0x30, &[&time(self.validity[0]), &time(self.validity[1])]),
                &self.subject,
                &self.spki,
                &tlv(0xa3, &[&tlv(0x30, &[&extensions])]),
            ],
        );
        let signature = [vec![0], signer.sign(&tbs)].concat();
        tlv(
            0x30,
            &[&tbs, &signer.algorithm(), &tlv(0x03, &[&signature])],
        )
    }
}
