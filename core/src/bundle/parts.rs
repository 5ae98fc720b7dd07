use serde::{Deserialize, Serialize};

use super::{Bundle, Head};
use crate::identity::IdentityError;
use crate::policy::{MAX_RUNTIME_POLICY, MAX_SMALL_POLICY};
use crate::tpm::{HashAlgorithm, KeyError, StructureError};

/// The format that is read and written.
const VERSION: u32 = 1;
/// Longest head in bytes. A TPM policy of the largest size fits, with all its quotes escaped.
const MAX_HEAD: usize = 4 << 20;
/// Longest outcome in bytes: a thousand findings with the longest names.
const MAX_OUTCOME: usize = 64 << 20;
/// Longest nonce in bytes: the most that fits into a quote of any TPM.
const MAX_NONCE: usize = 128;

/// The first line.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct FirstLine<H> {
    troth_evidence: u32,
    head: H,
    sections: Vec<Section>,
}

/// The version alone, of a first line that may be otherwise in all else.
#[derive(Deserialize)]
struct Version {
    troth_evidence: u32,
}

/// What follows.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Section {
    kind: Kind,
    bytes: usize,
}

/// Sections come in this order, each at most once, the answer always.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Answer,
    Outcome,
    RuntimePolicy,
    BootPolicy,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Outcome => "outcome",
            Self::RuntimePolicy => "runtime_policy",
            Self::BootPolicy => "boot_policy",
        }
    }

    /// The most bytes that are read. The answer is only borrowed here: whoever read the file has
    /// bounded it.
    fn limit(self) -> usize {
        match self {
            Self::Answer => usize::MAX,
            Self::Outcome => MAX_OUTCOME,
            Self::RuntimePolicy => MAX_RUNTIME_POLICY,
            Self::BootPolicy => MAX_SMALL_POLICY,
        }
    }
}

impl<'a> Bundle<'a> {
    /// Reads a bundle that is not gzipped (any more). Nothing of it is checked but its form.
    ///
    /// # Errors
    /// What is wrong, and in which part.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        let window = &bytes[..bytes.len().min(MAX_HEAD)];
        let end = window.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or(BundleError::NoHead)?;
        let (line, rest) = bytes.split_at(end);
        let Version { troth_evidence } =
            serde_json::from_slice(line).map_err(BundleError::NotABundle)?;
        if troth_evidence != VERSION {
            return Err(BundleError::Version(troth_evidence));
        }
        let FirstLine { head, sections, .. } =
            serde_json::from_slice::<FirstLine<Head>>(line).map_err(BundleError::Head)?;
        if head.nonce.len() > MAX_NONCE {
            return Err(BundleError::Nonce(head.nonce.len()));
        }
        let mut bundle = Self {
            head,
            answer: &[],
            outcome: None,
            runtime_policy: None,
            boot_policy: None,
        };
        if !sections.is_sorted_by(|one, next| one.kind < next.kind)
            || sections
                .first()
                .is_none_or(|first| first.kind != Kind::Answer)
        {
            return Err(BundleError::Order);
        }
        // The newline that ends the head.
        let mut rest = rest.get(1..).unwrap_or_default();
        for section in sections {
            let content = take(&mut rest, section)?;
            match section.kind {
                Kind::Answer => bundle.answer = content,
                Kind::Outcome => bundle.outcome = Some(content),
                Kind::RuntimePolicy => bundle.runtime_policy = Some(content),
                Kind::BootPolicy => bundle.boot_policy = Some(content),
            }
        }
        if !rest.is_empty() {
            return Err(BundleError::Trailing(rest.len()));
        }
        bundle.recorded()?;
        bundle.check_policies()?;
        Ok(bundle)
    }

    /// Writes it.
    ///
    /// # Errors
    /// None that is known: all of it is plain text and numbers.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        let parts = [
            (Kind::Answer, Some(self.answer)),
            (Kind::Outcome, self.outcome),
            (Kind::RuntimePolicy, self.runtime_policy),
            (Kind::BootPolicy, self.boot_policy),
        ];
        let present = || {
            let parts = parts.iter();
            parts.filter_map(|(kind, content)| content.map(|content| (*kind, content)))
        };
        let first = FirstLine {
            troth_evidence: VERSION,
            head: &self.head,
            sections: present()
                .map(|(kind, content)| Section {
                    kind,
                    bytes: content.len(),
                })
                .collect(),
        };
        let mut bytes = serde_json::to_vec(&first).map_err(BundleError::Encode)?;
        bytes.reserve_exact(
            present()
                .map(|(_, content)| content.len() + 1)
                .sum::<usize>()
                + 1,
        );
        bytes.push(b'\n');
        for (_, content) in present() {
            bytes.extend_from_slice(content);
            bytes.push(b'\n');
        }
        Ok(bytes)
    }

    /// A policy that came along is the one that the verifier named.
    fn check_policies(&self) -> Result<(), BundleError> {
        let criteria = self.head.criteria.as_ref();
        for (kind, text, named) in [
            (
                Kind::RuntimePolicy,
                self.runtime_policy,
                criteria.and_then(|criteria| criteria.runtime_policy.as_ref()),
            ),
            (
                Kind::BootPolicy,
                self.boot_policy,
                criteria.and_then(|criteria| criteria.boot_policy.as_ref()),
            ),
        ] {
            if let (Some(text), Some(named)) = (text, named)
                && policy_digest(text) != named.sha256
            {
                return Err(BundleError::PolicyDigest(kind.as_str()));
            }
        }
        Ok(())
    }
}

