//! The life of either program: options, configuration, service, exit status.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, Parser};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;
use troth_daemon::{
    config::{self, EX_CONFIG, Place},
    logging,
    reload::Reload,
    shutdown::Shutdown,
};

use crate::{
    ca::CaDirectory,
    config::{ServerConfig, TlsOptions},
    server::StartError,
};

/// sqlx warns of a malformed line in PGPASSFILE by showing it, password and all; and each start
/// finds that the table of migrations is there already.
const QUIET: &str = "sqlx_postgres::options=error,sqlx::postgres::notice=warn";

const EXIT_STATUS: &str = "\
Exit status:
  0   stopped by SIGTERM or SIGINT, all certificates are there, or the configuration is shown
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
    /// Make what is missing of the CA and of the certificates that it issues in this directory, for
    /// the names that the configuration has; then end.
    #[arg(long, value_name = "DIRECTORY")]
    init_ca: Option<PathBuf>,
    /// Print all options with their values and where these come from, as JSON, and end; `trothctl
    /// config show` is for people.
    #[arg(long, conflicts_with = "init_ca")]
    show_config: bool,
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
    if arguments.show_config {
        return config::print(&C::COMPONENT, &place, C::check);
    }
    let loaded = config::load::<C>(&C::COMPONENT, &place);
    let level = loaded.as_ref().ok().and_then(|l| levels(&l.config));
    logging::init(level.as_deref(), &format!("info,{QUIET}"));
    raise_descriptor_limit();
    let (config, options) = match loaded {
        Ok(loaded) => {
            let options = loaded.options.clone();
            (loaded.report(), options)
        }
        Err(error) => {
            tracing::error!("configuration: {error}");
            return ExitCode::from(EX_CONFIG);
        }
    };
    if let Some(directory) = arguments.init_ca {
        return status(init_ca(&directory, config.tls()));
    }
    let runtime = runtime.enable_all().build();
    let result = runtime.map_err(StartError::Runtime).and_then(|runtime| {
        runtime.block_on(async {
            let shutdown = Shutdown::from_signals().map_err(StartError::Runtime)?;
            let reload = Reload::from_signals(C::COMPONENT, place, options);
            let reload = reload.map_err(StartError::Runtime)?;
            tokio::spawn(reload.follow(C::check, |config: &C| {
                logging::set_levels(levels(config).as_deref(), &format!("info,{QUIET}"));
            }));
            serve(config, shutdown).await
        })
    });
    status(result)
}

/// What the option `log` asks for, without what nobody should see.
fn levels(config: &impl ServerConfig) -> Option<String> {
    let level = config.log();
    level.map(|level| format!("{level},{QUIET}"))
}

fn init_ca(directory: &Path, options: TlsOptions) -> Result<(), StartError> {
    CaDirectory::ensure_locked(directory, &options.names, &options.subject)?;
    tracing::info!("certificates in {} are good", directory.display());
    Ok(())
}

fn status(result: Result<(), StartError>) -> ExitCode {
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
