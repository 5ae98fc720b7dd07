use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use troth_core::tpm::{Public, StructureError};

use super::{
    agent_data,
    saved::{Origin, Problem, SavedAkError},
    state::{self, StateError},
};
use crate::tpm::{AkTemplate, KeyBlobs, Tpm, TpmError};

/// Name of the file in the state directory.
pub const FILE: &str = "ak.json";

/// Version of the file's format.
const VERSION: u32 = 1;

/// EK and AK of this host.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The EK's public area.
    pub ek: Public,
    /// The AK's public area.
    pub ak: Public,
    /// What loads the AK again.
    pub blobs: KeyBlobs,
    /// Was the AK made just now?
    pub created: bool,
}

/// The saved AK. Without this TPM the private part is of no use to anyone.
#[derive(Debug, Deserialize, Serialize)]
struct Saved {
    version: u32,
    /// Kind, scheme and hash, to tell a changed configuration from a damaged file.
    algorithm: String,
    /// Hex name of the EK that the AK was made under.
    ek_name: String,
    /// base64 TPMT_PUBLIC.
    public: String,
    /// base64 content of TPM2B_PRIVATE.
    private: String,
}

/// Why there is no AK.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AkError {
    /// The file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The TPM failed; it may work later.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The TPM's public area does not parse.
    #[error("public area of the {key}: {source}")]
    Public {
        /// EK or AK.
        key: &'static str,
        /// What is wrong.
        source: StructureError,
    },
    /// There is an AK that cannot be used.
    #[error(transparent)]
    Saved(#[from] SavedAkError),
}

impl AkError {
    /// May the same call succeed later, without anybody's help?
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Tpm(error) => !error.is_final(),
            // A full disk; the AK was not used yet.
            Self::State(error) => matches!(error, StateError::Write { .. }),
            Self::Public { .. } | Self::Saved(_) => false,
        }
    }
}

/// Loads EK and AK. Without `path`, the AK in the first of the `agent_data` files that exists is
/// taken over. A new AK is made only when it is known that no file of an old one exists, and saved
/// before it is used. Both keys stay loaded.
pub fn load_or_create(
    tpm: &mut dyn Tpm,
    template: &AkTemplate,
    path: &Path,
    agent_data: &[agent_data::Candidate],
) -> Result<Keys, AkError> {
    let public = |key, bytes: &[u8]| {
        Public::from_tpmt(bytes).map_err(|source| AkError::Public { key, source })
    };
    let ek = public("EK", &tpm.load_ek(template.kind)?)?;
    let ek_name = hex::encode(ek.name().as_bytes());
    let (blobs, created) = match state::read(path)? {
        Some(content) => {
            let blobs = saved(&content, template, &ek_name, path)?;
            load(tpm, &blobs, Origin::Ours, path)?;
            (blobs, false)
        }
        None => match agent_data::find(agent_data, template, &ek)? {
            Some(agent_data::Found { path: from, blobs }) => {
                load(tpm, &blobs, Origin::Keylime, &from)?;
                save(path, template, ek_name, &blobs)?;
                tracing::info!(
                    "this host's AK is that of Keylime's agent, {}",
                    from.display()
                );
                (blobs, false)
            }
            None => {
                let blobs = tpm.create_ak(template)?;
                save(path, template, ek_name, &blobs)?;
                tpm.load_ak(&blobs)?;
                (blobs, true)
            }
        },
    };
    let ak = public("AK", &blobs.public)?;
    Ok(Keys {
        ek,
        ak,
        blobs,
        created,
    })
}

/// TPM2_Load of the AK that was saved in a file.
fn load(tpm: &mut dyn Tpm, blobs: &KeyBlobs, origin: Origin, path: &Path) -> Result<(), AkError> {
    tpm.load_ak(blobs).map_err(|error| match error {
        TpmError::WrongParent { .. } => origin.error(path, Problem::Refused(error)).into(),
        other => other.into(),
    })
}

fn save(
    path: &Path,
    template: &AkTemplate,
    ek_name: String,
    blobs: &KeyBlobs,
) -> Result<(), AkError> {
    let file = Saved {
        version: VERSION,
        algorithm: template.to_string(),
        ek_name,
        public: STANDARD.encode(&blobs.public),
        private: STANDARD.encode(&blobs.private),
    };
    let text =
        serde_json::to_vec_pretty(&file).map_err(|error| damaged(path, error.to_string()))?;
    Ok(state::write(path, &text)?)
}

