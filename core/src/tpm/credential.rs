use aws_lc_rs::cipher::{AES_128, AES_192, AES_256, EncryptingKey, EncryptionContext};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OAEP_SHA512_MGF1SHA512,
    OaepPublicEncryptingKey, PublicEncryptingKey,
};
use aws_lc_rs::{agreement, cipher, hmac, rand};
use zeroize::Zeroizing;

use super::buffer::{Reader, put_tpm2b};
use super::{EccCurve, HashAlgorithm, Name, Public, PublicParms, StructureError};

/// First word of tpm2-tools' MakeCredential file.
const MAGIC: u32 = 0xbadc_c0de;
/// Its only version.
const VERSION: u32 = 1;
/// Largest TPMS_ID_OBJECT: two TPM2B_DIGEST of SHA-512.
const MAX_ID_OBJECT: usize = 2 * (2 + 64);
/// Largest TPM2B_ENCRYPTED_SECRET: RSA-8192.
const MAX_SECRET: usize = 1024;

/// What the registrar sends and `TPM2_ActivateCredential` takes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CredentialBlob {
    /// Content of TPM2B_ID_OBJECT (without its size).
    pub id_object: Vec<u8>,
    /// Content of TPM2B_ENCRYPTED_SECRET (without its size).
    pub encrypted_secret: Vec<u8>,
}

impl CredentialBlob {
    /// Parses the tpm2-tools file format (magic BADCC0DE, version 1).
    pub fn parse(bytes: &[u8]) -> Result<Self, CredentialError> {
        let mut reader = Reader::new("challenge blob", bytes);
        if reader.u32()? != MAGIC {
            return Err(reader.error_at(0, "magic is not BADCC0DE").into());
        }
        if reader.u32()? != VERSION {
            return Err(reader.error_at(4, "version is not 1").into());
        }
        let id_object = reader.tpm2b(MAX_ID_OBJECT)?.to_vec();
        let encrypted_secret = reader.tpm2b(MAX_SECRET)?.to_vec();
        reader.finish()?;
        Ok(Self {
            id_object,
            encrypted_secret,
        })
    }

    /// Writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&VERSION.to_be_bytes());
        put_tpm2b(&mut out, &self.id_object);
        put_tpm2b(&mut out, &self.encrypted_secret);
        out
    }
}

/// `TPM2_MakeCredential` in software for an RSA or ECC EK (TPM 2.0 Part 1, "Credential
/// Protection" and the annexes on RSA and ECC secret sharing).
///
/// Only the TPM that holds the EK, and an object called `ak_name` next to it, can read
/// `credential` back. `credential` has at most as many bytes as the EK's nameAlg digest.
pub fn make_credential(
    ek: &Public,
    ak_name: &Name,
    credential: &[u8],
) -> Result<CredentialBlob, CredentialError> {
    let hash = ek.name_alg();
    if credential.len() > hash.size() {
        return Err(CredentialError::TooLong {
            length: credential.len(),
            limit: hash.size(),
        });
    }
    let bits = ek
        .parms()
        .symmetric_bits()
        .ok_or(CredentialError::NotAStorageKey)?;
    let (seed, encrypted_secret) = match ek.parms() {
        PublicParms::Rsa { .. } => rsa_secret(ek)?,
        PublicParms::Ecc { curve, x, y, .. } => ecc_secret(hash, *curve, x, y)?,
    };
    let id_object = id_object(hash, bits, &seed, ak_name, credential)?;
    Ok(CredentialBlob {
        id_object,
        encrypted_secret,
    })
}

/// A random seed, and that seed under RSA-OAEP (Part 1, B.10.4).
fn rsa_secret(ek: &Public) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), CredentialError> {
    let (algorithm, size) = match ek.name_alg() {
        HashAlgorithm::Sha1 => (&OAEP_SHA1_MGF1SHA1, 20),
        HashAlgorithm::Sha256 => (&OAEP_SHA256_MGF1SHA256, 32),
        HashAlgorithm::Sha384 => (&OAEP_SHA384_MGF1SHA384, 48),
        HashAlgorithm::Sha512 => (&OAEP_SHA512_MGF1SHA512, 64),
    };
    let key = PublicEncryptingKey::from_der(&ek.to_spki_der())
        .map_err(|_| CredentialError::NotAKey)
        .and_then(|key| OaepPublicEncryptingKey::new(key).map_err(|_| CredentialError::NotAKey))?;
    let mut seed = Zeroizing::new(vec![0; size]);
    rand::fill(&mut seed).map_err(|_| CredentialError::Cryptography)?;
    let mut secret = vec![0; key.ciphertext_size()];
    let length = key
        .encrypt(algorithm, &seed, &mut secret, Some(b"IDENTITY\0"))
        .map_err(|_| CredentialError::Cryptography)?
        .len();
    secret.truncate(length);
    Ok((seed, secret))
}

