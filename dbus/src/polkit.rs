//! Who may do what on this host, as polkit says it. The actions and their defaults are in
//! `/usr/share/polkit-1/actions/org.troth.agent1.policy`.
//!
//! Root and the agent's own user are not asked about.

use std::{collections::HashMap, os::fd::AsFd, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use zbus::{Connection, message::Header, proxy::CacheProperties};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

/// Longest wait for an answer that needs nobody. Users may think for longer.
const PATIENCE: Duration = Duration::from_secs(25);

/// Questions at a time that need nobody, and that wait for users.
const QUESTIONS: usize = 64;
const USERS: usize = 16;

/// An operation that not everybody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// A quote over the caller's nonce.
    Quote,
    /// A bundle with the host's logs.
    Evidence,
    /// Registering again.
    Register,
    /// Running an action.
    RunAction,
}

impl Guarded {
    /// The name of polkit's action.
    fn action(self) -> &'static str {
        match self {
            Self::Quote => "org.troth.agent1.quote",
            Self::Evidence => "org.troth.agent1.evidence",
            Self::Register => "org.troth.agent1.register",
            Self::RunAction => "org.troth.agent1.run-action",
        }
    }
}

/// What is said about a caller who wants to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Granted,
    /// It may not.
    Denied,
    /// It may when the user has been asked, which the caller did not allow, or nobody could.
    Challenge,
    /// Too many callers wait for a decision.
    Overloaded,
}

/// Asks polkit, over the connection that the process has to the system bus. As long as there is
/// none, nothing is granted.
#[derive(Debug)]
pub struct Polkit {
    bus: watch::Sender<Option<Connection>>,
    questions: Semaphore,
    users: Semaphore,
}

impl Default for Polkit {
    fn default() -> Self {
        Self {
            bus: watch::Sender::new(None),
            questions: Semaphore::new(QUESTIONS),
            users: Semaphore::new(USERS),
        }
    }
}

impl Polkit {
    /// About a process that `pidfd` stands for, whose user is `uid`. `interactive`: the user may be
    /// asked.
    pub async fn decide(
        &self,
        operation: Guarded,
        pidfd: impl AsFd,
        uid: u32,
        interactive: bool,
    ) -> Decision {
        match Subject::new_for_owner(pidfd, uid) {
            Ok(subject) => self.ask(operation, &subject, interactive).await,
            Err(error) => {
                tracing::warn!("polkit is not asked: {error}");
                Decision::Denied
            }
        }
    }

    /// About the sender of a message. Its user is asked only if it says so.
    pub(crate) async fn decide_for_sender(
        &self,
        operation: Guarded,
        header: &Header<'_>,
        interactive: bool,
    ) -> Decision {
        match Subject::new_for_message_header(header) {
            Ok(subject) => self.ask(operation, &subject, interactive).await,
            Err(error) => {
                tracing::warn!("polkit is not asked: {error}");
                Decision::Denied
            }
        }
    }

    /// The connection to ask over, from now on.
    pub(crate) fn connected(&self, bus: Option<Connection>) {
        self.bus.send_replace(bus);
    }

    async fn ask(&self, operation: Guarded, subject: &Subject, interactive: bool) -> Decision {
        let places = match interactive {
            true => &self.users,
            false => &self.questions,
        };
        let Ok(_place) = places.try_acquire() else {
            return Decision::Overloaded;
        };
        let Some(bus) = self.bus.borrow().clone() else {
            return Decision::Denied;
        };
        let answer = check(&bus, operation, subject, interactive);
        let answer = match interactive {
            true => answer.await,
            false => match timeout(PATIENCE, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    tracing::warn!("polkit does not answer");
                    return Decision::Denied;
                }
            },
        };
        answer.unwrap_or_else(|error| {
            tracing::warn!("polkit does not decide: {error}");
            Decision::Denied
        })
    }
}

async fn check(
    bus: &Connection,
    operation: Guarded,
    subject: &Subject,
    interactive: bool,
) -> zbus::Result<Decision> {
    let authority = AuthorityProxy::builder(bus)
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    let flags = match interactive {
        true => CheckAuthorizationFlags::ALLOW_USER_INTERACTION,
        false => CheckAuthorizationFlags::empty(),
    };
    let action = operation.action();
    let result = authority
        .check_authorization(subject, action, &HashMap::new(), flags, "")
        .await?;
    Ok(match (result.is_authorized, result.is_challenge) {
        (true, _) => Decision::Granted,
        (false, true) => Decision::Challenge,
        (false, false) => Decision::Denied,
    })
}