impl Head {
    /// The first line, newline included, of a bundle with an answer of `bytes` bytes and nothing else.
    /// It is equally long for each size: whoever writes an answer as it comes leaves room for the
    /// line, and fills it in when the size is known. A newline ends the answer.
    ///
    /// # Errors
    /// None that is known: all of it is plain text and numbers.
    pub fn line_of_answer(&self, bytes: usize) -> Result<Vec<u8>, BundleError> {
        let line = |bytes| {
            let section = Section {
                kind: Kind::Answer,
                bytes,
            };
            let first = FirstLine {
                troth_evidence: VERSION,
                head: self,
                sections: vec![section],
            };
            serde_json::to_vec(&first).map_err(BundleError::Encode)
        };
        let longest = line(usize::MAX)?.len();
        let mut line = line(bytes)?;
        line.resize(longest, b' ');
        line.push(b'\n');
        Ok(line)
    }
}

/// Hex SHA-256 of a policy's text, by which verifiers know it.
pub fn policy_digest(text: &[u8]) -> String {
    HashAlgorithm::Sha256.digest(&[text]).to_string()
}

/// The next section, and the newline behind it.
fn take<'a>(rest: &mut &'a [u8], section: Section) -> Result<&'a [u8], BundleError> {
    let Section { kind, bytes } = section;
    if bytes > kind.limit() {
        return Err(BundleError::TooLarge {
            section: kind.as_str(),
            bytes,
            limit: kind.limit(),
        });
    }
    let short = || BundleError::Short {
        section: kind.as_str(),
        bytes,
        there: rest.len(),
    };
    let (content, behind) = rest.split_at_checked(bytes).ok_or_else(short)?;
    let behind = behind.strip_prefix(b"\n").ok_or_else(short)?;
    *rest = behind;
    Ok(content)
}

/// A bundle that cannot be read, or not be judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The AK is no key.
    #[error("head: ak: {0}")]
    AkStructure(StructureError),
    /// Whoever has the AK could make quotes of anything.
    #[error("head: ak: {0}")]
    AkUnsafe(IdentityError),
    /// No quotes can be checked with the AK.
    #[error("head: ak: {0}")]
    AkUnusable(KeyError),
    /// It cannot be written.
    #[error("cannot be written: {0}")]
    Encode(serde_json::Error),
    /// The first line is of a bundle, but not as it should be.
    #[error("head: {0}")]
    Head(serde_json::Error),
    /// No end of a first line.
    #[error("not an evidence bundle: no line of JSON in its first {MAX_HEAD} bytes")]
    NoHead,
    /// A nonce that no quote could have.
    #[error("head: a nonce of {0} bytes; a quote has at most {MAX_NONCE}")]
    Nonce(usize),
    /// The first line is something else.
    #[error("not an evidence bundle: the first line: {0}")]
    NotABundle(serde_json::Error),
    /// Sections come in one order.
    #[error("head: sections must be answer, outcome, runtime_policy, boot_policy, in this order")]
    Order,
    /// What was found is not as it should be.
    #[error("outcome: {0}")]
    Outcome(serde_json::Error),
    /// A policy that is not the one that was judged by.
    #[error("{0}: its SHA-256 is not the one in the head")]
    PolicyDigest(&'static str),
    /// The file ends too early.
    #[error(
        "{section}: cut off or damaged: {bytes} bytes and a newline are announced, {there} bytes are left"
    )]
    Short {
        /// Which section.
        section: &'static str,
        /// Its size.
        bytes: usize,
        /// What is left of the file.
        there: usize,
    },
    /// A section that nobody could have written.
    #[error("{section}: {bytes} bytes; at most {limit} are read")]
    TooLarge {
        /// Which section.
        section: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// More than the head says.
    #[error("{0} bytes behind the last section")]
    Trailing(usize),
    /// Written by a newer program.
    #[error("evidence bundle of version {0}; this program reads version {VERSION}")]
    Version(u32),
}
