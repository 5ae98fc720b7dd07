use http_body_util::BodyExt;
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;
use troth_core::wire::Envelope;
use troth_daemon::server::{Body, full, json};

use crate::evidence::{Answer, envelope};

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

/// 200 with evidence. What fits into one piece is sent whole, with its length.
pub(super) fn evidence(answer: Answer) -> Response<Body> {
    let mut response = Response::new(match answer {
        Answer::Whole(text) => full(text),
        Answer::Streamed(pieces) => pieces.boxed_unsync(),
    });
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
