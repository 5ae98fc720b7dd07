//! Clients of the varlink interfaces.

use std::{
    fmt, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{net::UnixStream, time::timeout};
use zlink::{Call, Connection, Error};

use crate::varlink::{Fault, wire};

/// The agent's socket.
pub const AGENT_ADDRESS: &str = "/run/troth/org.troth.Agent";

/// troth-actiond's socket.
pub const ACTIONS_ADDRESS: &str = "/run/troth/org.troth.Actions";

/// Longest wait for what an agent says without asking its TPM. It may have to be started first.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a call came to no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no such socket, nobody serves it, or it is not for this user.
    #[error("{}: {source}", address.display())]
    Connect {
        /// The socket.
        address: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The service ended the connection, or what it sent is no varlink.
    #[error("{}: the connection ended: {reason}", address.display())]
    Ended {
        /// The socket.
        address: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// The service answered with an error.
    #[error("{}: {fault}", address.display())]
    Refused {
        /// The socket.
        address: PathBuf,
        /// The error.
        fault: Fault,
    },
    /// The service has not answered what needs no waiting.
    #[error("{}: no answer within {seconds} s", address.display())]
    Silent {
        /// The socket.
        address: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The answer is not what the interface promises.
    #[error("{}: unusable answer: {reason}", address.display())]
    Unusable {
        /// The socket.
        address: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        match &self.parameters {
            Value::Object(members) if !members.is_empty() => write!(f, " {}", self.parameters),
            _ => Ok(()),
        }
    }
}

/// A connection to a service.
#[derive(Debug)]
pub struct Client {
    address: PathBuf,
    connection: Connection<zlink::tokio::unix::Stream>,
}

impl Client {
    /// To the service that listens at `address`.
    pub async fn connect(address: &Path) -> Result<Self, ClientError> {
        let open = async {
            let stream = UnixStream::connect(address).await.map_err(Error::Io)?;
            zlink::tokio::unix::Stream::try_from(stream)
        };
        match open.await {
            Ok(stream) => Ok(Self {
                address: address.to_owned(),
                connection: Connection::new(stream),
            }),
            Err(error) => Err(ClientError::Connect {
                address: address.to_owned(),
                source: match error {
                    Error::Io(source) => source,
                    other => io::Error::other(other),
                },
            }),
        }
    }

    /// Calls a method that answers once.
    pub async fn call<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: Value,
    ) -> Result<(T, Vec<OwnedFd>), ClientError> {
        self.send(method, parameters, false).await?;
        self.receive().await
    }

    /// Calls a method that answers with a stream; [`Client::receive`] takes its replies.
    pub async fn subscribe(&mut self, method: &str, parameters: Value) -> Result<(), ClientError> {
        self.send(method, parameters, true).await
    }

    /// The next reply.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), ClientError> {
        let received = self.connection.receive_reply::<Value, Fault>().await;
        let fault = match received {
            Ok((Ok(reply), descriptors)) => {
                let parameters = reply.into_parameters().unwrap_or_else(|| json!({}));
                let reply = serde_json::from_value(parameters);
                return match reply {
                    Ok(reply) => Ok((reply, descriptors)),
                    Err(error) => Err(self.unusable(&error)),
                };
            }
            Ok((Err(fault), _)) => fault,
            // zlink has types of its own for the errors that every service may answer with.
            Err(Error::VarlinkService(error)) => serde_json::to_value(error)
                .and_then(serde_json::from_value)
                .map_err(|error| self.unusable(&error))?,
            Err(error) => return Err(self.ended(&error)),
        };
        let address = self.address.clone();
        Err(ClientError::Refused { address, fault })
    }

    async fn send(
        &mut self,
        method: &str,
        parameters: Value,
        more: bool,
    ) -> Result<(), ClientError> {
        #[derive(Debug, Serialize)]
        struct Method<'a> {
            method: &'a str,
            parameters: Value,
        }
        let call = Call::new(Method { method, parameters }).set_more(more);
        let sent = self.connection.send_call(&call, Vec::new()).await;
        sent.map_err(|error| self.ended(&error))
    }

    fn ended(&self, error: &Error) -> ClientError {
        ClientError::Ended {
            address: self.address.clone(),
            reason: match error {
                Error::UnexpectedEof => "closed by the service".to_owned(),
                other => other.to_string(),
            },
        }
    }

    fn unusable(&self, error: &serde_json::Error) -> ClientError {
        ClientError::Unusable {
            address: self.address.clone(),
            reason: error.to_string(),
        }
    }
}

