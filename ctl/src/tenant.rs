use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::{CommandFactory, Parser, ValueEnum, error::ErrorKind};

/// The name by which this program is Keylime's tenant.
const NAME: &str = "keylime_tenant";

/// The words of the command line; called as `keylime_tenant`, those that mean the same to
/// `trothctl`, with remarks about what has no meaning. A line that cannot be understood ends the
/// program as clap does it.
pub(crate) fn command_line() -> (Vec<OsString>, Vec<String>) {
    let words: Vec<OsString> = std::env::args_os().collect();
    let program = words.first().map(Path::new).and_then(Path::file_name);
    if program != Some(OsStr::new(NAME)) {
        return (words, Vec::new());
    }
    let words = words.into_iter().map(with_long_name);
    Tenant::try_parse_from(words)
        .and_then(Tenant::translated)
        .unwrap_or_else(|error| error.exit())
}

/// Keylime's abbreviations of several letters.
fn with_long_name(word: OsString) -> OsString {
    let long = match word.to_str() {
        Some("-nvc") => "--no-verifier-check",
        Some("-rp") => "--registrarport",
        Some("-tp") => "--targetport",
        Some("-vi") => "--cvid",
        Some("-vp") => "--cvport",
        _ => return word,
    };
    long.into()
}

/// Keylime's tenant, in trothctl's words: enrol nodes and keep policies at the verifier
#[derive(Debug, Parser)]
#[command(name = NAME, version, max_term_width = 100)]
struct Tenant {
    /// What to do
    #[arg(short, long, value_enum, default_value = "add")]
    command: Command,
    /// Agent id
    #[arg(short, long, default_value = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000")]
    uuid: String,
    /// Address of the agent, instead of the registered one
    #[arg(short, long, value_name = "HOST")]
    targethost: Option<String>,
    /// Its port [-tp]
    #[arg(long, value_name = "PORT")]
    targetport: Option<u16>,
    /// Address of the agent for the verifier
    #[arg(long = "cv_targethost", value_name = "HOST")]
    cv_targethost: Option<String>,
    /// Verifier
    #[arg(short = 'v', long, value_name = "HOST")]
    cv: Option<String>,
    /// Its port [-vp]
    #[arg(long, value_name = "PORT")]
    cvport: Option<u16>,
    /// Registrar
    #[arg(short, long, value_name = "HOST")]
    registrarhost: Option<String>,
    /// Its port [-rp]
    #[arg(long, value_name = "PORT")]
    registrarport: Option<u16>,
    /// Values of PCRs, JSON
    #[arg(long = "tpm_policy", value_name = "JSON")]
    tpm_policy: Option<String>,
    /// Runtime policy
    #[arg(long, value_name = "FILE")]
    runtime_policy: Option<String>,
    /// Runtime policy to download
    #[arg(long, value_name = "URL")]
    runtime_policy_url: Option<String>,
    /// Its SHA-256
    #[arg(long, value_name = "HEX")]
    runtime_policy_checksum: Option<String>,
    /// Who must have signed it
    #[arg(long, value_name = "PEM")]
    runtime_policy_sig_key: Option<String>,
    /// Name of a runtime policy at the verifier
    #[arg(long, alias = "allowlist-name", value_name = "NAME")]
    runtime_policy_name: Option<String>,
    /// Flat list of allowed files
    #[arg(long, value_name = "FILE")]
    allowlist: Option<String>,
    /// Regular expressions of paths to leave out
    #[arg(long, value_name = "FILE")]
    exclude: Option<String>,
    /// Key of signatures of files
    #[arg(long, alias = "sign_verification_key", value_name = "FILE")]
    signature_verification_key: Vec<String>,
    /// Boot policy
    #[arg(long, alias = "mb_refstate", value_name = "FILE")]
    mb_policy: Option<String>,
    /// Name of a boot policy at the verifier
    #[arg(long, value_name = "NAME")]
    mb_policy_name: Option<String>,
    /// Version of the agent's API
    #[arg(long, alias = "agent-api-version", value_name = "VERSION")]
    supported_version: Option<String>,
    /// Payload: without effect
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// Payload: without effect
    #[arg(long, value_name = "DIRECTORY")]
    cert: Option<String>,
    /// Payload: without effect
    #[arg(short, long, value_name = "FILE")]
    key: Option<String>,
    /// Payload: without effect
    #[arg(short, long, value_name = "FILE")]
    payload: Option<String>,
    /// Payload: without effect
    #[arg(long, value_name = "DIRECTORY")]
    include: Option<String>,
    /// Payload: without effect
    #[arg(long)]
    verify: bool,
    /// Without effect: there is one verifier [-vi]
    #[arg(long, value_name = "ID")]
    cvid: Option<String>,
    /// Without effect: nothing is checked that could be left out [-nvc]
    #[arg(long)]
    no_verifier_check: bool,
}

