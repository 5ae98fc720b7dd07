/// Firmware: boot log, Secure Boot, what the boot loader measured.
mod boot;
/// The kernel's IMA.
mod ima;
/// The TPM and the ways to it.
mod tpm;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    error::{Error, Exit},
    output::{Output, Tone, clean},
};

/// Most that is read of a file, in bytes: what is looked for is at its beginning.
const READ_MAX: u64 = 64 * 1024;

/// `node check --json`.
#[derive(Debug, Serialize)]
struct View {
    /// Whether all is there that an attestation needs.
    attestable: bool,
    checks: Vec<Check>,
}

/// One thing that a host may have.
#[derive(Debug, PartialEq, Serialize)]
struct Check {
    check: &'static str,
    state: State,
    found: String,
    /// What to switch on.
    #[serde(skip_serializing_if = "Option::is_none")]
    to_do: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It is there.
    Good,
    /// It is not there: less is attested.
    Lacking,
    /// It is not there: nothing can be attested.
    Missing,
    /// This user may not see it.
    Unknown,
}

impl Check {
    fn new(check: &'static str, state: State, found: impl Into<String>) -> Self {
        Self {
            check,
            state,
            found: found.into(),
            to_do: None,
        }
    }

    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, State::Good, found)
    }

    fn advise(mut self, to_do: impl Into<String>) -> Self {
        self.to_do = Some(to_do.into());
        self
    }
}

/// The files of a host.
#[derive(Debug)]
struct Host {
    root: PathBuf,
}

/// What became of a look at a file.
#[derive(Debug)]
enum Seen<T> {
    There(T),
    Absent,
    /// This user may not.
    Denied,
}

impl<T> From<io::Result<T>> for Seen<T> {
    fn from(result: io::Result<T>) -> Self {
        match result {
            Ok(value) => Self::There(value),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Self::Denied,
            Err(_) => Self::Absent,
        }
    }
}

