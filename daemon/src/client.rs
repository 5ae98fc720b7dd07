//! HTTP/1.1 client: one target, one kept-alive connection, made again when it broke.

use std::{
    error::Error as _,
    fmt,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Waker},
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Version,
    body::{Body, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::Handle,
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use crate::tls::named;

/// Bytes of an answer's body that a client takes unless told otherwise.
const DEFAULT_BODY_LIMIT: usize = 1024 * 1024;
/// Bytes of an answer's body from which it is a large one, see [`LargeAnswers`].
pub const LARGE_ANSWER: usize = 256 * 1024;
/// Bytes per second that a large answer has to come at once it has its turn: a peer that trickles
/// must not keep others from theirs. Slower links could not deliver 50,000 IMA entries in time.
const LARGE_ANSWER_RATE: u32 = 128 * 1024;
/// How long a large answer may be behind that.
const LARGE_ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Talks to one host and port. Requests are sent one after another.
pub struct Client {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    timeout: Duration,
    body_limit: usize,
    large: Option<LargeAnswers>,
    kept: Mutex<Option<Kept>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.target())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// `host` is a name, an IPv4 or an IPv6 address (with or without brackets); `timeout` is for
    /// each of: connecting with the handshake, and one request with its whole answer.
    pub fn new(host: &str, port: u16, tls: Option<Arc<ClientConfig>>, timeout: Duration) -> Self {
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        Self {
            host: host.to_owned(),
            port,
            tls,
            timeout,
            body_limit: DEFAULT_BODY_LIMIT,
            large: None,
            kept: Mutex::new(None),
        }
    }

    /// Takes answers of at most `bytes`.
    #[must_use]
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.body_limit = bytes;
        self
    }

    /// Reads large answers only when `large` has room for them.
    #[must_use]
    pub fn share(mut self, large: &LargeAnswers) -> Self {
        self.large = Some(large.clone());
        self
    }

    /// GET.
    pub async fn get(&self, path_and_query: &str) -> Result<Answer, ClientError> {
        self.send(Method::GET, path_and_query, None).await
    }

    /// Any method, with a JSON body or none.
    ///
    /// A kept connection that the server closed meanwhile is replaced once, for methods that may
    /// be repeated and for a request that was not written at all.
    pub async fn send(
        &self,
        method: Method,
        path_and_query: &str,
        body: Option<Bytes>,
    ) -> Result<Answer, ClientError> {
        let mut kept = self.kept.lock().await;
        if let Some(stream) = kept.take().and_then(Kept::open) {
            let request = self.request(&method, path_and_query, body.clone())?;
            match self.exchange(stream, request).await {
                Ok((answer, stream)) => {
                    *kept = stream;
                    return Ok(answer);
                }
                Err(Broken { error, unsent }) => {
                    let closed = matches!(error, ClientError::Http { .. });
                    if !(closed && (unsent || method.is_idempotent())) {
                        return Err(error);
                    }
                }
            }
        }
        let fresh = self.connect().await?;
        let request = self.request(&method, path_and_query, body)?;
        let exchanged = self.exchange(fresh, request).await;
        let (answer, stream) = exchanged.map_err(|broken| broken.error)?;
        *kept = stream;
        Ok(answer)
    }

    fn target(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn request(
        &self,
        method: &Method,
        path_and_query: &str,
        body: Option<Bytes>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path_and_query)
            .header(header::HOST, self.target())
            .header(header::ACCEPT, "application/json");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|error| self.http_error(error.to_string()))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        match timeout(self.timeout, self.handshake()).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Timeout {
                target: self.target(),
                what: "connecting",
                after: self.timeout,
            }),
        }
    }

    async fn handshake(&self) -> Result<Box<dyn Stream>, ClientError> {
        let unreachable = |source| ClientError::Connect {
            target: self.target(),
            source,
        };
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let refused = |reason: String| ClientError::Tls {
            target: self.target(),
            reason,
        };
        let name =
            ServerName::try_from(self.host.clone()).map_err(|error| refused(error.to_string()))?;
        let stream = TlsConnector::from(Arc::clone(tls))
            .connect(name, stream)
            .await
            .map_err(|error| match wrong_name(&error) {
                Some(reason) => ClientError::WrongName {
                    target: self.target(),
                    reason,
                },
                None => refused(error.to_string()),
            })?;
        Ok(Box::new(stream))
    }

    /// The answer, and the stream when it can be used again.
    async fn exchange(
        &self,
        stream: Box<dyn Stream>,
        request: Request<Full<Bytes>>,
    ) -> Result<(Answer, Option<Kept>), Broken> {
        let sent_by = Instant::now() + self.timeout;
        let (mut requests, mut connection) =
            http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| Broken {
                    error: self.http_error(error_chain(&error)),
                    unsent: true,
                })?;
        let work = async {
            let answer = timeout_at(sent_by, requests.try_send_request(request))
                .await
                .map_err(|_| self.too_slow())?
                .map_err(|mut error| {
                    let unsent = error.take_message().is_some();
                    Broken {
                        error: self.http_error(error_chain(error.error())),
                        unsent,
                    }
                })?;
            let status = answer.status().as_u16();
            let retry_after = answer
                .headers()
                .get(header::RETRY_AFTER)
                .and_then(|value| retry_after(value.to_str().ok()?, SystemTime::now()));
            let old = answer.version() == Version::HTTP_10;
            let body = self.read(answer.into_body(), old, sent_by).await?;
            // Whoever was slow has no time left, and is not kept.
            let reusable = timeout_at(sent_by, requests.ready()).await;
            let answer = Answer {
                status,
                retry_after,
                body,
            };
            Ok((answer, matches!(reusable, Ok(Ok(())))))
        };
        // Both in this task: to have another one drive the connection costs several wake-ups.
        let mut work = pin!(work);
        let done = tokio::select! {
            biased;
            done = &mut work => Some(done),
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "client connection ended");
                }
                None
            }
        };
        let Some(done) = done else {
            // `requests` learns of the end by this: until then it waits to be ready again.
            drop(connection);
            return work.await.map(|(answer, _)| (answer, None));
        };
        let (answer, reusable) = done?;
        let parts = connection.into_parts();
        // Bytes that nobody asked for answer nothing.
        let reusable = reusable && parts.read_buf.is_empty();
        let kept = reusable.then(|| Kept(Some(parts.io.into_inner())));
        Ok((answer, kept))
    }

    /// The whole body, until `deadline`. The time that a large one waits for its turn does not
    /// count: it is not the peer's.
    ///
    /// HTTP/1.0 without a Content-Length ends with the connection, and `old` servers forget TLS's
    /// close_notify (Keylime's Python agent). It is taken as the end: every body here is a JSON
    /// object, which itself shows whether it is whole.
    async fn read(
        &self,
        mut body: Incoming,
        old: bool,
        mut deadline: Instant,
    ) -> Result<Bytes, Broken> {
        let too_large = || Broken {
            error: ClientError::BodyTooLarge {
                target: self.target(),
                limit: self.body_limit,
            },
            unsent: false,
        };
        let limit = u64::try_from(self.body_limit).unwrap_or(u64::MAX);
        if body.size_hint().lower() > limit {
            return Err(too_large());
        }
        let unknown_length = body.size_hint().exact().is_none();
        let mut bytes = BytesMut::new();
        let mut turn: Option<Turn> = None;
        loop {
            let too_slow = turn.as_ref().map(|turn| turn.end(bytes.len()));
            let too_slow = too_slow.filter(|end| *end < deadline);
            let next = timeout_at(too_slow.unwrap_or(deadline), body.frame())
                .await
                .map_err(|_| match too_slow {
                    Some(_) => self.too_slow_for_its_turn(),
                    None => self.too_slow(),
                })?;
            let frame = match next {
                None => break,
                Some(Ok(frame)) => frame,
                Some(Err(error)) if old && unknown_length && is_unexpected_eof(&error) => break,
                Some(Err(error)) => {
                    return Err(Broken {
                        error: self.http_error(error_chain(&error)),
                        unsent: false,
                    });
                }
            };
            // The others are trailers.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = bytes.len() + data.len();
            if length > self.body_limit {
                return Err(too_large());
            }
            if let (Some(large), None) = (&self.large, &turn)
                && length > LARGE_ANSWER
            {
                let since = Instant::now();
                let permit = large.turn().await;
                deadline += since.elapsed();
                turn = Some(Turn {
                    since: Instant::now(),
                    before: bytes.len(),
                    permit,
                });
            }
            bytes.extend_from_slice(&data);
        }
        Ok(match turn {
            None => bytes.freeze(),
            Some(turn) => Bytes::from_owner(Large {
                bytes,
                _turn: turn.permit,
            }),
        })
    }

    fn too_slow_for_its_turn(&self) -> Broken {
        Broken {
            error: ClientError::Slow {
                target: self.target(),
                rate: LARGE_ANSWER_RATE / 1024,
            },
            unsent: false,
        }
    }

    fn too_slow(&self) -> Broken {
        Broken {
            error: ClientError::Timeout {
                target: self.target(),
                what: "waiting for the answer",
                after: self.timeout,
            },
            unsent: false,
        }
    }

    fn http_error(&self, reason: String) -> ClientError {
        ClientError::Http {
            target: self.target(),
            reason,
        }
    }
}

