use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use troth_core::identity::AgentId;

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

/// Options that every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Verifier to talk to; the port defaults to 8881
    #[arg(
        long,
        global = true,
        env = "TROTH_VERIFIER",
        hide_env_values = true,
        value_name = "URL",
        default_value = "https://127.0.0.1:8881",
        value_parser = |text: &str| Endpoint::parse(text, 8881)
    )]
    pub(crate) verifier: Endpoint,
    /// Registrar to talk to; the port defaults to 8891
    #[arg(
        long,
        global = true,
        env = "TROTH_REGISTRAR",
        hide_env_values = true,
        value_name = "URL",
        default_value = "https://127.0.0.1:8891",
        value_parser = |text: &str| Endpoint::parse(text, 8891)
    )]
    pub(crate) registrar: Endpoint,
    /// Directory with cacert.crt and the operator's client-cert.crt and client-private.pem
    #[arg(
        long,
        global = true,
        env = "TROTH_CA_DIR",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "/var/lib/troth/cv_ca"
    )]
    pub(crate) ca_dir: PathBuf,
    /// Print JSON instead of text; errors become a JSON object on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Nodes under attestation: add, remove, reactivate, stop, status, list, watch
    #[command(subcommand, arg_required_else_help = true)]
    Agent(AgentCommand),
    /// Nodes known to the registrar: their keys and contact address
    #[command(subcommand, arg_required_else_help = true)]
    Registrar(RegistrarCommand),
    /// Read a quote, a boot log or an IMA list from a file
    #[command(subcommand, arg_required_else_help = true)]
    Inspect(InspectCommand),
    /// The certificate authority that verifier, registrar and operator share
    #[command(subcommand, arg_required_else_help = true)]
    Ca(CaCommand),
    /// Make policies
    #[command(subcommand, arg_required_else_help = true)]
    Policy(PolicyCommand),
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
pub(crate) enum AgentCommand {
    /// Check a registered node's identity and have the verifier attest it from now on
    #[command(long_about = help::AGENT_ADD)]
    Add(Box<AddArgs>),
    /// Have the verifier forget a node
    Remove(RemoveArgs),
    /// Have the verifier attest a node again that failed, was unreachable or was stopped
    Reactivate {
        /// Agent id
        #[arg(value_parser = agent_id)]
        id: AgentId,
    },
    /// Have the verifier stop attesting a node, and keep it enrolled
    Stop {
        /// Agent id
        #[arg(value_parser = agent_id)]
        id: AgentId,
    },
    /// Show one node: verdict, age, policies, and every finding; the exit status is the verdict
    Status {
        /// Agent id
        #[arg(value_parser = agent_id)]
        id: AgentId,
    },
    /// List all nodes with their verdicts
    List,
    /// Print a line whenever a node's state changes
    #[command(long_about = help::AGENT_WATCH)]
    Watch(WatchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Agent id, as `trothctl registrar list` shows it
    #[arg(value_parser = agent_id)]
    pub(crate) id: AgentId,
    /// Runtime policy: Keylime's JSON
    #[arg(
        long,
        value_name = "FILE",
        group = "runtime",
        help_heading = "Policies"
    )]
    pub(crate) runtime_policy: Option<PathBuf>,
    /// Runtime policy from a flat allowlist: lines of `DIGEST PATH`
    #[arg(
        long,
        value_name = "FILE",
        group = "runtime",
        help_heading = "Policies"
    )]
    pub(crate) allowlist: Option<PathBuf>,
    /// Regular expressions of paths to leave out, one a line
    #[arg(
        long,
        value_name = "FILE",
        requires = "allowlist",
        help_heading = "Policies"
    )]
    pub(crate) exclude: Option<PathBuf>,
    /// Runtime policy that allows exactly the files of an IMA measurement list
    #[arg(
        long,
        value_name = "FILE",
        group = "runtime",
        help_heading = "Policies"
    )]
    pub(crate) ima_list: Option<PathBuf>,
    /// Allowed PCR values, e.g. {"15": ["HEX", "HEX"]}
    #[arg(
        long,
        value_name = "JSON",
        default_value = "{}",
        help_heading = "Policies"
    )]
    pub(crate) tpm_policy: String,
    /// Boot policy: a file, or {} to demand only that the boot log replays to the quoted PCRs
    #[arg(long, value_name = "FILE|{}", help_heading = "Policies")]
    pub(crate) boot_policy: Option<String>,
    /// Accepted hash algorithms of quotes
    #[arg(
        long,
        value_name = "ALG",
        value_delimiter = ',',
        default_values = ["sha256", "sha384", "sha512"],
        help_heading = "Accepted algorithms"
    )]
    pub(crate) accept_hash: Vec<String>,
    /// Accepted AK algorithms
    #[arg(
        long,
        value_name = "ALG",
        value_delimiter = ',',
        default_values = ["rsa2048", "rsa3072", "rsa4096", "ecc256", "ecc384", "ecc521"],
        help_heading = "Accepted algorithms"
    )]
    pub(crate) accept_encryption: Vec<String>,
    /// Accepted signature schemes of quotes
    #[arg(
        long,
        value_name = "SCHEME",
        value_delimiter = ',',
        default_values = ["rsassa", "rsapss", "ecdsa"],
        help_heading = "Accepted algorithms"
    )]
    pub(crate) accept_signing: Vec<String>,
    /// Contact the agent here instead of at the registered address
    #[arg(long, value_name = "HOST")]
    pub(crate) address: Option<String>,
    /// Contact the agent at this port instead of the registered one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Agent id
    #[arg(value_parser = agent_id)]
    pub(crate) id: AgentId,
    /// Wait until a running attestation has ended and the node is gone
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Agent ids; all nodes when none is given
    #[arg(value_parser = agent_id)]
    pub(crate) id: Vec<AgentId>,
    /// End when every watched node is in this state
    #[arg(long, value_enum, value_name = "STATE")]
    pub(crate) until: Option<Until>,
    /// End after so many seconds, with exit status 8 if --until is not reached
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<std::time::Duration>,
    /// Time between two looks at the verifier, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "0.2", value_parser = seconds)]
    pub(crate) interval: std::time::Duration,
}

