use std::path::{Path, PathBuf};

use troth_core::{
    eventlog::{EventLog, UserspaceLog},
    policy::{BootPolicy, BootRules, PolicyError, Refstate},
};

use super::{
    source::{read_file, read_text},
    write_output,
};
use crate::{
    cli::{BootFormat, CreateBootArgs},
    config::Config,
    error::{Error, Exit},
    output::Output,
};

/// The log of this host's firmware, as the kernel shows it.
const EVENT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// The log of what this host's systemd measured.
const MEASURE_LOG: &str = "/run/log/systemd/tpm2-measure.log";

/// The text of a boot policy that is given as `{...}`, as a file of JSON or TOML, or as `default`;
/// JSON, as the verifier takes it.
pub(crate) fn boot(argument: &str, config: &Config) -> Result<String, Error> {
    let text = match argument {
        "default" => match &config.mb_refstate {
            Some(path) => read_text(path)?,
            None => {
                return Err(Error::Usage {
                    option: "--boot-policy default",
                    reason: "mb_refstate is not configured".to_owned(),
                });
            }
        },
        text if text.trim_start().starts_with('{') => text.to_owned(),
        path => read_text(Path::new(path))?,
    };
    boot_json(&text).map_err(|source| Error::Policy {
        what: format!("boot policy {argument}"),
        source,
    })
}

/// The JSON of a boot policy, which may be TOML.
pub(crate) fn boot_json(text: &str) -> Result<String, PolicyError> {
    if text.trim_start().starts_with('{') || ["null", "[]"].contains(&text.trim()) {
        BootPolicy::parse(Some(text))?;
        return Ok(text.to_owned());
    }
    BootRules::from_toml(text).map(|rules| rules.to_json())
}

/// Makes a policy of a boot log and prints or saves it.
pub(super) fn create(args: &CreateBootArgs, out: &Output) -> Result<Exit, Error> {
    let path = args.event_log.clone();
    let path = path.unwrap_or_else(|| PathBuf::from(EVENT_LOG));
    let bytes = read_file(&path)?;
    let log = EventLog::parse(&bytes).map_err(|error| Error::Create {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    let without = args.without_secureboot;
    let made = match args.format {
        BootFormat::Keylime if args.measure_log.is_some() => {
            return Err(Error::Usage {
                option: "--measure-log",
                reason: "a refstate has no place for what user space measured".to_owned(),
            });
        }
        BootFormat::Keylime => Refstate::json_from_log(&log, without)
            .map_err(|error| error.to_string())
            .and_then(readable),
        BootFormat::Troth => {
            let userspace = measure_log_of(args)?;
            BootRules::from_log(&log, userspace.as_ref(), None, without)
                .map(|rules| rules.to_toml())
                .map_err(|error| error.to_string())
        }
    };
    let text = made.map_err(|reason| Error::Create { path, reason })?;
    write_output(args.output.as_deref(), &text, out)?;
    Ok(Exit::Success)
}

/// A refstate that the engine takes: of a boot without shim, GRUB and Linux it lacks what the engine
/// demands.
fn readable(json: String) -> Result<String, String> {
    match Refstate::parse(&json) {
        Ok(_) => Ok(json + "\n"),
        Err(error) => Err(format!(
            "a refstate describes boots by shim, GRUB and Linux alone, and cannot describe this one \
             ({error}); use --format troth"
        )),
    }
}

/// systemd's log that is named, or, next to this host's boot log, this host's, if it has one.
fn measure_log_of(args: &CreateBootArgs) -> Result<Option<UserspaceLog>, Error> {
    match &args.measure_log {
        Some(path) => measure_log(path).map(Some),
        None if args.event_log.is_none() && Path::new(MEASURE_LOG).exists() => {
            measure_log(Path::new(MEASURE_LOG)).map(Some)
        }
        None => Ok(None),
    }
}

/// systemd's log in a file.
pub(crate) fn measure_log(path: &Path) -> Result<UserspaceLog, Error> {
    UserspaceLog::parse(&read_file(path)?).map_err(|error| Error::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}