/// A seed agreed by one-pass ECDH, and the ephemeral point (Part 1, C.6.1 and C.6.4).
fn ecc_secret(
    hash: HashAlgorithm,
    curve: EccCurve,
    x: &[u8],
    y: &[u8],
) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), CredentialError> {
    let algorithm = match curve {
        EccCurve::NistP256 => &agreement::ECDH_P256,
        EccCurve::NistP384 => &agreement::ECDH_P384,
        EccCurve::NistP521 => &agreement::ECDH_P521,
    };
    let ephemeral =
        agreement::PrivateKey::generate(algorithm).map_err(|_| CredentialError::Cryptography)?;
    let public = ephemeral
        .compute_public_key()
        .map_err(|_| CredentialError::Cryptography)?;
    // 04, x, y
    let (ephemeral_x, ephemeral_y) = public
        .as_ref()
        .get(1..)
        .and_then(|point| point.split_at_checked(curve.size()))
        .ok_or(CredentialError::Cryptography)?;
    let peer = [&[0x04], x, y].concat();
    let seed = agreement::agree(
        &ephemeral,
        agreement::UnparsedPublicKey::new(algorithm, peer),
        CredentialError::NotAKey,
        |z| Ok(kdfe(hash, z, "IDENTITY", ephemeral_x, x, hash.size())),
    )?;
    let mut secret = Vec::new();
    put_tpm2b(&mut secret, ephemeral_x);
    put_tpm2b(&mut secret, ephemeral_y);
    Ok((seed, secret))
}

/// TPMS_ID_OBJECT: the credential under keys derived from the seed (Part 1, 24.4 to 24.6).
fn id_object(
    hash: HashAlgorithm,
    bits: u16,
    seed: &[u8],
    name: &Name,
    credential: &[u8],
) -> Result<Vec<u8>, CredentialError> {
    let algorithm = match bits {
        128 => &AES_128,
        192 => &AES_192,
        _ => &AES_256,
    };
    let key = kdfa(
        hash,
        seed,
        "STORAGE",
        name.as_bytes(),
        usize::from(bits) / 8,
    );
    let mut encrypted = Vec::with_capacity(2 + credential.len());
    put_tpm2b(&mut encrypted, credential);
    // The key is used for this one message: a fixed IV repeats nothing.
    cipher::UnboundCipherKey::new(algorithm, &key)
        .and_then(EncryptingKey::cfb128)
        .and_then(|key| {
            let iv = EncryptionContext::Iv128(FixedLength::from([0; 16]));
            key.less_safe_encrypt(&mut encrypted, iv)
        })
        .map_err(|_| CredentialError::Cryptography)?;

    let key = kdfa(hash, seed, "INTEGRITY", &[], hash.size());
    let mut context = hmac::Context::with_key(&hmac::Key::new(hash.hmac(), &key));
    context.update(&encrypted);
    context.update(name.as_bytes());
    let mut out = Vec::new();
    put_tpm2b(&mut out, context.sign().as_ref());
    out.extend_from_slice(&encrypted);
    Ok(out)
}

/// KDFa: SP 800-108 in counter mode over HMAC (Part 1, 11.4.10.2), with an empty contextV.
fn kdfa(
    hash: HashAlgorithm,
    seed: &[u8],
    label: &str,
    context_u: &[u8],
    bytes: usize,
) -> Zeroizing<Vec<u8>> {
    let key = hmac::Key::new(hash.hmac(), seed);
    counted(bytes, |counter| {
        let mut context = hmac::Context::with_key(&key);
        context.update(&counter.to_be_bytes());
        context.update(label.as_bytes());
        context.update(&[0]);
        context.update(context_u);
        context.update(&bit_count(bytes).to_be_bytes());
        Zeroizing::new(context.sign().as_ref().to_vec())
    })
}

