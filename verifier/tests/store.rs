//! The store on SQLite.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

mod conformance;

use tempfile::TempDir;

struct Sqlite(TempDir);

impl Sqlite {
    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.0.path().join("store.sqlite").display())
    }
}

conformance::conformance!(Sqlite::empty());
