use std::{path::Path, time::Duration};

use tokio::time::timeout;
use troth_ipc::{
    agent::{Action, OperationError},
    client::{ACTIONS_ADDRESS, ActionsClient, ClientError},
};

/// Longest wait for troth-actiond, which may have to be started.
const PATIENCE: Duration = Duration::from_secs(20);

/// The actions that troth-actiond knows.
pub(super) async fn list() -> Result<Vec<Action>, OperationError> {
    let list = answered(async { connect().await?.list().await }).await?;
    for broken in list.broken {
        tracing::warn!("no action: {}: {}", broken.path, broken.reason);
    }
    let actions = list.actions.into_iter().map(|action| Action {
        name: action.name,
        description: action.description,
        sandbox: action.sandbox.to_string(),
    });
    Ok(actions.collect())
}

/// Has troth-actiond run one.
pub(super) async fn run(name: String) -> Result<(), OperationError> {
    answered(async { connect().await?.run(&name).await }).await
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
