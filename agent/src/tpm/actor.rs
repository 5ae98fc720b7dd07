use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{BoundQuote, KeyBlobs, KeyKind, QuoteRequest, Tpm, TpmError, quote::bound_quote};

/// Requests that may wait. A TPM that needs a second for a quote would keep the last one waiting
/// for half a minute, longer than any verifier does.
const QUEUE: usize = 32;

/// Stack of the thread; tpm2-tss keeps whole TPM structures on it.
const STACK: usize = 512 * 1024;

/// Longest wait for a quote: a slow chip and a full queue.
const QUOTE_DEADLINE: Duration = Duration::from_secs(30);

/// Longest wait for a liveness check; the watchdog interval is longer than this.
pub(crate) const PING_DEADLINE: Duration = Duration::from_secs(20);

/// Opens the TPM; called again when the connection broke.
pub type Opener = Box<dyn FnMut() -> Result<Box<dyn Tpm>, TpmError> + Send>;

/// Work for the thread, or its end.
enum Job {
    Run(Box<dyn FnOnce(&mut Owner) + Send>),
    Stop,
}

/// How long a stop waits for the command under way. A TPM that hangs for longer keeps what was
/// loaded; the service manager should not have to wait for it.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// The thread that owns the TPM. It flushes what it loaded when it ends.
#[derive(Debug)]
pub struct Actor {
    handle: TpmHandle,
    stop: Arc<AtomicBool>,
    /// Disconnected when the thread has closed the TPM.
    closed: Receiver<Infallible>,
}

/// Sends requests to the TPM thread. Requests are served one after the other.
#[derive(Clone, Debug)]
pub struct TpmHandle {
    jobs: SyncSender<Job>,
}

/// The keys that every connection to the TPM has to have loaded.
#[derive(Clone, Debug)]
struct Keys {
    kind: KeyKind,
    ak: KeyBlobs,
}

struct Owner {
    open: Opener,
    tpm: Option<Box<dyn Tpm>>,
    keys: Option<Keys>,
}

impl Actor {
    /// Starts the thread. The TPM is opened by the first request.
    pub fn start(open: Opener) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE);
        let (open_until_closed, closed) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        std::thread::Builder::new()
            .name("tpm".into())
            .stack_size(STACK)
            .spawn(move || {
                let owner = Owner {
                    open,
                    tpm: None,
                    keys: None,
                };
                owner.run(&queue, &asked);
                drop(open_until_closed);
            })?;
        let handle = TpmHandle { jobs };
        Ok(Self {
            handle,
            stop,
            closed,
        })
    }

    /// A handle for sending requests.
    pub fn handle(&self) -> TpmHandle {
        self.handle.clone()
    }

    /// Waits for the request under way, flushes every handle and session, closes the TPM.
    /// Requests that wait or come later get [`TpmError::Stopped`].
    pub fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes an idle thread; with a full queue it is not idle.
        let _ = self.handle.jobs.try_send(Job::Stop);
        if self.closed.recv_timeout(STOP_DEADLINE) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the TPM does not answer; keys stay loaded in it until it is reset");
        }
    }
}

