use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::Serialize;
use troth_core::policy::{Envelope, PolicySigner, RuntimePolicy};

use super::{input, is_stdout, read_file, same_file, write_new, write_output};
use crate::{
    cli::{Backend, SignArgs},
    config::Config,
    error::{Error, Exit},
    output::Output,
};

/// Common name of a certificate that nobody issued.
const SUBJECT: &str = "Troth policy signer";
/// By how much clocks may differ.
const BACKDATE: Duration = Duration::from_secs(86_400);

/// `policy sign --json`, with --output.
#[derive(Debug, Serialize)]
struct View {
    keyid: String,
    public_key: Option<String>,
    signatures: usize,
}

/// Runs `trothctl policy sign`.
pub(super) async fn run(config: &Config, args: &SignArgs, out: &Output) -> Result<Exit, Error> {
    let place = args.policy.to_string();
    let unusable = |source| Error::Policy {
        what: format!("policy from {place}"),
        source,
    };
    refuse_inputs(args)?;
    // Its bytes are what is signed: not a form that was read and written again.
    let text = input::text(config, &args.policy).await?;
    let mut envelope = match Envelope::parse(text.as_bytes()).map_err(unusable)? {
        Some(envelope) => envelope,
        None => Envelope::new(text.into_bytes()).map_err(unusable)?,
    };
    RuntimePolicy::compile(envelope.payload()).map_err(unusable)?;
    let signer = signer(args)?;
    envelope.sign(&signer).map_err(unusable)?;
    // A key that was made meanwhile may be what a link leads to.
    refuse_inputs(args)?;
    write_output(args.output.as_deref(), &envelope.to_json(), out)?;
    if !is_stdout(args.output.as_deref()) {
        let view = View {
            keyid: signer.keyid().to_owned(),
            public_key: signer.public_pem(),
            signatures: envelope.signatures().len(),
        };
        out.result(&view, || {
            let public = view.public_key.as_deref().unwrap_or_default();
            let count = match view.signatures {
                1 => "The policy has one signature now".to_owned(),
                count => format!("The policy has {count} signatures now"),
            };
            format!("{count}. The signer's public key, which --sig-key and --key take:\n{public}")
        })?;
    }
    Ok(Exit::Success)
}

/// The policy must not be written where the key or a certificate is, nor a certificate to the key.
fn refuse_inputs(args: &SignArgs) -> Result<(), Error> {
    let files = |paths: [&Option<PathBuf>; 4]| paths.into_iter().flatten().cloned().collect();
    let kept: Vec<PathBuf> = files([&args.key, &args.new_key, &args.cert, &args.cert_out]);
    let output = args.output.as_ref().filter(|path| !is_stdout(Some(path)));
    match output.and_then(|output| kept.iter().find(|kept| same_file(output, kept))) {
        Some(kept) => Err(Error::Usage {
            option: "--output",
            reason: format!(
                "{} has the key or its certificate: nothing is written",
                kept.display()
            ),
        }),
        None => Ok(()),
    }
}

fn signer(args: &SignArgs) -> Result<PolicySigner, Error> {
    let malformed = |path: &Path, reason: String| Error::Malformed {
        path: path.to_owned(),
        reason,
    };
    let certified = args.cert.is_some() || args.cert_out.is_some();
    match args.backend {
        Some(Backend::X509) if !certified => {
            return Err(Error::Usage {
                option: "--backend x509",
                reason: "it needs a certificate: --cert names one, --cert-out makes one".to_owned(),
            });
        }
        Some(Backend::Ecdsa) if certified => {
            return Err(Error::Usage {
                option: "--backend ecdsa",
                reason: "it has no use for a certificate".to_owned(),
            });
        }
        _ => {}
    }
    let (path, pem) = match (&args.key, &args.new_key) {
        (Some(path), _) => (path, read_file(path)?),
        (None, Some(path)) => (path, new_key(path)?.into_bytes()),
        // clap demands one of them.
        (None, None) => {
            return Err(Error::Usage {
                option: "--key",
                reason: "missing".to_owned(),
            });
        }
    };
    let signer = PolicySigner::parse(&pem).map_err(|error| malformed(path, error.to_string()))?;
    let (certificate_path, certificate) = match (&args.cert, &args.cert_out) {
        (Some(path), _) => (path, read_file(path)?),
        (None, Some(path)) => {
            let certificate =
                self_signed(&signer, args.cert_days).map_err(|reason| malformed(path, reason))?;
            write_new("--cert-out", path, &certificate, 0o666)?;
            (path, certificate.into_bytes())
        }
        (None, None) => return Ok(signer),
    };
    signer
        .with_certificate(&certificate)
        .map_err(|error| malformed(certificate_path, error.to_string()))
}

/// Makes a key that only its owner can read. An older file is never overwritten.
fn new_key(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::WriteFile {
        path: path.to_owned(),
        source,
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| failed(std::io::Error::other(error)))?;
    let pem = key.serialize_pem();
    write_new("--new-key", path, &pem, 0o600)?;
    Ok(pem)
}

/// A certificate that its own key signs, in PEM; the error says why not.
fn self_signed(signer: &PolicySigner, days: u16) -> Result<String, String> {
    let pkcs8 = signer.to_pkcs8().ok_or("the key cannot be written")?;
    let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))
        .map_err(|error| error.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, SUBJECT);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + now;
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::from_secs(86_400) * u32::from(days);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let certificate = params
        .self_signed(&key)
        .map_err(|error| error.to_string())?;
    Ok(certificate.pem())
}
