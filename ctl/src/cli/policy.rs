use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use troth_core::tpm::HashAlgorithm;

use super::policy_file::{
    ConvertArgs, CreateTpmArgs, DiffArgs, MergeArgs, RemovePolicyArgs, ShowArgs, SignArgs,
    VerifyArgs,
};
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
    /// Show what a policy holds: of a file, or one that the verifier keeps
    #[command(long_about = help::POLICY_SHOW)]
    Show(ShowArgs),
    /// Show what distinguishes two policies; exit status 1 if something does
    #[command(long_about = help::POLICY_DIFF)]
    Diff(DiffArgs),
    /// Print a policy that allows what any of several policies allows
    #[command(long_about = help::POLICY_MERGE)]
    Merge(MergeArgs),
    /// Print a policy in another format: from lists, older versions and signed policies
    #[command(long_about = help::POLICY_CONVERT)]
    Convert(ConvertArgs),
    /// Sign a runtime policy (DSSE), or add a signature to a signed one
    #[command(long_about = help::POLICY_SIGN)]
    Sign(SignArgs),
    /// Check who signed a runtime policy
    #[command(long_about = help::POLICY_VERIFY)]
    Verify(VerifyArgs),
    /// Check a policy and have the verifier keep it under a name
    #[command(subcommand, arg_required_else_help = true, long_about = help::POLICY_IMPORT)]
    Import(ImportCommand),
    /// Have the verifier forget a policy that no node uses
    Remove(RemovePolicyArgs),
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
    /// Print a runtime policy (Keylime's JSON) made from a system's files, packages or lists
    #[command(long_about = help::POLICY_CREATE_RUNTIME)]
    Runtime(Box<RuntimeArgs>),
    /// Print a boot policy that allows the boot of a log, and no other
    Boot(CreateBootArgs),
    /// Print a TPM policy made of PCR values: of a quote, of `tpm2_pcrread`, or of this system
    #[command(long_about = help::POLICY_CREATE_TPM)]
    Tpm(CreateTpmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateBootArgs {
    /// TCG boot log, binary; - is standard input [default: this host's]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) event_log: Option<PathBuf>,
    /// systemd's log of what user space measured [default: this host's, with its boot log]
    #[arg(long, value_name = "FILE")]
    pub(crate) measure_log: Option<PathBuf>,
    /// Which kind of policy
    #[arg(long, value_enum, default_value_t = BootFormat::Troth)]
    pub(crate) format: BootFormat,
    /// The host boots without Secure Boot, and shall
    #[arg(long, short = 'i')]
    pub(crate) without_secureboot: bool,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Forms of a boot policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum BootFormat {
    /// A policy of ours, in TOML
    Troth,
    /// Keylime's reference state, JSON
    Keylime,
}

#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("sources").multiple(true).required(true)))]
pub(crate) struct RuntimeArgs {
    #[command(flatten, next_help_heading = "Files of a system")]
    pub(crate) tree: TreeArgs,
    #[command(flatten, next_help_heading = "Labels of its files")]
    pub(crate) label: LabelArgs,
    #[command(flatten, next_help_heading = "Packages")]
    pub(crate) packages: PackageArgs,
    #[command(flatten, next_help_heading = "Boot images")]
    pub(crate) images: ImageArgs,
    #[command(flatten, next_help_heading = "Lists")]
    pub(crate) lists: ListArgs,
    /// Hash algorithm, by default that of --base-policy or of the lists, else sha256
    #[arg(
        long,
        alias = "algo",
        value_name = "NAME",
        value_parser = hash_algorithm,
        help_heading = "Result"
    )]
    pub(crate) algorithm: Option<HashAlgorithm>,
    /// Succeed even if something cannot be read; it is told all the same
    #[arg(long, help_heading = "Result")]
    pub(crate) ignore_unreadable: bool,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE", help_heading = "Result")]
    pub(crate) output: Option<PathBuf>,
}

/// What is read of a system, and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct TreeArgs {
    /// Allow the files below this directory, by default /: a running system, a mounted image or a
    /// snapshot
    #[arg(
        long,
        alias = "rootfs",
        value_name = "DIR",
        group = "sources",
        num_args = 0..=1,
        default_missing_value = "/"
    )]
    pub(crate) root: Option<PathBuf>,
    /// Leave out this file or directory of it; repeat it for more
    #[arg(long, value_name = "PATH", requires = "root")]
    pub(crate) skip: Vec<PathBuf>,
    /// Also files that do not belong to root
    #[arg(long, requires = "root")]
    pub(crate) all_owners: bool,
    /// Keep digests in this file, and read only what has changed since
    #[arg(long, value_name = "FILE", requires = "root")]
    pub(crate) cache: Option<PathBuf>,
}

