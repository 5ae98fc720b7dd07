use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Response, StatusCode,
    body::{Body as HttpBody, Frame},
    header::{CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;
use tokio::task::JoinHandle;
use troth_core::wire::{Envelope, QuoteResponse};
use troth_daemon::server::{Body, full, json};

use super::escape::escape_into;
use crate::evidence::ima::Reader;

/// 200 with data.
pub(super) fn success<T: Serialize>(results: &T) -> Response<Body> {
    json(StatusCode::OK, &envelope(results))
}

/// 200 without data.
pub(super) fn done() -> Response<Body> {
    success(&())
}

/// An error with its reason.
pub(super) fn error(status: StatusCode, reason: &str) -> Response<Body> {
    let results = Some(serde_json::Map::new());
    json(
        status,
        &Envelope {
            code: status.as_u16(),
            status: reason.to_owned(),
            results,
        },
    )
}

fn envelope<T>(results: T) -> Envelope<T> {
    Envelope {
        code: 200,
        status: "Success".into(),
        results: Some(results),
    }
}

/// 200 with evidence. A long IMA list goes out in pieces as it is read; what fits into one piece is
/// sent whole, with its length.
pub(super) async fn evidence_body(
    head: &QuoteResponse,
    ima: Option<Reader>,
    boot_log: Option<Bytes>,
) -> Response<Body> {
    let failed = |reason: &str| {
        tracing::warn!("no evidence: {reason}");
        let reason = format!("Unable to retrieve quote: {reason}");
        error(StatusCode::INTERNAL_SERVER_ERROR, &reason)
    };
    let mut text = match serde_json::to_vec(&envelope(head)) {
        Ok(text) => text,
        Err(reason) => return failed(&reason.to_string()),
    };
    // The logs become the last members of `results`.
    text.truncate(text.len() - CLOSE.len());
    let mut tail = Vec::new();
    let mut body = match ima {
        None => EvidenceBody::default(),
        Some(reader) => {
            tail.extend_from_slice(b"\",\"ima_measurement_list_entry\":");
            tail.extend_from_slice(reader.first_entry().to_string().as_bytes());
            text.extend_from_slice(b",\"ima_measurement_list\":\"");
            let (reader, first) = match tokio::task::spawn_blocking(|| step(reader)).await {
                Ok(read) => read,
                Err(reason) => return failed(&reason.to_string()),
            };
            match first {
                Ok(Some(entries)) => text.extend_from_slice(&entries),
                Ok(None) => {}
                Err(reason) => return failed(&reason.to_string()),
            }
            let more = (!reader.is_at_end()).then_some(reader);
            EvidenceBody {
                idle: more,
                ..EvidenceBody::default()
            }
        }
    };
    if let Some(log) = boot_log {
        tail.extend_from_slice(b",\"mb_measurement_list\":\"");
        body.after.push_back(Bytes::from(std::mem::take(&mut tail)));
        body.after.push_back(log);
        tail.push(b'"');
    }
    tail.extend_from_slice(CLOSE);
    body.after.push_back(Bytes::from(tail));
    let mut response = if body.idle.is_some() {
        body.before = Some(Bytes::from(text));
        Response::new(body.boxed_unsync())
    } else {
        for piece in body.after {
            text.extend_from_slice(&piece);
        }
        Response::new(full(text))
    };
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Ends `results` and the envelope.
const CLOSE: &[u8] = b"}}";

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
struct EvidenceBody {
    before: Option<Bytes>,
    idle: Option<Reader>,
    reading: Option<JoinHandle<Step>>,
    after: VecDeque<Bytes>,
}

impl HttpBody for EvidenceBody {
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
            if !reader.is_at_end() {
                self.idle = Some(reader);
            }
            if let Some(entries) = entries? {
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
