/// Between tss-esapi's types and ours.
mod convert;
/// Response codes, and what they mean to the agent.
mod error;
/// Keys that are not made below the EK: persistent ones, and those of the device identity.
mod keys;

use std::{path::Path, str::FromStr};

use troth_core::tpm::{CredentialBlob, Digest, HashAlgorithm, PcrMask, PcrValues};
use tss_esapi::{
    Context, Error,
    abstraction::{ek, nv},
    attributes::SessionAttributesBuilder,
    constants::{CapabilityType, PropertyTag, SessionType},
    handles::{AuthHandle, KeyHandle, NvIndexTpmHandle, ObjectHandle, SessionHandle, TpmHandle},
    interface_types::{
        resource_handles::{Hierarchy, NvAuth},
        session_handles::{AuthSession, PolicySession},
    },
    structures::{
        Auth, CapabilityData, Data, Digest as TssDigest, DigestList, DigestValues, EncryptedSecret,
        IdObject, Nonce, PcrSlot, Private, Public, SignatureScheme as TssSignatureScheme,
        SymmetricDefinition,
    },
    tcti_ldr::TctiNameConf,
    traits::UnMarshall,
};
use zeroize::Zeroizing;

use super::{
    AkTemplate, Description, DeviceKey, Endorsement, KeyBlobs, KeyKind, Signed, Tpm, TpmError,
};
use convert::{
    ak_public, bank_name, hashing, marshal, pcr_handle, pcr_number, pcr_selection, selection,
};
use error::{CERTIFY, CREATE_PRIMARY, LOAD, POLICY_SECRET, classify, refuses_auth, text};
use keys::check_persistent_ek;

const GET_CAPABILITY: &str = "TPM2_GetCapability";

/// The name that the vendor gave the chip, four characters each.
const VENDOR_STRING: [PropertyTag; 4] = [
    PropertyTag::VendorString1,
    PropertyTag::VendorString2,
    PropertyTag::VendorString3,
    PropertyTag::VendorString4,
];

/// The kernel's resource manager: shared use, transient objects flushed when the file is closed.
const RESOURCE_MANAGER: &str = "/dev/tpmrm0";

/// The TCTI to use: the configured one, else the kernel's resource manager, else tpm2-abrmd.
pub fn choose_tcti(configured: Option<&str>) -> String {
    tcti_or_default(configured, Path::new(RESOURCE_MANAGER))
}

fn tcti_or_default(configured: Option<&str>, resource_manager: &Path) -> String {
    match configured {
        Some(tcti) => tcti.to_owned(),
        None if resource_manager.exists() => format!("device:{}", resource_manager.display()),
        None => "tabrmd".to_owned(),
    }
}

/// A TPM reached through tpm2-tss. Dropping it flushes every handle and session it made.
#[derive(Debug)]
pub struct EsysTpm {
    context: Context,
    /// Persistent handle of the EK, if it has one.
    ek_handle: Option<u32>,
    ek: Option<(KeyKind, KeyHandle, Vec<u8>)>,
    ak: Option<KeyHandle>,
}

impl EsysTpm {
    /// Opens the TPM at `tcti` (`device:PATH`, `tabrmd[:...]`, `swtpm:host=H,port=N`, `mssim:...`).
    /// The EK is made from its template; the endorsement hierarchy has no password.
    pub fn open(tcti: &str) -> Result<Self, TpmError> {
        Self::open_with(tcti, &Endorsement::default())
    }

    /// As [`EsysTpm::open`], with the endorsement hierarchy as the administrator has set it up.
    pub fn open_with(tcti: &str, endorsement: &Endorsement) -> Result<Self, TpmError> {
        let open = |error: Error| TpmError::Open {
            tcti: tcti.to_owned(),
            reason: text(&error),
        };
        let name = TctiNameConf::from_str(tcti).map_err(open)?;
        let mut context = Context::new(name).map_err(open)?;
        Auth::try_from(endorsement.auth.as_slice())
            .and_then(|auth| context.tr_set_auth(ObjectHandle::Endorsement, auth))
            .map_err(|error| classify("Esys_TR_SetAuth", &error))?;
        Ok(Self {
            context,
            ek_handle: endorsement.ek_handle,
            ek: None,
            ak: None,
        })
    }

    fn ek(&self) -> Result<(KeyKind, KeyHandle), TpmError> {
        self.ek
            .as_ref()
            .map(|(kind, key, _)| (*kind, *key))
            .ok_or(TpmError::NotLoaded("the EK"))
    }

    fn ak(&self) -> Result<KeyHandle, TpmError> {
        self.ak.ok_or(TpmError::NotLoaded("the AK"))
    }