impl Host {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.at(path)).is_ok()
    }

    /// The beginning of a file.
    fn read(&self, path: &str) -> Seen<Vec<u8>> {
        let read = || {
            let mut bytes = Vec::new();
            let file = File::open(self.at(path))?;
            file.take(READ_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().into()
    }

    /// A short text without the space around it; `None`: it is not there, or not for this user.
    fn text(&self, path: &str) -> Option<String> {
        match self.read(path) {
            Seen::There(bytes) => Some(String::from_utf8_lossy(&bytes).trim().to_owned()),
            Seen::Absent | Seen::Denied => None,
        }
    }

    /// Names in a directory, sorted.
    fn names(&self, path: &str) -> Seen<Vec<String>> {
        let list = || {
            let mut names = Vec::new();
            for entry in fs::read_dir(self.at(path))? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        };
        list().into()
    }

    /// A word of the kernel's command line: what is behind `name=`.
    fn boot_option(&self, name: &str) -> Option<String> {
        let line = self.text("/proc/cmdline")?;
        let value = |word: &str| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        line.split_whitespace().filter_map(value).next_back()
    }
}

/// Runs `trothctl node check`.
pub(super) fn run(root: &Path, out: &Output) -> Result<Exit, Error> {
    let view = look(&Host {
        root: root.to_owned(),
    });
    out.result(&view, || view.describe(out))?;
    Ok(match view.attestable {
        true => Exit::Success,
        false => Exit::Error,
    })
}

fn look(host: &Host) -> View {
    let mut checks = tpm::look(host);
    checks.extend(boot::look(host));
    checks.extend(ima::look(host));
    checks.push(command_line(host));
    View {
        attestable: checks.iter().all(|check| check.state != State::Missing),
        checks,
    }
}

/// What the kernel was told of all this.
fn command_line(host: &Host) -> Check {
    const NAME: &str = "kernel command line";
    let Some(line) = host.text("/proc/cmdline") else {
        return Check::new(NAME, State::Unknown, "/proc/cmdline cannot be read");
    };
    let about = |word: &&str| {
        ["ima", "evm", "tpm", "lockdown", "integrity"]
            .iter()
            .any(|prefix| word.starts_with(prefix))
    };
    let words: Vec<_> = line.split_whitespace().filter(about).collect();
    match words.is_empty() {
        true => Check::good(NAME, "nothing about IMA, TPM or lockdown"),
        false => Check::good(NAME, words.join(" ")),
    }
}

impl View {
    fn describe(&self, out: &Output) -> String {
        let rows = self.checks.iter().map(|check| {
            let (tone, word) = match check.state {
                State::Good => (Tone::Good, "good"),
                State::Lacking => (Tone::Warn, "lacking"),
                State::Missing => (Tone::Bad, "missing"),
                State::Unknown => (Tone::Dim, "unknown"),
            };
            vec![
                (Tone::Strong, check.check.to_owned()),
                (tone, word.to_owned()),
                (Tone::Plain, check.found.clone()),
            ]
        });
        let mut text = out.table(&["CHECK", "STATE", "FOUND"], rows.collect());
        let advice = self.checks.iter().filter_map(|check| {
            let to_do = check.to_do.as_ref()?;
            Some((check.check, crate::explain::prose(&clean(to_do))))
        });
        let advice: Vec<_> = advice.collect();
        if !advice.is_empty() {
            let heading = out.paint(Tone::Strong, "What to do:");
            text.push_str(&format!("\n{heading}\n{}", out.fields(&advice)));
        }
        text.push('\n');
        text.push_str(&match self.attestable {
            true => out.paint(Tone::Good, "This host can be attested.\n"),
            false => out.paint(Tone::Bad, "This host cannot be attested.\n"),
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A host with these files.
    fn checked(files: &[(&str, &[u8])]) -> View {
        let directory = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = directory.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        look(&Host {
            root: directory.path().to_owned(),
        })
    }

    fn of<'a>(view: &'a View, check: &str) -> &'a Check {
        view.checks.iter().find(|c| c.check == check).unwrap()
    }

    const TPM2: [(&str, &[u8]); 5] = [
        ("/sys/class/tpm/tpm0/tpm_version_major", b"2\n"),
        ("/sys/class/tpm/tpm0/device/modalias", b"acpi:IFX1522:\n"),
        ("/sys/class/tpm/tpm0/pcr-sha1/0", b"00\n"),
        ("/sys/class/tpm/tpm0/pcr-sha256/0", b"00\n"),
        ("/dev/tpmrm0", b""),
    ];

    const SECURE_BOOT: &str =
        "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

    #[test]
    fn a_host_without_a_tpm_is_told_where_to_look_for_one() {
        let view = checked(&[("/proc/cmdline", b"quiet\n")]);
        assert!(!view.attestable);
        assert_eq!(of(&view, "TPM").state, State::Missing);
        assert!(
            of(&view, "TPM")
                .to_do
                .as_ref()
                .unwrap()
                .contains("firmware")
        );
        // The firmware tells of one that no driver took.
        let view = checked(&[("/sys/firmware/acpi/tables/TPM2", b"TPM2")]);
        assert!(of(&view, "TPM").to_do.as_ref().unwrap().contains("tpm_crb"));
    }

    #[test]
    fn a_tpm_1_2_is_no_use_and_sha1_alone_is_not_either() {
        let view = checked(&[("/sys/class/tpm/tpm0/tpm_version_major", b"1\n")]);
        assert!(!view.attestable);
        assert!(of(&view, "TPM").found.contains("1.2"));
        let view = checked(&[TPM2[0], TPM2[2], TPM2[4]]);
        assert!(!view.attestable);
        let banks = of(&view, "PCR banks");
        assert_eq!(
            (banks.state, banks.found.as_str()),
            (State::Missing, "sha1")
        );
        assert!(banks.to_do.as_ref().unwrap().contains("tpm2_pcrallocate"));
    }

    #[test]
    fn a_tpm_is_enough_and_what_else_is_lacking_is_said() {
        let view = checked(&TPM2);
        assert!(view.attestable, "{view:#?}");
        assert!(of(&view, "TPM").found.contains("Infineon"));
        assert_eq!(of(&view, "PCR banks").found, "sha1, sha256");
        assert!(of(&view, "way to the TPM").found.contains("/dev/tpmrm0"));
        for lacking in [
            "boot log",
            "Secure Boot",
            "IMA list",
            "ConditionSecurity=tpm2",
        ] {
            assert_eq!(of(&view, lacking).state, State::Lacking, "{lacking}");
            assert!(of(&view, lacking).to_do.is_some(), "{lacking}");
        }
        let text = view.describe(&Output::plain());
        assert!(text.contains("This host can be attested."), "{text}");
    }

    #[test]
    fn a_host_with_everything_has_nothing_to_do() {
        let boots = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/boots/uki");
        let captured = |name: &str| fs::read(boots.join(name)).unwrap();
        let list = captured("ima-ascii_runtime_measurements");
        let log = captured("binary_bios_measurements");
        let stub = "/sys/firmware/efi/efivars/StubInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
        let files: [(&str, &[u8]); 7] = [
            ("/sys/kernel/security/ima/ascii_runtime_measurements", &list),
            (
                "/sys/kernel/security/ima/runtime_measurements_count",
                b"1630\n",
            ),
            ("/sys/kernel/security/tpm0/binary_bios_measurements", &log),
            ("/run/log/systemd/tpm2-measure.log", b"{}"),
            (SECURE_BOOT, b"\x06\0\0\0\x01"),
            (stub, b"\x06\0\0\0s\0"),
            (
                "/proc/cmdline",
                b"root=/dev/sda ima_policy=tcb ima_hash=sha256 quiet\n",
            ),
        ];
        let view = checked(&[&TPM2[..], &files].concat());
        for check in &view.checks {
            assert_eq!(
                (check.state, &check.to_do),
                (State::Good, &None),
                "{check:?}"
            );
        }
        let list = of(&view, "IMA list");
        assert!(
            list.found.contains("1630") && list.found.contains("ima-sig"),
            "{list:?}"
        );
        assert!(
            of(&view, "kernel command line")
                .found
                .contains("ima_policy=tcb")
        );
    }

    #[test]
    fn a_list_that_measures_nothing_but_the_boot_is_lacking() {
        let first = "10 00 ima-ng sha256:00 boot_aggregate\n";
        let files: [(&str, &[u8]); 2] = [
            (
                "/sys/kernel/security/ima/ascii_runtime_measurements",
                first.as_bytes(),
            ),
            (
                "/sys/kernel/security/ima/runtime_measurements_count",
                b"1\n",
            ),
        ];
        let view = checked(&[&TPM2[..], &files].concat());
        assert_eq!(of(&view, "IMA policy").state, State::Lacking);
        let to_do = of(&view, "IMA policy").to_do.as_ref().unwrap();
        assert!(to_do.contains("ima_policy=tcb"), "{to_do}");
        let view = checked(&[(SECURE_BOOT, b"\x06\0\0\0\0")]);
        assert_eq!(of(&view, "Secure Boot").state, State::Lacking);
        assert!(of(&view, "Secure Boot").found.contains("off"));
    }
}