/// What `agent watch --until` waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Until {
    /// Every check passes. A node that fails ends the wait with exit status 3
    Trusted,
    /// A check fails
    Failed,
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
}

#[derive(Debug, Args)]
pub(crate) struct ImaArgs {
    /// ASCII list (ascii_runtime_measurements); - is standard input
    pub(crate) file: PathBuf,
    /// Print every entry, not only the summary
    #[arg(long)]
    pub(crate) entries: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Show subject, serial number, validity and fingerprint of the CA and what it issued
    Show,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Make a policy
    #[command(subcommand, arg_required_else_help = true)]
    Create(PolicyCreateCommand),
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

/// Seconds with a fraction; 0.01 s to about a year.
fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.01..=31_536_000.0).contains(&seconds) {
        return Err("must be between 0.01 and 31536000 seconds".to_owned());
    }
    Ok(std::time::Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn only_one_source_of_a_runtime_policy_is_taken() {
        let words = [
            "trothctl",
            "agent",
            "add",
            "n",
            "--allowlist",
            "a",
            "--ima-list",
            "b",
        ];
        assert!(Cli::try_parse_from(words).is_err());
        let words = ["trothctl", "agent", "add", "n", "--exclude", "a"];
        assert!(
            Cli::try_parse_from(words).is_err(),
            "--exclude belongs to --allowlist"
        );
        let words = ["trothctl", "policy", "create", "runtime"];
        assert!(Cli::try_parse_from(words).is_err());
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(
            seconds("0.5").unwrap(),
            std::time::Duration::from_millis(500)
        );
        for bad in ["0", "-1", "nan", "inf", "1e300", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
