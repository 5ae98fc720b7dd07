use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::process::isolate;

/// Forks for each line of standard input: `[arguments, {environment}]`; answers with the exit
/// status. Standard output and error of the fork go to the file in the first argument.
const PROGRAM: &str = "\
import json, os, sys
from keylime.cmd.tenant import main
for line in sys.stdin:
    arguments, environment = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        output = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ['keylime_tenant', *arguments]
        sys.exit(main())
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
";

/// A Python that has imported Keylime's tenant, once: that is most of what a command costs.
#[derive(Debug)]
pub(super) struct Launcher {
    child: Child,
    commands: ChildStdin,
    statuses: BufReader<ChildStdout>,
    output: PathBuf,
}

impl Launcher {
    /// `python` is a command without arguments, in the environment of the tenant.
    pub(super) fn start(mut python: Command, directory: &Path) -> Result<Self> {
        let output = directory.join("keylime_tenant.out");
        isolate(&mut python);
        let mut child = python
            .args(["-c", PROGRAM])
            .arg(&output)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start Keylime's Python")?;
        let commands = child.stdin.take().context("no standard input")?;
        let statuses = child.stdout.take().context("no standard output")?;
        Ok(Self {
            child,
            commands,
            statuses: BufReader::new(statuses),
            output,
        })
    }

    /// `keylime_tenant ARGUMENTS`: what it printed, when it succeeded; else an error with that.
    pub(super) fn run(
        &mut self,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<String> {
        let environment: serde_json::Map<_, _> = environment
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        writeln!(self.commands, "{}", json!([arguments, environment]))?;
        let mut status = String::new();
        self.statuses.read_line(&mut status)?;
        let printed = String::from_utf8_lossy(&fs::read(&self.output)?).into_owned();
        let status = status.trim_end();
        ensure!(
            status == "0",
            "keylime_tenant {arguments:?}: exit status {status}\n{printed}"
        );
        Ok(printed)
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
