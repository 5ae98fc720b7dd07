//! The TLS certificate while the agent serves: renewed before it ends, read again when its file
//! changes, shown to new connections, and announced to the registrar.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};
use troth_core::identity::AgentId;
use troth_daemon::{
    tls::ServedIdentity,
    watch::{Watch, stamp},
};

use crate::{
    identity::mtls::{self, Files, Maker, MtlsError, Term},
    messages,
    registration::{Backoff, RegistrarHandle, wait_after},
};

/// How often a certificate is judged whose files have not changed, and how often its administrator
/// is warned.
const CHECK: Duration = Duration::from_secs(24 * 60 * 60);

/// The wait after a certificate that could not be read or renewed.
const RETRY: Duration = Duration::from_secs(10 * 60);

/// Keeps the certificate of a registered agent good.
#[derive(Debug)]
pub(crate) struct Renewal {
    /// Where certificate and key are.
    pub files: Files,
    /// What the listener shows.
    pub served: ServedIdentity,
    /// The address that a new certificate is for.
    pub contact: String,
    /// Whom a new certificate is for.
    pub id: AgentId,
    /// The certificate that the listener shows, PEM.
    pub shown: String,
    /// Who is told of a new one.
    pub registrar: RegistrarHandle,
    /// First and longest wait between two tries to announce a certificate.
    pub waits: (Duration, Duration),
}

/// A certificate that is served but that the registrar does not show yet.
#[derive(Debug)]
struct Announcement {
    backoff: Backoff,
    next_try: Instant,
}

/// A certificate that was judged.
#[derive(Debug)]
struct Checked {
    /// It is another than before, and is shown from now on.
    changed: bool,
    /// When to judge it again.
    wait: Duration,
}

impl Renewal {
    /// Goes on for as long as the agent serves.
    pub(crate) async fn keep(mut self) -> Infallible {
        let files = [self.files.certificate.clone(), self.files.key.clone()];
        let mut watch = Watch::new(files.clone());
        let mut seen = None;
        let mut check = Check::now();
        let mut announcement: Option<Announcement> = None;
        loop {
            // What is seen before it is read cannot change unseen.
            let stamps = files.each_ref().map(|path| stamp(path));
            if seen != Some(stamps) || check.wait().is_zero() {
                seen = Some(stamps);
                let wait = match self.check() {
                    Ok(checked) => {
                        if checked.changed {
                            announcement = Some(self.new_announcement());
                        }
                        checked.wait
                    }
                    Err(error) => {
                        tracing::warn!("the TLS certificate stays as it was: {error}");
                        RETRY
                    }
                };
                check = Check::after(wait);
            }
            if let Some(due) = announcement.take_if(|a| Instant::now() >= a.next_try) {
                announcement = self.announce(due).await;
            }
            let next_try = announcement
                .as_ref()
                .map(|a| a.next_try.saturating_duration_since(Instant::now()));
            let wait = check.wait();
            let wait = next_try.map_or(wait, |next_try| next_try.min(wait));
            tokio::select! {
                () = sleep(wait) => {}
                () = watch.changed() => {}
            }
        }
    }

    /// Reads the certificate, renews it if it is time, and shows it if it is another than before.
    fn check(&mut self) -> Result<Checked, MtlsError> {
        let found = mtls::load(&self.files, &self.id, &self.contact)?;
        let changed = self.shown != found.certificate_pem;
        if changed {
            self.served.replace(found.tls);
            tracing::info!("new connections see the new TLS certificate");
            self.shown = found.certificate_pem;
        }
        let now = SystemTime::now();
        let wait = found.term.map_or(CHECK, |term| {
            self.warn_of_the_end(&term, now);
            term.renewal_due_in(now).map_or(CHECK, |due| due.min(CHECK))
        });
        Ok(Checked { changed, wait })
    }

    fn warn_of_the_end(&self, term: &Term, now: SystemTime) {
        let advice = match term.maker {
            Maker::Us => return,
            Maker::Keylime => {
                "Keylime's agent made it, and this one makes another then: Keylime's verifier \
                 learns of that by `keylime_tenant -c update`"
            }
            Maker::Administrator => "this agent did not make it, so put a new one there",
        };
        if term.ends_soon(now) {
            let days = term.left(now).as_secs() / (24 * 60 * 60);
            tracing::warn!(
                message_id = messages::HOST_CERTIFICATE_ENDS,
                node_id = %self.id,
                path = %self.files.certificate.display(),
                days = days,
                "the TLS certificate {} ends in {days} days; {advice}",
                self.files.certificate.display()
            );
        }
    }

    fn new_announcement(&self) -> Announcement {
        let (initial, longest) = self.waits;
        Announcement {
            backoff: Backoff::new(initial, longest),
            next_try: Instant::now(),
        }
    }

    /// Registers again. Only what was activated is known to the registrar; what was not comes
    /// back, to be tried later.
    async fn announce(&self, mut announcement: Announcement) -> Option<Announcement> {
        let error = match self.registrar.register(Some(self.shown.clone())).await {
            Some(Err(error)) => error,
            Some(Ok(_)) => {
                tracing::info!("the registrar shows the new TLS certificate");
                return None;
            }
            // The agent stops.
            None => return None,
        };
        let wait = if error.is_final {
            CHECK
        } else {
            wait_after(&error, &mut announcement.backoff)
        };
        tracing::warn!(
            "the registrar does not know the new TLS certificate yet: {error}; trying again in \
             {:.1} s",
            wait.as_secs_f64()
        );
        announcement.next_try = Instant::now() + wait;
        Some(announcement)
    }
}

/// When a certificate is judged again. Its end is a date, so the clock decides: one that was set
/// while the agent slept is seen the next time that it wakes up.
#[derive(Debug)]
struct Check {
    decided: SystemTime,
    due: SystemTime,
}

impl Check {
    fn now() -> Self {
        Self::after(Duration::ZERO)
    }

    fn after(wait: Duration) -> Self {
        let decided = SystemTime::now();
        Self {
            decided,
            due: decided + wait,
        }
    }

    /// What is left until then; nothing when the clock was set back behind the decision.
    fn wait(&self) -> Duration {
        let now = SystemTime::now();
        if now < self.decided {
            return Duration::ZERO;
        }
        self.due.duration_since(now).unwrap_or_default()
    }
}