/// What is written to the files themselves.
#[derive(Clone, Debug, Args)]
pub(crate) struct LabelArgs {
    /// Write the digest of each file's content to its extended attribute security.ima, for which
    /// one must be root
    #[arg(long, requires = "root")]
    pub(crate) write_xattr: bool,
    /// Write signatures by this private key instead (PEM, RSA or EC); its certificate may be in the
    /// same file
    #[arg(long, value_name = "FILE", requires = "write_xattr")]
    pub(crate) sign_key: Option<PathBuf>,
    /// Only tell how many would be written
    #[arg(long, requires = "write_xattr")]
    pub(crate) dry_run: bool,
}

/// What installs a system.
#[derive(Clone, Debug, Args)]
pub(crate) struct PackageArgs {
    /// Allow the files of this RPM package, or of all packages below this directory, by the digests
    /// in their headers; repeat it for more
    #[arg(
        long,
        alias = "local-rpm-repo",
        value_name = "FILE|DIR",
        group = "sources"
    )]
    pub(crate) rpm: Vec<PathBuf>,
}

/// What a system boots from.
#[derive(Clone, Debug, Args)]
pub(crate) struct ImageArgs {
    /// Allow the files of this initrd; repeat it for more
    #[arg(long, value_name = "FILE", group = "sources")]
    pub(crate) initrd: Vec<PathBuf>,
    /// Allow the files of the initrd in this unified kernel image; repeat it for more
    #[arg(long, value_name = "FILE", group = "sources")]
    pub(crate) uki: Vec<PathBuf>,
    /// Allow the files of all initrds in this directory: files named initr*
    #[arg(long, value_name = "DIR", group = "sources")]
    pub(crate) ramdisk_dir: Vec<PathBuf>,
}

impl ImageArgs {
    /// Is none named?
    pub(crate) fn is_empty(&self) -> bool {
        self.initrd.is_empty() && self.uki.is_empty() && self.ramdisk_dir.is_empty()
    }
}

/// What was written down before.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListArgs {
    /// Begin with this runtime policy
    #[arg(long, value_name = "FILE", group = "sources")]
    pub(crate) base_policy: Option<PathBuf>,
    /// Allow the files of this IMA measurement list; - is standard input
    #[arg(
        long,
        alias = "ima-measurement-list",
        value_name = "FILE",
        group = "sources"
    )]
    pub(crate) ima_list: Option<PathBuf>,
    /// Allow the files of a flat allowlist: lines of `DIGEST PATH`; - is standard input
    #[arg(long, value_name = "FILE", group = "sources")]
    pub(crate) allowlist: Option<PathBuf>,
    /// Regular expressions of paths to leave out, one a line
    #[arg(long, alias = "excludelist", value_name = "FILE")]
    pub(crate) exclude: Option<PathBuf>,
    /// Of the IMA list only the files, neither keys nor measured buffers
    #[arg(long, requires = "ima_list")]
    pub(crate) files_only: bool,
    /// Accept the keys of this keyring unseen, * those of all; repeat it for more
    #[arg(long, alias = "ignored-keyrings", value_name = "KEYRING")]
    pub(crate) ignored_keyring: Vec<String>,
    /// Accept files that the holder of this key signed: certificate, public or private key, PEM or
    /// DER; repeat it for more
    #[arg(
        long,
        value_name = "FILE",
        alias = "add-ima-signature-verification-key"
    )]
    pub(crate) verification_key: Vec<PathBuf>,
}

fn hash_algorithm(name: &str) -> Result<HashAlgorithm, String> {
    HashAlgorithm::from_name(name).ok_or_else(|| {
        let names: Vec<_> = HashAlgorithm::ALL.map(HashAlgorithm::name).into();
        format!("one of {}", names.join(", "))
    })
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
    /// Keylime's JSON of any version, signed or not, a flat allowlist, or an IMA measurement list; -
    /// is standard input
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
    /// A file (TOML, or JSON as Keylime's refstate), or {}
    #[arg(value_name = "FILE|{}")]
    pub(crate) policy: String,
    /// Replace a policy of this name, for all nodes that use it
    #[arg(long)]
    pub(crate) replace: bool,
}