/// An agent, seen from outside.
#[derive(Debug)]
pub struct AgentClient(Client);

impl AgentClient {
    /// The one that serves `address`.
    pub async fn connect(address: &Path) -> Result<Self, ClientError> {
        Client::connect(address).await.map(Self)
    }

    /// Its state now.
    pub async fn status(&mut self) -> Result<wire::Status, ClientError> {
        let address = self.0.address.clone();
        match timeout(PATIENCE, self.once("GetStatus", json!({}))).await {
            Ok(status) => status,
            Err(_) => Err(ClientError::Silent {
                address,
                seconds: PATIENCE.as_secs(),
            }),
        }
    }

    /// Asks to be told its state now and again whenever it changes, and what happens:
    /// [`AgentClient::update`]. Nothing else can be asked then.
    pub async fn watch(&mut self) -> Result<(), ClientError> {
        let method = "org.troth.Agent.Subscribe";
        self.0.subscribe(method, json!({})).await
    }

    /// What is told next.
    pub async fn update(&mut self) -> Result<wire::Update, ClientError> {
        self.0.receive().await.map(|(update, _)| update)
    }

    /// A quote over `nonce` (Base64); without `pcrs`, of all.
    pub async fn quote(
        &mut self,
        nonce: &str,
        pcrs: Option<&[u32]>,
    ) -> Result<wire::Quote, ClientError> {
        let mut parameters = json!({ "nonce": nonce, "allowInteractiveAuthentication": true });
        if let Some(pcrs) = pcrs {
            parameters["pcrs"] = pcrs.into();
        }
        self.once("Quote", parameters).await
    }

    /// A bundle over `nonce`, or a random one: a file to be read from its beginning.
    pub async fn evidence(&mut self, nonce: Option<&str>) -> Result<OwnedFd, ClientError> {
        let parameters = json!({ "nonce": nonce, "allowInteractiveAuthentication": true });
        let method = "org.troth.Agent.CollectEvidence";
        let called = self.0.call::<wire::Evidence>(method, parameters).await?;
        let (reply, descriptors) = called;
        let bundle = descriptors.into_iter().nth(reply.bundle_file_descriptor);
        bundle.ok_or_else(|| ClientError::Unusable {
            address: self.0.address.clone(),
            reason: "no file came with it".to_owned(),
        })
    }

    /// Registers the host again.
    pub async fn register(&mut self) -> Result<wire::Registered, ClientError> {
        let parameters = json!({ "allowInteractiveAuthentication": true });
        self.once("Register", parameters).await
    }

    /// The actions that the host knows.
    pub async fn actions(&mut self) -> Result<wire::Actions, ClientError> {
        self.once("ListActions", json!({})).await
    }

    /// Runs an action.
    pub async fn run_action(&mut self, name: &str) -> Result<(), ClientError> {
        let parameters = json!({ "name": name, "allowInteractiveAuthentication": true });
        let done = self.once::<Value>("RunAction", parameters).await;
        done.map(drop)
    }

    async fn once<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: Value,
    ) -> Result<T, ClientError> {
        let method = format!("org.troth.Agent.{method}");
        self.0
            .call(&method, parameters)
            .await
            .map(|(reply, _)| reply)
    }
}

/// troth-actiond, seen from outside.
#[derive(Debug)]
pub struct ActionsClient(Client);

impl ActionsClient {
    /// The one that serves `address`.
    pub async fn connect(address: &Path) -> Result<Self, ClientError> {
        Client::connect(address).await.map(Self)
    }

    /// What there is.
    pub async fn list(&mut self) -> Result<wire::ActionList, ClientError> {
        let called = self.0.call("org.troth.Actions.List", json!({})).await;
        called.map(|(list, _)| list)
    }

    /// Runs an action.
    pub async fn run(&mut self, name: &str) -> Result<(), ClientError> {
        let parameters = json!({ "name": name });
        let called = self.0.call::<Value>("org.troth.Actions.Run", parameters);
        called.await.map(drop)
    }
}
