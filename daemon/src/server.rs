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
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use x509_cert::{
    Certificate,
    der::{Decode, asn1::PrintableStringRef, asn1::Utf8StringRef, oid::db::rfc4519::CN},
};

use self::places::{Place, Places};
use crate::{
    shutdown::Shutdown,
    tls::{Clients, ServerTls},
};

/// Who may be connected at a time.
mod places;

/// How long running requests may take after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// How long any request body may take.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes per second that a body which may be larger has to come at.
const BODY_RATE: usize = 256 * 1024;

/// Bytes by which a body grows that anybody may send.
const GROWTH: usize = 256 * 1024;

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
        common_name(&Certificate::from_der(self.certificate.as_ref()?).ok()?)
    }
}

/// The first common name of a certificate's subject.
pub(crate) fn common_name(certificate: &Certificate) -> Option<String> {
    let subject = certificate.tbs_certificate().subject();
    let attribute = subject.iter().find(|attribute| attribute.oid == CN)?;
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
}

/// What one listener lets its peers use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time of peers that have shown no certificate. When there are more, the
    /// oldest of them is closed, once it has had a second.
    pub anonymous: usize,
    /// Connections at a time that are kept free for peers with a certificate.
    pub authenticated: usize,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time from the end of one request to the last header of the next.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            anonymous: 768,
            authenticated: 256,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
        }
    }
}

/// Serves until `shutdown`, then lets running requests finish for a few seconds.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    tls: Option<ServerTls>,
    limits: Limits,
    handler: H,
    shutdown: Shutdown,
) {
    let acceptor = tls.as_ref().map(|tls| Arc::clone(tls.config()).into());
    let clients = tls.as_ref().and_then(ServerTls::clients);
    let places = Places::new(&limits);
    // Ends when all connections have.
    let (open, mut all_closed) = mpsc::channel::<Infallible>(1);
    loop {
        let accepted = async {
            let (stream, address) = listener.accept().await?;
            std::io::Result::Ok((stream, address, places.enter().await))
        };
        let (stream, address, place) = tokio::select! {
            () = shutdown.wait() => break,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to be closed.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let guest = Guest {
            address,
            place,
            clients: clients.map(|clients| (Arc::clone(clients), clients.watch())),
        };
        let (acceptor, handler) = (acceptor.clone(), handler.clone());
        let (open, shutdown) = (open.clone(), shutdown.clone());
        tokio::spawn(async move {
            guest
                .stay(stream, acceptor, limits, handler, shutdown)
                .await;
            drop(open);
        });
    }
    drop(listener);
    drop(open);
    let _ = timeout(DRAIN, all_closed.recv()).await;
}

/// Somebody who is connected.
struct Guest {
    address: SocketAddr,
    place: Place,
    /// By whom certificates are judged, and whether they are to be judged again.
    clients: Option<(Arc<Clients>, watch::Receiver<()>)>,
}

impl Guest {
    async fn stay<H: Handler>(
        mut self,
        stream: TcpStream,
        acceptor: Option<TlsAcceptor>,
        limits: Limits,
        handler: H,
        shutdown: Shutdown,
    ) {
        let address = self.address;
        let accepted = tokio::select! {
            accepted = accept(stream, acceptor, limits) => accepted,
            () = self.place.left() => {
                tracing::debug!(peer = %address, "closed: others came");
                return;
            }
        };
        match accepted {
            Ok(Accepted::Plain(stream)) => {
                let peer = Peer {
                    address,
                    tls: false,
                    certificate: None,
                };
                let served = connection(stream, peer, limits, handler, shutdown);
                self.while_welcome(&[], served).await;
            }
            Ok(Accepted::Tls(stream)) => {
                let session = stream.get_ref().1;
                let shown: Vec<_> = session
                    .peer_certificates()
                    .unwrap_or_default()
                    .iter()
                    .map(|certificate| certificate.clone().into_owned())
                    .collect();
                if !shown.is_empty() {
                    self.place.authenticated();
                }
                let peer = Peer {
                    address,
                    tls: true,
                    certificate: shown.first().cloned(),
                };
                let served = connection(stream, peer, limits, handler, shutdown);
                self.while_welcome(&shown, served).await;
            }
            Err(error) => tracing::debug!(peer = %address, %error, "TLS handshake refused"),
        }
    }

    /// Until it ends, or has to make room, or `shown` is no longer taken.
    async fn while_welcome(
        &mut self,
        shown: &[CertificateDer<'static>],
        served: impl Future<Output = ()>,
    ) {
        let (place, address) = (&self.place, self.address);
        tokio::select! {
            () = served => {}
            () = place.left() => tracing::debug!(peer = %address, "closed: others came"),
            error = no_longer_taken(self.clients.as_mut(), shown) => {
                tracing::info!(peer = %address, "closed: {error}");
            }
        }
    }
}

/// Returns when a certificate that was taken is taken no more, with the reason.
async fn no_longer_taken(
    clients: Option<&mut (Arc<Clients>, watch::Receiver<()>)>,
    shown: &[CertificateDer<'static>],
) -> rustls::Error {
    if let Some((clients, judged_again)) = clients
        && !shown.is_empty()
    {
        // The sender lives in `clients`.
        while judged_again.changed().await.is_ok() {
            if let Err(error) = clients.admit(shown) {
                return error;
            }
        }
    }
    std::future::pending().await
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
    read_within(body, limit, patience(limit)).await
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

/// [`read_body`] for a body that anybody may send: what has come of all of them together takes at
/// most the KiB of `room`, for as long as the permit lives. Who sends slowly holds what he has sent,
/// and nobody up.
pub async fn read_shared_body(
    mut body: Incoming,
    limit: usize,
    room: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), BodyError> {
    let no_room = |_| BodyError::NoRoom;
    let read = async {
        let mut held = Arc::clone(room)
            .try_acquire_many_owned(0)
            .map_err(no_room)?;
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| BodyError::Incomplete(error.to_string()))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > limit {
                return Err(BodyError::TooLarge { limit });
            }
            let needed = (bytes.len() + data.len()).div_ceil(1024) - held.num_permits();
            let needed = u32::try_from(needed).map_err(|_| BodyError::NoRoom)?;
            held.merge(
                Arc::clone(room)
                    .try_acquire_many_owned(needed)
                    .map_err(no_room)?,
            );
            if bytes.capacity() < bytes.len() + data.len() {
                // Not twice as much as there is.
                bytes.reserve_exact(data.len().max(GROWTH));
            }
            bytes.extend_from_slice(&data);
        }
        Ok((Bytes::from(bytes), held))
    };
    let after = patience(limit);
    let read = timeout(after, read).await;
    read.map_err(|_| BodyError::TooSlow { after })?
}

fn patience(limit: usize) -> Duration {
    let more = u64::try_from(limit / BODY_RATE).unwrap_or(u64::MAX);
    BODY_PATIENCE.saturating_add(Duration::from_secs(more))
}

/// A request body that was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The connection broke in the middle.
    #[error("request body is incomplete: {0}")]
    Incomplete(String),
    /// Others have sent as much as is kept at a time.
    #[error("as much as is taken at a time is being sent by others")]
    NoRoom,
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
