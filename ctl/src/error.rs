use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::Serialize;
use troth_core::{
    appraise::Finding,
    bundle::BundleError,
    identity::{ChainError, ChainProblem, IdentityError},
    policy::PolicyError,
    tpm::{KeyError, StructureError},
};
use troth_daemon::{
    cert_store::CertStoreError, client::ClientError, config::ConfigError, tls::TlsError,
};

use troth_ipc::client::ClientError as LocalError;

use crate::{node, output::clean};

/// The exit statuses, as `--help` and trothctl(1) document them; clap itself ends wrong use of the
/// command line with 2.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(into = "u8")]
pub(crate) enum Exit {
    /// Done; of a node: trusted.
    Success = 0,
    /// Any error without a status of its own.
    Error = 1,
    /// Wrong use of the command line; `policy diff`: a policy that cannot be read.
    Usage = 2,
    /// A node failed attestation; a quote, log or identity is not to be trusted.
    Untrusted = 3,
    /// A node does not answer, or its last verdict is too old to count.
    NodeUnreachable = 4,
    /// No such node.
    NotFound = 5,
    /// A node without a verdict: not attested yet, or attestation is stopped.
    Pending = 6,
    /// Verifier, registrar or agent cannot be reached.
    ServiceUnreachable = 7,
    /// `--timeout` ended the wait.
    Timeout = 8,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit as Self
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(u8::from(exit))
    }
}

