use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use troth_core::identity::{Expiry, Quirk, Trust, TrustAnchors, certificate_quirks};
use troth_daemon::cert_store::{self, CertStoreError};

use super::candidate::Unfit;
use crate::config::{MalformedCertAction, RegistrarConfig, TpmIdentity};

/// What the administrator asks of registrations.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) identity: TpmIdentity,
    pub(super) require_ek_cert: bool,
    malformed: MalformedCertAction,
    expired: Expiry,
    anchors: TrustAnchors,
}

impl Rules {
    /// Reads the certificate store, which may be missing where nothing depends on it.
    pub(super) fn new(config: &RegistrarConfig) -> Result<Self, CertStoreError> {
        let needed = config.require_ek_cert
            || config.tpm_identity == TpmIdentity::IakIdevid
            || config.tpm_cert_store.is_some();
        let store = config.tpm_cert_store();
        Ok(Self {
            identity: config.tpm_identity,
            require_ek_cert: config.require_ek_cert,
            malformed: config.malformed_cert_action,
            expired: match config.accept_expired_tpm_certs {
                true => Expiry::Accept,
                false => Expiry::Refuse,
            },
            anchors: match needed || store.is_dir() {
                true => load(&store, needed)?,
                false => TrustAnchors::default(),
            },
        })
    }

    /// What certificates are checked against, now.
    pub(super) fn trust(&self) -> Trust<'_> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Trust {
            anchors: &self.anchors,
            at: now.unwrap_or_default().as_secs(),
            expired: self.expired,
        }
    }

    /// What to do about the form of a certificate (DER).
    pub(super) fn check_form(&self, member: &'static str, der: &[u8]) -> Result<(), Unfit> {
        if self.malformed == MalformedCertAction::Ignore {
            return Ok(());
        }
        let quirks = certificate_quirks(der).map_err(|source| Unfit::Key { member, source })?;
        if !quirks.contains(&Quirk::NotStrictDer) {
            return Ok(());
        }
        if self.malformed == MalformedCertAction::Reject {
            return Err(Unfit::Malformed(member));
        }
        tracing::warn!("{member}: {}", Quirk::NotStrictDer.meaning());
        Ok(())
    }
}

fn load(store: &Path, needed: bool) -> Result<TrustAnchors, CertStoreError> {
    let mut anchors = TrustAnchors::default();
    match cert_store::load(store, |der| anchors.add(der)) {
        Ok(_) => tracing::info!("{} CAs in {}", anchors.len(), store.display()),
        Err(error) if needed => return Err(error),
        // An empty directory at the default place is no mistake.
        Err(CertStoreError::Empty(_)) => {}
        Err(error) => tracing::warn!("{error}; device identities cannot be checked"),
    }
    Ok(anchors)
}
