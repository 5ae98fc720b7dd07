use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aws_lc_rs::digest::{Context as Hasher, SHA256};

use crate::cached::{made_once, remove_old};
use crate::fleet::Programs;
use crate::process::output_of;

/// The programs that the tree holds, and the one that lays it.
const PROGRAMS: [&str; 6] = [
    "troth-actiond",
    "troth-agent",
    "troth-registrar",
    "troth-verifier",
    "trothctl",
    "xtask",
];

/// The tree that `cargo xtask install` lays down with `programs`, made once for each state of them
/// and of what else it holds.
pub fn install_tree(programs: &Programs) -> Result<PathBuf> {
    let mut hasher = Hasher::new(&SHA256);
    for name in PROGRAMS {
        let program = programs.directory().join(name);
        let about = fs::metadata(&program)
            .with_context(|| format!("{}: run `cargo build --workspace`", program.display()))?;
        let state = (about.size(), about.mtime(), about.mtime_nsec());
        hasher.update(format!("{name} {state:?}\n").as_bytes());
    }
    for directory in ["units/lib", "units/share", "docs", "dbus"] {
        add_files(&checkout().join(directory), &mut hasher)?;
    }
    let name = hex::encode(&hasher.finish().as_ref()[..8]);
    let place = programs.directory().join("install-trees");
    made_once(&place, &name, |tree| {
        // Earlier programs are gone, and a tree of them is a few hundred MB.
        remove_old(&place, |other| !tree.ends_with(other))?;
        let mut command = programs.command("xtask")?;
        command.args(["install", "--root"]).arg(tree);
        command.arg("--programs").arg(programs.directory());
        output_of(&mut command).map(drop)
    })
}

/// A drop-in for a unit that the tree has as an example, by `UNIT.d/NAME`: what an administrator
/// copies to /etc/systemd/system.
pub fn example(name: &str) -> Result<String> {
    let path = checkout().join("units/share/doc/troth/examples").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn add_files(directory: &Path, hasher: &mut Hasher) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(directory)
        .and_then(|entries| entries.collect())
        .with_context(|| format!("cannot read {}", directory.display()))?;
    entries.sort_unstable_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        hasher.update(format!("{}\n", path.display()).as_bytes());
        if path.is_dir() {
            add_files(&path, hasher)?;
        } else {
            hasher.update(&fs::read(path)?);
        }
    }
    Ok(())
}
