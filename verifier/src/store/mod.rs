//! Everything that outlives a process, behind one [`store::Store`].
//!
//! The SQL is what SQLite and PostgreSQL share: `$1` parameters, BIGINT and TEXT, `ON CONFLICT`,
//! `RETURNING`; the migrations are the same text. A decision and its write are one statement, or
//! one transaction that begins with a write: SQLite then has no other writer, and PostgreSQL is
//! told so by `Store::begin`. Lists are sorted here, as collations differ between databases.

/// The last boots that were trusted.
mod boots;
/// Enrolled nodes.
mod nodes;
/// Policies by name.
mod policies;
/// Registrations: active agents and unanswered challenges.
mod registrar;

use std::{
    borrow::Cow,
    ffi::OsString,
    fs::OpenOptions,
    ops::{Deref, DerefMut},
    os::unix::{ffi::OsStringExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Once},
    time::Duration,
};

use sqlx::{
    Any, AnyConnection, AnyPool, Connection, Executor, Row, SqlSafeStr, Transaction,
    any::{AnyPoolOptions, AnyRow},
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    pool::PoolConnection,
};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};

pub use nodes::{Enrolled, MAX_UPDATES, NewNode, NodeRow, PolicyDigests, RecordUpdate};
pub use policies::{NewPolicy, PolicyChoice, PolicyChoices, PolicyKind, PolicySummary, Removed};
pub use registrar::{Agent, Device, Offer, Pending, Promotion};

use crate::ca;

/// Connections to a PostgreSQL server. SQLite gets one: it has one writer at a time, others would
/// sleep until it is done, and would then find their page cache out of date.
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
    /// What makes an SQLite connection not wait for the disk. The verifier's cache (in KiB) holds
    /// the rows of some thousand nodes, when there are so many.
    fn hasty(self) -> &'static str {
        match self {
            Self::Registrar => "PRAGMA synchronous = NORMAL",
            Self::Verifier => "PRAGMA synchronous = NORMAL; PRAGMA cache_size = -16384",
        }
    }

    /// In order; each number once.
    fn migrations(self) -> Vec<Migration> {
        let steps: &[(&'static str, &'static str)] = match self {
            Self::Registrar => &[
                (
                    "agents",
                    include_str!("../../migrations/registrar/0001_agents.sql"),
                ),
                (
                    "device identity",
                    include_str!("../../migrations/registrar/0002_device_identity.sql"),
                ),
                (
                    "pending by source",
                    include_str!("../../migrations/registrar/0003_pending_by_source.sql"),
                ),
            ],
            Self::Verifier => &[
                (
                    "nodes",
                    include_str!("../../migrations/verifier/0001_nodes.sql"),
                ),
                (
                    "boot policies",
                    include_str!("../../migrations/verifier/0002_boot_policies.sql"),
                ),
                (
                    "policy generation",
                    include_str!("../../migrations/verifier/0003_policy_generation.sql"),
                ),
                (
                    "boots",
                    include_str!("../../migrations/verifier/0004_boots.sql"),
                ),
            ],
        };
        let migration = |(version, (description, sql)): (i64, &(&'static str, &'static str))| {
            Migration::new(
                version,
                Cow::Borrowed(*description),
                MigrationType::Simple,
                sql.into_sql_str(),
                false,
            )
        };
        (1..).zip(steps).map(migration).collect()
    }
}

/// A table whose writers take turns.
#[derive(Clone, Copy, Debug)]
enum Table {
    /// Of the registrar: a TPM may have to have one id alone.
    Agents,
    /// Of the registrar: their number is bounded.
    Pending,
    /// Of the verifier: texts are kept for as long as a policy of some kind has them.
    Policies,
}

impl Table {
    /// Readers are not kept out.
    fn lock(self) -> &'static str {
        match self {
            Self::Agents => "LOCK TABLE agents IN SHARE ROW EXCLUSIVE MODE",
            Self::Pending => "LOCK TABLE pending IN SHARE ROW EXCLUSIVE MODE",
            Self::Policies => "LOCK TABLE policy_texts IN SHARE ROW EXCLUSIVE MODE",
        }
    }
}

/// What a write is to survive.
#[derive(Clone, Copy, Debug)]
enum Safety {
    /// A crash of this process, but for speed not necessarily a power failure.
    Crash,
    /// A power failure too.
    PowerFailure,
}