impl TpmHandle {
    /// Runs `job` on the TPM thread with the TPM opened and the keys loaded.
    ///
    /// # Errors
    /// What `job` returns; [`TpmError::Deadline`] after `deadline`, whether the job was begun or
    /// not; [`TpmError::Overloaded`] when too many requests wait.
    pub async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        deadline: Duration,
        job: impl FnOnce(&mut dyn Tpm) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        self.submit(what, deadline, move |owner| owner.with_tpm(job))
            .await
    }

    /// From now on, every new connection to the TPM gets this AK loaded before anything else.
    pub async fn keep_loaded(&self, kind: KeyKind, ak: KeyBlobs) -> Result<(), TpmError> {
        self.submit("keeping the AK", QUOTE_DEADLINE, move |owner| {
            owner.keys = Some(Keys { kind, ak });
            Ok(())
        })
        .await
    }

    /// Binds the transport key and quotes, as one request. When the connection or the AK was lost
    /// (resource manager restarted, TPM reset), both are restored and the quote is tried again.
    pub async fn quote(&self, request: QuoteRequest) -> Result<BoundQuote, TpmError> {
        let first = request.clone();
        let quote = self.call("quote", QUOTE_DEADLINE, move |tpm| bound_quote(tpm, &first));
        match quote.await {
            Err(error) if error.needs_reopening() => {
                tracing::warn!("{error}");
                self.call("quote", QUOTE_DEADLINE, move |tpm| {
                    bound_quote(tpm, &request)
                })
                .await
            }
            result => result,
        }
    }

    /// Proves that the TPM answers, through the same queue as every other request.
    pub async fn ping(&self) -> Result<(), TpmError> {
        self.call("liveness check", PING_DEADLINE, |tpm| tpm.ping())
            .await
    }

    async fn submit<T: Send + 'static>(
        &self,
        what: &'static str,
        deadline: Duration,
        work: impl FnOnce(&mut Owner) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        let (answer, result) = oneshot::channel();
        let until = Instant::now() + deadline;
        let job = Box::new(move |owner: &mut Owner| {
            // Nobody waits for the answer any more: the TPM's time belongs to the next request.
            if !answer.is_closed() && Instant::now() < until {
                let _ = answer.send(work(owner));
            }
        });
        self.jobs
            .try_send(Job::Run(job))
            .map_err(|error| match error {
                TrySendError::Full(_) => TpmError::Overloaded,
                TrySendError::Disconnected(_) => TpmError::Stopped,
            })?;
        match tokio::time::timeout(deadline, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(TpmError::Stopped),
            Err(_) => Err(TpmError::Deadline {
                what,
                seconds: deadline.as_secs(),
            }),
        }
    }
}

impl Keys {
    /// The EK is needed as the AK's parent only.
    fn load(&self, tpm: &mut dyn Tpm) -> Result<(), TpmError> {
        tpm.load_ek(self.kind)?;
        let loaded = tpm.load_ak(&self.ak);
        tpm.flush_ek();
        loaded
    }
}

impl Owner {
    /// Serves until a stop is asked for. Dropping `self` closes the TPM.
    fn run(mut self, queue: &Receiver<Job>, stop: &AtomicBool) {
        while let Ok(Job::Run(job)) = queue.recv() {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            job(&mut self);
        }
    }

