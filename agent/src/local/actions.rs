use std::{path::Path, time::Duration};

use tokio::{sync::Mutex, time::timeout};
use troth_ipc::{
    agent::{Action, OperationError},
    client::{ACTIONS_ADDRESS, ActionsClient, ClientError},
};

/// Longest wait for troth-actiond, which may have to be started.
const PATIENCE: Duration = Duration::from_secs(20);

/// What troth-actiond is asked.
#[derive(Debug, Default)]
pub(super) struct Actions {
    /// What was wrong with files when they were listed last. Everybody may ask for the list, so it is
    /// asked for once at a time, and told of once.
    broken: Mutex<Vec<String>>,
}

impl Actions {
    /// The actions that it knows.
    pub(super) async fn list(&self) -> Result<Vec<Action>, OperationError> {
        let mut known = self.broken.lock().await;
        let list = answered(async { connect().await?.list().await }).await?;
        let broken = list.broken.into_iter();
        let broken: Vec<_> = broken
            .map(|b| format!("{}: {}", b.path, b.reason))
            .collect();
        for new in broken.iter().filter(|file| !known.contains(file)) {
            tracing::warn!("no action: {new}");
        }
        *known = broken;
        let actions = list.actions.into_iter().map(|action| Action {
            name: action.name,
            description: action.description,
            sandbox: action.sandbox.to_string(),
        });
        Ok(actions.collect())
    }

    /// Has it run one.
    pub(super) async fn run(&self, name: &str) -> Result<(), OperationError> {
        answered(async { connect().await?.run(name).await }).await
    }
}

async fn connect() -> Result<ActionsClient, ClientError> {
    ActionsClient::connect(Path::new(ACTIONS_ADDRESS)).await
}

async fn answered<T>(
    asked: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, OperationError> {
    match timeout(PATIENCE, asked).await {
        Ok(answered) => answered.map_err(failed),
        Err(_) => {
            let reason = format!("no answer within {} s", PATIENCE.as_secs());
            Err(OperationError::ActionsUnavailable(reason))
        }
    }
}

fn failed(error: ClientError) -> OperationError {
    match &error {
        ClientError::Refused { fault, .. } if fault.error == "org.troth.Actions.NoSuchAction" => {
            let name = fault.parameter("name").unwrap_or_default();
            OperationError::NoSuchAction(name.to_owned())
        }
        _ => OperationError::ActionsUnavailable(error.to_string()),
    }
}
