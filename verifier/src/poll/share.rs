use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde_json::json;
use troth_core::identity::AgentId;
use troth_daemon::client::{Client, ClientError};
use zeroize::Zeroizing;

/// The operator's V: half of the payload key, whose other half (U) the agent has from the tenant.
///
/// It goes to an agent that was just found trustworthy, once, encrypted for the NK that the quote's
/// PCR 16 is bound to; again when the NK is another one, or the node was reactivated.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// The NK of the agent that has it.
    given_to: Option<String>,
}

impl Share {
    /// Hands `v` over if the agent with this NK does not have it yet. A failure is logged, and
    /// tried again after the next good quote: it says nothing about the node's state.
    pub(super) async fn hand_over(
        &mut self,
        v: &str,
        id: &AgentId,
        nk_pem: &str,
        version: &str,
        client: &Client,
    ) {
        if self.given_to.as_deref() == Some(nk_pem) {
            return;
        }
        match send(v, nk_pem, version, client).await {
            Ok(()) => {
                tracing::info!(node_id = %id, "the agent has its share V of the payload key");
                self.given_to = Some(nk_pem.to_owned());
            }
            Err(error) => tracing::warn!(
                node_id = %id, %error,
                "share V of the payload key is not delivered; next try after the next good quote"
            ),
        }
    }
}

async fn send(v: &str, nk_pem: &str, version: &str, client: &Client) -> Result<(), ShareError> {
    let v = Zeroizing::new(STANDARD.decode(v).map_err(|_| ShareError::Encoding)?);
    let body = json!({"encrypted_key": STANDARD.encode(encrypt(&v, nk_pem)?)});
    let path = format!("/v{version}/keys/vkey");
    let answer = client
        .send(Method::POST, &path, Some(body.to_string().into()))
        .await?;
    match answer.status {
        200 => Ok(()),
        status => Err(ShareError::Refused(status)),
    }
}

/// RSA-OAEP with SHA-1 and no label, as every agent expects it.
fn encrypt(share: &[u8], nk_pem: &str) -> Result<Vec<u8>, ShareError> {
    let spki = SubjectPublicKeyInfoDer::from_pem_slice(nk_pem.as_bytes())
        .map_err(|_| ShareError::TransportKey)?;
    let key = PublicEncryptingKey::from_der(&spki).map_err(|_| ShareError::TransportKey)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| ShareError::TransportKey)?;
    let mut encrypted = vec![0; key.ciphertext_size()];
    let length = key
        .encrypt(&OAEP_SHA1_MGF1SHA1, share, &mut encrypted, None)
        .map_err(|_| ShareError::Size(share.len()))?
        .len();
    encrypted.truncate(length);
    Ok(encrypted)
}

/// Why a share did not reach its agent.
#[derive(Debug, thiserror::Error)]
enum ShareError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("`v` of the enrolment is not base64")]
    Encoding,
    #[error("the agent refuses it with status {0}")]
    Refused(u16),
    #[error("a share of {0} bytes is too long for the agent's transport key")]
    Size(usize),
    #[error("the agent's transport key is not an RSA public key in PEM")]
    TransportKey,
}
