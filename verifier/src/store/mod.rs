//! Everything that outlives a process, behind one [`store::Store`].
//!
//! The SQL is what SQLite and PostgreSQL share: `$1` parameters, BIGINT and TEXT, `ON CONFLICT`,
//! `RETURNING`. What a decision and its write must not be separated by is one statement or begins
//! its transaction with a write, so that no engine needs to upgrade a read.

/// Registrations: active agents and unanswered challenges.
mod registrar;
/// Enrolled nodes and their policies.
mod verifier;

use std::{
    borrow::Cow,
    ffi::OsString,
    fs::OpenOptions,
    os::unix::{ffi::OsStringExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Once,
    time::Duration,
};

use sqlx::{
    AnyPool, Executor, SqlSafeStr,
    any::AnyPoolOptions,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

pub use registrar::{Agent, Pending, Promotion};
pub use verifier::{Enrolled, NewNode, NewPolicy, NodeRow, PolicyChoice, RecordUpdate, Removed};

use crate::ca;

/// Connections of one pool. SQLite has one writer at a time anyhow.
const CONNECTIONS: u32 = 4;
/// How long a statement waits for another connection's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Which of the two databases.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Schema {
    /// The registrar's.
    Registrar,
    /// The verifier's.
    Verifier,
}

impl Schema {
    fn migrations(self) -> Vec<Migration> {
        let (version, description, sql) = match self {
            Self::Registrar => (
                1,
                "agents",
                include_str!("../../migrations/registrar/0001_agents.sql"),
            ),
            Self::Verifier => (
                1,
                "nodes",
                include_str!("../../migrations/verifier/0001_nodes.sql"),
            ),
        };
        vec![Migration::new(
            version,
            Cow::Borrowed(description),
            MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )]
    }
}

/// A database with its schema in place. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    sqlite: bool,
}

impl Store {
    /// Opens `url`, makes a missing SQLite file (mode 0600), and applies missing migrations.
    pub async fn open(url: &str, schema: Schema) -> Result<Self, StoreError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let sqlite = match sqlite_path(url) {
            Some(path) => {
                make_private(&path)?;
                true
            }
            None if url.starts_with("sqlite:") => true,
            None => {
                let scheme = url.split(':').next().unwrap_or_default();
                return Err(StoreError::Scheme(scheme.to_owned()));
            }
        };
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(30))
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if sqlite {
                        let busy = BUSY_TIMEOUT.as_millis();
                        // What an operator or an agent was told is done must survive a power
                        // failure; the verdict writer relaxes this for its own connection.
                        let pragmas = format!(
                            "PRAGMA busy_timeout = {busy}; PRAGMA journal_mode = WAL; \
                             PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
                        );
                        connection.execute(sqlx::AssertSqlSafe(pragmas)).await?;
                    }
                    Ok(())
                })
            })
            .connect(url)
            .await
            .map_err(|source| StoreError::Open {
                url: redacted(url),
                source,
            })?;
        Migrator::with_migrations(schema.migrations())
            .run(&pool)
            .await
            .map_err(|source| StoreError::Migrate {
                url: redacted(url),
                source,
            })?;
        Ok(Self { pool, sqlite })
    }

    /// Does the database answer?
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Waits for running statements and closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// The file of an SQLite URL.
fn sqlite_path(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("sqlite:")?;
    let path = rest.strip_prefix("//").unwrap_or(rest);
    let path = path.split('?').next().unwrap_or(path);
    let in_file = !path.is_empty() && path != ":memory:";
    in_file.then(|| PathBuf::from(OsString::from_vec(percent_decoded(path))))
}

/// The bytes that a URL's path stands for.
pub(crate) fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let escaped = (*byte == b'%').then(|| after.split_at_checked(2)).flatten();
        let mut decoded = [0];
        match escaped {
            Some((digits, after)) if hex::decode_to_slice(digits, &mut decoded).is_ok() => {
                bytes.push(decoded[0]);
                rest = after;
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    bytes
}

/// Makes the file before SQLite does, so that nobody else can read it; SQLite gives its WAL and
/// shared-memory files the same mode.
fn make_private(path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::File {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        ca::make_directory(parent).map_err(|error| match error {
            ca::CaError::Io { source, .. } => failed(source),
            other => failed(std::io::Error::other(other)),
        })?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(failed)
}

/// The URL without a password.
fn redacted(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            format!("{}://...{}", &url[..scheme], &url[at..])
        }
        _ => url.to_owned(),
    }
}

/// Seconds or milliseconds from the database; a negative one cannot have been written by us.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A count or time for the database, which has no unsigned numbers.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A database that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A stored JSON text that does not parse: another version wrote it.
    #[error("stored {what} of {id} does not parse: {source}")]
    Content {
        /// Which column.
        what: &'static str,
        /// Whose.
        id: String,
        /// The reason.
        source: serde_json::Error,
    },
    /// A statement failed.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The SQLite file cannot be made or opened.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The schema could not be brought up to date.
    #[error("migrating {url}: {source}")]
    Migrate {
        /// The database, without password.
        url: String,
        /// The reason.
        source: MigrateError,
    },
    /// No connection.
    #[error("opening {url}: {source}")]
    Open {
        /// The database, without password.
        url: String,
        /// The reason.
        source: sqlx::Error,
    },
    /// An engine that this build does not know.
    #[error("database_url: no engine for {0:?}; use sqlite:///PATH")]
    Scheme(String),
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn files_are_private_and_a_second_open_keeps_the_schema() {
        let root = tempfile::tempdir().unwrap();
        let state_dir = root.path().join("deep/a b#c%41?d");
        let path = state_dir.join("reg_data.sqlite");
        let config = crate::config::RegistrarConfig {
            state_dir,
            ..crate::config::RegistrarConfig::default()
        };
        let url = config.database_url();
        for _ in 0..2 {
            let store = Store::open(&url, Schema::Registrar).await.unwrap();
            store.ping().await.unwrap();
            assert!(path.is_file());
            for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
                let entry = entry.unwrap();
                let mode = entry.metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{:?}", entry.file_name());
            }
            store.close().await;
        }
    }

    #[tokio::test]
    async fn unknown_engine_is_refused_by_name_and_passwords_are_not_shown() {
        let error = Store::open("mysql://u:p@host/db", Schema::Verifier)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("mysql"), "{error}");
        assert_eq!(
            redacted("postgresql://u:secret@host/db"),
            "postgresql://...@host/db"
        );
    }
}
