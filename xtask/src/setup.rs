use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use troth_tests::keylime::{
    AGENT_VERSION as KEYLIME_AGENT, VERSION as KEYLIME, agent_place, installation_place,
};
use troth_tests::process::{cache, find_program};
use troth_tests::{node, postgres, vm};

use crate::workspace::{display, in_ci, run};

/// What the `keylime` package of PyPI imports but does not require.
const KEYLIME_IMPORTS: &[&str] = &[
    "alembic",
    "cryptography",
    "jinja2",
    "jsonschema",
    "lark",
    "packaging",
    "psutil",
    "pyasn1",
    "pyasn1-modules",
    "pyyaml",
    "pyzmq",
    "requests",
    "sqlalchemy",
    "tornado",
];

/// What a command of xtask needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Compile the workspace.
    Build,
    /// Run a TPM in software beside it.
    Demo,
    /// Run the loopback tier.
    Test,
    /// Run the node tier.
    Node,
    /// Run the vm tier.
    Vm,
    /// All that `.ci/run` does.
    Everything,
}

impl Scope {
    /// Whether what `other` needs is needed here as well.
    fn holds(self, other: Self) -> bool {
        match self {
            Self::Build => other == Self::Build,
            Self::Demo => matches!(other, Self::Build | Self::Demo),
            Self::Test | Self::Node => other == self || Self::Demo.holds(other),
            // Its machines stand on the node tier's root.
            Self::Vm => other == self || Self::Node.holds(other),
            Self::Everything => true,
        }
    }
}

