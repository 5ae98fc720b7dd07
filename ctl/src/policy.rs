/// Boot policies: made from logs, read from files.
mod boot;
/// Other forms of a policy.
mod convert;
/// Runtime policies made of a system's files, of packages, images and lists.
mod create;
/// What distinguishes two policies.
mod diff;
/// Runtime policies from a web server, known by their checksum.
mod download;
/// Policies of the command line, recognised by their content.
mod input;
/// Several policies as one.
mod merge;
/// What a policy holds.
mod show;
/// Signatures of runtime policies.
mod sign;
/// Where a policy comes from: files, lists, texts of the command line.
mod source;
/// Policies that the verifier keeps by name.
mod stored;
/// TPM policies made of PCR values.
mod tpm;
/// Whose signatures a runtime policy has.
mod verify;
/// Results in files.
mod write;

use self::write::{is_stdout, same_file, write_new, write_output};
pub(crate) use self::{
    boot::{boot, boot_json, measure_log},
    create::verification_keys,
    download::{Checksum, Url},
    source::{RuntimeOptions, RuntimeText, read_file, read_ima_list, read_text, tpm_text},
    stored::{replace_runtime, text},
    write::write_private,
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
        PolicyCommand::Create(PolicyCreateCommand::Tpm(args)) => tpm::create(args, out),
        PolicyCommand::Diff(args) => diff::run(&config, args, out).await,
        PolicyCommand::Merge(args) => merge::run(&config, args, out).await,
        PolicyCommand::Convert(args) => convert::run(&config, args, out).await,
        PolicyCommand::Sign(args) => sign::run(&config, args, out).await,
        PolicyCommand::Verify(args) => verify::run(&config, args, out).await,
        PolicyCommand::List { kind } => stored::list(&config, *kind, out).await,
        PolicyCommand::Show(args) => show::run(&config, args, out).await,
        PolicyCommand::Import(command) => stored::import(&config, command, out).await,
        PolicyCommand::Remove(args) => stored::remove(&config, args, out).await,
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
