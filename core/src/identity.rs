//! Who a node is: its id, and which keys and certificates may stand for it.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde::{Deserialize, Serialize};

use crate::tpm::{
    AttestationKey, EccCurve, HashAlgorithm, KeyError, ObjectAttributes, Public, PublicParms,
};

/// Longest agent id, in characters; Keylime's databases hold no more.
const MAX_AGENT_ID: usize = 80;
/// Largest EK certificate that is looked at, PEM chain included, in bytes.
const MAX_CERTIFICATE: usize = 64 * 1024;

/// Whatever an EK certificate's base64 looks like: with or without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What makes a key an AK: made by the TPM, stays in it, signs only what the TPM itself says.
const AK_SET: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .union(ObjectAttributes::RESTRICTED)
    .union(ObjectAttributes::SIGN);

/// What every EK template of the TCG EK Credential Profile sets.
const EK_SET: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .union(ObjectAttributes::ADMIN_WITH_POLICY)
    .union(ObjectAttributes::RESTRICTED)
    .union(ObjectAttributes::DECRYPT);

/// An agent id: 1 to 80 characters of `[A-Za-z0-9._-]`, the first not a dot.
///
/// Safe as a URL path segment, a file name, and in a log line.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String")]
pub struct AgentId(String);

impl AgentId {
    /// Checks the alphabet and length.
    pub fn new(id: &str) -> Result<Self, IdentityError> {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=MAX_AGENT_ID).contains(&id.len()) && id.bytes().all(safe) && !id.starts_with('.') {
            Ok(Self(id.to_owned()))
        } else {
            Err(IdentityError::AgentId(
                id.chars().take(MAX_AGENT_ID).collect(),
            ))
        }
    }

    /// Keylime's `hash_ek`: hex SHA-256 of the EK's SubjectPublicKeyInfo PEM text.
    pub fn hash_ek(ek: &Public) -> Self {
        Self(
            HashAlgorithm::Sha256
                .digest(&[ek.to_spki_pem().as_bytes()])
                .to_string(),
        )
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for AgentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for AgentId {
    type Err = IdentityError;
    fn from_str(id: &str) -> Result<Self, IdentityError> {
        Self::new(id)
    }
}

impl TryFrom<String> for AgentId {
    type Error = IdentityError;
    fn try_from(id: String) -> Result<Self, IdentityError> {
        Self::new(&id)
    }
}

/// Refuses an AK whose attributes would let the host forge quotes.
///
/// Without `restricted` the host could have any bytes signed, a made-up TPMS_ATTEST too; without
/// `fixedTPM`, `fixedParent` and `sensitiveDataOrigin` the key may live outside the TPM although
/// `TPM2_ActivateCredential` succeeds.
pub fn check_ak(ak: &Public) -> Result<(), IdentityError> {
    check_attributes("AK", ak.attributes(), AK_SET, ObjectAttributes::DECRYPT)?;
    check_name_alg("AK", ak)?;
    AttestationKey::new(ak)
        .map(drop)
        .map_err(IdentityError::AttestationKey)
}

/// Refuses an EK that does not follow a TCG template (TCG EK Credential Profile 2.x, annex B).
pub fn check_ek(ek: &Public) -> Result<(), IdentityError> {
    check_attributes("EK", ek.attributes(), EK_SET, ObjectAttributes::SIGN)?;
    check_name_alg("EK", ek)?;
    if ek.parms().scheme().is_some() {
        return Err(IdentityError::EkScheme);
    }
    if ek.parms().symmetric_bits().is_none() {
        return Err(IdentityError::EkSymmetric);
    }
    match ek.parms() {
        PublicParms::Rsa { key_bits, .. } if *key_bits < 2048 => {
            Err(IdentityError::EkSize { bits: *key_bits })
        }
        _ => Ok(()),
    }
}

/// Refuses an AK that is the EK itself: the same key pair, whatever the public areas say.
pub fn check_distinct(ek: &Public, ak: &Public) -> Result<(), IdentityError> {
    if key_numbers(ek) == key_numbers(ak) {
        Err(IdentityError::SameKey)
    } else {
        Ok(())
    }
}

fn check_attributes(
    key: &'static str,
    attributes: ObjectAttributes,
    set: ObjectAttributes,
    clear: ObjectAttributes,
) -> Result<(), IdentityError> {
    let missing = set.difference(attributes);
    let forbidden = clear.intersection(attributes);
    if missing.is_empty() && forbidden.is_empty() {
        Ok(())
    } else {
        Err(IdentityError::Attributes {
            key,
            missing,
            forbidden,
        })
    }
}

fn check_name_alg(key: &'static str, public: &Public) -> Result<(), IdentityError> {
    match public.name_alg() {
        HashAlgorithm::Sha1 => Err(IdentityError::WeakName { key }),
        _ => Ok(()),
    }
}

/// An EK certificate as read from NV or the wire, cut to what it is: the certificate's own DER
/// bytes, or `None` when there is none (empty, or an NV index never written).
///
/// Takes DER with padding behind it, DER in an OCTET STRING, the `10 01 00` header of old
/// provisioning tools, PEM (the first certificate of several) and base64 of any of these. The
/// certificate itself is never re-encoded: some vendors' are not strict DER, and a re-encoded copy
/// loses its signature.
pub fn normalise_ek_certificate(bytes: &[u8]) -> Result<Option<Vec<u8>>, IdentityError> {
    if bytes.len() > MAX_CERTIFICATE {
        return Err(certificate(0, "larger than any EK certificate"));
    }
    let text = bytes.trim_ascii();
    if text.iter().all(|byte| [0x00, 0xff].contains(byte)) {
        return Ok(None);
    }
    let der = match text {
        // The first octets of DER and of the two wrappings; no base64 of a certificate has them.
        [0x30 | 0x04 | 0x10, ..] => return cut(bytes).map(Some),
        [b'-', ..] => decode_pem(text)?,
        _ => decode_base64(text)?,
    };
    cut(&der).map(Some)
}

/// The first certificate of a PEM text (RFC 7468).
fn decode_pem(text: &[u8]) -> Result<Vec<u8>, IdentityError> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let body = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.strip_prefix(BEGIN))
        .ok_or_else(|| certificate(0, "PEM that does not start with a certificate"))?;
    let (body, _) = body
        .split_once("-----END CERTIFICATE-----")
        .ok_or_else(|| certificate(BEGIN.len(), "PEM without an end"))?;
    decode_base64(body.as_bytes())
}