/// How the presence of something is checked: by what is used, not by a package's name, so that
/// what was installed in another way counts too.
#[derive(Clone, Copy, Debug)]
enum Probe {
    Program(&'static str),
    Library(&'static str),
    PkgConfig(&'static [&'static str]),
    PythonVenv,
    PostgreSql,
    Firmware,
}

/// Something a package manager provides, with its package's name in each.
#[derive(Debug)]
struct SystemNeed {
    scope: Scope,
    probe: Probe,
    apt: &'static str,
    zypper: &'static str,
    dnf: &'static str,
}

// The C compiler is not among them: without one, this program could not have been built.
const SYSTEM_NEEDS: &[SystemNeed] = &[
    SystemNeed {
        scope: Scope::Build,
        probe: Probe::Program("pkg-config"),
        apt: "pkg-config",
        zypper: "pkg-config",
        dnf: "pkgconf-pkg-config",
    },
    SystemNeed {
        scope: Scope::Build,
        probe: Probe::PkgConfig(&["tss2-sys", "tss2-esys", "tss2-mu", "tss2-tctildr"]),
        apt: "libtss2-dev",
        zypper: "tpm2-0-tss-devel",
        dnf: "tpm2-tss-devel",
    },
    SystemNeed {
        scope: Scope::Demo,
        probe: Probe::Library("libtss2-tcti-swtpm.so.0"),
        // Every Debian release's libtss2-dev depends on this library, whatever it calls it.
        apt: "libtss2-dev",
        zypper: "libtss2-tcti-swtpm0",
        dnf: "tpm2-tss",
    },
    SystemNeed {
        scope: Scope::Demo,
        probe: Probe::Program("swtpm"),
        apt: "swtpm",
        zypper: "swtpm",
        dnf: "swtpm",
    },
    SystemNeed {
        scope: Scope::Demo,
        probe: Probe::Program("swtpm_setup"),
        apt: "swtpm-tools",
        zypper: "swtpm",
        dnf: "swtpm-tools",
    },
    SystemNeed {
        scope: Scope::Demo,
        probe: Probe::Program("swtpm_localca"),
        apt: "swtpm-tools",
        zypper: "swtpm",
        dnf: "swtpm-tools",
    },
    SystemNeed {
        scope: Scope::Test,
        probe: Probe::Library("libtss2-tcti-tabrmd.so.0"),
        apt: "libtss2-tcti-tabrmd0",
        zypper: "libtss2-tcti-tabrmd0",
        dnf: "tpm2-abrmd",
    },
    SystemNeed {
        scope: Scope::Test,
        probe: Probe::Program("tpm2-abrmd"),
        apt: "tpm2-abrmd",
        zypper: "tpm2.0-abrmd",
        dnf: "tpm2-abrmd",
    },
    SystemNeed {
        scope: Scope::Test,
        probe: Probe::Program("tpm2"),
        apt: "tpm2-tools",
        zypper: "tpm2.0-tools",
        dnf: "tpm2-tools",
    },
    SystemNeed {
        scope: Scope::Test,
        probe: Probe::Program("dbus-daemon"),
        apt: "dbus",
        zypper: "dbus-1-daemon",
        dnf: "dbus-daemon",
    },
    SystemNeed {
        scope: Scope::Test,
        probe: Probe::Program("dbus-send"),
        apt: "dbus",
        zypper: "dbus-1-tools",
        dnf: "dbus-tools",
    },
    SystemNeed {
        scope: Scope::Test,
        probe: Probe::Program("rpmbuild"),
        apt: "rpm",
        zypper: "rpm-build",
        dnf: "rpm-build",
    },
    SystemNeed {
        scope: Scope::Test,
        probe: Probe::Program("evmctl"),
        apt: "ima-evm-utils",
        zypper: "evmctl",
        dnf: "ima-evm-utils",
    },
    SystemNeed {
        scope: Scope::Test,
        probe: Probe::PythonVenv,
        apt: "python3-venv",
        zypper: "python3",
        dnf: "python3",
    },
    SystemNeed {
        scope: Scope::Test,
        probe: Probe::Library("libefivar.so.1"),
        apt: "libefivar1",
        zypper: "libefivar1",
        dnf: "efivar-libs",
    },
    SystemNeed {
        scope: Scope::Test,
        probe: Probe::PostgreSql,
        // Debian's starts a cluster of the system; tests make their own and never touch it.
        apt: "postgresql",
        zypper: "postgresql-server",
        dnf: "postgresql-server",
    },
    SystemNeed {
        scope: Scope::Node,
        probe: Probe::Program("systemd-nspawn"),
        apt: "systemd-container",
        zypper: "systemd-container",
        dnf: "systemd-container",
    },
    SystemNeed {
        scope: Scope::Node,
        probe: Probe::Program("mmdebstrap"),
        apt: "mmdebstrap",
        zypper: "mmdebstrap",
        dnf: "mmdebstrap",
    },
    SystemNeed {
        scope: Scope::Node,
        probe: Probe::Program("ip"),
        apt: "iproute2",
        zypper: "iproute2",
        dnf: "iproute",
    },
    SystemNeed {
        scope: Scope::Vm,
        probe: Probe::Program("qemu-system-x86_64"),
        apt: "qemu-system-x86",
        zypper: "qemu-x86",
        dnf: "qemu-system-x86-core",
    },
    SystemNeed {
        scope: Scope::Vm,
        probe: Probe::Firmware,
        apt: "ovmf",
        zypper: "qemu-ovmf-x86_64",
        dnf: "edk2-ovmf",
    },
    SystemNeed {
        scope: Scope::Vm,
        probe: Probe::Program("strip"),
        apt: "binutils",
        zypper: "binutils",
        dnf: "binutils",
    },
];

impl Probe {
    fn satisfied(self) -> bool {
        match self {
            Self::Program(name) => find_program(name).is_some(),
            Self::Library(soname) => has_library(soname),
            Self::PkgConfig(modules) => {
                succeeds(Command::new("pkg-config").arg("--exists").args(modules))
            }
            Self::PythonVenv => {
                succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"]))
            }
            Self::PostgreSql => postgres::programs().is_some(),
            Self::Firmware => vm::has_firmware(),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Program(name) | Self::Library(name) => name.to_owned(),
            Self::PkgConfig(modules) => format!("headers of {}", modules.join(", ")),
            Self::PythonVenv => "python3 with venv".to_owned(),
            Self::PostgreSql => "PostgreSQL's server".to_owned(),
            Self::Firmware => "UEFI firmware for QEMU".to_owned(),
        }
    }
}

/// Something this machine lacks, and what is done about it.
#[derive(Debug)]
enum Missing {
    Package(&'static SystemNeed),
    Keylime(PathBuf),
    CargoDeny,
    /// Nothing that can be installed.
    Ability(String),
}

impl Missing {
    fn describe(&self) -> String {
        match self {
            Self::Package(need) => need.probe.describe(),
            Self::Keylime(place) => format!(
                "Keylime {KEYLIME}, with the agent of {KEYLIME_AGENT}, in {}",
                place.display()
            ),
            Self::CargoDeny => "cargo-deny".to_owned(),
            Self::Ability(what) => what.clone(),
        }
    }
}

/// `cargo xtask setup`.
pub(crate) fn run_setup(yes: bool) -> Result<()> {
    if missing(Scope::Everything)?.is_empty() {
        println!("setup: everything is there");
        return Ok(());
    }
    ensure(Scope::Everything, yes)
}

/// Makes sure that what `scope` needs is there: asks once, then installs only what is missing.
/// An error names what is missing when it may not be installed or could not be.
pub(crate) fn ensure(scope: Scope, yes: bool) -> Result<()> {
    let wanted = missing(scope)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = wanted.iter().map(Missing::describe).collect();
    if wanted
        .iter()
        .any(|item| matches!(item, Missing::Ability(_)))
    {
        bail!("not all of it can be installed: {}", names.join("; "));
    }
    eprintln!("setup: missing: {}", names.join("; "));
    let packages = SystemInstall::for_needs(&wanted)?;
    if !(yes || in_ci()) {
        ask(packages.as_ref())?;
    }
    if let Some(install) = packages {
        install.run()?;
    }
    for item in &wanted {
        match item {
            Missing::Package(_) | Missing::Ability(_) => {}
            Missing::Keylime(place) => install_keylime(place)?,
            Missing::CargoDeny => install_cargo_deny()?,
        }
    }
    let left = missing(scope)?;
    if !left.is_empty() {
        let names: Vec<_> = left.iter().map(Missing::describe).collect();
        bail!("still missing after installation: {}", names.join("; "));
    }
    Ok(())
}

/// Makes sure that `cargo fuzz` can run. A nightly toolchain is the user's to install: rustup is
/// not everywhere, and where it is, toolchains are chosen by people.
pub(crate) fn ensure_fuzzer(yes: bool) -> Result<()> {
    ensure(Scope::Build, yes)?;
    if !succeeds(as_user("cargo").args(["+nightly", "--version"])) {
        bail!("no nightly Rust, which libFuzzer needs: `rustup toolchain install nightly`");
    }
    if !succeeds(as_user("cargo").args(["fuzz", "--version"])) {
        eprintln!("setup: missing: cargo-fuzz");
        if !(yes || in_ci()) {
            ask(None)?;
        }
        run(Command::new("cargo")
            .args(["install", "cargo-fuzz", "--locked", "--version", "^0.13"])
            .env("CARGO_TARGET_DIR", cache()?.join("tool-build")))?;
    }
    Ok(())
}

/// A command as a user would start it, not as a child of the cargo that runs this program: that
/// one names its own toolchain in the environment.
pub(crate) fn as_user(program: &str) -> Command {
    let mut command = Command::new(program);
    for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(variable);
    }
    command
}

/// What `scope` needs and this machine lacks, each described in a few words.
pub(crate) fn lacking(scope: Scope) -> Result<Vec<String>> {
    Ok(missing(scope)?.iter().map(Missing::describe).collect())
}

fn missing(scope: Scope) -> Result<Vec<Missing>> {
    let mut found: Vec<_> = SYSTEM_NEEDS
        .iter()
        .filter(|need| scope.holds(need.scope) && !need.probe.satisfied())
        .map(Missing::Package)
        .collect();
    if scope.holds(Scope::Test) {
        let venv = installation_place()?;
        if !(venv.join(".complete").is_file() && agent_place()?.is_dir()) {
            found.push(Missing::Keylime(venv));
        }
    }
    if scope == Scope::Everything && !succeeds(Command::new("cargo").args(["deny", "--version"])) {
        found.push(Missing::CargoDeny);
    }
    if scope == Scope::Node {
        found.extend(node::obstacles().into_iter().map(Missing::Ability));
    }
    if scope == Scope::Vm {
        found.extend(vm::obstacles().into_iter().map(Missing::Ability));
    }
    Ok(found)
}

/// Asks on the terminal; without one nobody can agree, and the error says what to type instead.
fn ask(packages: Option<&SystemInstall>) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("not a terminal: run `cargo xtask setup --yes` to install what is missing");
    }
    if let Some(install) = packages {
        for command in install.commands() {
            eprintln!("setup: would run: {}", display(&command));
        }
    }
    eprint!("Install what is missing? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "" | "y" | "yes" => Ok(()),
        _ => bail!("nothing was installed"),
    }
}

