use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Serialize;
use serde_json::Value;
use troth_daemon::config::{Note, Origin, Shown, ShownOption};

use crate::{
    cli::{ConfigShowArgs, Global, Program},
    config::Config,
    error::{Error, Exit},
    output::{Output, Tone},
};

/// Variables of a service that say something about its configuration: names or their beginnings.
const VARIABLES: [&str; 4] = [
    "CREDENTIALS_DIRECTORY=",
    "KEYLIME_",
    "STATE_DIRECTORY=",
    "TROTH_",
];

/// Bytes of a process's environment that are read; no more of it is.
const MAX_ENVIRONMENT: u64 = 1024 * 1024;

/// `config show --json`.
#[derive(Debug, Serialize)]
struct Show {
    program: &'static str,
    /// The unit whose environment and credentials are in this, if it is not this process's.
    unit: Option<String>,
    options: Vec<ShownOption>,
    notes: Vec<Note>,
}

/// Runs `trothctl config show`.
pub(crate) fn run(global: &Global, args: &ConfigShowArgs, out: &Output) -> Result<Exit, Error> {
    let program = match args.program {
        Program::Agent => "troth-agent",
        Program::Verifier => "troth-verifier",
        Program::Registrar => "troth-registrar",
        Program::Ctl => "trothctl",
    };
    let (mut shown, seen) = if args.program == Program::Ctl {
        (Config::show(global, args.root.as_deref())?, Seen::default())
    } else {
        // Files that stand for others are read as whoever asks would be served with them.
        let ours = args.root.is_some() || global.config.is_some();
        let seen = if ours {
            Seen::default()
        } else {
            Seen::of(&format!("{program}.service"))
        };
        (ask(program, global, args, &seen)?, seen)
    };
    if let Some(text) = seen.remark {
        let warning = true;
        shown.notes.push(Note { warning, text });
    }
    let show = Show {
        program,
        unit: seen.unit,
        options: shown.options,
        notes: shown.notes,
    };
    out.result(&show, || table(&show, out))?;
    for note in &show.notes {
        out.note(&note.text);
    }
    Ok(Exit::Success)
}

fn table(show: &Show, out: &Output) -> String {
    let rows = show.options.iter().map(|option| {
        let set = option.origin != Origin::Default;
        let value = match &option.value {
            Value::Null if set && option.secret => "(not shown)".to_owned(),
            Value::Null => "-".to_owned(),
            value => value.to_string(),
        };
        let tone = if set { Tone::Strong } else { Tone::Plain };
        vec![
            (tone, option.name.clone()),
            (tone, value),
            (Tone::Dim, option.origin.to_string()),
        ]
    });
    out.table(&["OPTION", "VALUE", "FROM"], rows.collect())
}

/// What the daemon itself says of its configuration: it alone knows its options.
fn ask(
    program: &'static str,
    global: &Global,
    args: &ConfigShowArgs,
    seen: &Seen,
) -> Result<Shown, Error> {
    let failed = |reason: String| Error::Program { program, reason };
    let mut command = Command::new(beside_this(program));
    command.arg("--show-config").stdin(Stdio::null());
    if let Some(file) = &global.config {
        command.arg("--config").arg(file);
    }
    if let Some(root) = &args.root {
        command.arg("--root").arg(root);
    }
    if seen.unit.is_some() {
        command.env_clear();
    }
    command.envs(seen.variables.iter().map(|(name, value)| (name, value)));
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::ProgramMissing { program });
        }
        output => output.map_err(|error| failed(error.to_string()))?,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(match said.trim() {
            "" => failed(output.status.to_string()),
            said => failed(said.to_owned()),
        });
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
}

/// The one of the same installation, else the one that is found by its name.
fn beside_this(program: &str) -> PathBuf {
    let this = std::env::current_exe();
    let beside = this
        .ok()
        .and_then(|this| Some(this.parent()?.join(program)));
    let beside = beside.filter(|path| path.is_file());
    beside.unwrap_or_else(|| PathBuf::from(program))
}

/// What a service sees of the world beside its files.
#[derive(Debug, Default)]
struct Seen {
    /// The service, if the variables are all that it sees.
    unit: Option<String>,
    variables: Vec<(OsString, OsString)>,
    /// What of it is not known.
    remark: Option<String>,
}

