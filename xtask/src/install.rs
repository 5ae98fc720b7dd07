use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::workspace::{cargo, display, root, run};

/// What a host runs.
const PROGRAMS: [&str; 5] = [
    "troth-agent",
    "troth-actiond",
    "troth-registrar",
    "troth-verifier",
    "trothctl",
];

/// Completion scripts, where their shells look for them.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/trothctl"),
    ("fish", "share/fish/vendor_completions.d/trothctl.fish"),
    ("zsh", "share/zsh/site-functions/_trothctl"),
];

/// Descriptions of our interfaces, by how their names end in `dbus`: where a host has them.
const INTERFACES: [(&str, &str); 2] = [
    (".varlink", "share/varlink"),
    (".xml", "share/dbus-1/interfaces"),
];

const DIRECTORY: u32 = 0o755;
const PROGRAM: u32 = 0o755;
const FILE: u32 = 0o644;

/// Options of `cargo xtask install`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The directory that stands for `/`: a package's build root, a container, or / itself
    #[arg(long, value_name = "DIRECTORY")]
    root: PathBuf,
    /// Take the programs that were built into this directory, such as target/release; without it,
    /// they are built
    #[arg(long, value_name = "DIRECTORY")]
    programs: Option<PathBuf>,
}

/// `cargo xtask install`: programs, units and all that belongs to them, below `usr`. What is in
/// `/etc` and `/var` is the administrator's and the services'.
pub(crate) fn run_install(options: &Options) -> Result<()> {
    let programs = match &options.programs {
        Some(programs) => programs.clone(),
        None => {
            run(cargo().args(["build", "--release", "--workspace", "--bins"]))?;
            let this = std::env::current_exe()?;
            let target = this.parent().and_then(Path::parent);
            target.context("no target directory")?.join("release")
        }
    };
    let usr = options.root.join("usr");
    let count = lay_down(root(), &programs, &usr)?;
    println!("{count} files are in {}", usr.display());
    Ok(())
}

/// Writes the install tree of a checkout below `usr`, and returns how many files it has.
fn lay_down(checkout: &Path, programs: &Path, usr: &Path) -> Result<usize> {
    let mut tree = Tree { usr, count: 0 };
    for name in PROGRAMS {
        let from = programs.join(name);
        let content = fs::read(&from)
            .with_context(|| format!("{}: build it, or name another directory", from.display()))?;
        tree.write(&format!("bin/{name}"), &content, PROGRAM)?;
    }
    let units = checkout.join("units");
    for path in files_below(&units)? {
        let name = path.strip_prefix(&units)?.to_string_lossy().into_owned();
        tree.write(&name, &fs::read(&path)?, FILE)?;
    }
    for path in files_below(&checkout.join("dbus"))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Those of systemd and varlink are not ours to install.
        let place = INTERFACES.iter().find(|(end, _)| name.ends_with(end));
        if let Some((_, place)) = place.filter(|_| name.starts_with("org.troth.")) {
            tree.write(&format!("{place}/{name}"), &fs::read(&path)?, FILE)?;
        }
    }
    let docs = checkout.join("docs");
    for path in files_below(&docs)? {
        let name = path.strip_prefix(&docs)?.display();
        tree.write(&format!("share/doc/troth/{name}"), &fs::read(&path)?, FILE)?;
    }
    let trothctl = programs.join("trothctl");
    for (shell, name) in COMPLETIONS {
        let script = output(Command::new(&trothctl).args(["completions", shell]))?;
        tree.write(name, &script, FILE)?;
    }
    let pages = tempfile::tempdir()?;
    output(Command::new(&trothctl).arg("man").arg(pages.path()))?;
    for path in files_below(pages.path())? {
        let name = path.strip_prefix(pages.path())?.display();
        tree.write(&format!("share/man/man1/{name}"), &fs::read(&path)?, FILE)?;
    }
    Ok(tree.count)
}

struct Tree<'a> {
    usr: &'a Path,
    count: usize,
}

impl Tree<'_> {
    /// A file is there whole or as it was before: it may be a program that runs.
    fn write(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        let path = self.usr.join(name);
        let write = || -> Result<()> {
            let directory = path.parent().context("no directory")?;
            make_directories(directory)?;
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.write_all(content)?;
            // Whatever the umask is.
            file.as_file()
                .set_permissions(Permissions::from_mode(mode))?;
            file.persist(&path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        self.count += 1;
        Ok(())
    }
}

/// Makes what is missing of `path`, for everybody to look into.
fn make_directories(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directories(parent)?;
    }
    fs::create_dir(path)?;
    File::open(path)?.set_permissions(Permissions::from_mode(DIRECTORY))?;
    Ok(())
}

