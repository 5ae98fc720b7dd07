use tss_esapi::{Error, constants::response_code::Tss2ResponseCodeKind};

use crate::tpm::TpmError;

pub(super) const READ_PUBLIC: &str = "TPM2_ReadPublic";
pub(super) const CERTIFY: &str = "TPM2_Certify";
pub(super) const CREATE_PRIMARY: &str = "TPM2_CreatePrimary";
pub(super) const POLICY_SECRET: &str = "TPM2_PolicySecret";
pub(super) const LOAD: &str = "TPM2_Load";

/// Layer of a tpm2-tss response code (TSS 2.0 Overview, "Response code layers").
const LAYER_SYS: u32 = 8;
const LAYER_MU: u32 = 9;
const LAYER_TCTI: u32 = 10;
const LAYER_RESOURCE_MANAGER: u32 = 11;

/// What a failed command means to the agent.
pub(super) fn classify(command: &'static str, error: &Error) -> TpmError {
    use Tss2ResponseCodeKind as Kind;
    let reason = text(error);
    let Error::Tss2Error(code) = error else {
        return TpmError::Command { command, reason };
    };
    // SYS and MU: what came back is no TPM's answer, and nobody knows what comes next.
    if matches!(
        layer(error),
        LAYER_SYS | LAYER_MU | LAYER_TCTI | LAYER_RESOURCE_MANAGER
    ) || raw_code(error) == Some(ESYS_BAD_SEQUENCE)
    {
        return TpmError::Lost { command, reason };
    }
    if refuses_auth(error) && matches!(command, CREATE_PRIMARY | POLICY_SECRET) {
        return TpmError::EndorsementAuth { command };
    }
    match code.kind() {
        Some(Kind::Lockout) => TpmError::Lockout { command },
        Some(Kind::ReferenceH0 | Kind::ReferenceH1) => TpmError::HandleGone { command, reason },
        Some(Kind::Integrity | Kind::Binding) if command == LOAD => {
            TpmError::WrongParent { reason }
        }
        _ => TpmError::Command { command, reason },
    }
}

/// Does the TPM refuse an authValue?
pub(super) fn refuses_auth(error: &Error) -> bool {
    use Tss2ResponseCodeKind as Kind;
    let Error::Tss2Error(code) = error else {
        return false;
    };
    matches!(code.kind(), Some(Kind::BadAuth | Kind::AuthFail))
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

/// TSS2_ESYS_RC_BAD_SEQUENCE: after an answer that it did not understand, tpm2-tss takes no more
/// commands on this connection.
const ESYS_BAD_SEQUENCE: u32 = 7 << 16 | 7;

/// tpm2-tss's text, with the number of the response code.
pub(super) fn text(error: &Error) -> String {
    match raw_code(error) {
        Some(TCTI_IO_ERROR) => "it cannot be opened, or broke off (TSS2_TCTI_RC_IO_ERROR)".into(),
        Some(code) => format!("{error} (response code {code:#x})"),
        None => error.to_string(),
    }
}
