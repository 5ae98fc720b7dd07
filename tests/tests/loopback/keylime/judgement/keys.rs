use aws_lc_rs::digest;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
};
use rcgen::{CertificateParams, KeyIdMethod};
use troth_core::tpm::HashAlgorithm;

/// The keys of a site: whoever signs with one of them is known, the stranger is not.
pub(super) struct Keys {
    /// Named by the policy.
    pub(super) site: [Key; 3],
    /// Loaded into a keyring of the kernel.
    pub(super) loaded: Key,
    /// In no policy and no keyring.
    pub(super) stranger: Key,
}

/// A key that signs files, and the hash it does so with.
pub(super) struct Key {
    pair: Pair,
    pub(super) hash: HashAlgorithm,
    /// DER SubjectPublicKeyInfo.
    pub(super) public: Vec<u8>,
    /// Last four bytes of the SHA-1 over the public key.
    pub(super) id: u32,
    /// An X.509 certificate over it, whose subject key identifier ends with another number.
    pub(super) certificate: Option<(Vec<u8>, u32)>,
}

enum Pair {
    Rsa(rsa::KeyPair),
    Ec(EcdsaKeyPair),
}

impl Keys {
    pub(super) fn generate() -> Self {
        Self {
            site: [
                Key::rsa(HashAlgorithm::Sha256),
                Key::ec(HashAlgorithm::Sha256),
                Key::ec(HashAlgorithm::Sha384),
            ],
            loaded: Key::certified(),
            stranger: Key::rsa(HashAlgorithm::Sha512),
        }
    }
}

impl Key {
    fn rsa(hash: HashAlgorithm) -> Self {
        let pair = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = pair.public_key().as_der().unwrap().as_ref().to_vec();
        let id = identifier(pair.public_key().as_ref());
        Self {
            pair: Pair::Rsa(pair),
            hash,
            public,
            id,
            certificate: None,
        }
    }

    fn ec(hash: HashAlgorithm) -> Self {
        let algorithm = match hash {
            HashAlgorithm::Sha384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
            _ => &ECDSA_P256_SHA256_ASN1_SIGNING,
        };
        Self::of_pair(EcdsaKeyPair::generate(algorithm).unwrap(), hash)
    }

    fn of_pair(pair: EcdsaKeyPair, hash: HashAlgorithm) -> Self {
        let public = pair.public_key().as_der().unwrap().as_ref().to_vec();
        let id = identifier(pair.public_key().as_ref());
        Self {
            pair: Pair::Ec(pair),
            hash,
            public,
            id,
            certificate: None,
        }
    }

    fn certified() -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        let identifier = [1, 2, 3, 4, 5, 6, 7, 8];
        parameters.key_identifier_method = KeyIdMethod::PreSpecified(identifier.to_vec());
        parameters.is_ca = rcgen::IsCa::ExplicitNoCa;
        let certificate = parameters.self_signed(&pair).unwrap().der().to_vec();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pair.serialize_der());
        let mut key = Self::of_pair(pair.unwrap(), HashAlgorithm::Sha256);
        key.certificate = Some((certificate, 0x0506_0708));
        key
    }

    /// The signature as it stands in `security.ima`: a version 2 header, and the signature over the
    /// digest of `content`. `id` names the key.
    pub(super) fn sign(&self, content: &[u8], id: u32) -> Vec<u8> {
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Ec(pair) => pair.sign(&random, content).unwrap().as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let padding = match self.hash {
                    HashAlgorithm::Sha512 => &RSA_PKCS1_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, content, &mut signature)
                    .unwrap();
                signature
            }
        };
        // Numbers of the kernel's enum hash_algo.
        let hash = match self.hash {
            HashAlgorithm::Sha1 => 2,
            HashAlgorithm::Sha256 => 4,
            HashAlgorithm::Sha384 => 5,
            _ => 6,
        };
        let mut attribute = vec![3, 2, hash];
        attribute.extend_from_slice(&id.to_be_bytes());
        attribute.extend_from_slice(&u16::try_from(signature.len()).unwrap().to_be_bytes());
        attribute.extend_from_slice(&signature);
        attribute
    }
}

fn identifier(public: &[u8]) -> u32 {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, public);
    u32::from_be_bytes(digest.as_ref()[16..].try_into().unwrap())
}
