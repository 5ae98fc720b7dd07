use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde::Serialize;
use tokio::task::JoinHandle;
use troth_core::wire::{Envelope, QuoteResponse};

use super::{
    EvidenceError,
    escape::escape_into,
    ima::{ImaList, Reader},
};
use crate::local::Receipt;

/// Evidence as Keylime's API has it: JSON, as one text or in pieces.
#[derive(Debug)]
pub enum Answer {
    /// It fits into one piece.
    Whole(Bytes),
    /// The IMA list is long, and read as it is sent.
    Streamed(Pieces),
}

/// 200 with `results`.
pub(crate) fn envelope<T: Serialize>(results: T) -> Envelope<T> {
    Envelope {
        code: 200,
        status: "Success".into(),
        results: Some(results),
    }
}

/// Ends `results` and the envelope.
const CLOSE: &[u8] = b"}}";

/// `head` with the logs as the last members of `results`.
pub(super) async fn answer(
    head: &QuoteResponse,
    ima: Option<Reader>,
    boot_log: Option<Bytes>,
    receipt: Receipt,
) -> Result<Answer, EvidenceError> {
    let mut text = serde_json::to_vec(&envelope(head)).map_err(EvidenceError::Encode)?;
    text.truncate(text.len() - CLOSE.len());
    let mut tail = Vec::new();
    let mut pieces = Pieces::default();
    if let Some(reader) = ima {
        tail.extend_from_slice(b"\",\"ima_measurement_list_entry\":");
        tail.extend_from_slice(reader.first_entry().to_string().as_bytes());
        text.extend_from_slice(b",\"ima_measurement_list\":\"");
        let read = tokio::task::spawn_blocking(|| step(reader)).await;
        let (reader, first) = read.map_err(|_| EvidenceError::Interrupted)?;
        match first {
            Ok(Some(entries)) => text.extend_from_slice(&entries),
            Ok(None) => {}
            Err(source) => return Err(unreadable(reader.list(), source)),
        }
        if reader.is_at_end() {
            receipt.sent(Some(&reader));
        } else {
            pieces.idle = Some(reader);
            pieces.receipt = Some(receipt);
        }
    } else {
        receipt.sent(None);
    }
    if let Some(log) = boot_log {
        tail.extend_from_slice(b",\"mb_measurement_list\":\"");
        pieces
            .after
            .push_back(Bytes::from(std::mem::take(&mut tail)));
        pieces.after.push_back(log);
        tail.push(b'"');
    }
    tail.extend_from_slice(CLOSE);
    pieces.after.push_back(Bytes::from(tail));
    if pieces.idle.is_some() {
        pieces.before = Some(Bytes::from(text));
        return Ok(Answer::Streamed(pieces));
    }
    for piece in pieces.after {
        text.extend_from_slice(&piece);
    }
    Ok(Answer::Whole(Bytes::from(text)))
}

fn unreadable(list: &ImaList, source: io::Error) -> EvidenceError {
    EvidenceError::Log {
        path: list.path().display().to_string(),
        source,
    }
}

type Step = (Reader, io::Result<Option<Bytes>>);

/// Reads the next entries, as they stand in a JSON string. Runs where it may block.
fn step(mut reader: Reader) -> Step {
    let entries = reader.next_entries().map(|entries| {
        entries.map(|entries| {
            let mut text = Vec::with_capacity(entries.len() + entries.len() / 32);
            escape_into(&mut text, &entries);
            Bytes::from(text)
        })
    });
    (reader, entries)
}

/// `before`, the rest of the list, `after`. Never more than one piece of the list in memory.
#[derive(Debug, Default)]
pub struct Pieces {
    before: Option<Bytes>,
    idle: Option<Reader>,
    reading: Option<JoinHandle<Step>>,
    after: VecDeque<Bytes>,
    /// Of the list.
    receipt: Option<Receipt>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(before) = self.before.take() {
            return Poll::Ready(Some(Ok(Frame::data(before))));
        }
        if let Some(reader) = self.idle.take() {
            self.reading = Some(tokio::task::spawn_blocking(|| step(reader)));
        }
        if let Some(reading) = &mut self.reading {
            let read = ready!(Pin::new(reading).poll(context));
            self.reading = None;
            let (reader, entries) = read.map_err(io::Error::other)?;
            let entries = entries?;
            if !reader.is_at_end() {
                self.idle = Some(reader);
            } else if let Some(receipt) = self.receipt.take() {
                receipt.sent(Some(&reader));
            }
            if let Some(entries) = entries {
                return Poll::Ready(Some(Ok(Frame::data(entries))));
            }
        }
        Poll::Ready(self.after.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.before.is_none()
            && self.idle.is_none()
            && self.reading.is_none()
            && self.after.is_empty()
    }
}
