use std::path::{Path, PathBuf};

use serde::Serialize;
use troth_core::{
    identity::{Expiry, Trust, TrustAnchors},
    policy::{Envelope, EnvelopeSignature, SigningKey},
    tpm::HashAlgorithm,
};
use troth_daemon::tls;

use super::{
    input::{Content, Input},
    read_file,
};
use crate::{
    ca::CertificateView,
    cli::{SignerArgs, VerifyArgs},
    config::Config,
    error::{Error, Exit},
    output::{Output, Tone, clean, now_ms},
};

/// `policy verify --json`.
#[derive(Debug, Serialize)]
struct View {
    policy: String,
    /// Is one of the signatures by one of the signers?
    verified: bool,
    /// Hex SHA-256 of the policy inside.
    payload_sha256: Option<String>,
    signatures: Vec<Checked>,
}

/// A signature, and what became of it.
#[derive(Debug, Serialize)]
pub(super) struct Checked {
    keyid: String,
    /// What the key id is, if it is a certificate.
    certificate: Option<CertificateView>,
    /// Whose it is: the file of the key, or the way to the CA. null: nobody's that was named.
    by: Option<String>,
    /// Why it is nobody's.
    reason: Option<String>,
}

impl Checked {
    /// Is it by one of the signers?
    pub(super) fn verified(&self) -> bool {
        self.by.is_some()
    }
}

/// Whose signatures count.
#[derive(Debug)]
pub(super) struct Signers {
    keys: Vec<(PathBuf, SigningKey)>,
    anchors: TrustAnchors,
}

impl Signers {
    pub(super) fn load(args: &SignerArgs) -> Result<Self, Error> {
        let malformed = |path: &Path, reason: String| Error::Malformed {
            path: path.to_owned(),
            reason,
        };
        let key = |path: &PathBuf| {
            SigningKey::parse(&read_file(path)?)
                .map(|key| (path.clone(), key))
                .map_err(|error| malformed(path, error.to_string()))
        };
        let mut anchors = TrustAnchors::default();
        for path in &args.cas {
            let certificates =
                tls::load_certificates(path).map_err(|error| malformed(path, error.to_string()))?;
            for certificate in certificates {
                anchors
                    .add(&certificate)
                    .map_err(|error| malformed(path, error.to_string()))?;
            }
        }
        Ok(Self {
            keys: args.keys.iter().map(key).collect::<Result<_, _>>()?,
            anchors,
        })
    }

    /// None named?
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.anchors.is_empty()
    }

    /// Every signature of an envelope, checked.
    pub(super) fn checked(&self, envelope: &Envelope) -> Vec<Checked> {
        let signatures = envelope.signatures().iter();
        signatures.map(|one| self.check(envelope, one)).collect()
    }

    fn check(&self, envelope: &Envelope, signature: &EnvelopeSignature) -> Checked {
        let certificate = signature
            .certificate()
            .and_then(|der| CertificateView::new(&der).ok());
        let mut keys = self.keys.iter();
        let by_key = keys.find(|(_, key)| envelope.verifies(signature, key));
        let (by, reason) = match by_key {
            Some((path, _)) => (Some(format!("the key of {}", path.display())), None),
            None if self.anchors.is_empty() => (None, Some("none of the keys made it".to_owned())),
            None => {
                let trust = Trust {
                    anchors: &self.anchors,
                    at: now_ms() / 1000,
                    expired: Expiry::Refuse,
                };
                match envelope.certified_signer(signature, &trust) {
                    Ok(signer) => (Some(signer.path().join(", issued by ")), None),
                    Err(error) => (None, Some(error.to_string())),
                }
            }
        };
        Checked {
            keyid: signature.keyid().to_owned(),
            certificate,
            by,
            reason,
        }
    }
}

/// Runs `trothctl policy verify`.
pub(super) async fn run(config: &Config, args: &VerifyArgs, out: &Output) -> Result<Exit, Error> {
    let signers = Signers::load(&args.signers)?;
    if signers.is_empty() {
        return Err(Error::Usage {
            option: "--key or --ca",
            reason: "name whose signature counts".to_owned(),
        });
    }
    let input = Input::read(config, &args.policy).await?;
    let (signatures, payload_sha256) = match &input.content {
        Content::Runtime {
            envelope: Some(envelope),
            ..
        } => (
            signers.checked(envelope),
            Some(
                HashAlgorithm::Sha256
                    .digest(&[envelope.payload()])
                    .to_string(),
            ),
        ),
        _ => (Vec::new(), None),
    };
    let view = View {
        policy: input.place,
        verified: signatures.iter().any(Checked::verified),
        payload_sha256,
        signatures,
    };
    out.result(&view, || view.describe(out))?;
    Ok(if view.verified {
        Exit::Success
    } else {
        Exit::Untrusted
    })
}

impl View {
    fn describe(&self, out: &Output) -> String {
        let (tone, verdict) = match (self.verified, &self.payload_sha256) {
            (true, _) => (Tone::Good, "signed by one of these signers"),
            (false, Some(_)) => (Tone::Bad, "NOT signed by any of these signers"),
            (false, None) => (Tone::Bad, "NOT signed at all"),
        };
        let mut text = format!("{}: {}\n", clean(&self.policy), out.paint(tone, verdict));
        if let Some(sha256) = &self.payload_sha256 {
            text.push_str(&out.fields(&[("Policy inside", format!("SHA-256 {sha256}"))]));
        }
        for (index, one) in self.signatures.iter().enumerate() {
            let mut fields = vec![("Key id", key_id(&one.keyid, one.certificate.as_ref()))];
            fields.push(match (&one.by, &one.reason) {
                (Some(by), _) => ("By", clean(by)),
                (None, reason) => (
                    "Nobody's",
                    clean(reason.as_deref().unwrap_or("its key is not among them")),
                ),
            });
            text.push_str(&format!(
                "Signature {} of {}\n",
                index + 1,
                self.signatures.len()
            ));
            text.push_str(&out.fields(&fields));
        }
        text
    }
}

/// A key id for people.
pub(super) fn key_id(keyid: &str, certificate: Option<&CertificateView>) -> String {
    match certificate {
        Some(certificate) => format!("certificate {}", certificate.summary()),
        None if keyid.is_empty() => "none".to_owned(),
        None => clean(&keyid.chars().take(80).collect::<String>()),
    }
}
