use std::fmt::Debug;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::control::Control;
use super::image::{BootLoader, Image};
use super::machine::{Cable, Machine, Parts, Start};
use super::saved;
use crate::fleet::Answer;

/// How long a boot gets, firmware and all. One takes half a minute on a machine that is not busy.
const BOOT_PATIENCE: Duration = Duration::from_secs(400);

/// How long a command gets.
const COMMAND_PATIENCE: Duration = Duration::from_secs(300);

/// How long something gets to come true.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long the guest agent gets for an answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// What a test's machine is.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Its host name.
    pub name: &'a str,
    /// A directory for its files and logs.
    pub directory: &'a Path,
    /// What starts the kernel at the next boot.
    pub loader: BootLoader,
    /// The cable to another machine.
    pub cable: Option<Cable<'a>>,
}

/// An operating system on a machine of its own. It is switched off when dropped; then what SELinux
/// would have denied our programs is listed, and the end of the journal when the test panics.
#[derive(Debug)]
pub struct Guest {
    name: String,
    // Dropped in this order.
    agent: Mutex<Control>,
    machine: Machine,
}

impl Guest {
    /// A host that has booted and has the install tree, a second later. Nothing of ours runs.
    pub fn restored(setup: &Setup<'_>) -> Result<Self> {
        let image = Image::made()?;
        let parts = saved::installed()?;
        let guest = Self::start(
            setup.name,
            setup.directory,
            &Start {
                parts: &parts,
                are_shared: true,
                memory: Some(parts.memory()),
                boot_disk: &image.boot_disk(setup.loader),
                transfer: None,
                cable: setup.cable,
            },
        )?;
        guest.sh(&format!("echo {} > /proc/sys/kernel/hostname", setup.name))?;
        Ok(guest)
    }

    /// Returns when the guest agent answers, with the clock set.
    pub(super) fn start(name: &str, directory: &Path, start: &Start<'_>) -> Result<Self> {
        let mut machine = Machine::start(directory, start)?;
        let mut agent = machine.agent()?;
        synchronize(&mut agent, &mut machine)?;
        let guest = Self {
            name: name.to_owned(),
            agent: Mutex::new(agent),
            machine,
        };
        // It stood still while the machine was saved.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        guest.output(&["date", &format!("--set=@{now}")])?;
        Ok(guest)
    }

    /// Saves it beside the `parts` that it runs on, and switches it off.
    pub(super) fn save(mut self, parts: &Parts) -> Result<()> {
        self.machine.save(parts)
    }

    /// Runs a command as root.
    pub fn run(&self, command: &[&str]) -> Result<Answer> {
        self.run_with(command, b"")
    }

    /// The standard output of a command that must succeed.
    pub fn output(&self, command: &[&str]) -> Result<String> {
        let answer = self.run(command)?.success();
        let answer = answer.with_context(|| format!("{}: `{}`", self.name, command.join(" ")))?;
        Ok(answer.stdout)
    }