    fn with_tpm<T>(
        &mut self,
        job: impl FnOnce(&mut dyn Tpm) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let mut tpm = match self.tpm.take() {
            Some(tpm) => tpm,
            None => {
                let mut tpm = (self.open)()?;
                if let Some(keys) = &self.keys {
                    keys.load(tpm.as_mut())?;
                    tracing::info!("connection to the TPM opened again, AK loaded");
                }
                tpm
            }
        };
        let result = job(tpm.as_mut());
        // Dropping the TPM closes the connection; the next request opens a new one.
        if !result.as_ref().is_err_and(TpmError::needs_reopening) {
            self.tpm = Some(tpm);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use troth_core::tpm::{HashAlgorithm, PcrMask};

    use super::*;
    use crate::tpm::{
        AkTemplate,
        sim::{Chip, Faults},
    };

    const KIND: KeyKind = KeyKind::EccP256;

    fn start(chip: &Chip) -> Actor {
        let chip = chip.clone();
        Actor::start(Box::new(move || Ok(Box::new(chip.open()?)))).unwrap()
    }

    async fn with_ak(actor: &Actor) {
        let tpm = actor.handle();
        let load = |tpm: &mut dyn Tpm| {
            tpm.load_ek(KIND)?;
            let blobs = tpm.create_ak(&AkTemplate {
                kind: KIND,
                hash: HashAlgorithm::Sha256,
                scheme: KIND.default_scheme(),
            })?;
            tpm.load_ak(&blobs)?;
            tpm.flush_ek();
            Ok(blobs)
        };
        let blobs = tpm.call("AK", PING_DEADLINE, load).await.unwrap();
        tpm.keep_loaded(KIND, blobs).await.unwrap();
    }

    fn request() -> QuoteRequest {
        let bank = HashAlgorithm::Sha256;
        QuoteRequest {
            nonce: b"n".to_vec(),
            bank,
            mask: PcrMask::default(),
            binding: bank.digest(&[b"key"]),
        }
    }

    #[tokio::test]
    async fn a_lost_connection_is_opened_again_with_the_same_ak() {
        let chip = Chip::manufacture().unwrap();
        let actor = start(&chip);
        with_ak(&actor).await;
        let tpm = actor.handle();
        chip.set_faults(Faults {
            lose_in_quote: 1,
            open: 1,
            load: 1,
            ..Faults::default()
        });
        let closed = tpm.quote(request()).await.unwrap_err();
        assert!(matches!(closed, TpmError::Open { .. }), "{closed}");
        let refused = tpm.quote(request()).await.unwrap_err();
        assert!(matches!(refused, TpmError::Command { .. }), "{refused}");
        tpm.quote(request()).await.unwrap();
        chip.set_faults(Faults {
            lose_in_quote: 1,
            ..Faults::default()
        });
        tpm.quote(request()).await.unwrap();
        assert_eq!(chip.loaded(), 1, "the AK, once");
        actor.stop();
    }

    #[tokio::test]
    async fn a_stop_flushes_everything_although_handles_are_still_held() {
        let chip = Chip::manufacture().unwrap();
        let actor = start(&chip);
        with_ak(&actor).await;
        let tpm = actor.handle();
        assert_eq!(chip.loaded(), 1);
        actor.stop();
        assert_eq!(chip.loaded(), 0);
        assert_eq!(tpm.ping().await, Err(TpmError::Stopped));
    }

    #[tokio::test]
    async fn a_deadline_ends_the_wait_and_what_nobody_waits_for_is_not_begun() {
        let actor = start(&Chip::manufacture().unwrap());
        let tpm = actor.handle();
        let (started, wait_for_start) = oneshot::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let busy = tokio::spawn({
            let tpm = tpm.clone();
            async move {
                tpm.call("slow", PING_DEADLINE, move |_| {
                    started.send(()).unwrap();
                    let _ = held.recv();
                    Ok(())
                })
                .await
            }
        });
        wait_for_start.await.unwrap();
        let begun = Arc::new(AtomicBool::new(false));
        let flag = begun.clone();
        let late = tpm
            .call("late", Duration::from_millis(5), move |_| {
                flag.store(true, Ordering::SeqCst);
                Ok(())
            })
            .await;
        assert!(matches!(late, Err(TpmError::Deadline { what: "late", .. })));
        release.send(()).unwrap();
        busy.await.unwrap().unwrap();
        tpm.ping().await.unwrap();
        assert!(!begun.load(Ordering::SeqCst));
        actor.stop();
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let actor = start(&Chip::manufacture().unwrap());
        let tpm = actor.handle();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let mut waiting = vec![tokio::spawn({
            let tpm = tpm.clone();
            async move {
                tpm.call("slow", PING_DEADLINE, move |_| {
                    let _ = held.recv();
                    Ok(())
                })
                .await
            }
        })];
        for _ in 0..=QUEUE + 1 {
            let tpm = tpm.clone();
            waiting.push(tokio::spawn(async move { tpm.ping().await }));
        }
        tokio::task::yield_now().await;
        assert_eq!(tpm.ping().await, Err(TpmError::Overloaded));
        release.send(()).unwrap();
        for task in waiting {
            let _ = task.await.unwrap();
        }
        tpm.ping().await.unwrap();
        actor.stop();
    }
}
