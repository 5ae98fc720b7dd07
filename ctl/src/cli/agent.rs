use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use troth_core::identity::AgentId;

use super::agent_id;
use crate::{
    help,
    policy::{Checksum, Url},
};

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Check a registered node's identity and have the verifier attest it from now on
    #[command(long_about = help::AGENT_ADD)]
    Add(Box<AddArgs>),
    /// Change policies, accepted algorithms or address of an enrolled node; the rest is kept
    #[command(long_about = help::AGENT_UPDATE)]
    Update(Box<UpdateArgs>),
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
    /// Explain why a node is not trusted, finding by finding, with what to do and to run next
    #[command(long_about = help::AGENT_EXPLAIN)]
    Explain(ExplainArgs),
    /// List all nodes with their verdicts
    List,
    /// Print a line whenever a node's state changes
    #[command(long_about = help::AGENT_WATCH)]
    Watch(WatchArgs),
    /// List the evidence of a node that the verifier keeps, or save it for `trothctl appraise`
    Evidence(EvidenceArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Agent id, as `trothctl registrar list` shows it
    #[arg(value_parser = agent_id)]
    pub(crate) id: AgentId,
    #[command(flatten)]
    pub(crate) policies: PolicyArgs,
    #[command(flatten)]
    pub(crate) accept: AcceptArgs,
    #[command(flatten)]
    pub(crate) contact: ContactArgs,
    #[command(flatten)]
    pub(crate) ek: EkArgs,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Agent id, as `trothctl agent list` shows it
    #[arg(value_parser = agent_id)]
    pub(crate) id: AgentId,
    #[command(flatten)]
    pub(crate) policies: PolicyArgs,
    /// Judge no files any more
    #[arg(
        long,
        conflicts_with_all = ["runtime", "runtime_policy_name"],
        help_heading = "Policies"
    )]
    pub(crate) no_runtime_policy: bool,
    /// Judge no boot log any more
    #[arg(
        long,
        conflicts_with_all = ["boot_policy", "boot_policy_name"],
        help_heading = "Policies"
    )]
    pub(crate) no_boot_policy: bool,
    #[command(flatten)]
    pub(crate) accept: AcceptArgs,
    #[command(flatten)]
    pub(crate) contact: ContactArgs,
    #[command(flatten)]
    pub(crate) ek: EkArgs,
}

/// What a node is judged by.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Policies")]
pub(crate) struct PolicyArgs {
    /// Runtime policy: Keylime's JSON
    #[arg(long, value_name = "FILE", group = "runtime")]
    pub(crate) runtime_policy: Option<PathBuf>,
    /// Runtime policy to download, http or https; redirects are not followed
    #[arg(
        long,
        value_name = "URL",
        group = "runtime",
        requires = "runtime_policy_checksum"
    )]
    pub(crate) runtime_policy_url: Option<Url>,
    /// SHA-256 of the file at --runtime-policy-url
    #[arg(long, value_name = "HEX", requires = "runtime_policy_url")]
    pub(crate) runtime_policy_checksum: Option<Checksum>,
    /// The runtime policy is signed (DSSE), and this ECDSA public key or certificate must have
    /// signed it
    #[arg(
        long,
        value_name = "PEM",
        requires = "runtime",
        conflicts_with_all = ["allowlist", "ima_list"]
    )]
    pub(crate) runtime_policy_sig_key: Option<PathBuf>,
    /// Runtime policy from a flat allowlist: lines of `DIGEST PATH`
    #[arg(long, value_name = "FILE", group = "runtime")]
    pub(crate) allowlist: Option<PathBuf>,
    /// Regular expressions of paths to leave out, one a line
    #[arg(long, value_name = "FILE", requires = "allowlist")]
    pub(crate) exclude: Option<PathBuf>,
    /// Runtime policy that allows exactly the files of an IMA measurement list
    #[arg(long, value_name = "FILE", group = "runtime")]
    pub(crate) ima_list: Option<PathBuf>,
    /// Runtime policy that the verifier has under this name; with one of the options above, the
    /// new name to keep that policy under
    #[arg(long, value_name = "NAME")]
    pub(crate) runtime_policy_name: Option<String>,
    /// Accept files that the holder of this key signed: certificate, public or private key, PEM or
    /// DER, or Keylime's JSON of keys; repeat it for more. A node that is enrolled anew has no other
    #[arg(
        long,
        value_name = "FILE",
        visible_alias = "signature-verification-key"
    )]
    pub(crate) verification_key: Vec<PathBuf>,
    /// Boot policy: a file (TOML, or JSON as Keylime's refstate), {} to demand only that the boot log replays to the quoted PCRs, or
    /// `default` for the configured file
    #[arg(long, value_name = "FILE|{}", visible_alias = "mb-policy")]
    pub(crate) boot_policy: Option<String>,
    /// Boot policy that the verifier has under this name; with --boot-policy, the new name to keep
    /// that policy under
    #[arg(long, value_name = "NAME", visible_alias = "mb-policy-name")]
    pub(crate) boot_policy_name: Option<String>,
    /// Allowed PCR values, e.g. {"15": ["HEX", "HEX"]}, or a file with them
    #[arg(long, value_name = "FILE|JSON")]
    pub(crate) tpm_policy: Option<String>,
}

