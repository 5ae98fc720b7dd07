use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use crate::process::{Process, output_of, stable_port};

/// Where distributions have the server's programs, by parent of a version's directory and the
/// directory below it: Debian, SUSE, and Fedora, which has one version and no directory for it.
const PLACES: [(&str, &str); 3] = [
    ("/usr/lib/postgresql", "bin"),
    ("/usr/lib", "bin"),
    ("/usr", "bin"),
];

/// The password of [`PostgreSql::url`], to be looked for where it must not be.
pub const PASSWORD: &str = "correct-horse";

/// A PostgreSQL server of its own cluster, stopped and removed when dropped. It listens on a socket
/// in its directory, where it trusts everybody, and on 127.0.0.1, where it asks for [`PASSWORD`].
#[derive(Debug)]
pub struct PostgreSql {
    server: Process,
    programs: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    directory: TempDir,
}

impl PostgreSql {
    /// Makes a cluster and starts its server. As root it runs as `postgres` or `nobody`:
    /// PostgreSQL refuses to be root.
    pub fn start() -> Result<Self> {
        let programs =
            programs().context("PostgreSQL's server is missing: run `cargo xtask setup`")?;
        let directory = tempfile::Builder::new().prefix("troth-pg-").tempdir()?;
        let place = directory.path();
        let user = unprivileged_user()?;
        let password = place.join("password");
        fs::write(&password, PASSWORD)?;
        if let Some((uid, gid)) = user {
            chown(place, Some(uid), Some(gid))?;
            chown(&password, Some(uid), Some(gid))?;
        }
        output_of(
            command(&programs, place, user, "initdb")
                .args(["--username=troth", "--encoding=UTF8", "--locale=C.UTF-8"])
                .args([
                    "--auth-local=trust",
                    "--auth-host=scram-sha-256",
                    "--no-sync",
                ])
                .arg(format!("--pwfile={}", password.display()))
                .arg(format!("--pgdata={}", place.join("data").display())),
        )?;
        let port = stable_port()?;
        let server = launch(&programs, place, user, port)?;
        Ok(Self {
            server,
            programs,
            user,
            port,
            directory,
        })
    }

    /// Stops the server; the cluster stays.
    pub fn stop(&mut self) -> Result<()> {
        // "Immediate shutdown": unlike SIGKILL, it leaves no shared memory behind.
        self.server.signal(Signal::QUIT)?;
        self.server.wait().map(drop)
    }

    /// Starts it again, after a stop, on the same cluster and port.
    pub fn start_again(&mut self) -> Result<()> {
        let place = self.directory.path();
        self.server = launch(&self.programs, place, self.user, self.port)?;
        Ok(())
    }

    /// Makes an empty database.
    pub fn create_database(&self, name: &str) -> Result<()> {
        self.run("createdb", &[name]).map(drop)
    }

    /// What `psql` prints for a statement, without decoration.
    pub fn query(&self, database: &str, statement: &str) -> Result<String> {
        self.run("psql", &["-At", "-d", database, "-c", statement])
    }

    /// URL over TCP, with the password.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://troth:{PASSWORD}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// URL over the Unix socket, without password.
    pub fn socket_url(&self, database: &str) -> String {
        format!(
            "postgres:///{database}?host={}&port={}&user=troth",
            self.directory.path().display(),
            self.port
        )
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        output_of(
            Command::new(self.programs.join(program))
                .arg("-h")
                .arg(self.directory.path())
                .args(["-p", &self.port.to_string(), "-U", "troth"])
                .args(arguments),
        )
    }
}

impl Drop for PostgreSql {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// One of the server's programs, to be run in `place` as `user`.
fn command(programs: &Path, place: &Path, user: Option<(u32, u32)>, name: &str) -> Command {
    let mut command = Command::new(programs.join(name));
    command.current_dir(place);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// Starts the server of the cluster in `place` and waits until it takes connections.
fn launch(programs: &Path, place: &Path, user: Option<(u32, u32)>, port: u16) -> Result<Process> {
    let before = fs::metadata(place.join("postgres.log")).map_or(0, |log| log.len());
    let mut server = Process::start(
        "postgres",
        place,
        command(programs, place, user, "postgres")
            .arg("-F")
            .arg("-D")
            .arg(place.join("data"))
            .arg("-k")
            .arg(place)
            .args(["-p", &port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1"]),
    )?;
    let ready = |log: &str| log.contains("ready to accept connections").then_some(());
    server.wait_for_log(usize::try_from(before)?, ready)?;
    Ok(server)
}

/// The directory of the newest server's programs.
pub fn programs() -> Option<PathBuf> {
    let complete = |directory: &PathBuf| {
        ["initdb", "postgres", "createdb", "psql"]
            .iter()
            .all(|name| directory.join(name).is_file())
    };
    let mut found = Vec::new();
    for (parent, below) in PLACES {
        let direct = Path::new(parent).join(below);
        let versions = fs::read_dir(parent).into_iter().flatten().flatten();
        let versioned = versions.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version: u32 = name.trim_start_matches("postgresql").parse().ok()?;
            Some((version, entry.path().join(below)))
        });
        found.extend(versioned.chain([(0, direct)]));
    }
    found.sort();
    found
        .into_iter()
        .rev()
        .map(|(_, directory)| directory)
        .find(complete)
}

/// User and group to run as, when this is root.
fn unprivileged_user() -> Result<Option<(u32, u32)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let ids = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })
    };
    ids("postgres")
        .or_else(|| ids("nobody"))
        .map(Some)
        .context("neither a user postgres nor a user nobody to run PostgreSQL as")
}
