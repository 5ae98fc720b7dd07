use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use troth_core::{policy::MAX_RUNTIME_POLICY, tpm::HashAlgorithm};
use troth_daemon::{client::Client, tls};

use crate::{api::Endpoint, error::Error};

/// Where distributions keep the CAs of public web servers: Debian, SUSE, Fedora.
const WEB_CAS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
];
/// Names a file in their stead, as for OpenSSL.
const WEB_CAS_VARIABLE: &str = "SSL_CERT_FILE";

/// A file on a web server.
#[derive(Clone, Debug)]
pub(crate) struct Url {
    text: String,
    tls: bool,
    endpoint: Endpoint,
    /// With the query.
    path: String,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err("expected http://HOST/PATH or https://HOST/PATH".to_owned()),
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("spaces and other than ASCII must be percent-encoded".to_owned());
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            text: text.to_owned(),
            tls,
            endpoint: Endpoint::parse(authority, if tls { 443 } else { 80 })?,
            path: format!("{slash}{path}"),
        })
    }
}

/// SHA-256 of a file.
#[derive(Clone, Debug)]
pub(crate) struct Checksum(String);

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err("expected SHA-256 as 64 hexadecimal digits".to_owned())
        }
    }
}

impl Url {
    /// The text as it was given.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The file, at most [`MAX_RUNTIME_POLICY`] bytes, if it is the one that the checksum is of.
    pub(super) async fn fetch(
        &self,
        checksum: &Checksum,
        timeout: Duration,
    ) -> Result<Vec<u8>, Error> {
        let failed = |reason: String| Error::Download {
            url: self.text.clone(),
            reason,
        };
        let tls = if self.tls { Some(web_tls()?) } else { None };
        let answer = Client::new(&self.endpoint.host, self.endpoint.port, tls, timeout)
            .body_limit(MAX_RUNTIME_POLICY)
            .get(&self.path)
            .await
            .map_err(|source| Error::Unreachable {
                service: "web server",
                url: self.text.clone(),
                option: "the URL",
                source,
            })?;
        match answer.status {
            200 => {}
            300..=399 => {
                return Err(failed(format!(
                    "it is elsewhere (status {}), and redirects are not followed",
                    answer.status
                )));
            }
            status => return Err(failed(format!("the server answers with status {status}"))),
        }
        let digest = HashAlgorithm::Sha256.digest(&[&answer.body]).to_string();
        if digest != checksum.0 {
            return Err(failed(format!(
                "its SHA-256 is {digest}, not the given {}",
                checksum.0
            )));
        }
        Ok(answer.body.into())
    }
}

/// TLS as for any web server: public CAs, and the name must be right.
fn web_tls() -> Result<Arc<ClientConfig>, Error> {
    let bundle = std::env::var_os(WEB_CAS_VARIABLE)
        .map(PathBuf::from)
        .or_else(|| {
            let existing = WEB_CAS.iter().map(Path::new).find(|path| path.exists());
            existing.map(Path::to_owned)
        })
        .ok_or(Error::NoWebCas {
            variable: WEB_CAS_VARIABLE,
        })?;
    let unusable = |source| Error::Credentials { source };
    let mut roots = RootCertStore::empty();
    // Bundles have certificates that webpki does not take; the others are as good without them.
    roots.add_parsable_certificates(tls::load_certificates(&bundle).map_err(unusable)?);
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(tls::TlsError::Config(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, target, path) in [
            ("https://h/p.json", "h:443", "/p.json"),
            ("http://h", "h:80", "/"),
            ("http://[::1]:8080/a%20b?c=d#e", "[::1]:8080", "/a%20b?c=d"),
            ("https://h?x", "h:443", "/?x"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(
                (url.endpoint.to_string().as_str(), url.path.as_str()),
                (target, path)
            );
        }
        for bad in [
            "ftp://h/p",
            "h/p",
            "http://u@h/p",
            "http://h/a b",
            "http:///p",
            "http://h/ü",
        ] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_checksum_is_64_digits() {
        assert_eq!(
            "AB".repeat(32).parse::<Checksum>().unwrap().0,
            "ab".repeat(32)
        );
        for bad in ["", &"a".repeat(63), &"g".repeat(64), &"a".repeat(66)] {
            assert!(bad.parse::<Checksum>().is_err(), "{bad}");
        }
    }
}
