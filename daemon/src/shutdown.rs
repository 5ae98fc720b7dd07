//! Stop requests: SIGTERM, SIGINT, or a test's trigger.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Becomes ready once, when the process shall stop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Fires a [`Shutdown`]; so does dropping it.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

impl Shutdown {
    /// A shutdown that the caller fires.
    pub fn new() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (Trigger(sender), Self(receiver))
    }

    /// Fires on SIGTERM or SIGINT. Must run inside a tokio runtime.
    pub fn from_signals() -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (trigger, shutdown) = Self::new();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("stopping on SIGTERM"),
                _ = interrupt.recv() => tracing::info!("stopping on SIGINT"),
            }
            trigger.fire();
        });
        Ok(shutdown)
    }

    /// Returns when the process shall stop.
    pub async fn wait(&self) {
        let mut receiver = self.0.clone();
        // An error means that the trigger is gone, which asks for a stop as well.
        let _ = receiver.wait_for(|stop| *stop).await;
    }

    /// Has it fired?
    pub fn requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

impl Trigger {
    /// Asks every holder of the [`Shutdown`] to stop.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}