/// A byte stream to the peer, TLS or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An open connection between two requests. Only the stream is kept, not the 25 KiB that HTTP needs
/// meanwhile: a verifier has one for each node, idle for all but moments of its life.
struct Kept(Option<Box<dyn Stream>>);

impl Kept {
    /// The stream, if the peer has left it open and has sent nothing unasked.
    fn open(mut self) -> Option<Box<dyn Stream>> {
        let mut stream = self.0.take()?;
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(&mut stream)
            .poll_read(&mut context, &mut byte)
            .is_pending()
            .then_some(stream)
    }
}

impl Drop for Kept {
    /// Says goodbye (TLS's close_notify) without waiting for anybody.
    fn drop(&mut self) {
        if let (Some(mut stream), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(poll_fn(move |context| {
                Pin::new(&mut stream).poll_shutdown(context)
            }));
        }
    }
}

/// Bounds how many large answers are in memory at a time, over all clients that share it.
///
/// An answer is large from [`LARGE_ANSWER`] bytes on. It counts until the last clone of its body
/// is dropped; while there are too many, clients leave theirs in the peers' send buffers.
#[derive(Clone, Debug)]
pub struct LargeAnswers(Arc<Semaphore>);

impl LargeAnswers {
    /// At most `count`, but at least one.
    pub fn new(count: usize) -> Self {
        let count = count.clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(count)))
    }

    /// Turns come in the order of asking. `None` would need a closed semaphore; nobody closes it.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

