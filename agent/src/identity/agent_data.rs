use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use troth_core::{
    identity::{AgentId, check_ak},
    tpm::{HashAlgorithm, Public, SignatureScheme},
};

use super::saved::{Origin, Problem, SavedAkError};
use crate::tpm::{AkTemplate, KeyBlobs};

/// Name of the file, in Keylime's working directory and in ours.
pub const FILE: &str = "agent_data.json";

/// The file in Keylime's own working directory.
pub const KEYLIME: &str = "/var/lib/keylime/agent_data.json";

/// Where an AK of Keylime's agent may be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// The file.
    pub path: PathBuf,
    /// Does the configuration name it? Then it must exist.
    pub named: bool,
}

/// Largest file that is read; one with an RSA-4096 AK has about 8 KiB.
const FILE_LIMIT: u64 = 64 * 1024;

/// Largest public or private area in bytes; those of an RSA-4096 key have about 1.5 KiB.
const AREA_LIMIT: usize = 4096;

/// The AK as Keylime 7.14.3's agent saves it. Further members are another version's.
#[derive(Debug, Deserialize)]
struct AgentData {
    ak_hash_alg: String,
    ak_sign_alg: String,
    /// TPMT_PUBLIC.
    ak_public: Vec<u8>,
    /// Content of TPM2B_PRIVATE.
    ak_private: Vec<u8>,
    /// The characters of the agent id that `hash_ek` gives.
    ek_hash: Vec<u8>,
}

/// An AK of Keylime's agent, and where it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub path: PathBuf,
    pub blobs: KeyBlobs,
}

/// The AK in the first of `candidates` that exists, checked against configuration and EK. Whether
/// the private area is this TPM's is for the TPM to say.
///
/// Where nobody can tell whether there is one, that is an error: a new AK, once made, would be this
/// host's for good.
pub(super) fn find(
    candidates: &[Candidate],
    template: &AkTemplate,
    ek: &Public,
) -> Result<Option<Found>, SavedAkError> {
    for candidate in candidates {
        if let Some(content) = read(candidate)? {
            let path = candidate.path.clone();
            let blobs = parse(&path, &content, template, ek)?;
            return Ok(Some(Found { path, blobs }));
        }
    }
    Ok(None)
}

/// `None` if there is no such file, and need not be one.
fn read(candidate: &Candidate) -> Result<Option<Vec<u8>>, SavedAkError> {
    let path = &candidate.path;
    let failed = |error| Origin::Keylime.error(path, Problem::Unreadable(error));
    match fs::metadata(path) {
        Ok(about) if about.is_file() => {}
        Ok(_) => return Err(damaged(path, "not a regular file".into())),
        Err(error) => return absent(candidate, error),
    }
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut content))
        .map_err(failed)?;
    if u64::try_from(content.len()).is_ok_and(|length| length <= FILE_LIMIT) {
        return Ok(Some(content));
    }
    Err(damaged(path, format!("larger than {FILE_LIMIT} bytes")))
}

/// What it means that nothing is known of a file.
fn absent(candidate: &Candidate, error: io::Error) -> Result<Option<Vec<u8>>, SavedAkError> {
    let problem = match error.kind() {
        io::ErrorKind::NotFound if !candidate.named => return Ok(None),
        io::ErrorKind::NotFound => Problem::Missing,
        // Keylime's directory is closed to others.
        io::ErrorKind::PermissionDenied => Problem::Hidden(error),
        _ => Problem::Unreadable(error),
    };
    Err(Origin::Keylime.error(&candidate.path, problem))
}

