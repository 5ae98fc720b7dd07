/// `trothctl agent ...`.
mod agent;
/// `trothctl node ...`.
mod node;
/// `trothctl policy ...`.
mod policy;
/// `trothctl policy ...` for policies of files and of the verifier alike.
mod policy_file;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use troth_core::{appraise::Tomtou, identity::AgentId, policy::BootEngine};

pub(crate) use self::{
    agent::{
        AcceptArgs, AddArgs, AgentCommand, ContactArgs, EkArgs, EvidenceArgs, ExplainArgs,
        PolicyArgs, RemoveArgs, Until, UpdateArgs, WatchArgs,
    },
    node::{NodeArgs, NodeCommand, NodeEvidenceArgs, NodeQuoteArgs},
    policy::{
        BootFormat, CreateBootArgs, ImageArgs, ImportCommand, Kind, ListArgs, PolicyCommand,
        PolicyCreateCommand, RuntimeArgs, TreeArgs,
    },
    policy_file::{
        Backend, ConvertArgs, CreateTpmArgs, DiffArgs, MergeArgs, PolicyRef, RemovePolicyArgs,
        ShowArgs, SignArgs, SignerArgs, Target, VerifyArgs,
    },
};
use crate::{api::Endpoint, help};

/// Operate Troth: enrol Linux nodes for remote attestation and see which of them can be trusted
#[derive(Debug, Parser)]
#[command(
    name = "trothctl",
    version,
    long_about = help::LONG_ABOUT,
    after_help = help::AFTER_HELP,
    after_long_help = help::after_long_help(),
    disable_help_subcommand = true,
    infer_subcommands = false,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes. They override the configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Verifier to talk to, by default https://127.0.0.1:8881
    #[arg(
        long,
        global = true,
        env = "TROTH_VERIFIER",
        hide_env_values = true,
        value_name = "URL",
        value_parser = |text: &str| Endpoint::parse(text, 8881)
    )]
    pub(crate) verifier: Option<Endpoint>,
    /// Registrar to talk to, by default https://127.0.0.1:8891
    #[arg(
        long,
        global = true,
        env = "TROTH_REGISTRAR",
        hide_env_values = true,
        value_name = "URL",
        value_parser = |text: &str| Endpoint::parse(text, 8891)
    )]
    pub(crate) registrar: Option<Endpoint>,
    /// Directory with cacert.crt and the operator's client-cert.crt and client-private.pem, by
    /// default /var/lib/troth/cv_ca
    #[arg(
        long,
        global = true,
        env = "TROTH_CA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(crate) ca_dir: Option<PathBuf>,
    /// Read this file instead of trothctl.toml in /etc/troth, /run/troth and /usr/lib/troth
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON instead of text; errors become a JSON object on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Nodes under attestation: add, update, remove, reactivate, stop, status, explain, list, watch,
    /// evidence
    #[command(subcommand, arg_required_else_help = true)]
    Agent(AgentCommand),
    /// This host: what its agent does, evidence of its state, and whether it can be attested at all
    #[command(arg_required_else_help = true)]
    Node(NodeArgs),
    /// Nodes known to the registrar: their keys and contact address
    #[command(subcommand, arg_required_else_help = true)]
    Registrar(RegistrarCommand),
    /// Read a quote, a boot log or an IMA list from a file
    #[command(subcommand, arg_required_else_help = true)]
    Inspect(InspectCommand),
    /// Judge evidence that was kept, without any server; the exit status is the verdict
    #[command(long_about = help::APPRAISE)]
    Appraise(AppraiseArgs),
    /// The certificate authority that verifier, registrar and operator share
    #[command(subcommand, arg_required_else_help = true)]
    Ca(CaCommand),
    /// The configuration of this host's programs
    #[command(subcommand, arg_required_else_help = true)]
    Config(ConfigCommand),
    /// Policies: make them, and keep them at the verifier by name
    #[command(subcommand, arg_required_else_help = true)]
    Policy(PolicyCommand),
    /// Say what a finding means and what to do about it, by its id as logs have it
    #[command(long_about = help::EXPLAIN)]
    Explain {
        /// Id of a finding; without one, all are listed
        #[arg(value_name = "FINDING")]
        id: Option<String>,
    },
    /// Print the completion script of a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page, or write all manual pages to a directory
    Man {
        /// Existing directory that gets trothctl.1, trothctl-agent.1 and so on
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegistrarCommand {
    /// List the ids of all registered nodes
    List,
    /// Show a node's keys, certificates and contact address
    Show {
        /// Agent id
        #[arg(value_parser = agent_id)]
        id: AgentId,
    },
    /// Compare every node's EK and AK with those that another registrar has of it
    #[command(long_about = help::REGISTRAR_COMPARE)]
    Compare {
        /// The other registrar, e.g. the one that this one replaces
        #[arg(value_name = "URL", value_parser = |text: &str| Endpoint::parse(text, 8891))]
        with: Endpoint,
        /// Name that the other registrar's certificate must have, by default that in URL
        #[arg(long, value_name = "NAME")]
        tls_name: Option<String>,
    },
    /// Have the registrar forget a node, so that another TPM may register under its id
    Remove {
        /// Agent id
        #[arg(value_parser = agent_id)]
        id: AgentId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum InspectCommand {
    /// Print a quote's structures; with --ak, check its signature and PCR digest
    #[command(long_about = help::INSPECT_QUOTE)]
    Quote(QuoteArgs),
    /// Print a TCG boot log as a table, and the PCR values it replays to
    Eventlog(EventlogArgs),
    /// Summarise an IMA measurement list, and the PCR 10 values it replays to
    Ima(ImaArgs),
}

#[derive(Debug, Args)]
pub(crate) struct QuoteArgs {
    /// Quote string, or an agent's whole JSON answer; - is standard input
    pub(crate) file: PathBuf,
    /// The AK's TPM2B_PUBLIC, binary or base64: check the quote with it
    #[arg(long, value_name = "FILE")]
    pub(crate) ak: Option<PathBuf>,
    /// The nonce that was asked for
    #[arg(long, value_name = "TEXT", requires = "ak", group = "asked")]
    pub(crate) nonce: Option<String>,
    /// The nonce that was asked for, when it is not text
    #[arg(long, value_name = "HEX", requires = "ak", group = "asked", value_parser = hex_bytes)]
    pub(crate) nonce_hex: Option<HexBytes>,
}

#[derive(Debug, Args)]
pub(crate) struct EventlogArgs {
    /// Binary boot log (binary_bios_measurements), or base64 of one; - is standard input
    pub(crate) file: PathBuf,
    /// systemd's log of the same boot: show the phases, and which log speaks of which PCR
    #[arg(long, value_name = "FILE")]
    pub(crate) measure_log: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ImaArgs {
    /// IMA list (ascii_runtime_measurements, or binary_...); - is standard input
    pub(crate) file: PathBuf,
    /// Print every entry, not only the summary
    #[arg(long)]
    pub(crate) entries: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AppraiseArgs {
    /// Evidence bundles of one node, or directories of them; - is standard input
    #[arg(required = true, value_name = "BUNDLE|DIR")]
    pub(crate) bundles: Vec<PathBuf>,
    /// Runtime policy; of several, a bundle is judged by the one that it names
    #[arg(long, value_name = "FILE", visible_alias = "runtime-policy")]
    pub(crate) policy: Vec<PathBuf>,
    /// Boot policy: a file, or {} to demand only that the boot log replays; of several, the one
    /// that the bundle names
    #[arg(long, value_name = "FILE|{}", visible_alias = "mb-policy")]
    pub(crate) boot_policy: Vec<String>,
    /// Allowed PCR values instead of those in the bundle, as JSON or in a file
    #[arg(long, value_name = "FILE|JSON")]
    pub(crate) tpm_policy: Option<String>,
    /// Where none is given, judge by the policies in the bundle, and by what else it says it was
    /// judged by: boot engine, keys, violations, algorithms. Nobody signed that
    #[arg(long)]
    pub(crate) embedded_policies: bool,
    /// What judges a boot policy in Keylime's form: the verifier's measured_boot_policy_name
    #[arg(long, value_enum)]
    pub(crate) boot_engine: Option<Engine>,
    /// What violations of the IMA list are: the verifier's option of this name
    #[arg(long, value_enum)]
    pub(crate) tomtou: Option<Violations>,
    /// Count signatures of files by this key, as the verifier was told with the node: certificate,
    /// public or private key, PEM or DER, or Keylime's JSON of keys; repeat it for more
    #[arg(long, value_name = "FILE")]
    pub(crate) verification_key: Vec<PathBuf>,
    /// The AK that must have signed: its name in hexadecimal, as `registrar show` has it, or a file
    /// with its PEM or TPM2B_PUBLIC, binary or base64
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) ak: Option<String>,
    /// The nonce that the quote must be for
    #[arg(long, value_name = "TEXT")]
    pub(crate) nonce: Option<String>,
}

/// What judges a boot policy in Keylime's form.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Engine {
    /// Keylime's example; without --embedded-policies the default
    Example,
    /// Nothing: the log must replay
    AcceptAll,
    /// Nothing passes
    RejectAll,
}

impl From<Engine> for BootEngine {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Example => Self::Example,
            Engine::AcceptAll => Self::AcceptAll,
            Engine::RejectAll => Self::RejectAll,
        }
    }
}

/// What violations of the IMA list are.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Violations {
    /// Not judged; without --embedded-policies the default
    Ignore,
    /// A finding each
    Fail,
}

