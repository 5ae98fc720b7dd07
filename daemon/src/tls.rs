//! rustls configurations for both sides.
//!
//! An agent is known by the certificate that it registered, a server by its CA and its name.
//! [`tls::ServerTrust`] names exactly these ways.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::{CertifiedKey, SingleCertAndKey},
};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

use self::named::Named;
pub use self::{
    clients::Clients,
    named::alternative_names,
    revocation::{RevocationError, RevocationLists},
    revocation_files::{REVOCATION_LIST, RevocationFiles},
};
use crate::{
    config::Secret,
    private_key::{PrivateKeyError, decrypt_pem},
};

/// Whose client certificates a server takes.
mod clients;
/// Whether a server is the one that was asked for.
pub(crate) mod named;
/// Certificate revocation lists.
pub(crate) mod revocation;
/// Files of such lists, which may be replaced at any time.
mod revocation_files;

/// A certificate chain with its private key. Cheap to clone: the key is read once, and shared by
/// all configurations.
#[derive(Clone)]
pub struct Identity(Arc<CertifiedKey>);

impl Identity {
    /// From PEM texts: the certificate (leaf first) and the key (PKCS#8, PKCS#1 or SEC 1).
    pub fn from_pem(cert_pem: &[u8], key_pem: &[u8]) -> Result<Self, TlsError> {
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(TlsError::PrivateKey)?;
        let chain = certificates_from_pem(cert_pem)?;
        let certified =
            CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Config)?;
        Ok(Self(Arc::new(certified)))
    }

    /// From two PEM files.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        Self::from_pem(&read(cert)?, &read(key)?)
    }

    /// From two PEM files, of which that of the key may be encrypted.
    pub fn load_encrypted(cert: &Path, key: &Path, password: &Secret) -> Result<Self, TlsError> {
        let cert_pem = read(cert)?;
        let key_pem = decrypt_pem(&read(key)?, password).map_err(|source| TlsError::Encrypted {
            path: key.to_owned(),
            source,
        })?;
        Self::from_pem(&cert_pem, &key_pem)
    }

    /// The leaf certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        // `certificates_from_pem` refuses an empty chain.
        &self.0.cert[0]
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("chain", &self.0.cert.len())
            .finish_non_exhaustive()
    }
}

/// All certificates of a PEM text; none is an error.
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(TlsError::Certificate)?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    Ok(certificates)
}

/// All certificates of a PEM file.
pub fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates_from_pem(&read(path)?)
}

/// Is it PEM, and not DER? A text may begin with a `0` as DER does.
pub(crate) fn is_pem(bytes: &[u8]) -> bool {
    let is_der = matches!(bytes, [0x30, 0x80..=0xff, ..]);
    !is_der
        && bytes
            .windows(PEM_MARK.len())
            .any(|window| window == PEM_MARK)
}

/// What each block of PEM begins with.
const PEM_MARK: &[u8] = b"-----BEGIN ";

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Which client certificates a server asks for.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// None.
    None,
    /// One that chains to these CAs, if any is presented.
    Optional(Vec<CertificateDer<'static>>),
    /// One that chains to these CAs, or no connection.
    Required(Vec<CertificateDer<'static>>),
}

/// The identity that a server shows; it may be replaced while the server runs. Clones share it.
#[derive(Clone, Debug)]
pub struct ServedIdentity(Arc<RwLock<Identity>>);

impl ServedIdentity {
    /// Shows `identity`.
    pub fn new(identity: Identity) -> Self {
        Self(Arc::new(RwLock::new(identity)))
    }

    /// Shows another identity from now on, to new connections.
    pub fn replace(&self, identity: Identity) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }
}

impl ResolvesServerCert for ServedIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&shown.0))
    }
}

/// What a server needs for TLS. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    clients: Option<Arc<Clients>>,
}

impl ServerTls {
    /// For rustls.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Whose certificates it takes, if it asks for any.
    pub fn clients(&self) -> Option<&Arc<Clients>> {
        self.clients.as_ref()
    }
}

