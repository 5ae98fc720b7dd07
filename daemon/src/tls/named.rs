use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use super::{TlsError, provider, roots};
use crate::server::common_name;

/// Names of a certificate that are shown.
const NAMES_SHOWN: usize = 8;
/// Characters of each.
const NAME_SHOWN: usize = 100;

/// Believes a server whose certificate chains to one of the CAs and names the server: as it was
/// asked for, or as the configuration says. Every node of a site may have a certificate of the
/// same CA.
#[derive(Debug)]
pub(super) struct Named {
    chain: Arc<WebPkiServerVerifier>,
    name: Option<ServerName<'static>>,
}

impl Named {
    pub(super) fn new(
        authorities: &[CertificateDer<'static>],
        name: Option<String>,
    ) -> Result<Self, TlsError> {
        let roots = Arc::new(roots(authorities)?);
        let chain = WebPkiServerVerifier::builder_with_provider(roots, provider());
        let name = name
            .map(|name| ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name)))
            .transpose()?;
        Ok(Self {
            chain: chain.build().map_err(TlsError::ClientVerifier)?,
            name,
        })
    }
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let expected = self.name.as_ref().unwrap_or(server_name);
        match self
            .chain
            .verify_server_cert(end_entity, intermediates, expected, ocsp_response, now)
        {
            // rustls looks at the name last, so a name error means that the chain was good.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => by_common_name(end_entity, expected),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// A certificate without alternative names has its common name for one (RFC 6125, 6.4.4): older
/// sites' CAs made such. Any other one is for whom it names, be it as a URI, and for nobody else.
fn by_common_name(
    certificate: &CertificateDer<'_>,
    expected: &ServerName<'_>,
) -> Result<ServerCertVerified, Error> {
    let refused = |presented: Vec<String>| {
        let expected = expected.to_owned();
        Err(CertificateError::NotValidForNameContext {
            expected,
            presented,
        }
        .into())
    };
    let Ok(certificate) = Certificate::from_der(certificate) else {
        return refused(Vec::new());
    };
    let extension = certificate
        .tbs_certificate()
        .get_extension::<SubjectAltName>();
    if !matches!(extension, Ok(None)) {
        return refused(alternative_names(&certificate).unwrap_or_default());
    }
    match common_name(&certificate) {
        Some(name) if name.eq_ignore_ascii_case(&expected.to_str()) => {
            Ok(ServerCertVerified::assertion())
        }
        name => refused(name.into_iter().collect()),
    }
}

/// The DNS names and addresses that a certificate is for; `None` if they cannot be read.
pub fn alternative_names(certificate: &Certificate) -> Option<Vec<String>> {
    let found = certificate
        .tbs_certificate()
        .get_extension::<SubjectAltName>()
        .ok()?;
    let Some((_, SubjectAltName(names))) = found else {
        return Some(Vec::new());
    };
    let texts = names.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
        GeneralName::IpAddress(address) => Some(shown_address(address.as_bytes())),
        _ => None,
    });
    Some(texts.collect())
}

fn shown_address(bytes: &[u8]) -> String {
    let address = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
    address
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from))
        .map_or_else(
            |_| "an address of odd length".to_owned(),
            |ip| ip.to_string(),
        )
}

/// Whom the server's certificate is for and whom not, if that is why it was refused.
pub(crate) fn wrong_name(error: &Error) -> Option<String> {
    let Error::InvalidCertificate(CertificateError::NotValidForNameContext {
        expected,
        presented,
    }) = error
    else {
        return None;
    };
    let (names, expected) = (shown(presented), expected.to_str());
    Some(format!(
        "the server's certificate is for {names}, not for {expected}"
    ))
}

/// A peer chose these names.
fn shown(names: &[String]) -> String {
    let mut texts: Vec<String> = names
        .iter()
        .take(NAMES_SHOWN)
        .map(|name| {
            let start: String = name.chars().take(NAME_SHOWN).collect();
            start.escape_debug().to_string()
        })
        .collect();
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 if texts.is_empty() => return "nobody".to_owned(),
        0 => {}
        more => texts.push(format!("{more} more")),
    }
    texts.join(", ")
}
