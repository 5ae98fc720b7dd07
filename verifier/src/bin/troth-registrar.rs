//! `troth-registrar`: registers agents and binds their attestation keys to their TPMs.

use std::process::ExitCode;

use troth_verifier::{config::RegistrarConfig, program, server::RegistrarServer};

fn main() -> ExitCode {
    let about = "Registers agents and binds their attestation keys to their TPMs";
    program::run(
        "troth-registrar",
        about,
        async |config: RegistrarConfig, shutdown| {
            RegistrarServer::start(&config).await?.run(shutdown).await;
            Ok(())
        },
    )
}