/// SQLite's connections for what fleets write most, once they do: no pool looks at them before and
/// after each use, which is a change of threads. They are for single statements, as nobody looks
/// whether a transaction is left open. One is in use at a time: SQLite has one writer, and another
/// would sleep.
#[derive(Debug, Default)]
struct Kept {
    /// Does not wait for the disk.
    hasty: Option<AnyConnection>,
    durable: Option<AnyConnection>,
}

impl Kept {
    fn of(&mut self, safety: Safety) -> &mut Option<AnyConnection> {
        match safety {
            Safety::Crash => &mut self.hasty,
            Safety::PowerFailure => &mut self.durable,
        }
    }
}

/// A connection for a single statement.
#[derive(Debug)]
enum Writer<'a> {
    Kept(MappedMutexGuard<'a, AnyConnection>),
    Pooled(PoolConnection<Any>),
}

impl Deref for Writer<'_> {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        match self {
            Self::Kept(connection) => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

impl DerefMut for Writer<'_> {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        match self {
            Self::Kept(connection) => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

/// A database with its schema in place. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    schema: Schema,
    sqlite: bool,
    kept: Arc<Mutex<Kept>>,
}

impl Store {
    /// Opens `url` (`sqlite:` or `postgres:`), makes a missing SQLite file (mode 0600), and applies
    /// missing migrations.
    pub async fn open(url: &str, schema: Schema) -> Result<Self, StoreError> {
        Self::open_with(url, schema, CONNECTIONS).await
    }

    /// [`Store::open`] with up to `connections` to PostgreSQL.
    pub async fn open_with(
        url: &str,
        schema: Schema,
        connections: u32,
    ) -> Result<Self, StoreError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let sqlite = match sqlite_path(url) {
            Some(path) => {
                make_private(&path)?;
                true
            }
            None if url.starts_with("sqlite:") => true,
            None if is_postgres(url) => {
                check_parameters(url)?;
                false
            }
            None => {
                let scheme = url.split(':').next().unwrap_or_default();
                return Err(StoreError::Scheme(scheme.to_owned()));
            }
        };
        let unusable = |source| StoreError::Open {
            url: redacted(url),
            source,
        };
        if sqlite {
            // A pool would try for half a minute to open what is no database.
            let mut probe = AnyConnection::connect(url).await.map_err(unusable)?;
            let read = probe.execute("PRAGMA schema_version").await;
            read.map_err(unusable)?;
            probe.close().await.map_err(unusable)?;
        }
        let pool = AnyPoolOptions::new()
            .max_connections(if sqlite { 1 } else { connections.max(1) })
            .acquire_timeout(Duration::from_secs(30))
            // A file does not go away as a server does, and each look is a change of threads.
            .test_before_acquire(!sqlite)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if sqlite {
                        let busy = BUSY_TIMEOUT.as_millis();
                        // What an operator or an agent was told is done must survive a power
                        // failure; what need not has a connection that relaxes this.
                        let pragmas = format!(
                            "PRAGMA busy_timeout = {busy}; PRAGMA journal_mode = WAL; \
                             PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
                        );
                        connection.execute(sqlx::AssertSqlSafe(pragmas)).await?;
                    }
                    Ok(())
                })
            })
            .after_release(move |connection, _| {
                Box::pin(async move {
                    if sqlite {
                        // A full disk can leave a transaction open, and whatever is written in it
                        // later is lost with the process. In one, this is refused.
                        let free = connection.execute("PRAGMA synchronous = FULL").await;
                        if free.is_err() {
                            connection.execute("ROLLBACK").await?;
                        }
                    }
                    Ok(true)
                })
            })
            .connect(url)
            .await
            .map_err(unusable)?;
        Migrator::with_migrations(schema.migrations())
            .run(&pool)
            .await
            .map_err(|source| match source {
                // Each schema's first migration has the number 1; one of them has more.
                MigrateError::VersionMismatch(1) | MigrateError::VersionMissing(_) => {
                    StoreError::Occupied { url: redacted(url) }
                }
                source => StoreError::Migrate {
                    url: redacted(url),
                    source,
                },
            })?;
        Ok(Self {
            pool,
            schema,
            sqlite,
            kept: Arc::default(),
        })
    }

    /// Begins a transaction that nobody else writes `table` beside, in which a decision may
    /// therefore rest on what was read. Its first statement must be a write: with that SQLite
    /// admits no other writer.
    async fn begin(&self, table: Table) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        if !self.sqlite {
            transaction.execute(table.lock()).await?;
        }
        Ok(transaction)
    }

    /// The connection for a single statement whose write is as safe as that.
    async fn writer(&self, safety: Safety) -> Result<Writer<'_>, StoreError> {
        if !self.sqlite {
            return Ok(Writer::Pooled(self.pool.acquire().await?));
        }
        let mut kept = self.kept.lock().await;
        let connection = match kept.of(safety).take() {
            Some(connection) => connection,
            None => {
                let mut connection = self.pool.acquire().await?.detach();
                if let Safety::Crash = safety {
                    connection.execute(self.schema.hasty()).await?;
                }
                connection
            }
        };
        // Kept after a failure too: with a full disk no other could be opened.
        Ok(Writer::Kept(MutexGuard::map(kept, |kept| {
            kept.of(safety).insert(connection)
        })))
    }

    /// Does the database answer?
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Waits for running statements and closes all connections.
    pub async fn close(&self) {
        let Kept { hasty, durable } = std::mem::take(&mut *self.kept.lock().await);
        for connection in [hasty, durable].into_iter().flatten() {
            // Whatever a close has to say, the process is about to end.
            let _ = connection.close().await;
        }
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

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres:") || url.starts_with("postgresql:")
}

