use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::tpm::TpmError;

/// Whose file an AK was saved in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// This agent's own.
    Ours,
    /// That of Keylime's agent.
    Keylime,
}

/// A saved AK that cannot be used. Never answered by making a new one: registrar and verifiers
/// know the old.
#[derive(Debug, thiserror::Error)]
#[error("{} {problem}. {}", path.display(), Advice(self))]
pub struct SavedAkError {
    /// Whose file.
    pub origin: Origin,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a saved AK.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file cannot be read.
    #[error("holds this host's AK and cannot be read: {0}")]
    Unreadable(io::Error),
    /// Nobody may see whether there is a file.
    #[error("may hold the AK by which this host is known, and cannot be looked at: {0}")]
    Hidden(io::Error),
    /// A file that the configuration names is not there.
    #[error("does not exist, although agent_data_path names it as the file of this host's AK")]
    Missing,
    /// The file is not what was written.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// The AK is of another algorithm than the configuration asks for.
    #[error(
        "holds an AK {saved}, but the configuration asks for {wanted}. Set tpm_encryption_alg, \
         tpm_hash_alg and tpm_signing_alg as they were to keep this identity"
    )]
    OtherAlgorithm {
        /// What the file holds.
        saved: String,
        /// What is configured.
        wanted: String,
    },
    /// The AK was made under another EK: another TPM, or this one got a new endorsement seed.
    #[error(
        "holds an AK of another EK ({saved}, this TPM has {found}): the disk was moved or copied, \
         the TPM was replaced, or tpm_encryption_alg is not as it was"
    )]
    OtherEk {
        /// The EK in the file.
        saved: String,
        /// The EK of this TPM, in the same form.
        found: String,
    },
    /// The TPM refuses the AK although it is of this EK.
    #[error("holds an AK that the TPM refuses ({0}): the TPM was cleared, or the file altered")]
    Refused(TpmError),
}

impl Origin {
    /// An error about the file at `path`.
    pub(super) fn error(self, path: &Path, problem: Problem) -> SavedAkError {
        SavedAkError {
            origin: self,
            path: path.to_owned(),
            problem,
        }
    }
}

/// How to get a new identity on purpose, or keep the old.
struct Advice<'a>(&'a SavedAkError);

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SavedAkError {
            origin,
            path,
            problem,
        } = self.0;
        let path = path.display();
        match origin {
            Origin::Ours => write!(
                f,
                "To give this host a new identity, remove {path} and run `trothctl registrar \
                 remove` with its id"
            ),
            Origin::Keylime => {
                if let Problem::Missing = problem {
                    return f.write_str(
                        "Put the file of Keylime's agent there; where this host never had one, \
                         take the option out, or set it to \"\"",
                    );
                }
                if let Problem::Unreadable(_) | Problem::Hidden(_) = problem {
                    f.write_str(
                        "Copy the file to agent_data.json in state_dir and give it to this \
                         agent's user. ",
                    )?;
                }
                write!(
                    f,
                    "To give this host a new identity instead of that of Keylime's agent, set \
                     agent_data_path = \"\" and run `trothctl registrar remove` with its id"
                )
            }
        }
    }
}