/// A command that could not do what it was told: what happened and where. [`Error::advice`] adds
/// what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// The agent's address is already being attested.
    #[error("agent {id} is already enrolled at the verifier {url}")]
    AlreadyEnrolled { id: String, url: String },
    /// The agent takes part in a way this command cannot check.
    #[error("agent {id} registered no certificate: it speaks only Keylime API 1.0 over plain HTTP")]
    AgentTooOld { id: String },
    /// An answer that is not what the API promises.
    #[error("{service} at {url}: {path}: unusable answer: {reason}")]
    BadAnswer {
        service: &'static str,
        url: String,
        path: String,
        reason: String,
    },
    /// A file that is no evidence bundle, or none that can be judged.
    #[error("{}: {source}", path.display())]
    Bundle { path: PathBuf, source: BundleError },
    /// Bundles that do not belong together.
    #[error(
        "{} and {} are of two nodes, or of two AKs of one",
        one.display(),
        other.display()
    )]
    BundlesOfTwo { one: PathBuf, other: PathBuf },
    /// The store of TPM vendors' CAs cannot be used.
    #[error("{0}")]
    CertStore(#[from] CertStoreError),
    /// No CA of the store vouches for the EK.
    #[error("agent {id}: the EK is not certified by a CA in {}: {source}", store.display())]
    EkNotCertified {
        id: String,
        store: PathBuf,
        source: ChainError,
    },
    /// The program that checks EKs could not be run.
    #[error("ek_check_script {}: cannot run it: {source}", script.display())]
    EkScript { script: PathBuf, source: io::Error },
    /// The program that checks EKs refused.
    #[error(
        "agent {id}: ek_check_script {} refuses the EK ({status}){}",
        script.display(),
        said(output)
    )]
    EkScriptRefused {
        id: String,
        script: PathBuf,
        status: String,
        output: String,
    },
    /// The program that checks EKs did not end.
    #[error(
        "ek_check_script {} did not end within {seconds} s and was killed{}",
        script.display(),
        said(output)
    )]
    EkScriptTimeout {
        script: PathBuf,
        seconds: f64,
        output: String,
    },
    /// The EK certificate belongs to another TPM.
    #[error("agent {id}: the EK certificate is for another key than the registered EK")]
    ForeignEkCertificate { id: String },
    /// A configuration file that cannot be used.
    #[error("configuration: {0}")]
    Configuration(#[from] ConfigError),
    /// A file at a URL that cannot be had, or is another one.
    #[error("{url}: {reason}")]
    Download { url: String, reason: String },
    /// CA directory without usable credentials.
    #[error("operator credentials: {source}")]
    Credentials { source: TlsError },
    /// A bundle that another TPM's key would have to have signed.
    #[error("{}: its AK is not the one that --ak names, but {name}", path.display())]
    ForeignAk { path: PathBuf, name: String },
    /// A registered key or certificate that must not be trusted.
    #[error("agent {id}: {what}: {source}")]
    Identity {
        id: String,
        what: &'static str,
        source: IdentityError,
    },
    /// The agent of this host gave no answer, or refused.
    #[error("agent of this host: {source}")]
    LocalAgent { source: LocalError },
    /// A node's policy that its verifier does not name.
    #[error("agent {id} has a {kind} policy, and the verifier does not say under which name")]
    KeptPolicyUnknown { id: String, kind: &'static str },
    /// The AK cannot sign quotes.
    #[error("AK: {0}")]
    Key(#[from] KeyError),
    /// A file whose content is not what the command takes.
    #[error("{}: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
    /// An id that is not in the catalogue.
    #[error("no finding has the id {id:?}")]
    NoSuchFinding { id: String },
    /// The registrar or verifier does not know the node.
    #[error("agent {id} is not known to the {service} at {url}")]
    NotFound {
        id: String,
        service: &'static str,
        url: String,
    },
    /// The operator ended the command before it was done.
    #[error("interrupted after {files} files; no policy was made")]
    Interrupted {
        files: usize,
        /// Where their digests are now.
        cache: Option<PathBuf>,
    },
    /// The node's identity quote does not hold.
    #[error("agent {id}: the identity quote is not valid")]
    IdentityQuote { id: String, findings: Vec<Finding> },
    /// A peer and this program share no API version.
    #[error("{service} at {url} offers API {offered}; this program speaks {spoken} with it")]
    NoCommonVersion {
        service: &'static str,
        url: String,
        offered: String,
        spoken: String,
    },
    /// The node has no EK certificate where one is required.
    #[error("agent {id}: there is no EK certificate, and require_ek_cert demands one")]
    NoEkCertificate { id: String },
    /// The verifier has no policy of this name.
    #[error("the verifier at {url} has no {kind} policy {name:?}")]
    NoSuchPolicy {
        kind: &'static str,
        name: String,
        url: String,
    },
    /// Nothing to check a web server's certificate with.
    #[error("no certificates of public CAs are installed")]
    NoWebCas { variable: &'static str },
    /// An option of the configuration or of the command line that cannot be used.
    #[error("{option}: {reason}")]
    Option {
        option: &'static str,
        reason: String,
    },
    /// A policy that cannot be used.
    #[error("{what}: {source}")]
    Policy { what: String, source: PolicyError },
    /// A bundle that was judged by a policy which is not there.
    #[error(
        "{}: it was judged by the {kind} policy {name:?} of SHA-256 {sha256}, which is not given",
        path.display()
    )]
    PolicyNeeded {
        path: PathBuf,
        kind: &'static str,
        option: &'static str,
        name: String,
        sha256: String,
    },
    /// A text that is nothing known.
    #[error("{place} is no policy: neither JSON of one, nor an allowlist, nor an IMA list")]
    NotAPolicy { place: String },
    /// `policy diff` came to no result.
    #[error("{0}")]
    NotCompared(Box<Self>),
    /// Policies of different kinds where they should be of one.
    #[error("{}, {}", kinds[0], kinds[1])]
    PolicyKinds { kinds: [String; 2] },
    /// A policy of this name is there already.
    #[error("the verifier at {url} has a {kind} policy {name:?} already")]
    PolicyExists {
        kind: &'static str,
        name: String,
        url: String,
    },
    /// A policy that none of the named signers signed.
    #[error("runtime policy from {place}: {reason}")]
    ForeignSigner { place: String, reason: String },
    /// A signed policy whose signer is not named, or a signer's key that is none.
    #[error("runtime policy from {place}: {reason}")]
    PolicySignature { place: String, reason: String },
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    ReadFile { path: PathBuf, source: io::Error },
    /// A program of this host did not do what it was told.
    #[error("{program}: {reason}")]
    Program {
        program: &'static str,
        reason: String,
    },
    /// A program is not on this host.
    #[error("{program} is not installed here, and nothing else knows its options")]
    ProgramMissing { program: &'static str },
    /// A server said no.
    #[error("{service} at {url}: {method} {path}: {status}: {reason}")]
    Refused {
        service: &'static str,
        url: String,
        method: String,
        path: String,
        status: u16,
        reason: String,
    },
    /// A removal that was accepted did not come to its end.
    #[error("agent {id} is still enrolled {seconds} s after its removal was accepted")]
    RemovalPending { id: String, seconds: u64 },
    /// No event loop.
    #[error("cannot start the event loop: {source}")]
    Runtime { source: io::Error },
    /// A registered key does not parse.
    #[error("agent {id}: {what} in the registrar's record: {reason}")]
    RegisteredKey {
        id: String,
        what: &'static str,
        reason: String,
    },
    /// A TPM structure in a file does not parse.
    #[error("{}: {source}", path.display())]
    Structure {
        path: PathBuf,
        source: StructureError,
    },
    /// No connection, no TLS, or no answer in time.
    #[error("cannot reach the {service} at {url}: {}", why(source))]
    Unreachable {
        service: &'static str,
        url: String,
        /// The option that names the address.
        option: &'static str,
        source: ClientError,
    },
    /// Files whose `security.ima` could not be written.
    #[error("{place}: {count} files cannot be labelled; no policy was made")]
    Unlabelled {
        place: String,
        count: u64,
        /// The first of them, and why.
        files: Vec<String>,
    },
    /// Files that should be in a policy and could not be read.
    #[error("{place}: {}; no policy was made", unread(*count, *malformed))]
    Unreadable {
        place: String,
        count: u64,
        /// How many of them were read, and are not what they should be.
        malformed: u64,
        /// The first of them, and why.
        files: Vec<String>,
    },
    /// A source of a policy that has nothing for it.
    #[error("{} has no {what}", place.display())]
    NothingFound {
        place: PathBuf,
        /// What was looked for.
        what: &'static str,
        advice: &'static str,
    },
    /// Options that make no sense, or not together.
    #[error("{option}: {reason}")]
    Usage {
        option: &'static str,
        reason: String,
    },
    /// A file that was to be made, and is there.
    #[error("{option}: {} is there already, and is not overwritten", path.display())]
    FileExists { option: &'static str, path: PathBuf },
    /// A quote that does not hold.
    #[error("{}: the quote is not valid: {reason}", path.display())]
    QuoteInvalid { path: PathBuf, reason: String },
    /// A node was removed to be enrolled anew, and that was refused.
    #[error("agent {id} was removed to be enrolled anew, which did not succeed: {source}")]
    UpdateLost {
        id: String,
        /// Where the text of its own runtime policy is now.
        policy: Option<PathBuf>,
        source: Box<Self>,
    },
    /// `--until` was not reached in time.
    #[error("not {wanted} after {seconds} s: {nodes}")]
    WatchTimeout {
        wanted: &'static str,
        seconds: f64,
        nodes: String,
    },
    /// No policy can be made from a file.
    #[error("cannot make a policy from {}: {reason}", path.display())]
    Create { path: PathBuf, reason: String },
    /// A file or standard output could not be written.
    #[error("cannot write {}: {source}", path.display())]
    WriteFile { path: PathBuf, source: io::Error },
}

impl Error {
    /// The exit status that belongs to it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. }
            | Self::LocalAgent {
                source: LocalError::Connect { .. },
            } => Exit::ServiceUnreachable,
            Self::NotFound { .. } | Self::NoSuchFinding { .. } | Self::NoSuchPolicy { .. } => {
                Exit::NotFound
            }
            Self::IdentityQuote { .. }
            | Self::Identity { .. }
            | Self::ForeignAk { .. }
            | Self::ForeignEkCertificate { .. }
            | Self::EkNotCertified { .. }
            | Self::EkScriptRefused { .. }
            | Self::NoEkCertificate { .. }
            | Self::QuoteInvalid { .. }
            | Self::ForeignSigner { .. } => Exit::Untrusted,
            Self::Usage { .. } | Self::NothingFound { .. } => Exit::Usage,
            Self::WatchTimeout { .. } => Exit::Timeout,
            // As diff(1): 1 says that they differ.
            Self::NotCompared(source) => match source.exit() {
                Exit::Error => Exit::Usage,
                other => other,
            },
            _ => Exit::Error,
        }
    }

    /// Findings that explain it.
    pub(crate) fn findings(&self) -> &[Finding] {
        match self {
            Self::IdentityQuote { findings, .. } => findings,
            _ => &[],
        }
    }

    /// Files that it is about, and what is wrong with each.
    pub(crate) fn files(&self) -> &[String] {
        match self {
            Self::Unreadable { files, .. } | Self::Unlabelled { files, .. } => files,
            _ => &[],
        }
    }

    /// What to do about it, if there is something to say.
    pub(crate) fn advice(&self) -> Option<String> {
        Some(match self {
            Self::NotCompared(source) => return source.advice(),
            Self::LocalAgent { source } => return node::advice(source),
            Self::AlreadyEnrolled { id, .. } => format!(
                "see it with `trothctl agent status {id}`; other policies: `trothctl agent update {id}`"
            ),
            Self::AgentTooOld { .. } => {
                "upgrade the agent to one that registers a certificate for mutual TLS".to_owned()
            }
            Self::BundlesOfTwo { .. } => "name the bundles of one node and one AK".to_owned(),
            Self::ForeignAk { .. } => {
                "it is no evidence about the node that you know by that AK; a node that was set \
                 up anew has a new one: `trothctl registrar show` has it"
                    .to_owned()
            }
            Self::PolicyNeeded {
                kind, option, name, ..
            } => format!(
                "name its file with {option}; `trothctl policy show {kind} {} -o FILE` has the \
                 verifier's text, and bundles saved by `trothctl agent evidence --with-policies` \
                 bring it along for --embedded-policies",
                clean(name)
            ),
            Self::ForeignEkCertificate { .. } | Self::Identity { .. } => {
                "do not enrol this node before you know why: its registration may come from \
                 another machine or a software TPM"
                    .to_owned()
            }
            Self::CertStore(_) => {
                "--tpm-cert-store (or tpm_cert_store) must name a directory with the certificates \
                 of the TPM makers' CAs that you trust; get them from the makers"
                    .to_owned()
            }
            Self::EkNotCertified { source, .. } => match source.problem {
                ChainProblem::UnknownIssuer(_) => {
                    "if that issuer is a CA of a TPM maker that you trust, put its certificate \
                     into the store; else its TPM may be one in software: do not enrol it"
                        .to_owned()
                }
                _ => "do not enrol this node before you know why: `trothctl registrar show` has \
                      the certificate"
                    .to_owned(),
            },
            Self::EkScript { .. } => {
                "it must be an executable file; a relative name is looked up in state_dir"
                    .to_owned()
            }
            Self::EkScriptRefused { .. } => {
                "nothing is changed; the program decides which TPMs this site accepts".to_owned()
            }
            Self::EkScriptTimeout { .. } => {
                "nothing is changed; ek_check_timeout gives it more time".to_owned()
            }
            Self::ProgramMissing { program } => format!(
                "install {program}, or run this on the host that has it; docs/configuration.md has \
                 all options with their defaults"
            ),
            Self::NoEkCertificate { .. } => {
                "let an ek_check_script vouch for the EK, or accept the TPM unseen, with \
                 --require-ek-cert false"
                    .to_owned()
            }
            Self::Credentials { .. } => {
                "--ca-dir (or TROTH_CA_DIR, or ca_dir) must name a directory with cacert.crt, \
                 client-cert.crt and client-private.pem that you may read; the verifier or the \
                 registrar makes one on its first start, by default /var/lib/troth/cv_ca"
                    .to_owned()
            }
            Self::NoSuchFinding { .. } => {
                "list all with `trothctl explain`; a verifier newer than this program may know more"
                    .to_owned()
            }
            Self::NotFound {
                service: "registrar",
                ..
            } => "list what is registered with `trothctl registrar list`; a node appears there \
                 once its agent has started and proved that it owns its TPM"
                .to_owned(),
            Self::NotFound { .. } => {
                "list the enrolled nodes with `trothctl agent list`, enrol one with `trothctl \
                 agent add`"
                    .to_owned()
            }
            Self::IdentityQuote { .. } => {
                "nothing was enrolled; check that the agent at this address is the one that \
                 registered (`trothctl registrar show`), or restart it so that it registers again"
                    .to_owned()
            }
            Self::Download { .. } => {
                "compare the checksum with its publisher's, and name the file's final URL"
                    .to_owned()
            }
            Self::NoCommonVersion { service, .. } => format!("upgrade the {service}"),
            Self::NoSuchPolicy { .. } => {
                "list what it has with `trothctl policy list`, store one with `trothctl policy \
                 import`"
                    .to_owned()
            }
            Self::NoWebCas { variable } => format!(
                "install the package ca-certificates, or name a file of CA certificates in \
                 {variable}"
            ),
            Self::PolicySignature { .. } | Self::ForeignSigner { .. } => {
                "name the signer's ECDSA public key or certificate: with --key or --ca of policy \
                 convert, --sig-key of policy import, --runtime-policy-sig-key of agent add and \
                 update; `openssl ec -pubout` has a private key's public half"
                    .to_owned()
            }
            Self::Policy {
                source: PolicyError::BootMerge(_),
                ..
            } => "make them agree in what is named, or keep both and give each node its own"
                .to_owned(),
            Self::PolicyExists { .. } => {
                "choose another name; --replace replaces it for all nodes that use it".to_owned()
            }
            Self::Refused {
                status: 401 | 403, ..
            } => "the operator's certificate in --ca-dir (or TROTH_CA_DIR) must be issued by the \
                 CA that the server trusts"
                .to_owned(),
            Self::RemovalPending { id, .. } => {
                format!("look again with `trothctl agent status {id}`; see the verifier's log")
            }
            Self::Unreachable {
                service,
                option,
                source,
                ..
            } => {
                let agent = *option == AGENT_ADDRESS;
                match source {
                    ClientError::WrongName { .. } => format!(
                        "somebody else with a certificate of your CA may answer there. If it is \
                         the {service}: ask for it by a name of its certificate ({option}), say \
                         which of them it has with {service}_tls_name, or give it a certificate \
                         with that name (cert_subject_alternative_names)"
                    ),
                    ClientError::Tls { .. } if agent => {
                        "the agent does not show the certificate it registered: restart it so \
                         that it registers again, and check that nobody else has its address"
                            .to_owned()
                    }
                    ClientError::Tls { .. } => format!(
                        "check that {option} names the right server and that --ca-dir (or \
                         TROTH_CA_DIR) holds the CA it uses"
                    ),
                    // In TLS 1.3 a server judges the client's certificate after the handshake.
                    ClientError::Http { reason, .. } if reason.contains("fatal alert") => {
                        let whom = if agent {
                            "the agent (trusted_client_ca)"
                        } else {
                            "it"
                        };
                        format!(
                            "the operator's certificate is refused: --ca-dir (or TROTH_CA_DIR) \
                             must hold one that was issued by a CA that {whom} trusts"
                        )
                    }
                    _ if agent => "check that the agent runs and that no firewall is in \
                                   between; --address and --port override the address it \
                                   registered"
                        .to_owned(),
                    _ => format!("check that it runs, and that {option} names its address"),
                }
            }
            Self::Interrupted { cache, .. } => match cache {
                Some(cache) => format!(
                    "the same command goes on where it was: {} has what was read",
                    cache.display()
                ),
                None => "with --cache FILE, the same command goes on where it was".to_owned(),
            },
            Self::Unlabelled { .. } => {
                "\"Operation not supported\": the file system keeps no extended attributes of this \
                 kind (vfat, NFS before Linux 5.9, some FUSE); \"Read-only file system\": label it \
                 before it is sealed; \"Operation not permitted\": the file is immutable (lsattr)"
                    .to_owned()
            }
            Self::NothingFound { advice, .. } => (*advice).to_owned(),
            Self::FileExists {
                option: "--new-key",
                path,
            } => format!(
                "sign with the key that is there: --key {}; or name a file that is not there",
                path.display()
            ),
            Self::FileExists { .. } => "name a file that is not there".to_owned(),
            Self::QuoteInvalid { .. } => {
                "make no policy of it: it was made by another TPM, or changed on its way; \
                 `trothctl registrar show` has the AK of a node"
                    .to_owned()
            }
            Self::ReadFile { path, .. } => return absent(path).map(str::to_owned),
            Self::Unreadable {
                count, malformed, ..
            } if count == malformed => {
                "compare them with where they came from: `rpm -K` checks packages, `lsinitrd` and \
                 `lsinitramfs` read initrds; leave them out, or take the rest with \
                 --ignore-unreadable"
                    .to_owned()
            }
            Self::Unreadable { .. } => {
                "run it as a user who may read them (root), leave them out with --skip, or take \
                 what can be read with --ignore-unreadable"
                    .to_owned()
            }
            Self::KeptPolicyUnknown { kind, .. } => format!(
                "nothing is changed; say which it is with --{kind}-policy-name, give a new one, or \
                 drop it with --no-{kind}-policy"
            ),
            Self::UpdateLost { id, policy, .. } => {
                let policy = policy.as_ref().map_or_else(String::new, |path| {
                    format!(" --runtime-policy {}", path.display())
                });
                format!(
                    "look with `trothctl agent status {id}`; if it is gone, enrol it again with \
                     all its policies: `trothctl agent add {id}{policy} ...`"
                )
            }
            Self::WatchTimeout { .. } => "see why with `trothctl agent status ID`".to_owned(),
            _ => return None,
        })
    }
}

/// What to do where a file of the kernel is not to be had.
fn absent(path: &Path) -> Option<&'static str> {
    let is_at = |place: &str| path.starts_with(place);
    match () {
        () if is_at("/sys/class/tpm") => Some(
            "this host has no TPM that the kernel knows of (`ls /sys/class/tpm`), not this bank of \
             PCRs (--bank), or a kernel before 5.12; --pcrread takes what tpm2_pcrread printed, \
             --quote what an agent answered",
        ),
        () if is_at("/sys/kernel/security/tpm0") => Some(
            "only root may read it; it is missing on a host without a TPM, without UEFI, in a \
             container, and where securityfs is not mounted (`mount -t securityfs securityfs \
             /sys/kernel/security`); name the log of another host with --event-log",
        ),
        () if is_at("/sys/kernel/security/ima") || is_at("/sys/kernel/security/integrity") => Some(
            "only root may read it; it is missing where the kernel is without IMA (CONFIG_IMA), in \
             a container, and where securityfs is not mounted (`mount -t securityfs securityfs \
             /sys/kernel/security`); it is short until a policy measures: ima_policy=tcb",
        ),
        () => None,
    }
}