/// A large answer that is being read.
struct Turn {
    since: Instant,
    /// Bytes that were there before.
    before: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// When the next bytes have to be there if `length` are.
    fn end(&self, length: usize) -> Instant {
        let read = u32::try_from(length - self.before).unwrap_or(u32::MAX);
        let due = Duration::from_secs(1) * read / LARGE_ANSWER_RATE;
        self.since + LARGE_ANSWER_PATIENCE + due
    }
}

/// A large body, and its turn.
struct Large {
    bytes: BytesMut,
    _turn: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A failed exchange, and whether its request left this host at all.
struct Broken {
    error: ClientError,
    unsent: bool,
}

/// Status and body of an answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// How long the peer asks to be left alone (RFC 9110, 10.2.3), as it says: bound it.
    pub retry_after: Option<Duration>,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| ClientError::NotJson {
            status: self.status,
            reason: error.to_string(),
        })
    }
}

/// The wait that a Retry-After header asks for: seconds, or until an HTTP date.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit is a very long wait all the same.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// A request without a usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The answer is larger than this client takes.
    #[error("{target}: the answer is larger than {limit} bytes")]
    BodyTooLarge {
        /// Host and port.
        target: String,
        /// Limit in bytes.
        limit: usize,
    },
    /// No TCP connection: nobody listens there, or the name is unknown.
    #[error("{target}: cannot connect: {source}")]
    Connect {
        /// Host and port.
        target: String,
        /// The reason.
        source: io::Error,
    },
    /// The connection broke, or what came back is not HTTP.
    #[error("{target}: {reason}")]
    Http {
        /// Host and port.
        target: String,
        /// The reason.
        reason: String,
    },
    /// The answer's body is not the JSON that was expected.
    #[error("answer with status {status} is not the expected JSON: {reason}")]
    NotJson {
        /// HTTP status of the answer.
        status: u16,
        /// The reason.
        reason: String,
    },
    /// A large answer came so slowly that it kept others from their turn.
    #[error("{target}: the large answer came at less than {rate} KiB/s; check the network")]
    Slow {
        /// Host and port.
        target: String,
        /// KiB per second that are expected.
        rate: u32,
    },
    /// The peer took too long.
    #[error("{target}: no answer within {} s while {what}", after.as_secs_f64())]
    Timeout {
        /// Host and port.
        target: String,
        /// What was under way.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// No TLS session: the peer's certificate is not the expected one, or it refused ours.
    #[error("{target}: TLS: {reason}")]
    Tls {
        /// Host and port.
        target: String,
        /// The reason.
        reason: String,
    },
    /// The peer has a certificate of the CA that it should be from, and it is another one's.
    #[error("{target}: TLS: {reason}")]
    WrongName {
        /// Host and port.
        target: String,
        /// Whom its certificate is for, and whom not.
        reason: String,
    },
}

/// See [`named::wrong_name`].
fn wrong_name(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    named::wrong_name(error)
}

/// hyper keeps the interesting half ("connection reset by peer", a TLS alert) in the sources.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The connection ended where TLS had not.
fn is_unexpected_eof(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::UnexpectedEof;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// One answer, then the end of the connection.
    fn serve_once(answer: &'static str) -> u16 {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        port
    }

    #[tokio::test]
    async fn a_server_that_closes_after_its_answer_is_not_waited_for() {
        for answer in [
            "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        ] {
            let port = serve_once(answer);
            // Whoever waits for this time-out does not end here.
            let client = Client::new("127.0.0.1", port, None, Duration::from_secs(86_400));
            let got = client.get("/version").await.unwrap();
            assert_eq!((got.status, &got.body[..]), (200, &b"{}"[..]), "{answer}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // RFC 9110, 5.6.7: the same moment in its three spellings.
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let now = date - Duration::from_secs(90);
        let wait = |value| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait(" 0 "), Some(0));
        assert_eq!(wait("99999999999999999999999"), Some(u64::MAX));
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(wait(date), Some(90), "{date}");
        }
        assert_eq!(wait("Sun, 06 Nov 1983 08:49:37 GMT"), Some(0), "passed");
        for bad in ["", "-1", "1.5", "soon", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(wait(bad), None, "{bad}");
        }
    }
}
