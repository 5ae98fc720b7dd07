//! `troth-registrar`: registers agents and binds their attestation keys to their TPMs.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use troth_daemon::{config, logging, shutdown::Shutdown};
use troth_verifier::{
    config::RegistrarConfig,
    server::{RegistrarServer, StartError},
};

/// sysexits(3): the configuration cannot be used.
const EX_CONFIG: u8 = 78;

const EXIT_STATUS: &str = "\
Exit status:
  0   stopped by SIGTERM or SIGINT
  1   an error; the last line of the log says which
  2   wrong use of the command line
  78  the configuration cannot work";

/// Registers agents and binds their attestation keys to their TPMs.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_STATUS)]
struct Arguments {
    /// Read this file instead of registrar.toml in /etc/troth, /run/troth, /usr/lib/troth.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    logging::init("info");
    let config: RegistrarConfig = match config::load("registrar", arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("configuration: {error}");
            return ExitCode::from(EX_CONFIG);
        }
    };
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            match error.downcast_ref::<StartError>() {
                Some(error) if error.is_configuration() => ExitCode::from(EX_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(config: &RegistrarConfig) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let shutdown = Shutdown::from_signals()?;
            RegistrarServer::start(config).await?.run(shutdown).await;
            Ok(())
        })
}
