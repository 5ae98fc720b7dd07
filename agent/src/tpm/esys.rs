use std::{path::Path, str::FromStr};

use troth_core::{
    identity::check_ek,
    tpm::{CredentialBlob, Digest, HashAlgorithm, PcrMask, PcrValues, SignatureScheme},
};
use tss_esapi::{
    Context, Error,
    abstraction::{AsymmetricAlgorithmSelection, ek, nv},
    attributes::{ObjectAttributesBuilder, SessionAttributesBuilder},
    constants::{CapabilityType, PropertyTag, SessionType, response_code::Tss2ResponseCodeKind},
    handles::{
        AuthHandle, KeyHandle, NvIndexTpmHandle, ObjectHandle, PcrHandle, PersistentTpmHandle,
        SessionHandle, TpmHandle,
    },
    interface_types::{
        algorithm::{HashingAlgorithm, PublicAlgorithm},
        ecc::EccCurve,
        key_bits::RsaKeyBits,
        resource_handles::{Hierarchy, NvAuth},
        session_handles::{AuthSession, PolicySession},
    },
    structures::{
        Auth, CapabilityData, Data, Digest as TssDigest, DigestList, DigestValues, EccPoint,
        EccScheme, EncryptedSecret, HashScheme, IdObject, KeyDerivationFunctionScheme, Nonce,
        PcrSelectionList, PcrSlot, Private, Public, PublicBuilder, PublicEccParametersBuilder,
        PublicKeyRsa, PublicRsaParametersBuilder, RsaExponent, RsaScheme,
        SignatureScheme as TssSignatureScheme, SymmetricDefinition, SymmetricDefinitionObject,
    },
    tcti_ldr::TctiNameConf,
    traits::{Marshall, UnMarshall},
};
use zeroize::Zeroizing;