/// What may follow the `?` of a PostgreSQL URL. No password: a URL's query is not where one is
/// looked for when a URL is passed on.
const PARAMETERS: [&str; 11] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

/// Refuses what sqlx would ignore with a warning that has the value: a misspelt `sslmode` would
/// mean no TLS, and a misspelt password would be in the journal.
fn check_parameters(url: &str) -> Result<(), StoreError> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query = query.split('#').next().unwrap_or(query);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let key = pair.split('=').next().unwrap_or(pair);
        if !PARAMETERS.contains(&key) {
            return Err(StoreError::Parameter(key.to_owned()));
        }
    }
    Ok(())
}

/// The URL without what may be secret: user, password and parameters.
fn redacted(url: &str) -> String {
    if !is_postgres(url) {
        return url.to_owned();
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", ""));
    // A password may hold any character when nobody has escaped it, so the last `@` counts.
    match rest.rfind('@') {
        Some(at) => {
            let place = &rest[at + 1..];
            format!(
                "{scheme}://...@{}",
                place.split('?').next().unwrap_or(place)
            )
        }
        None => format!("{scheme}://{}", rest.split('?').next().unwrap_or(rest)),
    }
}

/// The first column of each row.
fn sorted_texts(rows: &[AnyRow]) -> Result<Vec<String>, StoreError> {
    let mut texts: Vec<String> = rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()?;
    texts.sort_unstable();
    Ok(texts)
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
    /// The database has the other server's tables, or those of a newer version.
    #[error(
        "{url} holds the tables of another server or of another version: give registrar and \
         verifier a database each"
    )]
    Occupied {
        /// The database, without password.
        url: String,
    },
    /// No connection.
    #[error("opening {url}: {source}")]
    Open {
        /// The database, without password.
        url: String,
        /// The reason.
        source: sqlx::Error,
    },
    /// A parameter of a PostgreSQL URL that has no meaning; its name.
    #[error("database_url: unknown parameter {0:?}; there are {known}", known = PARAMETERS.join(", "))]
    Parameter(String),
    /// An engine that this build does not know.
    #[error(
        "database_url: no engine for {0:?}; use sqlite:///PATH or \
         postgres://USER@HOST:PORT/DATABASE"
    )]
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
    async fn unknown_parts_of_a_url_are_refused_by_name_and_passwords_are_not_shown() {
        let error = Store::open("mysql://u:p@host/db", Schema::Verifier)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("mysql"), "{error}");
        for url in [
            "postgresql://u:secret@host:5432/db",
            "postgresql://u:se@cret/?#x@host:5432/db?sslmode=require",
        ] {
            assert_eq!(redacted(url), "postgresql://...@host:5432/db");
        }
        assert_eq!(
            redacted("postgres://host/db?options=secret"),
            "postgres://host/db"
        );
        assert_eq!(redacted("sqlite:///a@b"), "sqlite:///a@b");
        let url = "postgres://u@host/db?sslmode=require&passwort=secret";
        let error = Store::open(url, Schema::Verifier).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StoreError::Parameter(_)), "{text}");
        assert!(
            text.contains("\"passwort\"") && !text.contains("secret"),
            "{text}"
        );
    }
}
