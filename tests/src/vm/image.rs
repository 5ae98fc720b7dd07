use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::place;
use crate::cached::{key_of, made_once, remove_old};
use crate::node::{trixie, trixie_key, way_to_the_archive};

/// What is installed beside the packages of the containers' root. The last line makes images.
const PACKAGES: &[&str] = &[
    "kmod",
    "linux-image-cloud-amd64",
    "policycoreutils",
    "qemu-guest-agent",
    "selinux-policy-default",
    "udev",
    "busybox-static",
    "cpio",
    "dosfstools",
    "e2fsprogs",
    "fdisk",
    "grub-efi-amd64-bin",
    "mtools",
    "systemd-boot-efi",
    "systemd-ukify",
    "xz-utils",
];

/// The kernel's command line. The first line measures and confines as the distributions do that we
/// are for; the second makes an emulated processor's boot short, and starts again after a panic.
const COMMAND_LINE: &str = "\
ima_policy=tcb ima_appraise=log ima_hash=sha256 security=selinux selinux=1 audit=1 \
audit_backlog_limit=8192 \
console=hvc0 quiet loglevel=4 panic=-1 systemd.show_status=no systemd.firstboot=no \
net.ifnames=0 mitigations=off no_timer_check";

/// Units that no test needs, each of which takes time to start.
const MASKED: &[&str] = &[
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "getty@tty1.service",
    "grub-common.service",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@fuse.service",
    "proc-sys-fs-binfmt_misc.automount",
    "run-lock.mount",
    "selinux-autorelabel.service",
    "selinux-basics.service",
    "serial-getty@hvc0.service",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-hibernate-clear.service",
    "systemd-hwdb-update.service",
    "systemd-initctl.socket",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-modules-load.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-udev-load-credentials.service",
    "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
];

/// Generators that have nothing to generate here: they are most of what `daemon-reload` takes.
const MASKED_GENERATORS: &[&str] = &[
    "selinux-autorelabel-generator.sh",
    "systemd-debug-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
];

/// Files of the guest.
const FILES: &[(&str, &str)] = &[
    ("etc/fstab", ""),
    (
        "etc/modprobe.d/testbed.conf",
        include_str!("../../vm/modprobe.conf"),
    ),
    (
        "etc/systemd/journald.conf.d/testbed.conf",
        include_str!("../../vm/journald.conf"),
    ),
    (
        "etc/systemd/system/qemu-guest-agent.service.d/testbed.conf",
        include_str!("../../vm/guest-agent.conf"),
    ),
    (
        "etc/systemd/system/systemd-udev-trigger.service.d/testbed.conf",
        include_str!("../../vm/coldplug.conf"),
    ),
];

/// What boot loaders and initrd are made of, below `/tmp/boot`.
const BOOT_FILES: &[(&str, &str)] = &[
    ("init", include_str!("../../vm/init")),
    ("early.cfg", include_str!("../../vm/grub-early.cfg")),
    ("grub.cfg", include_str!("../../vm/grub.cfg")),
];

/// Gives the root `$1` what programs in it expect. The mounts end with the namespace.
const MOUNTS: &str = r#"
root=$1 out=$2
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
mount --rbind /dev "$root/dev"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
"#;

/// Installs packages; what follows `$1` and `$2` are options of apt. No service is started, and no
/// initrd made but ours.
const INSTALL: &str = r#"
shift 2
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /sys "$root/sys"
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
apt() {
    chroot "$root" apt-get --quiet --yes --no-install-recommends \
        -o DPkg::Options::=--path-exclude=/etc/kernel/postinst.d/initramfs-tools "$@"
}
apt "$@" update
apt "$@" install $packages
apt clean
rm -r "$root/usr/sbin/policy-rc.d" "$root/var/lib/apt/lists"
chroot "$root" systemctl --quiet set-default multi-user.target
chroot "$root" systemctl --quiet enable systemd-journald-audit.socket
"#;

/// Makes in `$out` what the firmware boots: a disk for each boot loader.
const BOOT_LOADERS: &str = r#"
mount --bind "$out" "$root/mnt"
chroot "$root" sh -ec '
kernel=$(ls /usr/lib/modules)
cd /tmp/boot
mkdir -p initrd.d/bin
cp /usr/bin/busybox initrd.d/bin
install -m 755 init initrd.d/init
xz -dc /usr/lib/modules/$kernel/kernel/drivers/block/virtio_blk.ko.xz > initrd.d/virtio_blk.ko
(cd initrd.d; find . -print0 | sort -z | cpio --quiet -0 -o -H newc -R 0:0) | gzip -n9 > initrd
ukify build --linux=/boot/vmlinuz-$kernel --uname=$kernel --initrd=initrd --cmdline=@cmdline \
    --os-release=@/etc/os-release --output=uki.efi
sed -i "s|@CMDLINE@|$(cat cmdline)|" grub.cfg
# With its module tpm, GRUB measures each command and each file that it reads.
grub-mkimage -O x86_64-efi -o grub.efi -c early.cfg -p /grub \
    tpm part_gpt fat search search_fs_file configfile normal linux

