use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use tokio::sync::oneshot;
use troth_core::bundle::{Bundle, Head, Outcome};

use super::{Keep, Retention, directory::Directory};
use crate::{
    messages,
    poll::{milliseconds, now},
};

/// Bundles that may wait for the disk.
const QUEUE: usize = 4096;
/// Bytes of answers that may wait for the disk; a larger answer waits alone.
const QUEUE_BYTES: usize = 64 << 20;
/// How often what is too old is looked for, and how long all must have gone well to say so.
const ROUND: Duration = Duration::from_secs(60);

/// An answer to be kept.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) head: Head,
    pub(crate) answer: Bytes,
    pub(crate) outcome: Outcome,
}

enum Message {
    Keep(Box<Job>),
    Flush(oneshot::Sender<()>),
}

/// Hands bundles to the thread that writes them. Clones share one queue; the thread ends with the
/// last of them.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    keep: Keep,
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

/// What both sides of the queue know.
#[derive(Debug, Default)]
struct Shared {
    /// Bytes of answers in the queue.
    waiting: AtomicUsize,
    /// Bundles that were lost since it was last said that all is well.
    lost: AtomicU64,
}

impl Keeper {
    /// Starts the thread.
    pub(crate) fn start(keep: Keep, retention: Retention) -> io::Result<Self> {
        let (queue, receiver) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let mut writer = Writer {
            retention,
            directory: None,
            shared: Arc::clone(&shared),
        };
        thread::Builder::new()
            .name("evidence".to_owned())
            .spawn(move || writer.run(&receiver))?;
        Ok(Self {
            keep,
            queue,
            shared,
        })
    }

    /// Which answers it wants.
    pub(crate) fn keep(&self) -> Keep {
        self.keep
    }

    /// Takes a bundle, and never waits: where there is no room for it, it is lost.
    pub(crate) fn offer(&self, job: Job) {
        let size = job.answer.len();
        let room = |waiting: usize| {
            let sum = waiting.saturating_add(size);
            (waiting == 0 || sum <= QUEUE_BYTES).then_some(sum)
        };
        let waiting = &self.shared.waiting;
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        if waiting.fetch_update(set, fetch, room).is_err() {
            self.shared
                .lose(&"the disk is slower than the answers come");
        } else if self.queue.try_send(Message::Keep(Box::new(job))).is_err() {
            waiting.fetch_sub(size, Ordering::Relaxed);
            self.shared
                .lose(&"the disk is slower than the answers come");
        }
    }

    /// Returns when all that was taken before is written or lost.
    pub(crate) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = written.await;
        }
    }
}

impl Shared {
    /// A bundle is lost. It is said once, until all has been well for a while.
    fn lose(&self, reason: &dyn std::fmt::Display) {
        if self.lost.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                message_id = messages::EVIDENCE_LOST,
                "evidence is not kept: {reason}; attestation goes on"
            );
        }
    }
}

