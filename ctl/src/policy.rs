use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use troth_core::policy::{BootPolicy, RuntimePolicy};

use crate::{
    cli::RuntimeArgs,
    error::{Error, Exit},
    output::{Output, now_ms},
};

/// Where a runtime policy comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RuntimeSource<'a> {
    /// Keylime's JSON, taken as it is after a check.
    Json(&'a Path),
    /// A flat allowlist and an exclude file.
    Allowlist(&'a Path, Option<&'a Path>),
    /// The files of an IMA list.
    ImaList(&'a Path),
}

impl<'a> RuntimeSource<'a> {
    /// From the three options of which clap lets one through.
    pub(crate) fn from_options(
        json: Option<&'a PathBuf>,
        allowlist: Option<&'a PathBuf>,
        exclude: Option<&'a PathBuf>,
        ima_list: Option<&'a PathBuf>,
    ) -> Option<Self> {
        json.map(|path| Self::Json(path))
            .or_else(|| allowlist.map(|path| Self::Allowlist(path, exclude.map(PathBuf::as_path))))
            .or_else(|| ima_list.map(|path| Self::ImaList(path)))
    }

    /// The policy as JSON text that the verifier will be able to compile.
    pub(crate) fn json(self) -> Result<String, Error> {
        let (path, made) = match self {
            Self::Json(path) => (path, Ok(read_text(path)?)),
            Self::Allowlist(path, exclude) => {
                let exclude = exclude.map(read_text).transpose()?.unwrap_or_default();
                let list = read_text(path)?;
                (
                    path,
                    RuntimePolicy::json_from_allowlist(&list, &exclude, now_ms() / 1000),
                )
            }
            Self::ImaList(path) => (
                path,
                RuntimePolicy::json_from_ima_list(&read_text(path)?, now_ms() / 1000),
            ),
        };
        let unusable = |source| Error::Policy {
            what: format!("runtime policy from {}", path.display()),
            source,
        };
        let json = made.map_err(unusable)?;
        RuntimePolicy::compile(json.as_bytes()).map_err(unusable)?;
        Ok(json)
    }
}

/// The text of a boot policy given as `{...}` or as a file, and the policy itself.
pub(crate) fn boot(argument: Option<&str>) -> Result<(Option<String>, BootPolicy), Error> {
    let text = match argument {
        None => None,
        Some(text) if text.trim_start().starts_with('{') => Some(text.to_owned()),
        Some(path) => Some(read_text(Path::new(path))?),
    };
    let policy = BootPolicy::parse(text.as_deref()).map_err(|source| Error::Policy {
        what: "--boot-policy".to_owned(),
        source,
    })?;
    Ok((text, policy))
}

/// Runs `trothctl policy create runtime`.
pub(crate) fn create_runtime(args: &RuntimeArgs, out: &Output) -> Result<Exit, Error> {
    let source = RuntimeSource::from_options(
        None,
        args.allowlist.as_ref(),
        args.exclude.as_ref(),
        args.ima_list.as_ref(),
    );
    // clap demands one of the two options.
    let mut json = source
        .map(RuntimeSource::json)
        .transpose()?
        .unwrap_or_default();
    json.push('\n');
    match &args.output {
        None => out.text(&json)?,
        Some(path) => std::fs::write(path, json).map_err(|source| Error::WriteFile {
            path: path.clone(),
            source,
        })?,
    }
    Ok(Exit::Success)
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
    let bytes = read_file(path)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}
