//! Who may do what on this host, as polkit says it. The actions and their defaults are in
//! `/usr/share/polkit-1/actions/org.troth.agent1.policy`.
//!
//! Root and the agent's own user are not asked about.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::AsFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use zbus::{Connection, message::Header, proxy::CacheProperties};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

/// Longest wait for an answer that needs nobody, and for one of a user.
const PATIENCE: Duration = Duration::from_secs(25);
const THINKING: Duration = Duration::from_secs(5 * 60);

/// Questions at a time that need nobody, and that wait for users.
const QUESTIONS: usize = 64;
const USERS: usize = 16;

/// Questions at a time that one user is the reason of, so that nobody keeps others from being asked.
const OF_A_USER: usize = 2;

/// An operation that not everybody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded<'a> {
    /// A quote over the caller's nonce.
    Quote,
    /// A bundle with the host's logs.
    Evidence,
    /// Registering again.
    Register,
    /// Running the action of this name.
    RunAction(&'a str),
}

impl<'a> Guarded<'a> {
    /// The name of polkit's action.
    fn action(self) -> &'static str {
        match self {
            Self::Quote => "org.troth.agent1.quote",
            Self::Evidence => "org.troth.agent1.evidence",
            Self::Register => "org.troth.agent1.register",
            Self::RunAction(_) => "org.troth.agent1.run-action",
        }
    }

    /// What the question and an administrator's rule may refer to.
    fn details(self) -> HashMap<&'static str, &'a str> {
        match self {
            Self::RunAction(name) => HashMap::from([("action", name)]),
            _ => HashMap::new(),
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
    /// Questions that wait for users, by whose call they are of.
    by_user: Mutex<BTreeMap<u32, usize>>,
    /// Of the questions so far.
    number: AtomicU64,
}

impl Default for Polkit {
    fn default() -> Self {
        Self {
            bus: watch::Sender::new(None),
            questions: Semaphore::new(QUESTIONS),
            users: Semaphore::new(USERS),
            by_user: Mutex::default(),
            number: AtomicU64::default(),
        }
    }
}

impl Polkit {
    /// About a process that `pidfd` stands for, whose user is `uid`. `interactive`: the user may be
    /// asked.
    pub async fn decide(
        &self,
        operation: Guarded<'_>,
        pidfd: impl AsFd,
        uid: u32,
        interactive: bool,
    ) -> Decision {
        match Subject::new_for_owner(pidfd, uid) {
            Ok(subject) => self.ask(operation, &subject, uid, interactive).await,
            Err(error) => {
                tracing::warn!("polkit is not asked: {error}");
                Decision::Denied
            }
        }
    }

    /// About the sender of a message, whose user is `uid`. It is asked only if the message says so.
    pub(crate) async fn decide_for_sender(
        &self,
        operation: Guarded<'_>,
        header: &Header<'_>,
        uid: u32,
        interactive: bool,
    ) -> Decision {
        match Subject::new_for_message_header(header) {
            Ok(subject) => self.ask(operation, &subject, uid, interactive).await,
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

    async fn ask(
        &self,
        operation: Guarded<'_>,
        subject: &Subject,
        uid: u32,
        interactive: bool,
    ) -> Decision {
        let (places, patience) = match interactive {
            true => (&self.users, THINKING),
            false => (&self.questions, PATIENCE),
        };
        let Ok(_place) = places.try_acquire() else {
            return Decision::Overloaded;
        };
        let _own = match interactive.then(|| self.place_of(uid)) {
            Some(None) => return Decision::Overloaded,
            Some(place) => place,
            None => None,
        };
        let Some(bus) = self.bus.borrow().clone() else {
            return Decision::Denied;
        };
        // polkit goes by sender and id when it is told to ask no longer.
        let id = self.number.fetch_add(1, Ordering::Relaxed).to_string();
        let question = Question {
            operation,
            subject,
            interactive,
            id: &id,
        };
        match timeout(patience, question.ask(&bus)).await {
            Ok(answer) => answer.unwrap_or_else(|error| {
                tracing::warn!("polkit does not decide: {error}");
                Decision::Denied
            }),
            Err(_) => {
                tracing::warn!(uid, "polkit has no answer within {} s", patience.as_secs());
                question.withdraw(&bus).await;
                Decision::Denied
            }
        }
    }

    /// A place among the questions that wait because of `uid`.
    fn place_of(&self, uid: u32) -> Option<PlaceOfUser<'_>> {
        let mut by_user = self.by_user();
        let count = by_user.entry(uid).or_default();
        if *count == OF_A_USER {
            return None;
        }
        *count += 1;
        Some(PlaceOfUser { polkit: self, uid })
    }

    fn by_user(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.by_user.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct PlaceOfUser<'a> {
    polkit: &'a Polkit,
    uid: u32,
}

impl Drop for PlaceOfUser<'_> {
    fn drop(&mut self) {
        let mut by_user = self.polkit.by_user();
        if let Some(count) = by_user.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                by_user.remove(&self.uid);
            }
        }
    }
}

/// What polkit is asked.
struct Question<'a> {
    operation: Guarded<'a>,
    subject: &'a Subject,
    interactive: bool,
    id: &'a str,
}

impl Question<'_> {
    async fn ask(&self, bus: &Connection) -> zbus::Result<Decision> {
        let flags = match self.interactive {
            true => CheckAuthorizationFlags::ALLOW_USER_INTERACTION,
            false => CheckAuthorizationFlags::empty(),
        };
        let (action, details) = (self.operation.action(), self.operation.details());
        let result = authority(bus)
            .await?
            .check_authorization(self.subject, action, &details, flags, self.id)
            .await?;
        Ok(match (result.is_authorized, result.is_challenge) {
            (true, _) => Decision::Granted,
            (false, true) => Decision::Challenge,
            (false, false) => Decision::Denied,
        })
    }

    async fn withdraw(&self, bus: &Connection) {
        let withdrawn = async {
            let authority = authority(bus).await?;
            authority.cancel_check_authorization(self.id).await
        };
        if let Err(error) = withdrawn.await {
            tracing::debug!(%error, "polkit goes on asking");
        }
    }
}

async fn authority(bus: &Connection) -> zbus::Result<AuthorityProxy<'_>> {
    AuthorityProxy::builder(bus)
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_lets_questions_wait_keeps_no_other_from_being_asked() {
        let polkit = Polkit::default();
        let held: Vec<_> = (0..10).map_while(|_| polkit.place_of(1000)).collect();
        assert_eq!(held.len(), OF_A_USER);
        assert!(polkit.place_of(1001).is_some());
        drop(held);
        assert!(polkit.place_of(1000).is_some());
        assert!(polkit.by_user().is_empty());
    }
}
