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
    mandatory: bool,
    hints: Vec<DistinguishedName>,
    chain: RwLock<Arc<dyn ClientCertVerifier>>,
    changed: watch::Sender<()>,
}

impl Clients {
    pub(super) fn new(
        authorities: Vec<CertificateDer<'static>>,
        mandatory: bool,
    ) -> Result<Self, TlsError> {
        let chain = chain(&authorities, mandatory, &RevocationLists::default())?;
        Ok(Self {
            hints: chain.root_hint_subjects().to_vec(),
            authorities,
            mandatory,
            chain: RwLock::new(chain),
            changed: watch::Sender::new(()),
        })
    }

    /// The CAs, and certificates that are good by themselves.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// From now on these lists apply instead of those before: to new connections, and to open
    /// ones, which end if their client is on a list.
    pub fn revoke(&self, lists: &RevocationLists) -> Result<(), TlsError> {
        let chain = chain(&self.authorities, self.mandatory, lists)?;
        *self.chain.write().unwrap_or_else(PoisonError::into_inner) = chain;
        self.changed.send_replace(());
        Ok(())
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

    fn chain(&self) -> Arc<dyn ClientCertVerifier> {
        let chain = self.chain.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&chain)
    }
}

/// A list's age does not matter to it: Keylime's lists are out of date when they are made, and a
/// CA that is late must not lock out every operator.
fn chain(
    authorities: &[CertificateDer<'static>],
    mandatory: bool,
    lists: &RevocationLists,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(roots(authorities)?);
    let chain = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .with_crls(lists.encoded())
        .allow_unknown_revocation_status();
    let chain = match mandatory {
        true => chain,
        false => chain.allow_unauthenticated(),
    };
    chain.build().map_err(TlsError::ClientVerifier)
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = self.chain();
        let issued = chain.verify_client_cert(end_entity, intermediates, now);
        match issued {
            Err(Error::InvalidCertificate(CertificateError::Revoked)) => issued,
            Err(_) if self.authorities.iter().any(|listed| listed == end_entity) => {
                Ok(ClientCertVerified::assertion())
            }
            issued => issued,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain()
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain()
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain().supported_verify_schemes()
    }
}