fn decode_base64(text: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let text: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    LENIENT
        .decode(text)
        .map_err(|_| certificate(0, "neither DER, PEM nor base64"))
}

/// Removes what is around the outer SEQUENCE.
fn cut(bytes: &[u8]) -> Result<Vec<u8>, IdentityError> {
    // Tag, and the length in 16 bits, as the provisioning of the TCG PC Client 1.2 profile.
    let bytes = match bytes {
        [0x10, 0x01, 0x00, _, _, rest @ ..] => rest,
        _ => bytes,
    };
    let mut outer = Der::new(bytes);
    let (tag, content) = outer.next()?;
    let bytes = match (tag, content.first()) {
        (0x30, _) => bytes,
        (0x04, Some(0x30)) => content,
        _ => return Err(certificate(0, "not a SEQUENCE")),
    };
    let mut outer = Der::new(bytes);
    outer.next()?;
    Ok(bytes[..outer.offset].to_vec())
}

/// Is the certificate's SubjectPublicKeyInfo the EK's?
///
/// Compares the numbers, not the encodings: vendors mark EK certificates as rsaEncryption or as
/// id-RSAES-OAEP. The certificate need not be strict DER.
pub fn certificate_matches_key(
    certificate_der: &[u8],
    key: &Public,
) -> Result<bool, IdentityError> {
    let certified = certified_key(certificate_der)?;
    Ok(certified == key_numbers(key))
}

/// What makes two public keys the same.
#[derive(Debug, Eq, PartialEq)]
enum KeyNumbers {
    /// Modulus and exponent without leading zeros.
    Rsa(Vec<u8>, Vec<u8>),
    /// Curve and uncompressed point without its 04.
    Ecc(EccCurve, Vec<u8>),
}