/// Algorithms that a node's quotes may use; empty: as configured.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Accepted algorithms")]
pub(crate) struct AcceptArgs {
    /// Accepted hash algorithms of quotes, e.g. sha256,sha384
    #[arg(long, value_name = "ALG", value_delimiter = ',')]
    pub(crate) accept_hash: Vec<String>,
    /// Accepted AK algorithms, e.g. rsa2048,ecc256
    #[arg(long, value_name = "ALG", value_delimiter = ',')]
    pub(crate) accept_encryption: Vec<String>,
    /// Accepted signature schemes of quotes, e.g. rsassa,ecdsa
    #[arg(long, value_name = "SCHEME", value_delimiter = ',')]
    pub(crate) accept_signing: Vec<String>,
}

/// How the agent is reached.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Contact")]
pub(crate) struct ContactArgs {
    /// Contact the agent here instead of at the registered address
    #[arg(long, value_name = "HOST", visible_alias = "agent-address")]
    pub(crate) address: Option<String>,
    /// Have the verifier contact the agent here, where that is not the address that trothctl uses
    #[arg(long, value_name = "HOST")]
    pub(crate) address_for_verifier: Option<String>,
    /// Contact the agent at this port instead of the registered one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Speak this version of the API with the agent, instead of the highest that both know
    #[arg(long, value_name = "VERSION", value_parser = api_version)]
    pub(crate) api_version: Option<String>,
}

/// How the TPM's own identity is checked.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "TPM")]
pub(crate) struct EkArgs {
    /// Directory with certificates of TPM vendors' CAs
    #[arg(long, value_name = "DIR")]
    pub(crate) tpm_cert_store: Option<PathBuf>,
    /// Refuse a node whose EK certificate is missing or not issued by a CA of the store
    #[arg(long, value_name = "BOOL")]
    pub(crate) require_ek_cert: Option<bool>,
    /// Program that accepts (exit status 0) or refuses the node's EK
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) ek_check_script: Option<PathBuf>,
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
pub(crate) struct ExplainArgs {
    /// Agent id
    #[arg(value_parser = agent_id)]
    pub(crate) id: AgentId,
    /// Show every finding, not only the first of each kind
    #[arg(long)]
    pub(crate) all: bool,
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
    pub(crate) timeout: Option<Duration>,
    /// Time between two looks at the verifier, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "0.2", value_parser = seconds)]
    pub(crate) interval: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct EvidenceArgs {
    /// Agent id; the node may have been removed
    #[arg(value_parser = agent_id)]
    pub(crate) id: AgentId,
    /// Only the newest N bundles
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<usize>,
    /// Save the bundles to this directory
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Put the policies into them that they were judged by, if the verifier still has them
    #[arg(long, requires = "output")]
    pub(crate) with_policies: bool,
}

/// What `agent watch --until` waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Until {
    /// Every check passes. A node that fails ends the wait with exit status 3
    Trusted,
    /// A check fails
    Failed,
}

fn api_version(text: &str) -> Result<String, String> {
    match text.split_once('.') {
        Some(("2", "1" | "2" | "3" | "4" | "5" | "6")) => Ok(text.to_owned()),
        _ => Err("this program speaks 2.1 to 2.6 with agents".to_owned()),
    }
}

/// Seconds with a fraction; 0.01 s to about a year.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.01..=31_536_000.0).contains(&seconds) {
        return Err("must be between 0.01 and 31536000 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        for bad in ["0", "-1", "nan", "inf", "1e300", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn api_versions_are_those_of_the_pull_model() {
        assert_eq!(api_version("2.6").unwrap(), "2.6");
        for bad in ["2.0", "2.7", "3.0", "2", "2.06", ""] {
            assert!(api_version(bad).is_err(), "{bad}");
        }
    }
}