fn saved(
    content: &[u8],
    template: &AkTemplate,
    ek_name: &str,
    path: &Path,
) -> Result<KeyBlobs, AkError> {
    let saved: Saved =
        serde_json::from_slice(content).map_err(|error| damaged(path, error.to_string()))?;
    if saved.version != VERSION {
        return Err(damaged(
            path,
            format!("format version {} is not known", saved.version),
        ));
    }
    let unusable = |problem| Err(Origin::Ours.error(path, problem).into());
    if saved.algorithm != template.to_string() {
        return unusable(Problem::OtherAlgorithm {
            saved: saved.algorithm,
            wanted: template.to_string(),
        });
    }
    if saved.ek_name != ek_name {
        return unusable(Problem::OtherEk {
            saved: saved.ek_name,
            found: ek_name.to_owned(),
        });
    }
    let decode = |text: &str| {
        STANDARD
            .decode(text)
            .map_err(|error| damaged(path, error.to_string()))
    };
    Ok(KeyBlobs {
        public: decode(&saved.public)?,
        private: decode(&saved.private)?,
    })
}

fn damaged(path: &Path, reason: String) -> AkError {
    Origin::Ours.error(path, Problem::Damaged(reason)).into()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use troth_core::tpm::{HashAlgorithm, SignatureScheme};

    use super::*;
    use crate::tpm::{
        KeyKind,
        sim::{Chip, Faults},
    };

    const TEMPLATE: AkTemplate = AkTemplate {
        kind: KeyKind::EccP256,
        hash: HashAlgorithm::Sha256,
        scheme: SignatureScheme::Ecdsa,
    };

    struct Host {
        chip: Chip,
        _directory: tempfile::TempDir,
        path: PathBuf,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            Self {
                chip: Chip::manufacture().unwrap(),
                path: directory.path().join(FILE),
                _directory: directory,
            }
        }

        fn start(&self) -> Result<Keys, AkError> {
            load_or_create(&mut self.chip.open().unwrap(), &TEMPLATE, &self.path, &[])
        }
    }

    fn problem(error: &AkError) -> &Problem {
        match error {
            AkError::Saved(saved) => &saved.problem,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_ak_is_made_once() {
        let host = Host::new();
        let one = host.start().unwrap();
        let two = host.start().unwrap();
        assert!(one.created && !two.created);
        assert_eq!(one.ak, two.ak);
        assert_eq!(one.ek, two.ek);
    }

    #[test]
    fn a_failure_that_passes_keeps_the_ak() {
        let host = Host::new();
        let one = host.start().unwrap();
        host.chip.set_faults(Faults {
            load: 1,
            ..Faults::default()
        });
        let error = host.start().unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert_eq!(host.start().unwrap().ak, one.ak);
    }

    #[test]
    fn a_new_ak_that_could_not_be_loaded_is_the_ak_all_the_same() {
        let host = Host::new();
        host.chip.set_faults(Faults {
            load: 1,
            ..Faults::default()
        });
        host.start().unwrap_err();
        assert!(!host.start().unwrap().created, "saved before it was loaded");
    }

    #[test]
    fn an_ak_of_another_tpm_is_refused_with_advice_and_kept() {
        let host = Host::new();
        host.start().unwrap();
        let before = fs::read(&host.path).unwrap();
        let moved = Host {
            chip: Chip::manufacture().unwrap(),
            ..host
        };
        let error = moved.start().unwrap_err();
        assert!(matches!(problem(&error), Problem::OtherEk { .. }) && !error.is_transient());
        let text = error.to_string();
        assert!(
            text.contains(moved.path.to_str().unwrap()) && text.contains("remove"),
            "{text}"
        );
        assert_eq!(fs::read(&moved.path).unwrap(), before);
    }

    #[test]
    fn a_changed_configuration_does_not_change_the_identity() {
        let host = Host::new();
        host.start().unwrap();
        let other = AkTemplate {
            hash: HashAlgorithm::Sha384,
            ..TEMPLATE
        };
        let mut tpm = host.chip.open().unwrap();
        let error = load_or_create(&mut tpm, &other, &host.path, &[]).unwrap_err();
        assert!(
            matches!(problem(&error), Problem::OtherAlgorithm { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_file_is_refused_and_kept() {
        let host = Host::new();
        host.start().unwrap();
        let good = fs::read_to_string(&host.path).unwrap();
        for bad in ["", "{}", &good[..good.len() / 2], &good.replace("1,", "2,")] {
            fs::write(&host.path, bad).unwrap();
            let error = host.start().unwrap_err();
            assert!(matches!(problem(&error), Problem::Damaged(_)), "{error}");
            assert_eq!(fs::read_to_string(&host.path).unwrap(), bad);
        }
        // Valid base64 of something that is no key: the TPM says so, and it is not transient.
        let private = good
            .lines()
            .find(|line| line.contains("\"private\""))
            .unwrap();
        fs::write(&host.path, good.replace(private, "  \"private\": \"AAAA\"")).unwrap();
        let error = host.start().unwrap_err();
        assert!(
            matches!(problem(&error), Problem::Refused(_)) && !error.is_transient(),
            "{error}"
        );
    }
}
