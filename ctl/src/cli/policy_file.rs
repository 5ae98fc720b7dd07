use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

use clap::{Args, ValueEnum};
use troth_core::tpm::{HashAlgorithm, PcrMask};

use super::Kind;

/// A policy of the command line: one that the verifier keeps, or a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum PolicyRef {
    /// `runtime:NAME` or `boot:NAME`.
    Stored(Kind, String),
    /// Anything else; `-` is standard input.
    File(PathBuf),
}

impl FromStr for PolicyRef {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.split_once(':') {
            Some(("runtime", name)) => Self::Stored(Kind::Runtime, name.to_owned()),
            Some(("boot", name)) => Self::Stored(Kind::Boot, name.to_owned()),
            _ => Self::File(PathBuf::from(text)),
        })
    }
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored(kind, name) => write!(f, "{}:{name}", kind.as_str()),
            Self::File(path) if path.as_os_str() == "-" => f.write_str("standard input"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A file, - for standard input, or runtime:NAME or boot:NAME for one that the verifier keeps
    pub(crate) policy: PolicyRef,
    /// Name of the policy, after runtime or boot: the same as runtime:NAME or boot:NAME
    pub(crate) name: Option<String>,
    /// Save the policy's text to this file, as it is; - is standard output
    #[arg(long, short, value_name = "FILE", conflicts_with = "json")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RemovePolicyArgs {
    /// runtime:NAME or boot:NAME
    pub(crate) policy: PolicyRef,
    /// Name of the policy, after runtime or boot: the same as runtime:NAME or boot:NAME
    pub(crate) name: Option<String>,
}

