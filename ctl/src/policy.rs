/// Boot policies: made from logs, read from files.
mod boot;
/// Runtime policies made of a system's files, of packages, images and lists.
mod create;
/// Runtime policies from a web server, known by their checksum.
mod download;
/// Where a policy comes from: files, lists, texts of the command line.
mod source;
/// Policies that the verifier keeps by name.
mod stored;

use std::path::Path;

pub(crate) use self::{
    boot::boot,
    download::{Checksum, Url},
    source::{RuntimeOptions, RuntimeText, read_file, read_text, tpm},
    stored::{replace_runtime, text},
};
use crate::{
    cli::{Global, Kind, PolicyCommand, PolicyCreateCommand},
    config::Config,
    error::{Error, Exit},
    output::Output,
};

/// Runs `trothctl policy ...`.
pub(crate) async fn run(
    global: &Global,
    command: &PolicyCommand,
    out: &Output,
) -> Result<Exit, Error> {
    let config = Config::load(global)?;
    match command {
        PolicyCommand::Create(PolicyCreateCommand::Runtime(args)) => {
            create::runtime(args, out).await
        }
        PolicyCommand::Create(PolicyCreateCommand::Boot(args)) => boot::create(args, out),
        PolicyCommand::List { kind } => stored::list(&config, *kind, out).await,
        PolicyCommand::Show(args) => stored::show(&config, args, out).await,
        PolicyCommand::Import(command) => stored::import(&config, command, out).await,
        PolicyCommand::Remove { kind, name } => stored::remove(&config, *kind, name, out).await,
    }
}

impl Kind {
    /// The word before "policy".
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Runtime => "runtime",
            Self::Boot => "boot",
        }
    }
}

fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(|source| Error::WriteFile {
        path: path.to_owned(),
        source,
    })
}
