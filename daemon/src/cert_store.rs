//! A directory of CA certificates, such as Keylime's `tpm_cert_store`.

use std::{
    fmt::Display,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::tls::{certificates_from_pem, is_pem};

/// Names that certificates have; other files are none of ours.
const EXTENSIONS: [&str; 4] = ["pem", "crt", "der", "cer"];
/// Files of one store. All TPM manufacturers together have some hundred CAs.
const MAX_FILES: usize = 4096;
/// Bytes of one file, which may hold several certificates in PEM.
const MAX_FILE: u64 = 1024 * 1024;

/// Hands every certificate (DER) of the files `*.pem`, `*.crt`, `*.der` and `*.cer` to `add`, in
/// the order of their names, and says how many it took.
///
/// A file without a certificate, and a certificate that `add` refuses, are skipped with a warning.
/// It is an error if the directory or a file of it cannot be read, or if nothing is left.
pub fn load<E: Display>(
    directory: &Path,
    mut add: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<usize, CertStoreError> {
    let mut added = 0;
    for path in files(directory)? {
        let bytes = read(&path)?;
        let certificates = if bytes.first() == Some(&0x30) && !is_pem(&bytes) {
            vec![bytes]
        } else {
            match certificates_from_pem(&bytes) {
                Ok(certificates) => certificates.iter().map(|der| der.to_vec()).collect(),
                Err(error) => {
                    tracing::warn!("{}: skipped: {error}", path.display());
                    continue;
                }
            }
        };
        for der in certificates {
            match add(&der) {
                Ok(()) => added += 1,
                Err(error) => tracing::warn!("{}: skipped: {error}", path.display()),
            }
        }
    }
    if added == 0 {
        return Err(CertStoreError::Empty(directory.to_owned()));
    }
    Ok(added)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, CertStoreError> {
    let unreadable = |source| CertStoreError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let extension = path
            .extension()
            .map(|extension| extension.to_ascii_lowercase());
        let named = EXTENSIONS
            .iter()
            .any(|name| extension.as_deref() == Some(name.as_ref()));
        if !named || !path.is_file() {
            continue;
        }
        if files.len() == MAX_FILES {
            return Err(CertStoreError::TooManyFiles(directory.to_owned()));
        }
        files.push(path);
    }
    files.sort_unstable();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, CertStoreError> {
    let unreadable = |source| CertStoreError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let size = file
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if u64::try_from(size).is_ok_and(|size| size <= MAX_FILE) {
        Ok(bytes)
    } else {
        Err(CertStoreError::TooLarge(path.to_owned()))
    }
}

/// Why a certificate store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertStoreError {
    /// Nothing in it is a certificate.
    #[error(
        "certificate store {}: no certificate in *.pem, *.crt, *.der or *.cer; put those of the \
         CAs to trust there",
        .0.display()
    )]
    Empty(PathBuf),
    /// The directory or a file cannot be read.
    #[error("certificate store: {}: {source}", path.display())]
    Read {
        /// The directory or file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file of over 1 MiB.
    #[error("certificate store: {} is larger than 1 MiB; remove it or split it", .0.display())]
    TooLarge(PathBuf),
    /// Over 4,096 files.
    #[error("certificate store {} has more than 4096 certificate files", .0.display())]
    TooManyFiles(PathBuf),
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, fs};

    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    fn loaded(directory: &Path) -> Result<Vec<Vec<u8>>, CertStoreError> {
        let mut found = Vec::new();
        load(directory, |der| {
            found.push(der.to_vec());
            Ok::<_, Infallible>(())
        })?;
        Ok(found)
    }

    #[test]
    fn certificates_of_every_form_are_found_and_other_files_passed_over() {
        let store = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(store.path().join(name), bytes).unwrap();
        write("a.pem", format!("a CA\n{PEM}{PEM}").as_bytes());
        write("b.der", &[0x30, 1, 9]);
        write("c.CER", format!("01 of 3\n{PEM}").as_bytes());
        write("README", b"-----BEGIN CERTIFICATE-----");
        write("d.crt", b"not a certificate");
        write("e.pem", b"");
        fs::create_dir(store.path().join("f.pem")).unwrap();
        let pem = vec![0x30, 0];
        let expected = [pem.clone(), pem.clone(), vec![0x30, 1, 9], pem];
        assert_eq!(loaded(store.path()).unwrap(), expected);
        // One that is refused takes nothing else with it.
        let taken = load(store.path(), |der| match der.len() {
            2 => Ok(()),
            _ => Err("too short"),
        });
        assert_eq!(taken.unwrap(), 3);
    }

    #[test]
    fn what_is_wrong_with_a_store_is_said_with_its_path() {
        let store = tempfile::tempdir().unwrap();
        let error = loaded(store.path()).unwrap_err();
        assert!(matches!(error, CertStoreError::Empty(_)), "{error}");
        let error = loaded(&store.path().join("missing")).unwrap_err();
        assert!(
            error.to_string().contains("missing: No such file"),
            "{error}"
        );
        let large = File::create(store.path().join("large.pem")).unwrap();
        large.set_len(MAX_FILE + 1).unwrap();
        let error = loaded(store.path()).unwrap_err();
        assert!(
            error.to_string().contains("large.pem is larger than 1 MiB"),
            "{error}"
        );
    }
}