impl From<Violations> for Tomtou {
    fn from(violations: Violations) -> Self {
        match violations {
            Violations::Ignore => Self::Ignore,
            Violations::Fail => Self::Fail,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Show subject, serial number, validity and fingerprint of the CA and what it issued
    Show,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show each option of a program, its value, and the file and line, variable or credential that
    /// set it; --config names a file instead of all others
    #[command(long_about = help::CONFIG_SHOW)]
    Show(ConfigShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigShowArgs {
    /// The program
    #[arg(value_enum)]
    pub(crate) program: Program,
    /// Look for configuration files below this directory
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub(crate) root: Option<PathBuf>,
}

/// A program with a configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Program {
    /// troth-agent
    Agent,
    /// troth-verifier
    Verifier,
    /// troth-registrar
    Registrar,
    /// trothctl itself
    Ctl,
}

fn agent_id(text: &str) -> Result<AgentId, String> {
    AgentId::new(text).map_err(|error| error.to_string())
}

/// Bytes given as hex. (A plain `Vec` would be an option that takes many values.)
#[derive(Clone, Debug)]
pub(crate) struct HexBytes(pub(crate) Vec<u8>);

fn hex_bytes(text: &str) -> Result<HexBytes, String> {
    hex::decode(text)
        .map(HexBytes)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parses(words: &str) -> bool {
        Cli::try_parse_from(words.split(' ')).is_ok()
    }

    #[test]
    fn only_one_source_of_a_runtime_policy_is_taken() {
        assert!(!parses("trothctl agent add n --allowlist a --ima-list b"));
        assert!(!parses("trothctl policy import runtime n f --ima-list b"));
        for incomplete in [
            "trothctl policy create runtime",
            "trothctl policy import runtime n",
            "trothctl agent add n --exclude a",
            "trothctl agent add n --runtime-policy-url http://h/p",
        ] {
            assert!(!parses(incomplete), "{incomplete}");
        }
        assert!(!parses(&format!(
            "trothctl agent add n --runtime-policy-checksum {}",
            "ab".repeat(32)
        )));
    }

    #[test]
    fn an_update_drops_a_policy_or_names_one() {
        assert!(parses(
            "trothctl agent update n --no-runtime-policy --boot-policy {}"
        ));
        assert!(!parses(
            "trothctl agent update n --no-runtime-policy --ima-list f"
        ));
        assert!(!parses(
            "trothctl agent update n --no-runtime-policy --runtime-policy-name p"
        ));
        assert!(!parses(
            "trothctl agent update n --no-boot-policy --mb-policy {}"
        ));
    }

    #[test]
    fn keylimes_names_of_what_a_policy_is_made_of_are_taken() {
        assert!(parses(
            "trothctl policy create runtime --rootfs / --ramdisk-dir /boot --local-rpm-repo r \
             --algo sha256 --base-policy b --allowlist a --excludelist e \
             --ima-measurement-list m --ignored-keyrings .ima \
             --add-ima-signature-verification-key k"
        ));
        for incomplete in [
            "--exclude e",
            "--rootfs / --dry-run",
            "--rootfs / --sign-key k",
            "--ima-list m --cache c",
            "--rootfs / --files-only",
            "--rootfs / --algo md5",
        ] {
            let line = format!("trothctl policy create runtime {incomplete}");
            assert!(!parses(&line), "{incomplete}");
        }
    }

    #[test]
    fn keylimes_names_of_boot_policy_options_are_taken() {
        assert!(parses(
            "trothctl agent add n --mb-policy {} --mb-policy-name b"
        ));
    }
}
