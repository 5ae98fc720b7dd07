use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
};

use serde_json::json;
use troth_ipc::varlink::{ACTIONS, Answer, Call, Caller, Fault, Interface, Replies, Service};

use crate::{
    action,
    files::{self, Place},
};

/// What is served.
#[derive(Debug)]
pub(crate) struct Actions {
    place: Place,
    /// Who is answered beside root: the user that the socket was made for.
    user: u32,
}

impl Actions {
    /// Actions of `place`, for the owner of `socket`.
    pub(crate) fn new(place: Place, socket: &OwnedFd) -> Self {
        let user = owner(socket).unwrap_or_else(|error| {
            tracing::warn!(%error, "the socket has no owner: only root is answered");
            0
        });
        Self { place, user }
    }

    fn check(&self, caller: &Caller) -> Result<(), Fault> {
        if caller.uid == 0 || caller.uid == self.user {
            Ok(())
        } else {
            Err(Fault::PERMISSION_DENIED)
        }
    }
}

/// The owner of a listening socket's file.
fn owner(socket: &OwnedFd) -> io::Result<u32> {
    let address = UnixListener::from(socket.try_clone()?).local_addr()?;
    let path = address.as_pathname();
    files::owner(path.ok_or(io::ErrorKind::NotFound)?)
}

impl Service for Actions {
    fn product(&self) -> &'static str {
        "Troth action broker"
    }

    fn interfaces(&self) -> &[Interface] {
        const { &[ACTIONS] }
    }

    async fn call(&self, mut call: Call<'_>, _: &mut Replies<'_>) -> Result<Answer, Fault> {
        self.check(call.caller)?;
        match call.method {
            "List" => {
                call.without_parameters()?;
                Ok(Answer::from(json!(action::list(&self.place))))
            }
            "Run" => {
                let _: String = call.parameters.required("name")?;
                let method = call.name();
                call.without_parameters()?;
                Err(Fault::method_not_implemented(&method))
            }
            _ => Err(Fault::method_not_found(&call.name())),
        }
    }
}
