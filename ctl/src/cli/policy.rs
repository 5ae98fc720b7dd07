use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::{
    help,
    policy::{Checksum, Url},
};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Make a policy
    #[command(subcommand, arg_required_else_help = true)]
    Create(PolicyCreateCommand),
    /// List the policies that the verifier keeps by name
    List {
        /// Only this kind
        #[arg(value_enum)]
        kind: Option<Kind>,
    },
    /// Show a policy that the verifier keeps, or save it to a file
    Show(ShowArgs),
    /// Check a policy and have the verifier keep it under a name
    #[command(subcommand, arg_required_else_help = true, long_about = help::POLICY_IMPORT)]
    Import(ImportCommand),
    /// Have the verifier forget a policy that no node uses
    Remove {
        /// Kind of the policy
        #[arg(value_enum)]
        kind: Kind,
        /// Name of the policy
        name: String,
    },
}

/// The kinds of policies that a verifier keeps by name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Kind {
    /// Which files may run
    Runtime,
    /// What the boot log must show
    Boot,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCreateCommand {
    /// Print a runtime policy (Keylime's JSON) made from an IMA list or an allowlist
    Runtime(RuntimeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RuntimeArgs {
    /// Allow exactly the files of this IMA measurement list; - is standard input
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "allowlist",
        required_unless_present = "allowlist"
    )]
    pub(crate) ima_list: Option<PathBuf>,
    /// Flat allowlist: lines of `DIGEST PATH`; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) allowlist: Option<PathBuf>,
    /// Regular expressions of paths to leave out, one a line
    #[arg(long, value_name = "FILE", requires = "allowlist")]
    pub(crate) exclude: Option<PathBuf>,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Kind of the policy
    #[arg(value_enum)]
    pub(crate) kind: Kind,
    /// Name of the policy
    pub(crate) name: String,
    /// Save the policy's text to this file, as the verifier has it; - is standard output
    #[arg(long, short, value_name = "FILE", conflicts_with = "json")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// Import a runtime policy
    Runtime(Box<ImportRuntimeArgs>),
    /// Import a boot policy
    Boot(ImportBootArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ImportRuntimeArgs {
    /// Name of the policy
    pub(crate) name: String,
    /// Keylime's JSON; - is standard input
    #[arg(group = "source", required_unless_present_any = ["url", "allowlist", "ima_list"])]
    pub(crate) file: Option<PathBuf>,
    /// Download it, by http or https; redirects are not followed
    #[arg(long, value_name = "URL", group = "source", requires = "checksum")]
    pub(crate) url: Option<Url>,
    /// SHA-256 of the file at --url
    #[arg(long, value_name = "HEX", requires = "url")]
    pub(crate) checksum: Option<Checksum>,
    /// Make it from a flat allowlist: lines of `DIGEST PATH`
    #[arg(long, value_name = "FILE", group = "source")]
    pub(crate) allowlist: Option<PathBuf>,
    /// Regular expressions of paths to leave out, one a line
    #[arg(long, value_name = "FILE", requires = "allowlist")]
    pub(crate) exclude: Option<PathBuf>,
    /// Make one that allows exactly the files of an IMA measurement list
    #[arg(long, value_name = "FILE", group = "source")]
    pub(crate) ima_list: Option<PathBuf>,
    /// The policy is signed (DSSE), and this ECDSA public key or certificate must have signed it
    #[arg(long, value_name = "PEM", conflicts_with_all = ["allowlist", "ima_list"])]
    pub(crate) sig_key: Option<PathBuf>,
    /// Replace a policy of this name, for all nodes that use it
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportBootArgs {
    /// Name of the policy
    pub(crate) name: String,
    /// A file, or {}
    #[arg(value_name = "FILE|{}")]
    pub(crate) policy: String,
    /// Replace a policy of this name, for all nodes that use it
    #[arg(long)]
    pub(crate) replace: bool,
}
