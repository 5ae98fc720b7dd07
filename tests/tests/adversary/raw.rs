use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(150);

/// A request as it stands on the wire, which asks for the end of the connection.
pub(crate) fn request(line: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\
         {headers}\r\n{body}"
    )
    .into_bytes()
}

/// Sends `bytes` to `port` of 127.0.0.1, over TLS or not, and returns the status of what comes
/// back; `None` without a connection, and when it ends without an answer.
pub(crate) fn status(port: u16, tls: Option<Arc<ClientConfig>>, bytes: &[u8]) -> Option<u16> {
    status_from(Ipv4Addr::LOCALHOST, port, tls, bytes)
}

/// [`status`], as seen from another address of 127.0.0.0/8.
pub(crate) fn status_from(
    source: Ipv4Addr,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    bytes: &[u8],
) -> Option<u16> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answer = runtime.block_on(exchange(IpAddr::V4(source), port, tls, bytes));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1)?.parse().ok()
}

/// From the address `source`, which may be any of 127.0.0.0/8: all that comes back.
pub(crate) async fn exchange(
    source: IpAddr,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    bytes: &[u8],
) -> Vec<u8> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source, 0)).unwrap();
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(stream) = socket.connect(target).await else {
        return Vec::new();
    };
    match tls {
        None => talk(stream, bytes).await,
        Some(tls) => {
            let name = ServerName::try_from("localhost").unwrap();
            match TlsConnector::from(tls).connect(name, stream).await {
                Ok(stream) => talk(stream, bytes).await,
                Err(_) => Vec::new(),
            }
        }
    }
}

async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    // The server may hang up before it has read everything; what it said until then counts.
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let read = stream.read_to_end(&mut answer);
    let _ = timeout(PATIENCE, read).await;
    answer
}
