//! HTTP/1.1 server: an accept loop that hands each request its peer's address and certificate.

use std::{
    convert::Infallible, future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{ServerConfig, pki_types::CertificateDer};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use x509_cert::{
    Certificate,
    der::{Decode, asn1::PrintableStringRef, asn1::Utf8StringRef, oid::db::rfc4519::CN},
};

use crate::shutdown::Shutdown;

/// How long running requests may take after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// How long any request body may take.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes per second that a body which may be larger has to come at.
const BODY_RATE: usize = 256 * 1024;

/// The body of every answer: a buffer, or a stream that may fail half-way.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Answers requests; one clone per connection.
pub trait Handler: Clone + Send + 'static {
    /// Answers one request. [`Peer`] is among its extensions.
    fn handle(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;
}

/// Who is at the other end of a request's connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Remote address.
    pub address: SocketAddr,
    /// Did the request come over TLS?
    pub tls: bool,
    /// The client certificate, verified in the handshake.
    pub certificate: Option<CertificateDer<'static>>,
}

impl Peer {
    /// The subject's commonName of the client certificate.
    pub fn common_name(&self) -> Option<String> {
        let certificate = Certificate::from_der(self.certificate.as_ref()?).ok()?;
        let subject = certificate.tbs_certificate().subject();
        subject
            .iter()
            .find(|attribute| attribute.oid == CN)
            .and_then(|attribute| {
                let value = &attribute.value;
                value
                    .decode_as::<Utf8StringRef<'_>>()
                    .map(|text| text.as_str().to_owned())
                    .or_else(|_| {
                        value
                            .decode_as::<PrintableStringRef<'_>>()
                            .map(|text| text.as_str().to_owned())
                    })
                    .ok()
            })
    }
}

/// What one listener lets its peers use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones wait in the listen queue.
    pub connections: usize,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time from the end of one request to the last header of the next.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
        }
    }
}

/// Serves until `shutdown`, then lets running requests finish for a few seconds.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    handler: H,
    shutdown: Shutdown,
) {
    let tls = tls.map(TlsAcceptor::from);
    let slots = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, stream, address) = tokio::select! {
            () = shutdown.wait() => break,
            (slot, accepted) = accepted => match accepted {
                Ok((stream, address)) => (slot, stream, address),
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to be closed.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (tls, handler, shutdown) = (tls.clone(), handler.clone(), shutdown.clone());
        tokio::spawn(async move {
            match accept(stream, tls, limits).await {
                Ok(Accepted::Plain(stream)) => {
                    let peer = Peer {
                        address,
                        tls: false,
                        certificate: None,
                    };
                    connection(stream, peer, limits, handler, shutdown).await;
                }
                Ok(Accepted::Tls(stream)) => {
                    let session = stream.get_ref().1;
                    let certificate = session.peer_certificates().and_then(<[_]>::first);
                    let certificate = certificate.map(|c| c.clone().into_owned());
                    let peer = Peer {
                        address,
                        tls: true,
                        certificate,
                    };
                    connection(stream, peer, limits, handler, shutdown).await;
                }
                Err(error) => tracing::debug!(peer = %address, %error, "TLS handshake refused"),
            }
            drop(slot);
        });
    }
    drop(listener);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let _ = timeout(DRAIN, slots.acquire_many(all)).await;
}

/// A connection after its handshake, if it has one.
enum Accepted {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

async fn accept(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    limits: Limits,
) -> std::io::Result<Accepted> {
    // Answers are written in few pieces; waiting for more only adds a delayed ACK's 40 ms.
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(Accepted::Plain(stream));
    };
    let stream = timeout(limits.handshake_timeout, tls.accept(stream))
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    Ok(Accepted::Tls(Box::new(stream)))
}

async fn connection<S, H>(stream: S, peer: Peer, limits: Limits, handler: H, shutdown: Shutdown)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let address = peer.address;
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(handler.handle(request).await) }
    });
    // hyper starts the header timer as soon as it waits for a request.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(peer = %address, %error, "connection ended early");
    }
}

/// A body that is one buffer.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A compact JSON answer.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => {
            let mut response = Response::new(full(text));
            *response.status_mut() = status;
            let kind = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(error) => {
            // Only a type that serde_json cannot write (a map with other keys than strings).
            tracing::error!(%error, "an answer could not be written as JSON");
            let mut response = Response::new(full(Bytes::new()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

/// Reads a whole request body of at most `limit` bytes, in at most half a minute and a second for
/// each 256 KiB of `limit`: a peer that sends a byte now and then must not keep its connection.
pub async fn read_body(body: Incoming, limit: usize) -> Result<Bytes, BodyError> {
    let patience = u64::try_from(limit / BODY_RATE).unwrap_or(u64::MAX);
    let patience = BODY_PATIENCE.saturating_add(Duration::from_secs(patience));
    read_within(body, limit, patience).await
}

async fn read_within<B>(body: B, limit: usize, patience: Duration) -> Result<Bytes, BodyError>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match timeout(patience, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge { limit }),
        Ok(Err(error)) => Err(BodyError::Incomplete(error.to_string())),
        Err(_) => Err(BodyError::TooSlow { after: patience }),
    }
}

/// A request body that was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The connection broke in the middle.
    #[error("request body is incomplete: {0}")]
    Incomplete(String),
    /// More bytes than the route takes.
    #[error("request body is larger than {limit} bytes")]
    TooLarge {
        /// The route's limit in bytes.
        limit: usize,
    },
    /// It did not end in time.
    #[error("request body did not end within {} s", after.as_secs())]
    TooSlow {
        /// The time it had.
        after: Duration,
    },
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use hyper::body::Frame;

    use super::*;

    /// A body that never ends, and never comes.
    struct Trickle;

    impl hyper::body::Body for Trickle {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let patience = Duration::from_millis(20);
        let error = read_within(Trickle, 10, patience).await.unwrap_err();
        assert!(matches!(error, BodyError::TooSlow { .. }), "{error}");
    }
}
