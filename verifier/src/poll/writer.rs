use std::{collections::HashMap, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    messages,
    store::{MAX_UPDATES, RecordUpdate, Store},
};

/// How long a verdict waits for others to share its transaction.
const BATCH_TIME: Duration = Duration::from_millis(50);
/// Verdicts that may wait for the database before nodes have to.
const QUEUE: usize = 4096;
/// Wait after a failed transaction.
const RETRY: Duration = Duration::from_secs(1);

enum Message {
    Update(RecordUpdate, oneshot::Sender<()>),
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

    /// Returns when the record, or a newer one of the same node, is in the database: within a
    /// batch's time, or as long as the database cannot be written.
    pub(super) async fn write(&self, update: RecordUpdate) {
        let (done, written) = oneshot::channel();
        // The task outlives every sender, so a send fails only while the process stops.
        if self.queue.send(Message::Update(update, done)).await.is_ok() {
            let _ = written.await;
        }
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
    let mut batch = Batch::default();
    let mut open = true;
    while open || !batch.updates.is_empty() {
        if open && batch.updates.is_empty() && !batch.urgent {
            match queue.recv().await {
                Some(message) => batch.take(message),
                None => return,
            }
        }
        let end = Instant::now() + BATCH_TIME;
        while open && batch.updates.len() < MAX_UPDATES && !batch.urgent {
            match timeout_at(end, queue.recv()).await {
                Ok(Some(message)) => batch.take(message),
                Ok(None) => open = false,
                Err(_) => break,
            }
        }
        let updates: Vec<_> = batch.updates.values().cloned().collect();
        match store.update_records(&updates).await {
            Ok(()) => {
                for done in std::mem::take(&mut batch).waiting {
                    let _ = done.send(());
                }
            }
            Err(error) => {
                tracing::error!(
                    message_id = messages::DATABASE_LOST,
                    %error,
                    nodes = updates.len(),
                    "verdicts of {} nodes not written, trying again",
                    updates.len()
                );
                if !open {
                    return;
                }
                sleep(RETRY).await;
            }
        }
    }
}

/// What the next transaction writes, and who waits for it.
#[derive(Default)]
struct Batch {
    updates: HashMap<String, RecordUpdate>,
    waiting: Vec<oneshot::Sender<()>>,
    /// Somebody asked for it to be written now.
    urgent: bool,
}

impl Batch {
    fn take(&mut self, message: Message) {
        match message {
            Message::Update(update, done) => {
                self.updates.insert(update.agent_id.clone(), update);
                self.waiting.push(done);
            }
            Message::Flush(done) => {
                self.waiting.push(done);
                self.urgent = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewNode, PolicyChoices, Schema};

    #[tokio::test]
    async fn newest_record_of_every_node_is_in_the_database_when_its_write_returns() {
        let root = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", root.path().join("v.sqlite").display());
        let store = Store::open(&url, Schema::Verifier).await.unwrap();
        for id in ["a", "b"] {
            let node = NewNode {
                agent_id: id.into(),
                generation: 1,
                verifier_id: "default".into(),
                enrolment: String::from("{}").into(),
                operational_state: 1,
                record: "{}".into(),
            };
            store
                .insert_node(&node, &PolicyChoices::default())
                .await
                .unwrap();
        }
        let (writer, task) = Writer::start(store.clone());
        let write = |id: &str, count: usize| {
            let (writer, agent_id) = (writer.clone(), id.to_owned());
            async move {
                let update = RecordUpdate {
                    agent_id,
                    generation: 1,
                    operational_state: 3,
                    record: format!("{count}"),
                };
                writer.write(update).await;
            }
        };
        for count in [1, 2] {
            tokio::join!(write("a", count), write("b", count));
            for row in store.nodes("default").await.unwrap() {
                assert_eq!((row.operational_state, row.record), (3, format!("{count}")));
            }
        }
        drop(writer);
        task.await.unwrap();
    }
}