/// How many files were not read, in words.
fn unread(count: u64, malformed: u64) -> String {
    match count.saturating_sub(malformed) {
        0 => format!("{malformed} files are malformed"),
        count if malformed == 0 => format!("{count} files or directories cannot be read"),
        count => format!(
            "{count} files or directories cannot be read, and {malformed} files are malformed"
        ),
    }
}

/// A client's error without the address, which the message has already.
fn why(error: &ClientError) -> String {
    match error {
        ClientError::Connect { source, .. } => source.to_string(),
        ClientError::Http { reason, .. } => reason.clone(),
        ClientError::Tls { reason, .. } | ClientError::WrongName { reason, .. } => {
            format!("TLS: {reason}")
        }
        ClientError::Timeout { what, after, .. } => {
            format!("no answer within {} s while {what}", after.as_secs_f64())
        }
        ClientError::BodyTooLarge { limit, .. } => {
            format!("its answer is larger than {limit} bytes")
        }
        other => other.to_string(),
    }
}

/// What a program said, on one line behind a colon.
fn said(output: &str) -> String {
    let lines: Vec<_> = output.lines().map(str::trim).collect();
    let text: String = lines.join("; ").chars().take(SAID_SHOWN).collect();
    if text.is_empty() {
        text
    } else {
        format!(": {text}")
    }
}