/// The thread.
struct Writer {
    retention: Retention,
    /// `None`: not opened yet.
    directory: Option<Directory>,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(&mut self, queue: &Receiver<Message>) {
        // Before the first bundle comes: what is there from before may be too old.
        if let Err(error) = self.directory() {
            self.shared.lose(&error);
        }
        let mut round = Instant::now();
        let mut lost = 0;
        loop {
            match queue.recv_timeout(ROUND.saturating_sub(round.elapsed())) {
                Ok(Message::Keep(job)) => {
                    let size = job.answer.len();
                    if let Err(error) = self.keep(*job) {
                        self.shared.lose(&error);
                    }
                    self.shared.waiting.fetch_sub(size, Ordering::Relaxed);
                }
                Ok(Message::Flush(done)) => {
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if round.elapsed() >= ROUND {
                round = Instant::now();
                lost = self.look_around(lost);
            }
        }
    }

    fn keep(&mut self, job: Job) -> io::Result<()> {
        let Job {
            mut head,
            answer,
            outcome,
        } = job;
        let directory = self.directory()?;
        let verdict = outcome.verdict;
        let outcome = outcome.canonical().map_err(io::Error::other)?;
        let (node, time_ms) = (head.node.clone(), head.time_ms);
        directory.put(&node, time_ms, verdict, |sequence| {
            head.sequence = Some(sequence);
            let bundle = Bundle {
                head,
                answer: &answer,
                outcome: Some(&outcome),
                runtime_policy: None,
                boot_policy: None,
            };
            let bytes = bundle.to_bytes().map_err(io::Error::other)?;
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(&bytes)?;
            gzip.finish()
        })
    }

    /// The directory, opened if it is not yet: it may come later, on a disk of its own.
    fn directory(&mut self) -> io::Result<&mut Directory> {
        if self.directory.is_none() {
            let open = Directory::open(self.retention.clone());
            self.directory = Some(open.map_err(|error| {
                let path = self.retention.directory.display();
                io::Error::new(error.kind(), format!("{path}: {error}"))
            })?);
        }
        self.directory
            .as_mut()
            .ok_or_else(|| io::Error::other("not open"))
    }

    /// Once a round; `before` is how many were lost when the last one ended.
    fn look_around(&mut self, before: u64) -> u64 {
        if let Some(directory) = &mut self.directory {
            directory.expire(milliseconds(now()));
        }
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if lost > 0 && lost == before {
            tracing::info!(lost, "evidence is kept again");
            self.shared.lost.fetch_sub(lost, Ordering::Relaxed);
            return 0;
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use troth_core::{appraise::NodeState, bundle::Word, identity::AgentId, tpm::PcrMask};

    use super::*;
    use crate::evidence::{list, read};

    fn job(node: &str, answer: &'static [u8], verdict: Word) -> Job {
        Job {
            head: Head {
                maker: "test".to_owned(),
                node: AgentId::new(node).unwrap(),
                time_ms: milliseconds(now()),
                sequence: None,
                nonce: "n".to_owned(),
                mask: PcrMask::default(),
                ima_entry: 0,
                ak: Vec::new(),
                state: NodeState::default(),
                criteria: None,
            },
            answer: Bytes::from_static(answer),
            outcome: Outcome {
                verdict,
                findings: Vec::new(),
                findings_total: 0,
                state: NodeState::default(),
            },
        }
    }

    fn retention(directory: &std::path::Path) -> Retention {
        Retention {
            directory: directory.to_owned(),
            count: 100,
            age: None,
            size: 1 << 20,
        }
    }

    #[tokio::test]
    async fn a_bundle_that_was_kept_is_read_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let keeper = Keeper::start(Keep::All, retention(root.path())).unwrap();
        keeper.offer(job("web1", b"{\"one\": 1}", Word::Trusted));
        keeper.offer(job("web1", b"{\"two\": 2}", Word::Failed));
        keeper.flush().await;
        let id = AgentId::new("web1").unwrap();
        let kept = list(root.path(), &id).unwrap();
        let verdicts: Vec<_> = kept.iter().map(|kept| kept.verdict).collect();
        assert_eq!(verdicts, [Word::Trusted, Word::Failed]);
        let bytes = read(root.path(), &id, 2).unwrap().unwrap();
        let mut plain = Vec::new();
        let mut gzip = flate2::write::GzDecoder::new(&mut plain);
        gzip.write_all(&bytes).unwrap();
        gzip.finish().unwrap();
        let bundle = Bundle::parse(&plain).unwrap();
        assert_eq!(bundle.answer, b"{\"two\": 2}");
        assert_eq!(bundle.head.sequence, Some(2));
        assert_eq!(bundle.recorded().unwrap().unwrap().verdict, Word::Failed);
        assert_eq!(read(root.path(), &id, 3).unwrap(), None);
    }

    #[tokio::test]
    async fn where_nothing_can_be_written_bundles_are_lost_and_nobody_waits() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        let keeper = Keeper::start(Keep::All, retention(&file.join("evidence"))).unwrap();
        for _ in 0..3 {
            keeper.offer(job("web1", b"{}", Word::Trusted));
        }
        keeper.flush().await;
        // Once at the start, and each of the three.
        assert_eq!(keeper.shared.lost.load(Ordering::Relaxed), 4);
        assert_eq!(keeper.shared.waiting.load(Ordering::Relaxed), 0);

        std::fs::remove_file(&file).unwrap();
        keeper.offer(job("web1", b"{}", Word::Trusted));
        keeper.flush().await;
        let id = AgentId::new("web1").unwrap();
        let kept = list(&file.join("evidence"), &id).unwrap();
        assert_eq!(kept.len(), 1);
    }

    #[test]
    fn what_waits_for_the_disk_is_bounded() {
        let (queue, receiver) = sync_channel(3);
        let keeper = Keeper {
            keep: Keep::All,
            queue,
            shared: Arc::default(),
        };
        let large: &'static [u8] = vec![b' '; QUEUE_BYTES + 1].leak();
        // Alone it is taken, whatever its size; beside others it is not.
        for answer in [large, b"{}", large, b"{}"] {
            keeper.offer(job("web1", answer, Word::Trusted));
        }
        assert_eq!(receiver.try_iter().count(), 1);
        assert_eq!(keeper.shared.lost.load(Ordering::Relaxed), 3);
        keeper.shared.waiting.store(0, Ordering::Relaxed);
        for _ in 0..5 {
            keeper.offer(job("web1", b"{}", Word::Trusted));
        }
        assert_eq!(receiver.try_iter().count(), 3);
        assert_eq!(keeper.shared.lost.load(Ordering::Relaxed), 5);
        assert_eq!(keeper.shared.waiting.load(Ordering::Relaxed), 6);
    }
}
