use zbus::{
    DBusError, Message,
    message::Header,
    names::{ErrorName, OwnedErrorName},
};

use crate::agent::OperationError;

/// Errors of this interface begin so.
const OURS: &str = "org.troth.Agent1.Error";

/// Errors of D-Bus begin so.
const STANDARD: &str = "org.freedesktop.DBus.Error";

/// Why a call has no result: a name that programs know, and a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CallError {
    prefix: &'static str,
    name: &'static str,
    text: String,
}

impl CallError {
    /// An error that D-Bus knows.
    pub(super) fn standard(name: &'static str, text: impl Into<String>) -> Self {
        Self {
            prefix: STANDARD,
            name,
            text: text.into(),
        }
    }
}

impl From<OperationError> for CallError {
    fn from(error: OperationError) -> Self {
        let text = error.to_string();
        let name = match error {
            OperationError::InvalidArgument { .. } => return Self::standard("InvalidArgs", text),
            OperationError::NotReady(_) => "NotReady",
            OperationError::TpmBusy(_) => "TpmBusy",
            OperationError::TpmFailed(_) => "TpmFailed",
            OperationError::RegistrationFailed(_) => "RegistrationFailed",
            OperationError::NoSuchAction(_) => "NoSuchAction",
            OperationError::ActionsUnavailable(_) => "ActionsUnavailable",
            OperationError::Host(_) => "HostFailed",
        };
        Self {
            prefix: OURS,
            name,
            text,
        }
    }
}

impl DBusError for CallError {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&(&self.text,))
    }

    fn name(&self) -> ErrorName<'_> {
        let name = format!("{}.{}", self.prefix, self.name);
        OwnedErrorName::try_from(name).map_or_else(
            |_| ErrorName::from_static_str_unchecked("org.freedesktop.DBus.Error.Failed"),
            OwnedErrorName::into_inner,
        )
    }

    fn description(&self) -> Option<&str> {
        Some(&self.text)
    }
}