/// Characters of a program's output in an error.
const SAID_SHOWN: usize = 1000;

/// The options that name an agent's address.
pub(crate) const AGENT_ADDRESS: &str = "--address and --port";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_names_the_address_and_the_option() {
        let error = Error::Unreachable {
            service: "verifier",
            url: "https://127.0.0.1:8881".to_owned(),
            option: "--verifier (or TROTH_VERIFIER)",
            source: ClientError::Connect {
                target: "127.0.0.1:8881".to_owned(),
                source: io::Error::from(io::ErrorKind::ConnectionRefused),
            },
        };
        assert!(error.to_string().contains("https://127.0.0.1:8881"));
        assert!(error.to_string().contains("connection refused"));
        assert!(error.advice().unwrap().contains("--verifier"));
        assert_eq!(error.exit(), Exit::ServiceUnreachable);
    }

    #[test]
    fn a_host_without_tpm_boot_log_or_ima_list_is_told_what_to_name_instead() {
        let advice = |path: &str| {
            let error = Error::ReadFile {
                path: PathBuf::from(path),
                source: io::Error::from(io::ErrorKind::NotFound),
            };
            error.advice().unwrap_or_default()
        };
        for (path, option) in [
            ("/sys/class/tpm/tpm0/pcr-sha256/7", "--pcrread"),
            (
                "/sys/kernel/security/tpm0/binary_bios_measurements",
                "--event-log",
            ),
            (
                "/sys/kernel/security/ima/ascii_runtime_measurements",
                "ima_policy=tcb",
            ),
            (
                "/sys/kernel/security/integrity/ima/ascii_runtime_measurements",
                "CONFIG_IMA",
            ),
        ] {
            assert!(advice(path).contains(option), "{path}");
        }
        assert_eq!(advice("/home/me/policy.json"), "");
    }
}