fn parse(
    path: &Path,
    content: &[u8],
    template: &AkTemplate,
    ek: &Public,
) -> Result<KeyBlobs, SavedAkError> {
    let data: AgentData =
        serde_json::from_slice(content).map_err(|error| damaged(path, error.to_string()))?;
    for (name, area) in [
        ("ak_public", &data.ak_public),
        ("ak_private", &data.ak_private),
    ] {
        if area.is_empty() || area.len() > AREA_LIMIT {
            let reason = format!("{name} has {} bytes, not 1 to {AREA_LIMIT}", area.len());
            return Err(damaged(path, reason));
        }
    }
    let ak = Public::from_tpmt(&data.ak_public)
        .map_err(|error| damaged(path, format!("ak_public: {error}")))?;
    check_ak(&ak).map_err(|error| damaged(path, format!("ak_public: {error}")))?;

    let wanted = (
        template.kind.name(),
        keylime_scheme(template.scheme),
        keylime_hash(template.hash),
    );
    let kind = ak.enc_alg();
    let saved = (
        kind.as_str(),
        data.ak_sign_alg.as_str(),
        data.ak_hash_alg.as_str(),
    );
    let show = |(kind, scheme, hash): (&str, &str, &str)| {
        let text: String = format!("{kind} {scheme} {hash}").chars().take(64).collect();
        text.escape_debug().to_string()
    };
    let unusable = |problem| Err(Origin::Keylime.error(path, problem));
    if saved != wanted {
        return unusable(Problem::OtherAlgorithm {
            saved: show(saved),
            wanted: show(wanted),
        });
    }
    let is = (ak.parms().scheme(), ak.name_alg());
    if is != (Some((template.scheme, template.hash)), template.hash) {
        let reason = format!("ak_public is not the key {} that it is called", show(saved));
        return Err(damaged(path, reason));
    }

    let found = AgentId::hash_ek(ek);
    if data.ek_hash != found.as_str().as_bytes() {
        let saved: String = String::from_utf8_lossy(&data.ek_hash)
            .chars()
            .take(64)
            .collect();
        return unusable(Problem::OtherEk {
            saved: saved.escape_debug().to_string(),
            found: found.to_string(),
        });
    }
    Ok(KeyBlobs {
        public: data.ak_public,
        private: data.ak_private,
    })
}

fn damaged(path: &Path, reason: String) -> SavedAkError {
    Origin::Keylime.error(path, Problem::Damaged(reason))
}

fn keylime_hash(hash: HashAlgorithm) -> &'static str {
    match hash {
        HashAlgorithm::Sha1 => "Sha1",
        HashAlgorithm::Sha256 => "Sha256",
        HashAlgorithm::Sha384 => "Sha384",
        HashAlgorithm::Sha512 => "Sha512",
    }
}

