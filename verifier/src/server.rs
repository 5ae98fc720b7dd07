//! Starting either server: CA, database, listeners.

use std::{
    fmt::Display,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::net::TcpListener;
use troth_daemon::{
    cert_store::CertStoreError,
    notify, resident,
    server::{Limits, serve},
    shutdown::Shutdown,
    tls::{RevocationError, RevocationFiles, ServerTls, TlsError},
    watch,
};

use crate::{
    api::VerifierApi,
    ca::{CaError, InUse},
    config::{RegistrarConfig, ServerConfig, VerifierConfig},
    messages,
    poll::{Fleet, FleetError},
    registrar::Registrar,
    store::{Schema, Store, StoreError},
    tls::TlsFiles,
};

/// How often the service manager's status line is renewed.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// How often a verifier looks whether another one has replaced policies: a row is read.
const POLICY_INTERVAL: Duration = Duration::from_secs(2);
/// How often the database is asked for a sign of life in a unit without watchdog.
const DATABASE_INTERVAL: Duration = Duration::from_secs(30);
/// How often a server looks whether the certificates that it loaded end soon.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(86_400);

/// A registrar that listens, but serves nobody yet.
#[derive(Debug)]
pub struct RegistrarServer {
    plain: TcpListener,
    secure: TcpListener,
    tls: ServerTls,
    certificates: Vec<InUse>,
    revocation: RevocationFiles,
    store: Store,
    registrar: Registrar,
}

impl RegistrarServer {
    /// Makes or opens CA and database, and binds both ports.
    pub async fn start(config: &RegistrarConfig) -> Result<Self, StartError> {
        let ip = listen_address(&config.ip)?;
        let mut files = TlsFiles::open(config.tls()).await?;
        let tls = files.server()?;
        let certificates = files.in_use()?;
        let revocation = files.revocation();
        let store = Store::open_with(
            &config.database_url(),
            Schema::Registrar,
            config.database_pool_size,
        )
        .await?;
        let registrar = Registrar::new(store.clone(), config)?;
        let plain = bind(ip, config.port).await?;
        let secure = bind(ip, config.tls_port).await?;
        Ok(Self {
            plain,
            secure,
            tls,
            certificates,
            revocation,
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
            resident::release_start_up_code();
            notify::ready(&format!("Serving on {plain} and {secure}"));
        }
        let keep_alive = tokio::spawn(watchdog(self.store.clone()));
        let watching = tokio::spawn(watch_certificates(self.certificates));
        let revoking = tokio::spawn(self.revocation.follow(self.tls.clone()));
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
        watching.abort();
        revoking.abort();
        self.store.close().await;
    }
}

/// A verifier that asks its nodes already, but serves no operator yet.
#[derive(Debug)]
pub struct VerifierServer {
    listener: TcpListener,
    tls: ServerTls,
    certificates: Vec<InUse>,
    revocation: RevocationFiles,
    store: Store,
    fleet: Arc<Fleet>,
    api: VerifierApi,
}

impl VerifierServer {
    /// Makes or opens CA and database, binds the port, and resumes all enrolled nodes.
    pub async fn start(config: &VerifierConfig) -> Result<Self, StartError> {
        let ip = listen_address(&config.ip)?;
        let mut files = TlsFiles::open(config.tls()).await?;
        let tls = files.server()?;
        let identity = files.client()?;
        let certificates = files.in_use()?;
        let revocation = files.revocation();
        let store = Store::open_with(
            &config.database_url(),
            Schema::Verifier,
            config.database_pool_size,
        )
        .await?;
        let listener = bind(ip, config.port).await?;
        let address = listener.local_addr().map_err(StartError::Socket)?;
        let fleet = Fleet::start(store.clone(), config, identity, address).await?;
        let fleet = Arc::new(fleet);
        let api = VerifierApi::new(Arc::clone(&fleet), config);
        Ok(Self {
            listener,
            tls,
            certificates,
            revocation,
            store,
            fleet,
            api,
        })
    }

    /// The TLS address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, then writes what is not written yet.
    pub async fn run(self, shutdown: Shutdown) {
        if let Ok(address) = self.address() {
            tracing::info!("listening on {address}");
            resident::release_start_up_code();
            notify::ready(&format!("Serving on {address}"));
        }
        let keep_alive = tokio::spawn(watchdog(self.store.clone()));
        let watching = tokio::spawn(watch_certificates(self.certificates));
        let revoking = tokio::spawn(self.revocation.follow(self.tls.clone()));
        let telling = tokio::spawn(tell_status(Arc::clone(&self.fleet)));
        let following = tokio::spawn(follow_policies(Arc::clone(&self.fleet)));
        serve(
            self.listener,
            Some(self.tls),
            Limits::default(),
            self.api,
            shutdown,
        )
        .await;
        notify::stopping();
        keep_alive.abort();
        watching.abort();
        revoking.abort();
        telling.abort();
        following.abort();
        self.fleet.close().await;
        self.store.close().await;
    }
}

/// One line for `systemctl status`, kept up to date.
async fn tell_status(fleet: Arc<Fleet>) {
    let mut ticks = tokio::time::interval(STATUS_INTERVAL);
    loop {
        ticks.tick().await;
        notify::status(&fleet.summary());
    }
}

/// Takes over what other verifiers on the same database have replaced.
async fn follow_policies(fleet: Arc<Fleet>) {
    let mut ticks = tokio::time::interval(POLICY_INTERVAL);
    loop {
        ticks.tick().await;
        if let Err(error) = fleet.follow_policies().await {
            tracing::warn!(%error, "replaced policies are not seen");
        }
    }
}

/// Certificates are renewed at start only: says early that a start is due.
async fn watch_certificates(certificates: Vec<InUse>) {
    let mut ticks = tokio::time::interval(CERTIFICATE_INTERVAL);
    loop {
        ticks.tick().await;
        for warning in certificates.iter().filter_map(InUse::warning) {
            tracing::warn!(message_id = messages::CERTIFICATE_ENDS, "{warning}");
        }
    }
}

/// Tells the service manager that the server is alive for as long as its database answers.
async fn watchdog(store: Store) {
    let interval = notify::watchdog_interval().unwrap_or(DATABASE_INTERVAL);
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        watch::look_again();
        match tokio::time::timeout(interval, store.ping()).await {
            Ok(Ok(())) => notify::watchdog(),
            Ok(Err(error)) => database_lost(&error),
            Err(_) => database_lost(&"no answer in time"),
        }
    }
}

fn database_lost(error: &dyn Display) {
    tracing::error!(
        message_id = messages::DATABASE_LOST,
        %error,
        "the database does not answer"
    );
}

/// The address that the option `ip` names.
pub(crate) fn listen_address(ip: &str) -> Result<IpAddr, StartError> {
    let bare = ip
        .strip_prefix('[')
        .and_then(|ip| ip.strip_suffix(']'))
        .unwrap_or(ip);
    bare.parse().map_err(|_| StartError::Address(ip.to_owned()))
}

async fn bind(ip: IpAddr, port: u16) -> Result<TcpListener, StartError> {
    let address = SocketAddr::new(ip, port);
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Bind { address, source })
}

impl StartError {
    /// Is it the configuration that has to change?
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Address(_)
                | Self::Ca(CaError::Name(_) | CaError::Names(_))
                | Self::Fleet(FleetError::SigningKey { .. } | FleetError::Severity(_))
                | Self::Half { .. }
                | Self::Revocation(_)
                | Self::Tls(_)
                | Self::Store(
                    StoreError::Occupied { .. } | StoreError::Parameter(_) | StoreError::Scheme(_)
                )
        )
    }
}

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
    /// The certificates of TPM manufacturers cannot be used.
    #[error("{0}; they are needed by require_ek_cert and tpm_identity")]
    CertStore(#[from] CertStoreError),
    /// One of two options that belong together is missing.
    #[error("{present} is set, but {missing} is not: a certificate and its key belong together")]
    Half {
        /// The option that is set.
        present: &'static str,
        /// The option that is not.
        missing: &'static str,
    },
    /// Enrolled nodes cannot be loaded.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// A list of revoked certificates cannot be used.
    #[error("{0}; see client_crl")]
    Revocation(#[from] RevocationError),
    /// No asynchronous runtime, or no signal handlers.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    /// A bound socket has no address.
    #[error("socket: {0}")]
    Socket(io::Error),
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