/// KDFe: SP 800-56A over a hash (Part 1, 11.4.10.3).
fn kdfe(
    hash: HashAlgorithm,
    z: &[u8],
    label: &str,
    party_u: &[u8],
    party_v: &[u8],
    bytes: usize,
) -> Zeroizing<Vec<u8>> {
    counted(bytes, |counter| {
        let counter = counter.to_be_bytes();
        let digest = hash.digest(&[&counter, z, label.as_bytes(), &[0], party_u, party_v]);
        Zeroizing::new(digest.as_bytes().to_vec())
    })
}

/// `bytes` bytes from the blocks 1, 2, ...
fn counted(bytes: usize, block: impl Fn(u32) -> Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    // One allocation of the final size: growing would leave copies of key material behind.
    let mut out = Zeroizing::new(Vec::with_capacity(bytes));
    for counter in 1.. {
        let missing = bytes - out.len();
        if missing == 0 {
            break;
        }
        let block = block(counter);
        out.extend_from_slice(&block[..missing.min(block.len())]);
    }
    out
}

/// Sizes here are at most 64 bytes.
fn bit_count(bytes: usize) -> u32 {
    u32::try_from(bytes * 8).unwrap_or(u32::MAX)
}

/// Why no challenge could be made or read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// Not the tpm2-tools MakeCredential format.
    #[error("challenge blob at byte {offset}: {reason}")]
    Blob {
        /// Offset in bytes.
        offset: usize,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The EK has no symmetric algorithm, so nothing can be protected for it.
    #[error("EK is not a storage key: its symmetric algorithm is NULL")]
    NotAStorageKey,
    /// The numbers are no public key, e.g. a point that is not on its curve.
    #[error("EK's numbers are not a public key")]
    NotAKey,
    /// A TPM takes no credential longer than the EK's nameAlg digest.
    #[error("credential of {length} bytes is longer than the EK's nameAlg digest, {limit}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// Digest size in bytes.
        limit: usize,
    },
    /// The cryptographic library failed, e.g. for lack of entropy.
    #[error("cryptographic library failed to make a challenge")]
    Cryptography,
}

impl From<StructureError> for CredentialError {
    fn from(error: StructureError) -> Self {
        Self::Blob {
            offset: error.offset,
            reason: error.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::cipher::{DecryptingKey, DecryptionContext, UnboundCipherKey};
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::Value;

    use super::*;

    fn vectors() -> Value {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/vectors/agent-registrar.json"
        );
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn field<'a>(vector: &'a Value, name: &str) -> &'a str {
        vector[name].as_str().unwrap()
    }

    fn name() -> Name {
        let text = field(&vectors()["make_credential"], "name_hex").to_owned();
        Name::from_bytes(&hex::decode(text).unwrap()).unwrap()
    }

    #[test]
    fn derived_keys_and_id_object_are_the_tpms() {
        let file = vectors();
        let vector = &file["make_credential"];
        let seed = hex::decode(field(vector, "seed_hex")).unwrap();
        let hash = HashAlgorithm::from_name(field(vector, "hash")).unwrap();
        let storage = kdfa(hash, &seed, "STORAGE", name().as_bytes(), 16);
        assert_eq!(hex::encode(&*storage), field(vector, "storage_key_hex"));
        let integrity = kdfa(hash, &seed, "INTEGRITY", &[], 32);
        assert_eq!(hex::encode(&*integrity), field(vector, "integrity_key_hex"));
        let challenge = field(vector, "challenge_ascii").as_bytes();
        let object = id_object(hash, 128, &seed, &name(), challenge).unwrap();
        let expected = field(vector, "tpm2b_id_object_hex");
        assert_eq!(
            format!("{:04x}{}", object.len(), hex::encode(object)),
            expected
        );
    }

    #[test]
    fn kdfe_is_the_tpms() {
        let file = vectors();
        let vector = &file["make_credential"]["kdfe"];
        let bytes = |name| hex::decode(field(vector, name)).unwrap();
        let (z, u, v) = (
            bytes("z_hex"),
            bytes("party_u_x_hex"),
            bytes("party_v_x_hex"),
        );
        let out = kdfe(
            HashAlgorithm::Sha256,
            &z,
            field(vector, "label"),
            &u,
            &v,
            32,
        );
        assert_eq!(hex::encode(&*out), field(vector, "out_hex"));
        // A second block starts where the first ends.
        let longer = kdfe(
            HashAlgorithm::Sha256,
            &z,
            field(vector, "label"),
            &u,
            &v,
            48,
        );
        assert_eq!((longer.len(), &longer[..32]), (48, &out[..]));
    }