fn key_numbers(key: &Public) -> KeyNumbers {
    match key.parms() {
        PublicParms::Rsa {
            modulus, exponent, ..
        } => KeyNumbers::Rsa(significant(modulus), significant(&exponent.to_be_bytes())),
        PublicParms::Ecc { curve, x, y, .. } => KeyNumbers::Ecc(*curve, [&x[..], y].concat()),
    }
}

fn significant(number: &[u8]) -> Vec<u8> {
    number
        .iter()
        .copied()
        .skip_while(|&byte| byte == 0)
        .collect()
}

/// The key of a certificate (RFC 5280, 4.1), read with no more strictness than needed to find it.
fn certified_key(bytes: &[u8]) -> Result<KeyNumbers, IdentityError> {
    let mut tbs = Der::new(bytes)
        .enter(0x30, "not a certificate")?
        .enter(0x30, "not a TBS")?;
    if tbs.peek() == Some(0xa0) {
        tbs.next()?;
    }
    // serialNumber, signature, issuer, validity, subject
    for (tag, reason) in [
        (0x02, "no serialNumber"),
        (0x30, "no signature algorithm"),
        (0x30, "no issuer"),
        (0x30, "no validity"),
        (0x30, "no subject"),
    ] {
        tbs.enter(tag, reason)?;
    }
    let mut spki = tbs.enter(0x30, "no SubjectPublicKeyInfo")?;
    let mut algorithm = spki.enter(0x30, "no key algorithm")?;
    let oid = algorithm.enter(0x06, "no key algorithm")?.bytes;
    let key = spki.enter(0x03, "no key")?;
    let Some((0, key_bytes)) = key
        .bytes
        .split_first()
        .map(|(unused, rest)| (*unused, rest))
    else {
        return Err(certificate(spki.offset, "key is not whole octets"));
    };
    match oid {
        // rsaEncryption, id-RSAES-OAEP: 1.2.840.113549.1.1.{1,7}
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01 | 0x07] => {
            let mut key = Der::new(key_bytes).enter(0x30, "key is not an RSAPublicKey")?;
            let modulus = key.enter(0x02, "key has no modulus")?.bytes;
            let exponent = key.enter(0x02, "key has no exponent")?.bytes;
            Ok(KeyNumbers::Rsa(significant(modulus), significant(exponent)))
        }
        // ecPublicKey: 1.2.840.10045.2.1
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01] => {
            let curve = algorithm.enter(0x06, "key is not on a named curve")?.bytes;
            let curve = match curve {
                [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07] => EccCurve::NistP256,
                [0x2b, 0x81, 0x04, 0x00, 0x22] => EccCurve::NistP384,
                [0x2b, 0x81, 0x04, 0x00, 0x23] => EccCurve::NistP521,
                _ => return Err(certificate(spki.offset, "key is on an unknown curve")),
            };
            match key_bytes.split_first() {
                Some((0x04, point)) => Ok(KeyNumbers::Ecc(curve, point.to_vec())),
                _ => Err(certificate(spki.offset, "key is not an uncompressed point")),
            }
        }
        _ => Err(certificate(spki.offset, "key is neither RSA nor ECC")),
    }
}

/// Walks BER with definite lengths, which need not be minimal.
struct Der<'a> {
    bytes: &'a [u8],
    offset: usize,
    /// Offset of `bytes` in the whole certificate.
    base: usize,
}

impl<'a> Der<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            offset: 0,
            base: 0,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.offset).copied()
    }

    /// The next element: tag and content.
    fn next(&mut self) -> Result<(u8, &'a [u8]), IdentityError> {
        let at = self.base + self.offset;
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let (header, length) = match rest {
            [_, short @ ..=0x7f, ..] => (2, usize::from(*short)),
            [_, 0x81, length, ..] => (3, usize::from(*length)),
            [_, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
            [_, 0x83, 0, high, low, ..] => (5, usize::from(u16::from_be_bytes([*high, *low]))),
            [_, _, ..] => return Err(certificate(at, "length that no EK certificate has")),
            _ => return Err(certificate(at, "cut short")),
        };
        let content = rest
            .get(header..header + length)
            .ok_or_else(|| certificate(at, "shorter than its length says"))?;
        self.offset += header + length;
        Ok((rest[0], content))
    }

    /// The next element's inside, if it is of that tag.
    fn enter(&mut self, tag: u8, reason: &'static str) -> Result<Self, IdentityError> {
        let at = self.base + self.offset;
        match self.next()? {
            (found, bytes) if found == tag => Ok(Der {
                bytes,
                offset: 0,
                base: self.base + self.offset - bytes.len(),
            }),
            _ => Err(certificate(at, reason)),
        }
    }
}