/// One run of the system's package manager.
#[derive(Debug)]
struct SystemInstall {
    manager: Manager,
    packages: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug)]
enum Manager {
    Apt,
    Zypper,
    Dnf,
}

impl SystemInstall {
    fn for_needs(missing: &[Missing]) -> Result<Option<Self>> {
        let needs: Vec<_> = missing
            .iter()
            .filter_map(|item| match item {
                Missing::Package(need) => Some(*need),
                _ => None,
            })
            .collect();
        if needs.is_empty() {
            return Ok(None);
        }
        let manager = [
            ("apt-get", Manager::Apt),
            ("zypper", Manager::Zypper),
            ("dnf", Manager::Dnf),
        ]
        .into_iter()
        .find_map(|(program, manager)| find_program(program).map(|_| manager));
        let Some(manager) = manager else {
            let names: Vec<_> = needs.iter().map(|need| need.apt).collect();
            bail!(
                "none of apt-get, zypper and dnf is here: install by hand what Debian calls {}",
                names.join(", ")
            );
        };
        let mut packages: Vec<_> = needs
            .iter()
            .map(|need| match manager {
                Manager::Apt => need.apt,
                Manager::Zypper => need.zypper,
                Manager::Dnf => need.dnf,
            })
            .collect();
        packages.sort_unstable();
        packages.dedup();
        Ok(Some(Self { manager, packages }))
    }