/// Keylime's commands.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
#[value(rename_all = "lower")]
enum Command {
    Add,
    Update,
    Delete,
    Reactivate,
    Status,
    CvStatus,
    RegStatus,
    CvList,
    BulkInfo,
    RegList,
    RegDelete,
    #[value(alias = "addallowlist")]
    AddRuntimePolicy,
    UpdateRuntimePolicy,
    #[value(alias = "showallowlist")]
    ShowRuntimePolicy,
    #[value(alias = "deleteallowlist")]
    DeleteRuntimePolicy,
    ListRuntimePolicy,
    AddMbPolicy,
    UpdateMbPolicy,
    ShowMbPolicy,
    DeleteMbPolicy,
    ListMbPolicy,
}

impl Tenant {
    fn translated(self) -> Result<(Vec<OsString>, Vec<String>), clap::Error> {
        self.check()?;
        let mut words = vec!["trothctl".to_owned()];
        let server = |host: &Option<String>, port: Option<u16>, usual| {
            (host.is_some() || port.is_some()).then(|| {
                let host = host.as_deref().unwrap_or("127.0.0.1");
                let port = port.unwrap_or(usual);
                if host.contains(':') {
                    format!("--{{}}=https://[{host}]:{port}")
                } else {
                    format!("--{{}}=https://{host}:{port}")
                }
            })
        };
        for (name, option) in [
            ("verifier", server(&self.cv, self.cvport, 8881)),
            (
                "registrar",
                server(&self.registrarhost, self.registrarport, 8891),
            ),
        ] {
            words.extend(option.map(|option| option.replace("{}", name)));
        }
        words.extend(self.command_words());
        let notes = self.notes();
        Ok((words.into_iter().map(OsString::from).collect(), notes))
    }

    /// What would make a stored policy stricter, and cannot be part of one, is not left out silently.
    fn check(&self) -> Result<(), clap::Error> {
        use Command::{AddMbPolicy, AddRuntimePolicy, UpdateMbPolicy, UpdateRuntimePolicy};
        let imports = [
            AddRuntimePolicy,
            UpdateRuntimePolicy,
            AddMbPolicy,
            UpdateMbPolicy,
        ];
        if !imports.contains(&self.command) {
            return Ok(());
        }
        for (option, given) in [
            ("--tpm_policy", self.tpm_policy.is_some()),
            (
                "--signature-verification-key",
                !self.signature_verification_key.is_empty(),
            ),
        ] {
            if given {
                let text = format!(
                    "{option} is not part of a policy that the verifier keeps; give it with -c add \
                     or -c update"
                );
                return Err(Self::command().error(ErrorKind::ArgumentConflict, text));
            }
        }
        Ok(())
    }

    fn command_words(&self) -> Vec<String> {
        let plain = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let runtime = self.runtime_policy_name.as_deref();
        let boot = self.mb_policy_name.as_deref();
        match self.command {
            Command::Add => self.enrolment("add"),
            Command::Update => self.enrolment("update"),
            Command::Delete => plain(&["agent", "remove", "--wait", &self.uuid]),
            Command::Reactivate => plain(&["agent", "reactivate", &self.uuid]),
            Command::Status | Command::CvStatus => plain(&["agent", "status", &self.uuid]),
            Command::RegStatus => plain(&["registrar", "show", &self.uuid]),
            Command::CvList => plain(&["agent", "list"]),
            Command::BulkInfo => plain(&["--json", "agent", "list"]),
            Command::RegList => plain(&["registrar", "list"]),
            Command::RegDelete => plain(&["registrar", "remove", &self.uuid]),
            Command::AddRuntimePolicy => self.import_runtime(false),
            Command::UpdateRuntimePolicy => self.import_runtime(true),
            Command::ShowRuntimePolicy => named(&["policy", "show", "runtime"], runtime),
            Command::DeleteRuntimePolicy => named(&["policy", "remove", "runtime"], runtime),
            Command::ListRuntimePolicy => plain(&["policy", "list", "runtime"]),
            Command::AddMbPolicy => self.import_boot(false),
            Command::UpdateMbPolicy => self.import_boot(true),
            Command::ShowMbPolicy => named(&["policy", "show", "boot"], boot),
            Command::DeleteMbPolicy => named(&["policy", "remove", "boot"], boot),
            Command::ListMbPolicy => plain(&["policy", "list", "boot"]),
        }
    }

