//! `troth-verifier`: asks enrolled nodes for evidence and judges it.

use std::process::ExitCode;

use tokio::runtime::Builder;
use troth_verifier::{config::VerifierConfig, program, server::VerifierServer};

fn main() -> ExitCode {
    let about = "Asks enrolled nodes for evidence and judges it";
    program::run(
        "troth-verifier",
        about,
        Builder::new_multi_thread(),
        async |config: VerifierConfig, shutdown| {
            VerifierServer::start(&config).await?.run(shutdown).await;
            Ok(())
        },
    )
}