    fn commands(&self) -> Vec<Command> {
        let lines: &[&[&str]] = match self.manager {
            Manager::Apt => &[
                &["apt-get", "update", "-q"],
                &[
                    "apt-get",
                    "install",
                    "-q",
                    "--yes",
                    "--no-install-recommends",
                ],
            ],
            Manager::Zypper => &[&["zypper", "--non-interactive", "install", "--no-recommends"]],
            Manager::Dnf => &[&[
                "dnf",
                "install",
                "--assumeyes",
                "--setopt=install_weak_deps=0",
            ]],
        };
        let mut commands: Vec<_> = lines.iter().map(|words| as_root(words)).collect();
        if let Some(install) = commands.last_mut() {
            install.args(&self.packages);
        }
        commands
    }

    fn run(&self) -> Result<()> {
        for mut command in self.commands() {
            command
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdin(Stdio::null());
            run(&mut command)?;
        }
        Ok(())
    }
}

fn as_root(words: &[&str]) -> Command {
    let sudo: &[&str] = if rustix::process::geteuid().is_root() {
        &[]
    } else {
        &["sudo"]
    };
    let mut words = sudo.iter().chain(words);
    let mut command = Command::new(words.next().unwrap_or(&"true"));
    command.args(words);
    command
}

/// Keylime imports the GPGME bindings at start, and uses them for policies signed with OpenPGP
/// alone, which no test has. Building them needs GnuPG's headers: an empty module stands for them.
const GPG_MODULE: &str =
    "\"\"\"Not the GPGME bindings: signatures by OpenPGP are not tested.\"\"\"\n";

/// A virtual environment with Keylime; its marker is written last, so that a broken attempt is
/// repeated and never used.
fn install_keylime(place: &Path) -> Result<()> {
    if place.exists() {
        std::fs::remove_dir_all(place)
            .with_context(|| format!("cannot remove the unfinished {}", place.display()))?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(place))?;
    run(Command::new(place.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .arg(format!("keylime=={KEYLIME}"))
        .args(KEYLIME_IMPORTS))?;
    run(Command::new(place.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(["--no-deps", "--target"])
        .arg(agent_place()?)
        .arg(format!("keylime=={KEYLIME_AGENT}")))?;
    let find = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let output = Command::new(place.join("bin/python3"))
        .args(["-c", find])
        .output()?;
    let packages = String::from_utf8(output.stdout)?;
    let write = |path: PathBuf, text: &str| {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write(Path::new(packages.trim_end()).join("gpg.py"), GPG_MODULE)?;
    write(place.join(".complete"), KEYLIME)
}

/// Unoptimised: it runs for a second per use, and would otherwise compile for ten minutes.
fn install_cargo_deny() -> Result<()> {
    run(Command::new("cargo")
        .args(["install", "cargo-deny", "--locked", "--version", "^0.20"])
        .env("CARGO_TARGET_DIR", cache()?.join("tool-build"))
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"))
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Asks the dynamic linker's cache, which is where `dlopen` will look.
fn has_library(soname: &str) -> bool {
    let Some(ldconfig) = find_program("ldconfig").or_else(|| Some(PathBuf::from("/sbin/ldconfig")))
    else {
        return false;
    };
    Command::new(ldconfig)
        .arg("-p")
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .any(|line| line.split_whitespace().next() == Some(soname))
        })
}
