//! The life of either program: options, configuration, service, exit status.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;
use troth_daemon::{
    config::{self, Place},
    logging,
    shutdown::Shutdown,
};

use crate::{config::ServerConfig, server::StartError};

/// sysexits(3): the configuration cannot be used.
const EX_CONFIG: u8 = 78;

/// sqlx warns of a malformed line in PGPASSFILE by showing it, password and all; and each start
/// finds that the table of migrations is there already.
const QUIET: &str = "sqlx_postgres::options=error,sqlx::postgres::notice=warn";

const EXIT_STATUS: &str = "\
Exit status:
  0   stopped by SIGTERM or SIGINT
  1   an error; the last line of the log says which
  2   wrong use of the command line
  78  the configuration cannot work";

/// The options that both programs have.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_STATUS)]
struct Arguments {
    /// Read this file instead of those in /etc/troth, /run/troth and /usr/lib/troth.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Look for configuration files below this directory.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "config")]
    root: Option<PathBuf>,
}

/// Runs the program `name` until it is asked to stop, on what `runtime` makes.
pub fn run<C: ServerConfig>(
    name: &'static str,
    about: &'static str,
    mut runtime: Builder,
    serve: impl AsyncFnOnce(C, Shutdown) -> Result<(), StartError>,
) -> ExitCode {
    let matches = Arguments::command().name(name).about(about).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let place = Place {
        file: arguments.config,
        root: arguments.root,
    };
    let loaded = config::load::<C>(&C::COMPONENT, &place);
    let level = loaded.as_ref().ok().and_then(|l| l.config.log());
    let level = level.map(|level| format!("{level},{QUIET}"));
    logging::init(level.as_deref(), &format!("info,{QUIET}"));
    raise_descriptor_limit();
    let config = match loaded {
        Ok(loaded) => loaded.report(),
        Err(error) => {
            tracing::error!("configuration: {error}");
            return ExitCode::from(EX_CONFIG);
        }
    };
    let runtime = runtime.enable_all().build();
    let result = runtime.map_err(StartError::Runtime).and_then(|runtime| {
        runtime.block_on(async {
            let shutdown = Shutdown::from_signals().map_err(StartError::Runtime)?;
            serve(config, shutdown).await
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            if error.is_configuration() {
                ExitCode::from(EX_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Each node and each client is a file descriptor. The usual soft limit of 1,024 is for programs
/// that call select(2).
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
