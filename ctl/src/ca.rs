use std::path::Path;

use serde::Serialize;
use troth_core::tpm::HashAlgorithm;
use troth_daemon::tls;
use x509_cert::{Certificate, der::Decode};

use crate::{
    error::{Error, Exit},
    output::{Output, Tone, clean, now_ms, span, utc},
};

/// A certificate, in the shape of `--json`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct CertificateView {
    /// RFC 4514.
    pub(crate) subject: String,
    /// RFC 4514.
    pub(crate) issuer: String,
    /// Hex, as `openssl x509 -serial` prints it, in lower case.
    pub(crate) serial: String,
    /// Unix seconds.
    pub(crate) not_before: u64,
    /// Unix seconds.
    pub(crate) not_after: u64,
    /// SHA-256 of the DER, lower-case hex.
    pub(crate) sha256: String,
}

impl CertificateView {
    /// From DER.
    pub(crate) fn new(der: &[u8]) -> Result<Self, x509_cert::der::Error> {
        let certificate = Certificate::from_der(der)?;
        let tbs = certificate.tbs_certificate();
        Ok(Self {
            subject: tbs.subject().to_string(),
            issuer: tbs.issuer().to_string(),
            serial: hex::encode(tbs.serial_number().as_bytes()),
            not_before: tbs.validity().not_before.to_unix_duration().as_secs(),
            not_after: tbs.validity().not_after.to_unix_duration().as_secs(),
            sha256: HashAlgorithm::Sha256.digest(&[der]).to_string(),
        })
    }

    /// Two lines: names and validity, then the fingerprint.
    pub(crate) fn summary(&self) -> String {
        let issuer = if self.issuer == self.subject {
            "self-signed".to_owned()
        } else {
            format!("issued by {}", clean(&self.issuer))
        };
        format!(
            "{}, {issuer}, serial {}, until {}\nSHA-256 {}",
            if self.subject.is_empty() {
                "no subject".to_owned()
            } else {
                clean(&self.subject)
            },
            self.serial,
            utc(self.not_after),
            self.sha256
        )
    }

    fn validity(&self, now: u64) -> (Tone, String) {
        if now < self.not_before {
            (
                Tone::Bad,
                format!("not valid before {}", utc(self.not_before)),
            )
        } else if now > self.not_after {
            (
                Tone::Bad,
                format!("EXPIRED {} ago", span((now - self.not_after) * 1000)),
            )
        } else {
            let left = self.not_after - now;
            let tone = if left < 30 * 86_400 {
                Tone::Warn
            } else {
                Tone::Good
            };
            (tone, format!("{} left", span(left * 1000)))
        }
    }
}

/// `ca show --json`.
#[derive(Debug, Serialize)]
struct Show {
    /// The directory.
    directory: String,
    ca: FileView,
    /// Certificates beside the CA's, by file name.
    issued: Vec<FileView>,
}

/// A certificate file.
#[derive(Debug, Serialize)]
struct FileView {
    file: String,
    /// Is its issuer the CA's subject?
    issued_by_ca: bool,
    #[serde(flatten)]
    certificate: CertificateView,
}

/// Runs `trothctl ca show`.
pub(crate) fn show(directory: &Path, out: &Output) -> Result<Exit, Error> {
    let ca = load(directory, "cacert.crt", None)?;
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .map_err(|source| Error::ReadFile {
            path: directory.to_owned(),
            source,
        })?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".crt") && name != "cacert.crt")
        .collect();
    names.sort_unstable();
    let issued = names
        .iter()
        .map(|name| load(directory, name, Some(&ca.certificate.subject)))
        .collect::<Result<_, _>>()?;
    let show = Show {
        directory: directory.display().to_string(),
        ca,
        issued,
    };
    out.result(&show, || show.describe(out, now_ms() / 1000))?;
    Ok(Exit::Success)
}

fn load(directory: &Path, name: &str, ca: Option<&str>) -> Result<FileView, Error> {
    let path = directory.join(name);
    let chain = tls::load_certificates(&path).map_err(|source| Error::Credentials { source })?;
    // `load_certificates` returns at least one certificate; the first is the file's own.
    let certificate =
        CertificateView::new(chain.first().map_or(&[], |der| der.as_ref())).map_err(|error| {
            Error::Malformed {
                path,
                reason: error.to_string(),
            }
        })?;
    let issued_by_ca = ca.unwrap_or(&certificate.subject) == certificate.issuer;
    Ok(FileView {
        file: name.to_owned(),
        issued_by_ca,
        certificate,
    })
}

impl Show {
    fn describe(&self, out: &Output, now: u64) -> String {
        let mut text = format!("{}\n", clean(&self.directory));
        for file in std::iter::once(&self.ca).chain(&self.issued) {
            let certificate = &file.certificate;
            let (tone, validity) = certificate.validity(now);
            let issuer = if file.issued_by_ca {
                String::new()
            } else {
                format!(
                    " (issued by {}, NOT by this CA)",
                    clean(&certificate.issuer)
                )
            };
            text.push_str(&format!(
                "\n{}\n",
                out.paint(Tone::Strong, &clean(&file.file))
            ));
            text.push_str(&out.fields(&[
                (
                    "Subject",
                    format!("{}{issuer}", clean(&certificate.subject)),
                ),
                ("Serial", certificate.serial.clone()),
                (
                    "Valid",
                    format!(
                        "{} to {}, {}",
                        utc(certificate.not_before),
                        utc(certificate.not_after),
                        out.paint(tone, &validity)
                    ),
                ),
                ("SHA-256", certificate.sha256.clone()),
            ]));
        }
        text
    }
}
