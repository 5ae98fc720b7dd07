//! The time of day as a test wants it.

use std::path::PathBuf;
use std::process::Command;
use std::{fs, io};

use anyhow::{Result, ensure};
use tempfile::TempDir;

/// The time of day as daemons with [`Clock::environment`] see it.
#[derive(Debug)]
pub struct Clock {
    directory: TempDir,
}

impl Clock {
    /// Compiles the shim: where Rust links, a C compiler is.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let this = Self { directory };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", source, "-o"]);
        let compiled = compiler.arg(this.file("clock.so")).status()?;
        ensure!(compiled.success(), "cc {source}: {compiled}");
        this.jump(0)?;
        Ok(this)
    }

    /// What a daemon's environment needs.
    pub fn environment(&self) -> Vec<(String, String)> {
        let variable = |name: &str, file| {
            let value = self.file(file).display().to_string();
            (name.to_owned(), value)
        };
        vec![
            variable("LD_PRELOAD", "clock.so"),
            variable("CLOCK_OFFSET_FILE", "offset"),
        ]
    }

    /// From now on it is `seconds` later than it is.
    pub fn jump(&self, seconds: i64) -> io::Result<()> {
        let (new, file) = (self.file("new"), self.file("offset"));
        fs::write(&new, seconds.to_string())?;
        fs::rename(new, file)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