use super::{AkTemplate, Endorsement, KeyBlobs, KeyKind, RawQuote, Tpm, TpmError};

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

    /// The EK at a persistent handle, if it is a storage key of this kind, and its public area.
    fn persistent_ek(
        &mut self,
        kind: KeyKind,
        handle: u32,
    ) -> Result<(KeyHandle, Vec<u8>), TpmError> {
        let unusable = |reason: String| TpmError::EkHandle { handle, reason };
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
                check_persistent_ek(kind, &public).map_err(unusable)?;
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

    /// Forgets a persistent key; the TPM keeps it.
    fn close(&mut self, key: KeyHandle) {
        let mut object = key.into();
        if let Err(error) = self.bare("Esys_TR_Close", |context| context.tr_close(&mut object)) {
            tracing::warn!("the EK's handle stays open: {error}");
        }
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
            let (key, public) = self.persistent_ek(kind, handle)?;
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
    ) -> Result<RawQuote, TpmError> {
        const COMMAND: &str = "TPM2_Quote";
        let ak = self.ak()?;
        let pcrs: Vec<u8> = mask.iter().collect();
        let (attest, signature) = self.password(COMMAND, |context| {
            let qualifying = Data::try_from(nonce)?;
            let selection = pcr_selection(bank, &pcrs)?;
            // Null: the AK is restricted to the scheme it was made with.
            context.quote(ak, qualifying, TssSignatureScheme::Null, selection)
        })?;
        Ok(RawQuote {
            attest: marshal(COMMAND, &attest)?,
            signature: marshal(COMMAND, &signature)?,
        })
    }

    fn nv_indices(&mut self, first: u32, last: u32) -> Result<Vec<u32>, TpmError> {
        let count = last.saturating_sub(first).saturating_add(1);
        let (data, _) = self.bare("TPM2_GetCapability", |context| {
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
        self.bare("TPM2_GetCapability", |context| {
            context.get_capability(
                CapabilityType::TpmProperties,
                PropertyTag::FirmwareVersion1.into(),
                1,
            )
        })?;
        Ok(())
    }

    fn describe(&mut self) -> Result<String, TpmError> {
        let mut property = |tag| {
            self.bare("TPM2_GetCapability", |context| {
                context.get_tpm_property(tag)
            })
            .map(Option::unwrap_or_default)
        };
        let manufacturer = property(PropertyTag::Manufacturer)?.to_be_bytes();
        let firmware = property(PropertyTag::FirmwareVersion1)?;
        let manufacturer: String = manufacturer
            .iter()
            .filter(|byte| byte.is_ascii_graphic())
            .map(|&byte| char::from(byte))
            .collect();
        Ok(format!(
            "{manufacturer} firmware {}.{}",
            firmware >> 16,
            firmware & 0xFFFF
        ))
    }
}

const READ_PUBLIC: &str = "TPM2_ReadPublic";
const CREATE_PRIMARY: &str = "TPM2_CreatePrimary";
const POLICY_SECRET: &str = "TPM2_PolicySecret";
const LOAD: &str = "TPM2_Load";

/// Layer of a tpm2-tss response code (TSS 2.0 Overview, "Response code layers").
const LAYER_TCTI: u32 = 10;
const LAYER_RESOURCE_MANAGER: u32 = 11;

fn classify(command: &'static str, error: &Error) -> TpmError {
    use Tss2ResponseCodeKind as Kind;
    let reason = text(error);
    let Error::Tss2Error(code) = error else {
        return TpmError::Command { command, reason };
    };
    match layer(error) {
        LAYER_TCTI | LAYER_RESOURCE_MANAGER => return TpmError::Lost { command, reason },
        _ => {}
    }
    match code.kind() {
        Some(Kind::BadAuth | Kind::AuthFail)
            if matches!(command, CREATE_PRIMARY | POLICY_SECRET) =>
        {
            TpmError::EndorsementAuth { command }
        }
        Some(Kind::Lockout) => TpmError::Lockout { command },
        Some(Kind::ReferenceH0 | Kind::ReferenceH1) => TpmError::HandleGone { command, reason },
        Some(Kind::Integrity | Kind::Binding) if command == LOAD => {
            TpmError::WrongParent { reason }
        }
        _ => TpmError::Command { command, reason },
    }
}

/// The layer that made a response code. tss-esapi shows the number in text only.
fn layer(error: &Error) -> u32 {
    raw_code(error).map_or(0, |code| code >> 16 & 0xFF)
}

fn raw_code(error: &Error) -> Option<u32> {
    let source = std::error::Error::source(error)?;
    let text = std::error::Error::source(source)?.to_string();
    u32::from_str_radix(text.rsplit_once("0x")?.1, 16).ok()
}

/// TSS2_TCTI_RC_IO_ERROR, of which tss-esapi says that it does not recognise it.
const TCTI_IO_ERROR: u32 = LAYER_TCTI << 16 | 10;

fn text(error: &Error) -> String {
    match raw_code(error) {
        Some(TCTI_IO_ERROR) => "it cannot be opened, or broke off (TSS2_TCTI_RC_IO_ERROR)".into(),
        Some(code) => format!("{error} (response code {code:#x})"),
        None => error.to_string(),
    }
}

fn marshal(command: &'static str, value: &impl Marshall) -> Result<Vec<u8>, TpmError> {
    value.marshall().map_err(|error| classify(command, &error))
}

/// Is this public area that of an EK of this kind? Says what it is instead.
fn check_persistent_ek(kind: KeyKind, public: &[u8]) -> Result<(), String> {
    let ek = troth_core::tpm::Public::from_tpmt(public).map_err(|error| error.to_string())?;
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

fn hashing(hash: HashAlgorithm) -> HashingAlgorithm {
    match hash {
        HashAlgorithm::Sha1 => HashingAlgorithm::Sha1,
        HashAlgorithm::Sha256 => HashingAlgorithm::Sha256,
        HashAlgorithm::Sha384 => HashingAlgorithm::Sha384,
        HashAlgorithm::Sha512 => HashingAlgorithm::Sha512,
    }
}

fn selection(kind: KeyKind) -> AsymmetricAlgorithmSelection {
    use AsymmetricAlgorithmSelection as Selection;
    match kind {
        KeyKind::Rsa2048 => Selection::Rsa(RsaKeyBits::Rsa2048),
        KeyKind::Rsa3072 => Selection::Rsa(RsaKeyBits::Rsa3072),
        KeyKind::Rsa4096 => Selection::Rsa(RsaKeyBits::Rsa4096),
        KeyKind::EccP256 => Selection::Ecc(EccCurve::NistP256),
        KeyKind::EccP384 => Selection::Ecc(EccCurve::NistP384),
        KeyKind::EccP521 => Selection::Ecc(EccCurve::NistP521),
    }
}

/// The AK: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign.
fn ak_public(template: &AkTemplate) -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_restricted(true)
        .with_sign_encrypt(true)
        .build()?;
    let hash = HashScheme::new(hashing(template.hash));
    let builder = PublicBuilder::new()
        .with_name_hashing_algorithm(hashing(template.hash))
        .with_object_attributes(attributes);
    match selection(template.kind) {
        AsymmetricAlgorithmSelection::Rsa(bits) => {
            let scheme = match template.scheme {
                SignatureScheme::RsaPss => RsaScheme::RsaPss(hash),
                SignatureScheme::RsaSsa | SignatureScheme::Ecdsa => RsaScheme::RsaSsa(hash),
            };
            builder
                .with_public_algorithm(PublicAlgorithm::Rsa)
                .with_rsa_parameters(
                    PublicRsaParametersBuilder::new()
                        .with_symmetric(SymmetricDefinitionObject::Null)
                        .with_scheme(scheme)
                        .with_key_bits(bits)
                        .with_exponent(RsaExponent::default())
                        .with_is_signing_key(true)
                        .with_restricted(true)
                        .build()?,
                )
                .with_rsa_unique_identifier(PublicKeyRsa::default())
                .build()
        }
        AsymmetricAlgorithmSelection::Ecc(curve) => builder
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_ecc_parameters(
                PublicEccParametersBuilder::new()
                    .with_symmetric(SymmetricDefinitionObject::Null)
                    .with_ecc_scheme(EccScheme::EcDsa(hash))
                    .with_curve(curve)
                    .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
                    .with_is_signing_key(true)
                    .with_restricted(true)
                    .build()?,
            )
            .with_ecc_unique_identifier(EccPoint::default())
            .build(),
    }
}

fn pcr_selection(bank: HashAlgorithm, pcrs: &[u8]) -> Result<PcrSelectionList, Error> {
    let slots: Vec<PcrSlot> = pcrs.iter().filter_map(|&pcr| pcr_slot(pcr)).collect();
    PcrSelectionList::builder()
        .with_selection(hashing(bank), &slots)
        .build()
}

fn pcr_slot(pcr: u8) -> Option<PcrSlot> {
    1u32.checked_shl(pcr.into())
        .and_then(|bit| PcrSlot::try_from(bit).ok())
}

fn pcr_number(slot: PcrSlot) -> u8 {
    // A slot is a single bit of 32, so the count fits.
    u8::try_from(u32::from(slot).trailing_zeros()).unwrap_or(u8::MAX)
}

fn pcr_handle(pcr: u8) -> Result<PcrHandle, TpmError> {
    PcrHandle::try_from(u32::from(pcr))
        .map_err(|_| TpmError::Unsupported(format!("PCR {pcr} does not exist")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configured_tcti_comes_before_the_resource_manager_and_that_before_tabrmd() {
        let (there, absent) = (Path::new("/dev/null"), Path::new("/dev/no-such-device"));
        assert_eq!(tcti_or_default(Some("swtpm"), there), "swtpm");
        assert_eq!(tcti_or_default(None, there), "device:/dev/null");
        assert_eq!(tcti_or_default(None, absent), "tabrmd");
    }
}
