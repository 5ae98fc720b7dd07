//! Starting either server: CA, database, listeners.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::net::TcpListener;
use troth_daemon::{
    notify,
    server::{Limits, serve},
    shutdown::Shutdown,
    tls::{ClientAuth, Identity, TlsError, certificates_from_pem, server_config},
};

use crate::{
    ca::{CaDirectory, CaError},
    config::RegistrarConfig,
    registrar::Registrar,
    store::{Schema, Store, StoreError},
};

/// A registrar that listens, but serves nobody yet.
#[derive(Debug)]
pub struct RegistrarServer {
    plain: TcpListener,
    secure: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    store: Store,
    registrar: Registrar,
}

impl RegistrarServer {
    /// Makes or opens CA and database, and binds both ports.
    pub async fn start(config: &RegistrarConfig) -> Result<Self, StartError> {
        let ca = open_ca(config.ca_dir(), config.ip.clone()).await?;
        let tls = server_tls(&ca)?;
        let store = Store::open(&config.database_url(), Schema::Registrar).await?;
        let registrar = Registrar::new(store.clone(), config);
        let plain = bind(&config.ip, config.port).await?;
        let secure = bind(&config.ip, config.tls_port).await?;
        Ok(Self {
            plain,
            secure,
            tls,
            store,
            registrar,
        })
    }

    /// The plain HTTP address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.plain.local_addr()
    }

    /// The TLS address.
    pub fn tls_address(&self) -> io::Result<SocketAddr> {
        self.secure.local_addr()
    }

    /// Serves until `shutdown`.
    pub async fn run(self, shutdown: Shutdown) {
        if let (Ok(plain), Ok(secure)) = (self.address(), self.tls_address()) {
            tracing::info!("listening on {plain} (HTTP: registration only)");
            tracing::info!("listening on {secure} (HTTPS)");
            notify::ready(&format!("Serving on {plain} and {secure}"));
        }
        let keep_alive = tokio::spawn(watchdog(self.store.clone()));
        let limits = Limits::default();
        tokio::join!(
            serve(
                self.plain,
                None,
                limits,
                self.registrar.clone(),
                shutdown.clone()
            ),
            serve(
                self.secure,
                Some(self.tls),
                limits,
                self.registrar,
                shutdown
            ),
        );
        notify::stopping();
        keep_alive.abort();
        self.store.close().await;
    }
}

/// Tells the service manager that the server is alive for as long as its database answers.
pub(crate) async fn watchdog(store: Store) {
    let Some(interval) = notify::watchdog_interval() else {
        return;
    };
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        match tokio::time::timeout(interval, store.ping()).await {
            Ok(Ok(())) => notify::watchdog(),
            Ok(Err(error)) => tracing::error!(%error, "the database does not answer"),
            Err(_) => tracing::error!("the database does not answer in time"),
        }
    }
}

pub(crate) async fn open_ca(
    path: std::path::PathBuf,
    ip: String,
) -> Result<CaDirectory, StartError> {
    // Waits for a lock, and makes keys: not on an I/O task.
    let made = tokio::task::spawn_blocking(move || CaDirectory::ensure(&path, &[ip])).await;
    Ok(made.map_err(|error| StartError::Task(error.to_string()))??)
}

/// Clients may present a certificate of our CA; routes decide who must.
pub(crate) fn server_tls(ca: &CaDirectory) -> Result<Arc<rustls::ServerConfig>, StartError> {
    let (certificate, key) = ca.server();
    let identity = Identity::load(&certificate, &key)?;
    let path = ca.ca_certificate();
    let pem = std::fs::read(&path).map_err(|source| CaError::Io { path, source })?;
    let roots = certificates_from_pem(&pem)?;
    Ok(server_config(&identity, ClientAuth::Optional(roots))?)
}

pub(crate) async fn bind(ip: &str, port: u16) -> Result<TcpListener, StartError> {
    let bare = ip
        .strip_prefix('[')
        .and_then(|ip| ip.strip_suffix(']'))
        .unwrap_or(ip);
    let address: IpAddr = bare
        .parse()
        .map_err(|_| StartError::Address(ip.to_owned()))?;
    let address = SocketAddr::new(address, port);
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Bind { address, source })
}

/// Time that running work gets at the end.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// `ip` is not an address.
    #[error("ip: {0:?} is not an IP address")]
    Address(String),
    /// The port is taken, or not ours to take.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// The CA directory cannot be used.
    #[error("certificate authority: {0}")]
    Ca(#[from] CaError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A worker ended unexpectedly.
    #[error("worker: {0}")]
    Task(String),
    /// The server's certificate cannot be used.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
}