impl Seen {
    fn of(unit: &str) -> Self {
        let Some(properties) = properties(unit) else {
            return Self::default();
        };
        let property = |name: &str| {
            let mut lines = properties.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        };
        if property("LoadState") != Some("loaded") {
            return Self::default();
        }
        match property("MainPID").filter(|process| *process != "0") {
            Some(process) => Self::of_process(unit, process),
            None => Self {
                unit: None,
                // As the service manager will make it.
                variables: property("StateDirectory")
                    .and_then(|all| all.split(' ').next())
                    .filter(|name| !name.is_empty())
                    .map(|name| ("STATE_DIRECTORY".into(), format!("/var/lib/{name}").into()))
                    .into_iter()
                    .collect(),
                remark: Some(format!(
                    "{unit} does not run: what its Environment= and its credentials set is not in \
                     this"
                )),
            },
        }
    }

    fn of_process(unit: &str, process: &str) -> Self {
        match environment(Path::new(&format!("/proc/{process}/environ"))) {
            Ok(variables) => Self {
                unit: Some(unit.to_owned()),
                variables,
                remark: None,
            },
            Err(error) => Self {
                remark: Some(format!(
                    "what environment and credentials of {unit} set is not in this: {error}; be \
                     root to see it"
                )),
                ..Self::default()
            },
        }
    }
}

/// What the service manager says of `unit`; nothing where there is none.
fn properties(unit: &str) -> Option<String> {
    let properties = "--property=LoadState,MainPID,StateDirectory";
    let output = Command::new("systemctl")
        .args(["show", properties, unit])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// Those of a process's variables that are about its configuration.
fn environment(path: &Path) -> io::Result<Vec<(OsString, OsString)>> {
    let mut content = Vec::new();
    File::open(path)?
        .take(MAX_ENVIRONMENT)
        .read_to_end(&mut content)?;
    let variables = content.split(|byte| *byte == 0);
    let wanted = |variable: &&[u8]| {
        let mut names = VARIABLES.iter();
        names.any(|name| variable.starts_with(name.as_bytes()))
    };
    let split = |variable: &[u8]| {
        let equals = variable.iter().position(|byte| *byte == b'=')?;
        let (name, value) = variable.split_at_checked(equals)?;
        let value = value.get(1..)?.to_vec();
        Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value)))
    };
    Ok(variables.filter(wanted).filter_map(split).collect())
}

/// What the command line sets above everything else.
pub(crate) fn above(shown: &mut Shown, global: &Global) {
    let mut set = |name: &str, value: Value, argument: &str| {
        let argument = argument.to_owned();
        shown.set(name, value, &Origin::Argument { argument });
    };
    for (endpoint, name, argument) in [
        (
            &global.verifier,
            "verifier",
            "--verifier or $TROTH_VERIFIER",
        ),
        (
            &global.registrar,
            "registrar",
            "--registrar or $TROTH_REGISTRAR",
        ),
    ] {
        if let Some(endpoint) = endpoint {
            set(
                &format!("{name}_ip"),
                endpoint.host.as_str().into(),
                argument,
            );
            set(&format!("{name}_port"), endpoint.port.into(), argument);
        }
    }
    if let Some(directory) = &global.ca_dir {
        let argument = "--ca-dir or $TROTH_CA_DIR";
        let directory = directory.as_os_str();
        set("ca_dir", text(directory).into(), argument);
        set("client_cert", Value::Null, argument);
        set("client_key", Value::Null, argument);
        set("trusted_server_ca", Value::Array(Vec::new()), argument);
    }
}

fn text(path: &OsStr) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_service_only_what_is_about_its_configuration_is_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("environ");
        let content =
            b"LD_PRELOAD=/x\0TROTH_AGENT_PORT=1=2\0STATE_DIRECTORY=/s\0STATE_DIRECTORY_X=y\0\
                        NOTIFY_SOCKET=/n\0KEYLIME_DIR=/k\0TROTH_\0";
        std::fs::write(&path, content).unwrap();
        let found = environment(&path).unwrap();
        let expected = [
            ("TROTH_AGENT_PORT", "1=2"),
            ("STATE_DIRECTORY", "/s"),
            ("KEYLIME_DIR", "/k"),
        ];
        assert_eq!(found, expected.map(|(n, v)| (n.into(), v.into())));
    }
}
