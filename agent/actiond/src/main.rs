//! `troth-actiond`: knows what this host may be told to do, and tells its agent. It is root, so that
//! the agent, which talks to a network, need not be.

/// Actions as their files describe them.
mod action;
/// Files that nobody but root can have written.
mod files;
/// `org.troth.Actions`.
mod service;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use troth_daemon::{descriptors::Descriptors, logging, notify, shutdown::Shutdown};
use troth_ipc::varlink;

use crate::{files::Place, service::Actions};

/// The socket's name in its unit.
const SOCKET: &str = "varlink";

/// How long nobody has to ask until the process ends; the service manager starts it again.
const IDLE: Duration = Duration::from_secs(30);

/// The action broker: serves org.troth.Actions on the socket that the service manager hands over
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Look for actions below this directory
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
}

fn main() -> ExitCode {
    // First of all: a descriptor's number means something else once other files are open.
    let descriptors = Descriptors::take_all();
    let arguments = Arguments::parse();
    logging::init(None, "info");
    let served = descriptors
        .context("the service manager's descriptors")
        .and_then(|descriptors| run(descriptors, arguments));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut descriptors: Descriptors, arguments: Arguments) -> anyhow::Result<()> {
    let socket = descriptors
        .take(SOCKET)
        .context("no socket: this program is started by troth-actiond.socket, not by hand")?;
    let actions = Actions::new(Place::new(arguments.root, 0), &socket);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::from_signals()?;
        notify::ready("Serving org.troth.Actions");
        tokio::select! {
            served = varlink::serve(socket, actions, Some(IDLE)) => served?,
            () = shutdown.wait() => {}
        }
        notify::stopping();
        Ok(())
    })
}