    /// The standard output of a script of `sh -e`.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.output(&["sh", "-ec", script])
    }

    /// A property of a unit, as `systemctl show` prints it.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        let shown = self.output(&["systemctl", "show", "--value", "--property", property, unit])?;
        Ok(shown.trim_end().to_owned())
    }

    /// Writes a file, and the directories above it.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        let script = r#"mkdir -p "${0%/*}" && cat > "$0""#;
        let answer = self.run_with(&["sh", "-ec", script, path], content.as_bytes())?;
        answer
            .success()
            .with_context(|| format!("{}: {path}", self.name))?;
        Ok(())
    }

    /// Waits until `wanted` is true of what `look` sees; an error says what it saw last.
    pub fn wait_for<T: Debug>(
        &self,
        what: &str,
        look: impl Fn(&Self) -> Result<T>,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            match look(self) {
                Ok(seen) if wanted(&seen) => return Ok(seen),
                seen if start.elapsed() > PATIENCE => {
                    let name = &self.name;
                    bail!("{name}: waited {PATIENCE:?} until {what}; last seen: {seen:#?}");
                }
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// Shuts down and boots: firmware, boot loader, kernel. Returns when everything has started
    /// that starts with it, or failed to.
    pub fn reboot(&mut self) -> Result<()> {
        const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.sh(BOOT)?;
        // Nobody may be left to say how that ended.
        let reboot = json!({"path": "systemctl", "arg": ["--no-block", "reboot"]});
        self.ask("guest-exec", reboot)?;
        let start = Instant::now();
        loop {
            let agent = self.agent.get_mut().unwrap_or_else(PoisonError::into_inner);
            synchronize(agent, &mut self.machine)?;
            // What it is asked while it shuts down may never be answered.
            match self.sh(BOOT) {
                Ok(now) if now != before => break,
                _ if start.elapsed() > BOOT_PATIENCE => {
                    let console = self.machine.console();
                    bail!(
                        "{}: no reboot after {BOOT_PATIENCE:?}:\n{console}",
                        self.name
                    );
                }
                _ => thread::sleep(Duration::from_millis(500)),
            }
        }
        self.wait_until_booted()
    }

    /// Waits until everything has started that starts with it, or failed to.
    pub(super) fn wait_until_booted(&self) -> Result<()> {
        self.run(&["systemctl", "is-system-running", "--wait"])
            .map(drop)
    }

    /// The certificate that issued that of its TPM's EK.
    pub fn ek_issuer(&self) -> &Path {
        self.machine.ek_issuer()
    }

    /// What SELinux would have denied our programs if it were enforcing, each once.
    pub fn denials(&self) -> Result<Vec<String>> {
        // It fails when it finds nothing.
        let found = self.run(&[
            "journalctl",
            "--boot",
            "--quiet",
            "--no-pager",
            "--output=json",
            "--output-fields=MESSAGE,_AUDIT_ID",
            r#"--grep=denied|exe="/usr/bin/troth"#,
            "_AUDIT_TYPE_NAME=AVC",
            "_AUDIT_TYPE_NAME=USER_AVC",
            "_AUDIT_TYPE_NAME=SYSCALL",
        ])?;
        Ok(denials_in(&found.stdout))
    }

    fn run_with(&self, command: &[&str], input: &[u8]) -> Result<Answer> {
        let (program, arguments) = command.split_first().context("no command")?;
        let started = self.ask(
            "guest-exec",
            json!({
                "path": program,
                "arg": arguments,
                "env": [
                    "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "COLUMNS=200",
                ],
                "input-data": STANDARD.encode(input),
                "capture-output": true,
            }),
        )?;
        let start = Instant::now();
        let mut pause = Duration::from_millis(10);
        loop {
            let status = self.ask("guest-exec-status", started.clone())?;
            if status["exited"] == true {
                return answer(&status);
            }
            if start.elapsed() > COMMAND_PATIENCE {
                bail!("{}: `{}` does not end", self.name, command.join(" "));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    fn ask(&self, command: &str, arguments: Value) -> Result<Value> {
        let answer = lock(&self.agent).ask(command, arguments, ANSWER_PATIENCE);
        answer.with_context(|| format!("{}: the guest agent", self.name))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have been saved.
        if self.machine.check().is_err() {
            return;
        }
        // Not eprintln, as in Process.
        let show = |what: &str, text: &str| {
            let _ = writeln!(io::stderr(), "--- {what} of {}:\n{text}", self.name);
        };
        if let Ok(denials) = self.denials() {
            show("SELinux (permissive) and our programs", &denials.join("\n"));
        }
        if thread::panicking() {
            let mut journal = vec![
                "journalctl",
                "--boot",
                "--quiet",
                "--no-pager",
                "--lines=200",
            ];
            // Not the kernel's audit, which has many lines for each command.
            let told = [
                "_TRANSPORT=journal",
                "+",
                "_TRANSPORT=stdout",
                "+",
                "_TRANSPORT=syslog",
            ];
            journal.extend(told);
            let shown = self
                .output(&journal)
                .unwrap_or_else(|error| format!("{error:#}"));
            show("journal", &shown);
            show("console", &self.machine.console());
        }
    }
}

/// Of the audit's records, as journald has them in JSON: the denials that name our files or programs,
/// and those of system calls of our programs. A denial itself tells no more of who was denied than
/// the name of a thread, and most threads are not named as their programs.
fn denials_in(journal: &str) -> Vec<String> {
    let records: Vec<Value> = journal
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let message = |record: &Value| record["MESSAGE"].as_str().unwrap_or_default().to_owned();
    let ours: Vec<_> = records
        .iter()
        .filter(|record| message(record).contains(r#" exe="/usr/bin/troth"#))
        .map(|record| &record["_AUDIT_ID"])
        .collect();
    let mut denials: Vec<_> = records
        .iter()
        .filter_map(|record| {
            let message = message(record);
            let (_, denial) = message.split_once("avc: ")?;
            if !denial.contains("troth") && !ours.contains(&&record["_AUDIT_ID"]) {
                return None;
            }
            let words = denial.split_whitespace();
            let kept = words.filter(|word| !word.starts_with("pid=") && !word.starts_with("ino="));
            Some(kept.collect::<Vec<_>>().join(" "))
        })
        .collect();
    denials.sort_unstable();
    denials.dedup();
    denials
}

/// What guest-exec-status says of a command that has ended.
fn answer(status: &Value) -> Result<Answer> {
    let text = |name: &str| -> Result<String> {
        let bytes = STANDARD.decode(status[name].as_str().unwrap_or_default())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    // As wait(2) has it.
    let number = |name: &str| i32::try_from(status[name].as_i64().unwrap_or_default());
    let raw = (number("exitcode")? << 8) | number("signal")?;
    Ok(Answer {
        status: ExitStatus::from_raw(raw),
        stdout: text("out-data")?,
        stderr: text("err-data")?,
    })
}

/// Asks until the guest agent answers this very question: what came before was for somebody else.
fn synchronize(agent: &mut Control, machine: &mut Machine) -> Result<()> {
    let start = Instant::now();
    let mut question = 0_u64;
    while start.elapsed() < BOOT_PATIENCE {
        machine.check()?;
        question += 1;
        agent.send(&json!({"execute": "guest-sync-delimited", "arguments": {"id": question}}))?;
        while let Some(answer) = agent.line()? {
            if answer["return"] == question {
                return Ok(());
            }
        }
    }
    bail!(
        "no guest agent after {BOOT_PATIENCE:?}:\n{}",
        machine.console()
    )
}

fn lock(agent: &Mutex<Control>) -> MutexGuard<'_, Control> {
    agent.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_is_ours_by_its_names_or_by_the_program_of_its_system_call() {
        let avc = |of: &str| format!("AVC avc:  denied  {{ read }} for  {of} permissive=1");
        let records = [
            // A thread of the agent, twice.
            (
                "1",
                avc(r#"pid=7 comm="tpm" name="tpmrm0" dev="devtmpfs" ino=9"#),
            ),
            (
                "1",
                r#"SYSCALL syscall=257 pid=7 comm="tpm" exe="/usr/bin/troth-agent""#.to_owned(),
            ),
            (
                "2",
                avc(r#"pid=8 comm="tpm" name="tpmrm0" dev="devtmpfs" ino=9"#),
            ),
            (
                "2",
                r#"SYSCALL syscall=257 pid=8 comm="tpm" exe="/usr/bin/troth-agent""#.to_owned(),
            ),
            // Somebody else, with a file of ours and with one that is not.
            ("3", avc(r#"pid=1 comm="systemd" path="/etc/troth/ca""#)),
            ("4", avc(r#"pid=1 comm="systemd" path="/etc/other""#)),
            (
                "4",
                r#"SYSCALL syscall=257 pid=1 comm="systemd" exe="/usr/lib/systemd/systemd""#
                    .to_owned(),
            ),
            // A system call that was denied nothing.
            (
                "5",
                r#"SYSCALL syscall=59 pid=9 comm="trothctl" exe="/usr/bin/trothctl""#.to_owned(),
            ),
        ];
        let journal = records.map(|(serial, message)| {
            format!("{}\n", json!({"_AUDIT_ID": serial, "MESSAGE": message}))
        });
        let expected = [
            r#"denied { read } for comm="systemd" path="/etc/troth/ca" permissive=1"#,
            r#"denied { read } for comm="tpm" name="tpmrm0" dev="devtmpfs" permissive=1"#,
        ];
        assert_eq!(denials_in(&journal.concat()), expected);
    }
}
