use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::guest::Guest;
use super::image::{BootLoader, Image};
use super::machine::{Parts, Start, description};
use super::place;
use crate::cached::{key_of, made_once, remove_old};
use crate::fleet::Programs;
use crate::node::install_tree;
use crate::process::{find_program, output_of};

/// What an administrator does after an installation by hand (docs/units.md), from the disk that
/// files come in on. It was there, empty, when the guest looked last.
const INSTALL: &str = "\
cd /
blockdev --flushbufs /dev/disk/by-id/virtio-transfer
tar --extract --file=/dev/disk/by-id/virtio-transfer
systemd-sysusers
systemd-tmpfiles --create troth.conf
systemctl daemon-reload
journalctl --update-catalog";

/// A machine that was booted as the image has it, and saved.
fn booted() -> Result<(Parts, String)> {
    let image = Image::made()?;
    let name = format!(
        "booted-{}",
        key_of(&format!("{}{}", image.name, description()?))
    );
    let place = place()?;
    let made = made_once(&place, &name, |directory| {
        // Those on another QEMU or firmware; a new image has removed them all.
        remove_old(&place, |other| {
            other.starts_with("booted-") && !directory.ends_with(other)
        })?;
        eprintln!("booting what becomes {}", directory.display());
        let parts = Parts::new(directory, &image.root_disk())?;
        run_and_save(&image, &parts, None, None, Guest::wait_until_booted)
    })?;
    Ok((Parts::of(&made), name))
}

/// That machine with the install tree of the programs beside this one.
pub(super) fn installed() -> Result<Parts> {
    let programs = Programs::beside_this()?;
    let tree = install_tree(&programs)?;
    let (booted, name) = booted()?;
    let image = Image::made()?;
    let key = key_of(&format!("{name}{}{INSTALL}", tree.display()));
    let place = programs.directory().join("vm");
    let made = made_once(&place, &key, |directory| {
        // Earlier programs are gone.
        remove_old(&place, |other| !directory.ends_with(other))?;
        let parts = booted.copy_to(directory)?;
        let packed = tempfile::tempdir()?;
        let archive = packed.path().join("tree.tar");
        pack(&tree, packed.path(), &archive)?;
        let memory = Some(booted.memory());
        run_and_save(&image, &parts, memory, Some(&archive), |guest| {
            guest.sh(INSTALL).map(drop)
        })
    })?;
    Ok(Parts::of(&made))
}

/// Starts a machine of `parts`, works on it, and saves it beside them.
fn run_and_save(
    image: &Image,
    parts: &Parts,
    memory: Option<PathBuf>,
    transfer: Option<&Path>,
    work: impl FnOnce(&Guest) -> Result<()>,
) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let guest = Guest::start(
        "guest",
        directory.path(),
        &Start {
            parts,
            are_shared: false,
            memory,
            boot_disk: &image.boot_disk(BootLoader::Stub),
            transfer,
            cable: None,
        },
    )?;
    work(&guest)?;
    guest.save(parts)
}

/// An archive of the tree, its programs without what only a debugger reads, as a package has them.
fn pack(tree: &Path, work: &Path, archive: &Path) -> Result<()> {
    let strip = find_program("strip").context("strip is missing: run `cargo xtask setup`")?;
    let copy = work.join("tree");
    output_of(Command::new("cp").arg("--archive").arg(tree).arg(&copy))?;
    for program in std::fs::read_dir(copy.join("usr/bin"))? {
        output_of(Command::new(&strip).arg(program?.path()))?;
    }
    let mut tar = Command::new("tar");
    tar.args(["--create", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.arg("--file").arg(archive).arg("--directory").arg(&copy);
    output_of(tar.arg("usr")).map(drop)
}