/// A TLS 1.2/1.3 server.
pub fn server_config(identity: &Identity, clients: ClientAuth) -> Result<ServerTls, TlsError> {
    server_config_showing(&ServedIdentity::new(identity.clone()), clients)
}

/// [`server_config`] with an identity that may be replaced.
pub fn server_config_showing(
    identity: &ServedIdentity,
    clients: ClientAuth,
) -> Result<ServerTls, TlsError> {
    let clients = match clients {
        ClientAuth::None => None,
        ClientAuth::Optional(authorities) => Some(Clients::new(authorities, false)?),
        ClientAuth::Required(authorities) => Some(Clients::new(authorities, true)?),
    };
    let clients = clients.map(Arc::new);
    let verifier: Arc<dyn ClientCertVerifier> = match &clients {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(clients) => Arc::<Clients>::clone(clients),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Peers keep their connections; tickets would let a resumed session outlive a changed CA.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let config = Arc::new(config);
    Ok(ServerTls { config, clients })
}

/// Why a client believes that it talks to the right server.
#[derive(Clone, Debug)]
pub enum ServerTrust {
    /// The server has the key of this certificate (an agent's, as registered). A certificate
    /// that it renewed for the same key is as good; validity and names are not looked at.
    Pinned(CertificateDer<'static>),
    /// The server's certificate chains to one of these, and is for the host that was asked for.
    Roots(Vec<CertificateDer<'static>>),
    /// The server's certificate chains to one of `authorities`, and is for `name`, whatever the
    /// host is called that was asked for.
    Named {
        /// The CAs.
        authorities: Vec<CertificateDer<'static>>,
        /// A DNS name or an address.
        name: String,
    },
}

/// A TLS 1.2/1.3 client, with a client certificate or without.
pub fn client_config(
    trust: ServerTrust,
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        ServerTrust::Pinned(certificate) => Arc::new(Pinned::new(certificate)),
        ServerTrust::Roots(authorities) => Arc::new(Named::new(&authorities, None)?),
        ServerTrust::Named { authorities, name } => Arc::new(Named::new(&authorities, Some(name))?),
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => {
            let shown = SingleCertAndKey::from(Arc::clone(&identity.0));
            builder.with_client_cert_resolver(Arc::new(shown))
        }
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = false;
    // Connections are kept; room for sessions to resume would cost 14 KiB for each node.
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// One for all configurations: each of a verifier's nodes has one.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for authority in authorities {
        store.add(authority.clone()).map_err(TlsError::Config)?;
    }
    Ok(store)
}

/// Believes one key. The handshake signature proves that the peer has it.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    /// Its SubjectPublicKeyInfo; `None` when it does not parse, then it must be shown as it is.
    key: Option<Vec<u8>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn new(certificate: CertificateDer<'static>) -> Self {
        Self {
            key: public_key(&certificate),
            certificate,
            algorithms: provider().signature_verification_algorithms,
        }
    }
}

/// SubjectPublicKeyInfo of a certificate, DER.
fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let key = certificate.tbs_certificate().subject_public_key_info();
    key.to_der().ok()
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let renewed = || self.key.is_some() && public_key(end_entity) == self.key;
        if *end_entity == self.certificate || renewed() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Key material that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A certificate does not parse as PEM.
    #[error("certificate is not PEM: {0}")]
    Certificate(pem::Error),
    /// A trust store that no verifier can be built from.
    #[error("certificate verifier: {0}")]
    ClientVerifier(rustls::server::VerifierBuilderError),
    /// Certificate and key do not fit together, or a CA certificate does not parse.
    #[error("TLS configuration: {0}")]
    Config(rustls::Error),
    /// An encrypted private key that does not open.
    #[error("{}: {source}", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: PrivateKeyError,
    },
    /// A text without a single certificate.
    #[error("no certificate found: expected a PEM block that begins with BEGIN CERTIFICATE")]
    NoCertificate,
    /// The private key does not parse.
    #[error("private key is not an unencrypted PEM key: {0}")]
    PrivateKey(pem::Error),
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A name that no certificate can have.
    #[error("{0:?} is neither a DNS name nor an address")]
    ServerName(String),
}
