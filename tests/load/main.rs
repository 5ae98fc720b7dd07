//! `troth-load`: thousands of simulated nodes for one verifier, or thousands of registrations for
//! one registrar; ours or Keylime's. docs/performance.md says how to size a site with it.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::Value;

/// Enrols simulated nodes at a verifier and counts what it asks them.
mod attest;
/// One simulated node: keys, state, and the agent's routes.
mod node;
/// Registers and activates agents.
mod register;

#[derive(Debug, Parser)]
#[command(name = "troth-load", about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve simulated nodes, enrol them at a verifier, and measure while it attests them
    Attest(attest::Options),
    /// Register and activate agents at a registrar, each exchange on a kept connection
    Register(register::Options),
}

#[derive(Args, Debug)]
struct Output {
    /// Print the figures as one JSON object
    #[arg(long, global = true)]
    json: bool,
}

/// Figures by name, in the order of printing.
type Report = Vec<(&'static str, Value)>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("troth-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    raise_descriptor_limit()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(async {
        match arguments.command {
            Command::Attest(options) => attest::run(options).await,
            Command::Register(options) => register::run(options).await,
        }
    })?;
    if arguments.output.json {
        let report: BTreeMap<_, _> = report.into_iter().collect();
        println!("{}", serde_json::to_string(&report)?);
    } else {
        for (name, value) in report {
            println!("{name:<28} {value}");
        }
    }
    Ok(())
}

/// Each node has a listener and a connection: two descriptors.
fn raise_descriptor_limit() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

/// The parts of `HOST:PORT`.
fn host_and_port(text: &str) -> Result<(&str, u16)> {
    let parts = text.rsplit_once(':');
    parts
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .with_context(|| format!("{text:?} is not HOST:PORT"))
}

/// A figure with so many decimals as it is good for.
fn figure(value: f64) -> Value {
    Value::from((value * 1000.0).round() / 1000.0)
}