fn certificate(offset: usize, reason: &'static str) -> IdentityError {
    IdentityError::Certificate { offset, reason }
}

/// HMAC-SHA-384 activation tag, lower-case hex: key = base64 text of the challenge, message =
/// agent id.
pub fn activation_tag(challenge: &[u8], id: &AgentId) -> String {
    hex::encode(hmac::sign(
        &activation_key(challenge),
        id.as_str().as_bytes(),
    ))
}

/// Compares an activation tag, hex of either case, in constant time.
pub fn activation_tag_matches(challenge: &[u8], id: &AgentId, tag: &str) -> bool {
    let mut bytes = [0; 48];
    hex::decode_to_slice(tag, &mut bytes).is_ok()
        && hmac::verify(&activation_key(challenge), id.as_str().as_bytes(), &bytes).is_ok()
}

/// The key is the base64 text itself: that is what Keylime's registrar stores.
fn activation_key(challenge: &[u8]) -> hmac::Key {
    let text = zeroize::Zeroizing::new(STANDARD.encode(challenge));
    hmac::Key::new(hmac::HMAC_SHA384, text.as_bytes())
}

/// Why an identity is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// An agent id outside the alphabet or length. Holds its first 80 characters.
    #[error("agent id {0:?} is not 1 to 80 characters of [A-Za-z0-9._-], the first not a dot")]
    AgentId(String),
    /// Object attributes that make a key unfit.
    #[error(
        "{key} has the wrong object attributes: missing [{missing}], must not have [{forbidden}]"
    )]
    Attributes {
        /// `AK` or `EK`.
        key: &'static str,
        /// What must be set and is not.
        missing: ObjectAttributes,
        /// What must be clear and is not.
        forbidden: ObjectAttributes,
    },
    /// With SHA-1 as nameAlg two different keys can have one name.
    #[error("{key} has SHA-1 as nameAlg; make one with SHA-256 or better")]
    WeakName {
        /// `AK` or `EK`.
        key: &'static str,
    },
    /// The AK cannot sign quotes that can be checked.
    #[error(transparent)]
    AttestationKey(KeyError),
    /// An EK signs nothing.
    #[error("EK has a signing scheme, which no TCG template has")]
    EkScheme,
    /// An EK protects credentials with AES.
    #[error("EK is not a storage key: its symmetric algorithm is NULL")]
    EkSymmetric,
    /// RSA below 2048 bits.
    #[error("EK is RSA with {bits} bits; 2048 are the least")]
    EkSize {
        /// Modulus size in bits.
        bits: u16,
    },
    /// One key pair cannot be both.
    #[error("AK and EK are the same key")]
    SameKey,
    /// Not a certificate, or one that cannot be read.
    #[error("EK certificate at byte {offset}: {reason}")]
    Certificate {
        /// Offset in bytes.
        offset: usize,
        /// What is wrong there.
        reason: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

    fn read(path: &str) -> Vec<u8> {
        std::fs::read(format!("{FIXTURES}/{path}")).unwrap()
    }

    fn vectors() -> Value {
        serde_json::from_slice(&read("vectors/agent-registrar.json")).unwrap()
    }

    fn field<'a>(value: &'a Value, pointer: &str) -> &'a str {
        value.pointer(pointer).and_then(Value::as_str).unwrap()
    }

    fn public(base64: &str) -> Public {
        Public::from_tpm2b(&STANDARD.decode(base64).unwrap()).unwrap()
    }

    /// EK and AK of every kind that Keylime agents register.
    fn live_keys() -> Vec<(Public, Public)> {
        let file = vectors();
        let cases = file["other_key_types"]["cases"].as_array().unwrap();
        cases
            .iter()
            .chain([&file["registration"]["request"]])
            .map(|keys| {
                (
                    public(field(keys, "/ek_tpm")),
                    public(field(keys, "/aik_tpm")),
                )
            })
            .collect()
    }

    /// The same key with other attributes.
    fn with_attributes(key: &Public, attributes: u32) -> Public {
        let mut tpmt = key.as_tpmt().to_vec();
        tpmt[4..8].copy_from_slice(&attributes.to_be_bytes());
        Public::from_tpmt(&tpmt).unwrap()
    }

    #[test]
    fn agent_ids_are_safe_in_paths_and_logs() {
        for id in [
            "d432fbb3-d2f1-4a97-9ef7-75bd81c00000",
            "a",
            "host.example_1",
            &"f".repeat(80),
        ] {
            assert_eq!(AgentId::new(id).unwrap().as_str(), id);
        }
        for id in [
            "",
            ".",
            "..",
            ".x",
            "a/b",
            "a b",
            "a\n",
            "ä",
            "a%2f",
            &"f".repeat(81),
        ] {
            AgentId::new(id).unwrap_err();
            assert!(serde_json::from_value::<AgentId>(Value::from(id)).is_err());
        }
        let Err(IdentityError::AgentId(text)) = AgentId::new(&"x/".repeat(1000)) else {
            panic!()
        };
        assert_eq!(text.len(), 80);
    }

    #[test]
    fn hash_ek_is_keylimes() {
        let file = vectors();
        let ek = public(field(&file, "/registration/request/ek_tpm"));
        assert_eq!(
            ek.name().to_string(),
            field(&file, "/registration/ek_name_hex")
        );
        assert_eq!(ek.to_spki_pem(), field(&file, "/hash_ek/ek_pem"));
        assert_eq!(
            AgentId::hash_ek(&ek).as_str(),
            field(&file, "/hash_ek/uuid")
        );
    }

    #[test]
    fn activation_tags_are_keylimes() {
        let file = vectors();
        let id = AgentId::new(field(&file, "/agent_id")).unwrap();
        let vector = &file["make_credential"];
        let challenge = field(vector, "/challenge_ascii").as_bytes();
        let tag = field(vector, "/activate_auth_tag_hex");
        assert_eq!(activation_tag(challenge, &id), tag);

        let mut live = vec![(
            id,
            field(&file, "/registration/challenge_key_b64"),
            field(&file, "/registration/activate_auth_tag_hex"),
        )];
        for case in file["other_key_types"]["cases"].as_array().unwrap() {
            let id = AgentId::new(field(case, "/agent_id")).unwrap();
            live.push((id, field(case, "/challenge_text"), field(case, "/auth_tag")));
        }
        for (id, key, tag) in live {
            let challenge = STANDARD.decode(key).unwrap();
            assert_eq!(activation_tag(&challenge, &id), tag);
            assert!(activation_tag_matches(&challenge, &id, tag));
            assert!(activation_tag_matches(&challenge, &id, &tag.to_uppercase()));
            let other = AgentId::new("other").unwrap();
            assert!(!activation_tag_matches(&challenge, &other, tag));
            assert!(!activation_tag_matches(&challenge[1..], &id, tag));
            for wrong in [
                "",
                "00",
                &tag[2..],
                &format!("{tag}00"),
                &"0".repeat(96),
                &tag[1..],
            ] {
                assert!(!activation_tag_matches(&challenge, &id, wrong));
            }
        }
    }

    #[test]
    fn live_keys_of_every_kind_are_accepted() {
        let mut keys = live_keys();
        for boot in ["uki", "grub"] {
            let file = |name: &str| {
                Public::from_tpm2b(&read(&format!("boots/{boot}/{name}.pub"))).unwrap()
            };
            keys.push((file("ek"), file("ak")));
            keys.push((file("ek-ecc"), file("ak-ecc")));
        }
        for (ek, ak) in keys {
            check_ek(&ek).unwrap();
            check_ak(&ak).unwrap();
            check_distinct(&ek, &ak).unwrap();
            check_ak(&ek).unwrap_err();
            check_ek(&ak).unwrap_err();
        }
    }

    #[test]
    fn an_ak_that_lets_the_host_forge_quotes_is_refused() {
        for (_, ak) in live_keys() {
            let attributes = ak.attributes().0;
            assert_eq!(attributes, 0x0005_0072);
            for (bit, name) in [
                (1, "fixedTPM"),
                (4, "fixedParent"),
                (5, "sensitiveDataOrigin"),
                (16, "restricted"),
                (18, "sign"),
            ] {
                let error = check_ak(&with_attributes(&ak, attributes & !(1 << bit))).unwrap_err();
                assert_eq!(
                    error.to_string(),
                    format!(
                        "AK has the wrong object attributes: missing [{name}], must not have []"
                    )
                );
            }
            let error = check_ak(&with_attributes(&ak, attributes | 1 << 17)).unwrap_err();
            assert!(
                error.to_string().ends_with("must not have [decrypt]"),
                "{error}"
            );
            // userWithAuth, noDA: how the key may be used, not what it proves.
            check_ak(&with_attributes(&ak, attributes & !(1 << 6) | 1 << 10)).unwrap();
        }
    }

    #[test]
    fn an_ek_off_the_templates_is_refused() {
        for (ek, _) in live_keys() {
            let attributes = ek.attributes().0;
            for bit in [1, 4, 5, 7, 16, 17] {
                check_ek(&with_attributes(&ek, attributes & !(1 << bit))).unwrap_err();
            }
            check_ek(&with_attributes(&ek, attributes | 1 << 18)).unwrap_err();
            check_ek(&with_attributes(&ek, attributes | 1 << 6)).unwrap();
        }
    }

    #[test]
    fn weak_names_are_refused() {
        let (_, ak) = live_keys().remove(0);
        let mut tpmt = ak.as_tpmt().to_vec();
        tpmt[2..4].copy_from_slice(&[0, 4]);
        let weak = Public::from_tpmt(&tpmt).unwrap();
        assert_eq!(check_ak(&weak), Err(IdentityError::WeakName { key: "AK" }));
    }

    #[test]
    fn one_key_under_two_public_areas_is_one_key() {
        let (ek, ak) = live_keys().remove(0);
        assert_eq!(check_distinct(&ek, &ek), Err(IdentityError::SameKey));
        let disguised = with_attributes(&ak, 0x0003_00b2);
        assert_eq!(check_distinct(&disguised, &ak), Err(IdentityError::SameKey));
    }

    #[test]
    fn every_form_of_an_ek_certificate_becomes_its_own_bytes() {
        let der = read("boots/uki/ek-cert.der");
        let normalised = |bytes: &[u8]| normalise_ek_certificate(bytes).unwrap().unwrap();
        assert_eq!(normalised(&der), der);
        assert_eq!(normalised(&[&der[..], &[0; 100]].concat()), der);
        assert_eq!(normalised(&[&der[..], &[0xff; 100]].concat()), der);
        assert_eq!(normalised(&read("boots/uki/nv-0x1c00002.bin")), der);

        let length = u16::try_from(der.len()).unwrap().to_be_bytes();
        let wrapped = [&[0x04, 0x82], &length[..], &der, &[0; 7]].concat();
        assert_eq!(normalised(&wrapped), der);
        let header = [&[0x10, 0x01, 0x00], &length[..], &der, &[0xff; 9]].concat();
        assert_eq!(normalised(&header), der);

        let base64 = STANDARD.encode(&der);
        assert_eq!(normalised(base64.as_bytes()), der);
        assert_eq!(normalised(STANDARD.encode(&wrapped).as_bytes()), der);
        let pem = |base64: &str| {
            format!("-----BEGIN CERTIFICATE-----\r\n{base64}\r\n-----END CERTIFICATE-----\r\n")
        };
        let chain = format!("\n{}{}", pem(&base64), pem("AAAA"));
        assert_eq!(normalised(chain.as_bytes()), der);
    }

    #[test]
    fn no_certificate_is_no_error() {
        for none in [&b""[..], b" \n", &[0xff; 1600], &[0; 1600]] {
            assert_eq!(normalise_ek_certificate(none), Ok(None));
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let der = read("boots/uki/ek-cert.der");
        for bad in [
            &b"hello world"[..],
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n",
            &[0x30, 0x80, 0, 0],
            &[0x30, 0x84, 0, 0, 0, 1, 0],
            &[0x04, 0x02, 0x04, 0x00],
            &[0x30],
            &[0x10, 0x01, 0x00, 0x00],
            &vec![0x30; MAX_CERTIFICATE + 1],
        ] {
            normalise_ek_certificate(bad).unwrap_err();
        }
        for end in 1..der.len() {
            normalise_ek_certificate(&der[..end]).unwrap_err();
            certificate_matches_key(&der[..end], &live_keys()[0].0).unwrap_err();
        }
    }

    #[test]
    fn certificates_belong_to_their_keys() {
        let file = vectors();
        let request = &file["registration"]["request"];
        let wire = normalise_ek_certificate(field(request, "/ekcert").as_bytes());
        let wire = wire.unwrap().unwrap();
        let ek = public(field(request, "/ek_tpm"));
        assert_eq!(certificate_matches_key(&wire, &ek), Ok(true));
        for boot in ["uki", "grub"] {
            let file = |name: &str| read(&format!("boots/{boot}/{name}"));
            let own = Public::from_tpm2b(&file("ek.pub")).unwrap();
            let own_ecc = Public::from_tpm2b(&file("ek-ecc.pub")).unwrap();
            let rsa = file("ek-cert.der");
            let ecc = normalise_ek_certificate(&file("nv-0x1c00016.bin"))
                .unwrap()
                .unwrap();
            assert_eq!(certificate_matches_key(&rsa, &own), Ok(true));
            assert_eq!(certificate_matches_key(&rsa, &own_ecc), Ok(false));
            assert_eq!(certificate_matches_key(&rsa, &ek), Ok(false));
            assert_eq!(certificate_matches_key(&wire, &own), Ok(false));
            assert_eq!(certificate_matches_key(&ecc, &own), Ok(false));
        }
    }

    #[test]
    fn an_ecc_certificate_belongs_to_its_key() {
        let bytes = read("boots/uki/nv-0x1c00016.bin");
        let der = normalise_ek_certificate(&bytes).unwrap().unwrap();
        // After the OBJECT IDENTIFIER of P-384: BIT STRING, 98 bytes, no unused bits, 04.
        let head = [0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00, 0x04];
        let at = der
            .windows(head.len())
            .position(|window| window == head)
            .unwrap()
            + head.len();
        let (x, y) = der[at..at + 96].split_at(48);
        // TPMT_PUBLIC by the P-384 template, without a policy.
        let mut tpmt = hex::decode("0023000c000300f20000000601000043001000040010").unwrap();
        for coordinate in [x, y] {
            tpmt.extend_from_slice(&[0, 48]);
            tpmt.extend_from_slice(coordinate);
        }
        let ek = Public::from_tpmt(&tpmt).unwrap();
        assert_eq!(certificate_matches_key(&der, &ek), Ok(true));
        *tpmt.last_mut().unwrap() ^= 1;
        let other = Public::from_tpmt(&tpmt).unwrap();
        assert_eq!(certificate_matches_key(&der, &other), Ok(false));
    }

    #[test]
    fn an_oaep_key_identifier_and_long_lengths_are_tolerated() {
        let der = read("boots/uki/ek-cert.der");
        let ek = Public::from_tpm2b(&read("boots/uki/ek.pub")).unwrap();
        let oid = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
        let at = der
            .windows(oid.len())
            .position(|window| window == oid)
            .unwrap();
        let mut oaep = der.clone();
        oaep[at + oid.len() - 1] = 0x07;
        assert_eq!(certificate_matches_key(&oaep, &ek), Ok(true));
        // The outer length in three octets where two would do.
        let long = [&[0x30, 0x83, 0x00], &der[2..]].concat();
        assert_eq!(normalise_ek_certificate(&long), Ok(Some(long.clone())));
        assert_eq!(certificate_matches_key(&long, &ek), Ok(true));
        let mut other = der.clone();
        other[at + oid.len() - 1] = 0x05;
        certificate_matches_key(&other, &ek).unwrap_err();
    }
}
