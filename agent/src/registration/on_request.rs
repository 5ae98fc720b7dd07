use std::{convert::Infallible, future::pending, time::Duration};

use tokio::sync::{mpsc, oneshot};
use troth_core::identity::AgentId;

use super::{Registrar, RegistrationError};
use crate::{http::ApiVersion, tpm::TpmHandle};

/// Requests that may wait for the one under way.
const QUEUE: usize = 32;

/// What came of an attempt, for each who had asked for it.
pub type Outcome = Result<ApiVersion, NotRegistered>;

/// Why an attempt failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct NotRegistered {
    /// The text of the [`RegistrationError`].
    pub reason: String,
    /// Would the next fail in the same way, until somebody intervenes?
    pub is_final: bool,
    /// The wait that the registrar asked for, within bounds.
    pub retry_after: Option<Duration>,
}

impl From<&RegistrationError> for NotRegistered {
    fn from(error: &RegistrationError) -> Self {
        Self {
            reason: error.to_string(),
            is_final: error.is_final(),
            retry_after: error.retry_after(),
        }
    }
}

/// Asks for registrations of a running agent. Clones ask the same.
#[derive(Clone, Debug)]
pub struct RegistrarHandle(mpsc::Sender<Request>);

/// Where requests arrive, until somebody answers them.
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<Request>);

#[derive(Debug)]
struct Request {
    /// The TLS certificate to register with from now on, PEM.
    certificate: Option<String>,
    answer: oneshot::Sender<Outcome>,
}

/// The way to ask, and where requests arrive.
pub fn requests() -> (RegistrarHandle, Requests) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (RegistrarHandle(sender), Requests(receiver))
}

impl RegistrarHandle {
    /// Registers, with the TLS certificate `certificate` from now on. Who asks while a registration
    /// is under way gets what comes of that one, unless a new certificate is to be told.
    ///
    /// `None`: the agent stops.
    pub async fn register(&self, certificate: Option<String>) -> Option<Outcome> {
        let (answer, outcome) = oneshot::channel();
        let request = Request {
            certificate,
            answer,
        };
        self.0.send(request).await.ok()?;
        outcome.await.ok()
    }
}

/// Makes one attempt at a time, for all that ask.
#[derive(Debug)]
pub struct Attempts {
    registrar: Registrar,
    tpm: TpmHandle,
    requests: Requests,
    /// Who waits for an attempt that has not begun.
    waiting: Vec<Request>,
}

impl Attempts {
    /// Attempts with `registrar`, and when `requests` come.
    pub fn new(registrar: Registrar, tpm: TpmHandle, requests: Requests) -> Self {
        Self {
            registrar,
            tpm,
            requests,
            waiting: Vec::new(),
        }
    }

    /// Who is registered.
    pub fn id(&self) -> &AgentId {
        &self.registrar.id
    }

    /// Waits for `delay`, or until somebody asks.
    pub async fn pause(&mut self, delay: Duration) {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.asked() => {}
        }
    }

    /// Registers.
    pub async fn attempt(&mut self) -> Result<ApiVersion, RegistrationError> {
        self.take_requests();
        for request in &mut self.waiting {
            if let Some(certificate) = request.certificate.take() {
                self.registrar.body.mtls_cert = Some(certificate);
            }
        }
        let result = self.registrar.register(&self.tpm).await;
        self.take_requests();
        let outcome: Outcome = match &result {
            Ok(version) => Ok(*version),
            Err(error) => Err(error.into()),
        };
        let told = |request: &mut Request| request.certificate.is_none();
        for request in self.waiting.extract_if(.., told) {
            // An error: the caller has gone.
            let _ = request.answer.send(outcome.clone());
        }
        result
    }

    /// Registers whenever somebody asks.
    pub async fn on_request(mut self) -> Infallible {
        loop {
            if self.waiting.is_empty() {
                self.asked().await;
            }
            if let Ok(version) = self.attempt().await {
                tracing::info!("registered again as {} (API {version})", self.registrar.id);
            }
        }
    }

    /// Returns when somebody has asked.
    async fn asked(&mut self) {
        match self.requests.0.recv().await {
            Some(request) => self.waiting.push(request),
            // Nobody is left who could.
            None => pending().await,
        }
    }

    fn take_requests(&mut self) {
        while let Ok(request) = self.requests.0.try_recv() {
            self.waiting.push(request);
        }
    }
}