    fn enrolment(&self, command: &str) -> Vec<String> {
        let mut words = vec!["agent".to_owned(), command.to_owned()];
        let port = self.targetport.map(|port| port.to_string());
        for (option, value) in [
            ("address", &self.targethost),
            ("port", &port),
            ("address-for-verifier", &self.cv_targethost),
            ("api-version", &self.supported_version),
            ("tpm-policy", &self.tpm_policy),
            ("runtime-policy", &self.runtime_policy),
            ("runtime-policy-url", &self.runtime_policy_url),
            ("runtime-policy-checksum", &self.runtime_policy_checksum),
            ("runtime-policy-sig-key", &self.runtime_policy_sig_key),
            ("runtime-policy-name", &self.runtime_policy_name),
            ("allowlist", &self.allowlist),
            ("exclude", &self.exclude),
            ("boot-policy", &self.mb_policy),
            ("boot-policy-name", &self.mb_policy_name),
        ] {
            words.extend(value.as_ref().map(|value| format!("--{option}={value}")));
        }
        let keys = self.signature_verification_key.iter();
        words.extend(keys.map(|key| format!("--verification-key={key}")));
        words.extend(["--".to_owned(), self.uuid.clone()]);
        words
    }

    /// A runtime policy that the verifier keeps. Options that exclude each other are told of by the
    /// command.
    fn import_runtime(&self, replace: bool) -> Vec<String> {
        let words = ["policy", "import", "runtime"];
        let mut words = named(&words, self.runtime_policy_name.as_deref());
        words.extend(self.runtime_policy.clone());
        for (option, value) in [
            ("url", &self.runtime_policy_url),
            ("checksum", &self.runtime_policy_checksum),
            ("sig-key", &self.runtime_policy_sig_key),
            ("allowlist", &self.allowlist),
            ("exclude", &self.exclude),
        ] {
            words.extend(value.as_ref().map(|value| format!("--{option}={value}")));
        }
        words.extend(replace.then(|| "--replace".to_owned()));
        words
    }

    /// A boot policy that the verifier keeps.
    fn import_boot(&self, replace: bool) -> Vec<String> {
        let words = ["policy", "import", "boot"];
        let mut words = named(&words, self.mb_policy_name.as_deref());
        words.extend(self.mb_policy.clone());
        words.extend(replace.then(|| "--replace".to_owned()));
        words
    }

    fn notes(&self) -> Vec<String> {
        use Command::{AddMbPolicy, AddRuntimePolicy, UpdateMbPolicy, UpdateRuntimePolicy};
        let payload = "payloads are not delivered yet";
        let other = "the command is about the other kind of policy";
        let runtime = matches!(self.command, AddRuntimePolicy | UpdateRuntimePolicy);
        let boot = matches!(self.command, AddMbPolicy | UpdateMbPolicy);
        let (url, key) = (&self.runtime_policy_url, &self.runtime_policy_sig_key);
        let checksum = &self.runtime_policy_checksum;
        let mut notes = Vec::new();
        for (option, given, why) in [
            ("--file", self.file.is_some(), payload),
            ("--cert", self.cert.is_some(), payload),
            ("--key", self.key.is_some(), payload),
            ("--payload", self.payload.is_some(), payload),
            ("--include", self.include.is_some(), payload),
            ("--verify", self.verify, payload),
            (
                "--cvid",
                self.cvid.is_some(),
                "a node is the verifier's that enrols it",
            ),
            ("--mb-policy", runtime && self.mb_policy.is_some(), other),
            (
                "--runtime-policy",
                boot && self.runtime_policy.is_some(),
                other,
            ),
            ("--runtime-policy-url", boot && url.is_some(), other),
            (
                "--runtime-policy-checksum",
                boot && checksum.is_some(),
                other,
            ),
            ("--runtime-policy-sig-key", boot && key.is_some(), other),
            ("--allowlist", boot && self.allowlist.is_some(), other),
            ("--exclude", boot && self.exclude.is_some(), other),
        ] {
            if given {
                notes.push(format!("{option} has no effect: {why}"));
            }
        }
        notes
    }
}