    #[test]
    fn live_challenges_parse_and_ours_have_their_lengths() {
        let file = vectors();
        let registration = &file["registration"];
        let mut live = vec![(
            field(&registration["request"], "ek_tpm"),
            field(&registration["request"], "aik_tpm"),
            field(registration, "response_blob_b64"),
        )];
        for case in file["other_key_types"]["cases"].as_array().unwrap() {
            live.push((
                field(case, "ek_tpm"),
                field(case, "aik_tpm"),
                field(case, "blob"),
            ));
        }
        for (ek, ak, blob) in live {
            let public = |text| Public::from_tpm2b(&STANDARD.decode(text).unwrap()).unwrap();
            let bytes = STANDARD.decode(blob).unwrap();
            let blob = CredentialBlob::parse(&bytes).unwrap();
            assert_eq!(blob.to_bytes(), bytes);
            let ours = make_credential(&public(ek), &public(ak).name(), &[b'c'; 32]).unwrap();
            assert_eq!(ours.id_object.len(), blob.id_object.len());
            assert_eq!(ours.encrypted_secret.len(), blob.encrypted_secret.len());
            assert_eq!(CredentialBlob::parse(&ours.to_bytes()), Ok(ours));
        }
    }

    #[test]
    fn blobs_that_are_none_are_refused() {
        let file = vectors();
        let good = STANDARD
            .decode(field(&file["registration"], "response_blob_b64"))
            .unwrap();
        for end in 0..good.len() {
            CredentialBlob::parse(&good[..end]).unwrap_err();
        }
        let changed = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            CredentialBlob::parse(&bytes).unwrap_err()
        };
        assert_eq!(
            changed(3),
            CredentialError::Blob {
                offset: 0,
                reason: "magic is not BADCC0DE"
            }
        );
        assert_eq!(
            changed(7),
            CredentialError::Blob {
                offset: 4,
                reason: "version is not 1"
            }
        );
        let mut longer = good.clone();
        longer.push(0);
        assert!(CredentialBlob::parse(&longer).is_err());
    }

    /// Undoes [`id_object`] as `TPM2_ActivateCredential` does; panics where the TPM would fail.
    fn open(hash: HashAlgorithm, bits: u16, seed: &[u8], name: &Name, object: &[u8]) -> Vec<u8> {
        let mut reader = Reader::new("TPMS_ID_OBJECT", object);
        let tag = reader.tpm2b(64).unwrap();
        let mut encrypted = object[reader.offset()..].to_vec();
        let key = kdfa(hash, seed, "INTEGRITY", &[], hash.size());
        let message = [encrypted.as_slice(), name.as_bytes()].concat();
        hmac::verify(&hmac::Key::new(hash.hmac(), &key), &message, tag).unwrap();
        let key = kdfa(
            hash,
            seed,
            "STORAGE",
            name.as_bytes(),
            usize::from(bits) / 8,
        );
        let algorithm = if bits == 128 { &AES_128 } else { &AES_256 };
        let key = DecryptingKey::cfb128(UnboundCipherKey::new(algorithm, &key).unwrap()).unwrap();
        let iv = DecryptionContext::Iv128(FixedLength::from([0; 16]));
        let plain = key.decrypt(&mut encrypted, iv).unwrap();
        Reader::new("TPM2B_DIGEST", plain)
            .tpm2b(64)
            .unwrap()
            .to_vec()
    }

    /// A TPMT_PUBLIC of the EK template of `hash`.
    fn ek(kind: u16, hash: HashAlgorithm, bits: u16, parms: &[u8]) -> Public {
        let mut tpmt = kind.to_be_bytes().to_vec();
        tpmt.extend_from_slice(&hash.id().to_be_bytes());
        tpmt.extend_from_slice(&[0, 3, 0, 0xb2, 0, 0]);
        tpmt.extend_from_slice(&[0, 6]);
        tpmt.extend_from_slice(&bits.to_be_bytes());
        tpmt.extend_from_slice(&[0, 0x43, 0, 0x10]);
        tpmt.extend_from_slice(parms);
        Public::from_tpmt(&tpmt).unwrap()
    }

    #[test]
    fn the_holder_of_an_rsa_ek_reads_the_credential() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let spki = private.public_key().as_der().unwrap().as_ref().to_vec();
        // rsaEncryption SPKI of a 2048-bit key: the modulus is followed by INTEGER 65537.
        let modulus = &spki[spki.len() - 5 - 256..spki.len() - 5];
        let hash = HashAlgorithm::Sha256;
        let parms = [&[8, 0, 0, 0, 0, 0, 1, 0], modulus].concat();
        let ek = ek(1, hash, 128, &parms);
        assert_eq!(ek.to_spki_der(), spki);

        let blob = make_credential(&ek, &name(), b"secret").unwrap();
        let private = OaepPrivateDecryptingKey::new(private).unwrap();
        let mut seed = [0; 256];
        let label: Option<&[u8]> = Some(b"IDENTITY\0");
        let secret = &blob.encrypted_secret;
        let seed = private
            .decrypt(&OAEP_SHA256_MGF1SHA256, secret, &mut seed, label)
            .unwrap();
        assert_eq!(open(hash, 128, seed, &name(), &blob.id_object), b"secret");
    }

    #[test]
    fn the_holder_of_an_ecc_ek_reads_the_credential() {
        for (curve, id, algorithm, hash, bits) in [
            (
                EccCurve::NistP256,
                3,
                &agreement::ECDH_P256,
                HashAlgorithm::Sha256,
                128,
            ),
            (
                EccCurve::NistP384,
                4,
                &agreement::ECDH_P384,
                HashAlgorithm::Sha384,
                256,
            ),
            (
                EccCurve::NistP521,
                5,
                &agreement::ECDH_P521,
                HashAlgorithm::Sha512,
                256,
            ),
        ] {
            let private = agreement::PrivateKey::generate(algorithm).unwrap();
            let public = private.compute_public_key().unwrap();
            let (x, y) = public.as_ref()[1..].split_at(curve.size());
            let mut parms = vec![0, id, 0, 0x10];
            put_tpm2b(&mut parms, x);
            put_tpm2b(&mut parms, y);
            let ek = ek(0x23, hash, bits, &parms);

            let credential = vec![7; hash.size()];
            let blob = make_credential(&ek, &name(), &credential).unwrap();
            let mut reader = Reader::new("TPMS_ECC_POINT", &blob.encrypted_secret);
            let (qx, qy) = (reader.tpm2b(66).unwrap(), reader.tpm2b(66).unwrap());
            reader.finish().unwrap();
            assert_eq!((qx.len(), qy.len()), (curve.size(), curve.size()));
            let point = [&[4], qx, qy].concat();
            let peer = agreement::UnparsedPublicKey::new(algorithm, point);
            let seed = agreement::agree(&private, peer, (), |z| {
                Ok(kdfe(hash, z, "IDENTITY", qx, x, hash.size()))
            });
            let opened = open(hash, bits, &seed.unwrap(), &name(), &blob.id_object);
            assert_eq!(opened, credential);
        }
    }

    #[test]
    fn keys_that_protect_nothing_are_refused() {
        let file = vectors();
        let request = &file["registration"]["request"];
        let public = |text| Public::from_tpm2b(&STANDARD.decode(text).unwrap()).unwrap();
        let (ek, ak) = (
            public(field(request, "ek_tpm")),
            public(field(request, "aik_tpm")),
        );
        assert_eq!(
            make_credential(&ak, &ak.name(), b"c"),
            Err(CredentialError::NotAStorageKey)
        );
        assert_eq!(
            make_credential(&ek, &ak.name(), &[0; 33]),
            Err(CredentialError::TooLong {
                length: 33,
                limit: 32
            })
        );
        let case = &file["other_key_types"]["cases"][0];
        let mut tpmt = STANDARD.decode(field(case, "ek_tpm")).unwrap()[2..].to_vec();
        *tpmt.last_mut().unwrap() ^= 1;
        let off_curve = Public::from_tpmt(&tpmt).unwrap();
        assert_eq!(
            make_credential(&off_curve, &ak.name(), b"c"),
            Err(CredentialError::NotAKey)
        );
    }
}
