//! The agent on the system bus: `org.troth.Agent1`, and `org.freedesktop.LogControl1`.
//!
//! What is served translates, and holds no state: a slow quote blocks no property.

/// `org.troth.Agent1`.
mod agent;
/// Who calls, and what it may do.
mod caller;
/// Errors by the names that D-Bus knows them by.
mod error;
/// `org.freedesktop.LogControl1`.
mod log_control;

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::{broadcast::error::RecvError, watch},
    time::sleep,
};
use zbus::{Connection, connection::Builder, object_server::SignalEmitter};

use self::{agent::Agent1, log_control::LogControl1};
use crate::{
    agent::{Agent, Status},
    logs::Logs,
    polkit::Polkit,
};

/// The first wait after a bus that is not there, or that was lost. Each further one is twice as long.
const RETRY: Duration = Duration::from_millis(100);

/// The longest wait. Where systemd keeps the bus's socket, the first or second try succeeds; a host
/// without a bus is not woken often.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// Which bus.
#[derive(Clone, Debug, Default)]
pub enum Address {
    /// The host's.
    #[default]
    System,
    /// Another one, by its D-Bus address.
    Other(String),
}

impl Address {
    fn builder(&self) -> Builder<'static> {
        match self {
            Self::System => Builder::system(),
            Self::Other(address) => Builder::address(address.as_str()),
        }
    }
}

/// Serves `agent` and its `logs` on a bus, and again whenever the bus was restarted. Without a bus
/// it waits for one. `polkit` is asked over the same connection.
pub async fn serve<A: Agent, L: Logs>(
    agent: Arc<A>,
    logs: Arc<L>,
    polkit: Arc<Polkit>,
    address: Address,
) -> Infallible {
    let mut wait = RETRY;
    let mut told = false;
    loop {
        // Before the properties can be read: what changes from here on is signalled.
        let mut status = agent.status();
        let before = status.borrow_and_update().clone();
        match connect(&agent, &logs, &polkit, &address).await {
            Ok(connection) => {
                tracing::debug!("on the bus as {}", agent::NAME);
                (wait, told) = (RETRY, false);
                polkit.connected(Some(connection.clone()));
                let ended = follow(&*agent, status, before, &connection).await;
                polkit.connected(None);
                if let Err(error) = ended {
                    tracing::debug!(%error, "the bus takes no signals");
                }
                tracing::info!("the bus was lost; it will be connected to again");
            }
            Err(error) if told => tracing::debug!(%error, "still not on the bus"),
            Err(error) => {
                told = true;
                tracing::warn!("not on the bus, all else goes on: {error}");
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_RETRY);
    }
}

async fn connect<A: Agent, L: Logs>(
    agent: &Arc<A>,
    logs: &Arc<L>,
    polkit: &Arc<Polkit>,
    address: &Address,
) -> zbus::Result<Connection> {
    address
        .builder()
        .serve_at(
            agent::PATH,
            Agent1::new(Arc::clone(agent), Arc::clone(polkit)),
        )
        .serve_at(log_control::PATH, LogControl1(Arc::clone(logs)))
        .name(agent::NAME)
        .build()
        .await
}

/// Signals what happens, until the connection ends.
async fn follow<A: Agent>(
    agent: &A,
    mut status: watch::Receiver<Status>,
    mut before: Status,
    connection: &Connection,
) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, agent::PATH)?;
    let mut events = agent.events();
    loop {
        tokio::select! {
            () = connection.closed() => return Ok(()),
            changed = status.changed() => match changed {
                Ok(()) => {
                    let after = status.borrow_and_update().clone();
                    agent::emit_changes(&emitter, &before, &after).await?;
                    before = after;
                }
                // The agent ends, and the process with it.
                Err(_) => connection.closed().await,
            },
            event = events.recv() => match event {
                Ok(event) => agent::emit(&emitter, event).await?,
                Err(RecvError::Lagged(lost)) => tracing::debug!(lost, "signals were not sent"),
                Err(RecvError::Closed) => connection.closed().await,
            },
        }
    }
}
