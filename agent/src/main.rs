//! `troth-agent`: serves this host's evidence to verifiers.
//!
//! Exit statuses above 2 are those of sysexits(3): EX_NOPERM and EX_CONFIG.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use troth_agent::{
    agent::{self, AgentError},
    config::Config,
};
use troth_daemon::{
    config::{self, Loaded, Place},
    descriptors::Descriptors,
    logging,
    reload::Reload,
    shutdown::Shutdown,
};

/// What is logged unless the configuration says otherwise.
const LEVEL: &str = "info";

const EXIT_STATUS: &str = "\
Exit status:
  0   stopped by SIGTERM or SIGINT, or the configuration is shown
  1   an error; the last line of the log says which
  2   wrong use of the command line
  77  the registrar refuses this host for good
  78  the configuration, or a key or certificate that it names, cannot work";

/// The attestation agent: evidence from this host's TPM, served to verifiers over mutual TLS.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_STATUS)]
struct Arguments {
    /// Read this file instead of agent.toml in /etc/troth, /run/troth and /usr/lib/troth.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Look for configuration files below this directory.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "config")]
    root: Option<PathBuf>,
    /// Print all options with their values and where these come from, as JSON, and end; `trothctl
    /// config show agent` is for people.
    #[arg(long)]
    show_config: bool,
}

fn main() -> ExitCode {
    // First of all: a descriptor's number means something else once other files are open.
    let descriptors = Descriptors::take_all();
    let arguments = Arguments::parse();
    let place = Place {
        file: arguments.config,
        root: arguments.root,
    };
    if arguments.show_config {
        return config::print(&Config::COMPONENT, &place, Config::check);
    }
    let loaded = config::load::<Config>(&Config::COMPONENT, &place);
    let level = loaded.as_ref().ok().and_then(|l| l.config.log.as_deref());
    logging::init(level, LEVEL);
    let result = loaded
        .map_err(Into::into)
        .and_then(|loaded| run(loaded, descriptors?, place));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            let status = error
                .downcast_ref::<AgentError>()
                .map_or(1, AgentError::exit_status);
            let invalid = error.is::<config::ConfigError>();
            ExitCode::from(if invalid { agent::EX_CONFIG } else { status })
        }
    }
}

fn run(loaded: Loaded<Config>, descriptors: Descriptors, place: Place) -> anyhow::Result<()> {
    let options = loaded.options.clone();
    let config = loaded.report();
    // One thread for everything, one for the TPM, one for file reads: an agent must be small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::from_signals()?;
        let reload = Reload::from_signals(Config::COMPONENT, place, options)?;
        tokio::spawn(reload.follow(Config::check, |config: &Config| {
            logging::set_levels(config.log.as_deref(), LEVEL);
        }));
        agent::run(config, descriptors, shutdown).await
    })?;
    Ok(())
}