/// All files below `directory`, sorted.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            ensure!(kind.is_file(), "{} is not a file", path.display());
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What `command` prints.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let line = display(command);
    let output = command
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}: {error}", output.status);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A `trothctl` that writes what the real one writes: scripts to standard output, manual pages
    /// into a directory.
    const TROTHCTL: &str = "#!/bin/sh\ncase $1 in\ncompletions) echo \"for $2\";;\n\
                            man) echo page >\"$2/trothctl.1\";;\nesac\n";

    fn stand_ins(directory: &Path) {
        for name in PROGRAMS {
            let path = directory.join(name);
            fs::write(&path, TROTHCTL).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        }
    }

    /// Names and modes of all that is below `directory`, and what the files are.
    fn listed(directory: &Path) -> Vec<(String, u32, Vec<u8>)> {
        let files = files_below(directory).unwrap().into_iter();
        files
            .map(|path| {
                let name = path.strip_prefix(directory).unwrap();
                let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
                (name.display().to_string(), mode, fs::read(&path).unwrap())
            })
            .collect()
    }

    #[test]
    fn the_tree_is_below_usr_and_the_same_the_second_time() {
        let directory = tempfile::tempdir().unwrap();
        let (programs, host) = (
            directory.path().join("built"),
            directory.path().join("host"),
        );
        fs::create_dir(&programs).unwrap();
        stand_ins(&programs);
        let options = Options {
            root: host.clone(),
            programs: Some(programs.clone()),
        };
        run_install(&options).unwrap();
        let first = listed(&host);
        let names: Vec<_> = first.iter().map(|(name, ..)| name.as_str()).collect();
        let documents = files_below(&root().join("docs")).unwrap().len();
        let there = |prefix: &str| names.iter().filter(|n| n.starts_with(prefix)).count();
        assert_eq!(there("usr/share/doc/troth/"), documents + 4, "{names:?}");
        let without_documents: Vec<_> = names
            .iter()
            .filter(|name| !name.ends_with(".md"))
            .copied()
            .collect();
        assert_eq!(without_documents, TREE);
        for (name, mode, _) in &first {
            let expected = if name.starts_with("usr/bin/") {
                PROGRAM
            } else {
                FILE
            };
            assert_eq!(*mode, expected, "{name}");
        }
        for path in [
            "usr",
            "usr/bin",
            "usr/lib/systemd/system",
            "usr/share/man/man1",
        ] {
            let mode = fs::metadata(host.join(path)).unwrap().mode();
            assert_eq!(mode & 0o7777, DIRECTORY, "{path}");
        }

        run_install(&options).unwrap();
        assert_eq!(listed(&host), first);
    }

    #[test]
    fn a_program_that_was_not_built_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            root: directory.path().join("host"),
            programs: Some(directory.path().to_owned()),
        };
        let error = run_install(&options).unwrap_err().to_string();
        assert!(error.contains("/troth-agent: build it"), "{error}");
    }

    /// Each of these is a promise to packages and administrators.
    const TREE: [&str; 39] = [
        "usr/bin/troth-actiond",
        "usr/bin/troth-agent",
        "usr/bin/troth-registrar",
        "usr/bin/troth-verifier",
        "usr/bin/trothctl",
        "usr/lib/firewalld/services/keylime.xml",
        "usr/lib/firewalld/services/troth-agent.xml",
        "usr/lib/firewalld/services/troth-registrar.xml",
        "usr/lib/firewalld/services/troth-verifier.xml",
        "usr/lib/systemd/catalog/troth.catalog",
        "usr/lib/systemd/system/troth-actiond.service",
        "usr/lib/systemd/system/troth-actiond.socket",
        "usr/lib/systemd/system/troth-actions.slice",
        "usr/lib/systemd/system/troth-agent.service",
        "usr/lib/systemd/system/troth-agent.socket",
        "usr/lib/systemd/system/troth-ca-init.service",
        "usr/lib/systemd/system/troth-ca-init.service.d/10-registrar.conf",
        "usr/lib/systemd/system/troth-ca-init.service.d/10-verifier.conf",
        "usr/lib/systemd/system/troth-registrar.service",
        "usr/lib/systemd/system/troth-verifier.service",
        "usr/lib/systemd/system/var-lib-troth-secure.mount",
        "usr/lib/systemd/system-preset/90-troth.preset",
        "usr/lib/sysusers.d/troth.conf",
        "usr/lib/tmpfiles.d/troth.conf",
        "usr/lib/troth/trothctl.toml",
        "usr/share/bash-completion/completions/trothctl",
        "usr/share/dbus-1/interfaces/org.troth.Agent1.xml",
        "usr/share/dbus-1/system-services/org.troth.Agent1.service",
        "usr/share/dbus-1/system.d/org.troth.Agent1.conf",
        "usr/share/doc/troth/examples/troth-agent.service.d/any-tpm.conf",
        "usr/share/doc/troth/examples/troth-agent.service.d/systemd-252.conf",
        "usr/share/doc/troth/examples/troth-agent.service.d/tpm2-abrmd.conf",
        "usr/share/doc/troth/examples/troth-agent.socket.d/any-tpm.conf",
        "usr/share/fish/vendor_completions.d/trothctl.fish",
        "usr/share/man/man1/trothctl.1",
        "usr/share/polkit-1/actions/org.troth.agent1.policy",
        "usr/share/varlink/org.troth.Actions.varlink",
        "usr/share/varlink/org.troth.Agent.varlink",
        "usr/share/zsh/site-functions/_trothctl",
    ];
}
