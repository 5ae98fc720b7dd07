use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{HexBytes, hex_bytes};
use crate::help;

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Socket of the agent
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = troth_ipc::client::AGENT_ADDRESS,
        help_heading = "Options"
    )]
    pub(crate) address: PathBuf,
    #[command(subcommand)]
    pub(crate) command: NodeCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Show what the agent does; the exit status says whether it attests this host
    Status,
    /// Print a line whenever the agent's state changes, and whenever it makes a quote
    Watch,
    /// Have this host's TPM quote its PCRs, and check the quote
    #[command(long_about = help::NODE_QUOTE)]
    Quote(NodeQuoteArgs),
    /// Save evidence of this host's state now, for `trothctl appraise`
    #[command(long_about = help::NODE_EVIDENCE)]
    Evidence(NodeEvidenceArgs),
    /// Have the agent register this host again, at once
    Register,
    /// List the actions that this host may be told to run
    Actions,
    /// Say whether this host can be attested, and what to switch on; needs no agent
    #[command(long_about = help::NODE_CHECK)]
    Check {
        /// Look at the files below this directory
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NodeQuoteArgs {
    /// Quote over this nonce of 1 to 64 bytes instead of a random one
    #[arg(long, value_name = "TEXT", group = "asked")]
    pub(crate) nonce: Option<String>,
    /// The same, when it is not text
    #[arg(long, value_name = "HEX", group = "asked", value_parser = hex_bytes)]
    pub(crate) nonce_hex: Option<HexBytes>,
    /// PCRs to be quoted, by default all; PCR 16, which binds the agent's key, comes in any case
    #[arg(long, value_name = "PCR,...", value_delimiter = ',',
          value_parser = clap::value_parser!(u8).range(0..24))]
    pub(crate) pcrs: Vec<u8>,
}

#[derive(Debug, Args)]
pub(crate) struct NodeEvidenceArgs {
    /// Quote over this nonce, up to 64 printable characters, instead of a random one
    #[arg(long, value_name = "TEXT")]
    pub(crate) nonce: Option<String>,
    /// File to be written, for its owner alone
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}
