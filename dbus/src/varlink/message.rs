use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// A call as it comes: whatever is wrong with it is answered, so any object is one.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    #[serde(default)]
    pub(super) method: Value,
    #[serde(default)]
    pub(super) parameters: Value,
}

/// The parameters of a call, taken out one by one.
#[derive(Debug)]
pub struct Parameters(Map<String, Value>);

impl Parameters {
    /// Those of a call; none is as good as empty ones.
    pub(super) fn new(value: Value) -> Result<Self, Fault> {
        match value {
            Value::Null => Ok(Self(Map::new())),
            Value::Object(members) => Ok(Self(members)),
            _ => Err(Fault::invalid_parameter("parameters")),
        }
    }

    /// One that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Fault> {
        self.optional(name)?
            .ok_or_else(|| Fault::invalid_parameter(name))
    }

    /// One that may be missing, or null.
    pub fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Fault> {
        let value = self.0.remove(name).unwrap_or_default();
        serde_json::from_value(value).map_err(|_| Fault::invalid_parameter(name))
    }

    /// When all were taken: one that is left is one that the method does not have.
    pub fn end(self) -> Result<(), Fault> {
        match self.0.keys().next() {
            Some(unknown) => Err(Fault::invalid_parameter(unknown)),
            None => Ok(()),
        }
    }
}

/// An error, as varlink carries it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// Interface and name.
    pub error: Cow<'static, str>,
    /// What the interface says that comes with it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub parameters: Value,
}

impl Fault {
    /// The caller may not do this.
    pub const PERMISSION_DENIED: Self = Self::without("org.varlink.service.PermissionDenied");

    /// The caller may do this once polkit has asked the user, which the call did not allow.
    pub const INTERACTIVE_AUTHENTICATION_REQUIRED: Self =
        Self::without("io.systemd.InteractiveAuthenticationRequired");

    /// The method has to be called with `more`.
    pub const EXPECTED_MORE: Self = Self::without("org.varlink.service.ExpectedMore");

    /// One without parameters.
    pub const fn without(error: &'static str) -> Self {
        Self {
            error: Cow::Borrowed(error),
            parameters: Value::Null,
        }
    }

    /// One with parameters.
    pub fn with(error: &'static str, parameters: Value) -> Self {
        Self {
            error: Cow::Borrowed(error),
            parameters,
        }
    }

    /// A parameter is missing, unknown, of the wrong type or out of range.
    pub fn invalid_parameter(name: &str) -> Self {
        let parameters = json!({ "parameter": name });
        Self::with("org.varlink.service.InvalidParameter", parameters)
    }

    pub(super) fn interface_not_found(interface: &str) -> Self {
        let parameters = json!({ "interface": interface });
        Self::with("org.varlink.service.InterfaceNotFound", parameters)
    }

    /// The interface has no method of this name.
    pub fn method_not_found(method: &str) -> Self {
        let parameters = json!({ "method": method });
        Self::with("org.varlink.service.MethodNotFound", parameters)
    }

    /// The interface has this method, the service has not.
    pub fn method_not_implemented(method: &str) -> Self {
        let parameters = json!({ "method": method });
        Self::with("org.varlink.service.MethodNotImplemented", parameters)
    }

    /// A text parameter, if there is one of this name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name)?.as_str()
    }
}