impl PolicyRef {
    /// This one, or `name` where this is only its kind, as in `runtime NAME`.
    pub(crate) fn with_name(&self, name: Option<&str>) -> Option<Self> {
        let Some(name) = name else {
            return Some(self.clone());
        };
        match self {
            Self::File(kind) => Kind::from_str(kind.to_str()?, false)
                .ok()
                .map(|kind| Self::Stored(kind, name.to_owned())),
            Self::Stored(..) => None,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The older policy: a file, - for standard input, runtime:NAME or boot:NAME
    pub(crate) old: PolicyRef,
    /// The newer policy
    pub(crate) new: PolicyRef,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// Policies of one kind: files, - for standard input, runtime:NAME
    #[arg(required = true, num_args = 2..)]
    pub(crate) policies: Vec<PolicyRef>,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// What a policy is converted to.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Target {
    /// Runtime policy, Keylime's JSON of the present version
    Runtime,
    /// Flat allowlist: lines of `DIGEST PATH`
    Allowlist,
    /// The exclude file that belongs to a flat allowlist
    Excludes,
    /// TPM policy, normalised
    Tpm,
    /// Boot policy as JSON, as the verifier takes it
    Boot,
    /// Boot policy of ours as TOML, for people; of a refstate too
    BootToml,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// A file, - for standard input, or runtime:NAME
    pub(crate) policy: PolicyRef,
    /// Regular expressions of paths to leave out, one a line, to be added
    #[arg(long, value_name = "FILE")]
    pub(crate) exclude: Option<PathBuf>,
    /// What to write; by default the plain form of the present version
    #[arg(long, value_enum)]
    pub(crate) to: Option<Target>,
    #[command(flatten)]
    pub(crate) signers: SignerArgs,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Whose signatures count.
#[derive(Debug, Args)]
#[group(multiple = true)]
pub(crate) struct SignerArgs {
    /// This ECDSA public key or certificate must have signed it; may be given more than once
    #[arg(long = "key", value_name = "PEM")]
    pub(crate) keys: Vec<PathBuf>,
    /// A certificate in the signature counts if this CA issued it; may be given more than once
    #[arg(long = "ca", value_name = "PEM")]
    pub(crate) cas: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// A file, - for standard input, or runtime:NAME
    pub(crate) policy: PolicyRef,
    #[command(flatten)]
    pub(crate) signers: SignerArgs,
}

/// What a signature says about its key; the names are Keylime's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Backend {
    /// The digest of the public key
    Ecdsa,
    /// A certificate
    X509,
}

#[derive(Debug, Args)]
pub(crate) struct SignArgs {
    /// A runtime policy, signed already or not: a file, - for standard input, or runtime:NAME
    pub(crate) policy: PolicyRef,
    /// Sign with this EC private key: PEM, P-256 or P-521, not encrypted
    #[arg(long, value_name = "PEM", required_unless_present = "new_key")]
    pub(crate) key: Option<PathBuf>,
    /// Make a new P-256 key, write it to this file that must not exist, and sign with it
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    pub(crate) new_key: Option<PathBuf>,
    /// What the signature says about its key; with a certificate: x509
    #[arg(long, value_enum)]
    pub(crate) backend: Option<Backend>,
    /// The key's certificate, which a CA issued
    #[arg(long, value_name = "PEM", conflicts_with = "new_key")]
    pub(crate) cert: Option<PathBuf>,
    /// Make a self-signed certificate for the key, and write it to this file
    #[arg(long, value_name = "FILE", conflicts_with = "cert")]
    pub(crate) cert_out: Option<PathBuf>,
    /// For how many days that certificate is valid
    #[arg(long, default_value_t = 30, requires = "cert_out", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) cert_days: u16,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateTpmArgs {
    /// PCRs of the policy, such as 0,2,7; with --quote by default all that it has, without 10
    /// and 16
    #[arg(
        long,
        value_name = "LIST",
        value_parser = pcr_list,
        required_unless_present_any = ["mask", "quote"]
    )]
    pub(crate) pcr: Option<PcrMask>,
    /// The same as a mask, such as 0x85
    #[arg(long, value_name = "HEX", conflicts_with = "pcr", value_parser = pcr_mask)]
    pub(crate) mask: Option<PcrMask>,
    /// Values of a quote: Keylime's quote string, or an agent's JSON answer; - is standard input
    #[arg(long, value_name = "FILE", group = "values")]
    pub(crate) quote: Option<PathBuf>,
    /// Check that quote with the AK's TPM2B_PUBLIC, binary or base64
    #[arg(long, value_name = "FILE", requires = "quote")]
    pub(crate) ak: Option<PathBuf>,
    /// What `tpm2_pcrread` printed; - is standard input
    #[arg(long, value_name = "FILE", group = "values")]
    pub(crate) pcrread: Option<PathBuf>,
    /// Directory of the kernel's files, by default /sys/class/tpm/tpm0: the values of this system
    #[arg(long, value_name = "DIR", group = "values")]
    pub(crate) sysfs: Option<PathBuf>,
    /// Bank of the values
    #[arg(long, default_value = "sha256", conflicts_with = "quote", value_parser = bank)]
    pub(crate) bank: HashAlgorithm,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

fn pcr_list(text: &str) -> Result<PcrMask, String> {
    let mut mask = PcrMask::default();
    for word in text.split(',') {
        let pcr = word.trim().parse().ok().filter(|pcr| *pcr < 24);
        let pcr = pcr.ok_or_else(|| format!("{word:?} is not a PCR number from 0 to 23"))?;
        mask = mask.with(pcr);
    }
    Ok(mask)
}

fn pcr_mask(text: &str) -> Result<PcrMask, String> {
    PcrMask::from_hex(text).map_err(|error| error.to_string())
}

fn bank(text: &str) -> Result<HashAlgorithm, String> {
    HashAlgorithm::from_name(text)
        .ok_or_else(|| "expected sha1, sha256, sha384 or sha512".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_at_the_verifier_are_named_by_their_kind() {
        let parse = |text: &str| text.parse::<PolicyRef>().unwrap();
        let stored = PolicyRef::Stored(Kind::Runtime, "a:b".to_owned());
        assert_eq!(parse("runtime:a:b"), stored);
        assert_eq!(parse("runtime").with_name(Some("a:b")), Some(stored));
        for file in ["base.json", "-", "./runtime:a", "runtime", "other:a"] {
            let policy = parse(file);
            assert_eq!(policy, PolicyRef::File(file.into()));
            assert_eq!(policy.with_name(None), Some(policy));
        }
        assert_eq!(parse("base.json").with_name(Some("a")), None);
        assert_eq!(parse("boot:a").with_name(Some("b")), None);
    }

    #[test]
    fn lists_of_pcrs_are_checked() {
        assert_eq!(pcr_list("0, 2,7").unwrap().bits(), 0x85);
        for bad in ["", "24", "-1", "a", "1,,2"] {
            assert!(pcr_list(bad).is_err(), "{bad}");
        }
    }
}
