use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cached::{key_of, made_once, mark_used, remove_unused};
use crate::process::{cache, output_of};

/// The release of Debian: the first with systemd 257.
const SUITE: &str = "trixie";

/// How long a root of another recipe is kept that nobody uses: each has some 200 MB.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What is installed beside the base system.
const PACKAGES: &[&str] = &[
    "dbus",
    "firewalld",
    "iproute2",
    "libpam-systemd",
    "libtss2-tcti-device0t64",
    "libtss2-tcti-swtpm0t64",
    "libtss2-tcti-tabrmd0",
    "nftables",
    "polkitd",
    "systemd",
    "systemd-sysv",
    "tpm2-abrmd",
    "tpm2-tools",
];

/// Never needed, and a third of the size.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// What is done to the root `$1`: it gets its identity when it boots, and starts no more than it
/// needs. A container has neither a console nor a TPM of the kernel's.
const HOOKS: &[&str] = &[
    r#": > "$1/etc/machine-id""#,
    r#"rm -f "$1/etc/hostname""#,
    r#"chroot "$1" systemctl --quiet disable firewalld.service tpm2-abrmd.service"#,
    r#"chroot "$1" systemctl --quiet mask console-getty.service dpkg-db-backup.timer"#,
    r#"chroot "$1" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer"#,
];

/// The root of Debian trixie that containers stand on. The first caller builds it into the cache,
/// which takes minutes and needs Debian's archive.
pub fn trixie() -> Result<PathBuf> {
    let roots = cache()?.join("roots");
    let root = made_once(&roots, &trixie_key(), |place| {
        remove_unused(&roots, UNUSED)?;
        build(place)
    })?;
    mark_used(&root)?;
    Ok(root)
}

/// The name of that root, which tells what it was made of.
pub(crate) fn trixie_key() -> String {
    let recipe = [&[SUITE][..], PACKAGES, LEFT_OUT, HOOKS].concat();
    format!("{SUITE}-{}", key_of(&recipe.join("\n")))
}

fn build(place: &Path) -> Result<()> {
    eprintln!("building {}", place.display());
    // What it mounts meanwhile ends with it, however it ends.
    let mut command = Command::new("unshare");
    command.args(["--mount", "mmdebstrap", "--mode=root", "--variant=minbase"]);
    command.args(["--format=directory", "--quiet"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    for path in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    for option in way_to_the_archive()? {
        command.arg(format!("--aptopt={option}"));
    }
    for hook in HOOKS {
        command.arg(format!("--customize-hook={hook}"));
    }
    command.arg(SUITE).arg(place);
    let status = command
        .stdin(Stdio::null())
        .status()
        .context("cannot start unshare")?;
    if !status.success() {
        bail!("mmdebstrap could not build Debian {SUITE}: {status}");
    }
    Ok(())
}

/// How this machine's apt reaches the archive and what it checks there, where it has an apt.
pub(crate) fn way_to_the_archive() -> Result<Vec<String>> {
    if crate::process::find_program("apt-config").is_none() {
        return Ok(Vec::new());
    }
    let configured = output_of(Command::new("apt-config").args(["dump", "Acquire"]))?;
    let kept = |line: &&str| line.contains("::Proxy") || line.contains("::Check-");
    let options = configured.lines().filter(kept);
    Ok(options
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect())
}