    fn password<T>(
        &mut self,
        command: &'static str,
        run: impl FnOnce(&mut Context) -> Result<T, Error>,
    ) -> Result<T, TpmError> {
        self.context
            .execute_with_session(Some(AuthSession::Password), run)
            .map_err(|error| classify(command, &error))
    }

    fn bare<T>(
        &mut self,
        command: &'static str,
        run: impl FnOnce(&mut Context) -> Result<T, Error>,
    ) -> Result<T, TpmError> {
        self.context
            .execute_without_session(run)
            .map_err(|error| classify(command, &error))
    }

    /// Runs `run` with a session that satisfies the EK's policy, and flushes the session whatever
    /// comes of it: a TPM without resource manager has three of them.
    fn with_ek_policy<T>(
        &mut self,
        kind: KeyKind,
        command: &'static str,
        run: impl FnOnce(&mut Context, AuthSession) -> Result<T, Error>,
    ) -> Result<T, TpmError> {
        let hash = hashing(kind.ek_name_alg());
        let session = self
            .bare("TPM2_StartAuthSession", |context| {
                context.start_auth_session(
                    None,
                    None,
                    None,
                    SessionType::Policy,
                    SymmetricDefinition::AES_128_CFB,
                    hash,
                )
            })?
            .ok_or(TpmError::NotLoaded("the EK policy session"))?;
        let result = self.satisfy_ek_policy(kind, session).and_then(|()| {
            run(&mut self.context, session).map_err(|error| classify(command, &error))
        });
        let handle: ObjectHandle = SessionHandle::from(session).into();
        let flushed = self.bare("TPM2_FlushContext", |context| context.flush_context(handle));
        let value = result?;
        flushed?;
        Ok(value)
    }

    fn satisfy_ek_policy(&mut self, kind: KeyKind, session: AuthSession) -> Result<(), TpmError> {
        let policy = PolicySession::try_from(session)
            .map_err(|error| classify("TPM2_StartAuthSession", &error))?;
        // The session outlives the command, so that it is always ours to flush.
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_continue_session(true)
            .build();
        self.bare("TPM2_StartAuthSession", |context| {
            context.tr_sess_set_attributes(session, attributes, mask)
        })?;
        self.password(POLICY_SECRET, |context| {
            context.policy_secret(
                policy,
                AuthHandle::Endorsement,
                Nonce::default(),
                TssDigest::default(),
                Nonce::default(),
                None,
            )
        })?;
        if let Some(branches) = kind.ek_policy_or() {
            self.bare("TPM2_PolicyOR", |context| {
                let mut digests = DigestList::new();
                for branch in branches {
                    digests.add(TssDigest::try_from(branch)?)?;
                }
                context.policy_or(policy, digests)
            })?;
        }
        Ok(())
    }

    fn flush(&mut self, key: KeyHandle) {
        if let Err(error) = self.bare("TPM2_FlushContext", |context| {
            context.flush_context(key.into())
        }) {
            tracing::warn!("a key stays loaded in the TPM: {error}");
        }
    }
}

impl Tpm for EsysTpm {
    fn load_ek(&mut self, kind: KeyKind) -> Result<Vec<u8>, TpmError> {
        if let Some((loaded, _, public)) = &self.ek
            && *loaded == kind
        {
            return Ok(public.clone());
        }
        self.flush_ek();
        if let Some(handle) = self.ek_handle {
            let check = |public: &[u8]| check_persistent_ek(kind, public);
            let (key, public) = self.persistent("ek_handle", handle, check)?;
            self.ek = Some((kind, key, public.clone()));
            return Ok(public);
        }
        let template = ek::create_ek_public_from_default_template_2(selection(kind), None)
            .map_err(|error| classify("EK template", &error))?;
        let created = self.password(CREATE_PRIMARY, |context| {
            context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
        })?;
        let public = marshal(CREATE_PRIMARY, &created.out_public)?;
        self.ek = Some((kind, created.key_handle, public.clone()));
        Ok(public)
    }

    fn flush_ek(&mut self) {
        match self.ek.take() {
            // What is persistent belongs to the administrator.
            Some((_, key, _)) if self.ek_handle.is_some() => self.close(key),
            Some((_, key, _)) => self.flush(key),
            None => {}
        }
    }

    fn create_ak(&mut self, template: &AkTemplate) -> Result<KeyBlobs, TpmError> {
        let (kind, parent) = self.ek()?;
        let public = ak_public(template).map_err(|error| classify("AK template", &error))?;
        let created = self.with_ek_policy(kind, "TPM2_Create", |context, session| {
            context.execute_with_session(Some(session), |context| {
                context.create(parent, public, None, None, None, None)
            })
        })?;
        Ok(KeyBlobs {
            public: marshal("TPM2_Create", &created.out_public)?,
            private: created.out_private.value().to_vec(),
        })
    }

