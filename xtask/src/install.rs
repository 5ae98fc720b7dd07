use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

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
    /// What is laid down; repeat it for more
    #[arg(long, value_enum, default_value = "host")]
    set: Vec<Set>,
}

/// A part of the install tree.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Set {
    /// Programs, units, documentation
    Host,
    /// Keylime's names for units, state directory and tenant
    KeylimeCompat,
}

/// `cargo xtask install`: programs, units and all that belongs to them, below `usr`. What is in
/// `/etc` and `/var` is the administrator's and the services'.
pub(crate) fn run_install(options: &Options) -> Result<()> {
    let count = lay_sets(&options.set, options.programs.as_deref(), &options.root)?;
    println!(
        "{count} files are in {}",
        options.root.join("usr").display()
    );
    Ok(())
}

/// Writes `sets` below `usr` of `host`, and returns how many files they have. Programs are built
/// where no directory has them.
pub(crate) fn lay_sets(sets: &[Set], programs: Option<&Path>, host: &Path) -> Result<usize> {
    let usr = host.join("usr");
    let mut tree = Tree {
        usr: &usr,
        count: 0,
    };
    for set in sets {
        match (set, programs) {
            (Set::Host, Some(programs)) => lay_host(&mut tree, programs)?,
            (Set::Host, None) => {
                run(cargo().args(["build", "--release", "--workspace", "--bins"]))?;
                let this = std::env::current_exe()?;
                let target = this.parent().and_then(Path::parent);
                let target = target.context("no target directory")?;
                lay_host(&mut tree, &target.join("release"))?;
            }
            (Set::KeylimeCompat, _) => tree.copy(&root().join("units/keylime-compat"), "")?,
        }
    }
    Ok(tree.count)
}

fn lay_host(tree: &mut Tree<'_>, programs: &Path) -> Result<()> {
    for name in PROGRAMS {
        let from = programs.join(name);
        let content = fs::read(&from)
            .with_context(|| format!("{}: build it, or name another directory", from.display()))?;
        tree.write(format!("bin/{name}"), &content, PROGRAM)?;
    }
    for part in ["lib", "share"] {
        tree.copy(&root().join("units").join(part), part)?;
    }
    for path in files_below(&root().join("dbus"))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Those of systemd and varlink are not ours to install.
        let place = INTERFACES.iter().find(|(end, _)| name.ends_with(end));
        if let Some((_, place)) = place.filter(|_| name.starts_with("org.troth.")) {
            tree.write(format!("{place}/{name}"), &fs::read(&path)?, FILE)?;
        }
    }
    tree.copy(&root().join("docs"), "share/doc/troth")?;
    let trothctl = programs.join("trothctl");
    for (shell, name) in COMPLETIONS {
        let script = output(Command::new(&trothctl).args(["completions", shell]))?;
        tree.write(name, &script, FILE)?;
    }
    let pages = tempfile::tempdir()?;
    output(Command::new(&trothctl).arg("man").arg(pages.path()))?;
    tree.copy(pages.path(), "share/man/man1")
}

struct Tree<'a> {
    usr: &'a Path,
    count: usize,
}

impl Tree<'_> {
    /// Writes the files and links that are below `directory` below `name`.
    fn copy(&mut self, directory: &Path, name: &str) -> Result<()> {
        for path in files_below(directory)? {
            let to = Path::new(name).join(path.strip_prefix(directory)?);
            if path.is_symlink() {
                self.link(&to, &fs::read_link(&path)?)?;
            } else {
                self.write(&to, &fs::read(&path)?, FILE)?;
            }
        }
        Ok(())
    }

    fn link(&mut self, name: &Path, target: &Path) -> Result<()> {
        let path = self.usr.join(name);
        let write = || -> Result<()> {
            let directory = path.parent().context("no directory")?;
            make_directories(directory)?;
            let beside = tempfile::tempdir_in(directory)?;
            let link = beside.path().join("link");
            symlink(target, &link)?;
            Ok(fs::rename(&link, &path)?)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        self.count += 1;
        Ok(())
    }

    /// A file is there whole or as it was before: it may be a program that runs.
    fn write(&mut self, name: impl AsRef<Path>, content: &[u8], mode: u32) -> Result<()> {
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

/// All files and links below `directory`, sorted.
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
            let known = kind.is_file() || kind.is_symlink();
            ensure!(known, "{} is neither file nor link", path.display());
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
            set: vec![Set::Host],
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
            set: vec![Set::Host],
        };
        let error = run_install(&options).unwrap_err().to_string();
        assert!(error.contains("/troth-agent: build it"), "{error}");
    }

    #[test]
    fn keylimes_names_lead_to_what_has_ours() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            root: directory.path().to_owned(),
            programs: None,
            set: vec![Set::KeylimeCompat],
        };
        // The second time over the first.
        run_install(&options).unwrap();
        run_install(&options).unwrap();
        let files = files_below(directory.path()).unwrap();
        let found: Vec<_> = files
            .iter()
            .map(|path| {
                let name = path
                    .strip_prefix(directory.path())
                    .unwrap()
                    .to_str()
                    .unwrap();
                let target = fs::read_link(path).unwrap_or_default();
                (name, target.to_str().unwrap().to_owned())
            })
            .collect();
        let expected = KEYLIME_COMPAT.map(|(name, target)| (name, target.to_owned()));
        assert_eq!(found, expected);
        for (name, target) in KEYLIME_COMPAT {
            let there = Path::new(name).with_file_name(target);
            assert!(
                target.is_empty() || TREE.contains(&there.to_str().unwrap()),
                "{name}"
            );
        }
    }

    /// Names, and where they lead.
    const KEYLIME_COMPAT: [(&str, &str); 5] = [
        ("usr/bin/keylime_tenant", "trothctl"),
        (
            "usr/lib/systemd/system/keylime_agent.service",
            "troth-agent.service",
        ),
        (
            "usr/lib/systemd/system/keylime_registrar.service",
            "troth-registrar.service",
        ),
        (
            "usr/lib/systemd/system/keylime_verifier.service",
            "troth-verifier.service",
        ),
        ("usr/lib/tmpfiles.d/troth-keylime.conf", ""),
    ];

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
