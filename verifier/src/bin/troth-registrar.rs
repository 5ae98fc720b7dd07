//! `troth-registrar`: registers agents and binds their attestation keys to their TPMs.

use std::process::ExitCode;

use tokio::runtime::Builder;
use troth_verifier::{config::RegistrarConfig, program, server::RegistrarServer};

fn main() -> ExitCode {
    let about = "Registers agents and binds their attestation keys to their TPMs";
    program::run(
        "troth-registrar",
        about,
        // Of a registration, most would be the waking of threads: one does it all, beside SQLite's.
        Builder::new_current_thread(),
        async |config: RegistrarConfig, shutdown| {
            RegistrarServer::start(&config).await?.run(shutdown).await;
            Ok(())
        },
    )
}
