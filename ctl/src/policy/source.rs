use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use troth_core::{
    ima::list_text,
    policy::{Envelope, PolicyDocument, PolicyError, PolicyFormat, RuntimePolicy, SigningKey},
};

use super::download::{Checksum, Url};
use crate::{config::Config, error::Error, output::now_ms};

/// Where a runtime policy comes from.
#[derive(Clone, Copy, Debug)]
enum RuntimeSource<'a> {
    /// Keylime's JSON, taken as it is after a check, or brought to the present version; or a list,
    /// recognised by its content.
    Json(&'a Path),
    /// The same, from a web server.
    Url(&'a Url, &'a Checksum),
    /// A flat allowlist and an exclude file.
    Allowlist(&'a Path, Option<&'a Path>),
    /// The files of an IMA list.
    ImaList(&'a Path),
}

/// The options of a command, of which clap lets one through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RuntimeOptions<'a> {
    pub(crate) json: Option<&'a PathBuf>,
    pub(crate) url: Option<&'a Url>,
    pub(crate) checksum: Option<&'a Checksum>,
    pub(crate) allowlist: Option<&'a PathBuf>,
    pub(crate) exclude: Option<&'a PathBuf>,
    pub(crate) ima_list: Option<&'a PathBuf>,
    /// PEM of the key that must have signed the policy.
    pub(crate) sig_key: Option<&'a PathBuf>,
}

/// A runtime policy that was checked here, as the verifier gets it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct RuntimeText {
    /// JSON of the policy, or of the envelope that it came in.
    pub(crate) text: String,
    /// base64 of the PEM of the key that signed the envelope.
    pub(crate) key: Option<String>,
}

impl<'a> RuntimeOptions<'a> {
    /// The policy, which the verifier will be able to compile; `None` if no source was named.
    pub(crate) async fn read(self, config: &Config) -> Result<Option<RuntimeText>, Error> {
        let Some(source) = self.source() else {
            return Ok(None);
        };
        let key = self.sig_key.map(|path| read_file(path)).transpose()?;
        let text = source.text(config).await?;
        let unusable = |source_error: PolicyError| Error::Policy {
            what: format!("runtime policy from {}", source.place()),
            source: source_error,
        };
        let signature = |reason| Error::PolicySignature {
            place: source.place(),
            reason,
        };
        let foreign = |reason: &str| Error::ForeignSigner {
            place: source.place(),
            reason: reason.to_owned(),
        };
        let envelope = Envelope::parse(text.as_bytes()).map_err(unusable)?;
        let json = match (&envelope, key.as_deref()) {
            (None, None) => text.as_bytes(),
            (Some(envelope), Some(pem)) => {
                let signed = SigningKey::parse(pem).map(|key| envelope.is_signed_by(&key));
                if !signed.map_err(|error| signature(format!("the given key: {error}")))? {
                    let reason = "no signature of the policy is by this key, or it was changed";
                    return Err(foreign(reason));
                }
                envelope.payload()
            }
            (Some(_), None) => {
                return Err(signature(
                    "the policy is signed: name its signer's key".to_owned(),
                ));
            }
            (None, Some(_)) => return Err(foreign("the policy is not signed")),
        };
        RuntimePolicy::compile(json).map_err(unusable)?;
        Ok(Some(RuntimeText {
            text,
            key: key.map(|pem| BASE64_STANDARD.encode(pem)),
        }))
    }

    /// The source that was named, if one was.
    fn source(self) -> Option<RuntimeSource<'a>> {
        let exclude = self.exclude.map(PathBuf::as_path);
        let url = self.url.zip(self.checksum);
        self.json
            .map(|path| RuntimeSource::Json(path))
            .or_else(|| url.map(|(url, checksum)| RuntimeSource::Url(url, checksum)))
            .or_else(|| {
                self.allowlist
                    .map(|path| RuntimeSource::Allowlist(path, exclude))
            })
            .or_else(|| self.ima_list.map(|path| RuntimeSource::ImaList(path)))
    }
}

impl RuntimeSource<'_> {
    async fn text(self, config: &Config) -> Result<String, Error> {
        let now = now_ms() / 1000;
        let made = match self {
            Self::Json(path) => present_version(read_ima_list(path)?, now),
            Self::Url(url, checksum) => {
                let bytes = url.fetch(checksum, config.request_timeout.0).await?;
                return Ok(lossy(bytes));
            }
            Self::Allowlist(path, exclude) => {
                let exclude = exclude.map(read_text).transpose()?.unwrap_or_default();
                RuntimePolicy::json_from_allowlist(&read_text(path)?, &exclude, now)
            }
            Self::ImaList(path) => RuntimePolicy::json_from_ima_list(&read_ima_list(path)?, now),
        };
        made.map_err(|source| Error::Policy {
            what: format!("runtime policy from {}", self.place()),
            source,
        })
    }

    fn place(self) -> String {
        match self {
            Self::Json(path) | Self::Allowlist(path, _) | Self::ImaList(path) => {
                path.display().to_string()
            }
            Self::Url(url, _) => url.as_str().to_owned(),
        }
    }
}

/// The text of a policy as the verifier takes it: unchanged if it does.
fn present_version(text: String, now: u64) -> Result<String, PolicyError> {
    let document = match PolicyFormat::of(&text) {
        Some(PolicyFormat::Allowlist) => PolicyDocument::from_allowlist(&text, "", now)?,
        Some(PolicyFormat::ImaList) => PolicyDocument::from_ima_list(&text, now)?,
        Some(PolicyFormat::Runtime) if RuntimePolicy::compile(text.as_bytes()).is_err() => {
            PolicyDocument::parse_any_version(text.as_bytes(), now)?
        }
        // What is nothing known is named by the policy's reader.
        _ => return Ok(text),
    };
    Ok(document.to_json())
}

/// The text of a TPM policy that is given as JSON or as a file.
pub(crate) fn tpm_text(argument: &str) -> Result<String, Error> {
    if argument.trim_start().starts_with(['{', '[']) {
        Ok(argument.to_owned())
    } else {
        read_text(Path::new(argument))
    }
}

/// A whole file; `-` is standard input.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    bytes.map_err(|source| Error::ReadFile {
        path: path.to_owned(),
        source,
    })
}

/// The kernel's IMA list, ASCII or binary, as text; what is another text is left as it is.
pub(crate) fn read_ima_list(path: &Path) -> Result<String, Error> {
    let file = read_file(path)?;
    let list = list_text(&file).map_err(|error| Error::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(list.into_owned())
}

/// A whole file as text; what is not UTF-8 becomes U+FFFD.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    read_file(path).map(lossy)
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
