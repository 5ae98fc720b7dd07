//! The store on PostgreSQL. Part of the loopback tier: each test starts a server.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

mod conformance;

use troth_tests::postgres::{PASSWORD, PostgreSql};
use troth_verifier::store::{Schema, Store};

struct Database(PostgreSql);

impl Database {
    fn empty() -> Self {
        let server = PostgreSql::start().unwrap();
        server.create_database("troth").unwrap();
        Self(server)
    }

    fn url(&self) -> String {
        self.0.url("troth")
    }
}

conformance::conformance!(Database::empty());

#[tokio::test]
async fn the_unix_socket_needs_no_password() {
    let database = Database::empty();
    let url = database.0.socket_url("troth");
    let store = Store::open(&url, Schema::Registrar).await.unwrap();
    store.ping().await.unwrap();
}

#[tokio::test]
async fn errors_name_the_database_and_never_the_password() {
    let database = Database::empty();
    let url = database.url();
    let wrong = url.replace(PASSWORD, "wrong-horse");
    let missing = database.0.url("missing");
    let no_tls = format!("{url}?sslmode=require");
    for (url, name) in [(wrong, "troth"), (missing, "missing"), (no_tls, "troth")] {
        let error = Store::open(&url, Schema::Verifier).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(error.to_string().contains(&format!("/{name}: ")), "{text}");
        assert!(!text.contains("horse"), "{text}");
    }
}

#[tokio::test]
async fn several_verifiers_may_open_an_empty_database_at_once() {
    let database = Database::empty();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let url = database.url();
            tokio::spawn(async move { Store::open(&url, Schema::Verifier).await.map(drop) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}
