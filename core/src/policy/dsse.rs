/// Whose signatures count, and who makes them.
mod keys;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use serde::Deserialize;
use x509_cert::{
    Certificate,
    der::{DecodePem, Encode},
};

pub use self::keys::{PolicySigner, PolicySignerError, SigningKey, SigningKeyError};
use super::{MAX_RUNTIME_POLICY, PolicyError};
use crate::identity::{CertifiedKey, ChainError, ChainProblem, Trust, certify_policy_signer};

/// What the payload of a signed runtime policy calls itself.
const PAYLOAD_TYPE: &str = "application/vnd.keylime+json";
/// Most signatures of one envelope.
const MAX_SIGNATURES: usize = 16;

/// A signed runtime policy: a DSSE envelope (secure-systems-lab/dsse, version 1), not verified.
#[derive(Debug)]
pub struct Envelope {
    payload: Vec<u8>,
    signatures: Vec<EnvelopeSignature>,
}

/// One signature of an envelope, not verified.
#[derive(Clone, Debug)]
pub struct EnvelopeSignature {
    keyid: String,
    bytes: Vec<u8>,
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
    #[serde(default)]
    keyid: Option<String>,
    sig: String,
}

impl Envelope {
    /// Around a policy, without any signature yet.
    ///
    /// # Errors
    /// A payload that no envelope holds: over [`MAX_RUNTIME_POLICY`], or nothing.
    pub fn new(payload: Vec<u8>) -> Result<Self, PolicyError> {
        PolicyError::check_size(payload.len(), MAX_RUNTIME_POLICY)?;
        if payload.is_empty() {
            return Err(PolicyError::Envelope("there is no payload"));
        }
        let signatures = Vec::new();
        Ok(Self {
            payload,
            signatures,
        })
    }

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
        let signatures = document.signatures.into_iter().map(|one| {
            Some(EnvelopeSignature {
                keyid: one.keyid.unwrap_or_default(),
                bytes: decode(&one.sig)?,
            })
        });
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

    /// The signatures, whoever made them.
    pub fn signatures(&self) -> &[EnvelopeSignature] {
        &self.signatures
    }

    /// Adds the signature of `signer`, in the place of an earlier one with its key id.
    ///
    /// # Errors
    /// [`PolicyError::Envelope`] for the seventeenth, and when the key cannot sign.
    pub fn sign(&mut self, signer: &PolicySigner) -> Result<(), PolicyError> {
        let bytes = signer
            .sign(&self.signed_bytes())
            .ok_or(PolicyError::Envelope("the key cannot sign"))?;
        let keyid = signer.keyid().to_owned();
        self.signatures.retain(|other| other.keyid != keyid);
        if self.signatures.len() >= MAX_SIGNATURES {
            return Err(PolicyError::Envelope("more than 16 signatures"));
        }
        self.signatures.push(EnvelopeSignature { keyid, bytes });
        Ok(())
    }

    /// The JSON text, in base64 of the usual alphabet.
    pub fn to_json(&self) -> String {
        let signature = |one: &EnvelopeSignature| serde_json::json!({"keyid": one.keyid, "sig": STANDARD.encode(&one.bytes)});
        let signatures: Vec<_> = self.signatures.iter().map(signature).collect();
        let envelope = serde_json::json!({
            "payload": STANDARD.encode(&self.payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": signatures,
        });
        format!("{envelope}\n")
    }

    /// Did the holder of `key` sign it? Which key a signature names is not looked at.
    pub fn is_signed_by(&self, key: &SigningKey) -> bool {
        let signed = self.signed_bytes();
        let mut signatures = self.signatures.iter();
        signatures.any(|signature| key.verifies(&signed, &signature.bytes))
    }

    /// Is this one of its signatures by the holder of `key`?
    pub fn verifies(&self, signature: &EnvelopeSignature, key: &SigningKey) -> bool {
        key.verifies(&self.signed_bytes(), &signature.bytes)
    }

    /// Who made a signature, by the certificate that it names (Keylime's x509 backend): one for
    /// signing, valid at the time of the check, and issued by a trust anchor.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub fn certified_signer(
        &self,
        signature: &EnvelopeSignature,
        trust: &Trust<'_>,
    ) -> Result<CertifiedKey, SignerError> {
        let der = signature.certificate().ok_or(SignerError::NoCertificate)?;
        let key = SigningKey::parse(&der).map_err(SignerError::Key)?;
        let signer = certify_policy_signer(&der, trust)?;
        if !self.verifies(signature, &key) {
            return Err(SignerError::Wrong);
        }
        Ok(signer)
    }

    /// The pre-authentication encoding of DSSE.
    fn signed_bytes(&self) -> Vec<u8> {
        let mut signed = format!(
            "DSSEv1 {} {PAYLOAD_TYPE} {} ",
            PAYLOAD_TYPE.len(),
            self.payload.len()
        )
        .into_bytes();
        signed.extend_from_slice(&self.payload);
        signed
    }
}

impl EnvelopeSignature {
    /// What it says about its key: SHA-256 (hex) of the PEM public key, base64 of a PEM certificate,
    /// or anything.
    pub fn keyid(&self) -> &str {
        &self.keyid
    }

    /// The certificate (DER) in the key id, if there is one.
    pub fn certificate(&self) -> Option<Vec<u8>> {
        let pem = STANDARD.decode(&self.keyid).ok()?;
        Certificate::from_pem(pem).ok()?.to_der().ok()
    }
}

/// Why it cannot be told by a certificate who made a signature.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SignerError {
    /// Its key id is none.
    #[error("the signature names no certificate")]
    NoCertificate,
    /// The certificate's key does not sign policies.
    #[error("the certificate's key: {0}")]
    Key(SigningKeyError),
    /// The certificate's time has passed.
    #[error("certificate {0} has expired")]
    Expired(String),
    /// None of the trusted CAs issued it.
    #[error("certificate {certificate} was issued by {issuer}, which is not trusted to do so")]
    UnknownIssuer {
        /// Its subject.
        certificate: String,
        /// Its issuer.
        issuer: String,
    },
    /// The certificate is not trusted for another reason.
    #[error("certificate {0}")]
    Certificate(ChainError),
    /// Another key, or another text.
    #[error("the key of the certificate did not make the signature")]
    Wrong,
}

impl From<ChainError> for SignerError {
    fn from(error: ChainError) -> Self {
        let ChainError {
            certificate,
            problem,
        } = error;
        match problem {
            ChainProblem::Expired(_) => Self::Expired(certificate),
            ChainProblem::UnknownIssuer(issuer) => Self::UnknownIssuer {
                certificate,
                issuer,
            },
            problem => Self::Certificate(ChainError {
                certificate,
                problem,
            }),
        }
    }
}

/// base64 of either alphabet, or hex, as Keylime reads them.
fn decode(text: &str) -> Option<Vec<u8>> {
    hex::decode(text)
        .or_else(|_| STANDARD.decode(text))
        .or_else(|_| URL_SAFE.decode(text))
        .ok()
}

#[cfg(test)]
mod tests;