/// A command about a policy; without a name, which it lacks then, the command says so.
fn named(words: &[&str], name: Option<&str>) -> Vec<String> {
    let words = words.iter().copied().chain(name);
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;

    /// What a line of Keylime's is here; it must be a command line of ours.
    fn translated(line: &str) -> (String, Vec<String>) {
        let words = line
            .split_whitespace()
            .map(|word| with_long_name(word.into()));
        let tenant = Tenant::try_parse_from(words).unwrap();
        let (words, notes) = tenant.translated().unwrap();
        if let Err(error) = Cli::try_parse_from(&words) {
            panic!("{line}: {words:?}: {error}");
        }
        let words: Vec<_> = words[1..]
            .iter()
            .map(|word| word.to_str().unwrap())
            .collect();
        (words.join(" "), notes)
    }

    #[test]
    fn the_wikis_commands_are_ours() {
        let (words, notes) =
            translated("keylime_tenant -v 127.0.0.1 -t host -u node --cert default -c add");
        let expected = "--verifier=https://127.0.0.1:8881 agent add --address=host -- node";
        assert_eq!(words, expected);
        assert_eq!(
            notes,
            ["--cert has no effect: payloads are not delivered yet"]
        );

        let (words, notes) = translated(
            "keylime_tenant -c update -u node -tp 9003 -r ::1 -rp 9 --allowlist a --exclude e \
             --mb_refstate {} --tpm_policy {}",
        );
        let expected = "--registrar=https://[::1]:9 agent update --port=9003 --tpm-policy={} \
                        --allowlist=a --exclude=e --boot-policy={} -- node";
        assert_eq!(words, expected);
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn every_command_of_keylimes_is_one_of_ours() {
        for command in Command::value_variants() {
            let name = command.to_possible_value().unwrap();
            translated(&format!(
                "keylime_tenant -u node --runtime-policy f --runtime-policy-name p \
                 --mb-policy f --mb-policy-name p -c {}",
                name.get_name()
            ));
        }
        for (line, expected) in [
            (
                "-c addallowlist --allowlist-name p --allowlist f --exclude e",
                "policy import runtime p --allowlist=f --exclude=e",
            ),
            (
                "-c addruntimepolicy --runtime-policy-name p --runtime-policy f \
                 --runtime-policy-sig-key k",
                "policy import runtime p f --sig-key=k",
            ),
            (
                "-c updateruntimepolicy --runtime-policy-name p \
                 --runtime-policy-url https://host/f --runtime-policy-checksum SHA256 \
                 --runtime-policy-sig-key k",
                "policy import runtime p --url=https://host/f --checksum=SHA256 --sig-key=k \
                 --replace",
            ),
        ] {
            let sha256 = "ab".repeat(32);
            let (words, notes) = translated(&format!(
                "keylime_tenant {}",
                line.replace("SHA256", &sha256)
            ));
            assert_eq!(words, expected.replace("SHA256", &sha256));
            assert!(notes.is_empty(), "{notes:?}");
        }
        for option in ["--tpm_policy={}", "--signature-verification-key=k"] {
            let line = "keylime_tenant -c addruntimepolicy --runtime-policy f \
                        --runtime-policy-name p";
            let tenant = Tenant::try_parse_from(line.split_whitespace().chain([option]));
            let error = tenant.unwrap().translated().unwrap_err().to_string();
            let (name, _) = option.split_once('=').unwrap();
            assert!(error.contains(name), "{error}");
        }
        let (words, _) = translated("keylime_tenant -c delete");
        assert_eq!(
            words,
            "agent remove --wait d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
        );
        let (words, _) =
            translated("keylime_tenant -c updatembpolicy --mb-policy f --mb-policy-name p");
        assert_eq!(words, "policy import boot p f --replace");
        for line in [
            "-c addmbpolicy --mb-policy f --mb-policy-name p --runtime-policy-sig-key k",
            "-c addruntimepolicy --runtime-policy f --runtime-policy-name p --mb-policy f",
        ] {
            let (_, notes) = translated(&format!("keylime_tenant {line}"));
            assert_eq!(notes.len(), 1, "{line}: {notes:?}");
            assert!(notes[0].contains("other kind of policy"), "{notes:?}");
        }
    }
}
