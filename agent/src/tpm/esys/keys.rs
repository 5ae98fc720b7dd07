use troth_core::{
    identity::{check_ak, check_ek},
    tpm::{ObjectAttributes, Public as CorePublic},
};
use tss_esapi::{
    handles::{KeyHandle, PersistentTpmHandle, TpmHandle},
    interface_types::resource_handles::Hierarchy,
    structures::{Auth, Public},
    traits::UnMarshall,
};

use super::{
    EsysTpm,
    convert::marshal,
    error::{CREATE_PRIMARY, READ_PUBLIC, classify, text},
};
use crate::tpm::{DeviceKey, DeviceRole, KeyKind, TpmError};

impl EsysTpm {
    /// The key at a persistent handle and its public area, if `check` finds nothing wrong with it.
    pub(super) fn persistent(
        &mut self,
        option: &'static str,
        handle: u32,
        check: impl FnOnce(&[u8]) -> Result<(), String>,
    ) -> Result<(KeyHandle, Vec<u8>), TpmError> {
        let unusable = |reason: String| TpmError::PersistentKey {
            option,
            handle,
            reason,
        };
        let persistent =
            PersistentTpmHandle::new(handle).map_err(|error| unusable(text(&error)))?;
        let object = self
            .bare(READ_PUBLIC, |context| {
                context.tr_from_tpm_public(TpmHandle::Persistent(persistent))
            })
            .map_err(|error| match error {
                TpmError::Command { reason, .. } => unusable(reason),
                other => other,
            })?;
        let key = KeyHandle::from(object);
        let checked = self
            .bare(READ_PUBLIC, |context| context.read_public(key))
            .and_then(|(public, _, _)| marshal(READ_PUBLIC, &public))
            .and_then(|public| {
                check(&public).map_err(unusable)?;
                Ok(public)
            });
        match checked {
            Ok(public) => Ok((key, public)),
            Err(error) => {
                self.close(key);
                Err(error)
            }
        }
    }

    /// Runs `run` with a device identity key and its public area, and unloads the key whatever
    /// comes of it: a TPM without resource manager has room for three objects.
    pub(super) fn with_device_key<T>(
        &mut self,
        key: &DeviceKey,
        run: impl FnOnce(&mut Self, KeyHandle, &[u8]) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        if let Some(handle) = key.handle {
            let option = key.role.handle_option();
            let check = |public: &[u8]| check_device_key(key.role, public);
            let (loaded, public) = self.persistent(option, handle, check)?;
            let result = Auth::try_from(key.auth.as_slice())
                .and_then(|auth| self.context.tr_set_auth(loaded.into(), auth))
                .map_err(|error| classify("Esys_TR_SetAuth", &error))
                .and_then(|()| run(self, loaded, &public));
            self.close(loaded);
            return result;
        }
        let template = Public::unmarshall(&key.template())
            .map_err(|error| classify("template of the device identity", &error))?;
        let created = self.password(CREATE_PRIMARY, |context| {
            context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
        })?;
        let result = marshal(CREATE_PRIMARY, &created.out_public)
            .and_then(|public| run(self, created.key_handle, &public));
        self.flush(created.key_handle);
        result
    }

    /// Forgets a persistent key; the TPM keeps it.
    pub(super) fn close(&mut self, key: KeyHandle) {
        let mut object = key.into();
        if let Err(error) = self.bare("Esys_TR_Close", |context| context.tr_close(&mut object)) {
            tracing::warn!("a persistent key's handle stays open: {error}");
        }
    }
}

/// Is this public area that of an EK of this kind? Says what it is instead.
pub(super) fn check_persistent_ek(kind: KeyKind, public: &[u8]) -> Result<(), String> {
    let ek = CorePublic::from_tpmt(public).map_err(|error| error.to_string())?;
    check_ek(&ek).map_err(|error| format!("not an endorsement key: {error}"))?;
    let (found, wanted) = (ek.enc_alg(), kind.name());
    if found != wanted {
        return Err(format!(
            "the key there is {found}, but tpm_encryption_alg asks for {wanted}"
        ));
    }
    if ek.name_alg() != kind.ek_name_alg() {
        return Err(format!(
            "the key there has the nameAlg {}, which no EK template for {wanted} has",
            ek.name_alg().name()
        ));
    }
    Ok(())
}

/// Can this be the device identity key that it is configured as? Says what it is instead.
fn check_device_key(role: DeviceRole, public: &[u8]) -> Result<(), String> {
    let key = CorePublic::from_tpmt(public).map_err(|error| error.to_string())?;
    match role {
        // What makes a key an attestation key is the same for both.
        DeviceRole::Iak => check_ak(&key).map_err(|error| format!("not an IAK: {error}")),
        DeviceRole::IDevId => match ObjectAttributes::SIGN.difference(key.attributes()) {
            missing if missing.is_empty() => Ok(()),
            _ => Err("not an IDevID key: it does not sign".into()),
        },
    }
}
