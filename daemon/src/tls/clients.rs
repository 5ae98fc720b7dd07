use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::sync::watch;

use super::{RevocationLists, TlsError, provider, roots};

/// A client certificate is good when a listed CA issued it and has not revoked it, or when it is
/// itself on the list: sites put a verifier's self-signed certificate into an agent's
/// `trusted_client_ca`.
#[derive(Debug)]
pub struct Clients {
    authorities: Vec<CertificateDer<'static>>,
    chain: Arc<dyn ClientCertVerifier>,
    lists: RwLock<RevocationLists>,
    changed: watch::Sender<()>,
}

impl Clients {
    pub(super) fn new(
        authorities: Vec<CertificateDer<'static>>,
        mandatory: bool,
    ) -> Result<Self, TlsError> {
        let roots = Arc::new(roots(&authorities)?);
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let chain = match mandatory {
            true => chain,
            false => chain.allow_unauthenticated(),
        };
        Ok(Self {
            authorities,
            chain: chain.build().map_err(TlsError::ClientVerifier)?,
            lists: RwLock::default(),
            changed: watch::Sender::new(()),
        })
    }

    /// The CAs, and certificates that are good by themselves.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// From now on these lists apply instead of those before: to new connections, and to open
    /// ones, which end if their client is on a list.
    ///
    /// A list's age does not matter: Keylime's lists are out of date when they are made, and a CA
    /// that is late must not lock out every operator.
    pub fn revoke(&self, lists: RevocationLists) {
        *self.lists.write().unwrap_or_else(PoisonError::into_inner) = lists;
        self.changed.send_replace(());
    }

    /// Tells when other lists apply. What was looked at before is to be looked at again.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Would these certificates, the client's own first, be taken now?
    pub(crate) fn admit(&self, certificates: &[CertificateDer<'_>]) -> Result<(), Error> {
        let (own, intermediates) = certificates
            .split_first()
            .ok_or(Error::NoCertificatesPresented)?;
        self.verify_client_cert(own, intermediates, UnixTime::now())
            .map(drop)
    }
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let issued = self
            .chain
            .verify_client_cert(end_entity, intermediates, now);
        let verified = match issued {
            Err(_) if self.authorities.iter().any(|listed| listed == end_entity) => {
                ClientCertVerified::assertion()
            }
            issued => issued?,
        };
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        let certificates: Vec<_> = std::iter::once(end_entity).chain(intermediates).collect();
        match lists.revoke_any(&certificates) {
            true => Err(CertificateError::Revoked.into()),
            false => Ok(verified),
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
