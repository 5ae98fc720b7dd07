use std::{collections::HashMap, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use crate::store::{RecordUpdate, Store};

/// How long a verdict waits for others to share its transaction.
const BATCH_TIME: Duration = Duration::from_millis(50);
/// Nodes in one transaction.
const BATCH_SIZE: usize = 1024;
/// Verdicts that may wait for the database before nodes have to.
const QUEUE: usize = 4096;
/// Wait after a failed transaction.
const RETRY: Duration = Duration::from_secs(1);

enum Message {
    Update(RecordUpdate),
    Flush(oneshot::Sender<()>),
}

/// Writes records in batches, the newest of each node. Clones share one queue.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
}

impl Writer {
    /// Starts the writing task; it ends when the last [`Writer`] is dropped.
    pub(super) fn start(store: Store) -> (Self, JoinHandle<()>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue }, tokio::spawn(run(store, receiver)))
    }

    /// Queues a record; waits only when the database is far behind.
    pub(super) async fn write(&self, update: RecordUpdate) {
        // The task outlives every sender, so a send fails only while the process stops.
        let _ = self.queue.send(Message::Update(update)).await;
    }

    /// Returns when everything queued before is in the database.
    pub(super) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            let _ = written.await;
        }
    }
}

async fn run(store: Store, mut queue: mpsc::Receiver<Message>) {
    let mut batch: HashMap<String, RecordUpdate> = HashMap::new();
    let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
    let mut open = true;
    while open || !batch.is_empty() {
        if open && batch.is_empty() && waiting.is_empty() {
            match queue.recv().await {
                Some(message) => take(message, &mut batch, &mut waiting),
                None => return,
            }
        }
        let end = Instant::now() + BATCH_TIME;
        while open && batch.len() < BATCH_SIZE && waiting.is_empty() {
            match timeout_at(end, queue.recv()).await {
                Ok(Some(message)) => take(message, &mut batch, &mut waiting),
                Ok(None) => open = false,
                Err(_) => break,
            }
        }
        let updates: Vec<_> = batch.values().cloned().collect();
        match store.update_records(&updates).await {
            Ok(()) => {
                batch.clear();
                for done in waiting.drain(..) {
                    let _ = done.send(());
                }
            }
            Err(error) => {
                tracing::error!(%error, nodes = updates.len(), "verdicts not written, trying again");
                if !open {
                    return;
                }
                sleep(RETRY).await;
            }
        }
    }
}

fn take(
    message: Message,
    batch: &mut HashMap<String, RecordUpdate>,
    waiting: &mut Vec<oneshot::Sender<()>>,
) {
    match message {
        Message::Update(update) => {
            batch.insert(update.agent_id.clone(), update);
        }
        Message::Flush(done) => waiting.push(done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewNode, PolicyChoice, Schema};

    #[tokio::test]
    async fn newest_record_of_every_node_is_written_before_a_flush_returns() {
        let root = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", root.path().join("v.sqlite").display());
        let store = Store::open(&url, Schema::Verifier).await.unwrap();
        for id in ["a", "b"] {
            let node = NewNode {
                agent_id: id.into(),
                generation: 1,
                verifier_id: "default".into(),
                enrolment: "{}".into(),
                operational_state: 1,
                record: "{}".into(),
            };
            store.insert_node(&node, &PolicyChoice::None).await.unwrap();
        }
        let (writer, task) = Writer::start(store.clone());
        for count in 0..500 {
            for id in ["a", "b"] {
                let record = format!("{count}");
                let update = RecordUpdate {
                    agent_id: id.into(),
                    generation: 1,
                    operational_state: 3,
                    record,
                };
                writer.write(update).await;
            }
        }
        writer.flush().await;
        for row in store.nodes("default").await.unwrap() {
            assert_eq!((row.operational_state, row.record.as_str()), (3, "499"));
        }
        drop(writer);
        task.await.unwrap();
    }
}