fn keylime_scheme(scheme: SignatureScheme) -> &'static str {
    match scheme {
        SignatureScheme::RsaSsa => "RsaSsa",
        SignatureScheme::RsaPss => "RsaPss",
        SignatureScheme::Ecdsa => "EcDsa",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        identity::ak::{self, AkError, Keys},
        tpm::{
            KeyKind, Tpm,
            sim::{Chip, Faults},
        },
    };

    const TEMPLATE: AkTemplate = AkTemplate {
        kind: KeyKind::EccP256,
        hash: HashAlgorithm::Sha256,
        scheme: SignatureScheme::Ecdsa,
    };

    /// A host that Keylime's agent ran on.
    struct Host {
        chip: Chip,
        directory: tempfile::TempDir,
        ak: Vec<u8>,
        data: Value,
    }

    impl Host {
        fn new() -> Self {
            let chip = Chip::manufacture().unwrap();
            let mut tpm = chip.open().unwrap();
            let ek = Public::from_tpmt(&tpm.load_ek(TEMPLATE.kind).unwrap()).unwrap();
            let blobs = tpm.create_ak(&TEMPLATE).unwrap();
            let data = json!({
                "ak_hash_alg": "Sha256",
                "ak_sign_alg": "EcDsa",
                "ak_public": blobs.public,
                "ak_private": blobs.private,
                "ek_hash": AgentId::hash_ek(&ek).as_str().as_bytes(),
            });
            let host = Self {
                chip,
                directory: tempfile::tempdir().unwrap(),
                ak: blobs.public,
                data,
            };
            host.write(&host.data.to_string());
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, text: &str) {
            fs::write(self.path(FILE), text).unwrap();
        }

        fn start(&self) -> Result<Keys, AkError> {
            let mut tpm = self.chip.open().unwrap();
            let candidates = [self.path("absent.json"), self.path(FILE)];
            let candidates = candidates.map(|path| Candidate { path, named: false });
            ak::load_or_create(&mut tpm, &TEMPLATE, &self.path(ak::FILE), &candidates)
        }
    }

    #[test]
    fn the_ak_of_keylimes_agent_becomes_ours_for_good() {
        let host = Host::new();
        let keys = host.start().unwrap();
        assert_eq!(keys.ak.as_tpmt(), host.ak);
        assert!(!keys.created);
        fs::remove_file(host.path(FILE)).unwrap();
        assert_eq!(host.start().unwrap().ak.as_tpmt(), host.ak, "saved as ours");
    }

    #[test]
    fn our_own_ak_comes_first() {
        let host = Host::new();
        fs::remove_file(host.path(FILE)).unwrap();
        let own = host.start().unwrap();
        host.write("not even read");
        assert_eq!(host.start().unwrap().ak, own.ak);
    }

    #[test]
    fn a_tpm_failure_that_passes_only_postpones_it() {
        let host = Host::new();
        host.chip.set_faults(Faults {
            load: 1,
            ..Faults::default()
        });
        assert!(host.start().unwrap_err().is_transient());
        assert!(!host.path(ak::FILE).exists(), "nothing is adopted unloaded");
        assert_eq!(host.start().unwrap().ak.as_tpmt(), host.ak);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_an_error_and_never_a_new_ak() {
        let host = Host::new();
        let with = |name: &str, value: Value| {
            let mut data = host.data.clone();
            data[name] = value;
            data.to_string()
        };
        let good = host.data.to_string();
        let mut rsa = host.ak.clone();
        rsa[1] = 1;
        let mut unrestricted = host.ak.clone();
        unrestricted[5] = 4;
        for (bad, told) in [
            (String::new(), "EOF"),
            (good[..good.len() / 2].to_owned(), "EOF"),
            ("{}".into(), "missing field"),
            (with("ak_public", json!([300])), "300"),
            (with("ak_public", json!([])), "ak_public has 0 bytes"),
            (
                with("ak_private", json!(vec![0; 5000])),
                "ak_private has 5000",
            ),
            (with("ak_public", json!(rsa)), "ak_public"),
            (with("ak_public", json!(unrestricted)), "ak_public"),
            (with("ak_hash_alg", json!("Sm3_256")), "Sm3_256"),
            (with("ak_sign_alg", json!("RsaSsa")), "tpm_signing_alg"),
            (with("ek_hash", json!(b"abc")), "another EK"),
            (with("ak_private", json!([1, 2, 3])), "the TPM refuses"),
            (" ".repeat(70_000), "larger than"),
        ] {
            host.write(&bad);
            let error = host.start().unwrap_err();
            assert!(!error.is_transient(), "{error}");
            let text = error.to_string();
            assert!(text.contains(told), "{told}: {text}");
            let path = host.path(FILE).display().to_string();
            assert!(
                text.contains(&path) && text.contains("agent_data_path"),
                "{text}"
            );
            assert!(!host.path(ak::FILE).exists(), "{told}");
        }
    }

    /// What was copied there later would be too late.
    #[test]
    fn a_file_that_nobody_can_see_is_no_reason_for_a_new_ak() {
        let host = Host::new();
        let candidate = |named| Candidate {
            path: host.path("elsewhere.json"),
            named,
        };
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        for named in [false, true] {
            let text = absent(&candidate(named), denied()).unwrap_err().to_string();
            for part in [
                "elsewhere.json",
                "permission denied",
                "Copy",
                "agent_data_path = \"\"",
            ] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
        let start = |named| {
            let mut tpm = host.chip.open().unwrap();
            ak::load_or_create(
                &mut tpm,
                &TEMPLATE,
                &host.path(ak::FILE),
                &[candidate(named)],
            )
        };
        let error = start(true).unwrap_err();
        assert!(!error.is_transient());
        let text = error.to_string();
        for part in ["elsewhere.json", "does not exist", "agent_data_path"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!host.path(ak::FILE).exists());
        assert!(start(false).unwrap().created);
        assert!(!start(true).unwrap().created, "taken over is taken over");
    }

    #[test]
    fn what_is_no_file_is_not_taken_for_a_missing_one() {
        let host = Host::new();
        fs::remove_file(host.path(FILE)).unwrap();
        fs::create_dir(host.path(FILE)).unwrap();
        let error = host.start().unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