disk() {
    truncate -s 64M "$1"
    printf "label: gpt\nstart=2048, type=uefi, name=esp\n" | sfdisk --quiet "$1"
    mkfs.vfat -F 32 -n ESP --offset 2048 "$1" > /dev/null
    mmd -i "$1@@1M" ::EFI ::EFI/BOOT ::grub
    mcopy -i "$1@@1M" "$2" ::EFI/BOOT/BOOTX64.EFI
}
disk /mnt/stub.raw uki.efi
disk /mnt/grub.raw grub.efi
mcopy -i /mnt/grub.raw@@1M grub.cfg ::grub/grub.cfg
mcopy -i /mnt/grub.raw@@1M /boot/vmlinuz-$kernel ::vmlinuz
mcopy -i /mnt/grub.raw@@1M initrd ::initrd
'
rm -r "$root/tmp/boot"
"#;

/// Labels all files, and makes the disk with the root of them. The root is bound into itself,
/// where it is without what is mounted in it.
const ROOT_DISK: &str = r#"
mkdir "$out/self"
mount --bind "$out" "$root/mnt"
mount --bind "$root" "$root/mnt/self"
rm -f "$root/.autorelabel"
chroot "$root" sh -ec '
setfiles -F -e /proc -e /sys -e /dev -e /run -e /mnt \
    /etc/selinux/default/contexts/files/file_contexts /
truncate -s 2G /mnt/root.raw
printf "label: gpt\nstart=2048, size=4190208, type=linux, name=root\n" | sfdisk --quiet /mnt/root.raw
mke2fs -q -t ext4 -L root -E offset=1048576,lazy_itable_init=0,lazy_journal_init=0 \
    -d /mnt/self /mnt/root.raw 2046M
'
umount "$root/mnt/self"
rmdir "$out/self"
"#;

/// What starts the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootLoader {
    /// systemd-stub: a unified kernel image.
    Stub,
    /// GRUB, with kernel and initrd as files.
    Grub,
}

/// Disks of a Debian trixie that nobody has booted yet.
#[derive(Debug)]
pub(super) struct Image {
    directory: PathBuf,
    /// Tells what it was made of.
    pub(super) name: String,
}

impl Image {
    /// The first caller makes it in the cache, from the containers' root, which needs the rights of
    /// root and Debian's archive.
    pub(super) fn made() -> Result<Self> {
        let name = name();
        let directory = made_once(&place()?, &name, build)?;
        Ok(Self { directory, name })
    }

    /// Whether somebody has made it already.
    pub(super) fn is_made() -> bool {
        place().is_ok_and(|place| place.join(name()).is_dir())
    }

    pub(super) fn root_disk(&self) -> PathBuf {
        self.directory.join("root.raw")
    }

    pub(super) fn boot_disk(&self, loader: BootLoader) -> PathBuf {
        self.directory.join(match loader {
            BootLoader::Stub => "stub.raw",
            BootLoader::Grub => "grub.raw",
        })
    }
}

fn name() -> String {
    let base = trixie_key();
    let lists = [PACKAGES, MASKED, MASKED_GENERATORS].concat().join("\n");
    let files = [FILES, BOOT_FILES].concat();
    let steps = [MOUNTS, INSTALL, BOOT_LOADERS, ROOT_DISK];
    let recipe = format!("{base}\n{lists}\n{COMMAND_LINE}\n{files:?}\n{steps:?}");
    format!("image-{}", key_of(&recipe))
}

fn build(image: &Path) -> Result<()> {
    let base = trixie()?;
    eprintln!("building {}", image.display());
    // Whatever was made by another recipe, and what was booted of it.
    remove_old(&place()?, |other| !image.ends_with(other))?;
    fs::create_dir_all(image)?;
    let root = image.join("root");
    let mut copy = Command::new("cp");
    run(copy
        .args(["--archive", "--reflink=auto"])
        .arg(base)
        .arg(&root))?;
    run(Steps::new(&[INSTALL], &root, image).0.args(apt_options()?))?;
    for (path, content) in FILES {
        write(&root.join(path), content)?;
    }
    let masks = MASKED.iter().map(|unit| ("system", unit));
    let generators = MASKED_GENERATORS
        .iter()
        .map(|name| ("system-generators", name));
    for (directory, name) in masks.chain(generators) {
        let mask = root.join("etc/systemd").join(directory).join(name);
        fs::create_dir_all(mask.parent().context("no directory")?)?;
        // The package may have switched it on.
        if mask.is_symlink() {
            fs::remove_file(&mask)?;
        }
        symlink("/dev/null", mask)?;
    }
    for (name, content) in BOOT_FILES {
        write(&root.join("tmp/boot").join(name), content)?;
    }
    write(&root.join("tmp/boot/cmdline"), COMMAND_LINE)?;
    run(&mut Steps::new(&[BOOT_LOADERS, ROOT_DISK], &root, image).0)?;
    fs::remove_dir_all(root)?;
    Ok(())
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::create_dir_all(path.parent().context("no directory")?)?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// The way to the archive, as options on apt's command line.
fn apt_options() -> Result<Vec<String>> {
    let options = way_to_the_archive()?;
    let options = options.iter().map(|option| {
        let (name, value) = option.split_once(' ').unwrap_or((option, ""));
        format!("-o{name}={}", value.trim_matches('"'))
    });
    Ok(options.collect())
}

/// Shell that works in a root.
struct Steps(Command);

impl Steps {
    fn new(steps: &[&str], root: &Path, out: &Path) -> Self {
        let mut command = Command::new("unshare");
        let script = [&[MOUNTS][..], steps].concat().concat();
        command.args(["--mount", "sh", "-ec", &script, "sh"]);
        command
            .arg(root)
            .arg(out)
            .env("packages", PACKAGES.join(" "));
        Self(command)
    }
}

/// Runs what has a lot to tell, which is shown when it fails.
fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!(
            "cannot make the machines' image: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
