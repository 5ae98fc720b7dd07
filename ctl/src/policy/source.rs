use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use troth_core::policy::{BootPolicy, RuntimePolicy};

use super::download::{Checksum, Url};
use crate::{config::Config, error::Error, output::now_ms};

/// Where a runtime policy comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RuntimeSource<'a> {
    /// Keylime's JSON, taken as it is after a check.
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
}

impl<'a> RuntimeOptions<'a> {
    /// The source that was named, if one was.
    pub(crate) fn source(self) -> Option<RuntimeSource<'a>> {
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
    /// The policy as JSON text that the verifier will be able to compile.
    pub(crate) async fn json(self, config: &Config) -> Result<String, Error> {
        let unusable = |source| Error::Policy {
            what: format!("runtime policy from {}", self.place()),
            source,
        };
        let now = now_ms() / 1000;
        let made = match self {
            Self::Json(path) => Ok(read_text(path)?),
            Self::Url(url, checksum) => {
                Ok(lossy(url.fetch(checksum, config.request_timeout.0).await?))
            }
            Self::Allowlist(path, exclude) => {
                let exclude = exclude.map(read_text).transpose()?.unwrap_or_default();
                RuntimePolicy::json_from_allowlist(&read_text(path)?, &exclude, now)
            }
            Self::ImaList(path) => RuntimePolicy::json_from_ima_list(&read_text(path)?, now),
        };
        let json = made.map_err(unusable)?;
        RuntimePolicy::compile(json.as_bytes()).map_err(unusable)?;
        Ok(json)
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

/// The text of a boot policy that is given as `{...}`, as a file, or as `default`.
pub(crate) fn boot(argument: &str, config: &Config) -> Result<String, Error> {
    let text = match argument {
        "default" => match &config.mb_refstate {
            Some(path) => read_text(path)?,
            None => {
                return Err(Error::Option {
                    option: "--boot-policy default",
                    reason: "mb_refstate is not configured".to_owned(),
                });
            }
        },
        text if text.trim_start().starts_with('{') => text.to_owned(),
        path => read_text(Path::new(path))?,
    };
    BootPolicy::parse(Some(&text)).map_err(|source| Error::Policy {
        what: format!("boot policy {argument}"),
        source,
    })?;
    Ok(text)
}

/// The text of a TPM policy that is given as JSON or as a file.
pub(crate) fn tpm(argument: &str) -> Result<String, Error> {
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

/// A whole file as text. File names in lists are bytes: what is not UTF-8 becomes U+FFFD, as it
/// does on its way through the JSON of an agent's answer.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    read_file(path).map(lossy)
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
