use std::env;

use serde_json::json;

use super::{
    Interface,
    message::Fault,
    server::{Answer, Call},
};
use crate::logs::LogLevel;

/// `io.systemd.service`.
pub(super) const SERVICE: Interface = Interface {
    name: "io.systemd.service",
    description: include_str!("../../io.systemd.service.varlink"),
};

/// What `io.systemd.service` can have a process do.
pub trait Process: 'static {
    /// Read the configuration again, as at SIGHUP.
    fn reload(&self);

    /// Log up to this level from now on.
    fn set_log_level(&self, level: LogLevel);
}

/// Answers a call of `io.systemd.service`.
pub(super) fn call(mut call: Call<'_>, process: &impl Process) -> Result<Answer, Fault> {
    match call.method {
        "Ping" => call.without_parameters()?,
        "Reload" => {
            privileged(call)?.without_parameters()?;
            process.reload();
        }
        "SetLogLevel" => {
            let level: u8 = call.parameters.required("level")?;
            privileged(call)?.without_parameters()?;
            let level = LogLevel::from_number(level);
            let level = level.ok_or_else(|| Fault::invalid_parameter("level"))?;
            process.set_log_level(level);
        }
        "GetEnvironment" => {
            privileged(call)?.without_parameters()?;
            let variables = env::vars_os().map(|(name, value)| {
                let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
                Some(format!("{name}={value}"))
            });
            let variables: Option<Vec<_>> = variables.collect();
            let inconsistent = Fault::without("io.systemd.service.InconsistentEnvironment");
            let environment = variables.ok_or(inconsistent)?;
            return Ok(Answer::from(json!({ "environment": environment })));
        }
        _ => return Err(Fault::method_not_found(&call.name())),
    }
    Ok(Answer::empty())
}

fn privileged(call: Call<'_>) -> Result<Call<'_>, Fault> {
    if call.caller.is_root_or_self() {
        Ok(call)
    } else {
        Err(Fault::PERMISSION_DENIED)
    }
}