    fn load_ak(&mut self, blobs: &KeyBlobs) -> Result<(), TpmError> {
        let (kind, parent) = self.ek()?;
        let damaged = |error: Error| TpmError::WrongParent {
            reason: text(&error),
        };
        let public = Public::unmarshall(&blobs.public).map_err(damaged)?;
        let private = Private::try_from(blobs.private.as_slice()).map_err(damaged)?;
        let loaded = self.with_ek_policy(kind, LOAD, |context, session| {
            context.execute_with_session(Some(session), |context| {
                context.load(parent, private, public)
            })
        })?;
        if let Some(old) = self.ak.replace(loaded) {
            self.flush(old);
        }
        Ok(())
    }

    fn activate(&mut self, blob: &CredentialBlob) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        const COMMAND: &str = "TPM2_ActivateCredential";
        let (kind, ek) = self.ek()?;
        let ak = self.ak()?;
        let credential = IdObject::try_from(blob.id_object.as_slice())
            .map_err(|error| classify(COMMAND, &error))?;
        let secret = EncryptedSecret::try_from(blob.encrypted_secret.as_slice())
            .map_err(|error| classify(COMMAND, &error))?;
        let challenge = self.with_ek_policy(kind, COMMAND, |context, session| {
            context.execute_with_sessions(
                (Some(AuthSession::Password), Some(session), None),
                |context| context.activate_credential(ak, ek, credential, secret),
            )
        })?;
        Ok(Zeroizing::new(challenge.value().to_vec()))
    }

    fn device_key(&mut self, key: &DeviceKey) -> Result<Vec<u8>, TpmError> {
        self.with_device_key(key, |_, _, public| Ok(public.to_vec()))
    }

    fn certify_ak(&mut self, iak: &DeviceKey, qualifying_data: &[u8]) -> Result<Signed, TpmError> {
        let ak = self.ak()?;
        self.with_device_key(iak, |tpm, loaded, _| {
            let sessions = (
                Some(AuthSession::Password),
                Some(AuthSession::Password),
                None,
            );
            let (attest, signature) = tpm
                .context
                .execute_with_sessions(sessions, |context| {
                    let qualifying = Data::try_from(qualifying_data)?;
                    // Null: the IAK is restricted to the scheme it was made with.
                    context.certify(ak.into(), loaded, qualifying, TssSignatureScheme::Null)
                })
                .map_err(|error| match refuses_auth(&error) {
                    true => TpmError::KeyAuth {
                        option: iak.role.password_option(),
                        command: CERTIFY,
                    },
                    false => classify(CERTIFY, &error),
                })?;
            Ok(Signed {
                attest: marshal(CERTIFY, &attest)?,
                signature: marshal(CERTIFY, &signature)?,
            })
        })
    }

    fn pcr_reset(&mut self, pcr: u8) -> Result<(), TpmError> {
        let handle = pcr_handle(pcr)?;
        self.password("TPM2_PCR_Reset", |context| context.pcr_reset(handle))
    }

    fn pcr_extend(
        &mut self,
        pcr: u8,
        bank: HashAlgorithm,
        digest: &Digest,
    ) -> Result<(), TpmError> {
        let handle = pcr_handle(pcr)?;
        self.password("TPM2_PCR_Extend", |context| {
            let mut values = DigestValues::new();
            values.set(hashing(bank), TssDigest::try_from(digest.as_bytes())?);
            context.pcr_extend(handle, values)
        })
    }

    fn pcr_read(&mut self, bank: HashAlgorithm, mask: PcrMask) -> Result<PcrValues, TpmError> {
        const COMMAND: &str = "TPM2_PCR_Read";
        let mut values = PcrValues::new(bank);
        let mut missing: Vec<u8> = mask.iter().collect();
        while !missing.is_empty() {
            let selection =
                pcr_selection(bank, &missing).map_err(|error| classify(COMMAND, &error))?;
            let (_, read, digests) = self.bare(COMMAND, |context| context.pcr_read(selection))?;
            let read: Vec<PcrSlot> = read
                .get_selections()
                .iter()
                .flat_map(|entry| entry.selected())
                .collect();
            // TPM2_PCR_Read answers an unallocated bank with an empty selection.
            if read.is_empty() || read.len() != digests.len() {
                return Err(TpmError::NoBank { bank: bank.name() });
            }
            for (slot, digest) in read.iter().zip(digests.value()) {
                let pcr = pcr_number(*slot);
                let digest =
                    Digest::from_slice(digest.value()).ok_or_else(|| TpmError::Command {
                        command: COMMAND,
                        reason: "digest too long".into(),
                    })?;
                values.set(pcr, digest);
                missing.retain(|&other| other != pcr);
            }
        }
        Ok(values)
    }

    fn quote(
        &mut self,
        nonce: &[u8],
        bank: HashAlgorithm,
        mask: PcrMask,
    ) -> Result<Signed, TpmError> {
        const COMMAND: &str = "TPM2_Quote";
        let ak = self.ak()?;
        let pcrs: Vec<u8> = mask.iter().collect();
        let (attest, signature) = self.password(COMMAND, |context| {
            let qualifying = Data::try_from(nonce)?;
            let selection = pcr_selection(bank, &pcrs)?;
            // Null: the AK is restricted to the scheme it was made with.
            context.quote(ak, qualifying, TssSignatureScheme::Null, selection)
        })?;
        Ok(Signed {
            attest: marshal(COMMAND, &attest)?,
            signature: marshal(COMMAND, &signature)?,
        })
    }

    fn nv_indices(&mut self, first: u32, last: u32) -> Result<Vec<u32>, TpmError> {
        let count = last.saturating_sub(first).saturating_add(1);
        let (data, _) = self.bare(GET_CAPABILITY, |context| {
            context.get_capability(CapabilityType::Handles, first, count)
        })?;
        // The TPM lists from `first` on, without regard to where the range ends.
        let mut found: Vec<u32> = match data {
            CapabilityData::Handles(handles) => {
                handles.iter().map(|&handle| u32::from(handle)).collect()
            }
            _ => Vec::new(),
        };
        found.retain(|index| (first..=last).contains(index));
        Ok(found)
    }

    fn nv_read(&mut self, index: u32) -> Result<Vec<u8>, TpmError> {
        const COMMAND: &str = "TPM2_NV_Read";
        let index = NvIndexTpmHandle::new(index).map_err(|error| classify(COMMAND, &error))?;
        let object = self.bare("TPM2_NV_ReadPublic", |context| {
            context.tr_from_tpm_public(TpmHandle::NvIndex(index))
        })?;
        self.password(COMMAND, |context| {
            nv::read_full(context, NvAuth::NvIndex(object.into()), index)
        })
    }

    fn ping(&mut self) -> Result<(), TpmError> {
        self.bare(GET_CAPABILITY, |context| {
            context.get_capability(
                CapabilityType::TpmProperties,
                PropertyTag::FirmwareVersion1.into(),
                1,
            )
        })?;
        Ok(())
    }

    fn describe(&mut self) -> Result<Description, TpmError> {
        let mut property = |tag| {
            self.bare(GET_CAPABILITY, |context| context.get_tpm_property(tag))
                .map(Option::unwrap_or_default)
        };
        let manufacturer = property(PropertyTag::Manufacturer)?;
        let mut name = Vec::new();
        for tag in VENDOR_STRING {
            name.extend(property(tag)?.to_be_bytes());
        }
        let firmware = property(PropertyTag::FirmwareVersion1)?;
        let vendor = [words(&manufacturer.to_be_bytes()), words(&name)].join(" ");
        let (banks, _) = self.bare(GET_CAPABILITY, |context| {
            context.get_capability(CapabilityType::AssignedPcr, 0, 1)
        })?;
        let banks = match &banks {
            CapabilityData::AssignedPcr(banks) => banks.get_selections(),
            _ => &[],
        };
        Ok(Description {
            vendor: vendor.trim_end().to_owned(),
            firmware: format!("{}.{}", firmware >> 16, firmware & 0xFFFF),
            banks: banks
                .iter()
                .filter(|bank| !bank.is_empty())
                .filter_map(|bank| bank_name(bank.hashing_algorithm()))
                .map(str::to_owned)
                .collect(),
        })
    }
}

/// Printable characters, with one space between words: vendors pad with spaces and zeros.
fn words(text: &[u8]) -> String {
    let printable = text.iter().map(|&byte| match byte.is_ascii_graphic() {
        true => char::from(byte),
        false => ' ',
    });
    let text: String = printable.collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_names_of_chips_are_readable() {
        assert_eq!(words(b"SW   TPM\0\0\0\0\0\0\0\0"), "SW TPM");
        assert_eq!(words(b"NTC\0"), "NTC");
        assert_eq!(words(b"\0\xFF\x1B["), "[");
    }

    #[test]
    fn the_configured_tcti_comes_before_the_resource_manager_and_that_before_tabrmd() {
        let (there, absent) = (Path::new("/dev/null"), Path::new("/dev/no-such-device"));
        assert_eq!(tcti_or_default(Some("swtpm"), there), "swtpm");
        assert_eq!(tcti_or_default(None, there), "device:/dev/null");
        assert_eq!(tcti_or_default(None, absent), "tabrmd");
    }
}
