//! `trothctl`: the operator's command line to Troth's verifier and registrar.
//!
//! This file only dispatches. Options are in `cli`, what a command does in the module of its name.

/// `trothctl agent ...`: enrol, remove, show and watch nodes.
mod agent;
/// Clients of verifier, registrar and agent: endpoints, credentials, envelopes.
mod api;
/// `trothctl appraise`: evidence that was kept, judged without any server.
mod appraise;
/// Files of evidence bundles.
mod bundle;
/// `trothctl ca show`: the certificates of a CA directory.
mod ca;
/// Options and subcommands.
mod cli;
/// `trothctl.toml`, with the command line above it.
mod config;
/// Everything that can go wrong, with the exit code and the advice that belong to it.
mod error;
/// `trothctl explain`: what is known of findings, without any server.
mod explain;
/// What `--help` and the manual pages say beyond the options; writes those pages.
mod help;
/// `trothctl inspect ...`: read a quote, a boot log or an IMA list without any server.
mod inspect;
/// `trothctl node ...`: this host and its agent.
mod node;
/// Terminal and JSON output.
mod output;
/// `trothctl policy ...`: make policies, and keep them at the verifier.
mod policy;
/// `trothctl registrar ...`: what the registrar knows about a node.
mod registrar;
/// `trothctl config show`: every option of a program, its value and who set it.
mod show_config;
/// `keylime_tenant ...`: Keylime's command line in our words.
mod tenant;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use troth_daemon::logging;

use crate::{
    cli::{CaCommand, Cli, Command, ConfigCommand, InspectCommand},
    config::Config,
    error::{Error, Exit},
    output::Output,
};

fn main() -> ExitCode {
    let (words, notes) = tenant::command_line();
    let matches = help::add_examples(Cli::command(), "trothctl").get_matches_from(words);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let out = Output::from_environment(cli.global.json);
    if !cli.global.json {
        logging::init(None, "warn");
    }
    out.notes(&notes);
    match run(&cli, &out) {
        Ok(exit) => exit.into(),
        Err(error) => {
            out.error(&error);
            error.exit().into()
        }
    }
}

fn run(cli: &Cli, out: &Output) -> Result<Exit, Error> {
    match &cli.command {
        Command::Agent(command) => network(agent::run(&cli.global, command, out)),
        Command::Node(args) => network(node::run(args, out)),
        Command::Registrar(command) => network(registrar::run(&cli.global, command, out)),
        Command::Inspect(InspectCommand::Quote(args)) => inspect::quote(args, out),
        Command::Inspect(InspectCommand::Eventlog(args)) => inspect::eventlog(args, out),
        Command::Inspect(InspectCommand::Ima(args)) => inspect::ima(args, out),
        Command::Appraise(args) => appraise::run(args, out),
        Command::Ca(CaCommand::Show) => ca::show(&Config::load(&cli.global)?.ca_dir(), out),
        Command::Config(ConfigCommand::Show(args)) => show_config::run(&cli.global, args, out),
        Command::Policy(command) => network(policy::run(&cli.global, command, out)),
        Command::Explain { id } => explain::run(id.as_deref(), out),
        Command::Completions { shell } => help::completions(*shell, out),
        Command::Man { dir } => help::man(dir.as_deref(), out),
    }
}

/// Runs a command that talks to servers. The runtime exists only for these commands: the others
/// start no thread and no timer.
fn network(work: impl Future<Output = Result<Exit, Error>>) -> Result<Exit, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Runtime { source })?
        .block_on(work)
}
